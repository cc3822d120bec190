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
        chunk->min_epoch <= upto && chunk->buffer == NO_BUFFER && chunk->loaded == NULL)
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

void
preload (struct journal *j, uint64_t from, uint64_t upto,
         journal_progress_fn progress, void *opaque, uint64_t total)
{
  struct preload p = { .j = j };
  pthread_t thread[THREADS_MAX];
  unsigned nthreads = 0;
  size_t room = j->load_room;

  if (room == 0 || find (&p, from, upto) == -1)
    return;
  if (p.n > room) {
    /* The oldest first: that is what is written first. */
    qsort (p.list, p.n, sizeof *p.list, by_epoch);
    p.n = room;
  }
  qsort (p.list, p.n, sizeof *p.list, by_chunk);
  while (nthreads + 1 < MIN (j->load_threads, THREADS_MAX) && nthreads + 1 < p.n &&
         pthread_create (&thread[nthreads], NULL, load_thread, &p) == 0)
    nthreads++;
  while (load_one (&p))
    if (progress)
      progress (opaque, MIN (__atomic_load_n (&p.done, __ATOMIC_RELAXED) * (uint64_t) JOURNAL_CHUNK, total),
                total);
  for (unsigned i = 0; i < nthreads; i++)
    (void) pthread_join (thread[i], NULL);
  free (p.list);
}
