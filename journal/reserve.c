/* SPDX-License-Identifier: BSD-3-Clause */
/* Room for data: blocks of the one data chunk that is open, then of the next.
 *
 * When a chunk has to be opened and the device is too slow for those who write, they wait in
 * a line.  Whoever sees a buffer become free opens the chunk, and gives of it to the line, in its
 * order, before anybody else can come; so nobody is overtaken, neither by who came later nor
 * by who writes more: a long write is back at the end of the line after each chunk.
 * Whoever waits is passed at most once by each of the others for each chunk of his own.
 * A line is served at once as far as the chunk reaches: the writers do not hand the room from
 * one to the next, which on a busy machine would be slower than the device.  As they wait they
 * push what is there to be pushed, so that the device has as much to do as there are writers.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/host.h"
#include "journal/internal.h"

static uint32_t
open_room_locked (struct journal *j)
{
  return JOURNAL_CHUNK_BLOCKS -
         j->buffers[j->chunks[j->open_chunk].buffer].bump;
}

/* Open a data chunk.  1; 0 when no buffer is free now; -1. */
static int
open_data_chunk_locked (struct journal *j)
{
  uint32_t c;
  int n;

  assert (j->open_chunk == 0);
  if (j->failed) {
    errno = EIO;
    return -1;
  }
  if (chunks_free_locked (j) <= KEEP_FOR_TABLES) {
    errno = ENOSPC;
    return -1;
  }
  n = buffer_find_locked (j);
  if (n == NO_BUFFER)
    return 0;
  c = chunk_alloc_locked (j, CHUNK_DATA, KEEP_FOR_TABLES);
  if (c == 0) {
    buffer_release_locked (j, n);
    errno = chunks_free_locked (j) <= KEEP_FOR_TABLES ? ENOSPC : ENOMEM;
    return -1;
  }
  buffer_bind_locked (j, n, c);
  j->open_chunk = c;
  j->full_since = 0;
  return 1;
}

/* Take up to WANT blocks of the open chunk. */
static void
take_locked (struct journal *j, uint32_t want, struct journal_span *span)
{
  struct buffer *b = &j->buffers[j->chunks[j->open_chunk].buffer];
  uint32_t n = MIN (want, open_room_locked (j));

  span->block = j->open_chunk * JOURNAL_CHUNK_BLOCKS + b->bump;
  span->nblocks = n;
  span->mem = b->mem + (size_t) b->bump * JOURNAL_BLOCK;
  bits_set (&j->chunks[j->open_chunk].live->pending, b->bump, n);
  b->bump += n;
  if (b->bump == JOURNAL_CHUNK_BLOCKS) {
    j->chunks[j->open_chunk].closed = true;
    j->open_chunk = 0;
  }
}

/* The line waits for the device, or does not any more. */
static void
line_held_locked (struct journal *j, bool held)
{
  if (held && !j->line_held)
    held_begin (&j->held, host_monotonic_ns ());
  if (!held && j->line_held)
    held_end (&j->held, host_monotonic_ns ());
  j->line_held = held;
}

/* The first of the line leaves it, and the next one sees to the line. */
static void
leave_locked (struct journal *j)
{
  j->line = j->line->next;
  if (j->line)
    pthread_cond_signal (&j->line->cond);
  else
    line_held_locked (j, false);
}

int
line_serve_locked (struct journal *j)
{
  int r = 1;

  ASSERT_LOCKED (j);
  while (j->line && (j->open_chunk != 0 ||
                     (r = open_data_chunk_locked (j)) == 1)) {
    struct waiter *w = j->line;

    take_locked (j, w->want, w->span);
    w->served = true;
    pthread_cond_signal (&w->cond);
    pthread_cond_broadcast (&j->buffer_cond);   /* where the first one waits */
    leave_locked (j);
  }
  return r;
}

/* No chunk is free, or something worse, and W is the first.  -1: he gives up. */
static int
line_error_locked (struct journal *j, journal_full_fn full, void *opaque,
                   uint64_t since)
{
  int r;

  if (errno != ENOSPC || full == NULL)
    return -1;
  line_held_locked (j, false);
  /* Until then he may have waited for the device. */
  if (j->full_since == 0)
    j->full_since = host_monotonic_ns ();
  since = MAX (since, j->full_since);
  pthread_mutex_unlock (&j->lock);
  r = full (opaque, since);
  pthread_mutex_lock (&j->lock);
  return r;
}

static int
wait_in_line_locked (struct journal *j, struct waiter *w, journal_full_fn full,
                     void *opaque)
{
  uint64_t since = 0;
  struct waiter **end = &j->line;

  while (*end)
    end = &(*end)->next;
  *end = w;
  for (;;) {
    int r = line_serve_locked (j);

    if (w->served)
      return 0;
    if (since == 0)
      since = host_monotonic_ns ();
    if (r == -1 && j->line == w) {
      r = line_error_locked (j, full, opaque, since);
      if (w->served)            /* meanwhile, without the lock */
        return 0;
      if (r == -1) {
        leave_locked (j);
        return -1;
      }
      continue;
    }
    if (r == 0) {
      line_held_locked (j, true);
      if (push_help_locked (j))
        continue;
    }
    pthread_cond_wait (j->line == w ? &j->buffer_cond : &w->cond, &j->lock);
    if (w->served)
      return 0;
  }
}

int
journal_reserve (struct journal *j, uint32_t want, struct journal_span *span)
{
  return journal_reserve_or_wait (j, want, span, NULL, NULL);
}

int
journal_reserve_or_wait (struct journal *j, uint32_t want,
                         struct journal_span *span, journal_full_fn full,
                         void *opaque)
{
  SCOPED_LOCK (&j->lock);
  struct waiter w = { .want = want, .span = span };
  int r, saved;

  assert (want > 0);
  if (j->failed) {
    errno = EIO;
    return -1;
  }
  if (j->open_chunk != 0) {     /* then nobody is in the line */
    take_locked (j, want, span);
    return 0;
  }
  r = pthread_cond_init (&w.cond, NULL);
  if (r != 0) {
    errno = r;
    return -1;
  }
  r = wait_in_line_locked (j, &w, full, opaque);
  saved = errno;
  pthread_cond_destroy (&w.cond);
  errno = saved;
  return r;
}

static bool
filled_locked (struct journal *j, const struct journal_span *span,
               const uint32_t *crc)
{
  struct chunk *chunk = &j->chunks[chunk_of (span->block)];
  unsigned i = span->block % JOURNAL_CHUNK_BLOCKS;

  assert (chunk->kind == CHUNK_DATA && chunk->buffer != NO_BUFFER);
  memcpy (&chunk->live->crc[i], crc, span->nblocks * sizeof *crc);
  bits_set (&chunk->live->known, i, span->nblocks);
  return buffer_filled_locked (j, chunk->buffer, i, span->nblocks);
}

void
journal_filled (struct journal *j, const struct journal_span *span,
                const uint32_t *crc)
{
  bool wake;

  {
    SCOPED_LOCK (&j->lock);
    wake = filled_locked (j, span, crc);
  }
  if (wake)
    push_wake (j);
}

void
journal_abandon (struct journal *j, const struct journal_span *span)
{
  SCOPED_LOCK (&j->lock);
  uint32_t c = chunk_of (span->block);

  bits_clear (&j->chunks[c].live->pending,
              span->block % JOURNAL_CHUNK_BLOCKS, span->nblocks);
  chunk_try_free_locked (j, c);
}
