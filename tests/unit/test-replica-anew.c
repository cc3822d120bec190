/* SPDX-License-Identifier: BSD-3-Clause */
/* The way out of "failed" without a restart: resync overwrite on a journal that gave an error.
 *
 * The error is at each of the writes and syncs of what made it fail; then each of those of the resync fails too,
 * or the host dies at it.  Until the resync is answered what was acknowledged before stays, and nothing that was
 * refused comes back; from then on there is no checkpoint until a commit of the new copy.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"
#include "unit/story.h"

#define BLOCKS 8u
#define SIZE (BLOCKS * STORY_BLOCK)

static uint8_t want[SIZE];
static uint64_t cases, begun;

static void
server (void)
{
  ck_assert_int_eq (story_open (SIZE, (struct replica_params) { .baseline_trusted = true,
                                                                .journal_size = JOURNAL_MIN_SIZE }), 0);
}

static void
setup (void)
{
  story_setup ();
  simdisk_torn (disk, true);
  memset (want, 0, sizeof want);
}

static int
put (unsigned at, uint8_t what)
{
  return story_put (r->state == JOURNAL_PROMOTED ? REPLICA_PROMOTED : REPLICA_INLET, at, what);
}

static int
flush (void)
{
  struct replica_export x = { .fence = r->fence, .view = REPLICA_PROMOTED };

  return replica_flush (r, &x);
}

static void
wanted (unsigned at, uint8_t what)
{
  memset (want + at * STORY_BLOCK, what, STORY_BLOCK);
}

/* --- what is there after a crash -------------------------------------------------- */

/* Of AFTER: recovery finds what was acknowledged; or, with GONE, that there is no checkpoint.  1: the latter. */
static int
look (struct simdisk *after, bool old, bool gone)
{
  struct recover_params p = { .fs = simdisk_fs (after), .dir = TORTURE_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };
  unsigned boot = host_boot (host_new_boot ());
  int found = recover_run (&p, &result, &err);

  host_boot (boot);
  cases++;
  if (found == -1) {
    ck_assert_msg (gone && err.code == MCEXIT_NO_CHECKPOINT, "recovery: %s", err.text);
    return 1;
  }
  ck_assert_msg (old, "checkpoint %d after a resync overwrite", (int) result.checkpoint.id);
  ck_assert_uint_eq (result.checkpoint.id, newest);
  ck_assert (simdisk_equals (after, STORY_IMAGE, want, SIZE));
  return 0;
}

static void
crash (bool old, bool gone)
{
  for (unsigned how = 0; how < SIMDISK_HOWS; how++) {
    struct simdisk *after = simdisk_crash (disk, how, host_bits);

    begun += look (after, old, gone);
    simdisk_free (after);
  }
}

static void
on_op (void *opaque, enum simdisk_op op)
{
  (void) opaque;
  (void) op;
  crash (true, true);
}

/* --- the stories ------------------------------------------------------------------- */

static void
protected_disk (void)
{
  ck_assert_int_eq (put (0, 1), 0);
  ck_assert_int_eq (story_commit (), 0);
  ck_assert_int_eq (writeout_step (r), 0);
  ck_assert_int_eq (put (1, 2), 0);
  ck_assert_int_eq (story_commit (), 0);      /* a backlog */
  wanted (0, 1);
  wanted (1, 2);
}

static void
draining_disk (void)
{
  struct promote_answer a;

  protected_disk ();
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  ck_assert_int_eq (put (2, 3), 0);
  ck_assert_int_eq (flush (), 0);
  wanted (2, 3);
}

/* The records of the failure and after it lie on both sides of a chunk's end. */
static void
long_log (void)
{
  ck_assert_int_eq (put (0, 1), 0);
  wanted (0, 1);
  while (r->journal->log.seq % JOURNAL_CHUNK_BLOCKS < JOURNAL_CHUNK_BLOCKS - 2)
    ck_assert_int_eq (story_commit (), 0);
}

static void
longer_log (void)
{
  long_log ();
  ck_assert_int_eq (story_commit (), 0);
}

static void
longest_log (void)
{
  longer_log ();
  ck_assert_int_eq (story_commit (), 0);
}

static void (*const stories[]) (void) = {
  protected_disk, draining_disk, long_log, longer_log, longest_log,
};
#define STORIES (sizeof stories / sizeof stories[0])

/* A commit, or a flush, of which the Nth write or sync fails.  false: it has fewer. */
static bool
fails (unsigned n, bool sticky)
{
  int result;

  ck_assert_int_eq (put (3, 9), 0);
  simdisk_fail (disk, n, EIO, sticky);
  result = r->state == JOURNAL_PROMOTED ? flush () : story_commit ();
  if (result == 0) {
    simdisk_fail (disk, 0, 0, false);
    return false;
  }
  ck_assert_int_eq (r->state, JOURNAL_FAILED);
  return true;
}

/* The copy that follows, and its commit. */
static void
new_copy (void)
{
  ck_assert_int_eq (r->state, JOURNAL_SYNCING);
  ck_assert_int_eq (journal_failed (r->journal), 0);
  crash (false, true);
  for (unsigned i = 0; i < BLOCKS; i++) {
    ck_assert_int_eq (put (i, 100 + i), 0);
    wanted (i, 100 + i);
  }
  ck_assert_int_eq (story_commit (), 0);
  crash (true, false);
  ck_assert_int_eq (put (0, 77), 0);
  ck_assert_int_eq (story_commit (), 0);
  wanted (0, 77);
  ck_assert_int_eq (writeout_step (r), 0);
  crash (true, false);
  replica_close (r);
  server ();
  ck_assert_int_eq (r->state, JOURNAL_PROTECTED);
}

/* Each write and sync of the resync fails, for once or for good. */
START_TEST (fails_again)
{
  bool sticky = _i % 2;
  unsigned first = 0;

  for (unsigned n = 1; ; n++) {
    setup ();
    server ();
    stories[_i / 2] ();
    if (!fails (n, false)) {
      story_teardown ();
      break;
    }
    for (unsigned m = 1, begun_anew = 0; ; m++) {
      uint64_t before = simdisk_ops (disk);
      int result;

      simdisk_fail (disk, m, EIO, sticky);
      result = replica_resync (r, true, NULL);
      simdisk_fail (disk, 0, 0, false);
      if (result == 0 && r->state == JOURNAL_SYNCING) {
        if (simdisk_ops (disk) - before < m)
          break;
        /* It was one that does no harm: the file of sums. */
        story_teardown ();
        setup ();
        server ();
        stories[_i / 2] ();
        ck_assert (fails (n, false));
        begun_anew = 0;
        continue;
      }
      /* Done, and it failed after that: while what was before is forgotten. */
      begun_anew |= result == 0;
      first++;
      ck_assert_int_eq (r->state, JOURNAL_FAILED);
      ck_assert_int_ne (journal_failed (r->journal), 0);
      ck_assert_int_eq (put (1, 1), -1);
      ck_assert_int_eq (story_commit (), -1);
      /* The process only: of two that cannot be written, power loss may leave either. */
      {
        struct simdisk *after = simdisk_crash (disk, SIMDISK_KILL, host_bits);

        (void) look (after, !begun_anew, begun_anew);
        simdisk_free (after);
      }
    }
    new_copy ();
    story_teardown ();
  }
  ck_assert_uint_gt (first, 5);
}
END_TEST

/* The host, or the process, dies at each. */
START_TEST (dies)
{
  begun = 0;
  for (unsigned n = 1; ; n++) {
    setup ();
    server ();
    stories[_i] ();
    if (!fails (n, false)) {
      story_teardown ();
      break;
    }
    crash (true, false);
    simdisk_hook (disk, on_op, NULL);
    ck_assert_int_eq (replica_resync (r, true, NULL), 0);
    simdisk_hook (disk, NULL, NULL);
    new_copy ();
    story_teardown ();
  }
  ck_assert_uint_gt (begun, 0);
}
END_TEST

/* A server that is killed in the middle: the next one takes nothing over of what lacks the refused. */
static struct simdisk *killed;
static unsigned kill_at;

static void
on_kill (void *opaque, enum simdisk_op op)
{
  (void) opaque;
  (void) op;
  if (--kill_at == 0)
    killed = simdisk_crash (disk, SIMDISK_KILL, host_bits);
}

START_TEST (killed_server)
{
  for (unsigned k = 1; ; k++) {
    setup ();
    server ();
    stories[_i] ();
    ck_assert (fails (1, false));
    kill_at = k;
    killed = NULL;
    simdisk_hook (disk, on_kill, NULL);
    ck_assert_int_eq (replica_resync (r, true, NULL), 0);
    simdisk_hook (disk, NULL, NULL);
    if (killed == NULL) {
      story_teardown ();
      break;
    }
    story_teardown ();
    disk = killed;
    simvfs_default (disk);
    server ();
    cases++;
    ck_assert_msg (r->state == (stories[_i] == draining_disk ? JOURNAL_PROMOTED : JOURNAL_STALE) ||
                   r->state == JOURNAL_SYNCING, "the next server is %s", replica_state_word (r->state));
    story_teardown ();
  }
}
END_TEST

int
main (void)
{
  TCase *t = tcase_create ("anew");
  int result;

  tcase_set_timeout (t, 300);
  tcase_add_loop_test (t, fails_again, 0, 2 * STORIES);
  tcase_add_loop_test (t, dies, 0, STORIES);
  tcase_add_loop_test (t, killed_server, 0, 2);
  result = story_run (t, CK_NOFORK);
  printf ("TRIED invariant=1,7,8 test=unit/test-replica-anew what=\"crashes around a resync overwrite of a failed "
          "journal\" n=%llu\n", (unsigned long long) cases);
  return result;
}
