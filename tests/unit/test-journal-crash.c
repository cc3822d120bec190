/* SPDX-License-Identifier: BSD-3-Clause */
/* Power is lost at any write or sync, with any subset of what was not synced on
 * the disk.  What was acknowledged must be there, what was not must be there wholly or
 * not at all, and none of it may pass for damage.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "journal/internal.h"
#include "unit/journal-help.h"
#include "unit/simdisk.h"

#define MIB (UINT64_C (1) << 20)
#define MAX_CHECKPOINTS 8192

typedef uint64_t image[HELP_DISK_BLOCKS];

static struct help h;
static struct simdisk *disk;

/* What the outside world knows. */
static image *snap;             /* by checkpoint */
static uint64_t acked, pending; /* checkpoint; one that is being made, or 0 */
static uint64_t next_epoch;
static uint64_t generation;
static unsigned states, odds, depth;
static const char *doing = "";

static const struct journal_state first_state = {
  .state = JOURNAL_PROTECTED, .generation = 1, .has_checkpoint = true,
  .epoch = 1, .epoch_limit = 1000,
};

static void check_disk (struct simdisk *d);

static void
on_op (void *opaque, enum simdisk_op op)
{
  struct simdisk *d = opaque, *after;

  (void) op;
  if (depth > 2 || help_below (odds) != 0)
    return;
  after = simdisk_crash (d, help_below (SIMDISK_HOWS), help_random);
  check_disk (after);
  simdisk_free (after);
}

/* Open what is on D and compare.  Returns the help, open but not started. */
static struct help
open_disk (struct simdisk *d)
{
  struct help o = h;
  struct journal_state state;
  struct journal_damage damage = { 0 };
  struct mcerror err = { 0 };
  image got;
  uint64_t c;

  states++;
  o.fs = simdisk_fs (d);
  ck_assert_msg (journal_open (o.fs, o.dir, &o.j, &err) == 0, "%s: %s", doing,
                 err.text);
  ck_assert_msg (journal_get_damage (o.j, &damage) == 0,
                 "%s: %s at %llu, checkpoint %llu (acked %llu, pending %llu)",
                 doing, damage.what, (unsigned long long) damage.offset,
                 (unsigned long long) damage.checkpoint,
                 (unsigned long long) acked, (unsigned long long) pending);
  journal_get_state (o.j, &state);
  c = state.checkpoint.id;
  ck_assert_msg (c == acked || (pending != 0 && c == pending),
                 "%s: checkpoint %llu, acknowledged %llu, being made %llu",
                 doing, (unsigned long long) c, (unsigned long long) acked,
                 (unsigned long long) pending);
  ck_assert_uint_ge (state.generation, generation);
  memcpy (got, snap[state.watermark.id], sizeof got);
  ck_assert_msg (help_replay (&o, state.watermark.id, c, got, &damage) == 0,
                 "%s: %s at %llu", doing, damage.what,
                 (unsigned long long) damage.offset);
  for (unsigned i = 0; i < HELP_DISK_BLOCKS; i++)
    ck_assert_msg (got[i] == snap[c][i],
                   "%s: checkpoint %llu, block %u: %llu, not %llu", doing,
                   (unsigned long long) c, i, (unsigned long long) got[i],
                   (unsigned long long) snap[c][i]);
  ck_assert_int_eq (journal_verify (o.j, state.watermark.id, c, NULL, NULL,
                                    NULL), 0);
  o.checkpoint = c;
  return o;
}

static void
change_nothing (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->instance++;
}

static void
check_disk (struct simdisk *d)
{
  uint64_t was_acked = acked, was_pending = pending;
  struct help o;

  depth++;
  o = open_disk (d);
  if (depth < 3 && help_below (6) == 0) {
    /* The next server dies, too. */
    enum journal_took took;

    acked = o.checkpoint;
    pending = 0;
    simdisk_hook (d, on_op, d);
    ck_assert_int_eq (journal_start (o.j, 8 * MIB, false, &took, NULL), 0);
    for (unsigned i = 0; i < 3; i++)
      ck_assert_int_eq (journal_record (o.j, JOURNAL_REC_OPEN, change_nothing,
                                        NULL), 0);
    journal_stop (o.j, true);
    simdisk_hook (d, NULL, NULL);
    acked = was_acked;
    pending = was_pending;
  }
  journal_close (o.j);
  depth--;
}

static void
setup (void)
{
  struct mcerror err = { 0 };

  help_seed ();
  snap = calloc (MAX_CHECKPOINTS, sizeof *snap);
  ck_assert_ptr_nonnull (snap);
  disk = simdisk_new ();
  help_init (&h, simdisk_fs (disk), 24 * MIB);
  acked = pending = 0;
  next_epoch = 1;
  generation = 1;
  ck_assert_msg (journal_create (h.fs, h.dir, &h.config, &first_state, &err)
                 == 0, "%s", err.text);
}

static void
teardown (void)
{
  simdisk_free (disk);
  free (snap);
}

/* --- The workload --- */

static void
begin (void)
{
  h.fs = simdisk_fs (disk);
  simdisk_hook (disk, on_op, disk);
  simdisk_short (disk, help_below (4) ? 0 : 512 * (1 + help_below (100)));
  doing = "open";
  help_open (&h, 8 * MIB, false);
  h.j->part_runs = 1;
  ck_assert (h.checkpoint == acked || h.checkpoint == pending);
  acked = h.checkpoint;
  pending = 0;
  memcpy (h.now, snap[acked], sizeof h.now);
  if (h.took == JOURNAL_TOOK_SAVED) {
    uint64_t open_epoch;

    ck_assert_int_eq (help_replay_uncommitted (&h, h.now, &open_epoch), 0);
  }
  h.epoch = next_epoch;
}

static void
end (void)
{
  simdisk_hook (disk, NULL, NULL);
  help_close (&h, true);
}

static int
commit (void)
{
  uint64_t epoch = help_seal (&h);

  next_epoch = h.epoch;
  ck_assert_uint_lt (epoch, MAX_CHECKPOINTS);
  memcpy (snap[epoch], h.now, sizeof h.now);
  pending = epoch;
  if (help_commit (&h, epoch, help_below (2) ? "label" : NULL) == -1)
    return -1;
  acked = epoch;
  pending = 0;
  return 0;
}

static void
set_clean (struct journal_state *state, void *opaque)
{
  state->clean = true;
  state->epoch = *(uint64_t *) opaque;
}

static void
set_dirty (struct journal_state *state)
{
  state->clean = false;
}

static void
raise_generation (struct journal_state *state)
{
  state->generation++;
  state->clean = false;
  state->void_epoch = next_epoch - 1;
}

static void
write_some (unsigned n)
{
  unsigned block = help_below (HELP_DISK_BLOCKS - n);

  if (help_write (&h, block, n) == -1) {
    ck_assert_int_eq (errno, ENOSPC);
    /* What found room is published, and in the model; now for all of it. */
    doing = "make room";
    ck_assert_int_eq (commit (), 0);
    ck_assert_int_eq (help_watermark (&h, acked), 0);
    ck_assert_int_eq (help_write (&h, block, n), 0);
  }
}

static void
step (void)
{
  struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                  .change = set_clean, .opaque = &h.epoch };
  struct journal_state state;

  switch (help_below (40)) {
  case 0: case 1: case 2: case 3: case 4: case 5:
    doing = "commit";
    ck_assert_int_eq (commit (), 0);
    break;
  case 6:
    doing = "watermark";
    journal_get_state (h.j, &state);
    if (acked > state.watermark.id) {
      uint64_t to = state.watermark.id + 1 +
                    help_below (acked - state.watermark.id);
      struct journal_checkpoint list[64];
      size_t n = journal_checkpoints (h.j, list, 64);

      for (size_t i = 0; i < MIN (n, (size_t) 64); i++)
        if (list[i].id >= to) {
          ck_assert_int_eq (help_watermark (&h, list[i].id), 0);
          break;
        }
    }
    break;
  case 7:
    doing = "zeroes";
    ck_assert_int_eq (help_zero (&h, help_below (480), 1 + help_below (30)), 0);
    break;
  case 8:
    (void) help_seal (&h);
    next_epoch = h.epoch;
    break;
  case 9:
    doing = "state";
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, NULL), 0);
    break;
  case 10:
    if (help_below (8) != 0)
      break;
    doing = "discard";
    (void) help_seal (&h);
    next_epoch = h.epoch;
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_PROMOTE, raise_generation),
                      0);
    generation++;
    ck_assert_int_eq (journal_discard (h.j), 0);
    memcpy (h.now, snap[acked], sizeof h.now);
    break;
  case 11:
    if (help_below (8) != 0)
      break;
    doing = "clean";
    ck_assert_int_eq (journal_do_commit (h.j, &clean), 0);
    doing = "dirty";
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_DIRTY, set_dirty), 0);
    break;
  case 12:
    if (help_below (100) != 0)
      break;
    doing = "large table";
    for (unsigned i = 0; i < 36000; i++)
      if (help_zero (&h, 500, 1) == -1) {
        ck_assert_int_eq (errno, ENOSPC);
        break;
      }
    break;
  default:
    doing = "write";
    write_some (1 + help_below (help_below (10) ? 10 : 300));
  }
}

START_TEST (power_loss)
{
  odds = 12;
  states = 0;
  for (unsigned lap = 0; lap < 8; lap++) {
    struct simdisk *after;

    begin ();
    for (unsigned i = 100 + help_below (500); i > 0; i--)
      step ();
    simdisk_hook (disk, NULL, NULL);
    after = simdisk_crash (disk, help_below (SIMDISK_HOWS), help_random);
    help_close (&h, true);
    simdisk_free (disk);
    disk = after;
  }
  printf ("TRIED invariant=1,3,6 test=unit/test-journal-crash what=\"crash states of a journal\" n=%u\n",
          states);
  ck_assert_uint_gt (states, 50);
}
END_TEST

/* A clean stop is undone by a crash only as a whole. */
START_TEST (clean_stop)
{
  odds = 2;
  for (unsigned lap = 0; lap < 20; lap++) {
    struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                    .change = set_clean, .opaque = &h.epoch };
    image saved;
    struct simdisk *after;

    begin ();
    if (lap > 0)
      ck_assert_int_eq (h.took, JOURNAL_TOOK_SAVED);
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_DIRTY, set_dirty), 0);
    for (unsigned i = help_below (30); i > 0; i--)
      write_some (1 + help_below (20));
    if (help_below (3) == 0)
      ck_assert_int_eq (commit (), 0);
    for (unsigned i = help_below (30); i > 0; i--)
      write_some (1 + help_below (20));
    (void) help_seal (&h);
    next_epoch = h.epoch;
    write_some (1);
    doing = "clean";
    ck_assert_int_eq (journal_do_commit (h.j, &clean), 0);
    memcpy (saved, h.now, sizeof saved);
    end ();
    after = simdisk_crash (disk, help_below (SIMDISK_HOWS), help_random);
    simdisk_free (disk);
    disk = after;
    begin ();
    ck_assert_int_eq (h.took, JOURNAL_TOOK_SAVED);
    ck_assert_mem_eq (h.now, saved, sizeof saved);
    end ();
  }
}
END_TEST

/* A journal that is being made when power is lost is none, or whole. */
static unsigned made, unmade;

static void
on_create_op (void *opaque, enum simdisk_op op)
{
  struct simdisk *d = opaque;

  (void) op;
  for (unsigned how = 0; how < SIMDISK_HOWS; how++) {
    struct simdisk *after = simdisk_crash (d, how, help_random);
    struct mcerror err = { 0 };
    struct journal *j;

    if (journal_exists (simdisk_fs (after), "/sim/j") == 1) {
      ck_assert_msg (journal_open (simdisk_fs (after), "/sim/j", &j, &err) == 0,
                     "%s", err.text);
      journal_close (j);
      made++;
    }
    else {
      ck_assert_msg (journal_create (simdisk_fs (after), "/sim/j", &h.config,
                                     &first_state, &err) == 0, "%s", err.text);
      unmade++;
    }
    simdisk_free (after);
  }
}

START_TEST (create)
{
  struct simdisk *d = simdisk_new ();

  simdisk_hook (d, on_create_op, d);
  ck_assert_int_eq (journal_create (simdisk_fs (d), "/sim/j", &h.config,
                                    &first_state, NULL), 0);
  simdisk_hook (d, NULL, NULL);
  ck_assert_uint_gt (made, 0);
  ck_assert_uint_gt (unmade, 0);
  simdisk_free (d);
}
END_TEST

/* After the first error nothing is written and nothing acknowledged. */
START_TEST (io_errors)
{
  for (unsigned lap = 0; lap < 120; lap++) {
    struct journal_span span;
    struct simdisk *after;
    bool failed = false;

    odds = 1000;
    begin ();
    simdisk_hook (disk, NULL, NULL);
    simdisk_fail (disk, 1 + help_below (40), help_below (2) ? EIO : ENOSPC,
                  help_below (2));
    for (unsigned i = 0; i < 200 && !failed; i++) {
      if (help_write (&h, help_below (400), 1 + help_below (100)) == -1)
        failed = true;
      else if (i % 4 == 3) {
        if (commit () == -1)
          failed = true;
        else if (i % 20 == 19 && help_watermark (&h, acked) == -1)
          failed = true;
      }
    }
    /* An error of the acknowledged mark alone is none. */
    ck_assert (failed || journal_failed (h.j) == 0);
    if (!failed)
      simdisk_fail (disk, 0, 0, false);
    else if (errno != ENOSPC || journal_failed (h.j) != 0) {
      ck_assert_int_eq (errno, EIO);
      ck_assert_int_ne (journal_failed (h.j), 0);
      simdisk_fail (disk, 0, 0, false);
      ck_assert_int_eq (journal_reserve (h.j, 1, &span), -1);
      ck_assert_int_eq (errno, EIO);
      ck_assert_int_eq (journal_credit (h.j, 1, 1), -1);
      ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, NULL), -1);
      ck_assert_int_eq (errno, EIO);
      ck_assert_int_eq (help_commit (&h, h.epoch - 1, NULL), -1);
      ck_assert_int_eq (errno, EIO);
    }
    after = simdisk_crash (disk, help_below (SIMDISK_HOWS), help_random);
    help_close (&h, true);
    simdisk_free (disk);
    disk = after;
  }
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("crash");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 600);
  tcase_add_loop_test (t, power_loss, 0, 4);
  tcase_add_test (t, clean_stop);
  tcase_add_test (t, create);
  tcase_add_test (t, io_errors);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
