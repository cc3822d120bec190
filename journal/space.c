/* SPDX-License-Identifier: BSD-3-Clause */
/* Who uses which chunk.  Kept in RAM only: at open it is worked out from what
 * the live records refer to, so there is nothing on disk that could disagree.
 *
 * Free chunks that were written before come first, oldest first: overwriting them costs
 * half of what writing to a virgin one does.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/host.h"
#include "journal/internal.h"

int
space_init (struct journal *j)
{
  j->nchunks = j->config.size / JOURNAL_CHUNK;
  j->chunks = calloc (j->nchunks, sizeof *j->chunks);
  if (j->chunks == NULL)
    return -1;
  for (uint32_t c = 0; c < j->nchunks; c++)
    j->chunks[c].buffer = NO_BUFFER;
  j->chunks[0].kind = CHUNK_SUPER;
  return 0;
}

void
space_free (struct journal *j)
{
  for (uint32_t c = 0; j->chunks && c < j->nchunks; c++)
    free (j->chunks[c].live);
  /* What was loaded is of the chunks as they were; nobody has it. */
  for (struct loaded *l = j->loaded; l; l = l->next)
    l->chunk = 0;
  free (j->chunks);
  j->chunks = NULL;
  while (j->live_pool) {
    struct live *l = j->live_pool;

    j->live_pool = l->next;
    free (l);
  }
}

/* Lock held, or alone. */
struct live *
live_get (struct journal *j)
{
  struct live *l = j->live_pool;

  if (l)
    j->live_pool = l->next;
  else if ((l = malloc (sizeof *l)) == NULL)
    return NULL;
  l->pending = l->known = (struct bits) { { 0 } };
  l->next = NULL;
  return l;
}

static void
live_put (struct journal *j, struct live *l)
{
  if (l) {
    l->next = j->live_pool;
    j->live_pool = l;
  }
}

static void
recycle (struct journal *j, uint32_t c)
{
  j->chunks[c].next = 0;
  if (j->free_head == 0)
    j->free_head = c;
  else
    j->chunks[j->free_tail].next = c;
  j->free_tail = c;
  j->nrecycled++;
}

/* Everything that was not claimed is free.  When a table could not be read
 * nobody knows what it claims: then only virgin chunks are.
 */
void
space_settle (struct journal *j)
{
  uint32_t virgin = MAX (j->state.zero_filled, UINT64_C (1));

  virgin = MIN (virgin, j->nchunks);
  for (uint32_t c = virgin; c < j->nchunks; c++)
    if (j->chunks[c].kind != CHUNK_FREE)
      virgin = c + 1;
  j->virgin = virgin;
  j->free_head = j->free_tail = j->nrecycled = 0;
  for (uint32_t c = 1; c < virgin && !j->distrust; c++)
    if (j->chunks[c].kind == CHUNK_FREE)
      recycle (j, c);
}

void
space_trust_locked (struct journal *j)
{
  if (!j->distrust)
    return;
  j->distrust = false;
  for (uint32_t c = 1; c < j->virgin; c++)
    if (j->chunks[c].kind == CHUNK_FREE)
      recycle (j, c);
}

uint32_t
chunks_free_locked (struct journal *j)
{
  return j->nrecycled + (j->nchunks - j->virgin);
}

uint32_t
chunk_alloc_locked (struct journal *j, enum chunk_kind kind, uint32_t keep)
{
  uint32_t c;

  ASSERT_LOCKED (j);
  if (chunks_free_locked (j) <= keep)
    return 0;
  if (j->free_head != 0) {
    c = j->free_head;
    j->free_head = j->chunks[c].next;
    j->nrecycled--;
  }
  else
    c = j->virgin++;
  j->chunks[c] = (struct chunk) { .kind = kind, .buffer = NO_BUFFER };
  if (kind == CHUNK_DATA) {
    j->chunks[c].live = live_get (j);
    if (j->chunks[c].live == NULL) {
      j->chunks[c].kind = CHUNK_FREE;
      recycle (j, c);
      return 0;
    }
  }
  if (j->running && j->nrecycled < ZERO_AHEAD_MAX / 2 &&
      j->virgin < j->nchunks)
    pthread_cond_signal (&j->zero_cond);
  return c;
}

void
chunk_free_locked (struct journal *j, uint32_t c)
{
  struct chunk *chunk = &j->chunks[c];

  ASSERT_LOCKED (j);
  assert (chunk->kind != CHUNK_FREE && chunk->kind != CHUNK_SUPER);
  if (chunk->buffer != NO_BUFFER)
    buffer_release_locked (j, chunk->buffer);
  loaded_drop_locked (j, c);
  live_put (j, chunk->live);
  *chunk = (struct chunk) { .kind = CHUNK_FREE, .buffer = NO_BUFFER };
  if (!j->distrust)
    recycle (j, c);
}

void
chunk_try_free_locked (struct journal *j, uint32_t c)
{
  struct chunk *chunk = &j->chunks[c];

  ASSERT_LOCKED (j);
  if ((chunk->kind != CHUNK_DATA && chunk->kind != CHUNK_TABLE) ||
      !chunk->closed || chunk->stream || chunk->max_epoch > j->forgotten)
    return;
  if (chunk->kind == CHUNK_DATA && !bits_empty (&chunk->live->pending))
    return;
  if (chunk->buffer != NO_BUFFER) {
    const struct buffer *b = &j->buffers[chunk->buffer];

    if (b->pins > 0 || !bits_empty (&b->pushing))
      return;                   /* whoever holds it comes back here */
  }
  if (loaded_pinned_locked (j, c))
    return;
  chunk_free_locked (j, c);
}

int
chunk_claim (struct journal *j, uint32_t c, enum chunk_kind kind,
             uint64_t epoch)
{
  struct chunk *chunk = &j->chunks[c];

  if (c == 0 || c >= j->nchunks ||
      (chunk->kind != CHUNK_FREE && chunk->kind != kind)) {
    errno = EBADMSG;
    return -1;
  }
  if (chunk->kind == CHUNK_FREE) {
    chunk->kind = kind;
    chunk->closed = true;
    if (kind == CHUNK_DATA && (chunk->live = live_get (j)) == NULL)
      return -1;
  }
  if (chunk->min_epoch == 0 || epoch < chunk->min_epoch)
    chunk->min_epoch = epoch;
  chunk->max_epoch = MAX (chunk->max_epoch, epoch);
  return 0;
}

/* Chunks are looked at in slices, so that nobody waits for a scan of them all. */
#define SLICE 1024u

int
journal_forget (struct journal *j, uint64_t epoch)
{
  {
    SCOPED_LOCK (&j->lock);
    if (j->failed) {
      errno = EIO;
      return -1;
    }
    j->forgotten = MAX (j->forgotten, epoch);
    while (j->log.ncommits > 0 && commits_at (j, 0)->epoch <= j->forgotten)
      commits_drop_oldest (j);
    if (j->forgotten >= j->distrust_upto)
      space_trust_locked (j);
  }
  for (uint32_t from = 1; from < j->nchunks; from += SLICE) {
    SCOPED_LOCK (&j->lock);
    uint32_t to = MIN (j->nchunks, from + SLICE);

    for (uint32_t c = from; c < to && c < j->virgin; c++)
      chunk_try_free_locked (j, c);
  }
  pthread_cond_broadcast (&j->buffer_cond);
  return log_recycle (j);
}

int
journal_discard (struct journal *j)
{
  uint64_t committed;

  {
    SCOPED_LOCK (&j->lock);
    committed = newest_committed (j);
    tables_drop_locked (j, UINT64_MAX, 0, false);
    j->log.saved_seq = 0;
  }
  for (uint32_t from = 1; from < j->nchunks; from += SLICE) {
    SCOPED_LOCK (&j->lock);
    uint32_t to = MIN (j->nchunks, from + SLICE);

    for (uint32_t c = from; c < to && c < j->virgin; c++) {
      struct chunk *chunk = &j->chunks[c];

      if ((chunk->kind != CHUNK_DATA && chunk->kind != CHUNK_TABLE) ||
          chunk->max_epoch <= committed)
        continue;
      if (chunk->min_epoch > committed)
        chunk->min_epoch = chunk->max_epoch = 0;
      else
        chunk->max_epoch = committed;
      chunk_try_free_locked (j, c);
    }
  }
  pthread_cond_broadcast (&j->buffer_cond);
  return log_recycle (j);
}

void
journal_get_usage (struct journal *j, struct journal_usage *usage)
{
  SCOPED_LOCK (&j->lock);
  uint32_t free_chunks = chunks_free_locked (j);
  uint64_t dirty = 0;

  usage->size = j->config.size;
  usage->used = (uint64_t) (j->nchunks - free_chunks) * JOURNAL_CHUNK;
  usage->available = free_chunks <= KEEP_FOR_TABLES ? 0 :
    (uint64_t) (free_chunks - KEEP_FOR_TABLES) * JOURNAL_CHUNK;
  for (unsigned b = 0; b < j->nbuffers; b++) {
    const struct bits todo = bits_minus (&j->buffers[b].meta->filled,
                                         &j->buffers[b].meta->pushed);

    if (j->buffers[b].chunk != 0 && j->dirty[b / 64] >> (b % 64) & 1)
      dirty += bits_count (&todo);
  }
  if (j->open_chunk != 0)
    usage->available += (uint64_t) JOURNAL_BLOCK *
      (JOURNAL_CHUNK_BLOCKS -
       j->buffers[j->chunks[j->open_chunk].buffer].bump);
  usage->buffer_size = (uint64_t) j->nbuffers * JOURNAL_CHUNK;
  usage->buffer_used = dirty * JOURNAL_BLOCK;
  usage->buffer_asked = j->asked * JOURNAL_CHUNK;
  usage->buffer_error = j->nbuffers < j->asked ? j->short_error : 0;
  usage->buffer_ns = j->start_ns;
  usage->held = held_share (&j->held, host_monotonic_ns ());
}
