/* SPDX-License-Identifier: BSD-3-Clause */
/* A set of zero ranges: sorted, disjoint, neighbours of one kind joined.
 *
 * Positions are sectors of all disks on one line: disk << 54 | sector, which
 * leaves room for a disk of 2^63 bytes.  No range crosses from disk to disk.
 *
 * A directory of chunks, each a short sorted array: an insertion moves one chunk's
 * tail and at times the directory's, so that it is cheap with a million
 * ranges too, and a walk is as fast as over an array.
 *
 * Threads: none.  Errors: -1 with ENOMEM.
 */
#ifndef MCBUF_BUFFERS_ZEROSET_H
#define MCBUF_BUFFERS_ZEROSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZEROSET_DISK_SHIFT 54
#define ZEROSET_FAN 127u        /* ranges in a chunk */

struct zero_range {
  uint64_t start;
  uint64_t end : 63;            /* exclusive */
  uint64_t may_trim : 1;
};

struct zeroset_chunk {
  size_t n;
  struct zero_range range[ZEROSET_FAN];
};

struct zeroset_entry {
  uint64_t first;               /* chunk->range[0].start */
  struct zeroset_chunk *chunk;
};

struct zeroset {
  struct zeroset_entry *dir;
  size_t n, room;               /* chunks in it, entries allocated */
  struct zeroset_chunk *spare[2];
};

/* A place in the set.  Good until the set is changed. */
struct zeroset_at {
  size_t chunk;
  size_t i;
};

/* All zero bytes is an empty set.  Frees what it has. */
extern void zeroset_clear (struct zeroset *z);

/* Put START .. END (of one disk) over what is there.  Fails before anything changes. */
extern int zeroset_add (struct zeroset *z, uint64_t start, uint64_t end,
                        bool may_trim);

/* The first range that ends after POS. */
extern struct zeroset_at zeroset_seek (const struct zeroset *z, uint64_t pos);

/* The range at a place, NULL at the end. */
extern const struct zero_range *zeroset_get (const struct zeroset *z,
                                             struct zeroset_at at);
extern struct zeroset_at zeroset_next (const struct zeroset *z,
                                       struct zeroset_at at);

static inline bool
zeroset_is_empty (const struct zeroset *z)
{
  return z->n == 0;
}

/* Ranges in it, by counting; and bytes allocated. */
extern size_t zeroset_count (const struct zeroset *z);
extern size_t zeroset_memory (const struct zeroset *z);

#endif /* MCBUF_BUFFERS_ZEROSET_H */
