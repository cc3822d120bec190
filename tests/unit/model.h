/* SPDX-License-Identifier: BSD-3-Clause */
/* The plain model that maps are held against: an array of sectors for
 * each of a few windows on large disks.
 */
#ifndef MCBUF_TESTS_MODEL_H
#define MCBUF_TESTS_MODEL_H

#include "buffers/map.h"

#define MODEL_SECTORS 2048u             /* in a window */
#define MODEL_BLOCKS (MODEL_SECTORS / MAP_BLOCK_SECTORS)
#define MODEL_WINDOWS 6u
#define MODEL_END (UINT64_C (1) << 54)  /* sectors of the largest disk */

struct model_cell {
  enum { CELL_NONE, CELL_DATA, CELL_ZERO } kind;
  bool may_trim;
  uint32_t loc;                         /* of the image of the sector's block */
};

struct model_window {
  unsigned disk;
  uint64_t sector;                      /* the first; begins a block */
};
extern const struct model_window model_window[MODEL_WINDOWS];

struct model {
  struct model_cell cell[MODEL_WINDOWS][MODEL_SECTORS];
};

/* As map_put and map_zero. */
extern void model_put (struct model *model, unsigned disk, uint64_t sector,
                       uint64_t n, uint32_t loc);
extern void model_zero (struct model *model, unsigned disk, uint64_t sector,
                        uint64_t n, bool may_trim);
/* Put NEWER over MODEL. */
extern void model_merge (struct model *model, const struct model *newer);

/* A random range, in or around a window; now and then one between windows (ZERO only),
 * the whole disk or nothing.
 */
struct model_range { unsigned disk; uint64_t sector, n; };
extern struct model_range model_random_range (bool zero);

/* Fail the test unless the map says what the model says: by map_get for one window,
 * or for all and by map_sorted and map_is_empty_at as well.
 */
extern void model_check_window (const struct model *model,
                                const struct map *m, unsigned w);
extern void model_check (const struct model *model, const struct map *m);

#endif /* MCBUF_TESTS_MODEL_H */
