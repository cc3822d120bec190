/* SPDX-License-Identifier: BSD-3-Clause */
/* The write-out buffer: what is committed and not yet in the backing images.
 *
 * Newest first: committed epochs that are not merged yet, the gathering segment they
 * are merged into, and closed segments, the oldest of which may be draining.  A
 * segment is one map that takes the backing images from one checkpoint to a later
 * one.  Without history there are at most two.  With it the limits on a segment keep
 * their number down, so that a read costs the same however many checkpoints wait.
 *
 * Threads: the replica's lock guards it; the long steps come in slices.
 */
#ifndef MCBUF_BUFFERS_WRITEOUT_H
#define MCBUF_BUFFERS_WRITEOUT_H

#include "buffers/speculation.h"

struct writeout;

extern struct writeout *writeout_new (void);
extern void writeout_free (struct writeout *w);

/* A segment is closed with the checkpoint that brings it to one of these; 0: no limit.  There
 * are at most WRITEOUT_SEGMENTS that were closed so; the one after them takes all the rest, and
 * goes out late.  So no more than WRITEOUT_EARLY are closed before they are full.
 */
#define WRITEOUT_SEGMENTS 32u
#define WRITEOUT_EARLY 8u
struct writeout_limits {
  uint64_t checkpoints, ns, bytes;
};
extern void writeout_set_limits (struct writeout *w,
                                 const struct writeout_limits *limits);

/* EPOCHS (newest first, by ->older) are committed as checkpoint NUMBER, the last of N in one
 * go (1, but for those that come from the journal), at TIME (ns; only differences
 * matter).  Takes ownership.  NUMBER is higher than all before.  EPOCHS may be NULL.
 */
extern void writeout_add (struct writeout *w, uint64_t number, uint64_t time,
                          uint64_t n, struct epoch *epochs);

/* Merge a slice of the oldest unmerged epoch.  Returns 1 while there is more, 0 when all are merged, -1 with
 * ENOMEM (nothing is lost: call again later).  A merged epoch that is no longer
 * needed is given to *DONE (else NULL) for the caller to clear or free.
 */
extern int writeout_merge (struct writeout *w, size_t max,
                           struct epoch **done);

/* Newest checkpoint that is merged, and newest that was added. */
extern uint64_t writeout_merged (const struct writeout *w);
extern uint64_t writeout_newest (const struct writeout *w);

/* Close the gathering segment: it ends with the newest merged checkpoint.  0, also when
 * that is the end of a segment already.  -1: EAGAIN, a checkpoint is merged in
 * part (writeout_merge goes on with it); ENOMEM.
 */
extern int writeout_cut (struct writeout *w);

/* May that be done by who does not have to? */
extern bool writeout_may_cut (const struct writeout *w);

/* The oldest segment that is not draining, the gathering one included, as far as it is merged. */
struct writeout_oldest {
  uint64_t last, time;          /* its newest checkpoint, and when that was made */
  uint64_t newer;               /* checkpoints after that one */
};
/* False when there is none that holds a whole checkpoint. */
extern bool writeout_get_oldest (const struct writeout *w,
                                 struct writeout_oldest *oldest);

/* The newest checkpoint up to NUMBER that a closed segment ends with; 0: none does. */
extern uint64_t writeout_boundary (const struct writeout *w, uint64_t number);

/* Freeze the oldest segment as the draining one (owned by W) and return its map.  *TARGET is
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

/* How many there are: what a read has to look through. */
extern unsigned writeout_segments (const struct writeout *w);

/* Nothing merged, unmerged or draining. */
extern bool writeout_is_empty (const struct writeout *w);

struct writeout_stat {
  uint64_t bytes;               /* as committed; overwritten ones count again */
  uint64_t checkpoints;         /* added and not yet in the backing images */
};
extern void writeout_get_stat (const struct writeout *w,
                               struct writeout_stat *stat);

#endif /* MCBUF_BUFFERS_WRITEOUT_H */
