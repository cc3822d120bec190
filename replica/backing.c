/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing images of any kind. */
#include "config.h"

#include <errno.h>

#include "common/uri.h"
#include "replica/backing-impl.h"

int
backing_open (const struct io_fs *fs, const char *path, bool create,
              uint64_t size, struct backing **backing, struct mcerror *err)
{
  return uri_is_nbd (path) ?
    backing_nbd_open (path, create, size, backing, err) :
    backing_file_open (fs, path, create, size, backing, err);
}

int
backing_exists (const struct io_fs *fs, const char *path)
{
  return uri_is_nbd (path) ? backing_nbd_exists (path) :
    backing_file_exists (fs, path);
}

int
backing_look (const struct io_fs *fs, const char *path,
              struct backing **backing, struct mcerror *err)
{
  /* NBD knows no locks. */
  return uri_is_nbd (path) ? backing_nbd_open (path, false, 0, backing, err) :
    backing_file_look (fs, path, backing, err);
}

void
backing_close (struct backing *b)
{
  int saved = errno;

  if (b)
    b->ops->close (b);
  errno = saved;
}

void
backing_fit (struct backing *b, uint64_t size)
{
  if (b->ops->fit)
    b->ops->fit (b, size);
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

bool
backing_outlives (const struct backing *b)
{
  return b->ops->outlives;
}

uint64_t
backing_mtime (struct backing *b)
{
  uint64_t inode, mtime;

  return backing_stamp (b, &inode, &mtime) == 0 ? mtime : 0;
}

int
backing_stamp (struct backing *b, uint64_t *inode, uint64_t *mtime)
{
  if (b->ops->stamp)
    return b->ops->stamp (b, inode, mtime);
  errno = ENOTSUP;
  return -1;
}

int
backing_pread (struct backing *b, void *buf, size_t len, uint64_t off)
{
  return b->ops->pread (b, buf, len, off);
}

int
backing_pwritev (struct backing *b, struct iovec *iov, int n, uint64_t off)
{
  return b->ops->pwritev (b, iov, n, off);
}

bool
backing_is_direct (struct backing *b)
{
  return b->ops->is_direct && b->ops->is_direct (b);
}

int
backing_pwritev_direct (struct backing *b, struct iovec *iov, int n,
                        uint64_t off)
{
  return b->ops->pwritev_direct (b, iov, n, off);
}

int
backing_zero (struct backing *b, uint64_t len, uint64_t off, bool may_trim,
              bool fast)
{
  return len == 0 ? 0 : b->ops->zero (b, len, off, may_trim, fast);
}

int
backing_flush (struct backing *b)
{
  return b->ops->flush (b);
}

void
backing_begin_flush (struct backing *b, uint64_t off, uint64_t len)
{
  if (b->ops->begin_flush)
    b->ops->begin_flush (b, off, len);
}

int
backing_cache (struct backing *b, uint64_t len, uint64_t off)
{
  return b->ops->cache (b, len, off);
}

int
backing_extent (struct backing *b, uint64_t off, uint64_t max, uint64_t *len,
                bool *hole)
{
  return b->ops->extent (b, off, max, len, hole);
}

void
backing_restart (struct backing *b)
{
  if (b->ops->restart)
    b->ops->restart (b);
}

void
backing_stop (struct backing *b)
{
  if (b->ops->stop)
    b->ops->stop (b);
}
