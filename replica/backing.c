/* SPDX-License-Identifier: BSD-3-Clause */
/* See backing.h.
 *
 * QEMU's image locks (block/file-posix.c in QEMU): for each permission i a
 * program uses it holds a shared lock on byte 100 + i, and for each that it does not
 * let others use, one on byte 200 + i.  Before it may use a permission nobody
 * may hold the byte that forbids it, and the other way round.  mcbuf reads, writes
 * and relies on the size, and lets nobody else write or resize.  (Locks of one open file never
 * conflict with each other, so the tests below see only other processes.)
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "replica/backing.h"

#define QEMU_USES 100
#define QEMU_FORBIDS 200
#define PERM_CONSISTENT_READ 0
#define PERM_WRITE 1
#define PERM_RESIZE 3

#define ZEROES (1u << 20)

struct backing {
  struct io_file *file;
  char *path;
  uint64_t size;
  bool seek_data;               /* holes can be asked for */
  /* Set once, by whoever finds out: a stale value costs one failed call. */
  _Atomic bool no_punch, no_zero_range;
  void *zeroes;
};

static int
take_locks (struct backing *b, struct mcerror *err)
{
  static const unsigned uses[] = { PERM_CONSISTENT_READ, PERM_WRITE, PERM_RESIZE };
  static const unsigned forbids[] = { PERM_WRITE, PERM_RESIZE };
  bool busy = false;

  for (unsigned i = 0; i < sizeof uses / sizeof uses[0] && !busy; i++)
    busy = io_lock (b->file, IO_LOCK_SHARED, QEMU_USES + uses[i], 1) == -1;
  for (unsigned i = 0; i < sizeof forbids / sizeof forbids[0] && !busy; i++)
    busy = io_lock (b->file, IO_LOCK_SHARED, QEMU_FORBIDS + forbids[i], 1) == -1;
  for (unsigned i = 0; i < sizeof uses / sizeof uses[0] && !busy; i++)
    busy = io_lock_test (b->file, IO_LOCK_EXCLUSIVE,
                         QEMU_FORBIDS + uses[i], 1) == -1;
  for (unsigned i = 0; i < sizeof forbids / sizeof forbids[0] && !busy; i++)
    busy = io_lock_test (b->file, IO_LOCK_EXCLUSIVE,
                         QEMU_USES + forbids[i], 1) == -1;
  if (!busy)
    return 0;

  if (errno == EAGAIN || errno == EACCES) {
    errno = EBUSY;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the image is in use by another process (a QEMU, or another mcbuf): "
                        "stop it first", b->path);
  }
  return mcerror_set (err, MCEXIT_USAGE, "%s: cannot lock the image: %m",
                      b->path);
}

/* Durable, and so is its name: the journal will rely on it. */
static int
give_size (struct backing *b, uint64_t size)
{
  CLEANUP_FREE char *dir = strdup (b->path);
  char *slash = dir ? strrchr (dir, '/') : NULL;

  if (dir == NULL)
    return -1;
  if (slash)
    slash[slash == dir] = '\0';
  if (io_truncate (b->file, size) == -1 || io_fdatasync (b->file) == -1)
    return -1;
  return io_sync_dir (b->file->fs, slash ? dir : ".");
}

static int
open_image (struct backing *b, const struct io_fs *fs, bool create,
            uint64_t size, struct mcerror *err)
{
  struct io_stat st;

  if (io_open (fs, b->path, O_RDWR, 0, &b->file) == -1) {
    if (errno != ENOENT || !create) {
      if (errno == ENOENT)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: the backing image does not exist: create it, or use size=SIZE",
                            b->path);
      if (errno == EISDIR)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: is a directory: a raw image file or a block device is needed",
                            b->path);
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot open the backing image for writing: %m",
                          b->path);
    }
    if (io_open (fs, b->path, O_RDWR | O_CREAT | O_EXCL, 0600,
                 &b->file) == -1)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot create the backing image: %m", b->path);
    if (give_size (b, size) == -1) {
      int saved = errno;
      bool stays = io_unlink (fs, b->path) == -1;

      errno = saved;
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot give the new backing image %" PRIu64 " bytes: %m%s",
                          b->path, size,
                          stays ? " (remove what is left of it)" : "");
    }
  }
  if (io_stat (b->file, &st) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s: %m", b->path);
  if (st.kind == IO_KIND_OTHER) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: neither a file nor a block device", b->path);
  }
  if (create && st.kind == IO_KIND_REGULAR && st.size == 0) {
    /* Begun by one that was killed, or lost power, before it had its size. */
    if (give_size (b, size) == -1)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot give the empty backing image %" PRIu64 " bytes: %m",
                          b->path, size);
    st.size = size;
  }
  if (create && (st.kind == IO_KIND_REGULAR ? st.size != size : st.size < size)) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the backing image has %" PRIu64 " bytes, size= says %" PRIu64
                        ": leave size= out, or name another image",
                        b->path, st.size, size);
  }
  if (st.size == 0) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the backing image is empty: give it the size of the primary's disk",
                        b->path);
  }
  b->size = create ? size : st.size;
  b->seek_data = st.kind == IO_KIND_REGULAR;
  return take_locks (b, err);
}

int
backing_open (const struct io_fs *fs, const char *path, bool create,
              uint64_t size, struct backing **backing, struct mcerror *err)
{
  struct backing *b = calloc (1, sizeof *b);

  if (b == NULL || (b->path = strdup (path)) == NULL ||
      (b->zeroes = calloc (1, ZEROES)) == NULL) {
    mcerror_set (err, MCEXIT_USAGE, "%s: %m", path);
    backing_close (b);
    return -1;
  }
  if (open_image (b, fs, create, size, err) == -1) {
    backing_close (b);
    return -1;
  }
  *backing = b;
  return 0;
}

int
backing_look (const struct io_fs *fs, const char *path,
              struct backing **backing, struct mcerror *err)
{
  struct backing *b = calloc (1, sizeof *b);
  struct io_stat st;

  if (b == NULL || (b->path = strdup (path)) == NULL ||
      io_open (fs, path, O_RDONLY, 0, &b->file) == -1 ||
      io_stat (b->file, &st) == -1) {
    mcerror_set (err, MCEXIT_USAGE, "%s: cannot open the backing image: %m", path);
    backing_close (b);
    return -1;
  }
  b->size = st.size;
  *backing = b;
  return 0;
}

void
backing_close (struct backing *b)
{
  if (b) {
    io_close (b->file);
    int saved = errno;
    free (b->path);
    free (b->zeroes);
    free (b);
    errno = saved;
  }
}

uint64_t
backing_size (const struct backing *b)
{
  return b->size;
}

const char *
backing_path (const struct backing *b)
{
  return b->path;
}

int
backing_pread (struct backing *b, void *buf, size_t len, uint64_t off)
{
  return io_pread (b->file, buf, len, off);
}

int
backing_pwritev (struct backing *b, struct iovec *iov, int n, uint64_t off)
{
  return io_pwritev (b->file, iov, n, off);
}

/* Never to be had here, for any range. */
static bool
unsupported (int errnum)
{
  return errnum == EOPNOTSUPP || errnum == ENOTSUP || errnum == ENODEV ||
    errnum == ENOSYS;
}

int
backing_zero (struct backing *b, uint64_t len, uint64_t off, bool may_trim,
              bool fast)
{
  if (len == 0)
    return 0;
  if (may_trim && !b->no_punch) {
    if (io_fallocate (b->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      off, len) == 0)
      return 0;
    if (unsupported (errno))
      b->no_punch = true;
    else if (errno != EINVAL)   /* a range that a block device does not take */
      return -1;
  }
  if (!b->no_zero_range) {
    if (io_fallocate (b->file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                      off, len) == 0)
      return 0;
    if (unsupported (errno))
      b->no_zero_range = true;
    else if (errno != EINVAL)
      return -1;
  }
  if (fast) {
    errno = ENOTSUP;
    return -1;
  }
  while (len > 0) {
    size_t n = MIN (len, (uint64_t) ZEROES);

    if (io_pwrite (b->file, b->zeroes, n, off) == -1)
      return -1;
    off += n;
    len -= n;
  }
  return 0;
}

int
backing_flush (struct backing *b)
{
  return io_fdatasync (b->file);
}

int
backing_cache (struct backing *b, uint64_t len, uint64_t off)
{
  return io_advise (b->file, off, len, POSIX_FADV_WILLNEED);
}

int
backing_extent (struct backing *b, uint64_t off, uint64_t max, uint64_t *len,
                bool *hole)
{
  *hole = false;
  *len = max;
  if (!b->seek_data)
    return 0;

  off_t data = io_seek (b->file, off, SEEK_DATA);
  if (data == -1 && errno == ENXIO) {
    *hole = true;               /* nothing but a hole up to the end */
    return 0;
  }
  if (data == -1)
    return unsupported (errno) || errno == EINVAL ? 0 : -1;
  if ((uint64_t) data > off) {
    *hole = true;
    *len = MIN (max, (uint64_t) data - off);
    return 0;
  }
  off_t end = io_seek (b->file, off, SEEK_HOLE);
  if (end == -1)
    return unsupported (errno) || errno == EINVAL || errno == ENXIO ? 0 : -1;
  if ((uint64_t) end > off)
    *len = MIN (max, (uint64_t) end - off);
  return 0;
}
