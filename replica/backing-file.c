/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing images that are files or block devices.
 *
 * QEMU's image locks (block/file-posix.c in QEMU): for each permission i a
 * program uses it holds a shared lock on byte 100 + i, and for each that it does not
 * let others use, one on byte 200 + i.  Before it may use a permission nobody
 * may hold the byte that forbids it, and the other way round.  mcbuf reads, writes
 * and relies on the size, and lets nobody else write or resize.  (Locks of one open file never
 * conflict with each other, so the tests below see only other processes.)
 *
 * Those locks belong to the name in /dev that was opened, and only QEMU looks at them.  So a block device is
 * claimed as well, as a file system that is mounted claims it (O_EXCL): of two who do that one is refused.
 *
 * A program that takes no locks is found out before the image is opened: nobody may have a file open for writing
 * (readers may, a backup for example), nor a loop device on it.
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
#include "common/host.h"
#include "replica/backing-impl.h"

#define QEMU_USES 100
#define QEMU_FORBIDS 200
#define PERM_CONSISTENT_READ 0
#define PERM_WRITE 1
#define PERM_RESIZE 3
#define PERM_BYTES 5            /* QEMU has as many */

#define ZEROES (1u << 20)
#define DEVICE_ALIGN 4096u      /* of what a device zeroes by itself: no logical sector is larger */

struct image {
  struct backing b;
  struct io_file *file;
  bool device;                  /* a block device */
  bool seek_data;               /* holes can be asked for */
  /* Set once, by whoever finds out: a stale value costs one failed call. */
  _Atomic bool no_punch, no_zero_range;
  void *zeroes;
  /* The same file once more, past the page cache; NULL: not asked for, or not to be had. */
  struct io_file *direct;
  bool asked_direct;
  _Atomic bool no_direct;
};

/* Once.  -1 with errno, EAGAIN when another process is in the way; then no lock is kept, so that two who
 * wait do not wait for each other.
 */
static int
try_locks (struct image *f)
{
  static const unsigned uses[] = { PERM_CONSISTENT_READ, PERM_WRITE, PERM_RESIZE };
  static const unsigned forbids[] = { PERM_WRITE, PERM_RESIZE };
  bool busy = false;
  int saved;

  for (unsigned i = 0; i < sizeof uses / sizeof uses[0] && !busy; i++)
    busy = io_lock (f->file, IO_LOCK_SHARED, QEMU_USES + uses[i], 1) == -1;
  for (unsigned i = 0; i < sizeof forbids / sizeof forbids[0] && !busy; i++)
    busy = io_lock (f->file, IO_LOCK_SHARED, QEMU_FORBIDS + forbids[i], 1) == -1;
  for (unsigned i = 0; i < sizeof uses / sizeof uses[0] && !busy; i++)
    busy = io_lock_test (f->file, IO_LOCK_EXCLUSIVE,
                         QEMU_FORBIDS + uses[i], 1) == -1;
  for (unsigned i = 0; i < sizeof forbids / sizeof forbids[0] && !busy; i++)
    busy = io_lock_test (f->file, IO_LOCK_EXCLUSIVE,
                         QEMU_USES + forbids[i], 1) == -1;
  if (!busy)
    return 0;
  saved = errno == EACCES ? EAGAIN : errno;
  (void) io_lock (f->file, IO_UNLOCK, QEMU_USES, PERM_BYTES);
  (void) io_lock (f->file, IO_UNLOCK, QEMU_FORBIDS, PERM_BYTES);
  errno = saved;
  return -1;
}

static int
take_locks (struct image *f, struct mcerror *err)
{
  uint64_t since = 0;
  int r;

  do
    r = try_locks (f);
  while (r == -1 && errno == EAGAIN && host_wait_busy (&since));
  if (r == 0)
    return 0;
  if (since != 0) {
    errno = EBUSY;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the image is in use by another process (a QEMU, or another mcbuf): "
                        "stop it first", f->b.path);
  }
  return mcerror_set (err, MCEXIT_USAGE, "%s: cannot lock the image: %m",
                      f->b.path);
}

/* Does anybody write to the image, whether with locks or not?  A block device is claimed instead. */
static int
check_users (struct image *f, const struct io_fs *fs, struct mcerror *err)
{
  struct io_file *file;
  struct io_stat st;
  uint64_t since = 0;
  char who[64];
  int result = 0, r = 0;

  /* What cannot be opened is reported where it has to be. */
  if (fs->ops->check_writers == NULL ||
      io_open (fs, f->b.path, O_RDONLY | O_NONBLOCK, 0, &file) == -1)
    return 0;
  if (io_stat (file, &st) == -1 || st.kind != IO_KIND_BLOCK)
    do
      r = io_check_writers (file, who, sizeof who);
    while (r == -1 && host_wait_busy (&since));
  if (r == -1)
    result = mcerror_set (err, MCEXIT_USAGE,
                          "%s: the image is in use by another process, which has it open for writing%s%s%s: "
                          "stop it first", f->b.path, who[0] ? " (" : "", who, who[0] ? ")" : "");
  io_close (file);
  return result;
}

/* Durable, and so is its name: the journal will rely on it. */
static int
give_size (struct image *f, uint64_t size)
{
  CLEANUP_FREE char *dir = strdup (f->b.path);
  char *slash = dir ? strrchr (dir, '/') : NULL;

  if (dir == NULL)
    return -1;
  if (slash)
    slash[slash == dir] = '\0';
  if (io_truncate (f->file, size) == -1 || io_fdatasync (f->file) == -1)
    return -1;
  return io_sync_dir (f->file->fs, slash ? dir : ".");
}

/* O_EXCL without O_CREAT is defined for block devices only. */
static int
claim_device (struct image *f, const struct io_fs *fs, struct io_stat *st,
              struct mcerror *err)
{
  io_close (f->file);
  f->file = NULL;
  if (io_open (fs, f->b.path, O_RDWR | O_EXCL, 0, &f->file) == 0 &&
      io_stat (f->file, st) == 0)
    return 0;
  if (errno == EBUSY)
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the block device is in use (mounted, a part of another device, or another mcbuf has it): "
                        "unmount or stop that first", f->b.path);
  return mcerror_set (err, MCEXIT_USAGE, "%s: cannot claim the block device: %m",
                      f->b.path);
}

static int
open_image (struct image *f, const struct io_fs *fs, bool create,
            uint64_t size, struct mcerror *err)
{
  struct io_stat st;

  if (check_users (f, fs, err) == -1)
    return -1;
  if (io_open (fs, f->b.path, O_RDWR, 0, &f->file) == -1) {
    if (errno != ENOENT || !create) {
      if (errno == ENOENT)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: the backing image does not exist: create it, or use size=SIZE",
                            f->b.path);
      if (errno == EISDIR)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: is a directory: a raw image file or a block device is needed",
                            f->b.path);
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot open the backing image for writing: %m",
                          f->b.path);
    }
    if (io_open (fs, f->b.path, O_RDWR | O_CREAT | O_EXCL, 0600,
                 &f->file) == -1)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot create the backing image: %m", f->b.path);
    if (give_size (f, size) == -1) {
      int saved = errno;
      bool stays = io_unlink (fs, f->b.path) == -1;

      errno = saved;
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot give the new backing image %" PRIu64 " bytes: %m%s",
                          f->b.path, size,
                          stays ? " (remove what is left of it)" : "");
    }
  }
  if (io_stat (f->file, &st) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s: %m", f->b.path);
  if (st.kind == IO_KIND_OTHER) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: neither a file nor a block device", f->b.path);
  }
  if (st.kind == IO_KIND_BLOCK && claim_device (f, fs, &st, err) == -1)
    return -1;
  if (create && st.kind == IO_KIND_REGULAR && st.size == 0) {
    /* Begun by one that was killed, or lost power, before it had its size. */
    if (give_size (f, size) == -1)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: cannot give the empty backing image %" PRIu64 " bytes: %m",
                          f->b.path, size);
    st.size = size;
  }
  if (create && (st.kind == IO_KIND_REGULAR ? st.size != size : st.size < size)) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the backing image has %" PRIu64 " bytes, size= says %" PRIu64
                        ": leave size= out, or name another image",
                        f->b.path, st.size, size);
  }
  if (st.size == 0) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the backing image is empty: give it the size of the primary's disk",
                        f->b.path);
  }
  f->b.size = create ? size : st.size;
  f->device = st.kind == IO_KIND_BLOCK;
  f->seek_data = st.kind == IO_KIND_REGULAR;
  return take_locks (f, err);
}

static void
image_close (struct backing *b)
{
  struct image *f = (struct image *) b;

  io_close (f->direct);
  io_close (f->file);
  free (f->b.path);
  free (f->zeroes);
  free (f);
}

static int
image_pread (struct backing *b, void *buf, size_t len, uint64_t off)
{
  return io_pread (((struct image *) b)->file, buf, len, off);
}

static int
image_pwritev (struct backing *b, struct iovec *iov, int n, uint64_t off)
{
  return io_pwritev (((struct image *) b)->file, iov, n, off);
}

static bool
image_is_direct (struct backing *b)
{
  struct image *f = (struct image *) b;

  if (!f->asked_direct) {
    f->asked_direct = true;
    if (io_reopen (f->file, O_RDWR | O_DIRECT, &f->direct) == -1)
      f->direct = NULL;
  }
  return f->direct != NULL && !f->no_direct;
}

static int
image_pwritev_direct (struct backing *b, struct iovec *iov, int n,
                      uint64_t off)
{
  struct image *f = (struct image *) b;
  struct iovec copy[64];

  if (!f->no_direct && n <= (int) (sizeof copy / sizeof copy[0])) {
    memcpy (copy, iov, n * sizeof *iov);
    if (io_pwritev (f->direct, copy, n, off) == 0)
      return 0;
    if (errno != EINVAL)
      return -1;
    f->no_direct = true;        /* some file systems say so only now, or need another alignment */
  }
  return io_pwritev (f->file, iov, n, off);
}

/* Never to be had here, for any range. */
static bool
unsupported (int errnum)
{
  return errnum == EOPNOTSUPP || errnum == ENOTSUP || errnum == ENODEV ||
    errnum == ENOSYS;
}

static int
write_zeroes (struct image *f, uint64_t len, uint64_t off)
{
  while (len > 0) {
    size_t n = MIN (len, (uint64_t) ZEROES);

    if (io_pwrite (f->file, f->zeroes, n, off) == -1)
      return -1;
    off += n;
    len -= n;
  }
  return 0;
}

/* Without writing zeroes: 1, 0 when that is not to be had, -1 errno.  A device that cannot zero a range has
 * the kernel write the zeroes: not with FAST.
 */
static int
zero_at_once (struct image *f, uint64_t len, uint64_t off, bool may_trim,
              bool fast)
{
  if (may_trim && !f->no_punch) {
    if (io_fallocate (f->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      off, len) == 0)
      return 1;
    if (unsupported (errno))
      f->no_punch = true;
    else if (errno != EINVAL)   /* a range that a block device does not take */
      return -1;
  }
  if (!f->no_zero_range && !(fast && f->device)) {
    if (io_fallocate (f->file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                      off, len) == 0)
      return 1;
    if (unsupported (errno))
      f->no_zero_range = true;
    else if (errno != EINVAL)
      return -1;
  }
  return 0;
}

static int
image_zero (struct backing *b, uint64_t len, uint64_t off, bool may_trim,
            bool fast)
{
  struct image *f = (struct image *) b;
  uint64_t end = off + len;
  /* A device takes whole sectors only: the rest, before FROM and from UPTO on, is written. */
  uint64_t from = f->device ? MIN (ROUND_UP (off, DEVICE_ALIGN), end) : off;
  uint64_t upto = f->device ? MAX (ROUND_DOWN (end, DEVICE_ALIGN), from) : end;
  int r = from < upto ? zero_at_once (f, upto - from, from, may_trim, fast) :
    0;

  if (r == -1)
    return -1;
  if (r == 0) {
    if (fast) {
      errno = ENOTSUP;
      return -1;
    }
    return write_zeroes (f, len, off);
  }
  if (write_zeroes (f, from - off, off) == -1)
    return -1;
  return write_zeroes (f, end - upto, upto);
}

static int
image_flush (struct backing *b)
{
  return io_fdatasync (((struct image *) b)->file);
}

static void
image_begin_flush (struct backing *b, uint64_t off, uint64_t len)
{
  io_begin_sync (((struct image *) b)->file, off, len);
}

static int
image_cache (struct backing *b, uint64_t len, uint64_t off)
{
  return io_advise (((struct image *) b)->file, off, len, POSIX_FADV_WILLNEED);
}

static int
image_extent (struct backing *b, uint64_t off, uint64_t max, uint64_t *len,
              bool *hole)
{
  struct image *f = (struct image *) b;

  *hole = false;
  *len = max;
  if (!f->seek_data)
    return 0;

  off_t data = io_seek (f->file, off, SEEK_DATA);
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
  off_t end = io_seek (f->file, off, SEEK_HOLE);
  if (end == -1)
    return unsupported (errno) || errno == EINVAL || errno == ENXIO ? 0 : -1;
  if ((uint64_t) end > off)
    *len = MIN (max, (uint64_t) end - off);
  return 0;
}

static int
image_stamp (struct backing *b, uint64_t *inode, uint64_t *mtime)
{
  struct image *f = (struct image *) b;
  struct io_stat st;

  if (io_stat (f->file, &st) == -1)
    return -1;
  *inode = st.inode;
  *mtime = st.mtime;
  return 0;
}

static void
image_fit (struct backing *b, uint64_t size)
{
  if (((struct image *) b)->device)
    b->size = MIN (b->size, size);
}

static const struct backing_ops image_ops = {
  .outlives = true,
  .fit = image_fit,
  .close = image_close,
  .pread = image_pread,
  .pwritev = image_pwritev,
  .is_direct = image_is_direct,
  .pwritev_direct = image_pwritev_direct,
  .zero = image_zero,
  .flush = image_flush,
  .begin_flush = image_begin_flush,
  .cache = image_cache,
  .extent = image_extent,
  .stamp = image_stamp,
};

int
backing_file_open (const struct io_fs *fs, const char *path, bool create,
                   uint64_t size, struct backing **backing,
                   struct mcerror *err)
{
  struct image *f = calloc (1, sizeof *f);

  if (f)
    f->b.ops = &image_ops;
  if (f == NULL || (f->b.path = strdup (path)) == NULL ||
      (f->zeroes = calloc (1, ZEROES)) == NULL)
    mcerror_set (err, MCEXIT_USAGE, "%s: %m", path);
  else if (open_image (f, fs, create, size, err) == 0) {
    *backing = &f->b;
    return 0;
  }
  if (f)
    backing_close (&f->b);
  return -1;
}

int
backing_file_look (const struct io_fs *fs, const char *path,
                   struct backing **backing, struct mcerror *err)
{
  struct image *f = calloc (1, sizeof *f);
  struct io_stat st;

  if (f)
    f->b.ops = &image_ops;
  if (f == NULL || (f->b.path = strdup (path)) == NULL ||
      io_open (fs, path, O_RDONLY, 0, &f->file) == -1 ||
      io_stat (f->file, &st) == -1) {
    mcerror_set (err, MCEXIT_USAGE, "%s: cannot open the backing image: %m", path);
    if (f)
      backing_close (&f->b);
    return -1;
  }
  f->b.size = st.size;
  f->device = st.kind == IO_KIND_BLOCK;
  *backing = &f->b;
  return 0;
}

int
backing_file_exists (const struct io_fs *fs, const char *path)
{
  struct io_file *file;

  if (io_open (fs, path, O_RDONLY, 0, &file) == -1)
    return errno == ENOENT || errno == ENOTDIR ? 0 : -1;
  io_close (file);
  return 1;
}
