/* SPDX-License-Identifier: BSD-3-Clause */
/* The slots of a map: making and growing the table, putting, getting and
 * killing one block's.  See map-impl.h.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "buffers/map-impl.h"
#include "buffers/pages.h"
#include "common/bytes.h"

_Static_assert (sizeof (struct slot) == 16, "four slots fill a cache line");

#define MIN_SLOTS ((size_t) 256)        /* a page of them */
#define MAX_SLOTS ((size_t) 1 << 44)

/* Old slots that each put moves.  The new table has room for a third as many puts
 * as the old one has slots, at least, so that two would do.
 */
#define MOVE 16

#define LISTED_BYTES (MAP_LISTED * sizeof (uint32_t))
#define REGION_BYTES ((size_t) 1 << (MAP_REGION_BITS - 3))

/* Three quarters: beyond, runs of used slots become long. */
static size_t
limit_of (size_t slots)
{
  return slots / 4 * 3;
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
  pages_free (m->old.slots, bytes_of (&m->old));
  m->old.slots = NULL;
  m->moving = 0;
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
  m->listed = pages_alloc (LISTED_BYTES);
  m->regions = pages_alloc (REGION_BYTES);
  slots = pages_alloc (n * sizeof *slots);
  if (m->listed == NULL || m->regions == NULL || slots == NULL) {
    pages_free (slots, n * sizeof *slots);
    pages_free (m->regions, REGION_BYTES);
    pages_free (m->listed, LISTED_BYTES);
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
  pages_free (m->table.slots, bytes_of (&m->table));
  pages_free (m->regions, REGION_BYTES);
  pages_free (m->listed, LISTED_BYTES);
}

void
map_clear_table (struct map *m)
{
  size_t n = m->table.wrap + 1;

  if (m->used > 0 || m->old.slots)
    memset (m->regions, 0, REGION_BYTES);
  drop_old (m);
  if (n > m->base) {
    n = pages_shrink (m->table.slots, n * sizeof *m->table.slots,
                      m->base * sizeof *m->table.slots)
      / sizeof *m->table.slots;
    memset (m->table.slots, 0, n * sizeof *m->table.slots);
    set_table (m, m->table.slots, n);
  }
  else if (m->used > MAP_LISTED)
    memset (m->table.slots, 0, n * sizeof *m->table.slots);
  else
    for (size_t i = 0; i < m->used; i++)
      m->table.slots[m->listed[i]] = (struct slot) { 0, 0 };
  m->used = m->live = 0;
}

size_t
map_memory (const struct map *m)
{
  return sizeof *m + bytes_of (&m->table) + bytes_of (&m->old) +
    LISTED_BYTES + REGION_BYTES + zeroset_memory (&m->zeroes);
}

/* Give the free slot I to KEY. */
static inline struct slot *
claim (struct map *m, size_t i, uint64_t key)
{
  if (m->used < MAP_LISTED)
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
  slots = pages_alloc_lazy (n * sizeof *slots);
  if (slots == NULL)
    return -1;
  while (m->old.slots)
    move_some (m, MOVE);
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
    size_t bit = region_bit (key);

    if (dead) {
      mine = dead;
      mine->key = key;
    }
    else
      mine = claim (m, i, key);
    m->live++;
    m->regions[bit / 64] |= UINT64_C (1) << bit % 64;
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
