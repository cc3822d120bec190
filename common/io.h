/* SPDX-License-Identifier: BSD-3-Clause */
/* The I/O seam: every file that mcbuf reads or writes below replica/ goes
 * through a struct io_fs, so that a simulated disk which loses power at a
 * chosen operation can stand in for the real one.
 *
 * Two layers.  struct io_ops is what an implementation provides: single
 * attempts, as the kernel gives them (short counts, EINTR).  The functions
 * are what the rest of mcbuf calls: whole transfers.
 *
 * Threads: any function may be called on one file from many threads at once,
 * except io_close.  Errors: -1 with the kernel's errno.
 */
#ifndef MCBUF_COMMON_IO_H
#define MCBUF_COMMON_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct io_fs;

/* An open file.  Implementations embed it first in a struct of their own. */
struct io_file {
  const struct io_fs *fs;
};

enum io_kind { IO_KIND_REGULAR, IO_KIND_BLOCK, IO_KIND_OTHER };

struct io_stat {
  enum io_kind kind;
  uint64_t size;                /* bytes; for a block device its capacity */
  uint64_t inode, mtime;        /* of a regular file, nanoseconds since 1970; 0: not known */
};

/* An advisory lock over a byte range, as OFD locks: it belongs to the open
 * file, survives fork, and is dropped with the last descriptor.
 */
enum io_lock { IO_UNLOCK, IO_LOCK_SHARED, IO_LOCK_EXCLUSIVE };

struct io_ops {
  /* FLAGS are open(2)'s; O_CLOEXEC is added. */
  int (*open) (const struct io_fs *fs, const char *path, int flags,
               mode_t mode, struct io_file **file);
  /* The same file again, whatever its name is now.  NULL: ENOTSUP. */
  int (*reopen) (struct io_file *file, int flags, struct io_file **again);
  void (*close) (struct io_file *file);
  ssize_t (*pread) (struct io_file *file, void *buf, size_t len, uint64_t off);
  ssize_t (*pwritev) (struct io_file *file, const struct iovec *iov, int n,
                      uint64_t off);
  int (*fdatasync) (struct io_file *file);
  int (*fallocate) (struct io_file *file, int mode, uint64_t off, uint64_t len);
  int (*truncate) (struct io_file *file, uint64_t size);
  int (*stat) (struct io_file *file, struct io_stat *st);
  void (*in_place) (struct io_file *file);      /* NULL: nothing to do */
  off_t (*seek) (struct io_file *file, uint64_t off, int whence); /* SEEK_DATA, SEEK_HOLE */
  int (*advise) (struct io_file *file, uint64_t off, uint64_t len, int advice);
  void (*begin_sync) (struct io_file *file, uint64_t off, uint64_t len);        /* NULL: nothing to do */
  int (*lock) (struct io_file *file, enum io_lock how, uint64_t off, uint64_t len);
  /* Could HOW be had?  0 yes; -1 with EAGAIN when another holds it. */
  int (*lock_test) (struct io_file *file, enum io_lock how, uint64_t off,
                    uint64_t len);
  /* NULL: there is nobody else. */
  int (*check_writers) (struct io_file *file, char *who, size_t size);
  int (*mkdir) (const struct io_fs *fs, const char *path, mode_t mode);
  int (*unlink) (const struct io_fs *fs, const char *path);
  int (*rename) (const struct io_fs *fs, const char *from, const char *to);
  int (*sync_dir) (const struct io_fs *fs, const char *path);
};

struct io_fs {
  const struct io_ops *ops;
  void *opaque;                 /* the implementation's own */
};

/* The host's file systems. */
extern const struct io_fs io_posix;

extern int io_open (const struct io_fs *fs, const char *path, int flags,
                    mode_t mode, struct io_file **file);
extern int io_reopen (struct io_file *file, int flags, struct io_file **again);
extern void io_close (struct io_file *file);    /* NULL is allowed */

/* Read or write all of it.  A read that meets the end of the file before LEN
 * bytes fails with ENODATA; io_pread_some gives what there is and returns the count.
 */
extern int io_pread (struct io_file *file, void *buf, size_t len, uint64_t off);
extern ssize_t io_pread_some (struct io_file *file, void *buf, size_t len,
                              uint64_t off);
extern int io_pwrite (struct io_file *file, const void *buf, size_t len,
                      uint64_t off);
/* IOV is changed as a side effect.  N may be over IOV_MAX. */
extern int io_pwritev (struct io_file *file, struct iovec *iov, int n,
                       uint64_t off);

extern int io_fdatasync (struct io_file *file);
extern int io_fallocate (struct io_file *file, int mode, uint64_t off,
                         uint64_t len);
extern int io_truncate (struct io_file *file, uint64_t size);
/* FILE, still empty, is to be overwritten in place where the file system would rather copy on
 * write: what was allocated then is never too little.  A hint.
 */
extern void io_in_place (struct io_file *file);
extern int io_stat (struct io_file *file, struct io_stat *st);
extern off_t io_seek (struct io_file *file, uint64_t off, int whence);
extern int io_advise (struct io_file *file, uint64_t off, uint64_t len,
                      int advice);
/* What was written to this range is to go to the disk from now on, not only when FILE is synced: the sync is
 * short then, and others have the disk meanwhile.  A hint; nothing is waited for, and no error is taken from the sync.
 */
extern void io_begin_sync (struct io_file *file, uint64_t off, uint64_t len);
extern int io_lock (struct io_file *file, enum io_lock how, uint64_t off,
                    uint64_t len);
extern int io_lock_test (struct io_file *file, enum io_lock how, uint64_t off,
                         uint64_t len);
/* Has anybody opened FILE, a regular file that is open here for reading only, for writing?  0 no, or it cannot
 * be told; -1 with EBUSY yes: then WHO, for people, or "".
 */
extern int io_check_writers (struct io_file *file, char *who, size_t size);
extern int io_mkdir (const struct io_fs *fs, const char *path, mode_t mode);
extern int io_unlink (const struct io_fs *fs, const char *path);
extern int io_rename (const struct io_fs *fs, const char *from,
                      const char *to);
/* Make names in the directory durable. */
extern int io_sync_dir (const struct io_fs *fs, const char *path);

#endif /* MCBUF_COMMON_IO_H */
