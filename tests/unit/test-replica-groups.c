/* SPDX-License-Identifier: BSD-3-Clause */
/* Groups on a simulated disk that loses power at every write and sync: 64 disks
 * that commit together, and disks that join and leave.  Recovery finds all disks at one
 * checkpoint, the last acknowledged one or the one in flight, and never one of them at another.
 *
 * MCBUF_TEST_SEED replays.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "unit/torture.h"
#include "unit/unit.h"

#define DISKS 64
#define BLOCKS 4
#define SIZE (BLOCKS * 4096u)
#define DIR "/sim/j"
#define VERSIONS 65536           /* epoch numbers of one run */

/* What names stand for: a disk's letter in the content, whatever its number is. */
struct who {
  char name[16], path[32];
  unsigned stamp;
  unsigned since;               /* its first copy is this round's */
};
static struct who who[DISKS + 8];

static struct simdisk *disk;
static struct replica *r;
static unsigned members[DISKS], nmembers;       /* of WHO, as the server was started */
static unsigned round_of[VERSIONS];             /* of a checkpoint; 0: none */

/* What a crash may find. */
static struct {
  uint64_t checkpoint;          /* acknowledged; 0: none */
  uint64_t next;                /* in flight; 0: none */
  unsigned set[2][DISKS], n[2]; /* the members, one way or the other */
  unsigned nsets;
  bool exists;                  /* the journal */
} expect;
static uint64_t states;

/* After round K, block B holds the newest round up to K that wrote it. */
static void
fill (const struct who *w, unsigned k, uint8_t *image)
{
  memset (image, 0, SIZE);
  for (unsigned b = 0; b < BLOCKS; b++)
    for (unsigned j = k; j >= 1 && j + BLOCKS > k; j--)
      if (j % BLOCKS == b && j >= w->since) {
        for (unsigned i = 0; i < 4096; i += 8) {
          uint64_t v = UINT64_C (0x9e3779b97f4a7c15) * (j * 1000 + w->stamp) + i;

          memcpy (image + b * 4096 + i, &v, 8);
        }
        break;
      }
}

static const struct who *
find (const char *name)
{
  for (unsigned i = 0; i < sizeof who / sizeof who[0]; i++)
    if (strcmp (who[i].name, name) == 0)
      return &who[i];
  ck_abort_msg ("no disk %s", name);
  return NULL;
}

static void
check_images (struct simdisk *d, const unsigned *set, unsigned n,
              uint64_t checkpoint, const struct recover_result *result)
{
  uint8_t image[SIZE];

  for (unsigned i = 0; i < n; i++) {
    const struct who *w = &who[set[i]];
    bool without = false;

    for (unsigned k = 0; result && k < result->nwithout; k++)
      without = without || strcmp (result->without[k], w->name) == 0;
    if (without) {
      ck_assert_uint_gt (w->since, round_of[checkpoint]);
      continue;
    }
    fill (w, round_of[checkpoint], image);
    ck_assert_msg (simdisk_equals (d, w->path, image, SIZE),
                   "disk %s is not at checkpoint %llu", w->name,
                   (unsigned long long) checkpoint);
  }
}

static void
check_recovery (struct simdisk *d)
{
  struct recover_params p = { .fs = simdisk_fs (d), .dir = DIR };
  struct recover_result result;
  struct mcerror err = { 0 };

  states++;
  if (recover_run (&p, &result, &err) == -1) {
    if (err.code == MCEXIT_NO_CHECKPOINT)
      ck_assert_uint_eq (expect.checkpoint, 0);
    else
      ck_assert_msg (!expect.exists && err.code == MCEXIT_USAGE,
                     "recovery: code %d: %s", err.code, err.text);
    return;
  }
  ck_assert_msg (result.checkpoint.id == expect.checkpoint ||
                 (expect.next && result.checkpoint.id == expect.next),
                 "recovered to checkpoint %llu, and %llu was acknowledged",
                 (unsigned long long) result.checkpoint.id,
                 (unsigned long long) expect.checkpoint);
  /* Whoever was a member before has its image at the checkpoint, whether it still is one or not. */
  check_images (d, expect.set[0], expect.n[0], result.checkpoint.id, &result);
  if (expect.nsets == 1)
    for (unsigned i = 0; i < result.nwithout; i++)
      ck_assert_uint_gt (find (result.without[i])->since,
                         round_of[result.checkpoint.id]);
}

static struct replica *
open_set (struct simdisk *d, const unsigned *set, unsigned n,
          const unsigned *join, unsigned njoin, const unsigned *leave,
          unsigned nleave, struct mcerror *err)
{
  struct replica_disk_params disks[DISKS];
  const char *add[DISKS], *remove[DISKS];
  struct replica_params p = { .fs = simdisk_fs (d), .dir = DIR, .disks = disks,
                              .ndisks = n, .journal_size = UINT64_C (16) << 20,
                              .buffer = UINT64_C (8) << 20,
                              .add = add, .nadd = njoin,
                              .remove = remove, .nremove = nleave };
  struct replica *new;

  for (unsigned i = 0; i < n; i++)
    disks[i] = (struct replica_disk_params) {
      .name = who[set[i]].name, .path = who[set[i]].path, .create = true,
      .size = SIZE };
  for (unsigned i = 0; i < njoin; i++)
    add[i] = who[join[i]].name;
  for (unsigned i = 0; i < nleave; i++)
    remove[i] = who[leave[i]].name;
  if (replica_open (&p, &new, err) == -1)
    return NULL;
  new->by_hand = true;
  return new;
}

/* Both kinds of reader of a crash: recovery, or the next server with the set that was asked for. */
static unsigned asked[DISKS], nasked, joining[4], njoining, leaving[4], nleaving;

static void
check_server (struct simdisk *d)
{
  struct mcerror err = { 0 };
  struct replica *next;

  states++;
  next = open_set (d, asked, nasked, joining, njoining, leaving, nleaving, &err);
  ck_assert_msg (next != NULL, "the next server: %s", err.text);
  ck_assert_uint_eq (next->ndisks, nasked);
  ck_assert (next->has_checkpoint == (expect.checkpoint > 0));
  ck_assert (next->state != JOURNAL_FAILED);
  replica_close (next);
  check_recovery (d);
}

/* The image of WHO[away] is gone while its disk leaves; after a crash it is back, as old as it
 * was, and the server is started with the disks as before: it leaves all the same, or has what the
 * checkpoint has, or it is said to need a copy.
 */
#define OLD_IMAGE "/sim/old"
static int away = -1;
static unsigned left, stayed, needs_copy;

static void
check_away_recovery (struct simdisk *d, uint64_t checkpoint, bool gone)
{
  struct recover_params p = { .fs = simdisk_fs (d), .dir = DIR };
  struct recover_result result;
  struct mcerror err = { 0 };
  uint8_t image[SIZE];
  bool without = false;

  states++;
  ck_assert_msg (recover_run (&p, &result, &err) == 0, "recovery: code %d: %s",
                 err.code, err.text);
  ck_assert_uint_eq (result.checkpoint.id, checkpoint);
  for (unsigned i = 0; i < result.nwithout; i++)
    without = without || strcmp (result.without[i], who[away].name) == 0;
  for (unsigned i = 0; i < nmembers; i++) {
    if ((int) members[i] == away && (gone || without)) {
      ck_assert (gone || checkpoint == expect.checkpoint);
      continue;
    }
    fill (&who[members[i]], round_of[expect.checkpoint], image);
    ck_assert_msg (simdisk_equals (d, who[members[i]].path, image, SIZE),
                   "disk %s is not at the checkpoint", who[members[i]].name);
  }
}

/* What the disk that needs it gets: a copy of what it was.  Returns the checkpoint that has it. */
static uint64_t
copy_away (struct replica *next)
{
  struct commit_answer answer;
  struct mcerror err = { 0 };
  uint8_t image[SIZE];

  for (unsigned i = 0; i < next->ndisks; i++)
    if (find (next->disks[i].name) == &who[away]) {
      struct replica_export e = { .disk = i, .fence = next->fence };

      fill (&who[away], round_of[expect.checkpoint], image);
      ck_assert_int_eq (replica_pwrite (next, &e, image, SIZE, 0, 0), 0);
    }
  ck_assert_msg (replica_commit (next, &(struct commit_request) { 0 }, &answer, &err) == 0,
                 "commit: %s", err.text);
  return answer.checkpoint;
}

static void
check_away (struct simdisk *d)
{
  uint64_t checkpoint = expect.checkpoint;
  struct mcerror err = { 0 };
  struct replica *next;

  simdisk_copy (d, who[away].path, disk, OLD_IMAGE);
  next = open_set (d, members, nmembers, NULL, 0, NULL, 0, &err);
  if (next == NULL) {
    ck_assert_msg (strstr (err.text, who[away].name) != NULL, "%s", err.text);
    left++;
    check_away_recovery (d, checkpoint, true);
    return;
  }
  if (next->state == JOURNAL_PROTECTED) {
    stayed++;
    while (!writeout_is_empty (next->wo))
      ck_assert_int_eq (writeout_step (next), 0);
  }
  else {
    /* Not resyncing: whoever goes on with the mirror that he has would not send what is lost. */
    ck_assert_msg (next->state == JOURNAL_STALE, "%s: %s",
                   replica_state_word (next->state), next->reason);
    needs_copy++;
    if (host_below (2)) {
      ck_assert_int_eq (replica_resync (next, false, NULL), 0);
      checkpoint = copy_away (next);
    }
  }
  replica_close (next);
  check_away_recovery (d, checkpoint, false);
}

static void
on_op (void *opaque, enum simdisk_op op)
{
  int saved = errno;

  (void) opaque;
  (void) op;
  if (away >= 0) {
    struct simdisk *after = simdisk_crash (disk, host_below (SIMDISK_HOWS), host_bits);

    check_away (after);
    simdisk_free (after);
  }
  else if (host_below (4) > 0) {
    enum simdisk_crash how = host_below (SIMDISK_HOWS);
    struct simdisk *after = simdisk_crash (disk, how, host_bits);
    unsigned boot = how == SIMDISK_KILL ? host_boot (0) : host_boot (host_new_boot ());

    if (nasked > 0 && host_below (2))
      check_server (after);
    else
      check_recovery (after);
    host_boot (boot);
    simdisk_free (after);
  }
  errno = saved;
}

static void
begin (unsigned n)
{
  unit_seed ();
  host_seed (unit_random (UINT64_MAX));
  host_reset (unit_random (UINT64_MAX), true);
  memset (round_of, 0, sizeof round_of);
  memset (&expect, 0, sizeof expect);
  states = 0;
  for (unsigned i = 0; i < sizeof who / sizeof who[0]; i++) {
    who[i] = (struct who) { .stamp = i };
    snprintf (who[i].name, sizeof who[i].name, "d%02u", i);
    snprintf (who[i].path, sizeof who[i].path, "/sim/d%02u.img", i);
  }
  disk = simdisk_new ();
  simdisk_hook (disk, on_op, NULL);
  nmembers = n;
  for (unsigned i = 0; i < n; i++)
    members[i] = expect.set[0][i] = i;
  expect.n[0] = n;
  expect.nsets = 1;
  nasked = 0;
  r = open_set (disk, members, n, NULL, 0, NULL, 0, NULL);
  ck_assert_ptr_nonnull (r);
  expect.exists = true;
}

static void
end (void)
{
  replica_close (r);
  simdisk_free (disk);
  printf ("%llu crash states\n", (unsigned long long) states);
}

static struct replica_export
inlet (unsigned i)
{
  return (struct replica_export) { .disk = i, .fence = r->fence };
}

/* Round K: one block of every disk. */
static void
write_round (unsigned k)
{
  uint8_t image[SIZE];

  for (unsigned i = 0; i < r->ndisks; i++) {
    struct replica_export e = inlet (i);
    unsigned b = k % BLOCKS;

    fill (find (r->disks[i].name), k, image);
    ck_assert_int_eq (replica_pwrite (r, &e, image + b * 4096, 4096, b * 4096, 0), 0);
  }
}

static uint64_t
open_number (void)
{
  SCOPED_LOCK (&r->lock);

  return speculation_open_number (r->spec);
}

static void
commit (unsigned k)
{
  struct commit_answer answer;
  struct mcerror err = { 0 };

  expect.next = open_number ();
  ck_assert_uint_lt (expect.next, VERSIONS);
  round_of[expect.next] = k;
  ck_assert_msg (replica_commit (r, &(struct commit_request) { 0 }, &answer, &err) == 0,
                 "commit: %s", err.text);
  ck_assert_uint_eq (answer.checkpoint, expect.next);
  expect.checkpoint = expect.next;
  expect.next = 0;
}

static void
write_out (unsigned steps)
{
  while (steps-- > 0)
    ck_assert_int_eq (writeout_step (r), 0);
}

START_TEST (test_64_disks)
{
  begin (DISKS);
  for (unsigned k = 1; k <= 24; k++) {
    write_round (k);
    commit (k);
    if (host_below (2))
      write_out (1 + host_below (2));
    if (k % 8 == 0) {
      replica_close (r);
      r = open_set (disk, members, nmembers, NULL, 0, NULL, 0, NULL);
      ck_assert_ptr_nonnull (r);
    }
  }
  ck_assert_uint_gt (states, 200);
  end ();
}
END_TEST

/* Make MEMBERS another set: OUT (an index of it) leaves, IN of WHO joins. */
static void
ask (int out, int in, unsigned k)
{
  nasked = njoining = nleaving = 0;
  for (unsigned i = 0; i < nmembers; i++)
    if ((int) i == out)
      leaving[nleaving++] = members[i];
    else
      asked[nasked++] = members[i];
  if (in >= 0) {
    joining[njoining++] = in;
    asked[nasked++] = in;
    who[in].since = k;
  }
}

START_TEST (test_join_and_leave)
{
  struct mcerror err = { 0 };
  unsigned newcomer = DISKS, k = 1;

  begin (5);
  for (unsigned lap = 0; lap < 10; lap++) {
    unsigned last = k + 3;
    int out, in;

    for (; k < last; k++) {
      write_round (k);
      commit (k);
      if (host_below (3) == 0)
        write_out (1);
    }
    replica_close (r);

    out = lap % 3 == 0 ? -1 : (int) host_below (nmembers);
    in = lap % 3 == 1 || newcomer == sizeof who / sizeof who[0] ? -1 : (int) newcomer++;
    /* From round K on it is copied; BLOCKS rounds later all of it is there. */
    ask (out, in, k);
    expect.nsets = 2;
    r = open_set (disk, asked, nasked, joining, njoining, leaving, nleaving, &err);
    ck_assert_msg (r != NULL, "%s", err.text);
    if (out >= 0) {
      uint8_t image[SIZE];

      fill (&who[members[out]], round_of[expect.checkpoint], image);
      ck_assert (simdisk_equals (disk, who[members[out]].path, image, SIZE));
    }
    ck_assert_int_eq (r->state, in >= 0 ? JOURNAL_RESYNCING : JOURNAL_PROTECTED);
    memcpy (members, asked, sizeof members);
    nmembers = nasked;
    memcpy (expect.set[0], members, sizeof members);
    expect.n[0] = nmembers;
    expect.nsets = 1;
    nasked = 0;
    /* The copy of the newcomer goes on while the others go on. */
    if (in >= 0) {
      write_round (k);
      if (host_below (2)) {
        uint64_t sealed;

        ck_assert_int_eq (replica_seal (r, 0, &sealed, NULL), 0);
      }
      commit (k);
      k++;
    }
  }
  ck_assert_uint_gt (states, 100);
  end ();
}
END_TEST

START_TEST (test_leave_without_image)
{
  struct mcerror err = { 0 };
  unsigned k = 1;

  left = stayed = needs_copy = 0;
  begin (3);
  for (unsigned lap = 0; lap < 6; lap++) {
    unsigned out = lap % nmembers;

    for (unsigned last = k + 3; k < last; k++) {
      write_round (k);
      commit (k);
    }
    write_out (lap % 2);
    write_round (k);
    commit (k++);               /* some of it is a backlog */
    replica_close (r);

    ask (out, -1, k);
    simdisk_copy (disk, OLD_IMAGE, disk, who[members[out]].path);
    ck_assert_int_eq (io_unlink (simdisk_fs (disk), who[members[out]].path), 0);
    away = members[out];
    r = open_set (disk, asked, nasked, NULL, 0, leaving, nleaving, &err);
    ck_assert_msg (r != NULL, "%s", err.text);
    ck_assert_int_eq (r->state, JOURNAL_PROTECTED);
    away = -1;
    replica_close (r);

    /* It joins again, with a copy of its own. */
    memcpy (asked, members, sizeof asked);
    asked[out] = asked[nmembers - 1];
    asked[nmembers - 1] = members[out];
    nasked = nmembers;
    memcpy (members, asked, sizeof members);
    who[members[nmembers - 1]].since = k;
    expect.nsets = 2;
    memcpy (expect.set[0], asked, sizeof asked);
    expect.n[0] = nmembers - 1;
    joining[0] = members[nmembers - 1];
    njoining = 1;
    nleaving = 0;
    r = open_set (disk, asked, nasked, joining, njoining, NULL, 0, &err);
    ck_assert_msg (r != NULL, "%s", err.text);
    expect.n[0] = nmembers;
    expect.nsets = 1;
    nasked = 0;
    write_round (k);
    commit (k++);
  }
  printf ("left %u, stayed %u, needs a copy %u times\n", left, stayed, needs_copy);
  ck_assert (left > 0 && stayed > 0 && needs_copy > 0);
  end ();
}
END_TEST

/* A disk leaves while there is a backlog, and writes that are not committed: those are discarded, and the others
 * are at the checkpoint.  Its image may be lost by now, or somebody else's: then it is left alone.
 */
START_TEST (test_leave_behind)
{
  enum { THERE, GONE, ANOTHER };
  uint8_t before[SIZE], image[SIZE];
  struct mcerror err = { 0 };
  unsigned k;

  begin (3);
  simdisk_hook (disk, NULL, NULL);
  for (k = 1; k <= 6; k++) {
    write_round (k);
    commit (k);
    if (k == 4)
      write_out (1);
  }
  write_round (k);
  replica_close (r);
  if (_i == GONE)
    ck_assert_int_eq (io_unlink (simdisk_fs (disk), who[1].path), 0);
  if (_i == ANOTHER)
    for (unsigned b = 0; b < BLOCKS; b++)
      simdisk_flip (disk, who[1].path, b * 4096, 0xff);
  if (_i != GONE)
    simdisk_read (disk, who[1].path, before, SIZE);
  ask (1, -1, k);
  r = open_set (disk, asked, nasked, joining, njoining, leaving, nleaving, &err);
  ck_assert_msg (r != NULL, "%s", err.text);
  ck_assert_int_eq (r->state, JOURNAL_STALE);
  ck_assert_uint_eq (r->ndisks, 2);
  for (unsigned i = 0; i < 3; i += 2) {
    fill (&who[i], 6, image);
    ck_assert (simdisk_equals (disk, who[i].path, image, SIZE));
  }
  fill (&who[1], 6, image);
  switch (_i) {
  case THERE: ck_assert (simdisk_equals (disk, who[1].path, image, SIZE)); break;
  case GONE: ck_assert_int_eq (backing_exists (simdisk_fs (disk), who[1].path), 0); break;
  case ANOTHER: ck_assert (simdisk_equals (disk, who[1].path, before, SIZE)); break;
  }
  ck_assert_int_eq (replica_resync (r, false, NULL), 0);
  nasked = 0;
  end ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("groups");
  TCase *tc = tcase_create ("groups");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, test_64_disks);
  tcase_add_test (tc, test_join_and_leave);
  tcase_add_test (tc, test_leave_without_image);
  tcase_add_loop_test (tc, test_leave_behind, 0, 3);
  suite_add_tcase (suite, tc);
  return unit_run (suite);
}
