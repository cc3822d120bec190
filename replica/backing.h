/* SPDX-License-Identifier: BSD-3-Clause */
/* A backing image: the raw file or block device that holds a disk's written-out content.
 *
 * Threads: any, except backing_close.  Errors: -1 with errno.
 */
#ifndef MCBUF_REPLICA_BACKING_H
#define MCBUF_REPLICA_BACKING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/io.h"
#include "common/mcerror.h"

struct backing;

/* Open PATH read-write.  With CREATE a missing image is made, sparse, of SIZE bytes; one that
 * is there must have that size.  Takes QEMU's image locks, for as long as it is open.
 */
extern int backing_open (const struct io_fs *fs, const char *path, bool create,
                         uint64_t size, struct backing **backing,
                         struct mcerror *err);
/* Open it to look only: nothing is changed or locked, others may use it meanwhile. */
extern int backing_look (const struct io_fs *fs, const char *path,
                         struct backing **backing, struct mcerror *err);
extern void backing_close (struct backing *b);  /* NULL is allowed */

extern uint64_t backing_size (const struct backing *b);
extern const char *backing_path (const struct backing *b);

/* Ranges lie within the image. */
extern int backing_pread (struct backing *b, void *buf, size_t len,
                          uint64_t off);
extern int backing_pwritev (struct backing *b, struct iovec *iov, int n,
                            uint64_t off);
/* Make it read as zeroes: a hole with MAY_TRIM where that can be.  With FAST, ENOTSUP rather than
 * writing zeroes out.
 */
extern int backing_zero (struct backing *b, uint64_t len, uint64_t off,
                         bool may_trim, bool fast);
extern int backing_flush (struct backing *b);
extern int backing_cache (struct backing *b, uint64_t len, uint64_t off);
/* How far does what begins at OFF go?  *HOLE tells what it is; *LEN at most MAX. */
extern int backing_extent (struct backing *b, uint64_t off, uint64_t max,
                           uint64_t *len, bool *hole);

#endif /* MCBUF_REPLICA_BACKING_H */
