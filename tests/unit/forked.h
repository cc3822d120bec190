/* SPDX-License-Identifier: BSD-3-Clause */
/* A server without NBD in a child process, which can be killed with SIGKILL between two requests. */
#ifndef MCBUF_TESTS_UNIT_FORKED_H
#define MCBUF_TESTS_UNIT_FORKED_H

#include "replica/replica.h"

#define FORKED_DISKS 3

struct forked {
  const char *journal;
  unsigned ndisks;
  const char *image[FORKED_DISKS];
  const uint64_t *size;
  struct replica_history history;
};

extern void forked_start (const struct forked *f);

enum forked_op { OP_READ, OP_WRITE, OP_ZERO, OP_TRIM, OP_CONTROL, OP_CLOSE };

/* Returns the result, with errno; OUT, which has ROOM, gets what came back. */
extern int forked_ask (enum forked_op op, unsigned disk, uint64_t offset, uint32_t count,
                       const void *in, void *out, size_t room);
extern void forked_close (void);        /* a clean stop */
extern void forked_kill (void);
/* Whatever became of the test, no server is left. */
extern void forked_end (void);

#endif /* MCBUF_TESTS_UNIT_FORKED_H */
