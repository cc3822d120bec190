/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the write-out buffer; for writeout.c, and overlay.c that looks it through. */
#ifndef MCBUF_BUFFERS_WRITEOUT_IMPL_H
#define MCBUF_BUFFERS_WRITEOUT_IMPL_H

#include "buffers/writeout.h"

struct segment {
  struct map *map;
  uint64_t first_time, time;            /* of its oldest and newest checkpoint */
  uint64_t last;                        /* its newest checkpoint; 0: none is whole yet */
  struct writeout_stat stat;
  bool early;                           /* it was closed before it was full */
  struct segment *older, *newer;
};

struct writeout {
  struct writeout_limits limits;
  /* Committed epochs that are not merged, newest first by ->older; the last
   * of them is the one being merged.
   */
  struct epoch *unmerged, *oldest;
  uint64_t cursor;                      /* of that merge */
  bool partial;                         /* the newest segment holds a part of a checkpoint */
  struct segment *newest;               /* the gathering one; closed ones by ->older */
  struct segment *end;                  /* the oldest */
  bool draining;                        /* … is being written out */
  uint64_t merged, added;               /* checkpoints */
};

#endif /* MCBUF_BUFFERS_WRITEOUT_IMPL_H */
