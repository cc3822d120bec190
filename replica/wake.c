/* SPDX-License-Identifier: BSD-3-Clause */
/* Waking a replica that lived before: what became of the speculation, in which state that leaves it,
 * and what is still to be written out.
 *
 * The OPEN record is what the new process swears: in which state it found the
 * replica, and which epoch numbers are spent.  Until it is durable nothing is served.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/samples.h"
#include "replica/sums.h"

/* Seal until EPOCH is open. */
static int
seal_up_to (struct replica *r, uint64_t epoch)
{
  while (speculation_open_number (r->spec) < epoch) {
    if (speculation_seal (r->spec) == -1) {
      struct epoch *e = epoch_new ();

      if (e == NULL)
        return -1;
      speculation_restock (r->spec, e);
    }
    else if (replica_tighten (r) == -1)
      return -1;
  }
  return 0;
}

static int
replay_uncommitted (void *opaque, uint64_t epoch,
                    const struct journal_extent *ext)
{
  struct replica *r = opaque;

  if (seal_up_to (r, epoch) == -1)
    return -1;
  return ext->flags & JOURNAL_ZERO ?
    speculation_zero (r->spec, ext->disk, ext->sector, ext->nsectors,
                      ext->flags & JOURNAL_MAY_TRIM) :
    speculation_put (r->spec, ext->disk, ext->sector, ext->nsectors,
                     ext->block);
}

/* Put the speculation buffer together as it was.  -1: it is not whole. */
static int
restore_speculation (struct replica *r, const struct journal_state *state,
                     uint64_t newest)
{
  /* The epoch that closed a first copy is sealed and not committed either. */
  uint64_t first = state->state == JOURNAL_SYNCING && state->closed ?
    state->watermark.id :
    MAX (newest, state->void_epoch) + 1;
  uint64_t open = 0;
  struct journal_damage damage;

  speculation_free (r->spec);
  r->spec = speculation_new (first);
  if (r->spec == NULL ||
      journal_replay_uncommitted (r->journal, replay_uncommitted, r, &open,
                                  &damage) == -1)
    return -1;
  return seal_up_to (r, open);
}

static int
empty_speculation (struct replica *r, uint64_t open)
{
  speculation_free (r->spec);
  r->spec = speculation_new (open);
  return r->spec == NULL ? -1 : 0;
}

static bool
has_fresh (const struct replica *r, const struct journal_state *state)
{
  for (unsigned i = 0; i < r->ndisks; i++)
    if (!state->has_checkpoint || state->checkpoint.id < r->disks[i].joined)
      return true;
  return false;
}

/* Is each disk that no checkpoint has yet one that the user adds? */
static bool
joins (const struct replica *r, const struct journal_state *state,
       const struct replica_params *params)
{
  for (unsigned i = 0; i < r->ndisks; i++) {
    bool added = state->has_checkpoint && state->checkpoint.id >= r->disks[i].joined;

    for (unsigned k = 0; k < params->nadd && !added; k++)
      added = strcmp (params->add[k], r->disks[i].name) == 0;
    if (!added)
      return false;
  }
  return true;
}

/* Writes of a first copy went straight to the images and nobody has flushed them: are
 * they there all the same?
 */
static bool
copy_is_whole (const struct replica *r, const struct journal_state *state,
               bool same_boot)
{
  if (state->clean)
    return true;
  for (unsigned i = 0; i < r->ndisks; i++)
    if ((!state->has_checkpoint ||
         state->checkpoint.id < r->disks[i].joined) &&
        !backing_outlives (r->disks[i].backing))
      return false;
  return same_boot;
}

/* Which state does the replica wake up in?  Fills reason; keeps *STATE's meaning otherwise.
 * WHY what there was could not be taken over, "" when there was nothing.
 */
static int
wake (struct replica *r, const struct replica_params *params,
      struct journal_state *state, uint64_t newest,
      enum journal_took took, const char *why, bool *restored,
      struct mcerror *err)
{
  uint8_t boot_id[HOST_ID_LEN];
  bool same_boot, whole;

  if (host_boot_id (boot_id) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot read the boot id: %m");
  same_boot = memcmp (boot_id, state->boot_id, sizeof boot_id) == 0;

  whole = (took == JOURNAL_TOOK_SHARED || took == JOURNAL_TOOK_SAVED ||
           (took == JOURNAL_TOOK_NOTHING && state->clean)) &&
    state->state != JOURNAL_STALE && state->state != JOURNAL_FAILED &&
    !state->pending;            /* half of what was written to scratch is no disk */
  if (whole && restore_speculation (r, state, newest) == -1) {
    if (errno == ENOMEM)
      return mcerror_set (err, MCEXIT_USAGE, "cannot restore the speculation buffer: %m");
    whole = false;
  }
  /* Saved, or nothing to save: the record knows which epoch was open. */
  if (whole && took != JOURNAL_TOOK_SHARED &&
      seal_up_to (r, state->epoch) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot restore the speculation buffer: %m");
  if (!whole && empty_speculation (r, state->epoch_limit + 1) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot make the speculation buffer: %m");

  *restored = whole;
  if (why[0] == '\0')
    why = took == JOURNAL_TOOK_SHARED ?
      "what the last server left in shared memory does not verify" :
      same_boot ? "the shared memory of the last server is gone" :
      "this host went down";
  switch (state->state) {
  case JOURNAL_SYNCING:
    if ((state->closed ? !whole : took == JOURNAL_TOOK_BAD) ||
        !copy_is_whole (r, state, same_boot)) {
      state->state = JOURNAL_STALE;
      r->lost = true;
      set_reason_locked (r, "the first copy was cut short and parts of it may be lost (%s): "
                         "start it anew after resync overwrite", why);
    }
    else
      set_reason_locked (r, "%s", state->instance == 0 ?
                         "first copy; no checkpoint yet" :
                         "the first copy goes on after a restart; no checkpoint yet");
    break;
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    if (whole && has_fresh (r, state) && !copy_is_whole (r, state, same_boot)) {
      state->state = JOURNAL_STALE;
      r->lost = true;
      set_reason_locked (r, "%s", "the copy of a disk that has joined was cut short and parts of it may be lost: "
                         "start it anew after the verb resync");
    }
    else if (!whole) {
      state->state = JOURNAL_STALE;
      r->lost = true;
      set_reason_locked (r, "acknowledged writes since the last checkpoint are lost (%s): "
                         "start a new full mirror after the verb resync", why);
    }
    else if (state->state == JOURNAL_PROTECTED && has_fresh (r, state) && !joins (r, state, params)) {
      /* Its mirror knows nothing of that, and sends what changes. */
      state->state = JOURNAL_STALE;
      r->lost = true;
      set_reason_locked (r, "%s", "a disk was to leave without its image, and has stayed: what was committed to it and not "
                         "written out is lost: start a new full mirror after the verb resync");
    }
    else if (has_fresh (r, state)) {
      state->state = JOURNAL_RESYNCING;
      set_reason_locked (r, "%s", "a disk has joined and is being copied; the last checkpoint, "
                         "which does not have it, stays recoverable");
    }
    else if (state->state == JOURNAL_RESYNCING)
      set_reason_locked (r, "%s", "a new full copy runs; the last checkpoint stays recoverable");
    break;
  case JOURNAL_STALE:
    r->lost = true;
    set_reason_locked (r, "%sthe stream has a hole%s", journal_was_failed (r->journal) ?
                       "the journal had failed under the last server: " : "", state->has_checkpoint ?
                       ": start a new full mirror after the verb resync" :
                       " and no checkpoint exists: start a first copy after resync overwrite");
    break;
  case JOURNAL_PROMOTED:
    r->direct = r->drained = state->drained;
    r->scratch_is_disk = state->scratch && !state->pending;
    set_reason_locked (r, "%s", state->drained ?
                       "the backlog is drained: the backing images are the disk" :
                       "the backlog drains; the disk is served as NAME@promoted");
    break;
  case JOURNAL_FAILED:
    set_reason_locked (r, "%s", "the journal cannot be trusted: mcbuf-recover shows what is whole; "
                       "resync overwrite starts anew");
    break;
  }
  return 0;
}

static void
note_damage (struct replica *r, const struct journal_damage *damage)
{
  set_reason_locked (r, "the journal is damaged: %s: offset %" PRIu64 ": %s: stop the server, then "
                     "mcbuf-recover --verify shows what is whole", damage->file, damage->offset, damage->what);
}

/* Are the backing images what was written out to them?  -1: cannot tell. */
static int
check_images (struct replica *r, bool *damaged)
{
  struct samples_miss miss;

  int found = samples_check (r->journal, r->disks, r->ndisks, &miss);

  if (found == 1)
    found = sums_check (r->sums, r->disks, r->ndisks, SUMS_SOME, &miss);
  switch (found) {
  case 1:
    return 0;
  case 0:
    set_reason_locked (r, "%s: offset %" PRIu64 ": %s: restore it, or start anew after resync overwrite",
                       backing_path (r->disks[miss.disk].backing), miss.offset, samples_miss_text (&miss));
    *damaged = true;
    return 0;
  }
  if (errno == ENOMEM)
    return -1;
  /* Write-out will meet it, too, and wait until it is mended. */
  replica_log (r, REPLICA_LOG_ERROR, "%s: cannot read the backing image: %m",
               backing_path (r->disks[miss.disk].backing));
  return 0;
}

/* What is damaged is left as it is, to the last byte: whatever mends it, or recovers from it, is to
 * find it so.  The replica only tells, until a resync overwrites it all.
 */
static int
wake_damaged (struct replica *r, const struct journal_state *state,
              enum journal_took took, struct mcerror *err)
{
  if (empty_speculation (r, state->epoch_limit + 1) == -1 ||
      (r->wo == NULL && (r->wo = writeout_new ()) == NULL))
    return mcerror_set (err, MCEXIT_USAGE, "cannot make the buffers: %m");
  r->state = JOURNAL_FAILED;
  r->damaged = true;
  r->keep_memory = took == JOURNAL_TOOK_SHARED;
  r->clean = false;
  r->generation = state->generation;
  r->has_checkpoint = state->has_checkpoint;
  r->checkpoint = state->checkpoint;
  r->written_out = state->has_checkpoint ? MIN (state->watermark.id, state->checkpoint.id) : 0;
  r->discarded_epochs = state->discarded_epochs;
  r->discarded_bytes = state->discarded_bytes;
  r->epoch_limit = state->epoch_limit;
  r->void_epoch = state->void_epoch;
  house_event_locked (r, "open", "failed: %s", r->reason);
  replica_log (r, REPLICA_LOG_ERROR, "%s: replica has failed: %s", r->dir, r->reason);
  return 0;
}

struct open_change {
  enum journal_replica_state state;
  uint64_t open;
  bool keep_clean, restored;
};

static void
change_open (struct journal_state *state, void *opaque)
{
  const struct open_change *c = opaque;

  state_epoch (state, c->open);
  if (c->state != JOURNAL_FAILED)       /* damage is found anew each time, or mended */
    state->state = c->state;
  state->instance++;
  if (!c->keep_clean)
    state->clean = false;
  if (!c->restored)
    state_discard (state, c->open - 1);
  if (state->pending)           /* promoted without what was written to scratch */
    state->pending = state->scratch = false;
}

/* What the buffer took.  Who named its size gets that or an error; else less will do, and is
 * no reason for a standby not to run.
 */
static void
log_buffer (struct replica *r, const struct replica_params *params)
{
  struct journal_usage u;
  const char *of = params->shared ? " of shared memory (/dev/shm)" : " of memory";

  journal_get_usage (r->journal, &u);
  if (u.buffer_size < u.buffer_asked)
    replica_log (r, REPLICA_LOG_ERROR, "warning: the buffer has %" PRIu64 " bytes%s and not %" PRIu64
                 ": %s: writers wait for the journal sooner: make room there, or name a smaller buffer=",
                 u.buffer_size, of, u.buffer_asked, strerror (u.buffer_error));
  replica_log (r, REPLICA_LOG_INFO, "%s: the buffer took %" PRIu64 " bytes%s, prefaulted in %" PRIu64
               " ms%s", r->dir, u.buffer_size, of, u.buffer_ns / 1000000,
               u.buffer_size > u.buffer_asked ?
               ": what the last server left is kept until a clean stop, though it is more than buffer= says" : "");
}

int
revive (struct replica *r, const struct replica_params *params,
        struct mcerror *err)
{
  struct journal_state state;
  struct journal_damage damage;
  struct open_change change;
  enum journal_took took;
  bool damaged = journal_get_damage (r->journal, &damage) == 1;
  bool restored = false;
  struct mcerror why = { .text = "" };
  uint64_t newest;

  journal_get_state (r->journal, &state);
  if (!damaged)                 /* which is left as it is */
    r->sums = sums_open (r->fs, r->dir, r->journal, false);
  if (damaged)
    note_damage (r, &damage);
  else if (check_images (r, &damaged) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot look at the backing images: %m");
  if (params->buffer == 0)
    journal_set_least_buffer (r->journal, 0);
  if (journal_start (r->journal, params->buffer ? params->buffer :
                     REPLICA_DEFAULT_BUFFER, params->shared, &took, &why) == -1)
    return mcerror_set (err, why.code, "%s", why.text);
  log_buffer (r, params);
  r->generation = state.generation;
  newest = MAX (MAX (state.checkpoint.id, state.watermark.id), state.target);
  r->wo = history_writeout_new (r);
  if (r->wo == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot make the write-out buffer: %m");
  if (!damaged && state.has_checkpoint &&
      history_restore (r, &state, &newest, &damage) == -1) {
    if (errno != EBADMSG)
      return mcerror_set (err, MCEXIT_USAGE, "%s: cannot read the journal: %m", r->dir);
    damaged = true;
    note_damage (r, &damage);
  }
  if (damaged)
    return wake_damaged (r, &state, took, err);
  if (wake (r, params, &state, newest, took, why.text, &restored, err) == -1)
    return -1;
  r->state = state.state;
  r->closed = state.closed;
  r->closed_epoch = state.watermark.id;
  r->has_checkpoint = state.has_checkpoint;
  r->checkpoint = state.checkpoint;
  r->written_out = state.has_checkpoint ? MIN (state.watermark.id, state.checkpoint.id) : 0;
  r->discarded_epochs = state.discarded_epochs;
  r->discarded_bytes = state.discarded_bytes;

  /* They may be out of date: see samples_check. */
  if (state.state == JOURNAL_PROMOTED && journal_backlog (r->journal) == 0) {
    journal_set_samples (r->journal, NULL, 0);
    sums_forget (r->sums);
  }
  change = (struct open_change) {
    .state = r->state, .restored = restored, .open = speculation_open_number (r->spec),
    .keep_clean = state.clean && took != JOURNAL_TOOK_SHARED &&
      r->state != JOURNAL_STALE };
  r->clean = change.keep_clean;
  if (journal_record (r->journal, JOURNAL_REC_OPEN, change_open,
                      &change) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s/journal: cannot write: %m", r->dir);
  if (!restored && journal_discard (r->journal) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s/journal: %m", r->dir);
  journal_get_state (r->journal, &state);
  r->epoch_limit = state.epoch_limit;
  r->void_epoch = state.void_epoch;
  house_event_locked (r, "open", "%s%s%s", replica_state_word (r->state),
                      r->reason[0] ? ": " : "", r->reason);
  replica_log (r, r->state == JOURNAL_STALE || r->state == JOURNAL_FAILED ?
               REPLICA_LOG_ERROR : REPLICA_LOG_INFO, "%s: replica is %s%s%s", r->dir,
               replica_state_word (r->state), r->reason[0] ? ": " : "", r->reason);
  return 0;
}

