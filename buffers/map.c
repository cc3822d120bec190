/* SPDX-License-Identifier: BSD-3-Clause */
/* The map: slots over zero ranges.  See map-impl.h. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "buffers/map-impl.h"

/* Blocks of a long write whose slots are fetched ahead of their turn. */
#define AHEAD 32

static void
reset_bounds (struct map *m)
{
  for (unsigned d = 0; d < MAP_MAX_DISKS; d++) {
    m->bounds[d].first = UINT64_MAX;
    m->bounds[d].last = 0;
  }
}

struct map *
map_new (size_t blocks)
{
  struct map *m = calloc (1, sizeof *m);

  if (m == NULL)
    return NULL;
  if (map_make_table (m, blocks) == -1) {
    free (m);
    errno = ENOMEM;
    return NULL;
  }
  reset_bounds (m);
  return m;
}

void
map_free (struct map *m)
{
  if (m == NULL)
    return;
  zeroset_clear (&m->zeroes);
  map_free_table (m);
  free (m);
}

void
map_clear (struct map *m)
{
  map_clear_table (m);
  zeroset_clear (&m->zeroes);
  m->zero_end = 0;
  reset_bounds (m);
}

/* Blocks that N > 0 sectors from SECTOR on touch. */
static uint64_t
blocks_of (uint64_t sector, uint64_t n)
{
  return (sector % MAP_BLOCK_SECTORS + n - 1) / MAP_BLOCK_SECTORS + 1;
}

/* A run of blocks, with one value or with consecutive locations. */
static int
put_blocks (struct map *m, unsigned disk, uint64_t sector, uint64_t n,
            uint64_t value, unsigned step)
{
  uint64_t block = sector / MAP_BLOCK_SECTORS;
  uint64_t last = block + blocks_of (sector, n) - 1;

  if (map_reserve (m, last - block + 1) == -1)
    return -1;
  for (; block <= last; block++, value += step) {
    if (block % 4 == 0 && last - block >= AHEAD)
      __builtin_prefetch (&m->table.slots[
        table_home (&m->table, map_key (disk, block + AHEAD))], 1);
    map_put_block (m, map_key (disk, block),
                   mask_of (block * MAP_BLOCK_SECTORS, sector, sector + n),
                   value);
  }
  return 0;
}

int
map_put (struct map *m, unsigned disk, uint64_t sector, uint64_t n,
         uint32_t loc)
{
  assert (disk < MAP_MAX_DISKS);
  assert (n <= MAP_MAX_SECTOR && sector <= MAP_MAX_SECTOR - n);
  return n == 0 ? 0 : put_blocks (m, disk, sector, n, loc, 1);
}

/* Does START .. END touch a range of its kind that is in the set? */
static bool
extends_zeroes (const struct map *m, uint64_t start, uint64_t end,
                bool may_trim)
{
  const struct zero_range *r;

  if (start == m->zero_end && may_trim == m->zero_trim && start > 0)
    return true;
  if (zeroset_is_empty (&m->zeroes))
    return false;
  r = zeroset_get (&m->zeroes,
                   zeroset_seek (&m->zeroes, start > 0 ? start - 1 : 0));
  return r && r->start <= end && r->may_trim == may_trim;
}

int
map_zero (struct map *m, unsigned disk, uint64_t sector, uint64_t n,
          bool may_trim)
{
  uint64_t start = zero_pos (disk, sector), end = start + n;

  assert (disk < MAP_MAX_DISKS);
  assert (n <= MAP_MAX_SECTOR && sector <= MAP_MAX_SECTOR - n);
  if (n == 0)
    return 0;

  /* A long range that comes in short requests is one range all the same. */
  if (blocks_of (sector, n) <= MAP_SHORT_ZERO &&
      !extends_zeroes (m, start, end, may_trim)) {
    if (put_blocks (m, disk, sector, n, MAP_ZERO | (may_trim ? MAP_TRIM : 0),
                    0) == -1)
      return -1;
  }
  else {
    if (zeroset_add (&m->zeroes, start, end, may_trim) == -1)
      return -1;
    map_kill_range (m, start, end);
  }
  m->zero_end = end;
  m->zero_trim = may_trim;
  return 0;
}

/* What the zero set adds in the sectors in WANT of a block that starts at
 * START on the line.
 */
static unsigned
get_zeroes (const struct zeroset *z, uint64_t start, unsigned want,
            struct map_hit *hit)
{
  struct zeroset_at at = zeroset_seek (z, start);
  const struct zero_range *r;
  unsigned n = 0;

  while ((r = zeroset_get (z, at)) != NULL &&
         r->start < start + MAP_BLOCK_SECTORS) {
    unsigned mask = mask_of (start, r->start, r->end) & want;

    if (mask)
      hit[n++] = (struct map_hit) { .mask = mask, .zero = true,
                                    .may_trim = r->may_trim };
    at = zeroset_next (z, at);
  }
  return n;
}

unsigned
map_get (const struct map *m, unsigned disk, uint64_t block, uint8_t want,
         struct map_hit hit[MAP_BLOCK_SECTORS])
{
  unsigned n = 0;

  if (m->live > 0)
    n = map_get_slots (m, map_key (disk, block), want, hit);
  if (!zeroset_is_empty (&m->zeroes)) {
    for (unsigned i = 0; i < n; i++)
      want &= ~hit[i].mask;
    if (want != 0)
      n += get_zeroes (&m->zeroes, zero_pos (disk, block * MAP_BLOCK_SECTORS),
                       want, hit + n);
  }
  return n;
}

/* Is no slot of DISK's blocks FIRST .. LAST in use?  Looks at the bounds, at some regions, and
 * at single blocks where there are only a few.
 */
static bool
no_slots_at (const struct map *m, unsigned disk, uint64_t first, uint64_t last)
{
  struct map_hit hit[MAP_BLOCK_SECTORS];

  if (m->live == 0 || first > m->bounds[disk].last ||
      last < m->bounds[disk].first)
    return true;
  if (last - first < 4) {
    for (uint64_t b = first; b <= last; b++)
      if (map_get_slots (m, map_key (disk, b), MAP_ALL, hit) > 0)
        return false;
    return true;
  }
  if (last / MAP_REGION - first / MAP_REGION >= 16)
    return false;
  for (uint64_t r = first / MAP_REGION; r <= last / MAP_REGION; r++)
    if (map_in_region (m, map_key (disk, r * MAP_REGION)))
      return false;
  return true;
}

bool
map_is_empty_at (const struct map *m, unsigned disk, uint64_t block,
                 uint64_t n)
{
  if (n == 0)
    return true;
  if (!no_slots_at (m, disk, block, block + n - 1))
    return false;
  if (!zeroset_is_empty (&m->zeroes)) {
    uint64_t start = zero_pos (disk, block * MAP_BLOCK_SECTORS);
    const struct zero_range *r =
      zeroset_get (&m->zeroes, zeroset_seek (&m->zeroes, start));

    if (r && r->start < start + n * MAP_BLOCK_SECTORS)
      return false;
  }
  return true;
}

bool
map_is_zero_at (const struct map *m, unsigned disk, uint64_t block,
                uint64_t n, bool *may_trim)
{
  uint64_t start = zero_pos (disk, block * MAP_BLOCK_SECTORS);
  const struct zero_range *r;

  if (n == 0 || zeroset_is_empty (&m->zeroes) ||
      !no_slots_at (m, disk, block, block + n - 1))
    return false;
  r = zeroset_get (&m->zeroes, zeroset_seek (&m->zeroes, start));
  if (r == NULL || r->start > start || r->end < start + n * MAP_BLOCK_SECTORS)
    return false;
  *may_trim = r->may_trim;
  return true;
}

bool
map_is_empty (const struct map *m)
{
  return m->live == 0 && zeroset_is_empty (&m->zeroes);
}

size_t
map_blocks (const struct map *m)
{
  return m->live;
}
