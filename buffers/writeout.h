/* SPDX-License-Identifier: BSD-3-Clause */
/* The write-out buffer: what is committed and not yet in the backing images.
 *
 * Newest first: committed epochs that are not merged yet, the gathering map they are
 * merged into, and the draining map that is being written out.  With at most
 * two merged maps a read costs the same however many checkpoints wait.
 *
 * Threads: the replica's lock guards it; the long steps come in slices.
 */
#ifndef MCBUF_BUFFERS_WRITEOUT_H
#define MCBUF_BUFFERS_WRITEOUT_H

#include "buffers/speculation.h"

struct writeout;

extern struct writeout *writeout_new (void);
extern void writeout_free (struct writeout *w);

/* EPOCHS (newest first, by ->older) are committed as checkpoint NUMBER.  Takes
 * ownership.  NUMBER is higher than all before.  EPOCHS may be NULL.
 */
extern void writeout_add (struct writeout *w, uint64_t number,
                          struct epoch *epochs);

/* Merge a slice of the oldest unmerged epoch.  Returns 1 while there is more, 0 when all are merged, -1 with
 * ENOMEM (nothing is lost: call again later).  A merged epoch that is no longer
 * needed is given to *DONE (else NULL) for the caller to clear or free.
 */
extern int writeout_merge (struct writeout *w, size_t max,
                           struct epoch **done);

/* Newest checkpoint that is merged, and newest that was added. */
extern uint64_t writeout_merged (const struct writeout *w);
extern uint64_t writeout_newest (const struct writeout *w);

/* Freeze what is merged as the draining map (owned by W) and return it.  *TARGET is
 * the checkpoint it brings the backing to.  The map may be empty: then
 * only the watermark moves.  NULL with *TARGET 0 and errno ENOENT when
 * there is nothing, EBUSY when one is draining, EAGAIN when a checkpoint is
 * merged in part (writeout_merge goes on with it), ENOMEM.
 */
extern const struct map *writeout_begin (struct writeout *w, uint64_t *target);
/* The map that is draining and the checkpoint *TARGET that it brings the backing to, for who
 * gave up half way and begins again with it.  NULL when none is.
 */
extern const struct map *writeout_resume (const struct writeout *w,
                                          uint64_t *target);
/* The draining map is in the backing images: returns it for the caller to
 * free once no reader can be in it.
 */
extern struct map *writeout_end (struct writeout *w);

/* Nothing merged, unmerged or draining. */
extern bool writeout_is_empty (const struct writeout *w);

struct writeout_stat {
  uint64_t bytes;               /* as committed; overwritten ones count again */
  uint64_t checkpoints;         /* added and not yet in the backing images */
};
extern void writeout_get_stat (const struct writeout *w,
                               struct writeout_stat *stat);

#endif /* MCBUF_BUFFERS_WRITEOUT_H */
