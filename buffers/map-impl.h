/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the map; for map*.c only.  map-table.c has the slots, map.c and
 * the others what is made of them.
 *
 * Open addressing with linear probing over 16 byte slots.  The key is the disk
 * and the block; its home is a mixing hash of all but the key's lowest two bits, times
 * four, plus those two bits, so that four neighbours share a cache line.
 * The hash's high bits choose the home: when the table doubles, the slots keep
 * their order, and moving them runs through both tables once, forwards.
 *
 * A map that grows has two tables for a while, so that nobody has to wait for all of
 * its slots to move: each put moves a few.  A slot that was moved or superseded is
 * dead in the old table; puts go to the new one.
 *
 * A slot, once used, stays in use until its table is given up or cleared.  One whose mask has
 * become 0 is dead: it is skipped, and taken by the next put that walks past it.
 * All live slots of one key have disjoint masks.
 *
 * The zero ranges lie under the slots: where both speak of a sector, the slot is the newer.
 */
#ifndef MCBUF_BUFFERS_MAP_IMPL_H
#define MCBUF_BUFFERS_MAP_IMPL_H

#include <assert.h>

#include "buffers/map.h"
#include "buffers/zeroset.h"

#define MAP_ALL 0xffu                   /* every sector of a block */
#define MAP_BLOCK_BITS 51               /* blocks of a disk of 2^63 bytes */
#define MAP_USED (UINT64_C (1) << 63)
#define MAP_MAX_SECTOR (UINT64_C (1) << ZEROSET_DISK_SHIFT)

/* Zero requests of more blocks than this go into the set. */
#define MAP_SHORT_ZERO 128

/* As long as no more slots than this are in use, their indexes are listed, and whoever
 * walks or clears the table need not look at all of it.  A small table, of up to
 * MAP_SMALL slots, has a list and a filter that are small as well.
 */
#define MAP_LISTED 4096
#define MAP_SMALL ((size_t) 4096)

/* Value: location | mask << 32 | zero << 40 | may trim << 41. */
#define MAP_MASK_SHIFT 32
#define MAP_ZERO (UINT64_C (1) << 40)
#define MAP_TRIM (UINT64_C (1) << 41)

/* A filter over regions of so many blocks, that a map need not be searched for what
 * it has nothing near.  A bit that is set may mean another region.
 */
#define MAP_REGION 64u
#define MAP_REGION_BITS 18

struct slot {
  uint64_t key;                         /* 0: free */
  uint64_t value;
};

struct table {
  struct slot *slots;
  size_t wrap;                          /* number of slots (a power of two) - 1 */
  unsigned shift;                       /* hash to home group */
};

struct map {
  struct table table;
  struct table old;                     /* being moved; slots NULL: none */
  size_t place;                         /* in OLD: those before it were moved */
  size_t used;                          /* slots of TABLE with a key */
  size_t live, moving;                  /* with a mask: in both tables, in OLD */
  size_t limit;                         /* USED never gets higher */
  size_t base;                          /* slots that map_new made */
  uint32_t *listed;                     /* indexes of the used slots, if <= MAX_LISTED */
  size_t max_listed;
  uint64_t *regions;                    /* the filter */
  unsigned region_bits;                 /* 2 to the power of that many bits of it */
  struct zeroset zeroes;
  uint64_t zero_end;                    /* where the last zero request ended … */
  bool zero_trim;                       /* … and of what kind it was */
  struct { uint64_t first, last; } bounds[MAP_MAX_DISKS]; /* blocks with slots */
};

static inline uint64_t
map_key (unsigned disk, uint64_t block)
{
  return MAP_USED | (uint64_t) disk << MAP_BLOCK_BITS | block;
}

static inline unsigned
key_disk (uint64_t key)
{
  return (key >> MAP_BLOCK_BITS) % MAP_MAX_DISKS;
}

static inline uint64_t
key_block (uint64_t key)
{
  return key & ((UINT64_C (1) << MAP_BLOCK_BITS) - 1);
}

static inline unsigned
slot_mask (const struct slot *s)
{
  return (s->value >> MAP_MASK_SHIFT) & MAP_ALL;
}

/* A sector of a disk on the line of the zero set. */
static inline uint64_t
zero_pos (unsigned disk, uint64_t sector)
{
  return ((uint64_t) disk << ZEROSET_DISK_SHIFT) + sector;
}

/* Where KEY's slot should be.  A region of 64 MiB begins at a place that multiply,
 * fold, multiply makes of all its bits.  From there its groups of four blocks are spread by multiples
 * of the golden ratio (Knuth, TAOCP 3, 6.4, theorem S): consecutive ones come to
 * lie as far apart as can be, so that sequential writes meet shorter runs of
 * used slots than random ones do, and no stride is bad.
 */
static inline size_t
table_home (const struct table *t, uint64_t key)
{
  const uint64_t golden = UINT64_C (0x9e3779b97f4a7c15);
  uint64_t h = (key >> 14) * golden;

  h = (h ^ h >> 32) * UINT64_C (0xd6e8feb86659fd93);
  h += (key >> 2 & 4095) * golden;
  return (size_t) (h >> t->shift) << 2 | (key & 3);
}

/* The bit of the filter for KEY's region. */
static inline size_t
region_bit (const struct map *m, uint64_t key)
{
  return key / MAP_REGION * UINT64_C (0x9e3779b97f4a7c15)
    >> (64 - m->region_bits);
}

/* May there be slots in KEY's region? */
static inline bool
map_in_region (const struct map *m, uint64_t key)
{
  size_t bit = region_bit (m, key);

  return m->regions[bit / 64] >> bit % 64 & 1;
}

/* Sectors [FROM, TO) of the line within the block that begins at START, as a mask. */
static inline unsigned
mask_of (uint64_t start, uint64_t from, uint64_t to)
{
  unsigned first = from > start ? from - start : 0;
  unsigned last = to < start + MAP_BLOCK_SECTORS ? to - start
                                                 : MAP_BLOCK_SECTORS;

  return MAP_ALL << first & MAP_ALL >> (MAP_BLOCK_SECTORS - last);
}

/* A walk over the slots: map_walk_end steps, of which some meet free or dead ones. */
static inline size_t
map_walk_end (const struct map *m)
{
  if (m->old.slots)
    return m->table.wrap + m->old.wrap + 2;
  return m->used <= m->max_listed ? m->used : m->table.wrap + 1;
}

static inline struct slot *
map_walk_slot (const struct map *m, size_t step)
{
  if (m->old.slots)
    return step <= m->table.wrap ? &m->table.slots[step]
                                 : &m->old.slots[step - m->table.wrap - 1];
  return &m->table.slots[m->used <= m->max_listed ? m->listed[step] : step];
}

/* The sectors in MASK are no longer in slot S. */
static inline void
map_trim_slot (struct map *m, struct slot *s, unsigned mask)
{
  unsigned held = slot_mask (s);

  s->value &= ~((uint64_t) mask << MAP_MASK_SHIFT);
  if (held != 0 && (held & ~mask) == 0) {
    m->live--;
    m->moving -= m->old.slots && s >= m->old.slots &&
      s <= m->old.slots + m->old.wrap;
  }
}

/* Tables, list and filter of a new map, for BLOCKS blocks; and their end. */
extern int map_make_table (struct map *m, size_t blocks);
extern void map_free_table (struct map *m);
extern void map_clear_table (struct map *m);

/* Make sure that N more slots can be taken.  -1 with ENOMEM. */
extern int map_reserve (struct map *m, uint64_t n);

/* Put one block image, or zeroes; VALUE without a mask.  Room was reserved. */
extern void map_put_block (struct map *m, uint64_t key, unsigned mask,
                           uint64_t value);

/* Sectors in MASK of the block are no longer in a slot. */
extern void map_kill_block (struct map *m, uint64_t key, unsigned mask);

/* Kill the slots of all sectors in START .. END of the line, by block or
 * by slot, whichever is less.
 */
extern void map_kill_range (struct map *m, uint64_t start, uint64_t end);

/* The sectors in WANT of the block that are in slots.  Returns how many hits. */
extern unsigned map_get_slots (const struct map *m, uint64_t key,
                               unsigned want, struct map_hit *hit);

#endif /* MCBUF_BUFFERS_MAP_IMPL_H */
