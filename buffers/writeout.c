/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "buffers/writeout-impl.h"

/* Small enough to be made under the lock, large enough to grow in few steps. */
#define GATHER_BLOCKS 3072

struct writeout *
writeout_new (void)
{
  struct writeout *w = calloc (1, sizeof *w);

  if (w == NULL)
    return NULL;
  w->gathering = map_new (GATHER_BLOCKS);
  if (w->gathering == NULL) {
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

  if (w == NULL)
    return;
  for (e = w->unmerged; e; e = older) {
    older = e->older;
    epoch_free (e);
  }
  map_free (w->gathering);
  map_free (w->draining);
  free (w);
}

static void
add_stat (struct writeout_stat *to, const struct writeout_stat *from)
{
  to->bytes += from->bytes;
  to->checkpoints += from->checkpoints;
}

void
writeout_add (struct writeout *w, uint64_t number, struct epoch *epochs)
{
  assert (number > w->newest || w->newest == 0);
  w->newest = number;
  if (epochs == NULL) {
    /* Nothing was written since the one before: it comes with that. */
    if (w->unmerged) {
      w->unmerged->checkpoint = number;
      w->unmerged->checkpoints++;
    }
    else {
      w->merged = number;
      w->gathered.checkpoints++;
    }
    return;
  }

  epochs->newer = NULL;
  for (struct epoch *e = epochs; ; e = e->older) {
    e->checkpoint = number;
    e->checkpoints = e == epochs;
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
  w->partial = true;
  r = map_merge (w->gathering, e->map, max, &w->cursor);
  if (r != 0)
    return r;

  w->cursor = 0;
  w->oldest = e->newer;
  if (w->oldest)
    w->oldest->older = NULL;
  else
    w->unmerged = NULL;
  w->gathered.bytes += e->bytes;
  if (e->checkpoints > 0) {
    w->gathered.checkpoints += e->checkpoints;
    w->merged = e->checkpoint;
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
  return w->newest;
}

const struct map *
writeout_begin (struct writeout *w, uint64_t *target)
{
  struct map *map;

  *target = 0;
  if (w->draining) {
    errno = EBUSY;
    return NULL;
  }
  if (w->partial) {
    errno = EAGAIN;
    return NULL;
  }
  if (w->gathered.checkpoints == 0) {
    errno = ENOENT;
    return NULL;
  }
  map = map_new (GATHER_BLOCKS);
  if (map == NULL)
    return NULL;
  w->draining = w->gathering;
  w->drained = w->gathered;
  w->gathering = map;
  w->gathered = (struct writeout_stat) { 0, 0 };
  w->target = *target = w->merged;
  return w->draining;
}

const struct map *
writeout_resume (const struct writeout *w, uint64_t *target)
{
  *target = w->draining ? w->target : 0;
  return w->draining;
}

struct map *
writeout_end (struct writeout *w)
{
  struct map *map = w->draining;

  assert (map != NULL);
  w->draining = NULL;
  w->drained = (struct writeout_stat) { 0, 0 };
  return map;
}

bool
writeout_is_empty (const struct writeout *w)
{
  return w->unmerged == NULL && w->draining == NULL &&
    w->gathered.checkpoints == 0 && map_is_empty (w->gathering);
}

void
writeout_get_stat (const struct writeout *w, struct writeout_stat *stat)
{
  *stat = w->gathered;
  add_stat (stat, &w->drained);
  for (const struct epoch *e = w->unmerged; e; e = e->older) {
    stat->bytes += e->bytes;
    stat->checkpoints += e->checkpoints;
  }
}
