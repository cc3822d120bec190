/* SPDX-License-Identifier: BSD-3-Clause */
/* The speculation buffer: the open epoch and the sealed, uncommitted ones.
 * Threads: the replica's lock guards it.
 */
#ifndef MCBUF_BUFFERS_SPECULATION_H
#define MCBUF_BUFFERS_SPECULATION_H

#include "buffers/map.h"

struct epoch {
  uint64_t number;
  struct map *map;
  uint64_t bytes, extents;      /* as written: overwritten ones and zeroes count, too */
  struct epoch *older;
  bool roomy;                   /* its map has room for many writes, as epoch_new makes it */
  bool tight;                   /* sealed for long, and its map no larger than it needs to be */

  /* The write-out buffer's own. */
  struct epoch *newer;
  uint64_t checkpoint, time;    /* merging this epoch completes that checkpoint … */
  uint64_t checkpoints;         /* … and so many in all; 0: none */
};

struct speculation;

/* Empty, with epoch NUMBER open.  Four spare epochs are made: three so that a seal
 * allocates nothing, and one for speculation_take_all.  NULL with ENOMEM.
 */
extern struct speculation *speculation_new (uint64_t number);
extern void speculation_free (struct speculation *s);

extern uint64_t speculation_open_number (const struct speculation *s);
/* The open epoch, newest; follow ->older for the sealed ones. */
extern struct epoch *speculation_newest (const struct speculation *s);

/* As map_put and map_zero, into the open epoch, counting. */
extern int speculation_put (struct speculation *s, unsigned disk,
                            uint64_t sector, uint64_t n, uint32_t loc);
extern int speculation_zero (struct speculation *s, unsigned disk,
                             uint64_t sector, uint64_t n, bool may_trim);

/* Is nothing of DISK's blocks [BLOCK, BLOCK + N) in any epoch?  Exact for one block; for more
 * it may say false where it is so.
 */
extern bool speculation_is_empty_at (const struct speculation *s, unsigned disk,
                                     uint64_t block, uint64_t n);

/* Seal: the open epoch gets an empty successor, numbered one higher.  O(1).
 * -1 with ENOMEM only when speculation_restock was not called since the last two.
 */
extern int speculation_seal (struct speculation *s);
/* How many spare epochs have to be made now: hand them in (made outside the lock with
 * epoch_new), so that no seal has to make its own.  And may one that is cleared (epoch_clear) be handed
 * in?  One for which there is no room, or that is not roomy, is freed.
 */
extern unsigned speculation_spares_wanted (const struct speculation *s);
extern bool speculation_spares_room (const struct speculation *s);
extern void speculation_restock (struct speculation *s, struct epoch *spare);
extern struct epoch *epoch_new (void);          /* empty, prefaulted */
extern void epoch_free (struct epoch *e);       /* NULL is allowed; not its elders */
extern void epoch_clear (struct epoch *e);      /* ready to be a spare again */

/* An epoch's map is made for many writes.  Those of epochs that stay sealed for long are
 * exchanged for maps of the size that they need: speculation_loose names such an epoch in *NUMBER and says
 * how many blocks the map needs, 0 when there is none.  The caller makes it, outside the lock, and calls
 * speculation_tighten with it, *CURSOR being 0 at first, until that returns 0: at most MAX slots
 * are moved each time, and the lock need not be held in between.  *LEFT (NULL as long as there is more) is then
 * the map that is not needed any more: the old one, or MAP, when the epoch is gone.  -1 with ENOMEM.
 */
extern size_t speculation_loose (const struct speculation *s, uint64_t *number);
extern int speculation_tighten (struct speculation *s, uint64_t number,
                                struct map *map, size_t max, uint64_t *cursor,
                                struct map **left);
/* The cleared map of a roomy epoch as a spare one.  Takes the map; NULL with ENOMEM, and it is freed. */
extern struct epoch *epoch_of (struct map *map);

/* Take every sealed epoch up to NUMBER out, newest first by ->older; NULL when
 * there is none.  The caller owns them.
 */
extern struct epoch *speculation_take (struct speculation *s, uint64_t number);

/* Take all there is, the open one included, and go on with NUMBER open (empty).
 * NULL with ENOMEM only when there was no restock since the last time; then nothing changed.
 */
extern struct epoch *speculation_take_all (struct speculation *s,
                                           uint64_t number);

/* EPOCHS: those with writes, the open one among them; SEALED: with or without. */
struct speculation_stat { uint64_t bytes, extents, sealed, epochs; };
extern void speculation_get_stat (const struct speculation *s,
                                  struct speculation_stat *stat);

#endif /* MCBUF_BUFFERS_SPECULATION_H */
