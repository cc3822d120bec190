/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of a server on this host: a recipe goes on with what the server had locked, the journal and the
 * images, so the verb "shutdown" is done when they are free and not when it is answered.
 *
 * Threads: the tools have one.
 */
#ifndef MCBUF_TOOLS_ENDING_H
#define MCBUF_TOOLS_ENDING_H

#include "common/mcerror.h"

struct ending {
  const char *dir;              /* the caller's */
  int lock;                     /* DIR/lock; -1: nothing to wait for */
  long signed_by;               /* its id there */
  int process;                  /* a pidfd of who wrote its id there; -1: not to be had, or not to be seen from here */
};

/* Before the server of the journal directory DIR is asked to end: see who it is. */
extern void ending_watch (struct ending *e, const char *dir);

/* It said yes: wait until it is gone and its locks are free.  -1 with ERR and MCEXIT_PARTIAL when that
 * does not come.
 */
extern int ending_wait (struct ending *e, struct mcerror *err);

extern void ending_forget (struct ending *e);

#endif /* MCBUF_TOOLS_ENDING_H */
