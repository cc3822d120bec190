/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests that come to their end after the replica has moved on: a promote or a resync came while they waited for
 * room, or between their failure and their word of it.  What is there now has nothing to do with that: it is
 * neither stale nor failed by it, and the request is let in as the new state has it, or refused.
 */
#include "config.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "journal/internal.h"
#include "unit/simvfs.h"
#include "unit/torture.h"

#define SIZE (UINT64_C (16) << 20)
#define PIECE 65536u
#define JOURNAL TORTURE_DIR "/journal"

static struct simdisk *disk;
static struct replica *r;
static uint8_t piece[PIECE];

/* The writer, or reader, whose thread is held. */
static pthread_t late;
static __thread bool is_late;
static struct replica_export late_export;
static int late_result, late_errno;
static _Atomic bool late_done, held, go;
static bool hold;               /* when he first sees that the journal has failed */

extern int __real_journal_failed (struct journal *j);
extern int __wrap_journal_failed (struct journal *j);

/* He is slow to say what he has seen. */
int
__wrap_journal_failed (struct journal *j)
{
  int why = __real_journal_failed (j);

  if (is_late && hold && why && !held) {
    held = true;
    while (!go)
      sched_yield ();
  }
  return why;
}

extern int __real_journal_record (struct journal *j, enum journal_kind kind, journal_change_fn change, void *opaque);
extern int __wrap_journal_record (struct journal *j, enum journal_kind kind, journal_change_fn change, void *opaque);

/* Or he is slow to record what he has done. */
int
__wrap_journal_record (struct journal *j, enum journal_kind kind, journal_change_fn change, void *opaque)
{
  if (is_late && hold && kind == JOURNAL_REC_STATE && !held) {
    held = true;
    while (!go)
      sched_yield ();
  }
  return __real_journal_record (j, kind, change, opaque);
}

extern int __real_journal_credit (struct journal *j, unsigned extents, uint32_t blocks);
extern int __wrap_journal_credit (struct journal *j, unsigned extents, uint32_t blocks);
extern int __real_speculation_put (struct speculation *s, unsigned d, uint64_t sector, uint64_t n, uint32_t loc);
extern int __wrap_speculation_put (struct speculation *s, unsigned d, uint64_t sector, uint64_t n, uint32_t loc);
extern int __real_journal_do_commit (struct journal *j, struct journal_commit *c);
extern int __wrap_journal_do_commit (struct journal *j, struct journal_commit *c);
extern int __real_wait_space (void *space, uint64_t since);
extern int __wrap_wait_space (void *space, uint64_t since);

/* His write is about to be published, for which there is not the memory. */
static bool no_memory;

int
__wrap_journal_credit (struct journal *j, unsigned extents, uint32_t blocks)
{
  if (is_late && no_memory && !held) {
    held = true;
    while (!go)
      sched_yield ();
  }
  return __real_journal_credit (j, extents, blocks);
}

int
__wrap_speculation_put (struct speculation *s, unsigned d, uint64_t sector, uint64_t n, uint32_t loc)
{
  if (is_late && no_memory) {
    no_memory = false;
    errno = ENOMEM;
    return -1;
  }
  return __real_speculation_put (s, d, sector, n, loc);
}

/* His commit finds no room, and then there is some. */
static bool no_room;

int
__wrap_journal_do_commit (struct journal *j, struct journal_commit *c)
{
  if (is_late && no_room) {
    errno = ENOSPC;
    return -1;
  }
  return __real_journal_do_commit (j, c);
}

int
__wrap_wait_space (void *space, uint64_t since)
{
  if (is_late && no_room) {
    no_room = false;
    held = true;
    while (!go)
      sched_yield ();
    return 0;
  }
  return __real_wait_space (space, since);
}

static char logged[400];

static void
on_log (void *opaque, enum replica_log_level level, const char *line)
{
  (void) opaque;
  if (level == REPLICA_LOG_ERROR)
    snprintf (logged, sizeof logged, "%s", line);
}

static void
server (void)
{
  struct replica_disk_params d = { .name = "vda", .path = "/sim/0.img",
                                   .create = true, .size = SIZE };
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR,
                              .disks = &d, .ndisks = 1,
                              .baseline_trusted = true, .log = on_log,
                              .journal_size = JOURNAL_MIN_SIZE,
                              .buffer = UINT64_C (8) << 20 };
  struct mcerror err = { 0 };

  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  r->by_hand = true;
}

static void
setup (void)
{
  host_seed (1);
  host_reset (1, false);        /* who waits, waits */
  disk = simdisk_new ();
  simvfs_default (disk);
  late_done = held = go = hold = no_memory = no_room = false;
  logged[0] = '\0';
  server ();
  ck_assert_int_eq (replica_open_export (r, "vda", &late_export), 0);
}

static void
teardown (void)
{
  simdisk_hook (disk, NULL, NULL);
  simdisk_calls (disk, NULL, NULL);
  replica_close (r);
  r = NULL;
  simdisk_free (disk);
}

static int
put (const struct replica_export *x, unsigned at, uint8_t what)
{
  memset (piece, what, sizeof piece);
  return replica_pwrite (r, x, piece, sizeof piece, (uint64_t) at * PIECE, 0);
}

static void
commit (void)
{
  struct commit_answer a;

  ck_assert_int_eq (replica_commit (r, &(struct commit_request) { 0 }, &a, NULL), 0);
}

static void
reads (unsigned at, uint8_t what)
{
  struct replica_export x = { .fence = r->fence, .view = r->state == JOURNAL_PROMOTED ?
                              REPLICA_PROMOTED : REPLICA_INLET };

  ck_assert_int_eq (replica_pread (r, &x, piece, sizeof piece, (uint64_t) at * PIECE), 0);
  for (unsigned i = 0; i < sizeof piece; i++)
    ck_assert_uint_eq (piece[i], what);
}

static unsigned
waiting (void)
{
  SCOPED_LOCK (&r->lock);

  return r->waiting;
}

static void
start_late (void *(*run) (void *))
{
  ck_assert_int_eq (pthread_create (&late, NULL, run, NULL), 0);
}

static void
end_late (void)
{
  go = true;
  ck_assert_int_eq (pthread_join (late, NULL), 0);
}

/* --- for want of room ------------------------------------------------------------- */

/* Until it is refused, or there was more than fits. */
static void *
write_much (void *opaque)
{
  static uint8_t data[PIECE];

  (void) opaque;
  is_late = true;
  memset (data, 5, sizeof data);
  for (unsigned i = 0; i < 200; i++) {
    late_result = replica_pwrite (r, &late_export, data, sizeof data, (i % 10) * PIECE, 0);
    late_errno = errno;
    if (late_result == -1 || r->state != JOURNAL_PROTECTED)
      break;
  }
  late_done = true;
  return NULL;
}

/* A writer waits for write-out, which has work but is slow: then all that is speculation is discarded.  He
 * waited on, and at last said that there was no room.
 */
static void
fill (void)
{
  ck_assert_int_eq (put (&late_export, 20, 1), 0);
  commit ();
  start_late (write_much);
  while (waiting () == 0) {
    ck_assert (!late_done);
    sched_yield ();
  }
}

START_TEST (resync_makes_room)
{
  fill ();
  ck_assert_int_eq (replica_resync (r, false, NULL), 0);
  end_late ();
  ck_assert_msg (late_result == 0, "%s; %s", strerror (late_errno), r->reason);
  ck_assert_int_eq (r->state, JOURNAL_RESYNCING);
  reads (20, 1);
  ck_assert_int_eq (put (&late_export, 1, 7), 0);
  commit ();
  ck_assert_int_eq (r->state, JOURNAL_PROTECTED);
  reads (1, 7);
}
END_TEST

START_TEST (overwrite_makes_room)
{
  fill ();
  ck_assert_int_eq (replica_resync (r, true, NULL), 0);
  end_late ();
  ck_assert_msg (late_result == 0, "%s; %s", strerror (late_errno), r->reason);
  ck_assert_int_eq (r->state, JOURNAL_SYNCING);
  commit ();
}
END_TEST

START_TEST (promote_makes_room)
{
  struct promote_answer a;

  fill ();
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  end_late ();
  ck_assert_int_eq (late_result, -1);
  ck_assert_msg (late_errno == ESHUTDOWN, "%s", strerror (late_errno));
  ck_assert_int_eq (r->state, JOURNAL_PROMOTED);
  reads (20, 1);
}
END_TEST

/* --- commits of a full journal ------------------------------------------------------ */

#define COMMITS 2000u           /* more than there is room for */

/* The first takes all that fills the journal; those that follow have a record each, and nothing else. */
static void *
commit_much (void *opaque)
{
  struct commit_answer a;
  struct mcerror err = { 0 };

  (void) opaque;
  for (unsigned i = 0; i < COMMITS && late_result == 0; i++) {
    late_result = replica_commit (r, &(struct commit_request) { 0 }, &a, &err);
    ck_assert_msg (late_result == 0, "commit %u: %s", i, err.text);
  }
  late_done = true;
  return NULL;
}

static void *
flush_much (void *opaque)
{
  (void) opaque;
  for (unsigned i = 0; i < COMMITS && late_result == 0; i++) {
    ck_assert_int_eq (replica_zero (r, &late_export, 512, i % 8 * PIECE, 0), 0);
    late_result = replica_flush (r, &late_export);
    ck_assert_msg (late_result == 0, "flush %u: %s", i, strerror (errno));
  }
  late_done = true;
  return NULL;
}

/* They wait for write-out as writers do, without the turn: they were refused. */
static unsigned
write_out_meanwhile (void)
{
  unsigned waits = 0;

  while (!late_done) {
    if (waiting () > 0) {
      ck_assert (!r->commit_turn);
      waits++;
      ck_assert_int_eq (writeout_step (r), 0);
    }
    sched_yield ();
  }
  end_late ();
  return waits;
}

static void
fill_journal (void)
{
  struct journal_usage usage;

  for (unsigned i = 0; ; i++) {
    journal_get_usage (r->journal, &usage);
    if (usage.available == 0)
      break;
    ck_assert_int_eq (put (&late_export, i % 8, 1 + i % 8), 0);
  }
  late_result = 0;
}

START_TEST (commits_wait)
{
  fill_journal ();
  start_late (commit_much);
  ck_assert_uint_gt (write_out_meanwhile (), 0);
  ck_assert_int_eq (late_result, 0);
  ck_assert_uint_eq (r->checkpoint.id, COMMITS);
  for (unsigned i = 0; i < 8; i++)
    reads (i, 1 + i);
}
END_TEST

/* A flush has room while a write has: it is the write that waits. */
START_TEST (flushes_wait)
{
  struct promote_answer a;

  fill_journal ();
  commit ();
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  ck_assert_int_eq (replica_open_export (r, "vda@promoted", &late_export), 0);
  start_late (flush_much);
  ck_assert_uint_gt (write_out_meanwhile (), 0);
  ck_assert_int_eq (late_result, 0);
}
END_TEST

/* Nobody writes out, and it gets nowhere: then it is refused, and nothing is lost. */
START_TEST (commit_refused)
{
  struct commit_answer a;
  struct mcerror err = { 0 };
  uint64_t last = 0;

  host_reset (1, true);         /* it does not wait long */
  fill_journal ();
  while (replica_commit (r, &(struct commit_request) { 0 }, &a, &err) == 0)
    ck_assert_uint_lt (last = a.checkpoint, COMMITS);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (err.code, MCEXIT_REFUSED);
  ck_assert_msg (strstr (err.text, "nothing is lost") != NULL, "%s", err.text);
  ck_assert_uint_eq (r->checkpoint.id, last);
  ck_assert_int_eq (r->state, JOURNAL_PROTECTED);
  ck_assert_int_eq (writeout_step (r), 0);
  ck_assert_int_eq (replica_commit (r, &(struct commit_request) { .has_epoch = true, .epoch = last + 1 },
                                    &a, &err), 0);
}
END_TEST

static struct commit_answer late_answer;

static void *
commit_labelled (void *opaque)
{
  (void) opaque;
  is_late = true;
  late_result = replica_commit (r, &(struct commit_request) { .label = "mine" }, &late_answer, NULL);
  late_done = true;
  return NULL;
}

static void
wait_held (void)
{
  while (!held) {
    ck_assert (!late_done);
    sched_yield ();
  }
}

/* What waits for room is committed by somebody else: nobody is told silently that his label is there. */
START_TEST (swept_in)
{
  ck_assert_int_eq (put (&late_export, 0, 1), 0);
  no_room = true;
  late_result = 1;
  start_late (commit_labelled);
  wait_held ();
  commit ();
  end_late ();
  ck_assert_int_eq (late_result, 0);
  ck_assert_uint_eq (late_answer.epoch, 1);
  ck_assert_uint_eq (late_answer.checkpoint, 2);
  ck_assert_msg (strstr (logged, "epoch 1,") && strstr (logged, "checkpoint 2,") && strstr (logged, "\"mine\""),
                 "logged: %s", logged);
}
END_TEST

/* --- of a journal that has been mended ---------------------------------------------- */

/* A write fails with the journal.  Before he who sent it comes to say so, a resync overwrite has mended it: the new
 * first copy was failed by him.  Odd: the failure was known before, so that his connection is one from before.
 */
START_TEST (mended)
{
  struct commit_answer a;

  ck_assert_int_eq (put (&late_export, 20, 1), 0);
  commit ();
  hold = true;
  simdisk_fail (disk, 1, EIO, true);
  start_late (write_much);
  while (!held) {
    ck_assert (!late_done);
    sched_yield ();
  }
  if (_i == 1) {
    ck_assert_int_eq (replica_commit (r, &(struct commit_request) { 0 }, &a, NULL), -1);
    ck_assert_int_eq (r->state, JOURNAL_FAILED);
  }
  simdisk_fail (disk, 0, 0, false);
  ck_assert_int_eq (replica_resync (r, true, NULL), 0);
  end_late ();
  ck_assert_msg (r->state == JOURNAL_SYNCING, "%s", r->reason);
  ck_assert_int_eq (late_result, _i == 1 ? -1 : 0);
  if (_i == 1)
    ck_assert_int_eq (late_errno, ESHUTDOWN);
  ck_assert_int_eq (journal_failed (r->journal), 0);
  late_export.fence = r->fence;
  ck_assert_int_eq (put (&late_export, 1, 7), 0);
  commit ();
  reads (1, 7);
}
END_TEST

/* --- of what has been forgotten ----------------------------------------------------- */

static int
on_read (void *opaque, enum simdisk_call call, const char *path, size_t *len)
{
  (void) opaque;
  (void) len;
  if (is_late && call == SIMDISK_CALL_READ && strcmp (path, JOURNAL) == 0) {
    held = true;
    while (!go)
      sched_yield ();
  }
  return 0;
}

static void *
read_one (void *opaque)
{
  static uint8_t data[4096];

  (void) opaque;
  is_late = true;
  late_result = replica_pread (r, &late_export, data, sizeof data, 0);
  late_errno = errno;
  late_done = true;
  return NULL;
}

/* When the new copy has begun, and waits for those who still read of the old one. */
static void *
let_go (void *opaque)
{
  uint64_t *moves = opaque;

  for (;;) {
    {
      SCOPED_LOCK (&r->lock);
      if (r->moves != *moves)
        break;
    }
    sched_yield ();
  }
  go = true;
  return NULL;
}

/* A reader finds damage in a block of the journal which a resync overwrite has done with meanwhile. */
START_TEST (forgotten)
{
  uint64_t moves;
  uint32_t data = 0;
  pthread_t other;

  ck_assert_int_eq (put (&late_export, 0, 1), 0);
  commit ();
  replica_close (r);            /* then it is read from the disk */
  server ();
  moves = r->moves;
  for (uint32_t c = 1; c < r->journal->nchunks && data == 0; c++)
    if (r->journal->chunks[c].kind == CHUNK_DATA)
      data = c;
  simdisk_flip (disk, JOURNAL, (uint64_t) data * JOURNAL_CHUNK + 7, 1);
  simdisk_calls (disk, on_read, NULL);
  start_late (read_one);
  while (!held) {
    ck_assert (!late_done);
    sched_yield ();
  }
  ck_assert_int_eq (pthread_create (&other, NULL, let_go, &moves), 0);
  ck_assert_int_eq (replica_resync (r, true, NULL), 0);
  ck_assert_int_eq (pthread_join (other, NULL), 0);
  end_late ();
  ck_assert_int_eq (late_result, -1);
  ck_assert_int_eq (late_errno, EIO);
  ck_assert_msg (r->state == JOURNAL_SYNCING, "%s", r->reason);
}
END_TEST

/* --- beside a resync ------------------------------------------------------------------ */

static void *
fail_now (void *opaque)
{
  (void) opaque;
  replica_fail (r, "a test", EBADMSG);
  return NULL;
}

static void
on_record (void *opaque, enum simdisk_op op)
{
  bool failing;

  (void) opaque;
  if (op != SIMDISK_WRITE || strcmp (simdisk_op_path (), JOURNAL) != 0 || !r->moving || held)
    return;
  held = true;
  start_late (fail_now);
  do {
    SCOPED_LOCK (&r->lock);
    failing = r->failing;
  } while (!failing);
}

/* Write-out, which a resync does not wait for, finds damage while that is being recorded. */
START_TEST (fails_beside)
{
  struct mcerror err = { 0 };

  ck_assert_int_eq (put (&late_export, 0, 1), 0);
  commit ();
  simdisk_hook (disk, on_record, NULL);
  ck_assert_int_eq (replica_resync (r, false, &err), -1);
  ck_assert (held);
  end_late ();
  ck_assert_int_eq (err.code, MCEXIT_REFUSED);
  ck_assert_msg (strstr (err.text, "a test") != NULL, "%s", err.text);
  ck_assert_int_eq (r->state, JOURNAL_FAILED);
}
END_TEST

static void *
write_one (void *opaque)
{
  static uint8_t data[PIECE];

  (void) opaque;
  is_late = true;
  memset (data, 5, sizeof data);
  late_result = replica_pwrite (r, &late_export, data, sizeof data, PIECE, 0);
  late_errno = errno;
  late_done = true;
  return NULL;
}

/* Let in before a resync, published after it, and then not all of it for want of memory: the hole is one of the new stream. */
START_TEST (hole_of_the_new)
{
  struct mcerror err = { 0 };
  struct commit_answer a;

  ck_assert_int_eq (put (&late_export, 0, 1), 0);
  commit ();
  no_memory = true;
  start_late (write_one);
  wait_held ();
  ck_assert_int_eq (replica_resync (r, false, &err), 0);
  end_late ();
  ck_assert_int_eq (late_result, -1);
  ck_assert_int_eq (late_errno, ENOMEM);
  ck_assert_int_eq (r->state, JOURNAL_STALE);
  ck_assert_int_eq (replica_commit (r, &(struct commit_request) { 0 }, &a, &err), -1);
}
END_TEST

/* --- of a backlog that was drained ------------------------------------------------------ */

static void *
drain (void *opaque)
{
  (void) opaque;
  is_late = true;
  late_result = writeout_step (r);
  late_done = true;
  return NULL;
}

/* The backlog of a promote is drained.  Before that is recorded the replica is a standby again, and promoted
 * again: what is drained is not this backlog.  It was recorded of that, and after a crash what had been flushed was gone.
 */
START_TEST (drained_before)
{
  struct promote_answer a;
  struct simdisk *after;

  ck_assert_int_eq (put (&late_export, 0, 1), 0);
  commit ();
  while (!writeout_is_empty (r->wo))
    ck_assert_int_eq (writeout_step (r), 0);
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  hold = true;
  start_late (drain);
  wait_held ();
  ck_assert_int_eq (replica_resync (r, true, NULL), 0);
  ck_assert_int_eq (replica_open_export (r, "vda", &late_export), 0);
  ck_assert_int_eq (put (&late_export, 0, 2), 0);
  commit ();
  ck_assert_int_eq (put (&late_export, 0, 3), 0);
  commit ();
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  ck_assert_int_eq (replica_open_export (r, "vda@promoted", &late_export), 0);
  ck_assert_int_eq (put (&late_export, 1, 4), 0);
  ck_assert_int_eq (replica_flush (r, &late_export), 0);
  end_late ();
  ck_assert (!r->drained);

  after = simdisk_crash (disk, SIMDISK_KILL, host_bits);
  replica_close (r);
  simdisk_free (disk);
  disk = after;
  simvfs_default (disk);
  host_boot (host_new_boot ());
  server ();
  ck_assert (!r->drained);
  reads (0, 3);
  reads (1, 4);
  while (!r->drained)
    ck_assert_int_eq (writeout_step (r), 0);
  reads (0, 3);
  reads (1, 4);
}
END_TEST

/* --- reset ---------------------------------------------------------------------------- */

static struct scratch *scratch;

static void *
reset (void *opaque)
{
  uint64_t checkpoint;

  (void) opaque;
  late_result = scratch_reset (r, 0, &checkpoint);
  return NULL;
}

static void *
read_scratch_once (void *opaque)
{
  static uint8_t data[512];

  (void) opaque;
  ck_assert_int_eq (scratch_read (r, scratch, data, sizeof data, 0), 0);
  ck_assert_uint_eq (data[0], 2);       /* what there is after the reset */
  return NULL;
}

/* Until so many have asked for it.  None of them can be in: one request is, and the first who asks wants it alone. */
static void
wait_came (uint64_t n)
{
  uint64_t came = 0;

  while (came < n) {
    {
      SCOPED_LOCK (&r->lock);
      came = scratch->came;
      ck_assert_uint_eq (scratch->shared, 1);
    }
    sched_yield ();
  }
}

/* A guest that always has a request under way.  Each came in before the reset that waited for the others. */
START_TEST (reset_in_turn)
{
  struct replica_export x;
  pthread_t reader;
  uint8_t sector[512] = { 9 };

  ck_assert_int_eq (put (&late_export, 0, 1), 0);
  commit ();
  ck_assert_int_eq (replica_open_export (r, "vda@scratch", &x), 0);
  scratch = x.scratch;
  ck_assert_int_eq (scratch_write (r, scratch, sector, sizeof sector, 0, false), 0);
  ck_assert_int_eq (put (&late_export, 0, 2), 0);
  commit ();
  ck_assert_int_eq (scratch_begin (r, scratch, false), 0);
  start_late (reset);
  wait_came (3);
  ck_assert_int_eq (pthread_create (&reader, NULL, read_scratch_once, NULL), 0);
  wait_came (4);
  scratch_end (r, scratch);
  end_late ();
  ck_assert_int_eq (late_result, 0);
  ck_assert_int_eq (pthread_join (reader, NULL), 0);
  replica_close_export (r, &x);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("late");
  SRunner *sr = srunner_create (s);
  int failed;

  simvfs_register ();
  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, resync_makes_room);
  tcase_add_test (t, overwrite_makes_room);
  tcase_add_test (t, promote_makes_room);
  tcase_add_test (t, commits_wait);
  tcase_add_test (t, flushes_wait);
  tcase_add_test (t, commit_refused);
  tcase_add_test (t, swept_in);
  tcase_add_loop_test (t, mended, 0, 2);
  tcase_add_test (t, forgotten);
  tcase_add_test (t, fails_beside);
  tcase_add_test (t, hole_of_the_new);
  tcase_add_test (t, drained_before);
  tcase_add_test (t, reset_in_turn);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
