/* SPDX-License-Identifier: BSD-3-Clause */
/* What comes in between: views, promotes and the divergence, with somebody else's step at the
 * worst moment.  No threads run by themselves: the simulated disk calls back while a request waits for it.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "unit/story.h"

#define SIZE 65536u
#define JOURNAL TORTURE_DIR "/journal"
#define DIVERGENCE TORTURE_DIR "/divergence"

static uint8_t block[STORY_BLOCK];
static bool happened;           /* the hook has done its part */

static void
server (uint64_t history)
{
  ck_assert_int_eq (story_open (SIZE, (struct replica_params) { .history = { .checkpoints = history },
                                                                .journal_size = 4 * JOURNAL_MIN_SIZE }), 0);
}

static void
setup (void)
{
  story_setup ();
  happened = false;
}

static uint64_t
commit (void)
{
  ck_assert_int_eq (story_commit (), 0);
  return newest;
}

/* Block 0 has the checkpoint's number. */
static uint64_t
next (void)
{
  uint64_t n = r->has_checkpoint ? r->checkpoint.id + 1 : 1;

  ck_assert_int_eq (story_put (REPLICA_INLET, 0, n), 0);
  ck_assert_uint_eq (commit (), n);
  return n;
}

static int
what_is (const struct replica_export *x)
{
  if (replica_pread (r, x, block, sizeof block, 0) == -1)
    return -1;
  for (size_t i = 1; i < sizeof block; i++)
    ck_assert_uint_eq (block[i], block[0]);
  return block[0];
}

static void
promote (const char *to, bool scratch)
{
  struct promote_answer a;
  struct mcerror err = { 0 };

  ck_assert_msg (replica_promote (r, to, scratch, &a, &err) == 0, "%s", err.text);
}

static bool
known (void)
{
  char why[256];

  return divergence_known (r, why, sizeof why);
}

static bool
is_on (const char *path)
{
  return strcmp (simdisk_op_path (), path) == 0;
}

/* --- views ----------------------------------------------------------------------- */

/* The same, and more than a chunk of the journal. */
static void
next_large (void)
{
  ck_assert_int_eq (story_put (REPLICA_INLET, 0, r->checkpoint.id + 1), 0);
  for (unsigned i = 0; i < 2 * JOURNAL_CHUNK_BLOCKS; i++)
    ck_assert_int_eq (story_put (REPLICA_INLET, 1 + i % (SIZE / sizeof block - 1), i), 0);
  commit ();
}

/* A view that was opened before its checkpoint was merged has a map of its own.  Write-out cut a segment
 * below the checkpoint, wrote it out and recycled the blocks that this map names.
 */
START_TEST (view_with_own_map)
{
  struct replica_export x;

  server (8);
  next ();
  next_large ();
  next_large ();
  next_large ();
  ck_assert_int_eq (replica_open_export (r, "vda@3", &x), 0);
  for (unsigned i = 0; i < 12; i++) {
    next_large ();
    ck_assert_int_eq (writeout_step (r), 0);
    ck_assert_msg (what_is (&x) == 3, "%u: %u %m", i, block[0]);
  }
  /* The journal runs short. */
  if (_i == 1) {
    r->waiting++;
    ck_assert_int_eq (writeout_step (r), 0);
    r->waiting--;
    ck_assert_int_eq (what_is (&x), -1);
    ck_assert_int_eq (errno, EIO);
  }
  replica_close_export (r, &x);
  for (unsigned i = 0; i < 120; i++)
    ck_assert_int_eq (writeout_step (r), 0);
  ck_assert_uint_ge (r->written_out, 8);
  ck_assert_int_eq (r->state, JOURNAL_PROTECTED);
}
END_TEST

/* Each look at the newest checkpoint left a segment behind, and reads had to go through all of them. */
START_TEST (views_many)
{
  struct replica_export x, kept;

  server (1000);
  next ();
  ck_assert_int_eq (replica_open_export (r, "vda@latest", &kept), 0);
  for (unsigned i = 0; i < 120; i++) {
    uint64_t n = next ();

    ck_assert_int_eq (replica_open_export (r, "vda@latest", &x), 0);
    ck_assert_int_eq (what_is (&x), n);
    replica_close_export (r, &x);
    if (i % 7 == 0)
      ck_assert_int_eq (writeout_step (r), 0);
  }
  ck_assert_uint_le (writeout_segments (r->wo), WRITEOUT_SEGMENTS + 1);
  ck_assert_int_eq (what_is (&kept), 1);
  replica_close_export (r, &kept);
}
END_TEST

static int
fail_reads (void *opaque, enum simdisk_call call, const char *path, size_t *len)
{
  (void) opaque;
  (void) len;
  happened = happened || (call == SIMDISK_CALL_READ && strcmp (path, JOURNAL) == 0);
  return call == SIMDISK_CALL_READ && strcmp (path, JOURNAL) == 0 ? EIO : 0;
}

/* A view whose map could not be built was gone, and whoever had wanted a scratch over it closed it again. */
START_TEST (scratch_without_view)
{
  struct replica_export kept, x;
  char *reply;
  const char reset[] = "reset vda@scratch";

  server (1000);
  next ();
  if (_i == 1) {
    ck_assert_int_eq (replica_open_export (r, "vda@scratch", &kept), 0);
    next ();
  }
  /* Many segments: a view of the newest has a map of its own, too. */
  for (unsigned i = 0; i <= WRITEOUT_SEGMENTS; i++) {
    ck_assert_int_eq (replica_open_export (r, "vda@latest", &x), 0);
    replica_close_export (r, &x);
    next ();
  }
  simdisk_calls (disk, fail_reads, NULL);
  if (_i == 0)
    ck_assert_int_eq (replica_open_export (r, "vda@scratch", &x), -1);
  else {
    ck_assert_int_eq (replica_control (r, true, reset, strlen (reset), &reply), -1);
    free (reply);
    ck_assert_int_eq (what_is (&kept), 1);      /* it is what it was */
  }
  ck_assert (happened);
  simdisk_calls (disk, NULL, NULL);
  ck_assert_ptr_null (r->views ? r->views->next : NULL);
  ck_assert_int_eq (replica_open_export (r, "vda@scratch", &x), 0);
  ck_assert_int_eq (what_is (&x), r->checkpoint.id);
  replica_close_export (r, &x);
  if (_i == 1)
    replica_close_export (r, &kept);
}
END_TEST

/* --- promote ----------------------------------------------------------------------- */

/* While the promote to an older checkpoint was being recorded, inlets showed that one already. */
static void
on_promote (void *opaque, enum simdisk_op op)
{
  struct replica_export x = { .view = REPLICA_INLET, .fence = r->fence };

  (void) opaque;
  if (op != SIMDISK_WRITE || !is_on (JOURNAL) || !r->commit_turn)
    return;
  happened = true;
  ck_assert_int_eq (r->state, JOURNAL_PROTECTED);
  ck_assert_int_eq (what_is (&x), 3);
}

START_TEST (promote_older_reads)
{
  struct replica_export x = { .view = REPLICA_PROMOTED };

  server (0);
  next ();
  next ();
  next ();
  simdisk_hook (disk, on_promote, NULL);
  promote ("2", false);
  simdisk_hook (disk, NULL, NULL);
  ck_assert (happened);
  x.fence = r->fence;
  ck_assert_int_eq (what_is (&x), 2);
  while (!r->direct)
    ck_assert_int_eq (writeout_step (r), 0);
  ck_assert_int_eq (what_is (&x), 2);
}
END_TEST

/* A resync that overwrites came between the flush of promoted writes and their write-out, and this went
 * on into the image under the new copy.
 */
static void
on_flush (void *opaque, enum simdisk_op op)
{
  (void) opaque;
  if (op == SIMDISK_SYNC && is_on (JOURNAL) && r->commit_turn) {
    r->hold_writeout = true;    /* as come_to_rest does, who waits for the turn */
    happened = true;
  }
  ck_assert (!happened || !is_on (STORY_IMAGE));
}

START_TEST (direct_is_held)
{
  server (0);
  next ();
  promote (NULL, false);
  ck_assert_int_eq (writeout_step (r), 0);
  ck_assert (writeout_is_empty (r->wo));
  ck_assert_int_eq (story_put (REPLICA_PROMOTED, 1, 7), 0);
  simdisk_hook (disk, on_flush, NULL);
  ck_assert_int_eq (writeout_step (r), 0);
  ck_assert (happened);
  ck_assert (!r->direct);
  simdisk_hook (disk, NULL, NULL);
  r->hold_writeout = false;
  while (!r->direct)
    ck_assert_int_eq (writeout_step (r), 0);
}
END_TEST

/* Nothing had been written to scratch: no commit took the word "pending" back, and the next server
 * threw away what was promoted, written and acknowledged.
 */
START_TEST (promote_empty_scratch)
{
  struct replica_export x;
  struct journal_state state;

  server (0);
  next ();
  ck_assert_int_eq (replica_open_export (r, "vda@scratch", &x), 0);
  promote (NULL, true);
  journal_get_state (r->journal, &state);
  ck_assert (!state.pending);
  replica_close_export (r, &x);
}
END_TEST

/* --- divergence ---------------------------------------------------------------------- */

static int
no_divergence (void *opaque, enum simdisk_call call, const char *path,
               size_t *len)
{
  (void) opaque;
  (void) len;
  return call == SIMDISK_CALL_OPEN && strcmp (path, DIVERGENCE) == 0 ? EMFILE : 0;
}

/* The second promote could not make the file, and the first one's answer was given. */
START_TEST (divergence_of_another)
{
  server (0);
  next ();
  promote (NULL, false);
  house_step (r);
  ck_assert (known ());
  ck_assert_int_eq (replica_resync (r, true, NULL), 0);
  ck_assert_int_eq (story_put (REPLICA_INLET, 1, 1), 0);
  commit ();
  ck_assert_int_eq (story_put (REPLICA_INLET, 2, 1), 0);
  if (_i == 1)
    replica_hole (r, ENOSPC, "a test");
  simdisk_calls (disk, no_divergence, NULL);
  promote (NULL, false);
  house_step (r);
  simdisk_calls (disk, NULL, NULL);
  ck_assert (!known ());
  story_close ();
  server (0);
  ck_assert (!known ());
}
END_TEST

static void *
refuse (void *opaque)
{
  struct admitted a = { .route = ROUTE_DIRECT, .moves = r->moves };

  ck_assert_int_eq (replica_refused (r, &a, ENOSPC, opaque), -1);
  ck_assert_int_eq (errno, EAGAIN);
  return NULL;
}

static unsigned
parked (void)
{
  SCOPED_LOCK (&r->lock);

  return r->parked;
}

static pthread_t refusing;

static void
on_moving (void *opaque, enum simdisk_op op)
{
  if (op != SIMDISK_WRITE || !is_on (JOURNAL) || !r->moving || happened)
    return;
  happened = true;
  ck_assert_int_eq (pthread_create (&refusing, NULL, refuse, opaque), 0);
  while (parked () == 0)
    sched_yield ();
}

/* A write was refused for want of room while the promote was on its way: the old primary has it, and
 * nothing of it was noted.
 */
START_TEST (refused_while_promoting)
{
  char what[] = "a test";

  server (0);
  next ();
  simdisk_hook (disk, on_moving, what);
  promote (NULL, false);
  ck_assert (happened);
  ck_assert_int_eq (pthread_join (refusing, NULL), 0);
  house_step (r);
  ck_assert (!known ());
}
END_TEST

static void
on_known (void *opaque, enum simdisk_op op)
{
  (void) opaque;
  if (op == SIMDISK_WRITE && is_on (DIVERGENCE) && !happened && known ()) {
    happened = true;
    divergence_refused (r);
  }
}

/* That it is not known any more was noted, and then, by somebody slower, that it is. */
START_TEST (refused_while_noting)
{
  server (0);
  next ();
  ck_assert_int_eq (story_put (REPLICA_INLET, 1, 1), 0);
  promote (NULL, false);
  simdisk_hook (disk, on_known, NULL);
  house_step (r);
  simdisk_hook (disk, NULL, NULL);
  ck_assert (happened);
  ck_assert (!known ());
  story_close ();
  server (0);
  ck_assert (!known ());
}
END_TEST

static unsigned journal_writes, fail_from;

static int
fail_journal (void *opaque, enum simdisk_call call, const char *path,
              size_t *len)
{
  (void) opaque;
  (void) len;
  return call == SIMDISK_CALL_WRITE && strcmp (path, JOURNAL) == 0 &&
    ++journal_writes >= fail_from ? EIO : 0;
}

static int
recover (void)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };

  return recover_run (&p, &result, &err);
}

/* A recovery noted what differs and came no further; the replica went on, had a hole, and was recovered at
 * last: what the first had noted passed for the truth.
 */
START_TEST (recovery_that_failed)
{
  int result = -1;

  for (fail_from = 1; result == -1; fail_from++) {
    story_teardown ();
    setup ();
    server (0);
    next ();
    story_close ();
    journal_writes = 0;
    simdisk_calls (disk, fail_journal, NULL);
    result = recover ();
    simdisk_calls (disk, NULL, NULL);
    server (0);
    if (r->state == JOURNAL_PROMOTED)
      continue;
    ck_assert_int_eq (story_put (REPLICA_INLET, 1, 1), 0);
    replica_hole (r, ENOSPC, "a test");
    story_close ();
    ck_assert_int_eq (recover (), 0);
    server (0);
    ck_assert_int_eq (r->state, JOURNAL_PROMOTED);
    ck_assert_msg (!known (), "journal writes failed from the %uth on", fail_from);
  }
  ck_assert_uint_gt (fail_from, 2);
}
END_TEST

int
main (void)
{
  TCase *t = tcase_create ("races");

  tcase_add_checked_fixture (t, setup, story_teardown);
  tcase_set_timeout (t, 120);
  tcase_add_loop_test (t, view_with_own_map, 0, 2);
  tcase_add_test (t, views_many);
  tcase_add_loop_test (t, scratch_without_view, 0, 2);
  tcase_add_test (t, promote_older_reads);
  tcase_add_test (t, direct_is_held);
  tcase_add_test (t, promote_empty_scratch);
  tcase_add_loop_test (t, divergence_of_another, 0, 2);
  tcase_add_test (t, refused_while_promoting);
  tcase_add_test (t, refused_while_noting);
  tcase_add_test (t, recovery_that_failed);
  return story_run (t, CK_FORK);
}
