/* SPDX-License-Identifier: BSD-3-Clause */
/* What the torture found, each as the shortest story that shows it. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "unit/story.h"

#define SIZE 65536u

static int
try_open (void)
{
  return story_open (SIZE, (struct replica_params) { .journal_size = JOURNAL_MIN_SIZE });
}

static void
server (void)
{
  ck_assert_int_eq (try_open (), 0);
}

static int
put (unsigned at, uint8_t what)
{
  return story_put (REPLICA_INLET, at, what);
}

/* After any power loss now the last acknowledged checkpoint is there. */
static void
recovers (void)
{
  for (unsigned i = 0; i < 300; i++) {
    struct simdisk *after = simdisk_crash (disk, host_below (SIMDISK_HOWS), host_bits);
    struct recover_params p = { .fs = simdisk_fs (after), .dir = TORTURE_DIR };
    struct recover_result result;
    struct mcerror err = { 0 };
    unsigned boot = host_boot (host_new_boot ());

    ck_assert_msg (recover_run (&p, &result, &err) == 0, "%s", err.text);
    ck_assert_uint_eq (result.checkpoint.id, newest);
    host_boot (boot);
    simdisk_free (after);
  }
}

/* The mark "failed" that one server left in "acked" outlived, on the disk, what the next ones
 * acknowledged: after a power loss recovery took all of that for refused.
 */
START_TEST (failed_mark)
{
  server ();
  ck_assert_int_eq (put (0, 1), 0);
  ck_assert_int_eq (story_commit (), 0);
  ck_assert_int_eq (put (1, 2), 0);
  simdisk_fail (disk, 1, EIO, false);
  ck_assert_int_eq (story_commit (), -1);
  ck_assert_int_eq (r->state, JOURNAL_FAILED);
  recovers ();
  replica_close (r);

  server ();
  ck_assert_int_eq (r->state, JOURNAL_STALE);
  recovers ();
  ck_assert_int_eq (replica_resync (r, false, NULL), 0);
  ck_assert_int_eq (put (2, 3), 0);
  ck_assert_int_eq (story_commit (), 0);
  recovers ();
}
END_TEST

/* After a clean stop the first write could not take the clean mark off, and was refused; after a power loss
 * the mark was still there, and the next server went on as if nothing had been refused.
 */
START_TEST (refusal_remembered)
{
  server ();
  if (_i > 0) {
    ck_assert_int_eq (put (0, 1), 0);
    ck_assert_int_eq (story_commit (), 0);
  }
  replica_close (r);
  server ();
  ck_assert (r->clean);
  simdisk_fail (disk, 1, EIO, false);
  ck_assert_int_eq (put (1, 2), -1);
  ck_assert_int_eq (r->state, JOURNAL_FAILED);
  for (unsigned i = 0; i < 100; i++) {
    struct simdisk *after = simdisk_crash (disk, host_below (SIMDISK_HOWS), host_bits), *was = disk;
    struct replica *failed = r;

    disk = after;
    host_boot (host_new_boot ());
    server ();
    ck_assert_int_eq (r->state, JOURNAL_STALE);
    replica_close (r);
    simdisk_free (after);
    disk = was;
    r = failed;
  }
}
END_TEST

/* The same where it was no error of the device that made the journal fail; and after a new copy in the same
 * server nothing is left of it.
 */
START_TEST (failure_remembered)
{
  server ();
  ck_assert_int_eq (put (0, 1), 0);
  ck_assert_int_eq (story_commit (), 0);
  replica_close (r);
  server ();
  ck_assert (r->clean);
  replica_fail (r, "a test", EBADMSG);
  ck_assert_int_eq (put (1, 2), -1);
  if (_i == 0) {
    replica_close (r);
    server ();
    ck_assert_int_eq (r->state, JOURNAL_STALE);
    return;
  }
  ck_assert_int_eq (replica_resync (r, true, NULL), 0);
  ck_assert_int_eq (put (1, 2), 0);
  ck_assert_int_eq (story_commit (), 0);
  recovers ();
}
END_TEST

/* The sync of a clean stop failed, the next server believed what was left of it in the cache, and committed it. */
START_TEST (stop_that_failed)
{
  simdisk_torn (disk, true);
  server ();
  ck_assert_int_eq (put (0, 1), 0);
  ck_assert_int_eq (story_commit (), 0);
  ck_assert_int_eq (put (1, 2), 0);
  for (unsigned i = 0; i < 3; i++) {
    simdisk_fail (disk, 2 + i, EIO, false);
    replica_close (r);
    server ();
    if (r->state == JOURNAL_STALE)
      ck_assert_int_eq (replica_resync (r, false, NULL), 0);
    ck_assert_int_eq (put (2, 3 + i), 0);
    ck_assert_int_eq (story_commit (), 0);
    recovers ();
    ck_assert_int_eq (put (3, 4 + i), 0);
  }
}
END_TEST

/* The same of a server that was killed in the middle of a commit, and another that could not sync what it had
 * left behind, and did not start.
 */
static struct simdisk *killed;

static void
on_kill (void *opaque, enum simdisk_op op)
{
  (void) opaque;
  if (op == SIMDISK_SYNC && killed == NULL)
    killed = simdisk_crash (disk, SIMDISK_KILL, host_bits);
}

START_TEST (start_that_failed)
{
  server ();
  ck_assert_int_eq (put (0, 1), 0);
  ck_assert_int_eq (story_commit (), 0);
  if (_i == 1) {
    ck_assert_int_eq (put (1, 2), 0);
    simdisk_hook (disk, on_kill, NULL);
    (void) story_commit ();
    simdisk_hook (disk, NULL, NULL);
    newest--;
  }
  else {
    ck_assert_int_eq (put (1, 2), 0);
    simdisk_hook (disk, on_kill, NULL);
  }
  replica_close (r);
  r = NULL;
  simdisk_free (disk);
  disk = killed;
  ck_assert_ptr_nonnull (disk);
  simdisk_torn (disk, true);
  simdisk_fail (disk, 2, EIO, false);   /* after the lock's signature */
  ck_assert_int_eq (try_open (), -1);
  server ();
  if (r->state == JOURNAL_STALE)
    ck_assert_int_eq (replica_resync (r, false, NULL), 0);
  ck_assert_int_eq (put (2, 3), 0);
  ck_assert_int_eq (story_commit (), 0);
  recovers ();
}
END_TEST

/* A promoted replica listed the epochs of its own flushes as checkpoints, and the promoted one not. */
START_TEST (promoted_list)
{
  struct promote_answer a;
  struct replica_export x = { .view = REPLICA_PROMOTED };
  struct journal_checkpoint list[4];

  server ();
  ck_assert_int_eq (put (0, 1), 0);
  ck_assert_int_eq (story_commit (), 0);
  ck_assert_int_eq (put (1, 2), 0);
  ck_assert_int_eq (story_commit (), 0);
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  x.fence = r->fence;
  catalog_step (disk, r);       /* the one before can no more be recovered to */
  catalog_match (NULL, disk, r);
  for (unsigned i = 0; i < 4; i++) {
    ck_assert_int_eq (story_put (REPLICA_PROMOTED, i, 3 + i), 0);
    ck_assert_int_eq (replica_flush (r, &x), 0);
    ck_assert_uint_eq (journal_checkpoints (r->journal, list, 4), 1);
    ck_assert_uint_eq (list[0].id, newest);
    ck_assert_int_eq (writeout_step (r), 0);
    ck_assert_uint_eq (journal_checkpoints (r->journal, list, 4), 1);
    ck_assert_uint_eq (list[0].id, newest);
  }
}
END_TEST

/* Write-out went on, and the catalog went on listing what it had left behind until the next commit. */
START_TEST (catalog_window_moves)
{
  server ();
  for (unsigned i = 0; i < 3; i++) {
    ck_assert_int_eq (put (i, 1), 0);
    ck_assert_int_eq (story_commit (), 0);
  }
  catalog_step (disk, r);
  catalog_match (NULL, disk, r);
  ck_assert_int_eq (writeout_step (r), 0);
  catalog_step (disk, r);
  catalog_match (NULL, disk, r);
}
END_TEST

static unsigned reads_left;

static int
on_read (void *opaque, enum simdisk_call call, const char *path, size_t *len)
{
  (void) opaque;
  (void) len;
  return call == SIMDISK_CALL_READ && strcmp (path, TORTURE_DIR "/journal") == 0 &&
    reads_left > 0 && --reads_left == 0 ? EIO : 0;
}

/* A journal that is damaged in the middle: the catalog went on listing what is behind the damage; and where the next
 * server can read it, it is listed again.
 */
START_TEST (catalog_of_damage)
{
  unsigned failed = 0;
  struct simdisk *whole;

  server ();
  for (unsigned i = 0; i < 3; i++) {
    ck_assert_int_eq (put (i, 1), 0);
    ck_assert_int_eq (story_commit (), 0);
  }
  catalog_step (disk, r);
  story_close ();
  whole = disk;
  for (unsigned n = 1; ; n++) {
    bool reached;

    disk = simdisk_crash (whole, SIMDISK_KILL, host_bits);
    simvfs_default (disk);
    reads_left = n;
    simdisk_calls (disk, on_read, NULL);
    if (try_open () == 0) {
      failed += r->state == JOURNAL_FAILED && r->has_checkpoint;
      simdisk_calls (disk, NULL, NULL);
      catalog_step (disk, r);
      catalog_match (NULL, disk, r);
      r->by_hand = false;       /* killed */
      story_close ();
    }
    reached = reads_left == 0;
    simdisk_calls (disk, NULL, NULL);
    server ();
    catalog_step (disk, r);
    catalog_match (NULL, disk, r);
    story_close ();
    simdisk_free (disk);
    if (!reached)
      break;
  }
  disk = whole;
  simvfs_default (disk);
  ck_assert_uint_gt (failed, 0);
}
END_TEST

/* A catalog whose damage only writing shows was opened again and again. */
START_TEST (catalog_damaged_in_use)
{
  sqlite3 *db;

  server ();
  for (unsigned i = 0; i < 3; i++) {
    ck_assert_int_eq (put (i, 1), 0);
    ck_assert_int_eq (story_commit (), 0);
  }
  catalog_step (disk, r);
  replica_close (r);
  ck_assert_int_eq (sqlite3_open (TORTURE_DIR "/catalog.sqlite", &db), SQLITE_OK);
  ck_assert_int_eq (sqlite3_exec (db, "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql ="
                                  " 'CREATE INDEX checkpoints_recoverable ON checkpoints (time_ns) WHERE recoverable'"
                                  " WHERE name = 'checkpoints_recoverable'", NULL, NULL, NULL), SQLITE_OK);
  ck_assert_int_eq (sqlite3_close (db), SQLITE_OK);
  server ();
  for (unsigned i = 0; i < 2; i++)
    catalog_step (disk, r);
  ck_assert_int_eq (writeout_step (r), 0);
  for (unsigned i = 0; i < 2; i++)
    catalog_step (disk, r);
  catalog_match (NULL, disk, r);
}
END_TEST

static unsigned made_again, making;

/* Nobody has committed: either there is no journal yet, or it has no checkpoint. */
static void
on_making (void *opaque, enum simdisk_op op)
{
  struct simdisk *first = opaque;

  (void) op;
  for (unsigned i = 0; i < 4; i++) {
    struct simdisk *after = simdisk_crash (first, host_below (SIMDISK_HOWS), host_bits), *was = disk;
    struct recover_params p = { .fs = simdisk_fs (after), .dir = TORTURE_DIR };
    struct recover_result result;
    struct mcerror err = { 0 };

    if (journal_exists (simdisk_fs (after), TORTURE_DIR)) {
      ck_assert_int_eq (recover_run (&p, &result, &err), -1);
      ck_assert_msg (err.code == MCEXIT_NO_CHECKPOINT, "%s", err.text);
    }
    else if (making == 0) {
      struct replica *server_of_first = r;

      made_again++;
      making++;
      disk = after;
      simdisk_hook (disk, on_making, disk);
      ck_assert_int_eq (try_open (), 0);
      simdisk_hook (disk, NULL, NULL);
      replica_close (r);
      r = server_of_first;
      making--;
      disk = was;
    }
    simdisk_free (after);
  }
}

/* The acknowledged mark of a journal that was never finished came back under the one that was made
 * in its place, and passed for damage.
 */
START_TEST (made_twice)
{
  for (unsigned i = 0; i < 3; i++) {
    simdisk_hook (disk, on_making, disk);
    server ();
    simdisk_hook (disk, NULL, NULL);
    story_teardown ();
    disk = simdisk_new ();
  }
  ck_assert_uint_gt (made_again, 0);
}
END_TEST

int
main (void)
{
  TCase *t = tcase_create ("found");

  tcase_add_checked_fixture (t, story_setup, story_teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, failed_mark);
  tcase_add_loop_test (t, refusal_remembered, 0, 2);
  tcase_add_loop_test (t, failure_remembered, 0, 2);
  tcase_add_test (t, stop_that_failed);
  tcase_add_loop_test (t, start_that_failed, 0, 2);
  tcase_add_test (t, promoted_list);
  tcase_add_test (t, catalog_window_moves);
  tcase_add_test (t, catalog_of_damage);
  tcase_add_test (t, catalog_damaged_in_use);
  tcase_add_test (t, made_twice);
  return story_run (t, CK_FORK);
}
