/* SPDX-License-Identifier: BSD-3-Clause */
/* See samples.h.  Samples are read back from the images, whose pages are in RAM for
 * having just been written; so one function does for data, zeroes and first copies.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "replica/internal.h"
#include "replica/samples.h"

#define PIECE 128u              /* sectors of one sample, at most */
#define PIECE_BYTES (PIECE * JOURNAL_SECTOR)
#define STRIDES 64u             /* places looked at in one long range, at most */
#define UPDATE_BYTES (UINT64_C (4) << 20)       /* read for one update, at most */

static int
compare (const void *a, const void *b)
{
  const struct journal_sample *x = a, *y = b;

  if (x->disk != y->disk)
    return x->disk < y->disk ? -1 : 1;
  return x->sector < y->sector ? -1 : x->sector > y->sector;
}

/* splitmix64 (Steele, Lea, Flood 2014): which samples stay need not be a secret. */
static uint64_t
next_random (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* What is in the image there?  MEM has PIECE_BYTES. */
static int
read_crc (struct disk *disk, const struct journal_sample *s, void *mem,
          uint32_t *crc)
{
  uint64_t off = s->sector * JOURNAL_SECTOR;
  uint64_t len = (uint64_t) s->nsectors * JOURNAL_SECTOR;

  if (off >= disk->size || s->nsectors > PIECE) {
    errno = EINVAL;
    return -1;
  }
  len = MIN (len, disk->size - off);
  if (backing_pread (disk->backing, mem, len, off) == -1)
    return -1;
  *crc = crc32c (mem, len, 0);
  return 0;
}

/* --- a first copy --- */

void
samples_take (struct journal *j, struct disk *disks, unsigned ndisks)
{
  CLEANUP_FREE struct journal_sample *list = calloc (JOURNAL_SAMPLES, sizeof *list);
  CLEANUP_FREE void *mem = malloc (PIECE_BYTES);
  unsigned n = 0, per = JOURNAL_SAMPLES / ndisks;

  if (list == NULL || mem == NULL) {
    journal_set_samples (j, NULL, 0);   /* less to hold the images against later */
    return;
  }
  for (unsigned d = 0; d < ndisks; d++) {
    uint64_t sectors = DIV_UP (disks[d].size, (uint64_t) JOURNAL_SECTOR);

    for (unsigned k = 0; k < per; k++) {
      uint64_t from = sectors * k / per, to = sectors * (k + 1) / per;
      struct journal_sample *s = &list[n];
      uint64_t length;
      bool hole;

      if (from == to)
        continue;
      /* Where there is data, rather. */
      if (backing_extent (disks[d].backing, from * JOURNAL_SECTOR,
                          (to - from) * JOURNAL_SECTOR, &length, &hole) == 0 &&
          hole && length < (to - from) * JOURNAL_SECTOR)
        from += length / JOURNAL_SECTOR;
      *s = (struct journal_sample) {
        .disk = d, .sector = from, .nsectors = MIN (to - from, (uint64_t) PIECE) };
      if (read_crc (&disks[d], s, mem, &s->crc) == 0)
        n++;
    }
  }
  journal_set_samples (j, list, n);
}

/* --- around a write-out --- */

struct piece {
  struct journal_sample sample;
  bool known;                   /* its crc is */
};

struct pieces {
  struct piece *piece;          /* malloced */
  size_t n, cap;
  uint64_t random;
};

static int
add_piece (struct pieces *p, const struct journal_sample *s, bool known)
{
  if (p->n == p->cap) {
    size_t cap = 2 * p->cap + 2 * JOURNAL_SAMPLES;
    struct piece *more = realloc (p->piece, cap * sizeof *more);

    if (more == NULL)
      return -1;
    p->piece = more;
    p->cap = cap;
  }
  p->piece[p->n++] = (struct piece) { .sample = *s, .known = known };
  return 0;
}

/* What RUNS leave of S. */
static int
add_rest (struct pieces *p, const struct journal_sample *s,
          const struct map_run *runs, size_t n)
{
  uint64_t at = s->sector, end = s->sector + s->nsectors;
  size_t i = map_run_find (runs, n, s->disk, at);

  if (i == n || runs[i].disk != s->disk || runs[i].sector >= end)
    return add_piece (p, s, true);
  while (at < end) {
    uint64_t to = i < n && runs[i].disk == s->disk ? MIN (runs[i].sector, end) : end;
    const struct journal_sample rest = { .disk = s->disk, .sector = at,
                                         .nsectors = to > at ? to - at : 0 };

    if (to > at && add_piece (p, &rest, false) == -1)
      return -1;
    if (to == end)
      break;
    at = runs[i].sector + runs[i].nsectors;
    i++;
  }
  return 0;
}

/* Which stay is left to chance; those whose crc is not known cost a read. */
static void
settle (struct pieces *p, struct journal *j, struct disk *disks,
        unsigned ndisks)
{
  CLEANUP_FREE struct journal_sample *list = calloc (JOURNAL_SAMPLES, sizeof *list);
  CLEANUP_FREE void *mem = malloc (PIECE_BYTES);
  uint64_t budget = UPDATE_BYTES;
  unsigned n = 0;

  for (size_t i = 0; list && mem && i < p->n && n < JOURNAL_SAMPLES; i++) {
    size_t k = i + (p->n > JOURNAL_SAMPLES ?
                    next_random (&p->random) % (p->n - i) : 0);
    struct piece got = p->piece[k];
    uint64_t bytes = (uint64_t) got.sample.nsectors * JOURNAL_SECTOR;

    p->piece[k] = p->piece[i];
    if (got.sample.disk >= ndisks || disks[got.sample.disk].backing == NULL)
      continue;
    if (!got.known) {
      if (bytes > budget ||
          read_crc (&disks[got.sample.disk], &got.sample, mem, &got.sample.crc) == -1)
        continue;
      budget -= bytes;
    }
    list[n++] = got.sample;
  }
  /* Without memory there are none: those of before may not hold any more. */
  journal_set_samples (j, list, n);
}

static int
pieces_init (struct pieces *p)
{
  *p = (struct pieces) { .n = 0 };
  return host_random (&p->random, sizeof p->random);
}

static int
compare_length (const void *a, const void *b)
{
  const struct piece *x = a, *y = b;

  return x->sample.nsectors > y->sample.nsectors ? -1 :
    x->sample.nsectors < y->sample.nsectors;
}

bool
samples_prepare (struct journal *j, struct disk *disks, unsigned ndisks,
                 const struct map_run *runs, size_t nruns)
{
  struct journal_sample list[JOURNAL_SAMPLES];
  unsigned n = journal_get_samples (j, list);
  struct pieces p;
  bool changed = false;
  int r = pieces_init (&p);

  for (unsigned i = 0; i < n && r == 0; i++)
    r = add_rest (&p, &list[i], runs, nruns);
  if (r == -1)
    p.n = 0;
  changed = p.n != n;
  for (size_t i = 0; i < p.n && !changed; i++)
    changed = !p.piece[i].known;
  if (changed) {
    /* Not too many crumbs. */
    if (p.n > JOURNAL_SAMPLES) {
      qsort (p.piece, p.n, sizeof *p.piece, compare_length);
      p.n = JOURNAL_SAMPLES;
    }
    settle (&p, j, disks, ndisks);
  }
  free (p.piece);
  return changed;
}

/* --- after it --- */

/* A place that was written: take it, or perhaps, when there are many (Vitter's algorithm R). */
static int
offer (struct pieces *p, size_t first, uint64_t *seen,
       const struct journal_sample *s)
{
  uint64_t k;

  ++*seen;
  if (p->n - first < JOURNAL_SAMPLES)
    return add_piece (p, s, false);
  k = next_random (&p->random) % *seen;
  if (k < JOURNAL_SAMPLES)
    p->piece[first + k] = (struct piece) { .sample = *s };
  return 0;
}

static int
offer_runs (struct pieces *p, const struct disk *disks,
            const struct map_run *runs, size_t n)
{
  size_t first = p->n;
  uint64_t seen = 0;

  for (size_t i = 0; i < n; ) {
    uint64_t from = runs[i].sector, end = from, step;
    size_t k = i;

    while (k < n && runs[k].disk == runs[i].disk && runs[k].sector == end)
      end += runs[k++].nsectors;
    if (disks[runs[i].disk].lost) {     /* should it stay it will be copied anew */
      i = k;
      continue;
    }
    step = MAX ((uint64_t) PIECE, (end - from) / STRIDES);
    for (uint64_t at = from; at < end; at += step) {
      const struct journal_sample s = {
        .disk = runs[i].disk, .sector = at,
        .nsectors = MIN (end - at, (uint64_t) PIECE) };

      if (offer (p, first, &seen, &s) == -1)
        return -1;
    }
    i = k;
  }
  return 0;
}

static int
compare_piece (const void *a, const void *b)
{
  return compare (&((const struct piece *) a)->sample,
                  &((const struct piece *) b)->sample);
}

/* Neighbours become one while that is not too long, with what is between them: what
 * samples_prepare has cut grows together again.
 */
static void
merge (struct pieces *p)
{
  size_t n = 0;

  qsort (p->piece, p->n, sizeof *p->piece, compare_piece);
  for (size_t i = 0; i < p->n; i++) {
    struct piece *last = n > 0 ? &p->piece[n - 1] : NULL, next = p->piece[i];
    uint64_t end = next.sample.sector + next.sample.nsectors;

    if (last && last->sample.disk == next.sample.disk &&
        end <= last->sample.sector + PIECE) {
      if (end > last->sample.sector + last->sample.nsectors) {
        last->sample.nsectors = end - last->sample.sector;
        last->known = false;
      }
    }
    else
      p->piece[n++] = next;
  }
  p->n = n;
}

/* What is left between two that are near goes to the one or the other. */
static void
close_gaps (struct pieces *p)
{
  for (size_t i = 0; i + 1 < p->n; i++) {
    struct journal_sample *a = &p->piece[i].sample, *b = &p->piece[i + 1].sample;
    uint64_t end = a->sector + a->nsectors, gap, take;

    if (a->disk != b->disk || b->sector <= end || b->sector - end > PIECE)
      continue;
    gap = b->sector - end;
    take = MIN (gap, (uint64_t) PIECE - a->nsectors);
    if (take > 0) {
      a->nsectors += take;
      p->piece[i].known = false;
      gap -= take;
    }
    take = MIN (gap, (uint64_t) PIECE - b->nsectors);
    if (take > 0) {
      b->sector -= take;
      b->nsectors += take;
      p->piece[i + 1].known = false;
    }
  }
}

void
samples_update (struct journal *j, struct disk *disks, unsigned ndisks,
                const struct map_run *runs, size_t nruns)
{
  struct journal_sample list[JOURNAL_SAMPLES];
  unsigned n = journal_get_samples (j, list);
  struct pieces p;
  int r = pieces_init (&p);

  for (unsigned i = 0; i < n && r == 0; i++)
    r = add_rest (&p, &list[i], runs, nruns);
  if (r == 0)
    r = offer_runs (&p, disks, runs, nruns);
  if (r == -1)
    p.n = 0;
  else {
    merge (&p);
    close_gaps (&p);
  }
  settle (&p, j, disks, ndisks);
  free (p.piece);
}

/* --- holding the images against them --- */

const char *
samples_miss_text (const struct samples_miss *miss)
{
  return miss->later ? "of a later time than the journal, which does not know what was written out to it last: "
    "put the right one of them back" :
    "not what was written out there: another image, an older copy, or somebody wrote to it";
}

int
samples_check (struct journal *j, struct disk *disks, unsigned ndisks,
               struct samples_miss *miss)
{
  CLEANUP_FREE struct journal_sample *list = calloc (JOURNAL_SAMPLES, sizeof *list);
  CLEANUP_FREE void *mem = malloc (PIECE_BYTES);
  struct journal_state state;
  unsigned n;

  *miss = (struct samples_miss) { .disk = 0 };
  if (list == NULL || mem == NULL)
    return -1;
  journal_get_state (j, &state);
  /* A promoted disk is written to without the journal's knowing as soon as it is drained: not
   * when the record of that is durable.
   */
  if (!state.has_checkpoint ||
      (state.state == JOURNAL_PROMOTED && journal_backlog (j) == 0))
    return 1;
  n = journal_get_samples (j, list);
  for (unsigned i = 0; i < n; i++) {
    const struct journal_sample *s = &list[i];
    uint32_t crc;

    if (s->disk >= ndisks || disks[s->disk].backing == NULL || disks[s->disk].lost)
      continue;
    miss->disk = s->disk;
    miss->offset = s->sector * JOURNAL_SECTOR;
    if (read_crc (&disks[s->disk], s, mem, &crc) == -1)
      return -1;
    if (crc != s->crc)
      return 0;
  }
  return 1;
}
