/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "buffers/zeroset.h"

_Static_assert (sizeof (struct zero_range) == 16, "a range is two words");

void
zeroset_clear (struct zeroset *z)
{
  for (size_t c = 0; c < z->n; c++)
    free (z->dir[c].chunk);
  free (z->dir);
  free (z->spare[0]);
  free (z->spare[1]);
  memset (z, 0, sizeof *z);
}

const struct zero_range *
zeroset_get (const struct zeroset *z, struct zeroset_at at)
{
  return at.chunk < z->n ? &z->dir[at.chunk].chunk->range[at.i] : NULL;
}

struct zeroset_at
zeroset_next (const struct zeroset *z, struct zeroset_at at)
{
  if (++at.i >= z->dir[at.chunk].chunk->n) {
    at.chunk++;
    at.i = 0;
  }
  return at;
}

struct zeroset_at
zeroset_seek (const struct zeroset *z, uint64_t pos)
{
  size_t lo = 0, hi = z->n;
  struct zeroset_at at = { 0, 0 };

  /* The last chunk that begins at or before POS, if there is one. */
  while (lo < hi) {
    size_t mid = lo + (hi - lo) / 2;

    if (z->dir[mid].first <= pos)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (lo == 0)
    return at;
  at.chunk = lo - 1;

  const struct zeroset_chunk *chunk = z->dir[at.chunk].chunk;
  for (lo = 0, hi = chunk->n; lo < hi; ) {
    size_t mid = lo + (hi - lo) / 2;

    if (chunk->range[mid].end <= pos)
      lo = mid + 1;
    else
      hi = mid;
  }
  at.i = lo;
  if (at.i == chunk->n) {
    at.chunk++;
    at.i = 0;
  }
  return at;
}

size_t
zeroset_count (const struct zeroset *z)
{
  size_t n = 0;

  for (size_t c = 0; c < z->n; c++)
    n += z->dir[c].chunk->n;
  return n;
}

size_t
zeroset_memory (const struct zeroset *z)
{
  size_t chunks = z->n + (z->spare[0] != NULL) + (z->spare[1] != NULL);

  return z->room * sizeof *z->dir + chunks * sizeof (struct zeroset_chunk);
}

/* One addition splits at most two chunks: have them, and room for them. */
static int
reserve (struct zeroset *z)
{
  if (z->n + 2 > z->room) {
    size_t room = z->room ? 2 * z->room : 8;
    struct zeroset_entry *dir = realloc (z->dir, room * sizeof *dir);

    if (dir == NULL)
      return -1;
    z->dir = dir;
    z->room = room;
  }
  for (int i = 0; i < 2; i++)
    if (z->spare[i] == NULL) {
      z->spare[i] = malloc (sizeof *z->spare[i]);
      if (z->spare[i] == NULL)
        return -1;
    }
  return 0;
}

static struct zeroset_chunk *
take_spare (struct zeroset *z)
{
  int i = z->spare[0] == NULL;
  struct zeroset_chunk *chunk = z->spare[i];

  assert (chunk != NULL);
  z->spare[i] = NULL;
  chunk->n = 0;
  return chunk;
}

static void
give_back (struct zeroset *z, struct zeroset_chunk *chunk)
{
  if (z->spare[0] == NULL)
    z->spare[0] = chunk;
  else if (z->spare[1] == NULL)
    z->spare[1] = chunk;
  else
    free (chunk);
}

static void
insert_chunk (struct zeroset *z, size_t at, struct zeroset_chunk *chunk)
{
  assert (z->n < z->room);
  memmove (&z->dir[at + 1], &z->dir[at], (z->n - at) * sizeof *z->dir);
  z->dir[at] = (struct zeroset_entry) { .chunk = chunk };
  z->n++;
}

/* Insert a range before the place AT. */
static void
insert (struct zeroset *z, struct zeroset_at at, struct zero_range range)
{
  struct zeroset_chunk *chunk;

  if (z->n == 0)
    insert_chunk (z, 0, take_spare (z));
  else if (at.i == 0 && at.chunk > 0) {
    at.chunk--;                 /* the end of the one before is the same place */
    at.i = z->dir[at.chunk].chunk->n;
  }

  chunk = z->dir[at.chunk].chunk;
  if (chunk->n == ZEROSET_FAN) {
    struct zeroset_chunk *upper = take_spare (z);
    /* Ranges that come in ascending order leave full chunks behind. */
    size_t half = at.i == chunk->n ? chunk->n : chunk->n / 2;

    upper->n = chunk->n - half;
    memcpy (upper->range, &chunk->range[half], upper->n * sizeof range);
    chunk->n = half;
    insert_chunk (z, at.chunk + 1, upper);
    if (upper->n > 0)
      z->dir[at.chunk + 1].first = upper->range[0].start;
    if (at.i > half || upper->n == 0) {
      at.chunk++;
      at.i -= half;
      chunk = upper;
    }
  }
  memmove (&chunk->range[at.i + 1], &chunk->range[at.i],
           (chunk->n - at.i) * sizeof range);
  chunk->range[at.i] = range;
  chunk->n++;
  z->dir[at.chunk].first = chunk->range[0].start;
}

/* Remove the ranges from the place AT on that end at or before END.  Returns
 * the place of what follows.
 */
static struct zeroset_at
erase_upto (struct zeroset *z, struct zeroset_at at, uint64_t end)
{
  size_t c = at.chunk, i = at.i;
  size_t gone_from = at.chunk + (at.i > 0), gone_to = gone_from;

  for (; c < z->n; c++, i = 0) {
    struct zeroset_chunk *chunk = z->dir[c].chunk;
    size_t n = i;

    while (n < chunk->n && chunk->range[n].end <= end)
      n++;
    if (i == 0 && n == chunk->n) {
      give_back (z, chunk);
      gone_to = c + 1;
      continue;
    }
    bool more = n == chunk->n;
    memmove (&chunk->range[i], &chunk->range[n],
             (chunk->n - n) * sizeof chunk->range[0]);
    chunk->n -= n - i;
    z->dir[c].first = chunk->range[0].start;
    if (!more)
      break;
  }
  memmove (&z->dir[gone_from], &z->dir[gone_to],
           (z->n - gone_to) * sizeof *z->dir);
  z->n -= gone_to - gone_from;
  if (at.chunk < z->n && at.i == z->dir[at.chunk].chunk->n) {
    at.chunk++;
    at.i = 0;
  }
  return at;
}

static struct zero_range *
range_at (struct zeroset *z, struct zeroset_at at)
{
  return at.chunk < z->n ? &z->dir[at.chunk].chunk->range[at.i] : NULL;
}

static void
set_start (struct zeroset *z, struct zeroset_at at, uint64_t start)
{
  z->dir[at.chunk].chunk->range[at.i].start = start;
  if (at.i == 0)
    z->dir[at.chunk].first = start;
}

/* Take START .. END out.  Returns the place of what follows. */
static struct zeroset_at
cut (struct zeroset *z, uint64_t start, uint64_t end)
{
  struct zeroset_at at = zeroset_seek (z, start);
  struct zero_range *r = range_at (z, at);

  if (r && r->start < start) {
    struct zero_range rest = { end, r->end, r->may_trim };

    r->end = start;
    at = zeroset_next (z, at);
    if (rest.end > end) {
      insert (z, at, rest);
      return zeroset_seek (z, end);
    }
  }
  at = erase_upto (z, at, end);
  r = range_at (z, at);
  if (r && r->start < end)
    set_start (z, at, end);
  return at;
}

int
zeroset_add (struct zeroset *z, uint64_t start, uint64_t end, bool may_trim)
{
  uint64_t disk = start >> ZEROSET_DISK_SHIFT;
  struct zeroset_at at = zeroset_seek (z, start);
  struct zero_range *r = range_at (z, at), *prev = NULL;

  if (start >= end || (r && r->start <= start && r->end >= end &&
                       r->may_trim == may_trim))
    return 0;
  if (reserve (z) == -1)
    return -1;

  at = cut (z, start, end);
  if (at.i > 0)
    prev = &z->dir[at.chunk].chunk->range[at.i - 1];
  else if (at.chunk > 0) {
    struct zeroset_chunk *chunk = z->dir[at.chunk - 1].chunk;

    prev = &chunk->range[chunk->n - 1];
  }
  if (prev && !(prev->end == start && prev->may_trim == may_trim &&
                prev->start >> ZEROSET_DISK_SHIFT == disk))
    prev = NULL;
  r = range_at (z, at);
  if (r && !(r->start == end && r->may_trim == may_trim &&
             r->start >> ZEROSET_DISK_SHIFT == disk))
    r = NULL;

  if (prev) {
    prev->end = r ? r->end : end;
    if (r)
      (void) erase_upto (z, at, r->end);
  }
  else if (r)
    set_start (z, at, start);
  else
    insert (z, at, (struct zero_range) { start, end, may_trim });
  return 0;
}
