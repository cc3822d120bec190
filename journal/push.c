/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing staging buffers to the journal file.  A block is pushed once: when
 * it is filled, by whoever comes first, a pushing thread that takes whole closed
 * chunks, a writer that needs a buffer, or a commit that needs the block.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "journal/internal.h"

/* So that several hands share what one commit needs. */
#define PIECE_BLOCKS 64u

/* Nothing may be believed to be on disk any longer. */
void
poison_locked (struct journal *j, int error)
{
  ASSERT_LOCKED (j);
  if (j->failed == 0)
    j->failed = error ? error : EIO;
  /* From here on writes are refused: what the region holds is no longer the
   * whole of what the primary sent, and no other server may go on with it.
   */
  if (j->region)
    __atomic_store_n (&j->region->instance, STAGING_VOID, __ATOMIC_SEQ_CST);
  pthread_cond_broadcast (&j->buffer_cond);
  pthread_cond_broadcast (&j->turn_cond);
  pthread_cond_broadcast (&j->work_cond);
}

static bool
is_complete_locked (struct journal *j, const struct buffer *b)
{
  struct bits all = { { 0 } };

  bits_set (&all, 0, b->bump);
  return b->chunk != 0 && j->chunks[b->chunk].closed &&
         bits_within (&all, &b->meta->filled);
}

static struct bits
todo_locked (const struct buffer *b)
{
  struct bits done = bits_or (&b->meta->pushed, &b->pushing);

  return bits_minus (&b->meta->filled, &done);
}

/* Does buffer N have something to push before anybody needs it? */
static bool
is_worth_it_locked (struct journal *j, const struct buffer *b)
{
  struct bits todo;

  if (is_complete_locked (j, b))
    return true;
  if (!j->running || b->chunk == 0 ||
      j->chunks[b->chunk].kind != CHUNK_DATA)
    return false;
  todo = todo_locked (b);
  return bits_count (&todo) >= PIECE_BLOCKS;
}

/* Queue buffer N for the threads: when its chunk is closed and wholly filled,
 * and sooner when a fair piece of it is, so that little is left for a commit.
 */
bool
push_ready_locked (struct journal *j, int n)
{
  struct buffer *b = &j->buffers[n];

  ASSERT_LOCKED (j);
  if (b->queued || !is_worth_it_locked (j, b))
    return false;
  b->queued = true;
  b->next_ready = NO_BUFFER;
  if (j->ready_tail == NO_BUFFER)
    j->ready_head = n;
  else
    j->buffers[j->ready_tail].next_ready = n;
  j->ready_tail = n;
  return true;
}

void
push_wake (struct journal *j)
{
  /* Without threads it is those who wait for a buffer that push. */
  pthread_cond_signal (&j->work_cond);
  pthread_cond_broadcast (&j->buffer_cond);
}

/* Push the blocks TODO of buffer N.  Releases the lock. */
static void
push_blocks_locked (struct journal *j, int n, const struct bits *todo)
{
  struct buffer *b = &j->buffers[n];
  uint32_t c = b->chunk;
  unsigned i = 0, count;
  int error = 0;

  b->pushing = bits_or (&b->pushing, todo);
  pthread_mutex_unlock (&j->lock);
  for (; (count = bits_run (todo, &i)) > 0; i += count) {
    if (file_write (j, b->mem + (size_t) i * JOURNAL_BLOCK,
                    (size_t) count * JOURNAL_BLOCK,
                    block_offset ((uint64_t) c * JOURNAL_CHUNK_BLOCKS + i))
        == -1) {
      error = errno;
      break;
    }
  }
  pthread_mutex_lock (&j->lock);
  b->pushing = bits_minus (&b->pushing, todo);
  if (error)
    poison_locked (j, error);
  else
    b->meta->pushed = bits_or (&b->meta->pushed, todo);
  if (bits_within (&b->meta->filled, &b->meta->pushed))
    j->dirty[n / 64] &= ~(UINT64_C (1) << (n % 64));
  chunk_try_free_locked (j, c);
  /* Who is first in line may be pushing himself. */
  if (j->line)
    (void) line_serve_locked (j);
  pthread_cond_broadcast (&j->buffer_cond);
}

/* --- For a commit --- */

/* What is needed of buffer N and not on disk; *TODO: and in nobody's hands. */
static bool
is_needed_locked (struct journal *j, unsigned n, struct bits *todo)
{
  const struct buffer *b = &j->buffers[n];
  struct bits missing = bits_minus (&j->need[n], &b->meta->pushed);

  /* The chunk may have been discarded, and the buffer bound to another. */
  missing = bits_and (&missing, &b->meta->filled);
  if (b->chunk == 0)
    missing = (struct bits) { { 0 } };
  *todo = bits_minus (&missing, &b->pushing);
  j->need[n] = missing;
  return !bits_empty (&missing);
}

/* Leave no more than PIECE_BLOCKS of TODO. */
static void
cut_piece (struct bits *todo)
{
  unsigned i = 0, count, left = PIECE_BLOCKS;

  for (; (count = bits_run (todo, &i)) > 0; i += count) {
    unsigned take = MIN (count, left);

    bits_clear (todo, i + take, count - take);
    left -= take;
  }
}

/* Push a piece of what a commit needs.  1; 0 when the rest is in others'
 * hands; -1 when there is no rest.  Releases the lock when it returns 1.
 */
static int
push_needed_locked (struct journal *j)
{
  int r = -1;

  ASSERT_LOCKED (j);
  for (unsigned i = 0; i < j->nneeded; ) {
    unsigned n = j->needed[i];
    struct bits todo;

    if (!is_needed_locked (j, n, &todo)) {
      j->needed[i] = j->needed[--j->nneeded];
      continue;
    }
    if (!bits_empty (&todo)) {
      if (j->running)
        cut_piece (&todo);
      push_blocks_locked (j, n, &todo);
      return 1;
    }
    r = 0;
    i++;
  }
  return r;
}

/* Does buffer B hold something of an epoch up to EPOCH?  What is published later belongs to a later one. */
static bool
is_of_epoch_locked (struct journal *j, const struct buffer *b, uint64_t epoch)
{
  const struct chunk *c = &j->chunks[b->chunk];

  return c->kind != CHUNK_DATA || (c->min_epoch != 0 && c->min_epoch <= epoch);
}

/* Begin to push the data of epochs up to EPOCH, all of them sealed or nobody writing, as far as it is
 * filled (TABLES: tables too): whoever pushes helps.  What only newer ones need is not waited
 * for.  Turn.  To be followed by push_end.
 */
void
push_begin (struct journal *j, uint64_t epoch, bool tables)
{
  SCOPED_LOCK (&j->lock);

  j->nneeded = 0;
  for (unsigned w = 0; w <= j->nbuffers / 64; w++) {
    for (uint64_t bits = j->dirty[w]; bits != 0; bits &= bits - 1) {
      unsigned n = w * 64 + __builtin_ctzll (bits);
      const struct buffer *b = &j->buffers[n];

      if (b->chunk == 0 || !is_of_epoch_locked (j, b, epoch) ||
          (!tables && j->chunks[b->chunk].kind == CHUNK_TABLE))
        continue;
      j->need[n] = bits_minus (&b->meta->filled, &b->meta->pushed);
      j->needed[j->nneeded++] = n;
    }
  }
  if (j->nneeded > 0 && j->running)
    pthread_cond_broadcast (&j->work_cond);
}

/* Help, and wait until it is all on its way to the disk.  -1: EIO. */
int
push_end (struct journal *j)
{
  SCOPED_LOCK (&j->lock);
  int r;

  while (j->failed == 0 && (r = push_needed_locked (j)) != -1)
    if (r == 0)
      pthread_cond_wait (&j->buffer_cond, &j->lock);
  j->nneeded = 0;
  if (j->failed) {
    errno = EIO;
    return -1;
  }
  return 0;
}

/* --- For everybody else --- */

/* Push one buffer; false when none is waiting.  Releases the lock. */
static bool
push_one_locked (struct journal *j)
{
  ASSERT_LOCKED (j);
  while (j->ready_head != NO_BUFFER && j->failed == 0) {
    int n = j->ready_head;
    struct buffer *b = &j->buffers[n];
    struct bits todo;

    j->ready_head = b->next_ready;
    if (j->ready_head == NO_BUFFER)
      j->ready_tail = NO_BUFFER;
    b->queued = false;
    if (!is_worth_it_locked (j, b))
      continue;                 /* a commit came first, or it was bound anew */
    todo = todo_locked (b);
    if (bits_empty (&todo))
      continue;
    push_blocks_locked (j, n, &todo);
    return true;
  }
  return false;
}

bool
push_help_locked (struct journal *j)
{
  return push_needed_locked (j) == 1 || push_one_locked (j);
}

void *
push_thread (void *arg)
{
  struct journal *j = arg;
  SCOPED_LOCK (&j->lock);

  while (!j->stopping) {
    if (j->failed || !push_help_locked (j))
      pthread_cond_wait (&j->work_cond, &j->lock);
  }
  return NULL;
}
