/* SPDX-License-Identifier: BSD-3-Clause */
/* The zero-filler: a thread that writes virgin chunks once before they are
 * needed, because the first write to allocated but never written space costs twice as much
 * to make durable.  It keeps some chunks ahead, not the whole file: a busy journal
 * recycles and needs no more.
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "journal/internal.h"

/* Between two chunks, so that a commit's sync does not have to wait for many. */
#define PACE_NS 4000000L

static void
pace_locked (struct journal *j)
{
  struct timespec until;

  if (clock_gettime (CLOCK_MONOTONIC, &until) == -1)
    return;
  until.tv_nsec += PACE_NS;
  if (until.tv_nsec >= 1000000000L) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000L;
  }
  if (!j->stopping)
    (void) pthread_cond_timedwait (&j->zero_cond, &j->lock, &until);
}

/* Zero one chunk that is nobody's meanwhile.  Releases the lock. */
static void
zero_one_locked (struct journal *j, const void *zeroes)
{
  uint32_t c = j->virgin++;
  int error = 0;

  j->chunks[c] = (struct chunk) { .kind = CHUNK_ZEROING, .buffer = NO_BUFFER };
  pthread_mutex_unlock (&j->lock);
  if (file_write (j, zeroes, JOURNAL_CHUNK, (uint64_t) c * JOURNAL_CHUNK) == -1)
    error = errno;
  pthread_mutex_lock (&j->lock);
  if (error)
    poison_locked (j, error);
  chunk_free_locked (j, c);
}

void *
zero_thread_main (void *arg)
{
  struct journal *j = arg;
  CLEANUP_FREE void *zeroes = aligned_blocks (JOURNAL_CHUNK);
  SCOPED_LOCK (&j->lock);

  if (zeroes == NULL)
    return NULL;                /* slower, not wrong */
  memset (zeroes, 0, JOURNAL_CHUNK);
  while (!j->stopping) {
    if (j->failed || j->distrust || j->virgin >= j->nchunks ||
        j->nrecycled >= ZERO_AHEAD_MAX)
      pthread_cond_wait (&j->zero_cond, &j->lock);
    else {
      zero_one_locked (j, zeroes);
      pace_locked (j);
    }
  }
  return NULL;
}
