/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the write-out buffer; for writeout.c, and overlay.c that looks it through. */
#ifndef MCBUF_BUFFERS_WRITEOUT_IMPL_H
#define MCBUF_BUFFERS_WRITEOUT_IMPL_H

#include "buffers/writeout.h"

struct writeout {
  /* Committed epochs that are not merged, newest first by ->older; the last
   * of them is the one being merged.
   */
  struct epoch *unmerged, *oldest;
  size_t cursor;                        /* of that merge */
  bool partial;                         /* gathering holds a part of a checkpoint */
  struct map *gathering;
  struct map *draining;                 /* NULL: none */
  uint64_t merged, newest;              /* checkpoints */
  uint64_t target;                      /* the one that draining ends with */
  struct writeout_stat gathered, drained;       /* what is in the two maps */
};

#endif /* MCBUF_BUFFERS_WRITEOUT_IMPL_H */
