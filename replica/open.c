/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening a replica: a new one, or one that lived before.
 *
 * The OPEN record is what the new process swears: in which state it found the
 * replica, and which epoch numbers are spent.  Until it is durable nothing is served.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

static const char *
show_name (const char *name)
{
  return name[0] ? name : "(unnamed)";
}

/* --- disks ------------------------------------------------------------------------ */

/* PATH made absolute; the last component need not exist.  Malloced. */
static char *
absolute (const char *path, struct mcerror *err)
{
  char *real = realpath (path, NULL);
  CLEANUP_FREE char *dir = NULL;
  CLEANUP_FREE char *real_dir = NULL;
  const char *slash = strrchr (path, '/');
  char *joined;

  if (real != NULL)
    return real;
  if (errno != ENOENT)
    goto error;
  dir = slash == NULL ? strdup (".") :
    slash == path ? strdup ("/") : strndup (path, slash - path);
  if (dir == NULL || (real_dir = realpath (dir, NULL)) == NULL ||
      asprintf (&joined, "%s/%s", real_dir[1] ? real_dir : "",
                slash ? slash + 1 : path) == -1)
    goto error;
  return joined;

 error:
  mcerror_set (err, MCEXIT_USAGE, "%s: %m", path);
  return NULL;
}

static int
open_disks (struct replica *r, const struct replica_params *params,
            struct mcerror *err)
{
  r->disks = calloc (params->ndisks, sizeof *r->disks);
  if (r->disks == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open the disks: %m");
  for (unsigned i = 0; i < params->ndisks; i++) {
    const struct replica_disk_params *p = &params->disks[i];
    struct disk *d = &r->disks[i];
    CLEANUP_FREE char *path = absolute (p->path, err);

    if (path == NULL)
      return -1;
    r->ndisks = i + 1;
    d->name = strdup (p->name);
    if (d->name == NULL)
      return mcerror_set (err, MCEXIT_USAGE, "cannot open the disks: %m");
    if (strlen (path) > JOURNAL_PATH_MAX) {
      errno = ENAMETOOLONG;
      return mcerror_set (err, MCEXIT_USAGE, "%s: %m", path);
    }
    if (backing_open (params->fs, path, p->create, p->size, &d->backing,
                      err) == -1)
      return -1;
    d->size = backing_size (d->backing);
  }
  return 0;
}

static int
fill_config (struct replica *r, struct journal_config *config,
             struct journal_disk *disks)
{
  config->ndisks = r->ndisks;
  config->disks = disks;
  for (unsigned i = 0; i < r->ndisks; i++) {
    snprintf (disks[i].name, sizeof disks[i].name, "%s", r->disks[i].name);
    snprintf (disks[i].path, sizeof disks[i].path, "%s",
              backing_path (r->disks[i].backing));
    disks[i].size = r->disks[i].size;
  }
  return 0;
}

/* --- a new replica ------------------------------------------------------------------ */

static int
create (struct replica *r, const struct replica_params *params,
        struct mcerror *err)
{
  CLEANUP_FREE struct journal_disk *disks = calloc (r->ndisks, sizeof *disks);
  struct journal_config config = {
    .size = params->journal_size ? params->journal_size :
      REPLICA_DEFAULT_JOURNAL_SIZE };
  struct journal_state state = { .state = JOURNAL_SYNCING, .generation = 1,
                                 .clean = true, .epoch = 1 };

  if (disks == NULL || host_random (config.id, sizeof config.id) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot make a new journal: %m");
  if (fill_config (r, &config, disks) == -1)
    return -1;
  if (params->baseline_trusted) {
    /* The image is checkpoint 0 from here on: it must outlive the power. */
    for (unsigned i = 0; i < r->ndisks; i++)
      if (backing_flush (r->disks[i].backing) == -1)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: cannot make the baseline durable: %m",
                            backing_path (r->disks[i].backing));
    state.state = JOURNAL_PROTECTED;
    state.has_checkpoint = true;
    state.checkpoint.time = host_time_ns ();
    state.watermark = state.checkpoint;
  }
  state_epoch (&state, 1);
  return journal_create (params->fs, params->dir, &config, &state, err);
}

/* --- one that lived before ------------------------------------------------------------ */

/* A disk's path may have changed only if nothing is left at the old one. */
static int
check_path (struct replica *r, const struct journal_disk *was,
            const struct disk *is, bool *moved, struct mcerror *err)
{
  struct io_file *old;

  if (strcmp (was->path, backing_path (is->backing)) == 0)
    return 0;
  if (io_open (r->fs, was->path, O_RDONLY, 0, &old) == 0) {
    io_close (old);
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: this journal belongs to another image: disk %s is %s, not %s: "
                        "use that image, or another journal=",
                        r->dir, show_name (was->name), was->path,
                        backing_path (is->backing));
  }
  *moved = true;
  return 0;
}

static int
check_config (struct replica *r, struct mcerror *err)
{
  const struct journal_config *config = journal_get_config (r->journal);
  bool moved = false;

  for (unsigned i = 0; i < config->ndisks; i++) {
    const struct journal_disk *was = &config->disks[i];
    const struct disk *is = NULL;

    /* The same disks in the same order: extents name them by number. */
    if (i < r->ndisks && strcmp (r->disks[i].name, was->name) == 0)
      is = &r->disks[i];
    errno = EINVAL;
    if (is == NULL)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: this journal's disk %u is %s (%s): name the disks as when the journal was made, "
                          "or use another journal=", r->dir, i + 1,
                          show_name (was->name), was->path);
    if (is->size != was->size)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: disk %s has %" PRIu64 " bytes, but had %" PRIu64 " when the journal was made: "
                          "restore its size, or begin a new replica with another journal=",
                          backing_path (is->backing), show_name (was->name), is->size, was->size);
    if (check_path (r, was, is, &moved, err) == -1)
      return -1;
  }
  if (r->ndisks > config->ndisks) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: disk %s is not in this journal: name the disks as when the journal was made, "
                        "or use another journal=", r->dir,
                        show_name (r->disks[config->ndisks].name));
  }
  if (moved) {
    CLEANUP_FREE struct journal_disk *disks = calloc (r->ndisks, sizeof *disks);
    struct journal_config next = *config;

    if (disks == NULL)
      return mcerror_set (err, MCEXIT_USAGE, "cannot note where the images are: %m");
    if (fill_config (r, &next, disks) == -1)
      return -1;
    return journal_set_config (r->journal, &next, err);
  }
  return 0;
}

/* --- what became of the speculation ---------------------------------------------------- */


static int
replay_uncommitted (void *opaque, uint64_t epoch,
                    const struct journal_extent *ext)
{
  struct replica *r = opaque;

  while (speculation_open_number (r->spec) < epoch)
    if (speculation_seal (r->spec) == -1) {
      struct epoch *e = epoch_new ();

      if (e == NULL)
        return -1;
      speculation_restock (r->spec, e);
    }
  return ext->flags & JOURNAL_ZERO ?
    speculation_zero (r->spec, ext->disk, ext->sector, ext->nsectors,
                      ext->flags & JOURNAL_MAY_TRIM) :
    speculation_put (r->spec, ext->disk, ext->sector, ext->nsectors,
                     ext->block);
}

/* Put the speculation buffer together as it was.  -1: it is not whole. */
static int
restore_speculation (struct replica *r, const struct journal_state *state)
{
  /* The epoch that closed a first copy is sealed and not committed either. */
  uint64_t first = state->state == JOURNAL_SYNCING && state->closed ?
    state->watermark.id :
    MAX (MAX (state->checkpoint.id, state->watermark.id),
         state->void_epoch) + 1;
  uint64_t open = 0;
  struct journal_damage damage;

  speculation_free (r->spec);
  r->spec = speculation_new (first);
  if (r->spec == NULL ||
      journal_replay_uncommitted (r->journal, replay_uncommitted, r, &open,
                                  &damage) == -1)
    return -1;
  while (speculation_open_number (r->spec) < open)
    if (speculation_seal (r->spec) == -1) {
      struct epoch *e = epoch_new ();

      if (e == NULL)
        return -1;
      speculation_restock (r->spec, e);
    }
  return 0;
}

static int
empty_speculation (struct replica *r, uint64_t open)
{
  speculation_free (r->spec);
  r->spec = speculation_new (open);
  return r->spec == NULL ? -1 : 0;
}

/* The committed backlog. */
static int
restore_writeout (struct replica *r, const struct journal_state *state,
                  struct journal_damage *damage)
{
  struct epoch *e;
  uint64_t newest = MAX (state->checkpoint.id, state->target);

  r->wo = writeout_new ();
  if (r->wo == NULL)
    return -1;
  if (!state->has_checkpoint)
    return 0;
  e = epoch_new ();
  if (e == NULL)
    return -1;
  if (replay_map (r->journal, state->watermark.id, UINT64_MAX, e, &newest,
                  damage) == -1) {
    epoch_free (e);
    return -1;
  }
  if (newest == state->watermark.id && map_is_empty (e->map)) {
    epoch_free (e);
    return 0;
  }
  r->backlog_since = host_monotonic_ns ();
  writeout_add (r->wo, newest, e);
  return 0;
}

/* Which state does the replica wake up in?  Fills reason; keeps *STATE's meaning otherwise. */
static int
wake (struct replica *r, struct journal_state *state, enum journal_took took,
      bool *restored, struct mcerror *err)
{
  uint8_t boot_id[HOST_ID_LEN];
  bool same_boot, whole;

  if (host_boot_id (boot_id) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot read the boot id: %m");
  same_boot = memcmp (boot_id, state->boot_id, sizeof boot_id) == 0;

  whole = (took == JOURNAL_TOOK_SHARED || took == JOURNAL_TOOK_SAVED ||
           (took == JOURNAL_TOOK_NOTHING && state->clean)) &&
    state->state != JOURNAL_STALE && state->state != JOURNAL_FAILED;
  if (whole && restore_speculation (r, state) == -1) {
    if (errno == ENOMEM)
      return mcerror_set (err, MCEXIT_USAGE, "cannot restore the speculation buffer: %m");
    whole = false;
  }
  if (whole && speculation_open_number (r->spec) < state->epoch &&
      took != JOURNAL_TOOK_SHARED) {
    /* Saved, or nothing to save: the record knows which epoch was open. */
    while (speculation_open_number (r->spec) < state->epoch) {
      struct epoch *e = NULL;

      if (speculation_seal (r->spec) == 0)
        continue;
      if ((e = epoch_new ()) == NULL)
        return mcerror_set (err, MCEXIT_USAGE, "cannot restore the speculation buffer: %m");
      speculation_restock (r->spec, e);
    }
  }
  if (!whole && empty_speculation (r, state->epoch_limit + 1) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot make the speculation buffer: %m");

  *restored = whole;
  switch (state->state) {
  case JOURNAL_SYNCING:
    if (state->closed ? !whole : !(state->clean || same_boot)) {
      state->state = JOURNAL_STALE;
      r->lost = true;
      set_reason_locked (r, "%s", "the first copy was cut short and parts of it may be lost: "
                         "start it anew after resync overwrite");
    }
    else
      set_reason_locked (r, "%s", "first copy; no checkpoint yet");
    break;
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    if (!whole) {
      state->state = JOURNAL_STALE;
      r->lost = true;
      set_reason_locked (r, "%s", took == JOURNAL_TOOK_BAD ?
                         "the server died and acknowledged writes since the last checkpoint are damaged: "
                         "start a new full mirror after the verb resync" :
                         "the server died and acknowledged writes since the last checkpoint are lost: "
                         "start a new full mirror after the verb resync");
    }
    else if (state->state == JOURNAL_RESYNCING)
      set_reason_locked (r, "%s", "a new full copy runs; the last checkpoint stays recoverable");
    break;
  case JOURNAL_STALE:
    r->lost = true;
    set_reason_locked (r, "%s", state->has_checkpoint ?
                       "the stream has a hole: start a new full mirror after the verb resync" :
                       "the stream has a hole and no checkpoint exists: start a first copy after resync overwrite");
    break;
  case JOURNAL_PROMOTED:
    r->direct = state->drained;
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
    state->void_epoch = c->open - 1;
}

static int
revive (struct replica *r, const struct replica_params *params,
        struct mcerror *err)
{
  struct journal_state state;
  struct journal_damage damage;
  struct open_change change;
  enum journal_took took;
  bool damaged = journal_get_damage (r->journal, &damage) == 1;
  bool restored = false;

  journal_get_state (r->journal, &state);
  if (journal_start (r->journal, params->buffer ? params->buffer :
                     REPLICA_DEFAULT_BUFFER, params->shared, &took, err) == -1)
    return -1;
  r->generation = state.generation;
  if (wake (r, &state, took, &restored, err) == -1)
    return -1;
  if (!damaged && restore_writeout (r, &state, &damage) == -1) {
    if (errno != EBADMSG)
      return mcerror_set (err, MCEXIT_USAGE, "%s: cannot read the journal: %m", r->dir);
    damaged = true;
  }
  if (damaged) {
    state.state = JOURNAL_FAILED;
    note_damage (r, &damage);
    if (r->wo == NULL && (r->wo = writeout_new ()) == NULL)
      return mcerror_set (err, MCEXIT_USAGE, "cannot make the write-out buffer: %m");
  }
  r->state = state.state;
  r->closed = state.closed;
  r->closed_epoch = state.watermark.id;
  r->has_checkpoint = state.has_checkpoint;
  r->checkpoint = state.checkpoint;
  r->written_out = state.has_checkpoint ? MIN (state.watermark.id, state.checkpoint.id) : 0;
  r->discarded_epochs = state.discarded_epochs;
  r->discarded_bytes = state.discarded_bytes;

  change = (struct open_change) {
    .state = r->state, .restored = restored, .open = speculation_open_number (r->spec),
    .keep_clean = state.clean && took != JOURNAL_TOOK_SHARED &&
      r->state != JOURNAL_STALE && !damaged };
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
  return 0;
}

/* --- life -------------------------------------------------------------------------------- */

static int
init_sync (struct replica *r)
{
  pthread_condattr_t attr;
  int e = pthread_condattr_init (&attr);

  if (e == 0)
    e = pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  if (e == 0)
    e = pthread_cond_init (&r->changed, &attr);
  if (e == 0)
    e = pthread_cond_init (&r->work, &attr);
  if (e == 0)
    e = pthread_cond_init (&r->chores, &attr);
  if (e == 0)
    e = pthread_mutex_init (&r->lock, NULL);
  if (e != 0) {
    errno = e;
    return -1;
  }
  (void) pthread_condattr_destroy (&attr);
  return 0;
}

static void
destroy (struct replica *r)
{
  int saved = errno;

  speculation_free (r->spec);
  writeout_free (r->wo);
  journal_close (r->journal);
  for (unsigned i = 0; i < r->ndisks; i++) {
    backing_close (r->disks[i].backing);
    free (r->disks[i].name);
  }
  free (r->disks);
  house_free (r);
  free (r->dir);
  free (r);
  errno = saved;
}

int
replica_open (const struct replica_params *params, struct replica **replica,
              struct mcerror *err)
{
  struct replica *r = calloc (1, sizeof *r);
  int exists;

  if (r == NULL || init_sync (r) == -1) {
    free (r);
    return mcerror_set (err, MCEXIT_USAGE, "cannot make the replica: %m");
  }
  r->fs = params->fs;
  r->log = params->log;
  r->log_opaque = params->log_opaque;
  r->shared = params->shared;
  r->events_end = &r->events;
  if ((r->dir = strdup (params->dir)) == NULL) {
    mcerror_set (err, MCEXIT_USAGE, "cannot make the replica: %m");
    goto error;
  }
  if (params->ndisks == 0 || params->ndisks > JOURNAL_MAX_DISKS) {
    errno = EINVAL;
    mcerror_set (err, MCEXIT_USAGE, "%u disks: a replica has 1 to %u",
                 params->ndisks, JOURNAL_MAX_DISKS);
    goto error;
  }
  if (open_disks (r, params, err) == -1)
    goto error;
  exists = journal_exists (params->fs, params->dir);
  if (exists == -1) {
    mcerror_set (err, MCEXIT_USAGE, "%s: cannot look for a journal: %m", params->dir);
    goto error;
  }
  if (!exists && create (r, params, err) == -1)
    goto error;
  if (journal_open (params->fs, params->dir, &r->journal, err) == -1 ||
      check_config (r, err) == -1 || revive (r, params, err) == -1)
    goto error;
  if (params->control) {
    char *dir = realpath (params->dir, NULL);

    if (dir) {
      free (r->dir);
      r->dir = dir;
    }
    r->control = control_listen (r, r->dir, err);
    if (r->control == NULL)
      goto error;
  }
  *replica = r;
  return 0;

 error:
  destroy (r);
  return -1;
}

int
replica_run (struct replica *r)
{
  int e;

  if (journal_run (r->journal) == -1)
    return -1;
  e = pthread_create (&r->wo_thread, NULL, writeout_main, r);
  if (e == 0) {
    e = pthread_create (&r->house_thread, NULL, house_main, r);
    if (e == 0) {
      r->running = true;
      return r->control ? control_run (r->control) : 0;
    }
    {
      SCOPED_LOCK (&r->lock);
      r->stopping = true;
      pthread_cond_broadcast (&r->work);
    }
    (void) pthread_join (r->wo_thread, NULL);
  }
  errno = e;
  return -1;
}

unsigned
replica_ndisks (struct replica *r)
{
  return r->ndisks;
}

const char *
replica_disk_name (struct replica *r, unsigned disk)
{
  return r->disks[disk].name;
}

uint64_t
replica_disk_size (struct replica *r, unsigned disk)
{
  return r->disks[disk].size;
}

uint64_t
replica_generation (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  return r->generation;
}

bool
replica_is_promoted (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  return r->state == JOURNAL_PROMOTED;
}

/* --- clean stop ----------------------------------------------------------------------------- */

static void
change_clean (struct journal_state *state, void *opaque)
{
  state_epoch (state, *(uint64_t *) opaque);
  state->clean = true;
}

/* Save what is speculative and set the clean mark.  0 when the next start goes on from here. */
static int
save (struct replica *r)
{
  struct journal_commit commit = { .kind = JOURNAL_REC_CLEAN,
                                   .change = change_clean };
  enum journal_replica_state state;
  uint64_t open;
  bool direct;

  {
    SCOPED_LOCK (&r->lock);
    state = r->state;
    open = speculation_open_number (r->spec);
    direct = r->direct;
    if (r->clean)
      return 0;
  }
  if (journal_failed (r->journal)) {
    errno = EIO;
    return -1;
  }
  switch (state) {
  case JOURNAL_SYNCING:
  case JOURNAL_PROMOTED:
    if (state == JOURNAL_PROMOTED && !direct && promoted_flush (r) == -1)
      return -1;
    for (unsigned i = 0; i < r->ndisks; i++)
      if (backing_flush (r->disks[i].backing) == -1)
        return -1;
    break;
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    break;
  case JOURNAL_STALE:
  case JOURNAL_FAILED:
    return 0;                   /* nothing in memory is worth keeping */
  }
  {
    SCOPED_LOCK (&r->lock);
    open = speculation_open_number (r->spec);
  }
  commit.epoch = open;
  commit.opaque = &open;
  return journal_do_commit (r->journal, &commit);
}

void
replica_close (struct replica *r)
{
  int saved = errno;
  bool saved_all;

  if (r == NULL)
    return;
  saved_all = r->clean;         /* if it never ran */
  control_close (r->control);
  if (r->running) {
    {
      SCOPED_LOCK (&r->lock);
      turn_begin_locked (r);
      turn_end_locked (r);
    }
    {
      SCOPED_LOCK (&r->lock);
      r->stopping = true;
      pthread_cond_broadcast (&r->changed);
      pthread_cond_broadcast (&r->work);
      pthread_cond_broadcast (&r->chores);
    }
    (void) pthread_join (r->wo_thread, NULL);
    (void) pthread_join (r->house_thread, NULL);
    saved_all = save (r) == 0;
    if (!saved_all)
      replica_log (r, REPLICA_LOG_ERROR, "%s/journal: cannot save the speculation buffer: %m", r->dir);
  }
  journal_stop (r->journal, saved_all);
  destroy (r);
  errno = saved;
}
