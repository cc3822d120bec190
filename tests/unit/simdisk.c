/* SPDX-License-Identifier: BSD-3-Clause */
/* See simdisk.h. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "unit/simdisk.h"
#include "unit/simpages.h"

#define MAX_FILES 16

/* A write that was not synced, as whole sectors: what the cache held of them then. */
struct pending {
  uint64_t off;
  size_t len;
  uint8_t *data;
  struct pending *next;
};

struct inode {
  char *name;                   /* NULL: unlinked */
  char *durable_name;           /* after a power loss; NULL: none */
  struct content now, durable;
  struct pending *pending, **last;
  bool lost;                    /* a failed sync lost some: the cache knows more than the disk will */
  uint64_t bad_off, bad_len;
};

struct simdisk {
  struct io_fs fs;
  pthread_mutex_t lock;
  struct inode inodes[MAX_FILES];
  unsigned ninodes;
  simdisk_hook_fn hook;
  void *hook_opaque;
  uint64_t ops, fail_at;
  int fail_error;
  bool fail_sticky;
  size_t short_len;
  bool torn, no_zero;
};

struct sim_file {
  struct io_file base;
  struct simdisk *s;
  struct inode *inode;
};

/* --- Operations --- */

static struct inode *
find (struct simdisk *s, const char *path)
{
  for (unsigned i = 0; i < s->ninodes; i++)
    if (s->inodes[i].name && strcmp (s->inodes[i].name, path) == 0)
      return &s->inodes[i];
  return NULL;
}

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

/* Before a write or a sync: 0, or -1 when it is to fail. */
static int
before (struct simdisk *s, enum simdisk_op op)
{
  bool fail;

  if (s->hook)
    s->hook (s->hook_opaque, op);
  SCOPED_LOCK (&s->lock);
  s->ops++;
  fail = s->fail_at != 0 &&
    (s->fail_sticky ? s->ops >= s->fail_at : s->ops == s->fail_at);
  if (fail)
    errno = s->fail_error;
  return fail ? -1 : 0;
}

static struct inode *
inode_new (struct simdisk *s, const char *path)
{
  struct inode *i = &s->inodes[s->ninodes++];

  assert (s->ninodes <= MAX_FILES);
  memset (i, 0, sizeof *i);
  i->name = strdup (path);
  i->last = &i->pending;
  content_resize (&i->now, 0);
  content_resize (&i->durable, 0);
  return i;
}

static int
sim_open (const struct io_fs *fs, const char *path, int flags, mode_t mode,
          struct io_file **file)
{
  struct simdisk *s = fs->opaque;
  SCOPED_LOCK (&s->lock);
  struct inode *i = find (s, path);
  struct sim_file *f;

  (void) mode;
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
  f->inode = i ? i : inode_new (s, path);
  *file = &f->base;
  return 0;
}

static void
sim_close (struct io_file *file)
{
  free (file);
}

static ssize_t
sim_pread (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  struct simdisk *s = disk_of (file);
  SCOPED_LOCK (&s->lock);
  const struct inode *i = inode_of (file);

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
  bool fail = before (s, SIMDISK_WRITE) == -1;
  SCOPED_LOCK (&s->lock);
  /* What is cut short ends with a sector. */
  size_t len = 0, cut = off % SIMDISK_SECTOR;
  size_t max = s->short_len ? s->short_len - cut : SIZE_MAX;

  if (fail) {
    if (!s->torn)
      return -1;
    max = SIMDISK_SECTOR - cut; /* some of it may have got through */
  }
  for (int k = 0; k < n && len < max; k++) {
    size_t part = MIN (iov[k].iov_len, max - len);

    content_write (&i->now, iov[k].iov_base, part, off + len);
    len += part;
  }
  add_pending (i, off, len);
  if (fail) {
    errno = s->fail_error;
    return -1;
  }
  return len;
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

static int
sim_fdatasync (struct io_file *file)
{
  struct simdisk *s = disk_of (file);
  struct inode *i = inode_of (file);
  bool fail = before (s, SIMDISK_SYNC) == -1;
  SCOPED_LOCK (&s->lock);

  if (fail) {
    /* The kernel marks the pages clean all the same: no later sync writes them. */
    if (s->torn && i->pending) {
      i->lost = true;
      forget_pending (i);
    }
    errno = s->fail_error;
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

  if ((mode != 0 || off > 0) && before (s, SIMDISK_WRITE) == -1)
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

  if (before (s, SIMDISK_WRITE) == -1)
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
  SCOPED_LOCK (&s->lock);

  st->kind = IO_KIND_REGULAR;
  st->size = inode_of (file)->now.size;
  return 0;
}

static off_t
sim_seek (struct io_file *file, uint64_t off, int whence)
{
  struct simdisk *s = disk_of (file);
  SCOPED_LOCK (&s->lock);
  const struct content *c = &inode_of (file)->now;
  bool hole;
  uint64_t end;

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
  (void) file;
  (void) off;
  (void) len;
  (void) advice;
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
  SCOPED_LOCK (&s->lock);
  struct inode *i = find (s, path);

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
  SCOPED_LOCK (&s->lock);
  struct inode *i = find (s, from), *old = find (s, to);

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

  (void) path;
  if (before (s, SIMDISK_SYNC) == -1)
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

/* Apply to C what of the pending writes of I persists. */
static void
persist (struct content *c, const struct inode *i, enum simdisk_crash how,
         uint64_t (*random) (void))
{
  unsigned n = 0, keep;
  /* Few, half or most of them. */
  unsigned odds = 1 + random () % 15;

  if (i->now.size != c->size && random () % 2)
    content_resize (c, i->now.size);
  for (const struct pending *p = i->pending; p; p = p->next)
    n++;
  keep = n ? random () % (n + 1) : 0;
  for (const struct pending *p = i->pending; p; p = p->next) {
    switch (how) {
    case SIMDISK_WRITES:
      if (random () % 16 < odds)
        content_write (c, p->data, p->len, p->off);
      break;
    case SIMDISK_PREFIX:
      if (keep > 0) {
        content_write (c, p->data, p->len, p->off);
        keep--;
      }
      break;
    default:
      for (size_t at = 0; at < p->len; ) {
        size_t len = MIN (p->len - at, SIMDISK_SECTOR -
                          (p->off + at) % SIMDISK_SECTOR);

        if (random () % 16 < odds) {
          uint8_t junk[SIMDISK_SECTOR];

          if (how == SIMDISK_GARBLE && random () % 8 == 0) {
            for (unsigned b = 0; b < sizeof junk; b++)
              junk[b] = random ();
            content_write (c, junk, len, p->off + at);
          }
          else
            content_write (c, p->data + at, len, p->off + at);
        }
        at += len;
      }
    }
  }
}

struct simdisk *
simdisk_crash (struct simdisk *s, enum simdisk_crash how,
               uint64_t (*random) (void))
{
  struct simdisk *t = simdisk_new ();
  SCOPED_LOCK (&s->lock);

  for (unsigned k = 0; k < s->ninodes; k++) {
    const struct inode *i = &s->inodes[k];
    const char *name = i->name;
    struct inode *n;

    /* A name that was not synced is there or not. */
    if (how != SIMDISK_KILL &&
        (name == NULL || i->durable_name == NULL ||
         strcmp (name, i->durable_name) != 0) &&
        (how == SIMDISK_NONE || random () % 2))
      name = i->durable_name;
    if (name == NULL)
      continue;
    n = inode_new (t, name);
    n->durable_name = strdup (name);
    content_free (&n->now);
    content_free (&n->durable);
    n->now = content_share (how == SIMDISK_KILL ? &i->now : &i->durable);
    if (how != SIMDISK_KILL && how != SIMDISK_NONE)
      persist (&n->now, i, how, random);
    n->durable = content_share (how == SIMDISK_KILL ? &i->durable : &n->now);
    n->lost = how == SIMDISK_KILL && i->lost;
    if (how == SIMDISK_KILL) {
      /* What was not synced may still be lost later. */
      for (const struct pending *p = i->pending; p; p = p->next) {
        struct pending *copy = calloc (1, sizeof *copy);

        assert (copy);
        *copy = *p;
        copy->next = NULL;
        copy->data = malloc (MAX (p->len, (size_t) 1));
        assert (copy->data);
        memcpy (copy->data, p->data, p->len);
        *n->last = copy;
        n->last = &copy->next;
      }
    }
  }
  return t;
}

void
simdisk_fail (struct simdisk *s, uint64_t count, int error, bool sticky)
{
  s->fail_at = count ? s->ops + count : 0;
  s->fail_error = error;
  s->fail_sticky = sticky;
}

void
simdisk_short (struct simdisk *s, size_t len)
{
  s->short_len = len;
}

void
simdisk_torn (struct simdisk *s, bool torn)
{
  s->torn = torn;
}

void
simdisk_no_zero (struct simdisk *s, bool none)
{
  s->no_zero = none;
}

uint64_t
simdisk_ops (struct simdisk *s)
{
  return s->ops;
}

uint64_t
simdisk_size (struct simdisk *s, const char *path)
{
  const struct inode *i = find (s, path);

  return i ? i->now.size : 0;
}

bool
simdisk_equals (struct simdisk *s, const char *path, const uint8_t *data,
                uint64_t len)
{
  SCOPED_LOCK (&s->lock);
  const struct inode *i = find (s, path);

  return i && content_equals (&i->now, data, len);
}

void
simdisk_read (struct simdisk *s, const char *path, uint8_t *data, uint64_t len)
{
  SCOPED_LOCK (&s->lock);
  const struct inode *i = find (s, path);

  assert (i && len <= i->now.size);
  content_read (&i->now, data, len, 0);
}

void
simdisk_flip (struct simdisk *s, const char *path, uint64_t off, uint8_t mask)
{
  struct inode *i = find (s, path);
  uint8_t byte;

  assert (i && off < i->now.size);
  content_read (&i->now, &byte, 1, off);
  byte ^= mask;
  content_write (&i->now, &byte, 1, off);
  content_free (&i->durable);
  i->durable = content_share (&i->now);
}

void
simdisk_bad (struct simdisk *s, const char *path, uint64_t off, uint64_t len)
{
  struct inode *i = find (s, path);

  assert (i);
  i->bad_off = off;
  i->bad_len = len;
}

bool
simdisk_same (struct simdisk *a, struct simdisk *b, const char *path)
{
  const struct inode *i = find (a, path), *k = find (b, path);

  return i && k ? content_same (&i->now, &k->now) : i == k;
}

void
simdisk_copy (struct simdisk *to, const char *name, struct simdisk *from,
              const char *path)
{
  const struct inode *i = find (from, path);
  struct content now = content_share (&i->now);
  struct inode *n = find (to, name);

  assert (from != to || strcmp (name, path) != 0);
  if (n == NULL)
    n = inode_new (to, name);
  assert (n->pending == NULL);
  free (n->durable_name);
  n->durable_name = strdup (name);
  content_free (&n->now);
  content_free (&n->durable);
  n->now = now;
  n->durable = content_share (&now);
}
