/* SPDX-License-Identifier: BSD-3-Clause */
/* The table: making, growing, putting and getting.  See map-impl.h. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "buffers/map-impl.h"
#include "buffers/pages.h"
#include "common/bytes.h"

_Static_assert (sizeof (struct slot) == 16, "four slots fill a cache line");

#define MIN_SLOTS ((size_t) 256)        /* a page of them */
#define MAX_SLOTS ((size_t) 1 << 44)

/* Blocks of a long write whose slots are fetched ahead of their turn. */
#define AHEAD 32

/* Three quarters: beyond, runs of used slots become long. */
static size_t
limit_of (size_t slots)
{
  return slots / 4 * 3;
}

static void
set_table (struct map *m, struct slot *slots, size_t n)
{
  m->slots = slots;
  m->wrap = n - 1;
  m->shift = 64 - __builtin_ctzll (n / 4);
  m->limit = limit_of (n);
}

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
  struct map *m;
  struct slot *slots;
  size_t n = MIN_SLOTS;

  while (limit_of (n) < blocks && n < MAX_SLOTS)
    n *= 2;
  if (limit_of (n) < blocks) {
    errno = ENOMEM;
    return NULL;
  }
  m = calloc (1, sizeof *m);
  if (m == NULL)
    return NULL;
  m->listed = pages_alloc (MAP_LISTED * sizeof *m->listed);
  slots = pages_alloc (n * sizeof *slots);
  if (m->listed == NULL || slots == NULL) {
    int saved = errno;

    pages_free (slots, n * sizeof *slots);
    pages_free (m->listed, MAP_LISTED * sizeof *m->listed);
    free (m);
    errno = saved;
    return NULL;
  }
  m->base = n;
  set_table (m, slots, n);
  reset_bounds (m);
  return m;
}

void
map_free (struct map *m)
{
  if (m == NULL)
    return;
  zeroset_clear (&m->zeroes);
  pages_free (m->slots, (m->wrap + 1) * sizeof *m->slots);
  pages_free (m->listed, MAP_LISTED * sizeof *m->listed);
  free (m);
}

void
map_clear (struct map *m)
{
  size_t n = m->wrap + 1;

  if (n > m->base) {
    n = pages_shrink (m->slots, n * sizeof *m->slots,
                      m->base * sizeof *m->slots) / sizeof *m->slots;
    memset (m->slots, 0, n * sizeof *m->slots);
    set_table (m, m->slots, n);
  }
  else if (m->used > MAP_LISTED)
    memset (m->slots, 0, n * sizeof *m->slots);
  else
    for (size_t i = 0; i < m->used; i++)
      m->slots[m->listed[i]] = (struct slot) { 0, 0 };

  m->used = m->live = 0;
  zeroset_clear (&m->zeroes);
  m->zero_end = 0;
  reset_bounds (m);
}

/* Give the free slot I to KEY. */
static inline struct slot *
claim (struct map *m, size_t i, uint64_t key)
{
  if (m->used < MAP_LISTED)
    m->listed[m->used] = i;
  m->used++;
  m->slots[i].key = key;
  return &m->slots[i];
}

static int
rehash (struct map *m, size_t n)
{
  struct slot *old = m->slots;
  size_t old_n = m->wrap + 1;
  struct slot *slots = pages_alloc (n * sizeof *slots);

  if (slots == NULL)
    return -1;
  set_table (m, slots, n);
  m->used = 0;
  for (size_t k = 0; k < old_n; k++)
    if (slot_mask (&old[k]) != 0) {
      size_t i = map_home (m, old[k].key);

      while (slots[i].key != 0)
        i = (i + 1) & m->wrap;
      claim (m, i, old[k].key)->value = old[k].value;
    }
  pages_free (old, old_n * sizeof *old);
  return 0;
}

int
map_reserve (struct map *m, uint64_t more)
{
  size_t n = m->wrap + 1;

  if (m->used + more <= m->limit)
    return 0;
  /* Where many of the slots in use are dead, the same size will do, if it leaves
   * enough room that the next rehash is far away.
   */
  while (m->live + more > limit_of (n) || m->live > n / 16 * 9) {
    if (n >= MAX_SLOTS) {
      errno = ENOMEM;
      return -1;
    }
    n *= 2;
  }
  return rehash (m, n);
}

void
map_put_block (struct map *m, uint64_t key, unsigned mask, uint64_t value)
{
  struct slot *mine = NULL, *dead = NULL;
  size_t i = map_home (m, key);

  value |= (uint64_t) mask << MAP_MASK_SHIFT;
  for (;; i = (i + 1) & m->wrap) {
    struct slot *s = &m->slots[i];
    unsigned held = slot_mask (s);

    if (s->key == key) {
      if (mine == NULL && (held & ~mask) == 0) {
        mine = s;
        m->live += held == 0;
        if (held == MAP_ALL)
          break;                        /* then no other slot holds any */
      }
      else if (held & mask) {
        s->value &= ~((uint64_t) mask << MAP_MASK_SHIFT);
        m->live -= (held & ~mask) == 0;
      }
    }
    else if (s->key == 0)
      break;
    else if (held == 0 && dead == NULL)
      dead = s;
  }
  if (mine == NULL) {
    unsigned disk = key_disk (key);
    uint64_t block = key_block (key);

    if (dead) {
      mine = dead;
      mine->key = key;
    }
    else
      mine = claim (m, i, key);
    m->live++;
    if (block < m->bounds[disk].first)
      m->bounds[disk].first = block;
    if (block > m->bounds[disk].last)
      m->bounds[disk].last = block;
  }
  mine->value = value;
}

void
map_kill_block (struct map *m, uint64_t key, unsigned mask)
{
  for (size_t i = map_home (m, key); m->slots[i].key != 0;
       i = (i + 1) & m->wrap) {
    struct slot *s = &m->slots[i];
    unsigned held = slot_mask (s);

    if (s->key == key && (held & mask)) {
      s->value &= ~((uint64_t) mask << MAP_MASK_SHIFT);
      m->live -= (held & ~mask) == 0;
      if (held == MAP_ALL)
        return;
    }
  }
}

void
map_kill_range (struct map *m, uint64_t start, uint64_t end)
{
  unsigned disk = start >> ZEROSET_DISK_SHIFT;
  uint64_t base = zero_pos (disk, 0);
  uint64_t first = (start - base) / MAP_BLOCK_SECTORS;
  uint64_t last = (end - 1 - base) / MAP_BLOCK_SECTORS;

  if (m->live == 0)
    return;
  first = MAX (first, m->bounds[disk].first);
  last = MIN (last, m->bounds[disk].last);
  if (first > last)
    return;
  if (last - first < map_walk_end (m) / 4) {
    for (uint64_t b = first; b <= last; b++)
      map_kill_block (m, map_key (disk, b),
                      mask_of (base + b * MAP_BLOCK_SECTORS, start, end));
    return;
  }
  for (size_t k = 0; k < map_walk_end (m); k++) {
    struct slot *s = map_walk_slot (m, k);
    unsigned held = slot_mask (s);
    uint64_t b = key_block (s->key);

    if (held != 0 && key_disk (s->key) == disk && b >= first && b <= last) {
      unsigned mask = mask_of (base + b * MAP_BLOCK_SECTORS, start, end);

      s->value &= ~((uint64_t) mask << MAP_MASK_SHIFT);
      m->live -= (held & ~mask) == 0;
    }
  }
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
      __builtin_prefetch (&m->slots[map_home (m, map_key (disk,
                                                          block + AHEAD))], 1);
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
  uint64_t key = map_key (disk, block);
  unsigned n = 0;

  if (m->live > 0)
    for (size_t i = map_home (m, key); m->slots[i].key != 0;
         i = (i + 1) & m->wrap) {
      const struct slot *s = &m->slots[i];
      unsigned mask = slot_mask (s) & want;

      if (s->key != key || mask == 0)
        continue;
      hit[n++] = (struct map_hit) { .loc = s->value & UINT32_MAX,
                                    .mask = mask,
                                    .zero = (s->value & MAP_ZERO) != 0,
                                    .may_trim = (s->value & MAP_TRIM) != 0 };
      want &= ~mask;
      if (want == 0)
        return n;
    }
  if (want != 0 && !zeroset_is_empty (&m->zeroes))
    n += get_zeroes (&m->zeroes, zero_pos (disk, block * MAP_BLOCK_SECTORS),
                     want, hit + n);
  return n;
}

bool
map_is_empty_at (const struct map *m, unsigned disk, uint64_t block,
                 uint64_t n)
{
  struct map_hit hit[MAP_BLOCK_SECTORS];

  if (n == 0)
    return true;
  if (m->live > 0 && block <= m->bounds[disk].last &&
      block + n - 1 >= m->bounds[disk].first) {
    if (n > 4)
      return false;
    for (uint64_t b = block; b < block + n; b++)
      if (map_get (m, disk, b, MAP_ALL, hit) > 0)
        return false;
  }
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
map_is_empty (const struct map *m)
{
  return m->live == 0 && zeroset_is_empty (&m->zeroes);
}

size_t
map_blocks (const struct map *m)
{
  return m->live;
}

size_t
map_memory (const struct map *m)
{
  return sizeof *m + (m->wrap + 1) * sizeof *m->slots +
    MAP_LISTED * sizeof *m->listed + zeroset_memory (&m->zeroes);
}
