/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <stdlib.h>

#include "common/bytes.h"
#include "unit/model.h"
#include "unit/unit.h"

#define TIB (UINT64_C (1) << 31)        /* in sectors */

/* First and last byte of the largest disk, one and the next disk, and 64 TiB. */
const struct model_window model_window[MODEL_WINDOWS] = {
  { 0, 0 },
  { 0, 64 * TIB - MODEL_SECTORS / 2 },
  { 0, MODEL_END - MODEL_SECTORS },
  { 1, 0 },
  { 63, 8 * 12345 },
  { 63, MODEL_END - MODEL_SECTORS },
};

static void
set (struct model *model, unsigned disk, uint64_t sector, uint64_t n,
     struct model_cell value)
{
  for (unsigned w = 0; w < MODEL_WINDOWS; w++) {
    uint64_t first = model_window[w].sector;
    uint64_t from = MAX (sector, first);
    uint64_t to = MIN (sector + n, first + MODEL_SECTORS);

    if (model_window[w].disk == disk)
      for (uint64_t s = from; s < to; s++) {
        model->cell[w][s - first] = value;
        if (value.kind == CELL_DATA)
          model->cell[w][s - first].loc =
            value.loc + (s / MAP_BLOCK_SECTORS - sector / MAP_BLOCK_SECTORS);
      }
  }
}

void
model_put (struct model *model, unsigned disk, uint64_t sector, uint64_t n,
           uint32_t loc)
{
  set (model, disk, sector, n,
       (struct model_cell) { .kind = CELL_DATA, .loc = loc });
}

void
model_zero (struct model *model, unsigned disk, uint64_t sector, uint64_t n,
            bool may_trim)
{
  set (model, disk, sector, n,
       (struct model_cell) { .kind = CELL_ZERO, .may_trim = may_trim });
}

void
model_merge (struct model *model, const struct model *newer)
{
  for (unsigned w = 0; w < MODEL_WINDOWS; w++)
    for (unsigned s = 0; s < MODEL_SECTORS; s++)
      if (newer->cell[w][s].kind != CELL_NONE)
        model->cell[w][s] = newer->cell[w][s];
}

struct model_range
model_random_range (bool zero)
{
  const struct model_window *w = &model_window[unit_random (MODEL_WINDOWS)];
  uint64_t at = unit_random (MODEL_SECTORS), n;

  switch (unit_random (100)) {
  case 0:
    return (struct model_range) { w->disk, w->sector + at, 0 };
  case 1: case 2:
    if (zero)
      return (struct model_range) { w->disk, 0, MODEL_END };
    break;
  case 3: case 4: case 5:
    /* From here to another window of the disk. */
    for (unsigned i = 0; zero && i < MODEL_WINDOWS; i++)
      if (model_window[i].disk == w->disk &&
          model_window[i].sector > w->sector)
        return (struct model_range) {
          w->disk, w->sector + at,
          model_window[i].sector - w->sector + unit_random (MODEL_SECTORS / 2)
          + MODEL_SECTORS / 2 - at,
        };
    break;
  case 6:
    at = 0;
    break;
  case 7: {
    n = 1 + unit_random (20);
    return (struct model_range) { w->disk,
                                  w->sector + MODEL_SECTORS - n, n };
  }
  }
  if (unit_chance (40)) {                       /* whole blocks */
    at = ROUND_DOWN (at, (uint64_t) MAP_BLOCK_SECTORS);
    n = MAP_BLOCK_SECTORS * (1 + unit_random (unit_chance (80) ? 4 : 200));
  }
  else
    n = 1 + unit_random (unit_chance (80) ? 24 : MODEL_SECTORS);
  return (struct model_range) { w->disk, w->sector + at,
                                MIN (n, MODEL_SECTORS - at) };
}

static void
check_cell (const struct model *model, unsigned w, unsigned s,
            struct model_cell got)
{
  const struct model_cell *want = &model->cell[w][s];

  if (got.kind != want->kind ||
      (got.kind == CELL_DATA && got.loc != want->loc) ||
      (got.kind == CELL_ZERO && got.may_trim != want->may_trim))
    ck_abort_msg ("window %u sector %u: got kind %d loc %u trim %d, "
                  "want kind %d loc %u trim %d", w, s,
                  got.kind, got.loc, got.may_trim,
                  want->kind, want->loc, want->may_trim);
}

static void
check_block (const struct model *model, const struct map *m, unsigned w,
             unsigned block, unsigned want)
{
  struct model_cell got[MAP_BLOCK_SECTORS] = { { .kind = CELL_NONE } };
  struct map_hit hit[MAP_BLOCK_SECTORS];
  unsigned first = block * MAP_BLOCK_SECTORS, seen = 0;
  unsigned n = map_get (m, model_window[w].disk,
                        model_window[w].sector / MAP_BLOCK_SECTORS + block,
                        want, hit);

  EXPECT (n <= MAP_BLOCK_SECTORS);
  for (unsigned i = 0; i < n; i++) {
    EXPECT (hit[i].mask != 0);
    EXPECT ((hit[i].mask & ~want) == 0);
    EXPECT ((hit[i].mask & seen) == 0);
    seen |= hit[i].mask;
    for (unsigned b = 0; b < MAP_BLOCK_SECTORS; b++)
      if (hit[i].mask & 1u << b)
        got[b] = (struct model_cell) {
          .kind = hit[i].zero ? CELL_ZERO : CELL_DATA,
          .may_trim = hit[i].may_trim, .loc = hit[i].loc,
        };
  }
  for (unsigned b = 0; b < MAP_BLOCK_SECTORS; b++)
    if (want & 1u << b)
      check_cell (model, w, first + b, got[b]);
}

void
model_check_window (const struct model *model, const struct map *m, unsigned w)
{
  for (unsigned b = 0; b < MODEL_BLOCKS; b++)
    check_block (model, m, w, b,
                 unit_chance (70) ? 0xff : 1 + unit_random (255));
}

static void
check_sorted (const struct model *model, const struct map *m)
{
  struct model *got = calloc (1, sizeof *got);
  struct map_run *runs;
  size_t n;

  EXPECT (got != NULL);
  EXPECT ((map_sorted (m, &runs, &n)) == 0);
  for (size_t i = 0; i < n; i++) {
    const struct map_run *r = &runs[i];

    EXPECT (r->nsectors > 0);
    EXPECT (r->disk < MAP_MAX_DISKS);
    EXPECT (r->sector + r->nsectors <= MODEL_END);
    if (i > 0 && r[-1].disk == r->disk) {
      EXPECT (r[-1].sector + r[-1].nsectors <= r->sector);
      if (r[-1].zero && r->zero && r[-1].may_trim == r->may_trim)
        EXPECT (r[-1].sector + r[-1].nsectors < r->sector);
    }
    else if (i > 0)
      EXPECT (r[-1].disk < r->disk);
    if (r->zero)
      model_zero (got, r->disk, r->sector, r->nsectors, r->may_trim);
    else {
      EXPECT (r->sector % MAP_BLOCK_SECTORS + r->nsectors <=
              MAP_BLOCK_SECTORS);
      model_put (got, r->disk, r->sector, r->nsectors, r->loc);
    }
  }
  for (unsigned w = 0; w < MODEL_WINDOWS; w++)
    for (unsigned s = 0; s < MODEL_SECTORS; s++)
      check_cell (model, w, s, got->cell[w][s]);
  EXPECT (map_is_empty (m) == (n == 0));
  free (runs);
  free (got);
}

static void
check_empty_at (const struct model *model, const struct map *m, unsigned w)
{
  unsigned block = unit_random (MODEL_BLOCKS);
  unsigned n = unit_random (MIN (MODEL_BLOCKS - block,
                                 unit_chance (50) ? 3 : MODEL_BLOCKS) + 1);
  bool may_trim;

  if (map_is_empty_at (m, model_window[w].disk,
                       model_window[w].sector / MAP_BLOCK_SECTORS + block, n))
    for (unsigned s = block * MAP_BLOCK_SECTORS;
         s < (block + n) * MAP_BLOCK_SECTORS; s++)
      EXPECT (model->cell[w][s].kind == CELL_NONE);
  if (map_is_zero_at (m, model_window[w].disk,
                      model_window[w].sector / MAP_BLOCK_SECTORS + block, n,
                      &may_trim))
    for (unsigned s = block * MAP_BLOCK_SECTORS;
         s < (block + n) * MAP_BLOCK_SECTORS; s++)
      EXPECT (model->cell[w][s].kind == CELL_ZERO &&
              model->cell[w][s].may_trim == may_trim);
}

void
model_check (const struct model *model, const struct map *m)
{
  for (unsigned w = 0; w < MODEL_WINDOWS; w++) {
    model_check_window (model, m, w);
    for (unsigned i = 0; i < 20; i++)
      check_empty_at (model, m, w);
  }
  check_sorted (model, m);
}
