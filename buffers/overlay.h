/* SPDX-License-Identifier: BSD-3-Clause */
/* The overlay: answers which source holds each part of a disk's range, newest first:
 * speculation, then write-out, then backing.
 *
 * Threads: the replica's lock is held over overlay_resolve; the answer stays
 * good outside it for as long as the replica keeps the locations from being recycled.
 */
#ifndef MCBUF_BUFFERS_OVERLAY_H
#define MCBUF_BUFFERS_OVERLAY_H

#include "buffers/writeout.h"

enum overlay_source { OVERLAY_BACKING, OVERLAY_DATA, OVERLAY_ZERO };

struct overlay_piece {
  uint64_t offset;              /* bytes on the disk */
  uint64_t length;
  enum overlay_source source;
  uint32_t loc;                 /* DATA: image that holds the first byte … */
  uint32_t skip;                /* … and how many bytes into it that is */
  bool may_trim;                /* ZERO: may be a hole */
};

/* A list that is kept from one use to the next. */
struct overlay_pieces {
  struct overlay_piece *piece;
  size_t n, room;
};
#define OVERLAY_PIECES_INIT { NULL, 0, 0 }
extern void overlay_pieces_free (struct overlay_pieces *p);

/* Bytes [OFFSET, OFFSET + LENGTH) of DISK, any alignment, in order and without gaps; neighbours that one transfer
 * can serve are one piece (a DATA piece runs over consecutive locations).
 * SPEC NULL leaves speculation out: the newest checkpoint.  WO may be NULL too.
 * -1 with ENOMEM.
 */
extern int overlay_resolve (const struct speculation *spec,
                            const struct writeout *wo, unsigned disk,
                            uint64_t offset, uint64_t length,
                            struct overlay_pieces *pieces);

/* The same for an older checkpoint: the newest of what W holds, as far as its segments
 * end with checkpoint UPTO or an earlier one, below FIRST (may be NULL), a map that leads on
 * from there.
 */
extern int overlay_resolve_at (const struct map *first,
                               const struct writeout *wo, uint64_t upto,
                               unsigned disk, uint64_t offset, uint64_t length,
                               struct overlay_pieces *pieces);

#endif /* MCBUF_BUFFERS_OVERLAY_H */
