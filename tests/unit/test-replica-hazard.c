/* SPDX-License-Identifier: BSD-3-Clause */
/* The hazard that DESIGN.md names: a replay of the backlog undoes newer promoted writes.
 *
 * Two checkpoints wait to be written out; a promote; then promoted writes over blocks of that backlog, flushes and
 * cycles of write-out, in every order.  At every write and sync the host dies, with every kind of lost sectors.  What
 * recovery makes of it, and what the next server serves and then drains, has every promoted
 * write that was flushed, or a newer one of the same block; and nothing of what was there before the last checkpoint.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

#define BLOCKS 6u
#define BLOCK 4096u
#define SIZE (BLOCKS * BLOCK)
#define VERSIONS 8u

static struct simdisk *disk;
static struct replica *r;
static uint64_t cases, hit, restarts;
static const char *doing;

/* The contents that each block had since the last checkpoint: the first is that of the checkpoint. */
static struct {
  uint8_t version[VERSIONS];
  unsigned n;                   /* versions that there are */
  unsigned flushed;             /* this one, or a newer one, has to be there */
  unsigned flushing;
} model[BLOCKS];

/* --- the replica ---------------------------------------------------------------- */

static void
server (struct simdisk *on)
{
  struct replica_disk_params d = { .name = "vda", .path = "/sim/0.img",
                                   .create = true, .size = SIZE };
  struct replica_params p = { .fs = simdisk_fs (on), .dir = TORTURE_DIR,
                              .disks = &d, .ndisks = 1,
                              .baseline_trusted = true,
                              .journal_size = JOURNAL_MIN_SIZE,
                              .buffer = UINT64_C (8) << 20 };
  struct mcerror err = { 0 };

  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s: %s", doing, err.text);
  r->by_hand = true;
}

static struct replica_export
export (void)
{
  return (struct replica_export) { .fence = r->fence, .view = r->state == JOURNAL_PROMOTED ?
                                   REPLICA_PROMOTED : REPLICA_INLET };
}

static void
standby_write (unsigned b, uint8_t what)
{
  struct replica_export x = export ();
  uint8_t data[BLOCK];

  memset (data, what, sizeof data);
  ck_assert_int_eq (replica_pwrite (r, &x, data, sizeof data, b * BLOCK, 0), 0);
  model[b].version[0] = what;
  model[b].n = 1;
  model[b].flushed = 0;
}

static void
commit (void)
{
  struct commit_answer a;

  ck_assert_int_eq (replica_commit (r, &(struct commit_request) { 0 }, &a, NULL), 0);
}

/* From here on every image holds something old of each block, and the backlog two newer ones of some. */
static void
backlog (void)
{
  for (unsigned b = 0; b < BLOCKS; b++)
    standby_write (b, 200 + b);
  commit ();
  ck_assert_int_eq (writeout_step (r), 0);
  for (unsigned b = 0; b < 4; b++)
    standby_write (b, 210 + b);
  commit ();
  for (unsigned b = 1; b < 5; b++)
    standby_write (b, 220 + b);
  commit ();
  for (unsigned b = 0; b < BLOCKS; b++)
    model[b].flushed = 0;
  {
    /* Speculation, which is discarded. */
    struct replica_export x = export ();
    uint8_t data[BLOCK];

    memset (data, 255, sizeof data);
    ck_assert_int_eq (replica_pwrite (r, &x, data, sizeof data, BLOCK, 0), 0);
  }
}

/* --- what is there after a crash -------------------------------------------------- */

/* A sector of block B holds WHAT, all of it. */
static bool
may_be (unsigned b, uint8_t what)
{
  for (unsigned v = model[b].flushed; v < model[b].n; v++)
    if (model[b].version[v] == what)
      return true;
  return false;
}

static void
check_disk (const uint8_t *data, bool garbled, const char *who)
{
  for (unsigned at = 0; at < SIZE; at += SIMDISK_SECTOR) {
    unsigned b = at / BLOCK;
    bool whole = true;

    /* Under way to a drained disk: that a power loss makes of it what it likes is every disk's right. */
    if (garbled && model[b].flushed + 1 < model[b].n)
      continue;
    for (unsigned i = 1; i < SIMDISK_SECTOR; i++)
      whole = whole && data[at + i] == data[at];
    ck_assert_msg (whole && may_be (b, data[at]), "%s: %s: block %u, sector %u holds %u%s, and not version %u (%u) or newer",
                   doing, who, b, at % BLOCK / SIMDISK_SECTOR, data[at], whole ? "" : " in part",
                   model[b].flushed, model[b].version[model[b].flushed]);
  }
}

struct replay { uint64_t promoted; bool hit; };

/* An extent of the backlog that will be replayed, over a promoted write that was flushed? */
static int
note_replay (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  struct replay *p = opaque;
  unsigned first = ext->sector * JOURNAL_SECTOR / BLOCK;
  unsigned last = ((ext->sector + ext->nsectors) * JOURNAL_SECTOR - 1) / BLOCK;

  for (unsigned b = first; b <= last && epoch <= p->promoted; b++)
    p->hit = p->hit || model[b].flushed > 0;
  return 0;
}

/* The state of AFTER is promoted, that is, the model's versions count. */
static bool
is_promoted (struct simdisk *after)
{
  struct journal_damage damage;
  struct journal_state state;
  struct replay p = { 0 };
  struct mcerror err = { 0 };
  struct journal *j;

  ck_assert_msg (journal_look (simdisk_fs (after), TORTURE_DIR, &j, &damage, &err) == 0, "%s", err.text);
  journal_get_state (j, &state);
  p.promoted = state.checkpoint.id;
  if (state.state == JOURNAL_PROMOTED)
    ck_assert_int_eq (journal_replay (j, state.watermark.id, UINT64_MAX, note_replay, &p, &damage), 0);
  journal_close (j);
  hit += p.hit;
  return state.state == JOURNAL_PROMOTED;
}

static void
recovers (struct simdisk *after, bool garbled)
{
  struct recover_params p = { .fs = simdisk_fs (after), .dir = TORTURE_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };
  uint8_t data[SIZE];

  ck_assert_msg (recover_run (&p, &result, &err) == 0, "%s: recovery: %s", doing, err.text);
  simdisk_read (after, "/sim/0.img", data, SIZE);
  check_disk (data, garbled, "recovery");
}

/* The next server serves it at once, and drains it; then it is in the image. */
static void
goes_on (struct simdisk *after, bool garbled)
{
  struct replica *was = r;
  struct replica_export x;
  uint8_t data[SIZE], image[SIZE];

  server (after);
  ck_assert_int_eq (r->state, JOURNAL_PROMOTED);
  x = export ();
  ck_assert_int_eq (replica_pread (r, &x, data, SIZE, 0), 0);
  check_disk (data, garbled, "the next server");
  for (unsigned i = 0; i < 8 && !r->drained; i++)
    ck_assert_int_eq (writeout_step (r), 0);
  ck_assert (r->drained);
  simdisk_read (after, "/sim/0.img", image, SIZE);
  ck_assert_msg (memcmp (image, data, SIZE) == 0, "%s: what the next server drained is not what it served", doing);
  replica_close (r);
  r = was;
  restarts++;
}

static void
on_op (void *opaque, enum simdisk_op op)
{
  unsigned other = host_below (SIMDISK_HOWS);

  (void) opaque;
  (void) op;
  simdisk_hook (disk, NULL, NULL);
  for (unsigned how = 0; how < SIMDISK_HOWS; how++)
    for (unsigned again = 0; again < 1 + (how == other); again++) {
      struct simdisk *after = simdisk_crash (disk, how, host_bits);
      unsigned boot = host_boot (host_new_boot ());

      if (is_promoted (after)) {
        if (again)
          goes_on (after, how == SIMDISK_GARBLE);
        else
          recovers (after, how == SIMDISK_GARBLE);
        cases++;
      }
      host_boot (boot);
      simdisk_free (after);
    }
  simdisk_hook (disk, on_op, NULL);
}

/* --- promoted writes ----------------------------------------------------------------- */

static void
promoted_write (unsigned from, unsigned to, uint8_t what, unsigned flags)
{
  for (unsigned b = from; b <= to; b++) {
    struct replica_export x = export ();
    uint8_t data[BLOCK];
    int result;

    memset (data, what + b, sizeof data);
    ck_assert_uint_lt (model[b].n, VERSIONS);
    model[b].version[model[b].n++] = what == 0 ? 0 : what + b;
    result = what == 0 ? replica_zero (r, &x, BLOCK, b * BLOCK, flags) :
      replica_pwrite (r, &x, data, BLOCK, b * BLOCK, flags);
    ck_assert_int_eq (result, 0);
    if (flags & REPLICA_FUA)
      model[b].flushed = model[b].n - 1;
  }
}

static void
promoted_flush_all (void)
{
  struct replica_export x = export ();

  for (unsigned b = 0; b < BLOCKS; b++)
    model[b].flushing = model[b].n - 1;
  ck_assert_int_eq (replica_flush (r, &x), 0);
  for (unsigned b = 0; b < BLOCKS; b++)
    model[b].flushed = model[b].flushing;
}

/* w: write; z: zero; F: write, FUA; f: flush; d: a cycle of write-out. */
static void
act (char c)
{
  switch (c) {
  case 'w': promoted_write (0, 2, 10, 0); break;
  case 'z': promoted_write (1, 3, 0, 0); break;
  case 'F': promoted_write (2, 4, 20, REPLICA_FUA); break;
  case 'f': promoted_flush_all (); break;
  default: ck_assert_int_eq (writeout_step (r), 0);
  }
}

static void
story (const char *order)
{
  struct promote_answer a;

  doing = order;
  host_reset (1, true);
  disk = simdisk_new ();
  simvfs_default (disk);
  server (disk);
  backlog ();
  simdisk_hook (disk, on_op, NULL);
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, NULL), 0);
  for (const char *p = order; *p; p++)
    act (*p);
  promoted_flush_all ();
  for (unsigned i = 0; i < 8 && !r->drained; i++)
    ck_assert_int_eq (writeout_step (r), 0);
  ck_assert (r->drained);
  simdisk_hook (disk, NULL, NULL);
  replica_close (r);
  r = NULL;
  simdisk_free (disk);
}

/* Every order of S[AT …], each once. */
static void
orders (char *s, unsigned at)
{
  if (s[at] == '\0') {
    story (s);
    return;
  }
  for (unsigned i = at; s[i]; i++) {
    char c = s[i];

    if (memchr (s + at, c, i - at))
      continue;                 /* it was here before */
    s[i] = s[at];
    s[at] = c;
    orders (s, at + 1);
    s[at] = s[i];
    s[i] = c;
  }
}

START_TEST (undone_by_replay)
{
  char acts[2][6] = { "wfFdd", "zwfd" };

  host_seed (1);
  orders (acts[_i], 0);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("hazard");
  TCase *t = tcase_create ("hazard");
  SRunner *sr = srunner_create (s);
  int failed;

  simvfs_register ();
  tcase_set_timeout (t, 600);
  tcase_add_loop_test (t, undone_by_replay, 0, 2);
  suite_add_tcase (s, t);
  srunner_set_fork_status (sr, CK_NOFORK);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  printf ("%llu crash states, %llu restarts; in %llu the replay was over a promoted write\n",
          (unsigned long long) cases, (unsigned long long) restarts, (unsigned long long) hit);
  printf ("TRIED invariant=1,6 test=unit/test-replica-hazard what=\"replays of a backlog over promoted writes\" n=%llu\n",
          (unsigned long long) hit);
  if (failed == 0 && (hit == 0 || restarts == 0)) {
    printf ("the hazard was never hit\n");
    return EXIT_FAILURE;
  }
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
