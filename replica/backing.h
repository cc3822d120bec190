/* SPDX-License-Identifier: BSD-3-Clause */
/* A backing image: the raw file, block device or NBD export that holds a disk's written-out content.
 *
 * FLUSH.  What was written before backing_flush began is durable when that returns 0.  A server of
 * an NBD export may die between a write that it has acknowledged and a flush, and come
 * back without the write: once that may have happened, writes and flushes fail until
 * backing_restart is called.
 *
 * Threads: any, except backing_close.  Errors: -1 with errno, never ECANCELED, EAGAIN, EBADMSG or ESHUTDOWN,
 * which mean something to the callers.
 */
#ifndef MCBUF_REPLICA_BACKING_H
#define MCBUF_REPLICA_BACKING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/io.h"
#include "common/mcerror.h"

struct backing;

/* Open PATH, a file or an NBD URI, read-write.  With CREATE a missing file is made, sparse, of SIZE
 * bytes; an image that is there must have that size.  Takes QEMU's image locks of a file, for as
 * long as it is open.
 */
extern int backing_open (const struct io_fs *fs, const char *path, bool create,
                         uint64_t size, struct backing **backing,
                         struct mcerror *err);
/* Open it to look only: nothing is changed or locked, others may use it meanwhile. */
extern int backing_look (const struct io_fs *fs, const char *path,
                         struct backing **backing, struct mcerror *err);
/* There is none: what is written to it is gone.  It is SIZE bytes long; PATH is for messages.  -1
 * with ENOMEM.
 */
extern int backing_none (const char *path, uint64_t size,
                         struct backing **backing);
extern void backing_close (struct backing *b);  /* NULL is allowed */

/* The disk has SIZE bytes: what a block device has beyond them is not used.  No other
 * image may be larger than its disk.
 */
extern void backing_fit (struct backing *b, uint64_t size);

extern uint64_t backing_size (const struct backing *b);
extern const char *backing_path (const struct backing *b);      /* or URI */
/* Does what was written and not flushed outlive this process, as the host's page cache does? */
extern bool backing_outlives (const struct backing *b);

/* What changes with the image's file, when it is another one or was written to.  -1 with ENOTSUP: there is no
 * such thing.
 */
extern int backing_stamp (struct backing *b, uint64_t *inode, uint64_t *mtime);
/* When was it last written to, by whomever?  In ns, to compare only; 0: that cannot be told. */
extern uint64_t backing_mtime (struct backing *b);

/* Is there still something at PATH (or URI), where an image once was?  1, 0, -1 when that
 * cannot be told.
 */
extern int backing_exists (const struct io_fs *fs, const char *path);

/* Ranges lie within the image. */
extern int backing_pread (struct backing *b, void *buf, size_t len,
                          uint64_t off);
/* IOV is changed as a side effect. */
extern int backing_pwritev (struct backing *b, struct iovec *iov, int n,
                            uint64_t off);
/* Past the host's page cache, for whole blocks of 4096 bytes at memory so aligned; flush as ever.  Never beside writes that go
 * through it.  backing_is_direct says whether there is such a thing.
 */
extern bool backing_is_direct (struct backing *b);
extern int backing_pwritev_direct (struct backing *b, struct iovec *iov, int n,
                                   uint64_t off);
/* Make it read as zeroes: a hole with MAY_TRIM where that can be.  With FAST, ENOTSUP rather than
 * writing zeroes out.
 */
extern int backing_zero (struct backing *b, uint64_t len, uint64_t off,
                         bool may_trim, bool fast);
extern int backing_flush (struct backing *b);
/* A flush follows soon: this range, just written, may as well go to the disk at once.  A hint. */
extern void backing_begin_flush (struct backing *b, uint64_t off, uint64_t len);
extern int backing_cache (struct backing *b, uint64_t len, uint64_t off);
/* How far does what begins at OFF go?  *HOLE tells what it is; *LEN at most MAX. */
extern int backing_extent (struct backing *b, uint64_t off, uint64_t max,
                           uint64_t *len, bool *hole);

/* Whatever was written since the last good flush is about to be written again, or matters
 * no more: what of it a server has lost is no error from here on.
 */
extern void backing_restart (struct backing *b);
/* The replica stops: from now on a server that gives no answer for some seconds is given up. */
extern void backing_stop (struct backing *b);

#endif /* MCBUF_REPLICA_BACKING_H */
