/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "buffers/speculation.h"

/* An epoch's map takes this many blocks before it has to grow: 1 MiB of slots. */
#define EPOCH_BLOCKS 49152

/* Spares for two seals, and one that only speculation_take_all uses. */
#define SEAL_SPARES 2u
#define SPARES (SEAL_SPARES + 1)

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
  *e = (struct epoch) { .map = map };
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
  while (s->nspares < SPARES) {
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
  return SPARES - s->nspares;
}

void
speculation_restock (struct speculation *s, struct epoch *spare)
{
  assert (map_is_empty (spare->map));
  if (s->nspares == SPARES) {
    epoch_free (spare);
    return;
  }
  spare->older = s->spares;
  s->spares = spare;
  s->nspares++;
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
  s->stat = (struct speculation_stat) { 0, 0, 0 };
  return taken;
}

void
speculation_get_stat (const struct speculation *s,
                      struct speculation_stat *stat)
{
  *stat = s->stat;
}
