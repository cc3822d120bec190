/* SPDX-License-Identifier: BSD-3-Clause */
/* Whole transfers over single attempts.  See io.h. */
#include "config.h"

#include <errno.h>
#include <stddef.h>
#include <limits.h>

#include "common/bytes.h"
#include "common/io.h"

int
io_open (const struct io_fs *fs, const char *path, int flags, mode_t mode,
         struct io_file **file)
{
  return fs->ops->open (fs, path, flags, mode, file);
}

int
io_reopen (struct io_file *file, int flags, struct io_file **again)
{
  if (file->fs->ops->reopen == NULL) {
    errno = ENOTSUP;
    return -1;
  }
  return file->fs->ops->reopen (file, flags, again);
}

void
io_close (struct io_file *file)
{
  if (file) {
    int saved = errno;

    file->fs->ops->close (file);
    errno = saved;
  }
}

ssize_t
io_pread_some (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  size_t done = 0;

  while (done < len) {
    ssize_t n = file->fs->ops->pread (file, (char *) buf + done, len - done,
                                      off + done);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    if (n == 0)
      break;
    done += n;
  }
  return done;
}

int
io_pread (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  ssize_t n = io_pread_some (file, buf, len, off);

  if (n == -1)
    return -1;
  if ((size_t) n < len) {
    errno = ENODATA;
    return -1;
  }
  return 0;
}

int
io_pwritev (struct io_file *file, struct iovec *iov, int n, uint64_t off)
{
  for (;;) {
    /* Empty parts first: a write of nothing but those looks stuck. */
    while (n > 0 && iov->iov_len == 0) {
      iov++;
      n--;
    }
    if (n == 0)
      return 0;

    ssize_t r = file->fs->ops->pwritev (file, iov, MIN (n, IOV_MAX), off);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    if (r == 0) {
      errno = EIO;              /* no progress and no reason: never loop */
      return -1;
    }
    off += r;
    while (n > 0 && (size_t) r >= iov->iov_len) {
      r -= iov->iov_len;
      iov++;
      n--;
    }
    if (r > 0) {
      iov->iov_base = (char *) iov->iov_base + r;
      iov->iov_len -= r;
    }
  }
}

int
io_pwrite (struct io_file *file, const void *buf, size_t len, uint64_t off)
{
  struct iovec iov = { .iov_base = (void *) (uintptr_t) buf, .iov_len = len };

  return len == 0 ? 0 : io_pwritev (file, &iov, 1, off);
}

int
io_fdatasync (struct io_file *file)
{
  return file->fs->ops->fdatasync (file);
}

int
io_fallocate (struct io_file *file, int mode, uint64_t off, uint64_t len)
{
  int r;

  do
    r = file->fs->ops->fallocate (file, mode, off, len);
  while (r == -1 && errno == EINTR);
  return r;
}

int
io_truncate (struct io_file *file, uint64_t size)
{
  int r;

  do
    r = file->fs->ops->truncate (file, size);
  while (r == -1 && errno == EINTR);
  return r;
}

void
io_in_place (struct io_file *file)
{
  int saved = errno;

  if (file->fs->ops->in_place)
    file->fs->ops->in_place (file);
  errno = saved;
}

int
io_stat (struct io_file *file, struct io_stat *st)
{
  *st = (struct io_stat) { .kind = IO_KIND_OTHER };
  return file->fs->ops->stat (file, st);
}

off_t
io_seek (struct io_file *file, uint64_t off, int whence)
{
  return file->fs->ops->seek (file, off, whence);
}

int
io_advise (struct io_file *file, uint64_t off, uint64_t len, int advice)
{
  return file->fs->ops->advise (file, off, len, advice);
}

void
io_begin_sync (struct io_file *file, uint64_t off, uint64_t len)
{
  if (file->fs->ops->begin_sync)
    file->fs->ops->begin_sync (file, off, len);
}

int
io_lock (struct io_file *file, enum io_lock how, uint64_t off, uint64_t len)
{
  return file->fs->ops->lock (file, how, off, len);
}

int
io_lock_test (struct io_file *file, enum io_lock how, uint64_t off,
              uint64_t len)
{
  return file->fs->ops->lock_test (file, how, off, len);
}

int
io_check_writers (struct io_file *file, char *who, size_t size)
{
  return file->fs->ops->check_writers ?
    file->fs->ops->check_writers (file, who, size) : 0;
}

int
io_mkdir (const struct io_fs *fs, const char *path, mode_t mode)
{
  return fs->ops->mkdir (fs, path, mode);
}

int
io_unlink (const struct io_fs *fs, const char *path)
{
  return fs->ops->unlink (fs, path);
}

int
io_rename (const struct io_fs *fs, const char *from, const char *to)
{
  return fs->ops->rename (fs, from, to);
}

int
io_sync_dir (const struct io_fs *fs, const char *path)
{
  return fs->ops->sync_dir (fs, path);
}
