/* SPDX-License-Identifier: BSD-3-Clause */
/* The map of an epoch: which parts of which disks it holds, and where.
 *
 * A disk is cut into 4 KiB blocks of eight 512 byte sectors.  The map is a
 * prefaulted open-addressing hash whose slots are (disk, block) -> (location,
 * mask of valid sectors); a block written in pieces has several slots with
 * disjoint masks, so a write never has to read first.  Long zero ranges are kept
 * apart in a sorted set; where a slot and a zero range overlap, the slot is newer.
 *
 * A location is an opaque 32 bit number; map entries for consecutive blocks of one
 * write have consecutive locations.  Whoever uses the map knows what it means.
 *
 * Threads: none; the caller's lock guards a map.  Errors: -1 with ENOMEM.
 */
#ifndef MCBUF_BUFFERS_MAP_H
#define MCBUF_BUFFERS_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAP_SECTOR 512u
#define MAP_BLOCK_SECTORS 8u
#define MAP_BLOCK (MAP_SECTOR * MAP_BLOCK_SECTORS)
#define MAP_MAX_DISKS 64u

struct map;

/* A new, empty map with prefaulted room for BLOCKS blocks before it has to grow.  It
 * grows a few slots with each put, so that no put waits for all of them.
 */
extern struct map *map_new (size_t blocks);
extern void map_free (struct map *m);           /* NULL is allowed */
/* Empty it.  Memory is kept up to what map_new was asked for, and given back beyond. */
extern void map_clear (struct map *m);

/* Sectors [SECTOR, SECTOR + N) of DISK are held in consecutive block images from
 * LOC on (the first image is that of the block SECTOR lies in), or are zero.
 * Newer than all that is in the map.  MAY_TRIM: the zeroes may become a hole.
 * Fails before anything is changed.
 */
extern int map_put (struct map *m, unsigned disk, uint64_t sector, uint64_t n,
                    uint32_t loc);
extern int map_zero (struct map *m, unsigned disk, uint64_t sector, uint64_t n,
                     bool may_trim);

/* What the map holds of one block: up to eight disjoint hits.  Their masks
 * (bit i: sector i) lie within WANT.  Returns how many.
 */
struct map_hit {
  uint32_t loc;                 /* of the block's image, unless ZERO */
  uint8_t mask;
  bool zero;
  bool may_trim;
};
extern unsigned map_get (const struct map *m, unsigned disk, uint64_t block,
                         uint8_t want, struct map_hit hit[MAP_BLOCK_SECTORS]);

/* Is nothing of DISK's blocks [BLOCK, BLOCK + N) in the map?  May say false
 * where a search would find nothing, never true where there is something.  Cheap.
 */
extern bool map_is_empty_at (const struct map *m, unsigned disk,
                             uint64_t block, uint64_t n);

/* Does all the map holds of [BLOCK, BLOCK + N) come from one long zero range that covers
 * it?  May say false where it is so, never true where it is not.  Cheap.
 */
extern bool map_is_zero_at (const struct map *m, unsigned disk,
                            uint64_t block, uint64_t n, bool *may_trim);

/* Put all of NEWER over OLDER, at most MAX slots a call so that a lock need not be held
 * for long.  *CURSOR starts at 0.  Returns 1 while there is more, 0 when done, -1.
 * Neither may change between the calls; readers who look at NEWER before OLDER see no difference at any time.
 */
extern int map_merge (struct map *older, const struct map *newer, size_t max,
                      uint64_t *cursor);

/* The map in the order of (disk, sector), disjoint. */
struct map_run {
  uint64_t sector;
  uint64_t nsectors;            /* a data run lies within one block */
  uint32_t loc;
  uint16_t disk;
  bool zero;
  bool may_trim;
};
/* *RUNS is malloced, the caller frees it.  LSD radix sort.  -1 with ENOMEM. */
extern int map_sorted (const struct map *m, struct map_run **runs, size_t *n);

/* The first of RUNS, sorted, that ends behind sector SECTOR of DISK; N when none does. */
extern size_t map_run_find (const struct map_run *runs, size_t n, unsigned disk, uint64_t sector);

extern bool map_is_empty (const struct map *m);
extern size_t map_blocks (const struct map *m);         /* slots in use */
extern size_t map_memory (const struct map *m);         /* bytes allocated */
/* How many blocks fit before it has to grow. */
extern size_t map_room (const struct map *m);

#endif /* MCBUF_BUFFERS_MAP_H */
