/* SPDX-License-Identifier: BSD-3-Clause */
/* See simdisk.h. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "unit/simdisk-impl.h"

struct sim_file {
  struct io_file base;
  struct simdisk *s;
  struct inode *inode;
};

/* --- Operations --- */

static struct simdisk *
disk_of (struct io_file *file)
{
  return ((struct sim_file *) file)->s;
}

static struct inode *
inode_of (struct io_file *file)
{
  return ((struct sim_file *) file)->inode;
}

struct inode *
simdisk_find (struct simdisk *s, const char *path)
{
  for (unsigned i = 0; i < s->ninodes; i++)
    if (s->inodes[i].name && strcmp (s->inodes[i].name, path) == 0)
      return &s->inodes[i];
  return NULL;
}

static void
forget_pending (struct inode *i)
{
  while (i->pending) {
    struct pending *p = i->pending;

    i->pending = p->next;
    free (p->data);
    free (p);
  }
  i->last = &i->pending;
}

struct inode *
simdisk_inode (struct simdisk *s, const char *path)
{
  struct inode *i = NULL;

  for (unsigned k = 0; k < s->ninodes && i == NULL; k++)
    if (s->inodes[k].name == NULL && s->inodes[k].durable_name == NULL &&
        s->inodes[k].opens == 0) {
      i = &s->inodes[k];
      forget_pending (i);
      content_free (&i->now);
      content_free (&i->durable);
    }
  if (i == NULL) {
    assert (s->ninodes < SIMDISK_FILES);
    i = &s->inodes[s->ninodes++];
  }
  memset (i, 0, sizeof *i);
  i->name = strdup (path);
  i->last = &i->pending;
  content_resize (&i->now, 0);
  content_resize (&i->durable, 0);
  return i;
}

static const char *
path_of (struct io_file *file)
{
  const char *name = inode_of (file)->name;

  return name ? name : "";
}

static __thread const char *op_path;

const char *
simdisk_op_path (void)
{
  return op_path;
}

/* Before an operation that a crash may hit: 0, or -1 when it is to fail. */
static int
before (struct simdisk *s, enum simdisk_op op, const char *path)
{
  bool fail;

  op_path = path;
  if (s->hook)
    s->hook (s->hook_opaque, op);
  SCOPED_LOCK (&s->lock);
  s->ops++;
  fail = s->fail_at != 0 && op != SIMDISK_NAME &&
    (s->fail_sticky ? s->ops >= s->fail_at : s->ops == s->fail_at);
  if (fail)
    errno = s->fail_error;
  return fail ? -1 : 0;
}

/* Whoever asked to see every call may fail it. */
static int
called (struct simdisk *s, enum simdisk_call what, const char *path,
        size_t *len)
{
  size_t any = 0;
  int error = s->call ? s->call (s->call_opaque, what, path, len ? len : &any) : 0;

  if (error == 0)
    return 0;
  errno = error;
  return -1;
}

void (*simdisk_inside) (bool in);

static void
leave (const bool *in)
{
  int saved = errno;

  if (*in)
    simdisk_inside (false);
  errno = saved;
}

static bool
enter (void)
{
  if (simdisk_inside == NULL)
    return false;
  simdisk_inside (true);
  return true;
}

/* In here it is the kernel that runs. */
#define KERNEL() \
  __attribute__ ((cleanup (leave), unused)) const bool inside = enter ()

static int
sim_open (const struct io_fs *fs, const char *path, int flags, mode_t mode,
          struct io_file **file)
{
  struct simdisk *s = fs->opaque;
  struct inode *i;
  struct sim_file *f;
  KERNEL ();

  (void) mode;
  if (called (s, SIMDISK_CALL_OPEN, path, NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  if (s->no_direct && (flags & O_DIRECT)) {
    errno = EINVAL;
    return -1;
  }
  i = simdisk_find (s, path);
  if (i == NULL && !(flags & O_CREAT)) {
    errno = ENOENT;
    return -1;
  }
  if (i && (flags & O_CREAT) && (flags & O_EXCL)) {
    errno = EEXIST;
    return -1;
  }
  f = calloc (1, sizeof *f);
  if (f == NULL)
    return -1;
  f->base.fs = fs;
  f->s = s;
  f->inode = i ? i : simdisk_inode (s, path);
  f->inode->opens++;
  *file = &f->base;
  return 0;
}

static void
sim_close (struct io_file *file)
{
  struct simdisk *s = disk_of (file);
  KERNEL ();

  {
    SCOPED_LOCK (&s->lock);
    inode_of (file)->opens--;
  }
  free (file);
}

static ssize_t
sim_pread (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  struct simdisk *s = disk_of (file);
  const struct inode *i = inode_of (file);
  KERNEL ();

  if (called (s, SIMDISK_CALL_READ, path_of (file), &len) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  if (off >= i->now.size)
    return 0;
  len = MIN (len, i->now.size - off);
  if (off < i->bad_off + i->bad_len && i->bad_off < off + len) {
    errno = EIO;
    return -1;
  }
  content_read (&i->now, buf, len, off);
  return len;
}

/* Note that [OFF, OFF + LEN) of the cache is to go to disk. */
static void
add_pending (struct inode *i, uint64_t off, size_t len)
{
  struct pending *p = calloc (1, sizeof *p);
  uint64_t end = ROUND_UP (off + len, (uint64_t) SIMDISK_SECTOR);

  assert (p);
  p->off = ROUND_DOWN (off, (uint64_t) SIMDISK_SECTOR);
  p->len = MIN (end, i->now.size) - p->off;
  p->data = malloc (MAX (p->len, (size_t) 1));
  assert (p->data);
  content_read (&i->now, p->data, p->len, p->off);
  *i->last = p;
  i->last = &p->next;
}

static ssize_t
sim_pwritev (struct io_file *file, const struct iovec *iov, int n, uint64_t off)
{
  struct simdisk *s = disk_of (file);
  struct inode *i = inode_of (file);
  /* What is cut short ends with a sector. */
  size_t len = 0, max = 0, cut = off % SIMDISK_SECTOR;
  int error = 0;
  KERNEL ();

  for (int k = 0; k < n; k++)
    max += iov[k].iov_len;
  if (before (s, SIMDISK_WRITE, path_of (file)) == -1 ||
      called (s, SIMDISK_CALL_WRITE, path_of (file), &max) == -1)
    error = errno;
  SCOPED_LOCK (&s->lock);
  if (s->short_len)
    max = MIN (max, s->short_len - cut);
  if (error) {
    errno = error;
    if (!s->torn || error == EINTR)
      return -1;
    max = MIN (max, SIMDISK_SECTOR - cut);      /* some of it may have got through */
  }
  for (int k = 0; k < n && len < max; k++) {
    size_t part = MIN (iov[k].iov_len, max - len);

    content_write (&i->now, iov[k].iov_base, part, off + len);
    len += part;
  }
  add_pending (i, off, len);
  if (error) {
    errno = error;
    return -1;
  }
  return len;
}

static int
sim_fdatasync (struct io_file *file)
{
  struct simdisk *s = disk_of (file);
  struct inode *i = inode_of (file);
  int error = 0;
  KERNEL ();

  if (before (s, SIMDISK_SYNC, path_of (file)) == -1 ||
      called (s, SIMDISK_CALL_SYNC, path_of (file), NULL) == -1)
    error = errno;
  SCOPED_LOCK (&s->lock);
  if (error) {
    /* The kernel marks the pages clean all the same: no later sync writes them. */
    if (s->torn && i->pending) {
      i->lost = true;
      forget_pending (i);
    }
    errno = error;
    return -1;
  }
  if (i->lost) {
    content_resize (&i->durable, i->now.size);
    for (const struct pending *p = i->pending; p; p = p->next)
      content_write (&i->durable, p->data, p->len, p->off);
  }
  else {
    content_free (&i->durable);
    i->durable = content_share (&i->now);
  }
  forget_pending (i);
  return 0;
}

static int
sim_fallocate (struct io_file *file, int mode, uint64_t off, uint64_t len)
{
  static const uint8_t zeroes[65536];
  struct simdisk *s = disk_of (file);
  struct inode *i = inode_of (file);
  KERNEL ();

  if (((mode != 0 || off > 0) && before (s, SIMDISK_WRITE, path_of (file)) == -1) ||
      called (s, SIMDISK_CALL_SPACE, path_of (file), NULL) == -1)
    return -1;
  if (mode != 0 && s->no_zero) {
    errno = EOPNOTSUPP;
    return -1;
  }
  SCOPED_LOCK (&s->lock);
  if (mode == 0) {
    if (off + len > i->now.size)
      content_resize (&i->now, off + len);
    return 0;
  }
  if (off >= i->now.size)
    return 0;
  len = MIN (len, i->now.size - off);
  for (uint64_t done = 0; done < len; ) {
    size_t part = MIN (len - done, (uint64_t) sizeof zeroes);

    content_write (&i->now, zeroes, part, off + done);
    done += part;
  }
  add_pending (i, off, len);
  return 0;
}

static int
sim_truncate (struct io_file *file, uint64_t size)
{
  struct simdisk *s = disk_of (file);
  struct inode *i = inode_of (file);
  KERNEL ();

  if (before (s, SIMDISK_WRITE, path_of (file)) == -1 ||
      called (s, SIMDISK_CALL_SPACE, path_of (file), NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  for (struct pending *p = i->pending; p; p = p->next)
    if (p->off + p->len > size)
      p->len = p->off < size ? size - p->off : 0;
  content_resize (&i->now, size);
  return 0;
}

static int
sim_stat (struct io_file *file, struct io_stat *st)
{
  struct simdisk *s = disk_of (file);
  KERNEL ();

  if (called (s, SIMDISK_CALL_LOOK, path_of (file), NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  st->kind = IO_KIND_REGULAR;
  st->size = inode_of (file)->now.size;
  return 0;
}

static off_t
sim_seek (struct io_file *file, uint64_t off, int whence)
{
  struct simdisk *s = disk_of (file);
  const struct content *c = &inode_of (file)->now;
  bool hole;
  uint64_t end;
  KERNEL ();

  if (called (s, SIMDISK_CALL_LOOK, path_of (file), NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);

  if (off >= c->size) {
    errno = ENXIO;
    return -1;
  }
  end = content_extent (c, off, &hole);
  if (hole == (whence == SEEK_HOLE))
    return off;
  if (hole && end == c->size) {
    errno = ENXIO;
    return -1;
  }
  return end;
}

static int
sim_advise (struct io_file *file, uint64_t off, uint64_t len, int advice)
{
  struct simdisk *s = disk_of (file);
  struct inode *i = inode_of (file);
  KERNEL ();
  SCOPED_LOCK (&s->lock);

  /* Pages that pass for clean are read from the disk again. */
  if (i->lost && advice == POSIX_FADV_DONTNEED && off == 0 && len == 0) {
    uint64_t size = i->now.size;

    content_free (&i->now);
    i->now = content_share (&i->durable);
    content_resize (&i->now, size);
    for (const struct pending *p = i->pending; p; p = p->next)
      content_write (&i->now, p->data, p->len, p->off);
    i->lost = false;
  }
  return 0;
}

/* One process, one disk: nobody else is there to hold a lock. */
static int
sim_lock (struct io_file *file, enum io_lock how, uint64_t off, uint64_t len)
{
  (void) file;
  (void) how;
  (void) off;
  (void) len;
  return 0;
}

static int
sim_mkdir (const struct io_fs *fs, const char *path, mode_t mode)
{
  (void) fs;
  (void) path;
  (void) mode;
  return 0;
}

static int
sim_unlink (const struct io_fs *fs, const char *path)
{
  struct simdisk *s = fs->opaque;
  struct inode *i;
  KERNEL ();

  if (before (s, SIMDISK_NAME, path) == -1 ||
      called (s, SIMDISK_CALL_NAME, path, NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  i = simdisk_find (s, path);
  if (i == NULL) {
    errno = ENOENT;
    return -1;
  }
  free (i->name);
  i->name = NULL;
  return 0;
}

static int
sim_rename (const struct io_fs *fs, const char *from, const char *to)
{
  struct simdisk *s = fs->opaque;
  struct inode *i, *old;
  KERNEL ();

  if (before (s, SIMDISK_NAME, from) == -1 ||
      called (s, SIMDISK_CALL_NAME, from, NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  i = simdisk_find (s, from);
  old = simdisk_find (s, to);
  if (i == NULL) {
    errno = ENOENT;
    return -1;
  }
  if (old) {
    free (old->name);
    old->name = NULL;
  }
  free (i->name);
  i->name = strdup (to);
  return 0;
}

static int
sim_sync_dir (const struct io_fs *fs, const char *path)
{
  struct simdisk *s = fs->opaque;
  KERNEL ();

  if (before (s, SIMDISK_SYNC, path) == -1 ||
      called (s, SIMDISK_CALL_SYNC, path, NULL) == -1)
    return -1;
  SCOPED_LOCK (&s->lock);
  for (unsigned i = 0; i < s->ninodes; i++) {
    free (s->inodes[i].durable_name);
    s->inodes[i].durable_name =
      s->inodes[i].name ? strdup (s->inodes[i].name) : NULL;
  }
  return 0;
}

static const struct io_ops sim_ops = {
  .open = sim_open, .close = sim_close, .pread = sim_pread,
  .pwritev = sim_pwritev, .fdatasync = sim_fdatasync,
  .fallocate = sim_fallocate, .truncate = sim_truncate, .stat = sim_stat,
  .seek = sim_seek, .advise = sim_advise, .lock = sim_lock,
  .lock_test = sim_lock, .mkdir = sim_mkdir, .unlink = sim_unlink,
  .rename = sim_rename, .sync_dir = sim_sync_dir,
};

/* --- The disk --- */

struct simdisk *
simdisk_new (void)
{
  struct simdisk *s = calloc (1, sizeof *s);

  assert (s);
  s->fs = (struct io_fs) { .ops = &sim_ops, .opaque = s };
  pthread_mutex_init (&s->lock, NULL);
  return s;
}

void
simdisk_free (struct simdisk *s)
{
  for (unsigned i = 0; i < s->ninodes; i++) {
    forget_pending (&s->inodes[i]);
    content_free (&s->inodes[i].now);
    content_free (&s->inodes[i].durable);
    free (s->inodes[i].name);
    free (s->inodes[i].durable_name);
  }
  pthread_mutex_destroy (&s->lock);
  free (s);
}

const struct io_fs *
simdisk_fs (struct simdisk *s)
{
  return &s->fs;
}

void
simdisk_hook (struct simdisk *s, simdisk_hook_fn hook, void *opaque)
{
  s->hook = hook;
  s->hook_opaque = opaque;
}
