/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside backing images; for backing*.c only.  One file for each kind. */
#ifndef MCBUF_REPLICA_BACKING_IMPL_H
#define MCBUF_REPLICA_BACKING_IMPL_H

#include "replica/backing.h"

/* As the functions of backing.h. */
struct backing_ops {
  bool outlives;
  void (*close) (struct backing *b);    /* and free it */
  void (*fit) (struct backing *b, uint64_t size);       /* NULL: nothing to do */
  int (*pread) (struct backing *b, void *buf, size_t len, uint64_t off);
  int (*pwritev) (struct backing *b, struct iovec *iov, int n, uint64_t off);
  bool (*is_direct) (struct backing *b);        /* NULL: no, and there is no pwritev_direct either */
  int (*pwritev_direct) (struct backing *b, struct iovec *iov, int n, uint64_t off);
  int (*zero) (struct backing *b, uint64_t len, uint64_t off, bool may_trim,
               bool fast);
  int (*flush) (struct backing *b);
  void (*begin_flush) (struct backing *b, uint64_t off, uint64_t len);  /* NULL: nothing to do */
  int (*cache) (struct backing *b, uint64_t len, uint64_t off);
  int (*extent) (struct backing *b, uint64_t off, uint64_t max, uint64_t *len,
                 bool *hole);
  int (*stamp) (struct backing *b, uint64_t *inode, uint64_t *mtime);   /* NULL: ENOTSUP */
  void (*restart) (struct backing *b);  /* NULL: nothing to do */
  void (*stop) (struct backing *b);     /* the same */
};

/* Each kind embeds it first in a struct of its own. */
struct backing {
  const struct backing_ops *ops;
  char *path;                   /* owned by the kind */
  uint64_t size;
};

extern int backing_file_open (const struct io_fs *fs, const char *path,
                              bool create, uint64_t size,
                              struct backing **backing, struct mcerror *err);
extern int backing_file_look (const struct io_fs *fs, const char *path,
                              struct backing **backing, struct mcerror *err);
extern int backing_nbd_open (const char *uri, bool create, uint64_t size,
                             struct backing **backing, struct mcerror *err);
extern int backing_file_exists (const struct io_fs *fs, const char *path);
extern int backing_nbd_exists (const char *uri);

#endif /* MCBUF_REPLICA_BACKING_IMPL_H */
