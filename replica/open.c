/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening a replica, its threads, and its clean stop. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "common/lock.h"
#include "common/uri.h"
#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/samples.h"
#include "replica/sums.h"

#define STOP_MS 10000           /* how long a stop waits for requests under way */

/* --- disks ------------------------------------------------------------------------ */

/* PATH's last part, wherever that leads to, in the real directory. */
static char *
in_real_directory (const char *path)
{
  const char *slash = strrchr (path, '/');
  CLEANUP_FREE char *dir = slash == NULL ? strdup (".") :
    slash == path ? strdup ("/") : strndup (path, slash - path);
  CLEANUP_FREE char *real_dir = dir ? realpath (dir, NULL) : NULL;
  char *joined;

  if (real_dir == NULL ||
      asprintf (&joined, "%s/%s", real_dir[1] ? real_dir : "",
                slash ? slash + 1 : path) == -1)
    return NULL;
  return joined;
}

char *
real_path (const struct io_fs *fs, const char *path)
{
  struct stat st;

  /* Only the host's file systems have links and a working directory; a URI is
   * the same everywhere.
   */
  if (fs != &io_posix || uri_is_nbd (path))
    return strdup (path);
  /* /dev/sdb is another disk after the next boot, /dev/disk/by-id/... is not. */
  if (stat (path, &st) == 0 && S_ISBLK (st.st_mode))
    return in_real_directory (path);
  return realpath (path, NULL);
}

char *
absolute_path (const struct io_fs *fs, const char *path, struct mcerror *err)
{
  char *real = real_path (fs, path);

  if (real == NULL && errno == ENOENT)
    real = in_real_directory (path);
  if (real == NULL)
    mcerror_set (err, MCEXIT_USAGE, "%s: %m", path);
  return real;
}

/* Does the image of a disk that lived before fit what the user says of it? */
static int
check_existing (const struct replica_disk_params *p, const struct disk *d,
                struct mcerror *err)
{
  if (!p->create || d->size == p->size)
    return 0;
  errno = EINVAL;
  return mcerror_set (err, MCEXIT_USAGE,
                      "%s: the backing image has %" PRIu64 " bytes, size= says %" PRIu64
                      ": leave size= out, or restore the image",
                      backing_path (d->backing), d->size, p->size);
}

/* Once there is a journal no image is made: a new one, all zeroes, would pass for
 * what was written out to the one that is missing.
 */
static int
open_disks (struct replica *r, const struct replica_params *params,
            bool exists, struct mcerror *err)
{
  r->disks = calloc (params->ndisks, sizeof *r->disks);
  if (r->disks == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open the disks: %m");
  for (unsigned i = 0; i < params->ndisks; i++) {
    const struct replica_disk_params *p = &params->disks[i];
    struct disk *d = &r->disks[i];
    CLEANUP_FREE char *path = p->leaves ? strdup (p->path) :
      absolute_path (params->fs, p->path, err);

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
    if (p->leaves) {
      if (leaving_open (params->fs, path, p->size, d, err) == -1)
        return -1;
      continue;
    }
    if (backing_open (params->fs, path, p->create && !exists, p->size,
                      &d->backing, err) == -1) {
      if (exists && errno == ENOENT)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: the backing image is gone, but the journal %s is there: "
                            "restore the image, or begin a new replica with another journal=",
                            path, params->dir);
      return -1;
    }
    if (p->create)
      backing_fit (d->backing, p->size);
    d->size = backing_size (d->backing);
    if (exists && check_existing (p, d, err) == -1)
      return -1;
  }
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
    e = lock_init (&r->lock);
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

  control_close (r->control);
  speculation_free (r->spec);
  writeout_free (r->wo);
  house_free (r);
  sums_close (r->sums);
  journal_close (r->journal);
  scratch_forget (r);
  for (unsigned i = 0; i < r->ndisks; i++) {
    backing_close (r->disks[i].backing);
    free (r->disks[i].name);
  }
  free (r->disks);
  while (r->discarded) {
    struct epoch *older = r->discarded->older;

    epoch_free (r->discarded);
    r->discarded = older;
  }
  divergence_free (r->divergence);
  free (r->dir);
  free (r);
  errno = saved;
}

/* Whoever names another size gets it if that can be.  It is no reason not to start. */
static void
resize (struct replica *r, uint64_t size)
{
  const uint64_t was = journal_get_config (r->journal)->size;
  struct journal_damage damage;
  const char *why;

  size = ROUND_DOWN (size, (uint64_t) JOURNAL_CHUNK);
  if (size == was || journal_get_damage (r->journal, &damage) == 1)
    return;
  if (journal_resize (r->journal, size) == 0) {
    replica_log (r, REPLICA_LOG_INFO, "%s/journal has %" PRIu64 " bytes now, and had %" PRIu64,
                 r->dir, size, was);
    return;
  }
  why = errno == EBUSY && journal_backlog (r->journal) > 0 ?
    "what is retained needs more; try again when all is committed and write-out has caught up" :
    errno == EBUSY ? "what is retained is not committed; try again after a commit" :
    errno == EAGAIN ? "only after a clean stop" : strerror (errno);
  replica_log (r, REPLICA_LOG_ERROR, "%s/journal keeps its %" PRIu64 " bytes, journal-size=%" PRIu64
               " is not used: %s", r->dir, was, size, why);
}

/* The set of disks has changed, and nothing has been written out since: know the images again.
 * They are durable, and those of disks that are in the last checkpoint are that.
 */
static void
know_images (struct replica *r)
{
  struct journal_sample list[JOURNAL_SAMPLES];
  struct journal_damage damage;
  struct journal_state state;
  unsigned n, kept = 0;

  journal_get_state (r->journal, &state);
  if (!state.has_checkpoint || state.state == JOURNAL_PROMOTED ||
      state.state == JOURNAL_FAILED || journal_backlog (r->journal) > 0 ||
      journal_get_damage (r->journal, &damage) == 1 ||
      journal_get_samples (r->journal, list) > 0)
    return;
  samples_take (r->journal, r->disks, r->ndisks);
  n = journal_get_samples (r->journal, list);
  for (unsigned i = 0; i < n; i++) {
    const struct disk *d = &r->disks[list[i].disk];

    /* One that has joined is still being copied. */
    if (state.checkpoint.id >= d->joined && !d->lost)
      list[kept++] = list[i];
  }
  journal_set_samples (r->journal, list, kept);
}

/* Nothing in there can be as durable as a commit says it is. */
static void
warn_of_memory (struct replica *r)
{
  struct statfs st;

  if (r->fs == &io_posix && statfs (r->dir, &st) == 0 &&
      ((uint32_t) st.f_type == TMPFS_MAGIC ||
       (uint32_t) st.f_type == RAMFS_MAGIC))
    replica_log (r, REPLICA_LOG_ERROR, "%s: the journal is on a file system in memory: a reboot loses it, "
                 "and all checkpoints with it: name another directory with journal=", r->dir);
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
  r->history = params->history;
  r->events_end = &r->events;
  r->house.behind = true;
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
  exists = journal_exists (params->fs, params->dir);
  if (exists == -1) {
    mcerror_set (err, MCEXIT_USAGE, "%s: cannot look for a journal: %m", params->dir);
    goto error;
  }
  if (exists && replica_regroup (params, err) == -1)
    goto error;
  if (exists &&
      (journal_open (params->fs, params->dir, &r->journal, err) == -1 ||
       check_disk_names (params, journal_get_config (r->journal), err) == -1))
    goto error;
  if (open_disks (r, params, exists, err) == -1)
    goto error;
  if (!exists &&
      (replica_create (r, params, err) == -1 ||
       journal_open (params->fs, params->dir, &r->journal, err) == -1))
    goto error;
  if (!exists && params->baseline_trusted)
    samples_take (r->journal, r->disks, r->ndisks);
  if (check_config (r, err) == -1)
    goto error;
  if (exists && leaving_check (r, params) == -1) {
    mcerror_set (err, MCEXIT_USAGE, "cannot look at the backing images: %m");
    goto error;
  }
  if (exists)
    know_images (r);
  if (exists && params->journal_size)
    resize (r, params->journal_size);
  /* Before anything is in shared memory that a start which fails would leave there. */
  if (params->control) {
    char *dir = real_path (params->fs, params->dir);

    if (dir) {
      free (r->dir);
      r->dir = dir;
    }
    r->control = control_listen (r, r->dir, err);
    if (r->control == NULL)
      goto error;
  }
  if (revive (r, params, err) == -1)
    goto error;
  if (r->state == JOURNAL_PROMOTED)
    r->divergence = divergence_load (r);
  warn_of_memory (r);
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

  /* They would push, and zero, what is to stay as it is. */
  if (!r->damaged && journal_run (r->journal) == -1)
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

/* Make the images durable that are written to straight.  -1: they are not, and that is noted. */
static int
save_images (struct replica *r, enum journal_replica_state state)
{
  bool straight[JOURNAL_MAX_DISKS] = { false };

  {
    SCOPED_LOCK (&r->lock);
    for (unsigned i = 0; i < r->ndisks; i++)
      straight[i] = state == JOURNAL_PROMOTED ? !disk_is_fresh_locked (r, i) :
        disk_is_fresh_locked (r, i);
  }
  for (unsigned i = 0; i < r->ndisks; i++)
    if (straight[i] && backing_flush (r->disks[i].backing) == -1) {
      /* The next server's sync would not see the error again. */
      if (state != JOURNAL_PROMOTED)
        replica_hole (r, errno, backing_path (r->disks[i].backing));
      errno = EIO;
      return -1;
    }
  return 0;
}

/* Save what is speculative and set the clean mark.  0 when the next start goes on from here. */
static int
save (struct replica *r)
{
  struct journal_commit commit = { .kind = JOURNAL_REC_CLEAN,
                                   .change = change_clean };
  enum journal_replica_state state;
  uint64_t open;
  bool direct, failed = journal_failed (r->journal) != 0;

  {
    SCOPED_LOCK (&r->lock);
    state = r->state;
    open = speculation_open_number (r->spec);
    /* A drained promoted disk is written to without the journal's knowing. */
    direct = state == JOURNAL_PROMOTED && r->direct;
    if (r->clean && !direct && !failed)
      return 0;
  }
  if (failed && !direct) {
    errno = journal_failed (r->journal);
    return -1;
  }
  switch (state) {
  case JOURNAL_SYNCING:
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
  case JOURNAL_PROMOTED:
    if (state == JOURNAL_PROMOTED && !direct && promoted_flush_turn (r) == -1)
      return -1;
    if (save_images (r, state) == -1)
      return -1;
    break;
  case JOURNAL_STALE:
  case JOURNAL_FAILED:
    return 0;                   /* nothing in memory is worth keeping */
  }
  if (failed)
    return 0;                   /* the images are synced, and all there is */
  {
    SCOPED_LOCK (&r->lock);
    open = speculation_open_number (r->spec);
  }
  commit.epoch = open;
  commit.opaque = &open;
  if (journal_do_commit (r->journal, &commit) == 0)
    return 0;
  if (journal_failed (r->journal)) {
    /* The next server would find the record, and its data, in the page cache. */
    int saved = errno;

    (void) journal_note_failed (r->journal, false);
    errno = saved;
  }
  return -1;
}

/* The journal has failed, and the next server will know it: what is in memory is of no use. */
static bool
is_void (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  return r->state == JOURNAL_FAILED && r->failure_noted;
}

/* No request is under way any more, or it takes too long. */
static bool
wait_idle_locked (struct replica *r)
{
  uint64_t until = host_monotonic_ns () + STOP_MS * UINT64_C (1000000);
  bool idle;

  r->want_idle++;
  r->quiescing = true;
  while (!(idle = r->through == 0 && r->journaled == 0 && !r->copy_turn &&
           r->readers[0] + r->readers[1] == 0) &&
         host_monotonic_ns () < until)
    (void) wait_changed_locked (r, 100);
  r->quiescing = false;
  r->want_idle--;
  return idle;
}

void
replica_stop (struct replica *r)
{
  bool saved_all;

  control_close (r->control);
  r->control = NULL;
  for (unsigned i = 0; i < r->ndisks; i++)
    backing_stop (r->disks[i].backing);
  if (!r->running && !r->by_hand)
    /* Nothing was acknowledged, so nothing is missing that was not before. */
    saved_all = r->clean;
  else {
    bool idle;

    {
      SCOPED_LOCK (&r->lock);
      if (turn_begin_locked (r) == -1)
        return;                 /* somebody else has stopped it */
      /* The turn is kept: nobody shall come after us. */
      r->stopping = true;
      pthread_cond_broadcast (&r->changed);
      pthread_cond_broadcast (&r->work);
      pthread_cond_broadcast (&r->chores);
    }
    if (r->running) {
      (void) pthread_join (r->wo_thread, NULL);
      (void) pthread_join (r->house_thread, NULL);
    }
    r->running = r->by_hand = false;
    {
      SCOPED_LOCK (&r->lock);
      idle = wait_idle_locked (r);
    }
    saved_all = idle && (save (r) == 0 || is_void (r));
    if (idle)
      divergence_save (r);
    if (!saved_all)
      replica_log (r, REPLICA_LOG_ERROR, "%s/journal: cannot save the speculation buffer: %m; "
                   "it stays in shared memory for the next start", r->dir);
    if (!idle)
      return;                   /* somebody still uses the journal */
  }
  journal_stop (r->journal, saved_all && !r->keep_memory);
}

void
replica_close (struct replica *r)
{
  int saved = errno;

  if (r == NULL)
    return;
  replica_stop (r);
  destroy (r);
  errno = saved;
}
