/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking what is in the file against the crcs of its descriptors. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

int
checker_init (struct checker *c, struct journal *j)
{
  *c = (struct checker) { .j = j, .mem = aligned_blocks (JOURNAL_CHUNK) };
  return c->mem == NULL ? -1 : 0;
}

void
checker_free (struct checker *c)
{
  cleanup_free (&c->mem);
}

/* Images come packed in order of arrival: read ahead to the chunk's end. */
static int
checker_load (struct checker *c, uint32_t block, uint32_t n)
{
  unsigned i = block % JOURNAL_CHUNK_BLOCKS;

  if (c->kept && c->kept->chunk == chunk_of (block))
    return 0;
  c->kept = c->j->opening ? loaded_read_raw (c->j, chunk_of (block)) : NULL;
  if (c->kept)
    return 0;
  if (c->chunk == chunk_of (block) && c->from <= i)
    return 0;
  c->chunk = 0;
  if (file_read (c->j, c->mem + (size_t) i * JOURNAL_BLOCK,
                 JOURNAL_CHUNK - (size_t) i * JOURNAL_BLOCK,
                 block_offset (block)) == 0) {
    c->chunk = chunk_of (block);
    c->from = i;
    return 0;
  }
  /* A bad sector further on is none of this item's business. */
  return file_read (c->j, c->mem + (size_t) i * JOURNAL_BLOCK,
                    (size_t) n * JOURNAL_BLOCK, block_offset (block));
}

/* A table_item_fn: do the item's images verify? */
int
checker_item (void *checker, const struct table_item *item)
{
  struct checker *c = checker;

  if (item->nblocks == 0)
    return 0;
  if (loaded_has (c->j, item))
    goto good;
  if (checker_load (c, item->ext.block, item->nblocks) == -1) {
    damage_set (c->damage, "journal", block_offset (item->ext.block),
                c->checkpoint, "data cannot be read: %m");
    errno = EBADMSG;
    return -1;
  }
  for (uint32_t i = 0; i < item->nblocks; i++) {
    uint32_t block = item->ext.block + i;
    const uint8_t *p = (c->kept ? c->kept->mem : c->mem) + (size_t) (block % JOURNAL_CHUNK_BLOCKS) *
                       JOURNAL_BLOCK;

    if (crc32c (p, JOURNAL_BLOCK, 0) != table_item_crc (item, i)) {
      damage_set (c->damage, "journal", block_offset (block), c->checkpoint,
                  "data of disk %u at byte %llu is not what was committed",
                  item->ext.disk,
                  (unsigned long long) (item->ext.sector / 8 + i) *
                  JOURNAL_BLOCK);
      errno = EBADMSG;
      return -1;
    }
  }

 good:
  c->done += (uint64_t) item->nblocks * JOURNAL_BLOCK;
  if (c->progress && c->done > c->told)
    c->progress (c->opaque, MIN (c->done, c->total), c->total);
  return 0;
}

int
commits_copy (struct journal *j, uint64_t from, uint64_t upto,
              struct commit **list, size_t *n, struct journal_damage *damage)
{
  SCOPED_LOCK (&j->lock);

  *n = 0;
  *list = NULL;
  if (from < j->hole_upto && upto > j->hole_from) {
    if (damage)
      *damage = j->damage;
    errno = EBADMSG;
    return -1;
  }
  *list = calloc (MAX (j->log.ncommits, (size_t) 1), sizeof **list);
  if (*list == NULL)
    return -1;
  for (size_t i = 0; i < j->log.ncommits; i++) {
    const struct commit *c = commits_at (j, i);

    if (c->epoch > from && c->epoch <= upto) {
      (*list)[*n] = *c;
      (*list)[(*n)++].label = NULL;
    }
  }
  return 0;
}

int
journal_verify (struct journal *j, uint64_t from, uint64_t upto,
                journal_progress_fn progress, void *opaque,
                struct journal_damage *damage)
{
  CLEANUP_FREE struct commit *list = NULL;
  struct checker check;
  size_t n;
  int r = 0;

  if (commits_copy (j, from, upto, &list, &n, damage) == -1 ||
      checker_init (&check, j) == -1)
    return -1;
  check.damage = damage;
  check.progress = progress;
  check.opaque = opaque;
  for (size_t i = 0; i < n; i++)
    check.total += list[i].bytes;
  preload (j, from, upto, progress, opaque, check.total);
  check.told = MIN (j->load_room * (uint64_t) JOURNAL_CHUNK, check.total);
  for (size_t i = 0; i < n && r == 0; i++) {
    check.checkpoint = list[i].epoch;
    r = table_walk_record (j, list[i].seq, list[i].nparts, list[i].epoch,
                           checker_item, &check, damage);
  }
  if (r == 0 && progress)
    progress (opaque, check.total, check.total);
  checker_free (&check);
  return r;
}

/* --- Checkpoints --- */

typedef bool (*checkpoint_fn) (void *opaque, const struct journal_checkpoint *cp);

/* Call FN for each, oldest first, until it returns false. */
static void
each_checkpoint_locked (struct journal *j, checkpoint_fn fn, void *opaque)
{
  const struct journal_state *s = &j->state;
  /* Tables are needed from the watermark on: behind one that is damaged nothing
   * can be recovered to.
   */
  uint64_t end = j->damaged && j->damage.checkpoint != 0 ? j->damage.checkpoint : UINT64_MAX;
  uint64_t from = s->watermark.id;

  ASSERT_LOCKED (j);
  if (!s->has_checkpoint || j->lost)
    return;
  if (s->state == JOURNAL_PROMOTED) {
    /* Commits behind it are void, or flushes of its own, as the watermark may be. */
    if (s->checkpoint.id < end)
      (void) fn (opaque, &s->checkpoint);
    return;
  }
  if (s->target > from)
    from = s->target - 1;       /* the target itself is the first */
  else if (!fn (opaque, &s->watermark))
    return;
  for (size_t i = 0; i < j->log.ncommits; i++) {
    const struct commit *c = commits_at (j, i);
    struct journal_checkpoint cp = {
      .id = c->epoch, .time = c->time, .extents = c->extents, .bytes = c->bytes };

    if (c->epoch >= end)
      return;
    if (c->kind != JOURNAL_REC_COMMIT || c->epoch <= from)
      continue;
    if (c->label)
      strncpy (cp.label, c->label, JOURNAL_LABEL_MAX);
    if (!fn (opaque, &cp))
      return;
  }
}

struct gather {
  struct journal_checkpoint *list;
  size_t n, max;
};

static bool
gather (void *opaque, const struct journal_checkpoint *cp)
{
  struct gather *g = opaque;

  if (g->n < g->max)
    g->list[g->n] = *cp;
  g->n++;
  return true;
}

size_t
journal_backlog (struct journal *j)
{
  SCOPED_LOCK (&j->lock);
  size_t n = 0;

  for (size_t i = 0; i < j->log.ncommits; i++)
    n += commits_at (j, i)->epoch > j->state.watermark.id;
  return n;
}

uint64_t
journal_newest_record (struct journal *j)
{
  SCOPED_LOCK (&j->lock);

  return j->log.seq;
}

size_t
journal_checkpoints (struct journal *j, struct journal_checkpoint *list,
                     size_t max)
{
  struct gather g = { list, 0, max };
  SCOPED_LOCK (&j->lock);

  each_checkpoint_locked (j, gather, &g);
  return g.n;
}

struct search {
  uint64_t id;
  struct journal_checkpoint *found;
  bool done;
};

static bool
search (void *opaque, const struct journal_checkpoint *cp)
{
  struct search *s = opaque;

  if (cp->id != s->id)
    return true;
  *s->found = *cp;
  s->done = true;
  return false;
}

bool
journal_find_checkpoint (struct journal *j, uint64_t id,
                         struct journal_checkpoint *cp)
{
  struct search s = { id, cp, false };
  SCOPED_LOCK (&j->lock);

  each_checkpoint_locked (j, search, &s);
  return s.done;
}

struct newest {
  uint64_t id;
  bool any;
};

static bool
keep_newest (void *opaque, const struct journal_checkpoint *cp)
{
  *(struct newest *) opaque = (struct newest) { cp->id, true };
  return true;
}

bool
journal_newest_checkpoint (struct journal *j, uint64_t *id)
{
  struct newest newest = { 0, false };
  SCOPED_LOCK (&j->lock);

  each_checkpoint_locked (j, keep_newest, &newest);
  *id = newest.id;
  return newest.any;
}
