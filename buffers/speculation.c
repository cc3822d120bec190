/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "buffers/speculation.h"

/* An epoch's map takes this many blocks before it has to grow: 1 MiB of slots. */
#define EPOCH_BLOCKS 49152

/* Spares for two seals, and one that only speculation_take_all uses.  One more is there from the start, and some of those
 * that come back are kept: to make one costs 256 page faults, which at hundreds of commits a second is a
 * part of a core.
 */
#define SEAL_SPARES 2u
#define SPARES (SEAL_SPARES + 1)
#define SPARES_KEPT 6u

/* So many sealed epochs keep the maps they have: they are likely to be committed soon. */
#define LOOSE 8

struct speculation {
  struct epoch *newest;                 /* the open one; older ones by ->older */
  struct epoch *spares;                 /* by ->older */
  unsigned nspares;
  struct speculation_stat stat;
};

struct epoch *
epoch_new (void)
{
  struct epoch *e = calloc (1, sizeof *e);

  if (e == NULL)
    return NULL;
  e->roomy = true;
  e->map = map_new (EPOCH_BLOCKS);
  if (e->map == NULL) {
    free (e);
    errno = ENOMEM;
    return NULL;
  }
  return e;
}

void
epoch_free (struct epoch *e)
{
  if (e) {
    map_free (e->map);
    free (e);
  }
}

void
epoch_clear (struct epoch *e)
{
  struct map *map = e->map;

  map_clear (map);
  *e = (struct epoch) { .map = map, .roomy = e->roomy };
}

static void
free_chain (struct epoch *e)
{
  while (e) {
    struct epoch *older = e->older;

    epoch_free (e);
    e = older;
  }
}

struct speculation *
speculation_new (uint64_t number)
{
  struct speculation *s = calloc (1, sizeof *s);

  if (s == NULL)
    return NULL;
  s->newest = epoch_new ();
  if (s->newest == NULL)
    goto error;
  s->newest->number = number;
  while (s->nspares <= SPARES) {
    struct epoch *spare = epoch_new ();

    if (spare == NULL)
      goto error;
    speculation_restock (s, spare);
  }
  return s;

 error:
  speculation_free (s);
  errno = ENOMEM;
  return NULL;
}

void
speculation_free (struct speculation *s)
{
  if (s) {
    free_chain (s->newest);
    free_chain (s->spares);
    free (s);
  }
}

uint64_t
speculation_open_number (const struct speculation *s)
{
  return s->newest->number;
}

struct epoch *
speculation_newest (const struct speculation *s)
{
  return s->newest;
}

static void
count (struct speculation *s, uint64_t sectors)
{
  if (sectors > 0) {
    s->stat.epochs += s->newest->extents == 0;
    s->newest->bytes += sectors * MAP_SECTOR;
    s->newest->extents++;
    s->stat.bytes += sectors * MAP_SECTOR;
    s->stat.extents++;
  }
}

int
speculation_put (struct speculation *s, unsigned disk, uint64_t sector,
                 uint64_t n, uint32_t loc)
{
  if (map_put (s->newest->map, disk, sector, n, loc) == -1)
    return -1;
  count (s, n);
  return 0;
}

int
speculation_zero (struct speculation *s, unsigned disk, uint64_t sector,
                  uint64_t n, bool may_trim)
{
  if (map_zero (s->newest->map, disk, sector, n, may_trim) == -1)
    return -1;
  count (s, n);
  return 0;
}

bool
speculation_is_empty_at (const struct speculation *s, unsigned disk,
                         uint64_t block, uint64_t n)
{
  for (const struct epoch *e = s->newest; e; e = e->older)
    if (!map_is_empty_at (e->map, disk, block, n))
      return false;
  return true;
}

/* A spare, unless fewer than KEEP would be left; else a new one. */
static struct epoch *
get_spare (struct speculation *s, unsigned keep)
{
  struct epoch *spare;

  if (s->nspares <= keep)
    return epoch_new ();
  spare = s->spares;
  s->spares = spare->older;
  s->nspares--;
  return spare;
}

int
speculation_seal (struct speculation *s)
{
  struct epoch *next = get_spare (s, SPARES - SEAL_SPARES);

  if (next == NULL)
    return -1;
  next->number = s->newest->number + 1;
  next->older = s->newest;
  s->newest = next;
  s->stat.sealed++;
  return 0;
}

unsigned
speculation_spares_wanted (const struct speculation *s)
{
  return s->nspares < SPARES ? SPARES - s->nspares : 0;
}

bool
speculation_spares_room (const struct speculation *s)
{
  return s->nspares < SPARES_KEPT;
}

void
speculation_restock (struct speculation *s, struct epoch *spare)
{
  assert (map_is_empty (spare->map));
  if (!speculation_spares_room (s) || !spare->roomy) {
    epoch_free (spare);
    return;
  }
  spare->older = s->spares;
  s->spares = spare;
  s->nspares++;
}

/* The newest of those that are sealed for long. */
static struct epoch *
sealed_long (const struct speculation *s)
{
  struct epoch *e = s->newest->older;

  for (unsigned i = 0; i < LOOSE && e; i++)
    e = e->older;
  return e;
}

size_t
speculation_loose (const struct speculation *s, uint64_t *number)
{
  for (;;) {
    struct epoch *oldest = NULL;

    /* Behind one that is tight all are. */
    for (struct epoch *e = sealed_long (s); e && !e->tight; e = e->older)
      oldest = e;
    if (oldest == NULL)
      return 0;
    if (map_room (oldest->map) / 3 >= map_blocks (oldest->map)) {
      *number = oldest->number;
      return map_blocks (oldest->map) + 1;
    }
    oldest->tight = true;
  }
}

int
speculation_tighten (struct speculation *s, uint64_t number, struct map *map,
                     size_t max, uint64_t *cursor, struct map **left)
{
  struct epoch *e = sealed_long (s);
  int r;

  *left = NULL;
  while (e && e->number > number)
    e = e->older;
  if (e == NULL || e->number != number) {
    *left = map;
    return 0;
  }
  r = map_merge (map, e->map, max, cursor);
  if (r == 0) {
    *left = e->map;
    e->map = map;
    e->roomy = false;
    e->tight = true;
  }
  return r;
}

struct epoch *
epoch_of (struct map *map)
{
  struct epoch *e = calloc (1, sizeof *e);

  if (e == NULL) {
    map_free (map);
    errno = ENOMEM;
    return NULL;
  }
  e->map = map;
  e->roomy = true;
  return e;
}

struct epoch *
speculation_take (struct speculation *s, uint64_t number)
{
  struct epoch *last = s->newest, *taken;

  while (last->older && last->older->number > number)
    last = last->older;
  taken = last->older;
  last->older = NULL;
  for (const struct epoch *e = taken; e; e = e->older) {
    s->stat.bytes -= e->bytes;
    s->stat.extents -= e->extents;
    s->stat.epochs -= e->extents > 0;
    s->stat.sealed--;
  }
  return taken;
}

struct epoch *
speculation_take_all (struct speculation *s, uint64_t number)
{
  struct epoch *taken = s->newest;
  struct epoch *next = get_spare (s, 0);

  if (next == NULL)
    return NULL;
  next->number = number;
  next->older = NULL;
  s->newest = next;
  s->stat = (struct speculation_stat) { 0, 0, 0, 0 };
  return taken;
}

void
speculation_get_stat (const struct speculation *s,
                      struct speculation_stat *stat)
{
  *stat = s->stat;
}
