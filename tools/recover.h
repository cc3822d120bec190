/* SPDX-License-Identifier: BSD-3-Clause */
/* The two halves of mcbuf-recover.  The program asks whether a server listens
 * on JOURNAL/control and takes the one or the other.
 */
#ifndef MCBUF_TOOLS_RECOVER_H
#define MCBUF_TOOLS_RECOVER_H

#include <jansson.h>

#include "replica/recover.h"
#include "tools/client.h"

enum action { RECOVER, LIST, DRY_RUN, VERIFY };

struct options {
  enum action action;
  bool wait, json;
  const char *to;               /* NULL: the last */
  struct recover_disk *disks;
  unsigned ndisks;
  const char *journal;
};

/* Do what OPTIONS ask; messages and results are printed.  Returns the exit code; online also -1 with ERR
 * when the server hung up before it answered: then nothing is printed, and asking again does no harm.
 */
extern int recover_online (struct client *c, const struct options *o, struct mcerror *err);
extern int recover_offline (const struct options *o);

/* Print {"checkpoints":[…]}, as JSON or text; takes over LIST.  Returns the
 * exit code: none at all is MCEXIT_NO_CHECKPOINT.
 */
extern int recover_put_list (json_t *list, const struct options *o);

/* Print what was done, or would be, as JSON or text; takes over RESULT (NULL:
 * no memory).  NEXT: what to do now, for the text; may be NULL.  Returns the exit code.
 */
extern int recover_put_result (json_t *result, const struct options *o,
                               const char *next);

#endif /* MCBUF_TOOLS_RECOVER_H */
