/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal in fair weather: what is committed is there after a reopen, and
 * nothing else.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <check.h>

#include "unit/journal-help.h"
#include "unit/simdisk.h"

#define MIB (UINT64_C (1) << 20)

static struct help h;

static void
setup (void)
{
  help_seed ();
  help_init (&h, &io_posix, 32 * MIB);
  help_create (&h);
}

static void
teardown (void)
{
  if (h.j)
    help_close (&h, true);
  help_remove (&h);
}

START_TEST (exists)
{
  ck_assert_int_eq (journal_exists (&io_posix, "/nonexistent"), 0);
  ck_assert_int_eq (journal_exists (&io_posix, h.dir), 1);
}
END_TEST

START_TEST (config_and_lock)
{
  const struct journal_config *config;
  struct journal_config changed;
  struct journal_disk disks[2];
  struct journal *other;
  struct mcerror err;
  char pid[32];

  help_open (&h, 0, false);
  config = journal_get_config (h.j);
  ck_assert_uint_eq (config->ndisks, 2);
  ck_assert_str_eq (config->disks[1].name, "vdb");
  ck_assert_str_eq (config->disks[1].path, "/vm/b.img");
  ck_assert_uint_eq (config->disks[1].size, UINT64_C (1) << 40);
  ck_assert_mem_eq (config->id, h.config.id, HOST_ID_LEN);

  ck_assert_int_eq (journal_open (&io_posix, h.dir, &other, &err), -1);
  ck_assert_int_eq (errno, EBUSY);
  snprintf (pid, sizeof pid, "process %ld", (long) getpid ());
  ck_assert_msg (strstr (err.text, pid) != NULL, "%s", err.text);

  changed = *config;
  disks[0] = config->disks[1];
  disks[1] = config->disks[0];
  strcpy (disks[1].path, "/elsewhere/a.img");
  changed.disks = disks;
  ck_assert_int_eq (journal_set_config (h.j, &changed, &err), 0);
  help_close (&h, true);
  help_open (&h, 0, false);
  config = journal_get_config (h.j);
  ck_assert_str_eq (config->disks[1].path, "/elsewhere/a.img");
  ck_assert_str_eq (config->disks[0].name, "vdb");
}
END_TEST

/* More memory than there are addresses: the size must not lose its upper half on the way. */
START_TEST (no_such_memory)
{
  const uint64_t sizes[] = { (UINT64_C (1) << 50) + 8 * MIB, UINT64_C (1) << 50, UINT64_MAX };
  struct mcerror err = { 0 };

  for (unsigned i = 0; i < 3; i++) {
    ck_assert_int_eq (journal_open (&io_posix, h.dir, &h.j, &err), 0);
    ck_assert_int_eq (journal_start (h.j, sizes[i], false, &h.took, &err), -1);
    ck_assert_int_eq (errno, ENOMEM);
    journal_close (h.j);
    h.j = NULL;
  }
}
END_TEST

START_TEST (commit_and_reopen)
{
  struct journal_checkpoint list[8];
  struct journal_state state;
  uint64_t want[HELP_DISK_BLOCKS], disk[HELP_DISK_BLOCKS] = { 0 };

  help_open (&h, 8 * MIB, _i);
  for (unsigned e = 0; e < 5; e++) {
    for (unsigned i = 0; i < 1 + e * 25; i++)
      ck_assert_int_eq (help_write (&h, help_below (480), 1 + help_below (32)),
                        0);
    ck_assert_int_eq (help_zero (&h, help_below (480), 7), 0);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), e == 2 ? "two" : NULL),
                      0);
    if (e == 2)
      ck_assert_int_eq (help_watermark (&h, 1), 0);
  }
  memcpy (want, h.now, sizeof want);
  ck_assert_int_eq (help_write (&h, 3, 3), 0);  /* never committed */
  help_close (&h, true);

  help_open (&h, 0, false);
  journal_get_state (h.j, &state);
  ck_assert_uint_eq (state.checkpoint.id, 5);
  ck_assert_uint_eq (journal_checkpoints (h.j, list, 8), 5);
  ck_assert_uint_eq (list[0].id, 1);
  ck_assert_uint_eq (list[2].id, 3);
  ck_assert_str_eq (list[2].label, "two");
  ck_assert_uint_eq (list[4].id, 5);
  ck_assert_uint_eq (list[4].extents > 0 && list[4].bytes > 0, 1);
  ck_assert_int_eq (journal_verify (h.j, 1, 5, NULL, NULL, NULL), 0);
  ck_assert_int_eq (help_replay (&h, 1, 5, disk, NULL), 0);
  for (unsigned i = 0; i < HELP_DISK_BLOCKS; i++)
    if (disk[i] != 0)
      ck_assert_uint_eq (disk[i], want[i]);
  ck_assert_int_eq (journal_get_damage (h.j, &(struct journal_damage) { 0 }), 0);
}
END_TEST

START_TEST (sweep_many_epochs)
{
  uint64_t disk[HELP_DISK_BLOCKS] = { 0 };

  help_open (&h, 8 * MIB, false);
  for (unsigned e = 0; e < 40; e++) {
    ck_assert_int_eq (help_write (&h, help_below (500), 1 + help_below (12)), 0);
    (void) help_seal (&h);
  }
  ck_assert_int_eq (help_write (&h, 0, 1), 0);
  h.now[0] = 0;                 /* uncommitted; nothing else is at block 0? */
  ck_assert_int_eq (help_commit (&h, 20, NULL), 0);
  ck_assert_int_eq (help_commit (&h, 40, NULL), 0);
  ck_assert_int_eq (help_replay (&h, 0, 40, disk, NULL), 0);
  for (unsigned i = 1; i < HELP_DISK_BLOCKS; i++)
    ck_assert_uint_eq (disk[i], h.now[i]);
  help_close (&h, true);
  memset (disk, 0, sizeof disk);
  help_open (&h, 0, false);
  ck_assert_int_eq (help_replay (&h, 0, 40, disk, NULL), 0);
  for (unsigned i = 1; i < HELP_DISK_BLOCKS; i++)
    ck_assert_uint_eq (disk[i], h.now[i]);
}
END_TEST

START_TEST (read_and_pin)
{
  uint64_t got[JOURNAL_BLOCK / 8], want[JOURNAL_BLOCK / 8];

  help_open (&h, 8 * MIB, false);
  /* More than the buffers hold: some is read from the file. */
  for (unsigned i = 0; i < 20; i++)
    ck_assert_int_eq (help_write (&h, 0, HELP_DISK_BLOCKS / 2), 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  ck_assert_int_eq (help_write (&h, 256, 256), 0);
  for (unsigned i = 0; i < HELP_DISK_BLOCKS; i++) {
    uint32_t n = 1;
    const void *p;

    ck_assert_int_eq (journal_read (h.j, h.where[i], 0, JOURNAL_BLOCK, got,
                                    NULL), 0);
    help_fill (want, h.now[i]);
    ck_assert_mem_eq (got, want, JOURNAL_BLOCK);
    ck_assert_int_eq (journal_read (h.j, h.where[i], 1000, 8, got, NULL), 0);
    ck_assert_uint_eq (got[0], want[125]);
    p = journal_pin (h.j, h.where[i], &n, true, NULL);
    ck_assert_ptr_nonnull (p);
    ck_assert_mem_eq (p, want, JOURNAL_BLOCK);
    journal_unpin (h.j, h.where[i]);
  }
  help_close (&h, true);
  help_open (&h, 0, false);
  for (unsigned i = 0; i < 256; i++) {
    uint32_t n = 256;
    const void *p = journal_pin (h.j, h.where[i], &n, true, NULL);

    help_fill (want, h.now[i]);
    ck_assert_ptr_nonnull (p);
    ck_assert_mem_eq (p, want, JOURNAL_BLOCK);
    journal_unpin (h.j, h.where[i]);
  }
}
END_TEST

START_TEST (threads_and_laps)
{
  struct journal_usage usage;

  help_open (&h, 8 * MIB, _i);
  ck_assert_int_eq (journal_run (h.j), 0);
  for (unsigned e = 0; e < 600; e++) {
    for (unsigned i = 0; i < help_below (20); i++)
      ck_assert_int_eq (help_write (&h, help_below (400), 1 + help_below (100)),
                        0);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
    if (e % 3 == 2)
      ck_assert_int_eq (help_watermark (&h, h.checkpoint - help_below (2)), 0);
  }
  ck_assert_int_eq (help_watermark (&h, h.checkpoint), 0);
  journal_get_usage (h.j, &usage);
  ck_assert_uint_lt (usage.used, 10 * MIB);
  ck_assert_uint_gt (usage.available, 16 * MIB);
  help_close (&h, true);
  help_open (&h, 0, false);
  ck_assert_uint_eq (h.checkpoint, 600);
}
END_TEST

START_TEST (full_and_recover)
{
  unsigned n = 0;
  struct journal_usage usage;

  help_open (&h, 8 * MIB, false);
  ck_assert_int_eq (help_write (&h, 0, 64), 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  while (help_write (&h, 0, 256) == 0)
    n++;
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_uint_ge (n, 20);
  journal_get_usage (h.j, &usage);
  ck_assert_uint_lt (usage.available, MIB);
  /* A commit still fits. */
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  ck_assert_int_eq (help_write (&h, 0, 256), -1);
  ck_assert_int_eq (help_watermark (&h, 2), 0);
  ck_assert_int_eq (help_write (&h, 0, 256), 0);
  while (help_write (&h, 0, 256) == 0)
    ;
  ck_assert_int_eq (journal_discard (h.j), 0);
  for (unsigned i = 0; i < n - 2; i++)
    ck_assert_int_eq (help_write (&h, 0, 256), 0);
}
END_TEST

static void
make_dirty (struct journal_state *state)
{
  state->clean = false;
}

static void
set_clean (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->clean = true;
}

START_TEST (clean_stop)
{
  struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                  .change = set_clean };
  uint64_t disk[HELP_DISK_BLOCKS] = { 0 }, open_epoch;

  help_open (&h, 8 * MIB, true);
  ck_assert_int_eq (help_write (&h, 0, 10), 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  for (unsigned i = 0; i < (_i ? 150 : 5); i++)
    ck_assert_int_eq (help_write (&h, 10 + i, 3), 0);
  (void) help_seal (&h);
  ck_assert_int_eq (help_write (&h, 200, 10), 0);
  ck_assert_int_eq (journal_do_commit (h.j, &clean), 0);
  help_close (&h, true);

  for (unsigned lap = 0; lap < 3; lap++) {
    help_open (&h, 8 * MIB, true);      /* opens, but stays clean */
    ck_assert_int_eq (h.took, JOURNAL_TOOK_SAVED);
    memset (disk, 0, sizeof disk);
    ck_assert_int_eq (help_replay (&h, 0, 100, disk, NULL), 0);
    ck_assert_int_eq (help_replay_uncommitted (&h, disk, &open_epoch), 0);
    ck_assert_mem_eq (disk, h.now, sizeof disk);
    ck_assert_uint_eq (h.checkpoint, 1);
    if (lap < 2)
      help_close (&h, true);
  }
  h.epoch = 3;
  ck_assert_int_eq (help_record (&h, JOURNAL_REC_DIRTY, make_dirty), 0);
  ck_assert_int_eq (help_write (&h, 210, 10), 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  help_close (&h, true);
  help_open (&h, 8 * MIB, true);
  ck_assert_int_eq (h.took, JOURNAL_TOOK_NOTHING);
  memset (disk, 0, sizeof disk);
  ck_assert_int_eq (help_replay (&h, 0, 100, disk, NULL), 0);
  ck_assert_mem_eq (disk, h.now, sizeof disk);
}
END_TEST

/* A journal full of speculation, tables and all, is saved and found again. */
START_TEST (clean_stop_full)
{
  struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                  .change = set_clean };
  struct simdisk *sim = simdisk_new ();
  uint64_t disk[HELP_DISK_BLOCKS], open_epoch;
  struct help s;

  help_init (&s, simdisk_fs (sim), 16 * MIB);
  help_create (&s);
  help_open (&s, 8 * MIB, false);
  for (unsigned i = 0; i < (_i ? 500 : 2); i++)
    ck_assert_int_eq (help_write (&s, i, 1), 0);
  for (unsigned i = 0; help_zero (&s, 500 + i % 12, 1) == 0; i++)
    if (i % 1000 == 0)
      (void) help_seal (&s);
  ck_assert_int_eq (errno, ENOSPC);
  (void) help_seal (&s);
  for (unsigned lap = 0; lap < 3; lap++) {
    ck_assert_int_eq (journal_do_commit (s.j, &clean), 0);
    open_epoch = s.epoch;
    help_close (&s, true);
    help_open (&s, 8 * MIB, false);
    ck_assert_int_eq (s.took, JOURNAL_TOOK_SAVED);
    memset (disk, 0, sizeof disk);
    ck_assert_int_eq (help_replay_uncommitted (&s, disk, &s.epoch), 0);
    ck_assert_mem_eq (disk, s.now, sizeof disk);
    ck_assert_uint_ge (s.epoch, open_epoch - 1);
    s.epoch = open_epoch;
  }
  ck_assert_int_eq (help_record (&s, JOURNAL_REC_DIRTY, make_dirty), 0);
  ck_assert_int_eq (help_commit (&s, s.epoch / 2, NULL), 0);
  ck_assert_int_eq (help_commit (&s, help_seal (&s), NULL), 0);
  ck_assert_int_eq (help_watermark (&s, s.checkpoint), 0);
  for (unsigned i = 0; i < 500; i++)
    ck_assert_int_eq (help_write (&s, i, 1), 0);
  help_close (&s, true);
  simdisk_free (sim);
}
END_TEST

/* The chain of records over many chunks; and what happens when it is full. */
START_TEST (many_records)
{
  struct simdisk *disk = simdisk_new ();
  struct help s;
  struct journal_checkpoint list[2];
  unsigned n = 0;

  help_init (&s, simdisk_fs (disk), 16 * MIB);
  help_create (&s);
  help_open (&s, 8 * MIB, false);
  for (unsigned i = 0; i < 6000; i++) {
    ck_assert_int_eq (help_write (&s, i % 500, 1), 0);
    ck_assert_int_eq (help_commit (&s, help_seal (&s), NULL), 0);
    if (i % 100 == 99)
      ck_assert_int_eq (help_watermark (&s, s.checkpoint - 50), 0);
    if (i % 1500 == 1499) {
      help_close (&s, true);
      help_open (&s, 8 * MIB, false);
      ck_assert_uint_eq (s.checkpoint, i + 1);
      ck_assert_uint_eq (journal_checkpoints (s.j, list, 2), 51);
      s.epoch = i + 2;
    }
  }
  /* Empty commits that nothing writes out. */
  while (help_commit (&s, help_seal (&s), NULL) == 0)
    n++;
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (journal_failed (s.j), 0);
  ck_assert_uint_gt (n, 2000);
  for (unsigned i = 0; i < 30; i++)
    ck_assert_int_eq (help_record (&s, JOURNAL_REC_STATE, NULL), 0);
  ck_assert_int_eq (help_watermark (&s, s.checkpoint), 0);
  ck_assert_int_eq (help_commit (&s, help_seal (&s), NULL), 0);
  help_close (&s, true);
  help_open (&s, 8 * MIB, false);
  ck_assert_uint_eq (s.checkpoint, s.epoch - 1);
  help_close (&s, true);
  simdisk_free (disk);
}
END_TEST

static uint64_t promote_to;

static void
promote (struct journal_state *state)
{
  state->state = JOURNAL_PROMOTED;
  state->generation++;
  state->checkpoint.id = promote_to;
  state->void_epoch = 9;
}

/* A promote to an older checkpoint makes those after it void; promoted commits
 * are none of them.
 */
START_TEST (promote_back)
{
  struct journal_checkpoint list[16];
  struct journal_usage before, after;
  struct journal_commit commit = { .kind = JOURNAL_REC_PROMOTED_COMMIT,
                                   .epoch = 10 };
  uint64_t want[HELP_DISK_BLOCKS], disk[HELP_DISK_BLOCKS] = { 0 };

  help_open (&h, 8 * MIB, false);
  for (unsigned e = 1; e <= 8; e++) {
    ck_assert_int_eq (help_write (&h, e * 10, 256), 0);
    if (e == 4)
      memcpy (want, h.now, sizeof want);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  }
  ck_assert_int_eq (help_write (&h, 0, 256), 0);
  promote_to = 4;
  ck_assert_int_eq (help_record (&h, JOURNAL_REC_PROMOTE, promote), 0);
  journal_get_usage (h.j, &before);
  ck_assert_int_eq (journal_discard (h.j), 0);
  journal_get_usage (h.j, &after);
  ck_assert_uint_le (after.used + 4 * MIB, before.used);
  ck_assert_uint_eq (journal_checkpoints (h.j, list, 16), 1);
  ck_assert_uint_eq (list[0].id, 4);
  h.epoch = 10;
  memcpy (h.now, want, sizeof want);
  ck_assert_int_eq (help_write (&h, 400, 100), 0);
  (void) help_seal (&h);
  ck_assert_int_eq (journal_do_commit (h.j, &commit), 0);
  for (unsigned lap = 0; lap < 2; lap++) {
    memset (disk, 0, sizeof disk);
    ck_assert_uint_eq (journal_checkpoints (h.j, list, 16), 1);
    ck_assert_int_eq (help_replay (&h, 0, 4, disk, NULL), 0);
    ck_assert_mem_eq (disk, want, sizeof want);
    ck_assert_int_eq (help_replay (&h, 4, UINT64_MAX, disk, NULL), 0);
    ck_assert_mem_eq (disk, h.now, sizeof want);
    if (lap == 0) {
      help_close (&h, true);
      help_open (&h, 8 * MIB, false);
    }
  }
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("basic");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, exists);
  tcase_add_test (t, config_and_lock);
  tcase_add_test (t, no_such_memory);
  tcase_add_loop_test (t, commit_and_reopen, 0, 2);
  tcase_add_test (t, sweep_many_epochs);
  tcase_add_test (t, read_and_pin);
  tcase_add_loop_test (t, threads_and_laps, 0, 2);
  tcase_add_test (t, full_and_recover);
  tcase_add_loop_test (t, clean_stop, 0, 2);
  tcase_add_loop_test (t, clean_stop_full, 0, 2);
  tcase_add_test (t, many_records);
  tcase_add_test (t, promote_back);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
