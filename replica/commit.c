/* SPDX-License-Identifier: BSD-3-Clause */
/* Seal and commit.
 *
 * A seal is a swap under the lock.  A commit holds the turn: it seals if asked, lets the journal
 * make everything up to the epoch durable, and only then moves the epochs from the speculation
 * buffer to the write-out buffer and answers.  The first commit of a copy comes twice: before its record
 * the backing images are made durable, without the turn (copy.c).  One that finds no room for its record waits for
 * write-out as writers do, without the turn.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define TIGHTEN_SLICE 512

/* --- seal ------------------------------------------------------------------ */

static void
change_epochs (struct journal_state *state, void *opaque)
{
  state_epoch (state, *(uint64_t *) opaque);
}

static void
change_closed (struct journal_state *state, void *opaque)
{
  uint64_t sealed = *(uint64_t *) opaque;

  state_epoch (state, sealed + 1);
  state->closed = true;
  if (!state->has_checkpoint)
    state->watermark.id = sealed;       /* what the images will hold when they are durable */
}

int
refuse_state_locked (struct replica *r, const char *what, struct mcerror *err)
{
  if (r->state == JOURNAL_PROMOTED) {
    errno = ESHUTDOWN;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot %s: replica is promoted: generation %" PRIu64 " is over, this copy is the disk in "
                        "generation %" PRIu64 ": only resync overwrite makes it a standby again",
                        what, r->generation - 1, r->generation);
  }
  errno = r->state == JOURNAL_FAILED ? EIO : EPERM;
  return mcerror_set (err, MCEXIT_REFUSED, "cannot %s: replica is %s: %s",
                      what, replica_state_word (r->state), r->reason);
}

bool
state_takes_writes (enum journal_replica_state state)
{
  return state == JOURNAL_SYNCING || state == JOURNAL_PROTECTED ||
    state == JOURNAL_RESYNCING;
}

int
check_generation_locked (struct replica *r, const char *what, uint64_t generation,
                         struct mcerror *err)
{
  assert_locked (r);
  if (generation == 0 || generation == r->generation)
    return 0;
  errno = ESHUTDOWN;
  return mcerror_set (err, MCEXIT_REFUSED,
                      "cannot %s: generation %" PRIu64 " was asked for, the replica is %s in "
                      "generation %" PRIu64 ": another copy has taken over since",
                      what, generation, replica_state_word (r->state), r->generation);
}

static int
check_seal_locked (struct replica *r, bool promoted, uint64_t generation,
                   struct mcerror *err)
{
  if (check_generation_locked (r, "seal", generation, err) == -1)
    return -1;
  if (promoted ? r->state != JOURNAL_PROMOTED : !state_takes_writes (r->state))
    return refuse_state_locked (r, "seal", err);
  return 0;
}

/* Close the open epoch, if this is GENERATION (0: any).  With PROMOTED that of a promoted disk. */
static int
seal_in (struct replica *r, bool promoted, uint64_t generation,
         uint64_t *sealed, struct mcerror *err)
{
  uint64_t open;
  bool close_copy;

  {
    /* What is refused leaves no trace: a clean stop before it stays one. */
    SCOPED_LOCK (&r->lock);
    if (check_seal_locked (r, promoted, generation, err) == -1)
      return -1;
  }
  if (make_dirty (r, NULL) == -1)
    return mcerror_set (err, MCEXIT_REFUSED, "cannot seal: the journal failed: %m");

 again:
  {
    SCOPED_LOCK (&r->lock);

    while (r->closing || (r->moving && !promoted))
      pthread_cond_wait (&r->changed, &r->lock);
    if (r->stopping && !promoted) {
      errno = ESHUTDOWN;
      return mcerror_set (err, MCEXIT_REFUSED, "cannot seal: the server is stopping");
    }
    /* Under the same lock as the swap: a promote comes before it or after it. */
    if (check_seal_locked (r, promoted, generation, err) == -1)
      return -1;
    open = speculation_open_number (r->spec);
    if (open + 1 <= r->epoch_limit && speculation_seal (r->spec) == 0) {
      close_copy = copying_any_locked (r);
      r->closing = close_copy;
      if (close_copy)
        r->closed_epoch = open;
      journal_seal (r->journal, open);
      if (speculation_spares_wanted (r->spec) > 0 ||
          open + 256 > r->epoch_limit)
        pthread_cond_signal (&r->chores);
      goto sealed;
    }
  }
  if (replica_prepare_seal (r) == -1)
    return mcerror_set (err, MCEXIT_REFUSED, "cannot seal: %m");
  goto again;

 sealed:
  if (close_copy) {
    /* Writes wait meanwhile: none may be acknowledged as speculation before
     * a restart would know that the copy was closed.
     */
    int result = journal_record (r->journal, JOURNAL_REC_STATE, change_closed,
                                 &open);
    int saved = errno;

    /* Before a resync can come, which waits for the end of this. */
    if (result == -1)
      replica_fail (r, "sealing the first copy", saved);
    {
      SCOPED_LOCK (&r->lock);
      r->closing = false;
      r->closed = true;
      pthread_cond_broadcast (&r->changed);
    }
    if (result == -1) {
      errno = EIO;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "cannot seal: the journal failed: %s",
                          strerror (saved));
    }
  }
  *sealed = open;
  return 0;
}

static int
seal (struct replica *r, bool promoted, uint64_t *sealed, struct mcerror *err)
{
  return seal_in (r, promoted, 0, sealed, err);
}

int
replica_prepare_seal (struct replica *r)
{
  uint64_t open, limit, moves;
  unsigned wanted;

  {
    SCOPED_LOCK (&r->lock);
    moves = r->moves;
    open = speculation_open_number (r->spec);
    limit = r->epoch_limit;
    wanted = speculation_spares_wanted (r->spec);
  }
  while (wanted-- > 0) {
    struct epoch *e = epoch_new ();

    if (e == NULL)
      return -1;
    SCOPED_LOCK (&r->lock);
    speculation_restock (r->spec, e);
  }
  if (open + 512 > limit) {
    struct journal_state state;

    if (journal_record (r->journal, JOURNAL_REC_STATE, change_epochs,
                        &open) == -1) {
      /* A resync may have mended the journal since: whoever asked looks again. */
      if (replica_fail_since (r, moves, "reserving epoch numbers", errno) == -1)
        return 0;
      errno = EIO;
      return -1;
    }
    journal_get_state (r->journal, &state);
    SCOPED_LOCK (&r->lock);
    r->epoch_limit = MAX (r->epoch_limit, state.epoch_limit);
  }
  return 0;
}

/* One epoch's map.  1: there may be more. */
static int
tighten (struct replica *r)
{
  struct map *map, *left = NULL;
  struct epoch *spare;
  uint64_t number;
  size_t blocks;
  uint64_t cursor = 0;
  int more;

  {
    SCOPED_LOCK (&r->lock);
    blocks = speculation_loose (r->spec, &number);
  }
  if (blocks == 0)
    return 0;
  map = map_new (blocks);
  if (map == NULL)
    return -1;
  do {
    SCOPED_LOCK (&r->lock);
    more = speculation_tighten (r->spec, number, map, TIGHTEN_SLICE, &cursor,
                                &left);
  } while (more == 1);
  if (more == -1 || left == map) {
    map_free (map);
    return more == -1 ? -1 : 1;
  }
  map_clear (left);
  spare = epoch_of (left);
  if (spare == NULL)
    return -1;
  {
    SCOPED_LOCK (&r->lock);
    if (speculation_spares_room (r->spec)) {
      speculation_restock (r->spec, spare);
      spare = NULL;
    }
  }
  epoch_free (spare);
  return 1;
}

int
replica_tighten (struct replica *r)
{
  int more;

  do
    more = tighten (r);
  while (more == 1);
  return more;
}

int
replica_seal (struct replica *r, uint64_t generation, uint64_t *sealed,
              struct mcerror *err)
{
  int result;

  {
    /* A stop waits for it, as for a write. */
    SCOPED_LOCK (&r->lock);
    if (r->stopping) {
      errno = ESHUTDOWN;
      return mcerror_set (err, MCEXIT_REFUSED, "cannot seal: the server is stopping");
    }
    r->journaled++;
  }
  result = seal_in (r, false, generation, sealed, err);
  route_end (r, ROUTE_SPECULATE);
  return result;
}

/* --- commit ------------------------------------------------------------------ */

struct commit_change {
  struct journal_commit *commit;
  struct journal_checkpoint *checkpoint;
  uint64_t open;
};

static void
change_commit (struct journal_state *state, void *opaque)
{
  struct commit_change *c = opaque;

  state_epoch (state, c->open);
  c->checkpoint->extents = c->commit->extents;
  c->checkpoint->bytes = c->commit->bytes;
  state->checkpoint = *c->checkpoint;
  if (!state->has_checkpoint) {
    /* The images hold the copy up to watermark.id; later epochs that this
     * commit swept in are still to be written out, and nothing before them is a checkpoint.
     */
    if (state->watermark.id == c->checkpoint->id)
      state->watermark = *c->checkpoint;
    state->target = c->checkpoint->id;
  }
  state->has_checkpoint = true;
  /* A hole that was recorded meanwhile stays one. */
  if (state->state != JOURNAL_STALE)
    state->state = JOURNAL_PROTECTED;
}

static void
change_promoted_commit (struct journal_state *state, void *opaque)
{
  state_epoch (state, *(uint64_t *) opaque);
  state->pending = false;
}

/* Durable: the epochs change buffers. */
static void
committed_locked (struct replica *r, uint64_t number, uint64_t time)
{
  struct epoch *taken = speculation_take (r->spec, number);

  if (writeout_is_empty (r->wo) && r->backlog_since == 0)
    r->backlog_since = host_monotonic_ns ();
  writeout_add (r->wo, number, time, 1, taken);
  pthread_cond_signal (&r->work);
}

/* With the turn.  1: already committed, *ANSWER says so. */
static int
check_commit (struct replica *r, const struct commit_request *req,
              struct commit_answer *answer, struct mcerror *err)
{
  struct journal_state state;
  bool committed;

  journal_get_state (r->journal, &state);
  SCOPED_LOCK (&r->lock);
  committed = req->has_epoch && state_has_committed (&state, req->epoch);
  if (check_generation_locked (r, "commit", req->generation, err) == -1)
    return -1;
  if (!state_takes_writes (r->state) && !(r->state == JOURNAL_STALE && committed))
    return refuse_state_locked (r, "commit", err);
  if (!req->has_epoch)
    return 0;
  if (committed) {
    *answer = (struct commit_answer) { .checkpoint = r->checkpoint.id,
                                       .epoch = req->epoch };
    return 1;
  }
  if (req->epoch == 0) {
    errno = EPERM;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot commit: epochs count from 1, and there is no checkpoint 0");
  }
  if (req->epoch <= MAX (r->void_epoch, state.void_epoch)) {
    errno = EPERM;
    return mcerror_set (err, MCEXIT_REFUSED,
                        r->has_checkpoint && req->epoch <= r->checkpoint.id ?
                        "cannot commit: epoch %" PRIu64 " was discarded by a resync or a failover, or so "
                        "long ago that it is not known: checkpoint %" PRIu64 " does not have it" :
                        "cannot commit: epoch %" PRIu64 " was discarded: commit without an epoch once "
                        "the new copy is whole", req->epoch, r->checkpoint.id);
  }
  if (req->epoch >= speculation_open_number (r->spec) ||
      (r->state == JOURNAL_SYNCING &&
       (!r->closed || req->epoch < r->closed_epoch))) {
    errno = EPERM;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot commit: epoch %" PRIu64 " is not sealed (epoch %" PRIu64
                        " is open): seal first, or commit without an epoch",
                        req->epoch, speculation_open_number (r->spec));
  }
  return 0;
}

static void
note_latency_locked (struct replica *r, uint64_t us)
{
  r->latency[r->nlatency++ % LATENCIES] = us;
}

/* A copy that a commit ends. */
struct copy_end {
  bool asked;                   /* finish_copy was called … */
  uint64_t moves;               /* … for the copy of then */
  bool turn;                    /* r->copy_turn is this commit's */
};
#define FINISH_COPY 2

/* What was sealed for it is *REQ's epoch from then on, with which it can be tried AGAIN.  FINISH_COPY: when finish_copy has
 * done its work; -1 with ENOSPC: when there is room.
 */
static int
commit_turn (struct replica *r, struct commit_request *req, bool again, struct copy_end *end,
             uint64_t since, struct commit_answer *answer, struct mcerror *err)
{
  struct journal_checkpoint cp = { .time = host_time_ns () };
  struct journal_commit commit = { .kind = JOURNAL_REC_COMMIT };
  struct commit_change change = { .commit = &commit, .checkpoint = &cp };
  bool first, whole, copy = false;
  int result = check_commit (r, req, answer, err);

  if (result == 1 && again && req->label)
    replica_log (r, REPLICA_LOG_ERROR, "epoch %" PRIu64 ", which waited to become a checkpoint, "
                 "is part of checkpoint %" PRIu64 ", which was committed meanwhile: its label \"%s\" is not given",
                 req->epoch, answer->checkpoint, req->label);
  if (result != 0)
    return result == 1 ? 0 : -1;
  cp.id = req->epoch;
  if (!req->has_epoch && seal (r, false, &cp.id, err) == -1)
    return -1;
  /* Tried again it is for this one, whatever is open by then. */
  req->has_epoch = true;
  req->epoch = cp.id;
  if (req->label)
    strncpy (cp.label, req->label, JOURNAL_LABEL_MAX);
  {
    SCOPED_LOCK (&r->lock);
    first = r->state == JOURNAL_SYNCING;
    for (unsigned i = 0; i < r->ndisks; i++)
      copy = copy || disk_is_fresh_locked (r, i);
    change.open = speculation_open_number (r->spec);
    whole = !copy || (end->asked && end->moves == r->moves);
    end->moves = r->moves;
  }
  if (make_dirty (r, NULL) == -1)
    return mcerror_set (err, MCEXIT_REFUSED, "cannot commit: the journal failed: %m");
  if (!whole)
    return FINISH_COPY;
  if (first && copy_record_samples (r, err) == -1)
    return -1;

  /* A hole that came to light meanwhile voids what was sealed before it: the
   * refused write may be the one that this epoch lacks.
   */
  {
    SCOPED_LOCK (&r->lock);
    if (!state_takes_writes (r->state))
      return refuse_state_locked (r, "commit", err);
  }
  commit.epoch = cp.id;
  commit.change = change_commit;
  commit.opaque = &change;
  if (journal_do_commit (r->journal, &commit) == -1) {
    int saved = errno;

    if (!journal_failed (r->journal)) {
      errno = saved;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "cannot commit: %m: nothing is lost; commit epoch %" PRIu64 " again later%s",
                          cp.id, saved == ENOSPC ?
                          ", when write-out has made room in the journal; raise journal-size if it does not" : "");
    }
    replica_fail (r, "committing", saved);
    saved = journal_failed (r->journal);
    errno = EIO;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "checkpoint %" PRIu64 " is not acknowledged: %s/journal: %s: "
                        "the replica has failed", cp.id, r->dir,
                        strerror (saved));
  }

  SCOPED_LOCK (&r->lock);
  r->checkpoint = cp;
  r->has_checkpoint = true;
  if (state_takes_writes (r->state) && r->state != JOURNAL_PROTECTED) {
    r->state = JOURNAL_PROTECTED;
    set_reason_locked (r, "%s", "");
  }
  if (first && r->closed_epoch == cp.id)
    r->written_out = cp.id;     /* the images hold it already */
  committed_locked (r, cp.id, cp.time);
  answer->checkpoint = cp.id;
  answer->epoch = cp.id;
  answer->extents = commit.extents;
  answer->bytes = commit.bytes;
  answer->latency_us = (host_monotonic_ns () - since) / 1000;
  note_latency_locked (r, answer->latency_us);
  house_checkpoint_locked (r, &cp);
  return 0;
}

int
replica_commit (struct replica *r, const struct commit_request *req,
                struct commit_answer *answer, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct commit_request now = *req;
  struct copy_end end = { .asked = false };
  struct space space;
  bool again = false, stopping;
  int result, saved;

  do {
    {
      SCOPED_LOCK (&r->lock);
      stopping = turn_begin_locked (r) == -1;
    }
    if (stopping) {
      if (end.turn)
        copy_turn_end (r);
      errno = ESHUTDOWN;
      return mcerror_set (err, MCEXIT_USAGE, "the server is stopping");
    }
    space = space_seen (r, NULL);
    result = commit_turn (r, &now, again, &end, since, answer, err);
    saved = errno;
    again = true;
    {
      SCOPED_LOCK (&r->lock);
      turn_end_locked (r);
    }
    if (result == FINISH_COPY) {
      end.asked = true;
      result = finish_copy (r, end.moves, &end.turn, err);
      saved = errno;
      if (result == 0)
        result = FINISH_COPY;
    }
    if (result != FINISH_COPY && end.turn) {
      copy_turn_end (r);
      end.turn = false;
    }
  } while (result == FINISH_COPY ||
           (result == -1 && saved == ENOSPC &&
            wait_space (&space, host_monotonic_ns ()) == 0));
  errno = saved;
  return result;
}

/* --- flush of a promoted disk --------------------------------------------------- */

int
promoted_flush_turn (struct replica *r)
{
  struct speculation_stat stat;
  struct journal_commit commit = { .kind = JOURNAL_REC_PROMOTED_COMMIT };
  uint64_t sealed, open;

  {
    SCOPED_LOCK (&r->lock);
    speculation_get_stat (r->spec, &stat);
    if (stat.extents == 0)
      return 0;
  }
  if (seal (r, true, &sealed, NULL) == -1)
    return -1;
  open = sealed + 1;
  commit.epoch = sealed;
  commit.change = change_promoted_commit;
  commit.opaque = &open;
  if (journal_do_commit (r->journal, &commit) == -1) {
    if (journal_failed (r->journal))
      replica_fail (r, "flushing promoted writes", errno);
    errno = EIO;
    return -1;
  }
  SCOPED_LOCK (&r->lock);
  committed_locked (r, sealed, host_time_ns ());
  return 0;
}

int
promoted_flush (struct replica *r)
{
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    if (turn_begin_locked (r) == -1)
      return -1;
  }
  result = promoted_flush_turn (r);
  saved = errno;
  {
    SCOPED_LOCK (&r->lock);
    turn_end_locked (r);
  }
  errno = saved;
  return result;
}
