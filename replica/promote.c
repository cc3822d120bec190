/* SPDX-License-Identifier: BSD-3-Clause */
/* Promote, online: discard speculation, raise the generation, and make a
 * checkpoint the disk.
 *
 * The PROMOTE record decides.  Before it nothing has happened; after it every inlet is shut, and a
 * restart or mcbuf-recover finishes what was begun.  The backlog is not touched: it drains behind.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/recover.h"

struct promote_change {
  struct journal_checkpoint checkpoint;
  uint64_t open, epochs, bytes;
  bool pending;                 /* what was written to scratch comes after it */
  struct divergence *divergence;
  struct epoch *later;          /* what was committed after an older checkpoint … */
  bool later_lost;              /* … or it cannot be read */
  struct writeout *backlog;     /* up to the older checkpoint; NULL: it stays as it is */
  uint64_t generation;          /* out */
};

static void
change_promote (struct journal_state *state, void *opaque)
{
  struct promote_change *c = opaque;

  state_epoch (state, c->open);
  state->state = JOURNAL_PROMOTED;
  state->generation++;
  state->checkpoint = c->checkpoint;
  state->discarded_epochs = c->epochs;
  state->discarded_bytes = c->bytes;
  state_discard (state, c->open - 1);
  state->drained = false;
  state->clean = false;
  state->pending = state->scratch = c->pending;
  c->generation = state->generation;
}

static void
answer_locked (struct replica *r, struct promote_answer *answer)
{
  answer->checkpoint = r->checkpoint;
  answer->discarded_epochs = r->discarded_epochs;
  answer->discarded_bytes = r->discarded_bytes;
  answer->generation = r->generation;
  answer->backlog = 0;
  if (!r->drained) {
    struct writeout_stat stat;

    writeout_get_stat (r->wo, &stat);
    answer->backlog = stat.bytes;
  }
  answer->drained = r->drained;
  answer->already = false;
}

/* Which checkpoint?  With the turn, without the lock. */
static int
choose (struct replica *r, const char *to, struct journal_checkpoint *chosen,
        struct mcerror *err)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *list = NULL;

  if (to == NULL) {
    SCOPED_LOCK (&r->lock);
    *chosen = r->checkpoint;
    return 0;
  }
  list = calloc (n + 1, sizeof *list);
  if (list == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot list checkpoints: %m");
  n = MIN (n, journal_checkpoints (r->journal, list, n));
  return recover_choose (list, n, to, chosen, err);
}

/* Commits after CHOSEN will be void: a write-out buffer is built from
 * those that are not, to be the replica's with the promote.  Write-out is held and not in a cycle.
 */
static struct writeout *
rebuild_writeout (struct replica *r, uint64_t chosen, struct mcerror *err)
{
  struct writeout *fresh = history_writeout_new (r);
  struct epoch *e = epoch_new ();
  struct journal_damage damage;
  struct journal_state state;
  uint64_t newest = chosen;

  journal_get_state (r->journal, &state);
  if (fresh == NULL || e == NULL ||
      replay_map (r->journal, state.watermark.id, chosen, e, &newest, &damage) == -1) {
    mcerror_set (err, errno == EBADMSG ? MCEXIT_DAMAGE : MCEXIT_USAGE,
                 "cannot rebuild checkpoint %" PRIu64 ": %m", chosen);
    writeout_free (fresh);
    epoch_free (e);
    return NULL;
  }
  writeout_add (fresh, chosen, host_time_ns (), 1, e);
  return fresh;
}

static struct epoch *
take_speculation (struct replica *r)
{
  struct epoch *taken = NULL;

  while (taken == NULL) {
    {
      SCOPED_LOCK (&r->lock);
      taken = speculation_take_all (r->spec,
                                    speculation_open_number (r->spec) + 1);
      if (taken)
        r->void_epoch = speculation_open_number (r->spec) - 1;
    }
    if (taken == NULL) {
      struct epoch *spare = epoch_new ();

      if (spare == NULL)
        return NULL;
      SCOPED_LOCK (&r->lock);
      speculation_restock (r->spec, spare);
    }
  }
  quiesce (r);
  return taken;
}

/* Drop the speculation buffer.  The journal has made it void. */
int
discard_speculation (struct replica *r)
{
  struct epoch *taken = take_speculation (r);

  if (taken == NULL)
    return -1;
  while (taken) {
    struct epoch *older = taken->older;

    epoch_free (taken);
    taken = older;
  }
  return journal_discard (r->journal);
}

int
hand_over_speculation (struct replica *r, struct epoch *more)
{
  struct epoch *taken = take_speculation (r), *last = taken;

  if (taken == NULL)
    return -1;
  while (last->older)
    last = last->older;
  last->older = more;
  {
    SCOPED_LOCK (&r->lock);
    struct epoch *unused = r->discarded;        /* of an earlier promote, which is over */

    r->discarded = taken;
    r->discarded_for = r->divergence;
    pthread_cond_signal (&r->chores);
    taken = unused;
  }
  while (taken) {
    struct epoch *older = taken->older;

    epoch_free (taken);
    taken = older;
  }
  return journal_discard (r->journal);
}

/* Keep the write-out thread from beginning a cycle, and wait until it has left the one it
 * is in, which it does after the write under way; -1 when that does not come to an end.
 */
static int
hold_writeout (struct replica *r, struct mcerror *err)
{
  uint64_t until = host_monotonic_ns () + REST_MS * UINT64_C (1000000);
  SCOPED_LOCK (&r->lock);

  r->hold_writeout = true;
  pthread_cond_signal (&r->work);
  while (r->writing_out && !r->stopping && host_monotonic_ns () < until)
    (void) wait_changed_locked (r, 100);
  if (!r->writing_out)
    return 0;
  r->hold_writeout = false;
  errno = EPERM;
  return mcerror_set (err, MCEXIT_REFUSED,
                      "cannot promote to an older checkpoint: replica is %s, and a write to a backing image "
                      "does not come to an end: mend it, or promote to the last one",
                      replica_state_word (r->state));
}

static void
release_writeout (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  r->hold_writeout = false;
  pthread_cond_signal (&r->work);
}

static int
check_promote (struct replica *r, const char *to,
               struct promote_answer *answer, struct mcerror *err)
{
  SCOPED_LOCK (&r->lock);

  if (r->state == JOURNAL_PROMOTED) {
    struct journal_checkpoint chosen;

    if (to && recover_choose (&r->checkpoint, 1, to, &chosen, NULL) == -1) {
      errno = ESHUTDOWN;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "cannot promote to %s: replica is promoted already, to checkpoint %" PRIu64
                          " in generation %" PRIu64 ": leave out to=", to, r->checkpoint.id,
                          r->generation);
    }
    answer_locked (r, answer);
    answer->already = true;
    return 1;
  }
  if (r->state == JOURNAL_FAILED) {
    errno = EIO;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot promote: replica is failed: %s", r->reason);
  }
  if (!r->has_checkpoint) {
    errno = EPERM;
    return mcerror_set (err, MCEXIT_NO_CHECKPOINT,
                        "cannot promote: replica is %s and no checkpoint exists: the image must not be used%s",
                        replica_state_word (r->state), r->state == JOURNAL_SYNCING ?
                        " before a commit has ended the first copy" :
                        ": resync overwrite begins a new first copy");
  }
  return 0;
}

static bool
is_older (struct replica *r, uint64_t checkpoint)
{
  SCOPED_LOCK (&r->lock);

  return checkpoint != r->checkpoint.id;
}

/* The moment itself: the record, then what it means in memory. */
static int
promote_record (struct replica *r, struct promote_change *change,
                struct promote_answer *answer, struct mcerror *err)
{
  if (journal_record (r->journal, JOURNAL_REC_PROMOTE, change_promote,
                      change) == -1) {
    int saved = errno;

    replica_fail (r, "recording the promote", saved);
    if (journal_failed (r->journal))
      saved = journal_failed (r->journal);
    errno = EIO;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot promote: %s/journal: %s: the replica has failed",
                        r->dir, strerror (saved));
  }
  {
    SCOPED_LOCK (&r->lock);
    /* Write-out may have failed beside it: its word of that comes before this. */
    while (r->failing)
      pthread_cond_wait (&r->changed, &r->lock);
    divergence_install_locked (r, change->divergence, !change->later_lost);
    change->divergence = NULL;
    r->state = JOURNAL_PROMOTED;
    r->scratch_is_disk = false; /* not yet */
    views_revoke_locked (r, UINT64_MAX);
    if (change->backlog) {
      struct writeout *old = r->wo;

      r->wo = change->backlog;
      change->backlog = old;
    }
    r->direct = r->drained = false;
    r->lost = false;
    r->moves++;
    r->generation = change->generation;
    r->checkpoint = change->checkpoint;
    r->discarded_epochs = change->epochs;
    r->discarded_bytes = change->bytes;
    set_reason_locked (r, "%s", "the backlog drains; the disk is served as NAME@promoted");
    house_event_locked (r, "promote", "checkpoint %" PRIu64 ", generation %" PRIu64,
                        r->checkpoint.id, r->generation);
    answer_locked (r, answer);
  }
  replica_log (r, REPLICA_LOG_INFO, "promoted to checkpoint %" PRIu64 ", generation %" PRIu64,
               change->checkpoint.id, change->generation);
  /* Promoted all the same: what cannot be recycled is only room. */
  if (hand_over_speculation (r, change->later) == -1)
    replica_fail (r, "discarding speculation", errno);
  else
    change->later = NULL;
  return 0;
}

/* The disk goes back to an older checkpoint: what was committed since differs from the old primary's, too.
 * That it cannot be read is no reason not to promote.
 */
static void
note_later (struct replica *r, struct promote_change *change)
{
  struct journal_damage damage;
  uint64_t newest = 0;

  change->later = epoch_new ();
  change->later_lost = change->later == NULL ||
    replay_map (r->journal, change->checkpoint.id, UINT64_MAX, change->later,
                &newest, &damage) == -1;
}

static int
promote_turn (struct replica *r, const char *to, bool scratch,
              struct promote_answer *answer, struct mcerror *err)
{
  struct promote_change change = { .pending = scratch };
  int result = check_promote (r, to, answer, err);
  bool failed;

  if (result != 0)
    return result == 1 ? 0 : -1;
  if (scratch && scratch_check_promote (r, err) == -1)
    return -1;
  if (choose (r, to, &change.checkpoint, err) == -1)
    return -1;
  if (is_older (r, change.checkpoint.id)) {
    if (hold_writeout (r, err) == -1)
      return -1;
    /* The cycle that just ended may have gone past what was chosen. */
    if (choose (r, to, &change.checkpoint, err) == -1 ||
        (change.backlog = rebuild_writeout (r, change.checkpoint.id, err)) == NULL) {
      release_writeout (r);
      return -1;
    }
    note_later (r, &change);
  }
  change.divergence = divergence_begin (r, replica_generation (r) + 1);
  {
    struct speculation_stat stat;
    SCOPED_LOCK (&r->lock);

    move_begin_locked (r);
    /* Write-out, or a read, may have failed meanwhile. */
    while (r->failing)
      pthread_cond_wait (&r->changed, &r->lock);
    failed = r->state == JOURNAL_FAILED;
    speculation_get_stat (r->spec, &stat);
    change.open = speculation_open_number (r->spec) + 1;
    change.epochs = stat.epochs;
    change.bytes = stat.bytes;
  }
  result = failed ? check_promote (r, to, answer, err) :
    promote_record (r, &change, answer, err);
  if (result == 0 && scratch)
    result = scratch_ingest (r, change.checkpoint.id, err);
  move_end (r);
  release_writeout (r);
  divergence_free (change.divergence);
  epoch_free (change.later);
  writeout_free (change.backlog);
  return result;
}

int
replica_promote (struct replica *r, const char *to, bool scratch,
                 struct promote_answer *answer, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    if (turn_begin_locked (r) == -1)
      return mcerror_set (err, MCEXIT_USAGE, "the server is stopping");
  }
  /* Nobody writes to it meanwhile. */
  result = scratch ? scratch_hold_all (r, err) : 0;
  if (result == 0) {
    result = promote_turn (r, to, scratch, answer, err);
    saved = errno;
    if (scratch)
      scratch_release_all (r);
    errno = saved;
  }
  answer->latency_ns = host_monotonic_ns () - since;
  saved = errno;
  {
    SCOPED_LOCK (&r->lock);
    turn_end_locked (r);
  }
  errno = saved;
  return result;
}
