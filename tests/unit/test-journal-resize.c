/* SPDX-License-Identifier: BSD-3-Clause */
/* A journal gets another size, with power losses at every write and sync on the way: it has the old size
 * or the new one, and all that was in it.
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
#include "unit/slow.h"

#define MIB (UINT64_C (1) << 20)
#define ROUNDS 30

typedef uint64_t image[HELP_DISK_BLOCKS];

static struct help h;
static struct simdisk *disk;
static image snap[512], saved;
static bool clean;
static struct journal_checkpoint list[512];
static size_t nlist;
static uint64_t old_size, new_size;
static unsigned grown, shrunk, refused, crashes, moved;

static void
set_clean (struct journal_state *s, void *opaque)
{
  (void) opaque;
  s->clean = true;
}

static void
clear_clean (struct journal_state *s)
{
  s->clean = false;
}

static void
take_list (struct journal *j)
{
  nlist = journal_checkpoints (j, list, 512);
}

/* Some laps of a journal, then a stop, clean or not. */
static void
live (uint64_t size)
{
  /* The more is retained for a while, the more of the file gets used. */
  const uint64_t most = MIB + help_below (size);
  struct journal_usage usage;
  uint64_t written = 0;

  old_size = size;
  disk = simdisk_new ();
  help_init (&h, simdisk_fs (disk), size);
  help_create (&h);
  help_open (&h, 8 * MIB, false);
  memset (snap, 0, sizeof snap);
  for (unsigned i = 0, n = 20 + help_below (200); i < n; i++) {
    journal_get_usage (h.j, &usage);
    if (written > most || usage.available < 5 * MIB || help_below (40) == 0) {
      ck_assert_int_eq (help_watermark (&h, h.checkpoint), 0);
      written = 0;
    }
    for (unsigned k = help_below (3) ? help_below (4) : help_below (110); k > 0; k--) {
      unsigned len = 1 + help_below (help_below (4) ? 2 : 30);

      ck_assert_int_eq (help_write (&h, help_below (HELP_DISK_BLOCKS - len), len), 0);
      written += len * JOURNAL_BLOCK;
    }
    memcpy (snap[h.epoch], h.now, sizeof h.now);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), "label"), 0);
    /* So that the chain of records wanders, too. */
    for (unsigned k = help_below (40); k > 0; k--)
      ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, NULL), 0);
  }
  if (help_below (3))
    ck_assert_int_eq (help_watermark (&h, h.checkpoint), 0);
  clean = help_below (4) != 0;
  if (clean) {
    struct journal_commit c = { .kind = JOURNAL_REC_CLEAN, .change = set_clean };

    if (help_below (2))
      for (unsigned i = help_below (110); i > 0; i--)
        ck_assert_int_eq (help_write (&h, help_below (HELP_DISK_BLOCKS), 1), 0);
    ck_assert_int_eq (journal_do_commit (h.j, &c), 0);
  }
  memcpy (saved, h.now, sizeof saved);
  take_list (h.j);
  help_close (&h, true);
}

/* All that there was is in D, which has one size or the other. */
static void
must_be_whole (struct simdisk *d, const char *when)
{
  struct journal_damage damage = { 0 };
  static struct journal_checkpoint got[512];
  struct help o = h;
  struct mcerror err = { 0 };
  struct journal_state state;
  image content;
  uint64_t from, size;

  o.fs = simdisk_fs (d);
  ck_assert_msg (journal_open (o.fs, o.dir, &o.j, &err) == 0, "%s: %s", when, err.text);
  size = journal_get_config (o.j)->size;
  ck_assert_msg (size == old_size || size == new_size, "%s: a size of %llu", when, (unsigned long long) size);
  ck_assert_msg (journal_get_damage (o.j, &damage) == 0, "%s: %s", when, damage.what);
  ck_assert_uint_eq (journal_checkpoints (o.j, got, 512), nlist);
  from = list[0].id;
  memcpy (content, snap[from], sizeof content);
  for (size_t i = 0; i < nlist; i++) {
    ck_assert_uint_eq (got[i].id, list[i].id);
    ck_assert_str_eq (got[i].label, list[i].label);
    ck_assert_msg (help_replay (&o, from, got[i].id, content, &damage) == 0, "%s: %s", when, damage.what);
    from = got[i].id;
    ck_assert_msg (memcmp (content, snap[from], sizeof content) == 0, "%s: checkpoint %llu", when,
                   (unsigned long long) from);
  }
  journal_get_state (o.j, &state);
  ck_assert_int_eq (state.clean, clean);
  if (clean) {
    uint64_t open;

    ck_assert_int_eq (journal_start (o.j, 8 * MIB, false, &o.took, &err), 0);
    ck_assert_int_ne (o.took, JOURNAL_TOOK_BAD);
    ck_assert_int_eq (help_replay_uncommitted (&o, content, &open), 0);
    ck_assert_msg (memcmp (content, saved, sizeof saved) == 0, "%s: what was saved", when);
  }
  journal_stop (o.j, true);
  journal_close (o.j);
}

static void
on_op (void *opaque, enum simdisk_op op)
{
  (void) op;
  for (enum simdisk_crash how = 0; how < SIMDISK_HOWS; how++) {
    struct simdisk *after = simdisk_crash (opaque, how, help_random);

    crashes++;
    must_be_whole (after, "after a crash");
    simdisk_free (after);
  }
}

/* In chunks: nothing but records is in the way of a journal as small as this. */
static unsigned
least (struct journal *j)
{
  unsigned n = 16;

  for (uint32_t c = 1; c < j->nchunks; c++)
    if (j->chunks[c].kind == CHUNK_DATA || j->chunks[c].kind == CHUNK_TABLE)
      n = MAX (n, c + 1);
  return n;
}

static void
one_round (void)
{
  uint64_t chain;
  int r;

  live ((16 + help_below (40)) * MIB);
  new_size = (16 + help_below (60)) * MIB;
  ck_assert_int_eq (journal_open (simdisk_fs (disk), h.dir, &h.j, NULL), 0);
  chain = h.j->log.chain[0].chunk;
  if (chain >= least (h.j))
    new_size = least (h.j) * MIB;
  simdisk_hook (disk, on_op, disk);
  r = journal_resize (h.j, new_size + help_below (MIB));
  simdisk_hook (disk, NULL, NULL);
  if (r == -1) {
    ck_assert_int_lt (new_size, old_size);
    ck_assert (errno == EBUSY || (errno == EAGAIN && !clean));
    refused++;
  }
  else {
    ck_assert_uint_eq (journal_get_config (h.j)->size, new_size);
    moved += h.j->log.chain[0].chunk != chain;
    *(new_size > old_size ? &grown : &shrunk) += new_size != old_size;
    old_size = new_size;
  }
  ck_assert_uint_eq (simdisk_size (disk, "/sim/j/journal"), old_size);
  journal_close (h.j);
  must_be_whole (disk, "afterwards");

  /* And it can be worked with. */
  help_open (&h, 8 * MIB, false);
  ck_assert_int_eq (help_record (&h, JOURNAL_REC_DIRTY, clear_clean), 0);
  ck_assert_int_eq (help_watermark (&h, h.checkpoint), 0);
  for (unsigned i = 0; i < 300; i++) {
    ck_assert_int_eq (help_write (&h, help_below (HELP_DISK_BLOCKS - 20), 20), 0);
    if (i % 10 == 9) {
      memcpy (snap[h.epoch % 512], h.now, sizeof h.now);
      ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
      if (i % 30 == 29)
        ck_assert_int_eq (help_watermark (&h, h.checkpoint), 0);
    }
  }
  help_close (&h, true);
  ck_assert_int_eq (journal_open (simdisk_fs (disk), h.dir, &h.j, NULL), 0);
  ck_assert_uint_eq (journal_checkpoints (h.j, list, 512), 1);
  journal_close (h.j);
  simdisk_free (disk);
}

START_TEST (sizes)
{
  const unsigned rounds = unless_slow (ROUNDS);

  help_seed ();
  /* It takes some luck that it is records alone which are in the way. */
  for (unsigned i = 0; i < rounds || (moved == 0 && i < 10 * rounds); i++)
    one_round ();
  printf ("%u grown, %u shrunk (the records of %u moved), %u refused, %u crashes\n", grown, shrunk, moved,
          refused, crashes);
  if (rounds < ROUNDS)
    return;
  ck_assert_uint_gt (grown, 0);
  ck_assert_uint_gt (shrunk, 0);
  ck_assert_uint_gt (moved, 0);
  ck_assert_uint_gt (refused, 0);
}
END_TEST

/* No room: it stays as it was. */
START_TEST (no_room)
{
  help_seed ();
  live (16 * MIB);
  new_size = 64 * MIB;
  ck_assert_int_eq (journal_open (simdisk_fs (disk), h.dir, &h.j, NULL), 0);
  simdisk_fail (disk, 1, ENOSPC, false);
  ck_assert_int_eq (journal_resize (h.j, new_size), -1);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (journal_failed (h.j), 0);
  ck_assert_uint_eq (simdisk_size (disk, "/sim/j/journal"), old_size);
  journal_close (h.j);
  must_be_whole (disk, "without room");
  /* A failed write or sync later on is another matter. */
  for (unsigned op = 2; op <= 5; op++) {
    struct simdisk *d = simdisk_crash (disk, SIMDISK_KILL, help_random);

    ck_assert_int_eq (journal_open (simdisk_fs (d), h.dir, &h.j, NULL), 0);
    simdisk_fail (d, op, EIO, false);
    ck_assert_int_eq (journal_resize (h.j, new_size), -1);
    ck_assert_int_eq (journal_failed (h.j), EIO);
    journal_close (h.j);
    must_be_whole (d, "after an error");
    simdisk_free (d);
  }
  ck_assert_int_eq (journal_open (simdisk_fs (disk), h.dir, &h.j, NULL), 0);
  ck_assert_int_eq (journal_resize (h.j, 15 * MIB), -1);
  ck_assert_int_eq (errno, EINVAL);
  journal_close (h.j);
  simdisk_free (disk);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("resize");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_set_timeout (t, 300);
  tcase_add_test (t, sizes);
  tcase_add_test (t, no_room);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
