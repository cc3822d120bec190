/* SPDX-License-Identifier: BSD-3-Clause */
/* A simulated disk behind the I/O seam, which can lose power.
 *
 * Files live in memory.  Each remembers what was written since it was last
 * synced; a crash gives a new disk on which an arbitrary subset of that, down to
 * single sectors, has become durable, as SQLite's crash tests do it.
 * Reads see every write at once.
 */
#ifndef MCBUF_TESTS_UNIT_SIMDISK_H
#define MCBUF_TESTS_UNIT_SIMDISK_H

#include "common/io.h"

struct simdisk;

#define SIMDISK_SECTOR 512u

enum simdisk_op { SIMDISK_WRITE, SIMDISK_SYNC, SIMDISK_NAME };

enum simdisk_crash {
  SIMDISK_KILL,                 /* the process only: nothing written is lost */
  SIMDISK_NONE,                 /* nothing unsynced persists */
  SIMDISK_WRITES,               /* any of the writes, each as a whole */
  SIMDISK_PREFIX,               /* the first of them */
  SIMDISK_SECTORS,              /* any of the sectors */
  SIMDISK_GARBLE,               /* the same; some hold garbage */
  SIMDISK_HOWS
};

extern struct simdisk *simdisk_new (void);
extern void simdisk_free (struct simdisk *s);
extern const struct io_fs *simdisk_fs (struct simdisk *s);

/* Call HOOK before each write, sync, unlink and rename is carried out. */
typedef void (*simdisk_hook_fn) (void *opaque, enum simdisk_op op);
extern void simdisk_hook (struct simdisk *s, simdisk_hook_fn hook,
                          void *opaque);

/* Which file, or directory, the operation that this thread is in is about: good until it is over. */
extern const char *simdisk_op_path (void);

/* What would be found after a crash now.  RANDOM gives 64 random bits. */
extern struct simdisk *simdisk_crash (struct simdisk *s, enum simdisk_crash how,
                                      uint64_t (*random) (void));

/* The COUNTth write or sync from now on (1: the next) fails with ERROR; with
 * STICKY so do all that follow.
 */
extern void simdisk_fail (struct simdisk *s, uint64_t count, int error,
                          bool sticky);

/* Call FN before each call is carried out, which fails when FN returns an errno; *LEN of a read or write
 * may be made smaller.  (With a hook as well: after that.)
 */
enum simdisk_call {
  SIMDISK_CALL_OPEN, SIMDISK_CALL_READ, SIMDISK_CALL_WRITE, SIMDISK_CALL_SYNC,
  SIMDISK_CALL_SPACE,           /* fallocate, truncate */
  SIMDISK_CALL_LOOK,            /* stat, seek */
  SIMDISK_CALL_NAME,            /* unlink, rename */
  SIMDISK_CALLS
};
typedef int (*simdisk_call_fn) (void *opaque, enum simdisk_call call,
                                const char *path, size_t *len);
extern void simdisk_calls (struct simdisk *s, simdisk_call_fn fn, void *opaque);

/* Called with true when a call of any disk begins, with false when it ends; NULL: nobody. */
extern void (*simdisk_inside) (bool in);

/* Let writes take at most LEN bytes at a time, whole sectors (0: no limit). */
extern void simdisk_short (struct simdisk *s, size_t len);

/* A failed write leaves its first sector behind, and a failed sync loses what
 * it should have written, though it can still be read: as kernels do.
 */
extern void simdisk_torn (struct simdisk *s, bool torn);
/* Neither punch nor zero range is to be had. */
extern void simdisk_no_zero (struct simdisk *s, bool none);
/* Nor is O_DIRECT: the cache can be dropped. */
extern void simdisk_no_direct (struct simdisk *s, bool none);

/* The first LEN bytes as they read now; is that all of the file, and is it DATA? */
extern void simdisk_read (struct simdisk *s, const char *path, uint8_t *data,
                          uint64_t len);
extern bool simdisk_equals (struct simdisk *s, const char *path,
                            const uint8_t *data, uint64_t len);

/* Does PATH read the same on both? */
extern bool simdisk_same (struct simdisk *a, struct simdisk *b,
                          const char *path);
/* Give TO the file PATH of FROM as NAME, durably, in place of what it had. */
extern void simdisk_copy (struct simdisk *to, const char *name,
                          struct simdisk *from, const char *path);
extern uint64_t simdisk_ops (struct simdisk *s);
extern uint64_t simdisk_size (struct simdisk *s, const char *path);
/* Change the byte at OFF by MASK, durably. */
extern void simdisk_flip (struct simdisk *s, const char *path, uint64_t off,
                          uint8_t mask);
/* Reads that touch [OFF, OFF + LEN) fail with EIO.  LEN 0: none do. */
extern void simdisk_bad (struct simdisk *s, const char *path, uint64_t off,
                         uint64_t len);

#endif
