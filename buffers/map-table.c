/* SPDX-License-Identifier: BSD-3-Clause */
/* The slots of a map: making and growing the table, putting, getting and
 * killing one block's.  See map-impl.h.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "buffers/map-impl.h"
#include "buffers/pages.h"
#include "common/bytes.h"

_Static_assert (sizeof (struct slot) == 16, "four slots fill a cache line");

#define MIN_SLOTS ((size_t) 256)        /* a page of them */
#define MAX_SLOTS ((size_t) 1 << (sizeof (size_t) == 8 ? 44 : 26))

/* Old slots that each put moves.  The new table has room for a third as many puts
 * as the old one has slots, at least, so that two would do.
 */
#define MOVE 16

/* Three quarters: beyond, runs of used slots become long. */
static size_t
limit_of (size_t slots)
{
  return slots / 4 * 3;
}

/* Small areas come from the heap: of pages of their own each would take some. */
static void *
area_alloc (size_t bytes, bool small, bool prefault)
{
  void *area;

  if (!small)
    return prefault ? pages_alloc (bytes) : pages_alloc_lazy (bytes);
  area = malloc (bytes);
  if (area)
    memset (area, 0, bytes);
  return area;
}

static void
area_free (void *area, size_t bytes, bool small)
{
  int saved = errno;

  if (small)
    free (area);
  else
    pages_free (area, bytes);
  errno = saved;
}

static bool
is_small (const struct table *t)
{
  return t->wrap + 1 <= MAP_SMALL;
}

static size_t
bytes_of (const struct table *t)
{
  return t->slots ? (t->wrap + 1) * sizeof *t->slots : 0;
}

static void
set_table (struct map *m, struct slot *slots, size_t n)
{
  m->table = (struct table) {
    .slots = slots, .wrap = n - 1, .shift = 64 - __builtin_ctzll (n / 4),
  };
  m->limit = limit_of (n);
}

static void
drop_old (struct map *m)
{
  area_free (m->old.slots, bytes_of (&m->old), is_small (&m->old));
  m->old.slots = NULL;
  m->moving = 0;
}

/* --- the list and the filter --- */

static size_t
listed_bytes (const struct map *m)
{
  return m->max_listed * sizeof *m->listed;
}

static size_t
region_bytes (const struct map *m)
{
  return (size_t) 1 << (m->region_bits - 3);
}

static bool
small_lists (const struct map *m)
{
  return m->region_bits < MAP_REGION_BITS;
}

static void
free_lists (struct map *m)
{
  area_free (m->regions, region_bytes (m), small_lists (m));
  area_free (m->listed, listed_bytes (m), small_lists (m));
}

/* Fresh ones for a table of N slots.  -1 with ENOMEM: M has what it had. */
static int
make_lists (struct map *m, size_t n, bool prefault)
{
  struct map next = {
    .max_listed = n <= MAP_SMALL ? limit_of (n) : MAP_LISTED,
    .region_bits = n <= MAP_SMALL ? __builtin_ctzll (n) + 3 : MAP_REGION_BITS,
  };

  next.listed = area_alloc (listed_bytes (&next), small_lists (&next), prefault);
  next.regions = area_alloc (region_bytes (&next), small_lists (&next), prefault);
  if (next.listed == NULL || next.regions == NULL) {
    free_lists (&next);
    errno = ENOMEM;
    return -1;
  }
  m->listed = next.listed;
  m->max_listed = next.max_listed;
  m->regions = next.regions;
  m->region_bits = next.region_bits;
  return 0;
}

static inline void
note_region (struct map *m, uint64_t key)
{
  size_t bit = region_bit (m, key);

  m->regions[bit / 64] |= UINT64_C (1) << bit % 64;
}

int
map_make_table (struct map *m, size_t blocks)
{
  struct slot *slots;
  size_t n = MIN_SLOTS;

  while (limit_of (n) < blocks && n < MAX_SLOTS)
    n *= 2;
  if (limit_of (n) < blocks) {
    errno = ENOMEM;
    return -1;
  }
  slots = area_alloc (n * sizeof *slots, n <= MAP_SMALL, true);
  if (slots == NULL || make_lists (m, n, true) == -1) {
    area_free (slots, n * sizeof *slots, n <= MAP_SMALL);
    errno = ENOMEM;
    return -1;
  }
  m->base = n;
  set_table (m, slots, n);
  return 0;
}

void
map_free_table (struct map *m)
{
  drop_old (m);
  area_free (m->table.slots, bytes_of (&m->table), is_small (&m->table));
  free_lists (m);
}

/* A small table that has grown begins anew, if there is memory for that. */
static bool
begin_anew (struct map *m)
{
  struct map was = *m;
  size_t bytes = m->base * sizeof *m->table.slots;
  struct slot *slots;

  if (m->table.wrap + 1 == m->base || m->base > MAP_SMALL)
    return false;
  slots = area_alloc (bytes, true, true);
  if (slots == NULL || make_lists (m, m->base, true) == -1) {
    area_free (slots, bytes, true);
    return false;
  }
  map_free_table (&was);
  m->old.slots = NULL;
  m->moving = m->used = m->live = 0;
  set_table (m, slots, m->base);
  return true;
}

void
map_clear_table (struct map *m)
{
  size_t n = m->table.wrap + 1, keep = MAX (m->base, 2 * MAP_SMALL);
  int saved = errno;

  if (begin_anew (m))
    return;
  errno = saved;
  if (m->used > 0 || m->old.slots)
    memset (m->regions, 0, region_bytes (m));
  drop_old (m);
  if (n > keep) {
    n = pages_shrink (m->table.slots, n * sizeof *m->table.slots,
                      keep * sizeof *m->table.slots)
      / sizeof *m->table.slots;
    memset (m->table.slots, 0, n * sizeof *m->table.slots);
    set_table (m, m->table.slots, n);
  }
  else if (m->used > m->max_listed)
    memset (m->table.slots, 0, n * sizeof *m->table.slots);
  else
    for (size_t i = 0; i < m->used; i++)
      m->table.slots[m->listed[i]] = (struct slot) { 0, 0 };
  m->used = m->live = 0;
}

size_t
map_room (const struct map *m)
{
  return m->limit;
}

size_t
map_memory (const struct map *m)
{
  return sizeof *m + bytes_of (&m->table) + bytes_of (&m->old) +
    listed_bytes (m) + region_bytes (m) + zeroset_memory (&m->zeroes);
}

/* Give the free slot I to KEY. */
static inline struct slot *
claim (struct map *m, size_t i, uint64_t key)
{
  if (m->used < m->max_listed)
    m->listed[m->used] = i;
  m->used++;
  m->table.slots[i].key = key;
  return &m->table.slots[i];
}

/* Move a few slots from the old table. */
static void
move_some (struct map *m, size_t n)
{
  size_t end = m->old.wrap + 1;

  end = MIN (end, m->place + n);
  for (; m->place < end && m->moving > 0; m->place++) {
    struct slot *from = &m->old.slots[m->place];
    size_t i;

    if (slot_mask (from) == 0)
      continue;
    i = table_home (&m->table, from->key);
    while (m->table.slots[i].key != 0)
      i = (i + 1) & m->table.wrap;
    claim (m, i, from->key)->value = from->value;
    from->value = 0;
    m->moving--;
  }
  if (m->moving == 0)
    drop_old (m);
}

/* A table of N slots takes the place of a small one: so do a list, which begins empty,
 * and a filter.
 */
static int
grow_lists (struct map *m, size_t n)
{
  struct map was = *m;

  if (!is_small (&m->table) || n == m->table.wrap + 1)
    return 0;
  if (make_lists (m, n, false) == -1)
    return -1;
  for (size_t i = 0; i <= m->table.wrap; i++)
    if (slot_mask (&m->table.slots[i]) != 0)
      note_region (m, m->table.slots[i].key);
  free_lists (&was);
  return 0;
}

int
map_reserve (struct map *m, uint64_t more)
{
  size_t n = m->table.wrap + 1;
  struct slot *slots;

  if (m->used + m->moving + more <= m->limit)
    return 0;
  /* Where many of the slots in use are dead, the same size will do, if it leaves
   * enough room that the next growth is far away.
   */
  while (m->live + more > limit_of (n) || m->live > n / 16 * 9) {
    if (n >= MAX_SLOTS) {
      errno = ENOMEM;
      return -1;
    }
    n *= 2;
  }
  slots = area_alloc (n * sizeof *slots, n <= MAP_SMALL, false);
  if (slots == NULL)
    return -1;
  while (m->old.slots)
    move_some (m, MOVE);
  if (grow_lists (m, n) == -1) {
    area_free (slots, n * sizeof *slots, n <= MAP_SMALL);
    return -1;
  }
  m->old = m->table;
  m->moving = m->live;
  m->place = 0;
  set_table (m, slots, n);
  m->used = 0;
  if (m->moving == 0)
    drop_old (m);
  return 0;
}

/* Take MASK out of the slots that table T has of KEY. */
static inline void
kill (struct map *m, const struct table *t, uint64_t key, unsigned mask)
{
  for (size_t i = table_home (t, key); t->slots[i].key != 0;
       i = (i + 1) & t->wrap) {
    struct slot *s = &t->slots[i];
    unsigned held = slot_mask (s);

    if (s->key == key && (held & mask)) {
      map_trim_slot (m, s, mask);
      if (held == MAP_ALL)
        return;
    }
  }
}

void
map_kill_block (struct map *m, uint64_t key, unsigned mask)
{
  kill (m, &m->table, key, mask);
  if (m->moving > 0)
    kill (m, &m->old, key, mask);
}

void
map_put_block (struct map *m, uint64_t key, unsigned mask, uint64_t value)
{
  struct slot *mine = NULL, *dead = NULL;
  size_t i;

  if (m->old.slots) {
    kill (m, &m->old, key, mask);
    move_some (m, MOVE);
  }
  value |= (uint64_t) mask << MAP_MASK_SHIFT;
  for (i = table_home (&m->table, key); ; i = (i + 1) & m->table.wrap) {
    struct slot *s = &m->table.slots[i];
    unsigned held = slot_mask (s);

    if (s->key == key) {
      if (mine == NULL && (held & ~mask) == 0) {
        mine = s;
        m->live += held == 0;
        if (held == MAP_ALL)
          break;                        /* then no other slot holds any */
      }
      else if (held & mask)
        map_trim_slot (m, s, mask);
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
    note_region (m, key);
    if (block < m->bounds[disk].first)
      m->bounds[disk].first = block;
    if (block > m->bounds[disk].last)
      m->bounds[disk].last = block;
  }
  mine->value = value;
}

static inline unsigned
get (const struct table *t, uint64_t key, unsigned want, struct map_hit *hit)
{
  unsigned n = 0;

  for (size_t i = table_home (t, key); t->slots[i].key != 0;
       i = (i + 1) & t->wrap) {
    const struct slot *s = &t->slots[i];
    unsigned mask = slot_mask (s) & want;

    if (s->key != key || mask == 0)
      continue;
    hit[n++] = (struct map_hit) { .loc = s->value & UINT32_MAX, .mask = mask,
                                  .zero = (s->value & MAP_ZERO) != 0,
                                  .may_trim = (s->value & MAP_TRIM) != 0 };
    want &= ~mask;
    if (want == 0)
      break;
  }
  return n;
}

unsigned
map_get_slots (const struct map *m, uint64_t key, unsigned want,
               struct map_hit *hit)
{
  unsigned n;

  if (!map_in_region (m, key))
    return 0;
  n = get (&m->table, key, want, hit);
  if (m->moving > 0)                    /* no sector is in both tables */
    n += get (&m->old, key, want, hit + n);
  return n;
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
  if (last - first < map_walk_end (m)) {
    for (uint64_t b = first; b <= last; b++) {
      uint64_t key = map_key (disk, b);

      if (map_in_region (m, key))
        map_kill_block (m, key, mask_of (base + b * MAP_BLOCK_SECTORS, start,
                                         end));
      else
        b |= MAP_REGION - 1;
    }
    return;
  }
  for (size_t k = 0; k < map_walk_end (m); k++) {
    struct slot *s = map_walk_slot (m, k);
    uint64_t b = key_block (s->key);

    if (slot_mask (s) != 0 && key_disk (s->key) == disk &&
        b >= first && b <= last)
      map_trim_slot (m, s, mask_of (base + b * MAP_BLOCK_SECTORS, start, end));
  }
}
