/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing staging buffers to the journal file.  A block is pushed once: when
 * it is filled, by whoever comes first, a pushing thread that takes whole closed
 * chunks, a writer that needs a buffer, or a commit that needs the block.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "journal/internal.h"

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

/* Queue buffer N for the threads if its chunk is closed and wholly filled. */
void
push_ready_locked (struct journal *j, int n)
{
  struct buffer *b = &j->buffers[n];

  ASSERT_LOCKED (j);
  if (b->queued || !is_complete_locked (j, b))
    return;
  b->queued = true;
  b->next_ready = NO_BUFFER;
  if (j->ready_tail == NO_BUFFER)
    j->ready_head = n;
  else
    j->buffers[j->ready_tail].next_ready = n;
  j->ready_tail = n;
  if (j->running)
    pthread_cond_signal (&j->work_cond);
  else
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
  pthread_cond_broadcast (&j->buffer_cond);
}

bool
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
    if (!is_complete_locked (j, b))
      continue;                 /* it was bound to something else since */
    todo = todo_locked (b);
    if (bits_empty (&todo))
      continue;
    push_blocks_locked (j, n, &todo);
    return true;
  }
  return false;
}

void *
push_thread (void *arg)
{
  struct journal *j = arg;
  SCOPED_LOCK (&j->lock);

  while (!j->stopping) {
    if (!push_one_locked (j))
      pthread_cond_wait (&j->work_cond, &j->lock);
  }
  return NULL;
}

/* Of buffer N, the blocks in NEED that are not on disk yet. */
static struct bits
missing_locked (struct journal *j, unsigned n)
{
  return bits_minus (&j->need[n], &j->buffers[n].meta->pushed);
}

int
push_all (struct journal *j, bool tables)
{
  SCOPED_LOCK (&j->lock);
  bool waiting = true, moved;

  memset (j->need, 0, j->nbuffers * sizeof *j->need);
  for (unsigned n = 0; n < j->nbuffers; n++) {
    const struct buffer *b = &j->buffers[n];

    if ((j->dirty[n / 64] >> (n % 64) & 1) == 0 || b->chunk == 0 ||
        (!tables && j->chunks[b->chunk].kind == CHUNK_TABLE))
      continue;
    j->need[n] = bits_minus (&b->meta->filled, &b->meta->pushed);
  }

  /* While blocks are needed their buffer keeps its chunk, but for one that
   * was discarded or forgotten meanwhile: then it has no blocks to push either.
   */
  while (waiting) {
    waiting = moved = false;
    for (unsigned n = 0; n < j->nbuffers; n++) {
      struct buffer *b = &j->buffers[n];
      struct bits todo;

      if (bits_empty (&j->need[n]))
        continue;
      if (j->failed) {
        errno = EIO;
        return -1;
      }
      todo = bits_minus (&j->need[n], &b->pushing);
      todo = bits_minus (&todo, &b->meta->pushed);
      todo = bits_and (&todo, &b->meta->filled);
      if (!bits_empty (&todo)) {
        push_blocks_locked (j, n, &todo);
        moved = true;           /* the lock was released: look again */
      }
      todo = missing_locked (j, n);
      todo = bits_and (&todo, &b->meta->filled);
      if (bits_empty (&todo))
        j->need[n] = todo;
      else
        waiting = true;
    }
    if (waiting && !moved && j->failed == 0)
      pthread_cond_wait (&j->buffer_cond, &j->lock);
  }
  return 0;
}
