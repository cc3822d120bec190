/* SPDX-License-Identifier: BSD-3-Clause */
/* Going through the extents of epochs again, in the order they were written. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "journal/internal.h"

struct replay {
  journal_extent_fn fn;
  void *opaque;
  uint64_t commit;              /* the epoch to name; 0: each extent's own */
  uint64_t after;               /* leave out epochs up to here */
};

static int
replay_item (void *opaque, const struct table_item *item)
{
  const struct replay *r = opaque;

  if (item->epoch <= r->after)
    return 0;
  return r->fn (r->opaque, r->commit ? r->commit : item->epoch, &item->ext);
}

int
journal_replay (struct journal *j, uint64_t from, uint64_t upto,
                journal_extent_fn fn, void *opaque,
                struct journal_damage *damage)
{
  CLEANUP_FREE struct commit *list = NULL;
  size_t n;

  if (commits_copy (j, from, upto, &list, &n, damage) == -1)
    return -1;
  for (size_t i = 0; i < n; i++) {
    struct replay r = { .fn = fn, .opaque = opaque, .commit = list[i].epoch };

    if (table_walk_record (j, list[i].seq, list[i].nparts, list[i].epoch,
                           replay_item, &r, damage) == -1)
      return -1;
  }
  return 0;
}


/* --- Uncommitted epochs --- */

/* The table stream of this process, a piece at a time. */
static int
walk_stream (struct journal *j, struct replay *r, struct journal_damage *damage)
{
  struct sweep s = { .first = 0 };
  CLEANUP_FREE struct format_run *runs = NULL;
  CLEANUP_FREE uint8_t *mem = NULL;
  struct table_walk walk = { .j = j, .fn = replay_item, .opaque = r };
  int ret = 0;

  sweep_gather (j, UINT64_MAX, &s);
  ret = sweep_runs (j, &s);
  runs = s.runs;
  walk.first_epoch = s.first;
  walk.epoch = s.last;
  for (size_t i = 0; i < s.nruns && ret == 0; i++) {
    const uint8_t *p;
    bool pinned;
    size_t offset;

    p = sweep_run_get (j, &s, i, &mem, &pinned);
    if (p == NULL)
      return -1;
    ret = table_walk_bytes (&walk, p, get32 (s.runs[i].bytes), false, &offset);
    if (ret == -1 && errno == EBADMSG && walk.malformed)
      damage_set (damage, "journal",
                  block_offset (get32 (s.runs[i].block)) + offset, 0,
                  "a table descriptor does not verify");
    if (pinned)
      journal_unpin (j, get32 (s.runs[i].block));
  }
  return ret;
}

int
journal_replay_uncommitted (struct journal *j, journal_extent_fn fn,
                            void *opaque, uint64_t *open_epoch,
                            struct journal_damage *damage)
{
  struct replay r = { .fn = fn, .opaque = opaque };
  uint64_t saved;
  uint32_t nparts;

  {
    SCOPED_LOCK (&j->lock);
    r.after = newest_settled (j);
    *open_epoch = j->state.epoch;
    if (j->region)
      *open_epoch = MAX (*open_epoch, j->region->open_epoch);
    saved = j->log.saved_seq;
    nparts = j->log.saved_nparts;
  }
  if (j->region)
    return walk_stream (j, &r, damage);
  if (saved == 0)
    return 0;
  return table_walk_record (j, saved, nparts, 0, replay_item, &r, damage);
}
