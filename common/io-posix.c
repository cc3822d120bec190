/* SPDX-License-Identifier: BSD-3-Clause */
/* The seam over the host's own file systems. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/holder.h"
#include "common/io.h"

struct posix_file {
  struct io_file base;
  int fd;
};

static int
fd_of (struct io_file *file)
{
  return ((struct posix_file *) file)->fd;
}

static int
posix_open (const struct io_fs *fs, const char *path, int flags, mode_t mode,
            struct io_file **file)
{
  struct posix_file *f = calloc (1, sizeof *f);

  if (f == NULL)
    return -1;
  f->base.fs = fs;
  f->fd = open (path, flags | O_CLOEXEC, mode);
  if (f->fd == -1) {
    cleanup_free (&f);
    return -1;
  }
  *file = &f->base;
  return 0;
}

static int
posix_reopen (struct io_file *file, int flags, struct io_file **again)
{
  char path[64];

  snprintf (path, sizeof path, "/proc/self/fd/%d", fd_of (file));
  return posix_open (file->fs, path, flags, 0, again);
}

static void
posix_close (struct io_file *file)
{
  struct posix_file *f = (struct posix_file *) file;

  /* Whatever had to be durable was synced before: close has no say. */
  (void) close (f->fd);
  free (f);
}

static ssize_t
posix_pread (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  return pread (fd_of (file), buf, len, off);
}

static ssize_t
posix_pwritev (struct io_file *file, const struct iovec *iov, int n,
               uint64_t off)
{
  if (n == 1)
    return pwrite (fd_of (file), iov->iov_base, iov->iov_len, off);
  return pwritev (fd_of (file), iov, n, off);
}

static int
posix_fdatasync (struct io_file *file)
{
  return fdatasync (fd_of (file));
}

static int
posix_fallocate_mode (struct io_file *file, int mode, uint64_t off,
                      uint64_t len)
{
  return fallocate (fd_of (file), mode, off, len);
}

static int
posix_truncate (struct io_file *file, uint64_t size)
{
  return ftruncate (fd_of (file), size);
}

static void
posix_in_place (struct io_file *file)
{
  int flags;

  /* btrfs and bcachefs take it; nobody else needs it. */
  if (ioctl (fd_of (file), FS_IOC_GETFLAGS, &flags) == 0) {
    flags |= FS_NOCOW_FL;
    (void) ioctl (fd_of (file), FS_IOC_SETFLAGS, &flags);
  }
}

static int
posix_stat (struct io_file *file, struct io_stat *st)
{
  struct stat s;

  if (fstat (fd_of (file), &s) == -1)
    return -1;
  st->size = s.st_size;
  if (S_ISREG (s.st_mode)) {
    st->kind = IO_KIND_REGULAR;
    st->inode = s.st_ino;
    st->mtime = s.st_mtim.tv_sec * UINT64_C (1000000000) + s.st_mtim.tv_nsec;
  }
  else if (S_ISBLK (s.st_mode)) {
    st->kind = IO_KIND_BLOCK;
    if (ioctl (fd_of (file), BLKGETSIZE64, &st->size) == -1)
      return -1;
  }
  else
    st->kind = IO_KIND_OTHER;
  return 0;
}

static off_t
posix_seek (struct io_file *file, uint64_t off, int whence)
{
  /* The file's own offset is used by nobody else, so threads do not mind. */
  return lseek (fd_of (file), off, whence);
}

/* Without the WAIT flags: these would take an error that fdatasync has to give. */
static void
posix_begin_sync (struct io_file *file, uint64_t off, uint64_t len)
{
  int saved = errno;

  (void) sync_file_range (fd_of (file), (off_t) off, (off_t) len, SYNC_FILE_RANGE_WRITE);
  errno = saved;
}

static int
posix_advise (struct io_file *file, uint64_t off, uint64_t len, int advice)
{
  int r = posix_fadvise (fd_of (file), off, len, advice);

  if (r != 0) {
    errno = r;
    return -1;
  }
  return 0;
}

static struct flock
flock_of (enum io_lock how, uint64_t off, uint64_t len)
{
  return (struct flock) {
    .l_type = how == IO_UNLOCK ? F_UNLCK :
              how == IO_LOCK_SHARED ? F_RDLCK : F_WRLCK,
    .l_whence = SEEK_SET, .l_start = off, .l_len = len,
  };
}

static int
posix_lock (struct io_file *file, enum io_lock how, uint64_t off, uint64_t len)
{
  struct flock fl = flock_of (how, off, len);

  return fcntl (fd_of (file), F_OFD_SETLK, &fl);
}

static int
posix_lock_test (struct io_file *file, enum io_lock how, uint64_t off,
                 uint64_t len)
{
  struct flock fl = flock_of (how, off, len);

  if (fcntl (fd_of (file), F_OFD_GETLK, &fl) == -1)
    return -1;
  if (fl.l_type != F_UNLCK) {
    errno = EAGAIN;
    return -1;
  }
  return 0;
}

static int
posix_check_writers (struct io_file *file, char *who, size_t size)
{
  return holder_check (fd_of (file), who, size);
}

static int
posix_mkdir (const struct io_fs *fs, const char *path, mode_t mode)
{
  (void) fs;
  return mkdir (path, mode);
}

static int
posix_unlink (const struct io_fs *fs, const char *path)
{
  (void) fs;
  return unlink (path);
}

static int
posix_rename (const struct io_fs *fs, const char *from, const char *to)
{
  (void) fs;
  return rename (from, to);
}

static int
posix_sync_dir (const struct io_fs *fs, const char *path)
{
  CLEANUP_CLOSE int fd = open (path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  (void) fs;
  return fd == -1 ? -1 : fsync (fd);
}

static const struct io_ops posix_ops = {
  .open = posix_open,
  .reopen = posix_reopen,
  .close = posix_close,
  .pread = posix_pread,
  .pwritev = posix_pwritev,
  .fdatasync = posix_fdatasync,
  .fallocate = posix_fallocate_mode,
  .truncate = posix_truncate,
  .in_place = posix_in_place,
  .stat = posix_stat,
  .seek = posix_seek,
  .advise = posix_advise, .begin_sync = posix_begin_sync,
  .lock = posix_lock,
  .lock_test = posix_lock_test,
  .check_writers = posix_check_writers,
  .mkdir = posix_mkdir,
  .unlink = posix_unlink,
  .rename = posix_rename,
  .sync_dir = posix_sync_dir,
};

const struct io_fs io_posix = { .ops = &posix_ops };
