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

static void
change_resync (struct journal_state *state, void *opaque)
{
  state_epoch (state, *(uint64_t *) opaque);
  state->state = JOURNAL_RESYNCING;
  state->clean = false;
  state->void_epoch = *(uint64_t *) opaque - 1;
}

static void
change_overwrite (struct journal_state *state, void *opaque)
{
  uint64_t open = *(uint64_t *) opaque;

  state_epoch (state, open);
  state->state = JOURNAL_SYNCING;
  state->has_checkpoint = false;
  state->closed = false;
  state->drained = false;
  state->clean = false;
  state->void_epoch = open - 1;
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
  if (journal_failed (r->journal))
    return refuse_locked (r, "its journal failed: mend the device, restart the server, then resync overwrite", err);
  if (overwrite)
    return 0;
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

static int
resync_turn (struct replica *r, bool overwrite, struct mcerror *err)
{
  struct writeout *fresh = NULL, *old = NULL;
  uint64_t open;

  {
    SCOPED_LOCK (&r->lock);

    if (check_resync_locked (r, overwrite, err) == -1)
      return -1;
    open = speculation_open_number (r->spec) + 1;
    if (overwrite) {
      r->hold_writeout = true;
      while (r->writing_out && !r->stopping && r->wo_error[0] == '\0')
        pthread_cond_wait (&r->changed, &r->lock);
      if (r->writing_out) {
        r->hold_writeout = false;
        return refuse_locked (r, "write-out does not come to an end: mend the backing image, or restart the server", err);
      }
      /* What is on its way to the images of a promoted disk must not land on the new copy. */
      r->drain_hold = true;
      r->want_idle++;
      while (r->state == JOURNAL_PROMOTED && r->through > 0)
        pthread_cond_wait (&r->changed, &r->lock);
      r->want_idle--;
    }
  }
  if (overwrite && (fresh = writeout_new ()) == NULL) {
    mcerror_set (err, MCEXIT_USAGE, "cannot resync: %m");
    goto error;
  }
  if (journal_record (r->journal, JOURNAL_REC_STATE,
                      overwrite ? change_overwrite : change_resync,
                      &open) == -1) {
    replica_fail (r, "recording the resync", errno);
    mcerror_set (err, MCEXIT_REFUSED, "cannot resync: %s/journal: %m", r->dir);
    goto error;
  }
  {
    SCOPED_LOCK (&r->lock);
    /* Whoever still sends on an old connection sends into the hole; from
     * protected the mirror may well start over on the one it has.
     */
    if (r->state != JOURNAL_PROTECTED && r->state != JOURNAL_RESYNCING &&
        r->state != JOURNAL_SYNCING)
      r->fence++;
    r->state = overwrite ? JOURNAL_SYNCING : JOURNAL_RESYNCING;
    r->drain_hold = false;
    r->lost = r->closed = r->direct = false;
    r->clean = false;
    if (overwrite) {
      r->has_checkpoint = false;
      r->checkpoint = (struct journal_checkpoint) { .id = 0 };
      r->written_out = 0;
      r->backlog_since = 0;
      old = r->wo;
      r->wo = fresh;
      fresh = NULL;
    }
    set_reason_locked (r, "%s", overwrite ? "first copy; no checkpoint yet" :
                       "a new full copy runs; the last checkpoint stays recoverable");
    house_event_locked (r, "resync", "%s", overwrite ? "overwrite" : "");
    pthread_cond_broadcast (&r->changed);
  }
  if (discard_speculation (r) == -1 ||
      (overwrite && journal_forget (r->journal, open - 1) == -1))
    replica_fail (r, "recycling", errno);
  writeout_free (old);
  {
    SCOPED_LOCK (&r->lock);
    r->hold_writeout = false;
    pthread_cond_signal (&r->work);
  }
  return 0;

 error:
  {
    int saved = errno;
    SCOPED_LOCK (&r->lock);

    r->hold_writeout = r->drain_hold = false;
    pthread_cond_broadcast (&r->changed);
    errno = saved;
  }
  writeout_free (fresh);
  return -1;
}

int
replica_resync (struct replica *r, bool overwrite, struct mcerror *err)
{
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    turn_begin_locked (r);
  }
  result = resync_turn (r, overwrite, err);
  saved = errno;
  {
    SCOPED_LOCK (&r->lock);
    turn_end_locked (r);
  }
  errno = saved;
  return result;
}
