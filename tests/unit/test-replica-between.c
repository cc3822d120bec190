/* SPDX-License-Identifier: BSD-3-Clause */
/* Between a decision and what is recorded of it: a thread that loses the processor there does not undo what others
 * have acknowledged meanwhile.  Each test holds one at such a point.
 */
#include "config.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "journal/internal.h"
#include "unit/simvfs.h"
#include "unit/torture.h"

#define SIZE (UINT64_C (4) << 20)
#define PIECE 65536u
#define JOURNAL TORTURE_DIR "/journal"
#define ACKED TORTURE_DIR "/acked"
#define PATIENCE_NS UINT64_C (200000000)        /* for what must not come to an end */

static struct simdisk *disk;
static struct replica *r;
static struct replica_export export;
static bool trusted;

/* The two who meet: one is held, and the other one goes on meanwhile. */
enum who { NOBODY, HELD, OTHER };
static __thread enum who me;
static pthread_t thread[3];
static _Atomic bool held, go, done[3];
static int result[3], error[3];

static void
hold (void)
{
  held = true;
  while (!go)
    sched_yield ();
}

static void
wait_for (_Atomic bool *what)
{
  while (!*what)
    sched_yield ();
}

extern uint64_t __real_host_monotonic_ns (void);

/* OTHER does what he can. */
static void
wait_other (void)
{
  uint64_t until = __real_host_monotonic_ns () + PATIENCE_NS;

  while (!done[OTHER] && __real_host_monotonic_ns () < until)
    sched_yield ();
}

struct start {
  enum who who;
  int (*fn) (void);
};

static void *
run (void *opaque)
{
  struct start s = *(struct start *) opaque;

  free (opaque);
  me = s.who;
  result[me] = s.fn ();
  error[me] = errno;
  done[me] = true;
  return NULL;
}

static void
start (enum who who, int (*fn) (void))
{
  struct start *s = malloc (sizeof *s);

  *s = (struct start) { who, fn };
  ck_assert_int_eq (pthread_create (&thread[who], NULL, run, s), 0);
}

static void
end (enum who who)
{
  ck_assert_int_eq (pthread_join (thread[who], NULL), 0);
}

/* --- the replica ------------------------------------------------------------------ */

static bool (*when_logged) (void);

static void
on_log (void *opaque, enum replica_log_level level, const char *line)
{
  (void) opaque;
  (void) line;
  if (me == HELD && level == REPLICA_LOG_ERROR && when_logged && when_logged ())
    hold ();
}

static void
server (void)
{
  struct replica_disk_params d = { .name = "vda", .path = "/sim/0.img", .create = true, .size = SIZE };
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR, .disks = &d, .ndisks = 1,
                              .baseline_trusted = trusted, .log = on_log,
                              .journal_size = JOURNAL_MIN_SIZE, .buffer = UINT64_C (8) << 20 };
  struct mcerror err = { 0 };

  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  r->by_hand = true;
}

static void
begin (bool trust)
{
  trusted = trust;
  server ();
  ck_assert_int_eq (replica_open_export (r, "vda", &export), 0);
}

static void
setup (void)
{
  host_seed (1);
  host_reset (1, false);
  disk = simdisk_new ();
  simvfs_default (disk);
  held = go = done[HELD] = done[OTHER] = false;
  when_logged = NULL;
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

/* The power is lost, and the next server starts. */
static void
reboot (void)
{
  struct simdisk *after = simdisk_crash (disk, SIMDISK_KILL, host_bits);

  simdisk_hook (disk, NULL, NULL);
  simdisk_calls (disk, NULL, NULL);
  replica_close (r);
  simdisk_free (disk);
  disk = after;
  simvfs_default (disk);
  host_boot (host_new_boot ());
  server ();
}

static void
put (unsigned at, uint8_t what)
{
  uint8_t piece[PIECE];

  memset (piece, what, sizeof piece);
  ck_assert_int_eq (replica_pwrite (r, &export, piece, sizeof piece, (uint64_t) at * PIECE, 0), 0);
}

static void
reads (unsigned at, uint8_t what)
{
  uint8_t piece[PIECE];

  ck_assert_int_eq (replica_pread (r, &export, piece, sizeof piece, (uint64_t) at * PIECE), 0);
  for (unsigned i = 0; i < sizeof piece; i++)
    ck_assert_uint_eq (piece[i], what);
}

static int
commit (void)
{
  struct commit_answer a;

  return replica_commit (r, &(struct commit_request) { 0 }, &a, NULL);
}

static int
flush (void)
{
  return replica_flush (r, &export);
}

static int
fail_now (void)
{
  replica_fail (r, "a test", EBADMSG);
  return 0;
}

/* --- the mark of a failure, and a commit ------------------------------------------- */

static _Atomic bool other_held, other_go;

extern int __real_journal_do_commit (struct journal *j, struct journal_commit *c);
extern int __wrap_journal_do_commit (struct journal *j, struct journal_commit *c);

int
__wrap_journal_do_commit (struct journal *j, struct journal_commit *c)
{
  if (me == OTHER) {
    other_held = true;
    while (!other_go)
      sched_yield ();
  }
  return __real_journal_do_commit (j, c);
}

/* The first is of the STALE record. */
static int
on_second_mark (void *opaque, enum simdisk_call call, const char *path, size_t *len)
{
  static unsigned n;

  (void) opaque;
  (void) len;
  if (me == HELD && call == SIMDISK_CALL_WRITE && strcmp (path, ACKED) == 0 && n++ == 1)
    hold ();
  return 0;
}

/* What was read of the log for the mark was old when it was written: the next server believed nothing that was
 * acknowledged in between.
 */
START_TEST (mark)
{
  begin (true);
  put (0, 1);
  ck_assert_int_eq (commit (), 0);
  put (1, 2);
  other_held = other_go = false;
  start (OTHER, commit);
  wait_for (&other_held);
  simdisk_calls (disk, on_second_mark, NULL);
  start (HELD, fail_now);
  wait_for (&held);
  other_go = true;
  wait_other ();
  go = true;
  end (HELD);
  end (OTHER);
  ck_assert_int_eq (result[OTHER], 0);
  reboot ();
  ck_assert_uint_eq (r->checkpoint.id, 2);
}
END_TEST

/* --- a failure, and a promote -------------------------------------------------------- */

static void
on_record (void *opaque, enum simdisk_op op)
{
  bool failing;

  (void) opaque;
  if (op != SIMDISK_WRITE || strcmp (simdisk_op_path (), JOURNAL) != 0 || !r->moving || held)
    return;
  held = true;
  start (HELD, fail_now);
  do {
    SCOPED_LOCK (&r->lock);
    failing = r->failing;
  } while (!failing);
}

/* That the stream had a hole was recorded of the promoted replica: the next server was a stale standby, and
 * what had been flushed was no part of any checkpoint.
 */
START_TEST (promoted)
{
  struct promote_answer a;

  begin (true);
  put (0, 1);
  ck_assert_int_eq (commit (), 0);
  simdisk_hook (disk, on_record, NULL);
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  ck_assert (held);
  end (HELD);
  simdisk_hook (disk, NULL, NULL);
  ck_assert_int_eq (r->state, JOURNAL_PROMOTED);
  ck_assert_int_eq (replica_open_export (r, "vda@promoted", &export), 0);
  put (1, 2);
  ck_assert_int_eq (flush (), 0);
  reboot ();
  ck_assert_int_eq (r->state, JOURNAL_PROMOTED);
  ck_assert_int_eq (replica_open_export (r, "vda@promoted", &export), 0);
  reads (0, 1);
  reads (1, 2);
}
END_TEST

/* --- the error of a sync, and another sync --------------------------------------------- */

extern int __real_backing_flush (struct backing *b);
extern int __wrap_backing_flush (struct backing *b);

static bool first_commit, flusher_is_held;

static bool
cannot_sync (void)
{
  return first_commit;
}

int
__wrap_backing_flush (struct backing *b)
{
  int n, saved;

  if (me == NOBODY && first_commit && !done[HELD]) {
    /* The copy is closed, and nobody is on his way to the image: now somebody flushes. */
    simdisk_fail (disk, 1, EIO, false);
    start (HELD, flush);
    while (!held && !done[HELD])
      sched_yield ();
    return __real_backing_flush (b);
  }
  n = __real_backing_flush (b);
  if (me == HELD && flusher_is_held) {
    saved = errno;
    hold ();
    errno = saved;
  }
  return n;
}

/* The kernel tells of a lost page once: a flush of the inlet took what the first commit had to see. */
START_TEST (first_copy)
{
  begin (false);
  put (0, 1);
  first_commit = true;
  when_logged = cannot_sync;
  ck_assert_int_eq (commit (), -1);
  go = true;
  end (HELD);
  first_commit = false;
  ck_assert (!r->has_checkpoint);
  ck_assert_int_eq (r->state, JOURNAL_STALE);
}
END_TEST

/* And of two flushes of a promoted disk the second one succeeded. */
START_TEST (two_flushes)
{
  struct promote_answer a;

  begin (true);
  put (0, 1);
  ck_assert_int_eq (commit (), 0);
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  while (!r->drained)
    ck_assert_int_eq (writeout_step (r), 0);
  ck_assert_int_eq (replica_open_export (r, "vda@promoted", &export), 0);
  put (1, 2);
  flusher_is_held = true;
  simdisk_fail (disk, 1, EIO, false);
  start (HELD, flush);
  wait_for (&held);
  start (OTHER, flush);
  wait_other ();
  go = true;
  end (HELD);
  end (OTHER);
  flusher_is_held = false;
  ck_assert_int_eq (result[HELD], -1);
  ck_assert_int_eq (result[OTHER], -1);
  ck_assert_int_eq (error[OTHER], EIO);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("between");
  SRunner *sr = srunner_create (s);
  int failed;

  simvfs_register ();
  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, mark);
  tcase_add_test (t, promoted);
  tcase_add_test (t, first_copy);
  tcase_add_test (t, two_flushes);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
