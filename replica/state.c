/* SPDX-License-Identifier: BSD-3-Clause */
/* Words for states, and the moves that any part of the replica may have to
 * make: a hole in the stream, a journal that cannot be trusted.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
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
  if (r->state == JOURNAL_PROMOTED && !r->direct)
    pthread_cond_signal (&r->work);     /* its switch to direct waits for the turn */
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
state_discard (struct journal_state *state, uint64_t upto)
{
  uint64_t from = state->has_checkpoint ? state->checkpoint.id : state->void_from;

  if (upto <= from)
    return;                     /* all of them are committed */
  if (from > state->void_epoch) {
    state->void_floor = state->void_epoch;
    state->void_from = from;
  }
  else
    state->void_from = MIN (state->void_from, from);
  state->void_epoch = MAX (state->void_epoch, upto);
}

bool
state_has_committed (const struct journal_state *state, uint64_t epoch)
{
  return state->has_checkpoint && epoch <= state->checkpoint.id &&
         (epoch > state->void_epoch ||
          (epoch <= state->void_from && (epoch > state->void_floor || state->void_floor == 0)));
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
  r->mover = pthread_self ();
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

/* Whoever was let in to write to an image, and was refused, does not hold up a move that he waits for. */
static void
park_locked (struct replica *r, const struct admitted *a)
{
  if (a->route == ROUTE_SPECULATE)
    return;
  r->parked++;
  if (r->want_idle > 0)
    pthread_cond_broadcast (&r->changed);
}

static void
unpark_locked (struct replica *r, const struct admitted *a)
{
  if (a->route != ROUTE_SPECULATE)
    r->parked--;
}

static int
dirty_failed (struct replica *r, const struct admitted *a, int errnum)
{
  int result;

  {
    SCOPED_LOCK (&r->lock);
    park_locked (r, a);
  }
  result = replica_fail_since (r, a->moves, "cannot take the clean mark off", errnum);
  {
    SCOPED_LOCK (&r->lock);
    unpark_locked (r, a);
  }
  errno = result == -1 ? EAGAIN : EIO;
  return -1;
}

int
make_dirty (struct replica *r, const struct admitted *a)
{
  struct admitted now = { .route = ROUTE_SPECULATE };

 again:
  {
    SCOPED_LOCK (&r->lock);
    now.moves = r->moves;
    /* The images of a drained promoted disk do not need the journal. */
    if (!r->clean || (r->state == JOURNAL_PROMOTED && r->direct))
      return 0;
  }
  /* Two who find it clean write two records: harmless, and rarer than rare. */
  if (journal_record (r->journal, JOURNAL_REC_DIRTY, change_dirty,
                      NULL) == -1) {
    int result = dirty_failed (r, a ? a : &now, errno);

    if (a == NULL && errno == EAGAIN)
      goto again;
    return result;
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
  /* A promote that came in between stays: what is promoted has no stream to have a hole. */
  if (state->state == JOURNAL_PROMOTED)
    return;
  state->state = JOURNAL_STALE;
  state->clean = false;
}

static int
hole (struct replica *r, const struct admitted *a, int errnum, const char *what)
{
  bool mine = false, moved;

  {
    SCOPED_LOCK (&r->lock);

    park_locked (r, a);
    wait_settled_locked (r);
    unpark_locked (r, a);
    /* The stream that has the hole is not this one any more. */
    moved = r->moves != a->moves;
    if (!moved &&
        (r->state == JOURNAL_SYNCING || r->state == JOURNAL_PROTECTED ||
         r->state == JOURNAL_RESYNCING)) {
      r->state = JOURNAL_STALE;
      r->holing = true;
      set_reason_locked (r, "a write was refused (%s: %s), so the stream has a hole: "
                         "mend the cause, then start a new full mirror after the verb resync%s",
                         what, strerror (errnum), r->has_checkpoint ? "" : " overwrite");
      house_event_locked (r, "stale", "%s: %s", what, strerror (errnum));
      mine = true;
      pthread_cond_broadcast (&r->changed);
    }
  }
  if (moved) {
    errno = EAGAIN;
    return -1;
  }
  if (!mine)
    return 0;
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
  return 0;
}

int
replica_refused (struct replica *r, const struct admitted *a, int errnum,
                 const char *what)
{
  if (hole (r, a, errnum, what) == 0)
    return 0;
  divergence_refused (r);       /* a promote: the old primary has what was refused */
  errno = EAGAIN;
  return -1;
}

int
replica_hole_since (struct replica *r, uint64_t moves, int errnum, const char *what)
{
  const struct admitted a = { .route = ROUTE_SPECULATE, .moves = moves };

  return hole (r, &a, errnum, what);
}

void
replica_hole (struct replica *r, int errnum, const char *what)
{
  uint64_t moves;

  {
    SCOPED_LOCK (&r->lock);
    moves = r->moves;
  }
  if (replica_hole_since (r, moves, errnum, what) == -1)
    assert (!"moved under the turn");
}

#define DAMAGE_TEXT (sizeof ((struct journal_damage *) 0)->what + 80)

static void
damage_text (const struct journal_damage *damage, char what[DAMAGE_TEXT])
{
  char needed[48] = "";

  if (damage->checkpoint > 0)
    snprintf (needed, sizeof needed, ", needed by checkpoint %" PRIu64, damage->checkpoint);
  snprintf (what, DAMAGE_TEXT, "offset %" PRIu64 ": %s%s", damage->offset, damage->what, needed);
}

void
replica_damaged (struct replica *r, const struct journal_damage *damage)
{
  char what[DAMAGE_TEXT];

  damage_text (damage, what);
  replica_fail (r, what, 0);
}

int
replica_damaged_since (struct replica *r, uint64_t moves,
                       const struct journal_damage *damage)
{
  char what[DAMAGE_TEXT];

  damage_text (damage, what);
  return replica_fail_since (r, moves, what, 0);
}

/* Leave word of it, before any refusal is answered.  Called while failing. */
static int
note_failure (struct replica *r, bool inlets, bool direct)
{
  /* The journal can still be written: the next server must not take the speculation, which
   * lacks what is refused, for a whole one.
   */
  if (!journal_failed (r->journal) && inlets)
    (void) journal_record (r->journal, JOURNAL_REC_STATE, change_stale, NULL);
  return journal_note_failed (r->journal, direct);
}

static void
set_failed_locked (struct replica *r, const char *what, int why)
{
  r->state = JOURNAL_FAILED;
  set_reason_locked (r, "the journal cannot be trusted (%s%s%s): stop the server, then "
                     "mcbuf-recover goes to the last checkpoint that is whole; or mend the device, "
                     "then resync overwrite begins a new first copy", what, why ? ": " : "",
                     why ? strerror (why) : "");
}

/* With MOVES: as long as that is r->moves.  -1: it is not. */
static int
fail (struct replica *r, const uint64_t *moves, const char *what, int errnum)
{
  bool inlets, direct, noted;
  int why;

  {
    SCOPED_LOCK (&r->lock);

    while (r->failing || (moves && r->moving && !pthread_equal (r->mover, pthread_self ())))
      pthread_cond_wait (&r->changed, &r->lock);
    if (moves && r->moves != *moves) {
      errno = EAGAIN;
      return -1;
    }
    if (r->state == JOURNAL_FAILED)
      return 0;
    why = journal_failed (r->journal);
    if (why == 0)
      why = errnum;
    inlets = r->state == JOURNAL_SYNCING || r->state == JOURNAL_PROTECTED ||
      r->state == JOURNAL_RESYNCING;
    /* A promoted disk whose backlog is drained does not need the journal, if only the next
     * server does not find there what was refused.
     */
    direct = r->state == JOURNAL_PROMOTED && r->direct;
    if (!direct)
      set_failed_locked (r, what, why);
    r->failing = true;
  }
  noted = note_failure (r, inlets, direct) == 0;
  {
    SCOPED_LOCK (&r->lock);

    r->failing = false;
    r->failure_noted = noted;
    if (direct && !noted)
      set_failed_locked (r, what, why);
    house_event_locked (r, "failed", "%s%s%s", what, why ? ": " : "",
                        why ? strerror (why) : "");
    pthread_cond_broadcast (&r->changed);
  }
  replica_log (r, REPLICA_LOG_ERROR, "%s: %s/journal: %s%s%s; %s",
               direct && noted ? "journal has failed" : "replica has failed", r->dir, what,
               why ? ": " : "", why ? strerror (why) : "",
               direct && noted ? "the promoted disk goes on without it" :
               "nothing is acknowledged any more");
  return 0;
}

void
replica_fail (struct replica *r, const char *what, int errnum)
{
  (void) fail (r, NULL, what, errnum);  /* of now: it does */
}

int
replica_fail_since (struct replica *r, uint64_t moves, const char *what,
                    int errnum)
{
  return fail (r, &moves, what, errnum);
}
