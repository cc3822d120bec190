/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery's first look at the data: chunks are read whole, checked, and kept for the writing that follows,
 * as many as there is room for.  One thread reads while another computes checksums.
 *
 * What does not verify, or cannot be read, is nobody's business here: who needs it looks again, and says so.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "journal/internal.h"

#define THREADS_MAX 4u

struct wanted {
  uint32_t chunk;
  uint64_t epoch;               /* the first that needs it */
};

struct preload {
  struct journal *j;
  struct wanted *list;
  size_t n;
  bool raw;
  size_t next, done;            /* atomic */
};

static int
by_epoch (const void *a, const void *b)
{
  const struct wanted *x = a, *y = b;

  return x->epoch < y->epoch ? -1 : x->epoch > y->epoch;
}

static int
by_chunk (const void *a, const void *b)
{
  const struct wanted *x = a, *y = b;

  return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

/* The data chunks that commits in (FROM, UPTO] may need and that are not in RAM. */
static int
find (struct preload *p, uint64_t from, uint64_t upto)
{
  struct journal *j = p->j;
  SCOPED_LOCK (&j->lock);
  size_t cap = 0;

  for (uint32_t c = 1; c < j->nchunks; c++)
    cap += j->chunks[c].kind == CHUNK_DATA;
  p->list = malloc (MAX (cap, (size_t) 1) * sizeof *p->list);
  if (p->list == NULL)
    return -1;
  for (uint32_t c = 1; c < j->nchunks; c++) {
    const struct chunk *chunk = &j->chunks[c];

    if (chunk->kind == CHUNK_DATA && chunk->min_epoch != 0 && chunk->max_epoch > from &&
        chunk->min_epoch <= upto && chunk->buffer == NO_BUFFER && (chunk->loaded == NULL || chunk->loaded->raw))
      p->list[p->n++] = (struct wanted) { .chunk = c, .epoch = chunk->min_epoch };
  }
  return 0;
}

static bool
load_one (struct preload *p)
{
  size_t i = __atomic_fetch_add (&p->next, 1, __ATOMIC_RELAXED);
  uint32_t block, n = 1;

  if (i >= p->n)
    return false;
  if (p->raw) {
    (void) loaded_read_raw (p->j, p->list[i].chunk);
    return true;
  }
  block = p->list[i].chunk * JOURNAL_CHUNK_BLOCKS;
  /* NULL also where only the first image is bad: the others are kept all the same. */
  if (journal_pin (p->j, block, &n, true, NULL))
    journal_unpin (p->j, block);
  __atomic_fetch_add (&p->done, 1, __ATOMIC_RELAXED);
  return true;
}

static void *
load_thread (void *preload)
{
  while (load_one (preload))
    ;
  return NULL;
}

/* Up to room for them: all of the list. */
static void
load_all (struct preload *p, journal_progress_fn progress, void *opaque,
          uint64_t total)
{
  pthread_t thread[THREADS_MAX];
  unsigned n = 0;

  qsort (p->list, p->n, sizeof *p->list, by_chunk);
  while (n + 1 < MIN (p->j->load_threads, THREADS_MAX) && n + 1 < p->n &&
         pthread_create (&thread[n], NULL, load_thread, p) == 0)
    n++;
  while (load_one (p))
    if (progress)
      progress (opaque, MIN (__atomic_load_n (&p->done, __ATOMIC_RELAXED) * (uint64_t) JOURNAL_CHUNK, total),
                total);
  for (unsigned i = 0; i < n; i++)
    (void) pthread_join (thread[i], NULL);
}

void
preload (struct journal *j, uint64_t from, uint64_t upto,
         journal_progress_fn progress, void *opaque, uint64_t total)
{
  struct preload p = { .j = j };

  if (j->load_room == 0 || find (&p, from, upto) == -1)
    return;
  if (p.n > j->load_room) {
    /* The oldest first: that is what is written first. */
    qsort (p.list, p.n, sizeof *p.list, by_epoch);
    p.n = j->load_room;
  }
  load_all (&p, progress, opaque, total);
  free (p.list);
}

/* A table_item_fn. */
static int
note_chunk (void *preload, const struct table_item *item)
{
  struct preload *p = preload;
  uint32_t c = chunk_of (item->ext.block);

  if (item->nblocks == 0 || (p->n > 0 && p->list[p->n - 1].chunk == c))
    return 0;
  if (p->n == p->j->load_room)
    return -1;                  /* enough */
  if ((p->n & (p->n - 1)) == 0) {       /* room doubles */
    struct wanted *more = realloc (p->list, (p->n ? 2 * p->n : 1) * sizeof *more);

    if (more == NULL)
      return -1;
    p->list = more;
  }
  p->list[p->n++] = (struct wanted) { .chunk = c };
  return 0;
}

void
preload_raw (struct journal *j, uint64_t seq, uint32_t nparts)
{
  struct preload p = { .j = j, .raw = true };

  if (!j->opening)
    return;
  /* A table that is not whole is told of by who walks it next. */
  (void) table_walk_record (j, seq, nparts, 0, note_chunk, &p, NULL);
  if (p.n > 0)
    load_all (&p, NULL, NULL, 0);
  free (p.list);
}
