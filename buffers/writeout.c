/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "buffers/writeout-impl.h"

/* Small enough to be made under the lock, large enough to grow in few steps. */
#define SEGMENT_BLOCKS 3072

static struct segment *
segment_new (void)
{
  struct segment *s = calloc (1, sizeof *s);

  if (s == NULL)
    return NULL;
  s->map = map_new (SEGMENT_BLOCKS);
  if (s->map == NULL) {
    free (s);
    errno = ENOMEM;
    return NULL;
  }
  return s;
}

struct writeout *
writeout_new (void)
{
  struct writeout *w = calloc (1, sizeof *w);

  if (w == NULL)
    return NULL;
  w->newest = w->end = segment_new ();
  if (w->newest == NULL) {
    free (w);
    errno = ENOMEM;
    return NULL;
  }
  return w;
}

void
writeout_free (struct writeout *w)
{
  struct epoch *e, *older;
  struct segment *s, *next;

  if (w == NULL)
    return;
  for (e = w->unmerged; e; e = older) {
    older = e->older;
    epoch_free (e);
  }
  for (s = w->newest; s; s = next) {
    next = s->older;
    map_free (s->map);
    free (s);
  }
  free (w);
}

void
writeout_set_limits (struct writeout *w, const struct writeout_limits *limits)
{
  w->limits = *limits;
}

/* The gathering segment holds checkpoint NUMBER whole. */
static void
completed (struct writeout *w, uint64_t number, uint64_t time, uint64_t n)
{
  struct segment *s = w->newest;

  if (s->last == 0)
    s->first_time = time;
  s->last = number;
  s->time = time;
  s->stat.checkpoints += n;
  w->merged = number;
}

/* Has the gathering segment come to one of the limits? */
static bool
is_full (const struct writeout *w)
{
  const struct writeout_limits *l = &w->limits;
  const struct segment *s = w->newest;

  return (l->checkpoints && s->stat.checkpoints >= l->checkpoints) ||
    (l->ns && s->time - s->first_time >= l->ns) ||
    (l->bytes && s->stat.bytes >= l->bytes);
}

/* Close the gathering segment if it is between two checkpoints and full.  One that cannot be
 * closed for want of memory goes on.
 */
static void
cut_if_full (struct writeout *w)
{
  if (!w->partial && w->newest->last != 0 &&
      writeout_segments (w) < WRITEOUT_SEGMENTS && is_full (w))
    (void) writeout_cut (w);
}

void
writeout_add (struct writeout *w, uint64_t number, uint64_t time, uint64_t n,
              struct epoch *epochs)
{
  assert (number > w->added || w->added == 0);
  w->added = number;
  if (epochs == NULL) {
    /* Nothing was written since the one before: it comes with that. */
    if (w->unmerged) {
      w->unmerged->checkpoint = number;
      w->unmerged->time = time;
      w->unmerged->checkpoints += n;
    }
    else {
      cut_if_full (w);
      completed (w, number, time, n);
    }
    return;
  }

  epochs->newer = NULL;
  for (struct epoch *e = epochs; ; e = e->older) {
    e->checkpoint = number;
    e->time = time;
    e->checkpoints = e == epochs ? n : 0;
    if (e->older == NULL) {
      e->older = w->unmerged;
      if (w->unmerged)
        w->unmerged->newer = e;
      else
        w->oldest = e;
      break;
    }
    e->older->newer = e;
  }
  w->unmerged = epochs;
}

int
writeout_merge (struct writeout *w, size_t max, struct epoch **done)
{
  struct epoch *e = w->oldest;
  int r;

  *done = NULL;
  if (e == NULL)
    return 0;
  cut_if_full (w);
  w->partial = true;
  r = map_merge (w->newest->map, e->map, max, &w->cursor);
  if (r != 0)
    return r;

  w->cursor = 0;
  w->oldest = e->newer;
  if (w->oldest)
    w->oldest->older = NULL;
  else
    w->unmerged = NULL;
  w->newest->stat.bytes += e->bytes;
  if (e->checkpoints > 0) {
    completed (w, e->checkpoint, e->time, e->checkpoints);
    w->partial = false;
  }
  e->newer = NULL;
  *done = e;
  return w->oldest != NULL;
}

uint64_t
writeout_merged (const struct writeout *w)
{
  return w->merged;
}

uint64_t
writeout_newest (const struct writeout *w)
{
  return w->added;
}

int
writeout_cut (struct writeout *w)
{
  struct segment *s;

  if (w->partial) {
    errno = EAGAIN;
    return -1;
  }
  if (w->newest->last == 0)
    return 0;
  s = segment_new ();
  if (s == NULL)
    return -1;
  w->newest->early = !is_full (w);
  s->older = w->newest;
  w->newest->newer = s;
  w->newest = s;
  return 0;
}

bool
writeout_may_cut (const struct writeout *w)
{
  unsigned n = 0;

  /* The gathering one, if it is full, is closed with the next checkpoint anyway. */
  for (const struct segment *s = w->newest->older; s; s = s->older)
    n += s->early;
  return w->newest->last == 0 || (writeout_segments (w) < WRITEOUT_SEGMENTS &&
                                  (n < WRITEOUT_EARLY || is_full (w)));
}

/* The oldest segment that is not draining; NULL: the only one drains. */
static struct segment *
oldest_waiting (const struct writeout *w)
{
  return w->draining ? w->end->newer : w->end;
}

bool
writeout_get_oldest (const struct writeout *w, struct writeout_oldest *oldest)
{
  const struct segment *s = oldest_waiting (w);

  if (s->last == 0)
    return false;
  *oldest = (struct writeout_oldest) { .last = s->last, .time = s->time };
  for (s = s->newer; s; s = s->newer)
    oldest->newer += s->stat.checkpoints;
  for (const struct epoch *e = w->unmerged; e; e = e->older)
    oldest->newer += e->checkpoints;
  return true;
}

uint64_t
writeout_boundary (const struct writeout *w, uint64_t number)
{
  for (const struct segment *s = w->newest->older; s; s = s->older)
    if (s->last <= number)
      return s->last;
  return 0;
}

const struct map *
writeout_begin (struct writeout *w, uint64_t *target)
{
  struct segment *s;

  *target = 0;
  if (w->draining) {
    errno = EBUSY;
    return NULL;
  }
  s = w->end;
  if (s == w->newest) {
    if (w->partial) {
      errno = EAGAIN;
      return NULL;
    }
    if (s->last == 0) {
      errno = ENOENT;
      return NULL;
    }
    if (writeout_cut (w) == -1)
      return NULL;
  }
  w->draining = true;
  *target = s->last;
  return s->map;
}

struct map *
writeout_end (struct writeout *w)
{
  struct segment *s = w->end;
  struct map *map = s->map;

  assert (w->draining && s->newer);
  w->draining = false;
  w->end = s->newer;
  w->end->older = NULL;
  free (s);
  return map;
}

const struct map *
writeout_resume (const struct writeout *w, uint64_t *target)
{
  *target = w->draining ? w->end->last : 0;
  return w->draining ? w->end->map : NULL;
}

unsigned
writeout_segments (const struct writeout *w)
{
  unsigned n = 0;

  for (const struct segment *s = w->newest; s; s = s->older)
    n++;
  return n;
}

bool
writeout_is_empty (const struct writeout *w)
{
  return w->unmerged == NULL && w->newest == w->end &&
    w->newest->last == 0 && map_is_empty (w->newest->map);
}

void
writeout_get_stat (const struct writeout *w, struct writeout_stat *stat)
{
  *stat = (struct writeout_stat) { 0, 0 };
  for (const struct segment *s = w->newest; s; s = s->older) {
    stat->bytes += s->stat.bytes;
    stat->checkpoints += s->stat.checkpoints;
  }
  for (const struct epoch *e = w->unmerged; e; e = e->older) {
    stat->bytes += e->bytes;
    stat->checkpoints += e->checkpoints;
  }
}
