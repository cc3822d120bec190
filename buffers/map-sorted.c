/* SPDX-License-Identifier: BSD-3-Clause */
/* The map in disk order: LSD radix sort of the slots (Knuth, TAOCP 3, 5.2.5,
 * algorithm R, by counting) over the bits in which their keys differ, then
 * one walk that fits the zero ranges in between.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "buffers/map-impl.h"
#include "buffers/pages.h"
#include "common/bytes.h"

#define DIGIT 11
#define BUCKETS (1u << DIGIT)
#define HUGE_PAGE ((size_t) 2 << 20)

/* Sort A[0..N) by key, with B as large.  Returns the one that it ends up in. */
static struct slot *
radix_sort (struct slot *a, struct slot *b, size_t n)
{
  uint64_t ones = 0, both = UINT64_MAX, differ;
  size_t count[BUCKETS];

  for (size_t i = 0; i < n; i++) {
    ones |= a[i].key;
    both &= a[i].key;
  }
  differ = ones ^ both;
  while (differ != 0) {
    unsigned shift = __builtin_ctzll (differ);
    struct slot *t = a;
    size_t sum = 0;

    for (unsigned d = 0; d < BUCKETS; d++)
      count[d] = 0;
    for (size_t i = 0; i < n; i++)
      count[a[i].key >> shift & (BUCKETS - 1)]++;
    for (unsigned d = 0; d < BUCKETS; d++) {
      size_t c = count[d];

      count[d] = sum;
      sum += c;
    }
    for (size_t i = 0; i < n; i++)
      b[count[a[i].key >> shift & (BUCKETS - 1)]++] = a[i];
    a = b;
    b = t;
    differ &= ~((uint64_t) (BUCKETS - 1) << shift);
  }
  return a;
}

/* The answer while it is being made. */
struct runs {
  struct map_run *run;
  size_t n;
  const struct zeroset *zeroes;
  struct zeroset_at at;                 /* the first range not passed yet */
  uint64_t pos;                         /* on the line: all before it is there */
};

/* Sectors START .. END of the line are zero. */
static void
add_zero_run (struct runs *r, uint64_t start, uint64_t end, bool may_trim)
{
  unsigned disk = start >> ZEROSET_DISK_SHIFT;
  uint64_t sector = start - zero_pos (disk, 0);
  struct map_run *last = r->n > 0 ? &r->run[r->n - 1] : NULL;

  r->pos = end;
  if (last && last->zero && last->may_trim == may_trim &&
      last->disk == disk && last->sector + last->nsectors == sector)
    last->nsectors += end - start;
  else
    r->run[r->n++] = (struct map_run) {
      .sector = sector, .nsectors = end - start, .disk = disk,
      .zero = true, .may_trim = may_trim,
    };
}

/* Slot S holds sectors START .. END of the line. */
static void
add_run (struct runs *r, uint64_t start, uint64_t end, const struct slot *s)
{
  if (s->value & MAP_ZERO)
    add_zero_run (r, start, end, (s->value & MAP_TRIM) != 0);
  else {
    unsigned disk = key_disk (s->key);

    r->pos = end;
    r->run[r->n++] = (struct map_run) {
      .sector = start - zero_pos (disk, 0), .nsectors = end - start,
      .loc = s->value & UINT32_MAX, .disk = disk,
    };
  }
}

/* The zero ranges, or what is not passed of them, up to END. */
static void
add_zeroes (struct runs *r, uint64_t end)
{
  const struct zero_range *range;

  while ((range = zeroset_get (r->zeroes, r->at)) != NULL &&
         range->start < end) {
    uint64_t from = MAX (range->start, r->pos);
    uint64_t to = MIN ((uint64_t) range->end, end);

    if (from < to)
      add_zero_run (r, from, to, range->may_trim);
    if (range->end > end)
      break;
    r->at = zeroset_next (r->zeroes, r->at);
  }
}

/* The N slots of one block. */
static void
add_block (struct runs *r, const struct slot *s, size_t n)
{
  uint64_t start = zero_pos (key_disk (s->key),
                             key_block (s->key) * MAP_BLOCK_SECTORS);

  if (slot_mask (s) == MAP_ALL) {
    add_zeroes (r, start);
    add_run (r, start, start + MAP_BLOCK_SECTORS, s);
    return;
  }

  const struct slot *owner[MAP_BLOCK_SECTORS] = { NULL };
  unsigned to;

  for (size_t i = 0; i < n; i++)
    for (unsigned b = 0; b < MAP_BLOCK_SECTORS; b++)
      if (slot_mask (&s[i]) & 1u << b)
        owner[b] = &s[i];
  for (unsigned from = 0; from < MAP_BLOCK_SECTORS; from = to) {
    const struct slot *o = owner[from];

    for (to = from + 1; to < MAP_BLOCK_SECTORS && owner[to] == o; to++)
      ;
    if (o == NULL)
      continue;
    add_zeroes (r, start + from);
    add_run (r, start + from, start + to, o);
  }
}

/* The live slots into A; returns how many runs they make, at most. */
static size_t
collect (const struct map *m, struct slot *a)
{
  size_t n = 0, runs = 0;

  for (size_t k = 0; k < map_walk_end (m); k++) {
    const struct slot *s = map_walk_slot (m, k);
    unsigned mask = slot_mask (s);

    if (mask) {
      a[n++] = *s;
      runs += mask == MAP_ALL ? 1 : __builtin_popcount (mask & ~(mask << 1));
    }
  }
  assert (n == m->live);
  return runs;
}

static struct map_run *
alloc_runs (size_t n)
{
  size_t bytes = n * sizeof (struct map_run);
  void *area;

  if (n > SIZE_MAX / 2 / sizeof (struct map_run)) {
    errno = ENOMEM;
    return NULL;
  }
  if (bytes < 2 * HUGE_PAGE)
    return malloc (bytes);
  bytes = ROUND_UP (bytes, HUGE_PAGE);
  area = aligned_alloc (HUGE_PAGE, bytes);
  if (area)
    /* A hint only. */
    (void) madvise (area, bytes, MADV_HUGEPAGE);
  return area;
}

int
map_sorted (const struct map *m, struct map_run **runs, size_t *n)
{
  struct runs r = { .zeroes = &m->zeroes };
  size_t bytes = m->live * sizeof (struct slot);
  size_t max = zeroset_count (&m->zeroes);
  struct slot *a = NULL, *b = NULL, *sorted;

  *runs = NULL;
  *n = 0;
  if (map_is_empty (m))
    return 0;
  if (m->live > 0) {
    size_t in_slots;

    a = pages_alloc (bytes);
    b = pages_alloc (bytes);
    if (a == NULL || b == NULL)
      goto error;
    in_slots = collect (m, a);
    /* Each run of a slot may cut a zero range in two. */
    max += max ? 2 * in_slots : in_slots;
  }
  r.run = alloc_runs (max);
  if (r.run == NULL)
    goto error;

  if (m->live > 0) {
    sorted = radix_sort (a, b, m->live);
    for (size_t i = 0, k; i < m->live; i = k) {
      for (k = i + 1; k < m->live && sorted[k].key == sorted[i].key; k++)
        ;
      add_block (&r, &sorted[i], k - i);
    }
  }
  add_zeroes (&r, UINT64_MAX);
  assert (r.n <= max);
  pages_free (a, bytes);
  pages_free (b, bytes);
  *runs = r.run;
  *n = r.n;
  return 0;

 error:
  pages_free (a, bytes);
  pages_free (b, bytes);
  return -1;
}

size_t
map_run_find (const struct map_run *runs, size_t n, unsigned disk, uint64_t sector)
{
  size_t lo = 0, hi = n;

  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    const struct map_run *r = &runs[mid];

    if (r->disk < disk ||
        (r->disk == disk && r->sector + r->nsectors <= sector))
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}
