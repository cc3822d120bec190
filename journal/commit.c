/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes of state and commits: what makes something durable. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

/* Let CHANGE have its say on a copy of the state.  Turn.
 *
 * The region's instance is stored before the record that raises it: a
 * takeover accepts a region that is one ahead of the log.
 */
static void
change_state (struct journal *j, journal_change_fn change, void *opaque,
              struct journal_state *state)
{
  {
    SCOPED_LOCK (&j->lock);
    *state = j->state;
  }
  if (change)
    change (state, opaque);
  SCOPED_LOCK (&j->lock);
  memcpy (state->boot_id, j->boot_id, HOST_ID_LEN);
  state->zero_filled = j->virgin;
  if (j->region && j->failed == 0) {
    if (j->region->open_epoch < state->epoch)
      __atomic_store_n (&j->region->open_epoch, state->epoch,
                        __ATOMIC_RELAXED);
    __atomic_store_n (&j->region->instance, state->instance, __ATOMIC_SEQ_CST);
  }
}

/* The record is durable: STATE is the truth.  COMMIT may be NULL. */
static void
adopt_state_locked (struct journal *j, const struct journal_state *state,
                    enum journal_kind kind)
{
  ASSERT_LOCKED (j);
  j->state = *state;
  if (!state->clean || kind == JOURNAL_REC_PROMOTE)
    j->log.saved_seq = 0;
  commits_void (j, state);
}

/* Note that everything up to here was, or may be, acknowledged.  An error only
 * makes the mark stale, which is what it may be after any crash.  Only the flag of a server
 * that failed must not come back: what is acknowledged from here on would be taken for refused.
 * Then the last N records are refused, durable as they are.
 */
static int
acknowledge (struct journal *j, const struct journal_state *state, size_t n)
{
  bool flagged, stays;
  int r;

  {
    SCOPED_LOCK (&j->acked_lock);       /* see write_failed */

    {
      SCOPED_LOCK (&j->lock);
      stays = j->noted_failed;
      flagged = j->mark_failed;
    }
    r = acked_write (j, state->has_checkpoint ? state->checkpoint.id : 0,
                     state->generation, j->log.durable,
                     stays ? FORMAT_ACKED_FAILED : 0);
  }
  if (flagged) {
    int error = r == -1 || io_fdatasync (j->acked_file) == -1 ? errno : 0;
    SCOPED_LOCK (&j->lock);

    if (error) {
      poison_locked (j, error);
      if (j->log.refused == 0)
        j->log.refused = j->log.seq + 1 - n;
      errno = EIO;
      return -1;
    }
    j->mark_failed = j->noted_failed;   /* perhaps just now */
    return 0;
  }
  if (r == -1)
    return 0;
  SCOPED_LOCK (&j->lock);
  j->acked_dirty = true;
  pthread_cond_signal (&j->acked_cond);
  return 0;
}

/* When no chunk is left for more records, some of the last ones are kept back for
 * what ends that state: first of all commits have to stop, then starts and stops;
 * promote, write-out and the end of it must always fit.
 */
static unsigned
records_kept (enum journal_kind kind)
{
  switch (kind) {
  case JOURNAL_REC_COMMIT:
  case JOURNAL_REC_PROMOTED_COMMIT:
    return 64;
  case JOURNAL_REC_OPEN:
  case JOURNAL_REC_DIRTY:
  case JOURNAL_REC_CLEAN:
    return 32;
  case JOURNAL_REC_STATE:
    return 16;
  default:
    return 0;
  }
}

int
record_turn (struct journal *j, enum journal_kind kind,
             journal_change_fn change, void *opaque)
{
  struct journal_state state;
  bool sampled = false;
  int r = log_reserve (j, 1);

  if (r == 0) {
    change_state (j, change, opaque, &state);
    record_encode (j, &j->log.buf[0], kind, &state);
    pthread_mutex_lock (&j->lock);
    record_put_samples (&j->log.buf[0], j->samples, j->nsamples);
    sampled = j->nsamples > 0;
    pthread_mutex_unlock (&j->lock);
    r = log_write (j, 1, records_kept (kind));
  }
  if (r == 0)
    r = log_sync (j, 1);
  if (r == 0) {
    pthread_mutex_lock (&j->lock);
    adopt_state_locked (j, &state, kind);
    j->log.samples_seq = sampled ? j->log.seq : 0;
    pthread_mutex_unlock (&j->lock);
    r = acknowledge (j, &state, 1);
  }
  return r;
}

int
journal_record (struct journal *j, enum journal_kind kind,
                journal_change_fn change, void *opaque)
{
  int r;

  assert (kind != JOURNAL_REC_COMMIT && kind != JOURNAL_REC_CLEAN &&
          kind != JOURNAL_REC_PROMOTED_COMMIT && kind != JOURNAL_REC_PART);
  pthread_mutex_lock (&j->lock);
  log_turn_take_locked (j);
  pthread_mutex_unlock (&j->lock);
  r = record_turn (j, kind, change, opaque);

  SCOPED_LOCK (&j->lock);
  log_turn_give_locked (j);
  return r;
}

/* --- Samples --- */

void
journal_set_samples (struct journal *j, const struct journal_sample *samples,
                     unsigned n)
{
  SCOPED_LOCK (&j->lock);

  assert (n <= JOURNAL_SAMPLES);
  if (n > 0)
    memcpy (j->samples, samples, n * sizeof *samples);
  j->nsamples = n;
}

unsigned
journal_get_samples (struct journal *j,
                     struct journal_sample samples[JOURNAL_SAMPLES])
{
  SCOPED_LOCK (&j->lock);

  memcpy (samples, j->samples, j->nsamples * sizeof *samples);
  return j->nsamples;
}

/* --- Commit --- */

/* Encode the PARTs and the record itself into log.buf; returns how many. */
static int
encode_commit (struct journal *j, const struct journal_commit *commit,
               uint64_t epoch, const struct sweep *s,
               const struct journal_state *state, size_t *n)
{
  struct journal_state before;
  size_t parts = 0, at = 0;
  struct format_record *rec;

  if (!s->inline_ && s->nruns > j->part_runs)
    parts = DIV_UP (s->nruns, j->part_runs) - 1;
  if (log_reserve (j, parts + 1) == -1)
    return -1;
  journal_get_state (j, &before);
  for (size_t i = 0; i <= parts; i++) {
    size_t runs = s->inline_ ? 0 : MIN (s->nruns - at, j->part_runs);

    rec = &j->log.buf[i];
    /* A PART changes nothing yet. */
    record_encode (j, rec, i < parts ? JOURNAL_REC_PART : commit->kind,
                   i < parts ? &before : state);
    rec->nruns = put32 (runs);
    if (runs > 0)
      memcpy (rec->payload, s->runs + at, runs * sizeof *s->runs);
    at += runs;
  }
  rec = &j->log.buf[parts];
  rec->flags = put16 (s->inline_ ? FORMAT_INLINE : 0);
  rec->epoch = put64 (epoch);
  rec->first_epoch = put64 (s->first ? s->first : epoch);
  rec->extents = put64 (s->extents);
  rec->bytes = put64 (s->bytes);
  rec->nparts = put32 (parts);
  rec->table_bytes = put64 (s->table_bytes);
  rec->table_crc = put32 (s->table_crc);
  *n = parts + 1;
  return 0;
}

/* Others look at the list, and drop from it, meanwhile. */
static int
make_room (struct journal *j)
{
  SCOPED_LOCK (&j->lock);

  return commits_grow (j);
}

/* Build and write the records of a commit, while the threads push what they
 * refer to.  ENTRY is filled for a commit.
 */
static int
write_commit (struct journal *j, struct journal_commit *commit, uint64_t epoch,
              struct sweep *s, struct journal_state *state,
              struct commit *entry, size_t *n)
{
  uint8_t payload[FORMAT_PAYLOAD] = { 0 };
  bool clean = commit->kind == JOURNAL_REC_CLEAN;

  if (sweep_table (j, s, s->inline_ ? payload : NULL) == -1)
    return -1;
  commit->extents = s->extents;
  commit->bytes = s->bytes;
  change_state (j, commit->change, commit->opaque, state);
  if (encode_commit (j, commit, epoch, s, state, n) == -1)
    return -1;
  if (s->inline_)
    memcpy (j->log.buf[*n - 1].payload, payload, s->table_bytes);
  if (!clean && (commit_of (&j->log.buf[*n - 1], entry) == -1 ||
                 make_room (j) == -1))
    return -1;
  return log_write (j, *n, records_kept (commit->kind));
}

static int
commit_turn (struct journal *j, struct journal_commit *commit,
             struct journal_state *state, size_t *n)
{
  struct sweep s = { .first = 0 };
  CLEANUP_FREE struct format_run *runs = NULL;
  bool clean = commit->kind == JOURNAL_REC_CLEAN;
  struct commit entry = { .epoch = 0 };
  CLEANUP_FREE char *label = NULL;
  uint64_t epoch;
  int r, error;

  sweep_gather (j, clean ? UINT64_MAX : commit->epoch, &s);
  epoch = clean ? s.last : commit->epoch;
  r = sweep_runs (j, &s);
  runs = s.runs;
  if (r == -1)
    return -1;

  /* The record may land before the data: the one sync covers both, and
   * whoever opens the journal believes neither without the other.
   */
  push_begin (j, epoch, !s.inline_);
  r = write_commit (j, commit, epoch, &s, state, &entry, n);
  label = entry.label;
  error = errno;
  if (push_end (j) == -1)
    return -1;
  if (r == -1) {
    errno = error;
    return -1;
  }
  if (log_sync (j, *n) == -1)
    return -1;

  SCOPED_LOCK (&j->lock);
  if (clean) {
    j->log.saved_seq = j->log.seq;
    j->log.saved_nparts = *n - 1;
  }
  else {
    entry.seq = j->log.seq;
    if (commits_add (j, &entry) == -1)
      abort ();                 /* there is room: commits_grow.  LCOV_EXCL_LINE */
    label = NULL;
    tables_drop_locked (j, epoch, epoch, !s.inline_ && s.nruns > 0);
  }
  adopt_state_locked (j, state, commit->kind);
  return 0;
}

int
journal_do_commit (struct journal *j, struct journal_commit *commit)
{
  struct journal_state state;
  size_t n;
  int r;

  assert (commit->kind == JOURNAL_REC_COMMIT ||
          commit->kind == JOURNAL_REC_PROMOTED_COMMIT ||
          commit->kind == JOURNAL_REC_CLEAN);
  pthread_mutex_lock (&j->lock);
  log_turn_take_locked (j);
  pthread_mutex_unlock (&j->lock);

  r = commit_turn (j, commit, &state, &n);
  if (r == 0)
    r = acknowledge (j, &state, n);

  SCOPED_LOCK (&j->lock);
  log_turn_give_locked (j);
  return r;
}
