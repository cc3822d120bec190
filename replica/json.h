/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON that more than one file of replica/ writes. */
#ifndef MCBUF_REPLICA_JSON_H
#define MCBUF_REPLICA_JSON_H

#include <jansson.h>

#include "journal/journal.h"

/* A new reference, NULL without memory. */
extern json_t *checkpoint_json (const struct journal_checkpoint *cp);
/* JSON (may be NULL; its reference is taken) as one line, malloced.  NULL with ENOMEM. */
extern char *json_line (json_t *json);

/* Names of the disks that the last checkpoint does not have; NULL: it has all (or no memory). */
struct replica;
extern json_t *without_json (struct replica *r);
/* TEXT as a string; what is not UTF-8 in it becomes '?'.  NULL with ENOMEM. */
extern json_t *json_text (const char *text);

#endif /* MCBUF_REPLICA_JSON_H */
