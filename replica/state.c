/* SPDX-License-Identifier: BSD-3-Clause */
/* Words for states, and the moves that any part of the replica may have to
 * make: a hole in the stream, a journal that cannot be trusted.
 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "replica/internal.h"

#define EPOCHS_AHEAD 1024       /* how many numbers a record reserves */

const char *
replica_state_word (enum journal_replica_state state)
{
  switch (state) {
  case JOURNAL_SYNCING: return "syncing";
  case JOURNAL_PROTECTED: return "protected";
  case JOURNAL_STALE: return "stale";
  case JOURNAL_RESYNCING: return "resyncing";
  case JOURNAL_PROMOTED: return "promoted";
  case JOURNAL_FAILED: return "failed";
  }
  return "unknown";
}

void
replica_log (struct replica *r, enum replica_log_level level,
             const char *fmt, ...)
{
  int saved = errno;
  char line[1024];
  va_list args;

  if (r->log == NULL)
    return;
  va_start (args, fmt);
  if (vsnprintf (line, sizeof line, fmt, args) >= 0)
    r->log (r->log_opaque, level, line);
  va_end (args);
  errno = saved;
}

/* Somebody holds the lock, if not necessarily the caller. */
void
assert_locked (struct replica *r)
{
#ifndef NDEBUG
  int e = pthread_mutex_trylock (&r->lock);

  assert (e != 0);
#else
  (void) r;
#endif
}

void
set_reason_locked (struct replica *r, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  if (vsnprintf (r->reason, sizeof r->reason, fmt, args) < 0)
    r->reason[0] = '\0';        /* no format of ours fails.  LCOV_EXCL_LINE */
  va_end (args);
}

int
wait_changed_locked (struct replica *r, unsigned ms)
{
  struct timespec ts;
  uint64_t ns = host_monotonic_ns () + ms * UINT64_C (1000000);
  int e;

  ts.tv_sec = ns / 1000000000;
  ts.tv_nsec = ns % 1000000000;
  e = pthread_cond_timedwait (&r->changed, &r->lock, &ts);
  if (e != 0) {
    errno = e;
    return -1;
  }
  return 0;
}

int
turn_begin_locked (struct replica *r)
{
  while (r->commit_turn && !r->stopping)
    pthread_cond_wait (&r->changed, &r->lock);
  if (r->stopping) {
    errno = ESHUTDOWN;
    return -1;
  }
  r->commit_turn = true;
  return 0;
}

void
turn_end_locked (struct replica *r)
{
  assert (r->commit_turn);
  r->commit_turn = false;
  pthread_cond_broadcast (&r->changed);
}

void
state_epoch (struct journal_state *state, uint64_t open)
{
  if (state->epoch < open)
    state->epoch = open;
  if (state->epoch_limit < open + EPOCHS_AHEAD)
    state->epoch_limit = open + EPOCHS_AHEAD;
}

void
wait_settled_locked (struct replica *r)
{
  while (r->moving || r->holing || r->failing)
    pthread_cond_wait (&r->changed, &r->lock);
}

void
move_begin_locked (struct replica *r)
{
  while (r->moving || r->holing || r->closing)
    pthread_cond_wait (&r->changed, &r->lock);
  r->moving = true;
}

void
move_end (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  r->moving = false;
  pthread_cond_broadcast (&r->changed);
}

static void
change_dirty (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->clean = false;
}

int
make_dirty (struct replica *r)
{
  {
    SCOPED_LOCK (&r->lock);
    /* The images of a drained promoted disk do not need the journal. */
    if (!r->clean || (r->state == JOURNAL_PROMOTED && r->direct))
      return 0;
  }
  /* Two who find it clean write two records: harmless, and rarer than rare. */
  if (journal_record (r->journal, JOURNAL_REC_DIRTY, change_dirty,
                      NULL) == -1) {
    replica_fail (r, "cannot take the clean mark off", errno);
    errno = EIO;
    return -1;
  }
  {
    SCOPED_LOCK (&r->lock);
    r->clean = false;
  }
  return 0;
}

static void
change_stale (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->state = JOURNAL_STALE;
  state->clean = false;
}

void
replica_hole (struct replica *r, int errnum, const char *what)
{
  bool mine = false;

  {
    SCOPED_LOCK (&r->lock);
    uint64_t moves = r->moves;

    r->parked++;
    if (r->want_idle > 0)
      pthread_cond_broadcast (&r->changed);
    wait_settled_locked (r);
    r->parked--;
    /* The stream that has the hole is not this one any more. */
    if (r->moves != moves)
      return;
    if (r->state == JOURNAL_SYNCING || r->state == JOURNAL_PROTECTED ||
        r->state == JOURNAL_RESYNCING) {
      r->state = JOURNAL_STALE;
      r->holing = true;
      set_reason_locked (r, "a write was refused (%s: %s), so the stream has a hole: "
                         "mend the cause, then start a new full mirror after the verb resync",
                         what, strerror (errnum));
      house_event_locked (r, "stale", "%s: %s", what, strerror (errnum));
      mine = true;
      pthread_cond_broadcast (&r->changed);
    }
  }
  if (!mine)
    return;
  replica_log (r, REPLICA_LOG_ERROR, "replica is stale: a write was refused: %s: %s",
               what, strerror (errnum));
  /* Durable before the refusal is answered: a restart must not take the
   * speculation that has the hole for a whole one.
   */
  if (journal_record (r->journal, JOURNAL_REC_STATE, change_stale,
                      NULL) == -1)
    replica_fail (r, "recording that the stream has a hole", errno);
  SCOPED_LOCK (&r->lock);
  r->holing = false;
  pthread_cond_broadcast (&r->changed);
}

void
replica_fail (struct replica *r, const char *what, int errnum)
{
  {
    SCOPED_LOCK (&r->lock);

    while (r->failing)
      pthread_cond_wait (&r->changed, &r->lock);
    if (r->state == JOURNAL_FAILED)
      return;
    /* A promoted disk whose backlog is drained does not need the journal. */
    if (r->state == JOURNAL_PROMOTED && r->direct)
      return;
    r->state = JOURNAL_FAILED;
    r->failing = true;
    set_reason_locked (r, "the journal cannot be trusted (%s: %s): stop the server, then "
                       "mcbuf-recover shows what is whole", what,
                       strerror (errnum));
    house_event_locked (r, "failed", "%s: %s", what, strerror (errnum));
  }
  /* Before any refusal is answered. */
  if (journal_failed (r->journal))
    journal_note_failed (r->journal);
  {
    SCOPED_LOCK (&r->lock);
    r->failing = false;
    pthread_cond_broadcast (&r->changed);
  }
  replica_log (r, REPLICA_LOG_ERROR,
               "replica has failed: %s/journal: %s: %s; nothing is acknowledged any more",
               r->dir, what, strerror (errnum));
}
