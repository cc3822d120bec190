/* SPDX-License-Identifier: BSD-3-Clause */
/* See simvfs.h. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/host.h"
#include "unit/simvfs.h"

#define REGIONS 16

/* What all connections to one file share: its locks, and the wal-index. */
struct shared {
  const struct io_fs *fs;
  char *path;
  unsigned users;
  unsigned readers;             /* hold SHARED, or more */
  const struct vfile *writer;   /* holds RESERVED, or more */
  const struct vfile *only;     /* holds PENDING or EXCLUSIVE */
  void *region[REGIONS];
  unsigned shm_readers[SQLITE_SHM_NLOCK];
  const struct vfile *shm_writer[SQLITE_SHM_NLOCK];
  struct shared *next;
};

struct vfile {
  sqlite3_file base;
  struct io_file *file;
  char *path;
  bool unlink;                  /* on close */
  bool name;                    /* it may have made its name, which the first sync is to make durable */
  int level;                    /* SQLITE_LOCK_... */
  unsigned shm_shared;          /* locks held, by bit */
  struct shared *shared;
};

static __thread struct simdisk *mine;
static struct simdisk *everybodys;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared *files;    /* under LOCK */

struct simdisk *
simvfs_use (struct simdisk *s)
{
  struct simdisk *was = mine;

  mine = s;
  return was;
}

void
simvfs_default (struct simdisk *s)
{
  everybodys = s;
}

static const struct io_fs *
fs_now (void)
{
  struct simdisk *s = mine ? mine : everybodys;

  assert (s);
  return simdisk_fs (s);
}

/* The result for errno, where others are OTHER. */
static int
result (int other)
{
  return errno == ENOSPC ? SQLITE_FULL :
    errno == ENOMEM ? SQLITE_IOERR_NOMEM : other;
}

/* --- files --- */

static int
v_read (sqlite3_file *f, void *buf, int len, sqlite3_int64 off)
{
  struct vfile *v = (struct vfile *) f;
  ssize_t n = io_pread_some (v->file, buf, len, off);

  if (n == -1)
    return result (SQLITE_IOERR_READ);
  if (n == len)
    return SQLITE_OK;
  memset ((char *) buf + n, 0, len - n);
  return SQLITE_IOERR_SHORT_READ;
}

static int
v_write (sqlite3_file *f, const void *buf, int len, sqlite3_int64 off)
{
  struct vfile *v = (struct vfile *) f;

  return io_pwrite (v->file, buf, len, off) == 0 ? SQLITE_OK :
    result (SQLITE_IOERR_WRITE);
}

static int
v_truncate (sqlite3_file *f, sqlite3_int64 size)
{
  struct vfile *v = (struct vfile *) f;

  return io_truncate (v->file, size) == 0 ? SQLITE_OK :
    result (SQLITE_IOERR_TRUNCATE);
}

static int
sync_dir_of (const struct io_fs *fs, const char *path)
{
  char dir[256];
  char *slash;

  snprintf (dir, sizeof dir, "%s", path);
  slash = strrchr (dir, '/');
  assert (slash);
  *slash = '\0';
  return io_sync_dir (fs, dir) == 0 ? SQLITE_OK : result (SQLITE_IOERR_DIR_FSYNC);
}

static int
v_sync (sqlite3_file *f, int flags)
{
  struct vfile *v = (struct vfile *) f;

  (void) flags;
  if (io_fdatasync (v->file) == -1)
    return result (SQLITE_IOERR_FSYNC);
  if (!v->name)
    return SQLITE_OK;
  v->name = false;
  return sync_dir_of (v->file->fs, v->path);
}

static int
v_size (sqlite3_file *f, sqlite3_int64 *size)
{
  struct vfile *v = (struct vfile *) f;
  struct io_stat st;

  if (io_stat (v->file, &st) == -1)
    return result (SQLITE_IOERR_FSTAT);
  *size = st.size;
  return SQLITE_OK;
}

static struct shared *
shared_get_locked (const struct io_fs *fs, const char *path)
{
  struct shared *s = files;

  while (s && (s->fs != fs || strcmp (s->path, path) != 0))
    s = s->next;
  if (s == NULL) {
    s = calloc (1, sizeof *s);
    if (s == NULL || (s->path = strdup (path)) == NULL) {
      free (s);
      return NULL;
    }
    s->fs = fs;
    s->next = files;
    files = s;
  }
  s->users++;
  return s;
}

static void
shared_put_locked (struct shared *s)
{
  struct shared **p = &files;

  if (--s->users > 0)
    return;
  while (*p != s)
    p = &(*p)->next;
  *p = s->next;
  for (unsigned i = 0; i < REGIONS; i++)
    free (s->region[i]);
  free (s->path);
  free (s);
}

static int
v_lock (sqlite3_file *f, int level)
{
  struct vfile *v = (struct vfile *) f;
  struct shared *s = v->shared;
  SCOPED_LOCK (&lock);

  if (v->level >= level)
    return SQLITE_OK;
  if (v->level == SQLITE_LOCK_NONE) {
    if (s->only)
      return SQLITE_BUSY;
    s->readers++;
    v->level = SQLITE_LOCK_SHARED;
  }
  if (level >= SQLITE_LOCK_RESERVED) {
    if (s->writer && s->writer != v)
      return SQLITE_BUSY;
    s->writer = v;
    v->level = MAX (v->level, SQLITE_LOCK_RESERVED);
  }
  if (level == SQLITE_LOCK_EXCLUSIVE) {
    s->only = v;
    v->level = SQLITE_LOCK_PENDING;
    if (s->readers > 1)
      return SQLITE_BUSY;
    v->level = SQLITE_LOCK_EXCLUSIVE;
  }
  return SQLITE_OK;
}

static int
v_unlock (sqlite3_file *f, int level)
{
  struct vfile *v = (struct vfile *) f;
  struct shared *s = v->shared;
  SCOPED_LOCK (&lock);

  if (v->level <= level)
    return SQLITE_OK;
  if (s->only == v)
    s->only = NULL;
  if (s->writer == v)
    s->writer = NULL;
  if (level == SQLITE_LOCK_NONE)
    s->readers--;
  v->level = level;
  return SQLITE_OK;
}

static int
v_reserved (sqlite3_file *f, int *is)
{
  struct vfile *v = (struct vfile *) f;
  SCOPED_LOCK (&lock);

  *is = v->shared->writer != NULL;
  return SQLITE_OK;
}

static int
v_control (sqlite3_file *f, int what, void *arg)
{
  (void) f;
  (void) what;
  (void) arg;
  return SQLITE_NOTFOUND;
}

static int
v_sector (sqlite3_file *f)
{
  (void) f;
  return SIMDISK_SECTOR;
}

/* As the one for Unix says. */
static int
v_traits (sqlite3_file *f)
{
  (void) f;
  return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

/* --- the wal-index --- */

static int
v_shm_map (sqlite3_file *f, int region, int size, int extend,
           void volatile **p)
{
  struct shared *s = ((struct vfile *) f)->shared;
  SCOPED_LOCK (&lock);

  *p = NULL;
  if (region >= REGIONS)
    return SQLITE_FULL;
  if (s->region[region] == NULL) {
    if (!extend)
      return SQLITE_OK;
    s->region[region] = calloc (1, size);
    if (s->region[region] == NULL)
      return SQLITE_IOERR_NOMEM;
  }
  *p = s->region[region];
  return SQLITE_OK;
}

static void
shm_unlock_locked (struct vfile *v, int i)
{
  struct shared *s = v->shared;

  if (v->shm_shared & 1u << i) {
    v->shm_shared &= ~(1u << i);
    s->shm_readers[i]--;
  }
  if (s->shm_writer[i] == v)
    s->shm_writer[i] = NULL;
}

static int
v_shm_lock (sqlite3_file *f, int offset, int n, int flags)
{
  struct vfile *v = (struct vfile *) f;
  struct shared *s = v->shared;
  SCOPED_LOCK (&lock);

  for (int i = offset; i < offset + n && flags & SQLITE_SHM_LOCK; i++) {
    unsigned mine_too = v->shm_shared >> i & 1;

    if ((s->shm_writer[i] && s->shm_writer[i] != v) ||
        (flags & SQLITE_SHM_EXCLUSIVE && s->shm_readers[i] > mine_too))
      return SQLITE_BUSY;
  }
  for (int i = offset; i < offset + n; i++)
    if (flags & SQLITE_SHM_UNLOCK)
      shm_unlock_locked (v, i);
    else if (flags & SQLITE_SHM_EXCLUSIVE)
      s->shm_writer[i] = v;
    else if (!(v->shm_shared & 1u << i)) {
      v->shm_shared |= 1u << i;
      s->shm_readers[i]++;
    }
  return SQLITE_OK;
}

static void
v_shm_barrier (sqlite3_file *f)
{
  (void) f;
  __atomic_thread_fence (__ATOMIC_SEQ_CST);
}

static int
v_shm_unmap (sqlite3_file *f, int delete)
{
  struct vfile *v = (struct vfile *) f;
  struct shared *s = v->shared;
  SCOPED_LOCK (&lock);

  for (int i = 0; i < SQLITE_SHM_NLOCK; i++)
    shm_unlock_locked (v, i);
  for (unsigned i = 0; i < REGIONS && delete; i++) {
    free (s->region[i]);
    s->region[i] = NULL;
  }
  return SQLITE_OK;
}

static int
v_close (sqlite3_file *f)
{
  struct vfile *v = (struct vfile *) f;

  (void) v_unlock (f, SQLITE_LOCK_NONE);
  (void) v_shm_unmap (f, 0);
  {
    SCOPED_LOCK (&lock);
    shared_put_locked (v->shared);
  }
  if (v->unlink && io_unlink (v->file->fs, v->path) == -1 && errno != ENOENT)
    fprintf (stderr, "%s: cannot be unlinked\n", v->path);
  io_close (v->file);
  free (v->path);
  return SQLITE_OK;
}

static const sqlite3_io_methods methods = {
  .iVersion = 2, .xClose = v_close, .xRead = v_read, .xWrite = v_write,
  .xTruncate = v_truncate, .xSync = v_sync, .xFileSize = v_size,
  .xLock = v_lock, .xUnlock = v_unlock, .xCheckReservedLock = v_reserved,
  .xFileControl = v_control, .xSectorSize = v_sector,
  .xDeviceCharacteristics = v_traits, .xShmMap = v_shm_map,
  .xShmLock = v_shm_lock, .xShmBarrier = v_shm_barrier,
  .xShmUnmap = v_shm_unmap,
};

/* --- the file system --- */

static int
v_open (sqlite3_vfs *vfs, const char *path, sqlite3_file *f, int flags,
        int *out)
{
  struct vfile *v = (struct vfile *) f;
  int how = flags & SQLITE_OPEN_READWRITE ? O_RDWR : O_RDONLY;

  (void) vfs;
  memset (v, 0, sizeof *v);
  if (flags & SQLITE_OPEN_CREATE)
    how |= O_CREAT;
  if (flags & SQLITE_OPEN_EXCLUSIVE)
    how |= O_EXCL;
  v->path = strdup (path ? path : "/sim/temporary");
  if (v->path == NULL)
    return SQLITE_NOMEM;
  if (io_open (fs_now (), v->path, how, 0600, &v->file) == -1) {
    int r = result (SQLITE_CANTOPEN);

    free (v->path);
    return r;
  }
  {
    SCOPED_LOCK (&lock);
    v->shared = shared_get_locked (v->file->fs, v->path);
  }
  if (v->shared == NULL) {
    io_close (v->file);
    free (v->path);
    return SQLITE_NOMEM;
  }
  v->name = flags & SQLITE_OPEN_CREATE &&
    flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL | SQLITE_OPEN_WAL);
  v->unlink = flags & SQLITE_OPEN_DELETEONCLOSE;
  v->base.pMethods = &methods;
  if (out)
    *out = flags;
  return SQLITE_OK;
}

static int
v_delete (sqlite3_vfs *vfs, const char *path, int sync_dir)
{
  (void) vfs;
  if (io_unlink (fs_now (), path) == -1)
    return errno == ENOENT ? SQLITE_IOERR_DELETE_NOENT :
      result (SQLITE_IOERR_DELETE);
  return sync_dir ? sync_dir_of (fs_now (), path) : SQLITE_OK;
}

static int
v_access (sqlite3_vfs *vfs, const char *path, int what, int *is)
{
  struct io_file *file;
  struct io_stat st;
  int r = SQLITE_OK;

  (void) vfs;
  *is = 0;
  if (io_open (fs_now (), path, O_RDONLY, 0, &file) == -1)
    return errno == ENOENT ? SQLITE_OK : result (SQLITE_IOERR_ACCESS);
  if (io_stat (file, &st) == -1)
    r = result (SQLITE_IOERR_ACCESS);
  else
    /* To the one for Unix an empty file is none. */
    *is = what != SQLITE_ACCESS_EXISTS || st.size > 0;
  io_close (file);
  return r;
}

static int
v_full (sqlite3_vfs *vfs, const char *path, int n, char *full)
{
  (void) vfs;
  return snprintf (full, n, "%s", path) < n ? SQLITE_OK : SQLITE_CANTOPEN;
}

static int
v_random (sqlite3_vfs *vfs, int n, char *to)
{
  (void) vfs;
  return host_random (to, n) == 0 ? n : 0;
}

static int
v_sleep (sqlite3_vfs *vfs, int us)
{
  (void) vfs;
  return us;
}

static int
v_time (sqlite3_vfs *vfs, sqlite3_int64 *now)
{
  (void) vfs;
  *now = INT64_C (210866760000000) + host_time_ns () / 1000000;
  return SQLITE_OK;
}

static int
v_day (sqlite3_vfs *vfs, double *now)
{
  sqlite3_int64 ms;

  (void) v_time (vfs, &ms);
  *now = ms / 86400000.0;
  return SQLITE_OK;
}

static int
v_error (sqlite3_vfs *vfs, int n, char *to)
{
  (void) vfs;
  (void) n;
  (void) to;
  return errno;
}

void
simvfs_register (void)
{
  static sqlite3_vfs vfs = {
    .iVersion = 2, .szOsFile = sizeof (struct vfile), .mxPathname = 255,
    .zName = "sim", .xOpen = v_open, .xDelete = v_delete, .xAccess = v_access,
    .xFullPathname = v_full, .xRandomness = v_random, .xSleep = v_sleep,
    .xCurrentTime = v_day, .xGetLastError = v_error,
    .xCurrentTimeInt64 = v_time,
  };

  if (sqlite3_vfs_register (&vfs, 1) != SQLITE_OK)
    abort ();
}
