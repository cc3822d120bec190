/* SPDX-License-Identifier: BSD-3-Clause */
/* The write-out thread: merges committed epochs, brings them into the backing
 * images, moves the watermark, recycles.  After a promote it also finds the moment
 * at which the backing images become the disk.
 *
 * A cycle is: TARGET record, pwritev in disk order, one fdatasync an image, WATERMARK record,
 * recycle.  From the TARGET record on, older checkpoints are gone.  An error of an image
 * repeats the whole cycle later, from the journal: pages written before a failed
 * fdatasync may not be there any more.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define MERGE_SLICE 512
#define GATHER_BYTES (UINT64_C (32) << 20)      /* a backlog worth a cycle at once */
#define GATHER_MS 100                           /* the longest that less waits */
#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 5000
#define HOLD_MS 200             /* promoted writers wait no longer than this for a switch */

static void
wait_work_locked (struct replica *r, unsigned ms)
{
  uint64_t ns = host_monotonic_ns () + ms * UINT64_C (1000000);
  struct timespec ts = { .tv_sec = ns / 1000000000,
                         .tv_nsec = ns % 1000000000 };

  /* A timeout and a wake-up both mean: look again. */
  (void) pthread_cond_timedwait (&r->work, &r->lock, &ts);
}

/* Merge what is committed.  The lock is let go between slices. */
static int
merge_locked (struct replica *r)
{
  int more;

  do {
    struct epoch *done;

    more = writeout_merge (r->wo, MERGE_SLICE, &done);
    if (done || more == 1) {
      pthread_mutex_unlock (&r->lock);
      if (done)
        epoch_clear (done);
      pthread_mutex_lock (&r->lock);
      if (done) {
        if (speculation_spares_room (r->spec))
          speculation_restock (r->spec, done);
        else {
          pthread_mutex_unlock (&r->lock);
          epoch_free (done);
          pthread_mutex_lock (&r->lock);
        }
      }
    }
  } while (more == 1 && !r->stopping);
  return more;
}

/* May the oldest segment go out at all? */
static bool
may_go_locked (struct replica *r)
{
  struct writeout_oldest oldest;
  uint64_t target;

  /* One that was held half way has to be brought to its end. */
  if (writeout_resume (r->wo, &target))
    return !r->hold_writeout;
  return !r->hold_writeout && writeout_get_oldest (r->wo, &oldest) &&
    !history_holds_locked (r, &oldest) && !views_hold_locked (r, &oldest);
}

static bool
due_locked (struct replica *r)
{
  struct writeout_stat stat;
  struct journal_usage usage;

  if (!may_go_locked (r))
    return false;
  if (r->waiting > 0 || r->state == JOURNAL_PROMOTED || history_is_on (r))
    return true;
  writeout_get_stat (r->wo, &stat);
  if (stat.bytes >= GATHER_BYTES ||
      host_monotonic_ns () - r->backlog_since >= GATHER_MS * UINT64_C (1000000))
    return true;
  journal_get_usage (r->journal, &usage);
  return usage.available < usage.size / 2;
}

struct cycle {
  uint64_t target;
  struct journal_checkpoint checkpoint;
};

static void
change_target (struct journal_state *state, void *opaque)
{
  state->target = ((struct cycle *) opaque)->target;
}

static void
change_watermark (struct journal_state *state, void *opaque)
{
  const struct cycle *c = opaque;

  state->target = c->target;
  /* Promoted writes advance the images past the checkpoint that was promoted. */
  if (c->checkpoint.id == c->target)
    state->watermark = c->checkpoint;
  else
    state->watermark.id = c->target;
}

static int
cycle_progress (void *opaque, uint64_t bytes)
{
  struct replica *r = opaque;
  SCOPED_LOCK (&r->lock);

  r->wo_written += bytes;
  r->wo_written_at = host_monotonic_ns ();
  /* Commits go on meanwhile: without this each would keep a map of its own. */
  (void) merge_locked (r);
  if (r->stopping || r->hold_writeout) {
    errno = ECANCELED;
    return -1;
  }
  return 0;
}

static void
set_error (struct replica *r, const struct drain *d, int errnum)
{
  SCOPED_LOCK (&r->lock);

  if (d->failed_path)
    snprintf (r->wo_error, sizeof r->wo_error, "%s: %s", d->failed_path,
              strerror (errnum));
  else
    snprintf (r->wo_error, sizeof r->wo_error, "%s", strerror (errnum));
  house_event_locked (r, "write-out", "%s", r->wo_error);
  r->drain_hold = false;        /* this may take long: writers go on */
  pthread_cond_broadcast (&r->changed);
}

/* Before the first of it goes to the images: will all of it?  Until then they are
 * a checkpoint, and one to recover to when a later one is damaged.
 */
static int
prepare (struct replica *r, const struct map *map, bool *news)
{
  struct drain d = { .journal = r->journal, .disks = r->disks,
                     .ndisks = r->ndisks };

  if (drain_prepare (&d, map, news) == 0)
    return 0;
  if (errno == EBADMSG)
    replica_damaged (r, &d.damage);
  return -1;
}

/* Write MAP out, again and again until it is there.  -1: stopped, held, or failed. */
static int
drain_until_done (struct replica *r, const struct map *map, uint64_t target)
{
  struct drain d = { .fs = r->fs, .journal = r->journal, .disks = r->disks,
                     .ndisks = r->ndisks, .sums = r->sums, .upto = target, .progress = cycle_progress,
                     .opaque = r };
  unsigned wait = RETRY_MIN_MS;

  while (drain_map (&d, map) == -1) {
    uint64_t until;

    if (errno == ECANCELED)
      return -1;
    if (errno == EBADMSG) {
      replica_damaged (r, &d.damage);
      return -1;
    }
    if (journal_failed (r->journal)) {
      replica_fail (r, "reading the journal", journal_failed (r->journal));
      return -1;
    }
    if (r->wo_error[0] == '\0' && !r->once)
      replica_log (r, REPLICA_LOG_ERROR, "write-out pauses: %s: %s; it goes on by itself "
                   "once that is mended",
                   d.failed_path ? d.failed_path : r->dir, strerror (errno));
    set_error (r, &d, errno);
    if (r->once)
      return -1;
    SCOPED_LOCK (&r->lock);
    until = host_monotonic_ns () + wait * UINT64_C (1000000);
    while (!r->stopping && !r->hold_writeout && host_monotonic_ns () < until) {
      (void) merge_locked (r);
      wait_work_locked (r, wait);
    }
    if (r->stopping || r->hold_writeout)
      return -1;
    wait = MIN (wait * 2, (unsigned) RETRY_MAX_MS);
  }
  SCOPED_LOCK (&r->lock);
  if (r->wo_error[0]) {
    r->wo_error[0] = '\0';
    house_event_locked (r, "write-out", "goes on");
  }
  return 0;
}

/* One cycle over the draining MAP. */
static int
cycle (struct replica *r, const struct map *map, uint64_t target)
{
  struct cycle c = { .target = target };
  struct journal_state state;
  struct map *old;

  /* Label and time; not found where the target is a flush of a promoted disk. */
  if (!journal_find_checkpoint (r->journal, target, &c.checkpoint))
    c.checkpoint = (struct journal_checkpoint) { .id = 0 };
  journal_get_state (r->journal, &state);
  if (!map_is_empty (map)) {
    bool news;

    if (prepare (r, map, &news) == -1)
      return -1;
    if ((state.target < target || news) &&
        journal_record (r->journal, JOURNAL_REC_TARGET, change_target, &c) == -1) {
      replica_fail (r, "recording the write-out target", errno);
      return -1;
    }
  }
  if (drain_until_done (r, map, target) == -1)
    return -1;
  if (journal_record (r->journal, JOURNAL_REC_WATERMARK, change_watermark,
                      &c) == -1) {
    replica_fail (r, "recording the watermark", errno);
    return -1;
  }
  {
    SCOPED_LOCK (&r->lock);
    old = writeout_end (r->wo);
    r->written_out = MAX (r->written_out, c.checkpoint.id);
    r->backlog_since = writeout_is_empty (r->wo) ? 0 : host_monotonic_ns ();
  }
  quiesce (r);
  map_free (old);
  if (journal_forget (r->journal, target) == -1) {
    replica_fail (r, "recycling", errno);
    return -1;
  }
  return 0;
}

/* A cycle came to its end: there may be room. */
static void
note_progress_locked (struct replica *r)
{
  assert_locked (r);
  /* Who is about to reserve looks at it without the lock. */
  __atomic_fetch_add (&r->wo_progress, 1, __ATOMIC_RELEASE);
  r->wo_written_at = host_monotonic_ns ();
}

/* --- the end of a promote's backlog --------------------------------------------- */

/* Of the promote in whose generation it was: since then the replica may have been a standby again, and
 * promoted again.
 */
static void
change_drained (struct journal_state *state, void *opaque)
{
  const uint64_t *generation = opaque;

  if (state->state == JOURNAL_PROMOTED && state->generation == *generation)
    state->drained = true;
}

/* Everything is in the images and nobody is about to add to the journal: from
 * now on the images are the disk.
 */
static bool
try_direct_locked (struct replica *r)
{
  struct speculation_stat stat;

  speculation_get_stat (r->spec, &stat);
  if (r->state != JOURNAL_PROMOTED || r->commit_turn || r->journaled > 0 || stat.extents > 0 || !writeout_is_empty (r->wo))
    return false;
  r->direct = true;
  for (unsigned i = 0; i < r->ndisks; i++)
    r->disks[i].sync_failed = false;
  r->drain_hold = false;
  set_reason_locked (r, "%s", "the backlog is drained: the backing images are the disk");
  house_event_locked (r, "drained", "the backing images are the disk");
  pthread_cond_broadcast (&r->changed);
  return true;
}

static void
go_direct (struct replica *r)
{
  uint64_t until, generation;
  bool done;

  {
    SCOPED_LOCK (&r->lock);
    r->drain_hold = true;
    r->want_idle++;
    until = host_monotonic_ns () + HOLD_MS * UINT64_C (1000000);
    while (r->journaled > 0 && !r->stopping && host_monotonic_ns () < until)
      (void) wait_changed_locked (r, 10);
    r->want_idle--;
    done = try_direct_locked (r);
    generation = r->generation;
  }
  if (!done && promoted_flush (r) == -1)
    replica_log (r, REPLICA_LOG_ERROR, "cannot flush promoted writes: %m");
  if (!done) {
    /* What was just flushed is small: write it out while they wait. */
    const struct map *map;
    uint64_t target;

    pthread_mutex_lock (&r->lock);
    (void) merge_locked (r);
    r->writing_out = true;
    /* A resync may have come in between: from here on it waits for us. */
    map = r->hold_writeout || r->state != JOURNAL_PROMOTED ? NULL :
      writeout_begin (r->wo, &target);
    pthread_mutex_unlock (&r->lock);
    if (map)
      (void) cycle (r, map, target);    /* says itself what went wrong */
    SCOPED_LOCK (&r->lock);
    r->writing_out = false;
    note_progress_locked (r);
    done = try_direct_locked (r);
    generation = r->generation;
    r->drain_hold = false;
    pthread_cond_broadcast (&r->changed);
  }
  if (!done)
    return;
  if (journal_record (r->journal, JOURNAL_REC_STATE, change_drained, &generation) == -1)
    replica_log (r, REPLICA_LOG_ERROR, "%s/journal: cannot note that the backlog is drained: %m",
                 r->dir);
  SCOPED_LOCK (&r->lock);
  r->drained = r->state == JOURNAL_PROMOTED && r->direct && r->generation == generation;
}

/* Write out what is merged, or what a cycle that was held left.  The lock is let go
 * meanwhile.  -1: stopped, held, failed, or no memory.
 */
static int
cycle_locked (struct replica *r)
{
  uint64_t target;
  const struct map *map = writeout_resume (r->wo, &target);
  int result;

  if (map == NULL && (map = writeout_begin (r->wo, &target)) == NULL)
    return -1;
  r->writing_out = true;
  pthread_mutex_unlock (&r->lock);
  result = cycle (r, map, target);
  pthread_mutex_lock (&r->lock);
  r->writing_out = false;
  if (result == 0)
    note_progress_locked (r);
  pthread_cond_broadcast (&r->changed);
  return result;
}

static bool
switch_due_locked (struct replica *r)
{
  return r->state == JOURNAL_PROMOTED && !r->direct && !r->hold_writeout &&
    writeout_is_empty (r->wo) && !r->commit_turn;
}

int
writeout_step (struct replica *r)
{
  int result = 0;

  pthread_mutex_lock (&r->lock);
  if (r->stopping || r->state == JOURNAL_FAILED || merge_locked (r) == -1)
    result = -1;
  else if (switch_due_locked (r)) {
    pthread_mutex_unlock (&r->lock);
    go_direct (r);
    pthread_mutex_lock (&r->lock);
  }
  else if (may_go_locked (r))
    result = cycle_locked (r);
  pthread_mutex_unlock (&r->lock);
  return result;
}

void *
writeout_main (void *replica)
{
  struct replica *r = replica;

  host_thread_has_time ();
  pthread_mutex_lock (&r->lock);
  while (!r->stopping) {
    if (r->state == JOURNAL_FAILED) {   /* a resync overwrite may mend that */
      wait_work_locked (r, 1000);
      continue;
    }
    if (merge_locked (r) == -1) {       /* no memory: later */
      wait_work_locked (r, RETRY_MIN_MS);
      continue;
    }
    if (switch_due_locked (r)) {
      pthread_mutex_unlock (&r->lock);
      go_direct (r);
      pthread_mutex_lock (&r->lock);
      if (!r->direct)
        wait_work_locked (r, 10);
      continue;
    }
    if (!due_locked (r)) {
      wait_work_locked (r, writeout_is_empty (r->wo) ? 1000 :
                        history_is_on (r) ? 100 : 10);
      continue;
    }
    if (cycle_locked (r) == -1 && r->state != JOURNAL_FAILED && !r->stopping)
      wait_work_locked (r, RETRY_MIN_MS);       /* no memory: later */
  }
  pthread_mutex_unlock (&r->lock);
  return NULL;
}
