/* SPDX-License-Identifier: BSD-3-Clause */
/* Resync: a new full copy from the primary.
 *
 * Over a replica with a checkpoint, "resync" keeps that checkpoint recoverable: the copy is
 * speculation, and the next commit ends it.  "resync overwrite" gives up what was there
 * and starts a first copy, straight into the backing images.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "replica/internal.h"
#include "replica/sums.h"

static void
change_resync (struct journal_state *state, void *opaque)
{
  state_epoch (state, *(uint64_t *) opaque);
  state->state = JOURNAL_RESYNCING;
  state->clean = false;
  state->closed = false;        /* disks that have joined are copied anew */
  state_discard (state, *(uint64_t *) opaque - 1);
}

static void
change_overwrite (struct journal_state *state, void *opaque)
{
  uint64_t open = *(uint64_t *) opaque;

  state_epoch (state, open);
  state_discard (state, open - 1);
  state->state = JOURNAL_SYNCING;
  state->pending = state->scratch = false;
  state->has_checkpoint = false;
  state->closed = false;
  state->drained = false;
  state->clean = false;
  state->checkpoint = (struct journal_checkpoint) { .id = 0 };
  /* No commit up to here is ever replayed again. */
  state->watermark = (struct journal_checkpoint) { .id = open - 1 };
  state->target = open - 1;
}

static int
refuse_locked (struct replica *r, const char *way_out, struct mcerror *err)
{
  errno = EPERM;
  return mcerror_set (err, MCEXIT_REFUSED, "cannot resync: replica is %s: %s",
                      replica_state_word (r->state), way_out);
}

static int
check_resync_locked (struct replica *r, bool overwrite, struct mcerror *err)
{
  if (overwrite)
    return 0;
  if (journal_failed (r->journal))
    return refuse_locked (r, "its journal failed: mend the device, then resync overwrite", err);
  switch (r->state) {
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    return 0;
  case JOURNAL_STALE:
    return r->has_checkpoint ? 0 :
      refuse_locked (r, "no checkpoint exists: use resync overwrite", err);
  case JOURNAL_SYNCING:
    return refuse_locked (r, "the first copy is still going on: commit ends it, resync overwrite starts it anew", err);
  case JOURNAL_PROMOTED:
    return refuse_locked (r, "this copy is the disk: only resync overwrite makes it a standby again", err);
  case JOURNAL_FAILED:
    return refuse_locked (r, "use resync overwrite", err);
  }
  return refuse_locked (r, "unknown state", err);
}

/* For an overwrite, or with a disk that has joined: no cycle of write-out, and no write that is
 * still on its way to an image, and no flush that ends a copy, may come after the new copy has begun.  Called while
 * moving, so that none begins.
 */
static int
come_to_rest_locked (struct replica *r, struct mcerror *err)
{
  uint64_t until = host_monotonic_ns () + REST_MS * UINT64_C (1000000);

  r->hold_writeout = true;
  pthread_cond_signal (&r->work);
  r->want_idle++;
  while ((r->writing_out || r->finishing || r->through > r->parked) && !r->stopping &&
         host_monotonic_ns () < until)
    (void) wait_changed_locked (r, 100);
  r->want_idle--;
  if (!r->writing_out && !r->finishing && r->through <= r->parked)
    return 0;
  return refuse_locked (r, "writes to a backing image do not come to an end: mend it, or restart the server", err);
}

static bool
has_fresh_locked (const struct replica *r)
{
  for (unsigned i = 0; i < r->ndisks; i++)
    if (disk_is_fresh_locked (r, i))
      return true;
  return false;
}

/* With the turn, moving. */
static int
resync_moving (struct replica *r, uint64_t generation, bool overwrite, struct mcerror *err)
{
  struct writeout *fresh = NULL, *old = NULL;
  bool start;
  uint64_t open;

  {
    SCOPED_LOCK (&r->lock);

    /* What is noted of a failure must not come after the record. */
    while (r->failing)
      pthread_cond_wait (&r->changed, &r->lock);
    if (check_generation_locked (r, "resync", generation, err) == -1 ||
        check_resync_locked (r, overwrite, err) == -1 ||
        ((overwrite || has_fresh_locked (r)) &&
         come_to_rest_locked (r, err) == -1))
      return -1;
    open = speculation_open_number (r->spec) + 1;
  }
  if (overwrite && (fresh = history_writeout_new (r)) == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot resync: %m");
  if ((overwrite ? journal_begin_anew (r->journal, change_overwrite, &open) :
       journal_record (r->journal, JOURNAL_REC_STATE, change_resync, &open)) == -1) {
    int saved = errno;

    replica_fail (r, "recording the resync", saved);
    if (journal_failed (r->journal))
      saved = journal_failed (r->journal);
    errno = EIO;
    mcerror_set (err, MCEXIT_REFUSED, "cannot resync: %s/journal: %s: the replica has failed%s",
                 r->dir, strerror (saved), overwrite ? ": mend the device, then resync overwrite again" : "");
    writeout_free (fresh);
    return -1;
  }
  if (overwrite)
    sums_forget (r->sums);
  {
    SCOPED_LOCK (&r->lock);
    /* Write-out may have failed beside it. */
    while (r->failing)
      pthread_cond_wait (&r->changed, &r->lock);
    if (!overwrite && r->state == JOURNAL_FAILED)
      return refuse_locked (r, r->reason, err);
    /* Whoever still sends on an old connection sends into the hole; from
     * protected the mirror may well start over on the one it has.
     */
    if (r->state != JOURNAL_PROTECTED && r->state != JOURNAL_RESYNCING &&
        r->state != JOURNAL_SYNCING)
      r->fence++;
    r->state = overwrite ? JOURNAL_SYNCING : JOURNAL_RESYNCING;
    r->lost = r->closed = r->direct = r->drained = r->drain_hold = false;
    start = r->damaged && r->running;
    r->clean = r->keep_memory = r->damaged = r->failure_noted = false;
    r->moves++;
    /* Their content is copied anew. */
    for (unsigned i = 0; i < r->ndisks; i++)
      if (overwrite || disk_is_fresh_locked (r, i))
        backing_restart (r->disks[i].backing);
    if (overwrite) {
      r->has_checkpoint = false;
      r->checkpoint = (struct journal_checkpoint) { .id = 0 };
      r->written_out = 0;
      r->backlog_since = 0;
      views_revoke_locked (r, UINT64_MAX);
      r->wo_error[0] = '\0';    /* what it could not write is not wanted any more */
      r->history_yields = false;
      old = r->wo;
      r->wo = fresh;
    }
    set_reason_locked (r, "%s", overwrite ? "first copy; no checkpoint yet" :
                       "a new full copy runs; the last checkpoint stays recoverable");
    house_event_locked (r, "resync", "%s", overwrite ? "overwrite" : "");
  }
  if (discard_speculation (r) == -1 ||
      (overwrite && journal_forget (r->journal, open - 1) == -1))
    replica_fail (r, "recycling", errno);
  if (start && journal_run (r->journal) == -1)
    replica_fail (r, "starting its threads", errno);
  writeout_free (old);
  return 0;
}

static int
resync_turn (struct replica *r, uint64_t generation, bool overwrite, struct mcerror *err)
{
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    move_begin_locked (r);
  }
  result = resync_moving (r, generation, overwrite, err);
  saved = errno;
  {
    SCOPED_LOCK (&r->lock);
    r->hold_writeout = false;
    pthread_cond_signal (&r->work);
  }
  move_end (r);
  errno = saved;
  return result;
}

int
replica_resync (struct replica *r, bool overwrite, struct mcerror *err)
{
  return replica_resync_in (r, 0, overwrite, err);
}

int
replica_resync_in (struct replica *r, uint64_t generation, bool overwrite,
                   struct mcerror *err)
{
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    if (turn_begin_locked (r) == -1)
      return mcerror_set (err, MCEXIT_USAGE, "the server is stopping");
  }
  result = resync_turn (r, generation, overwrite, err);
  saved = errno;
  {
    SCOPED_LOCK (&r->lock);
    turn_end_locked (r);
  }
  errno = saved;
  return result;
}
