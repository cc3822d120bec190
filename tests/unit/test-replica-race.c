/* SPDX-License-Identifier: BSD-3-Clause */
/* Writers, readers, seals, commits and write-out at once, on a simulated disk that loses its power now and then.
 *
 * Nobody knows the order in which what overlaps takes place.  But each write is filled with its number and has a begin and
 * an end, tickets of one counter, and so have seals and reads: a piece, a quarter of a sector, that is read, or recovered, must hold
 * a write that is not wholly behind that moment, and that no other one follows which was wholly before it.
 * In a recovered image a write is whole, and none is missing that ended before one that is there began.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

#define PIECE 128u
#define DISKS 2u
#define PIECES 640u             /* of a disk */
#define WRITERS 4u
#define WRITES 2500u            /* of each writer */
#define READERS 2u
#define READS 20000u            /* that are kept */
#define EPOCHS 8192u
#define CRASHES 16u
#define AHEAD (4u << 20)        /* bytes that writers may be ahead of commits */

struct write {
  uint64_t begin, end;          /* tickets; end 0: under way */
  uint32_t disk, first, n;
  bool zero;
};

/* What a piece held, between two tickets. */
struct look {
  uint64_t begin, end, value;
  uint32_t disk, piece;
};

struct epoch_log {
  uint64_t begin, end;          /* of the seal */
  _Atomic bool committing;      /* asked for */
};

struct crash {
  struct simdisk *disk;
  uint64_t acknowledged;        /* when it came */
};

static struct simdisk *disk;
static struct replica *r;
static _Atomic uint64_t ticket = 1, ahead, acknowledged;
static _Atomic unsigned running;
static struct write writes[1 + WRITERS * WRITES];       /* 0: what was there first */
static _Atomic unsigned nwrites;
static struct look looks[READERS][READS];
static unsigned nlooks[READERS];
static struct epoch_log epochs[EPOCHS];
static struct crash crashes[CRASHES + 1];
static unsigned ncrashes;

/* Which writes touch a piece. */
static struct { unsigned *list, n; } touch[DISKS][PIECES];

static uint64_t
next_ticket (void)
{
  return atomic_fetch_add (&ticket, 1);
}

static struct replica_export
inlet (unsigned d)
{
  return (struct replica_export) { .disk = d, .view = REPLICA_INLET, .fence = 0 };
}

static void
write_one (void)
{
  uint8_t buf[32 * PIECE];
  unsigned id = atomic_fetch_add (&nwrites, 1) + 1;
  struct write *w = &writes[id];
  struct replica_export x;
  int result;

  w->disk = host_below (DISKS);
  w->first = host_below (host_below (2) ? PIECES : 40);        /* some are hot */
  w->n = 1 + host_below (MIN (PIECES - w->first, host_below (4) ? 8u : 32u));
  w->zero = host_below (10) == 0;
  x = inlet (w->disk);
  for (unsigned i = 0; i < w->n * PIECE; i += 8)
    memcpy (buf + i, &(uint64_t) { id }, 8);
  w->begin = next_ticket ();
  result = w->zero ?
    replica_zero (r, &x, w->n * PIECE, (uint64_t) w->first * PIECE, REPLICA_MAY_TRIM) :
    replica_pwrite (r, &x, buf, w->n * PIECE, (uint64_t) w->first * PIECE, 0);
  if (result == -1)
    ck_abort_msg ("write: %m (%s)", r->reason);
  w->end = next_ticket ();
  ahead += w->n * PIECE + 4096;
}

static void *
writer (void *arg)
{
  host_seed ((uintptr_t) arg);
  for (unsigned i = 0; i < WRITES; i++) {
    while (ahead > AHEAD)
      sched_yield ();
    write_one ();
  }
  running--;
  return NULL;
}

static void *
reader (void *arg)
{
  unsigned me = (uintptr_t) arg, kept = 0;
  uint8_t buf[16 * PIECE];

  host_seed (me + 100);
  while (running > 0) {
    unsigned d = host_below (DISKS), n = 1 + host_below (16);
    unsigned first = host_below (host_below (2) ? PIECES - n : 40), at = host_below (n);
    struct look l = { .disk = d, .piece = first + at, .begin = next_ticket () };
    struct replica_export x = inlet (d);

    if (replica_pread (r, &x, buf, n * PIECE, (uint64_t) first * PIECE) == -1)
      ck_abort_msg ("read: %m");
    l.end = next_ticket ();
    memcpy (&l.value, buf + at * PIECE, sizeof l.value);
    for (unsigned i = 0; i < PIECE; i += 8)
      if (memcmp (buf + at * PIECE + i, &l.value, 8) != 0)
        ck_abort_msg ("a torn piece was read");
    if (kept < READS)
      looks[me][kept++] = l;
  }
  nlooks[me] = kept;
  return NULL;
}

static uint64_t
seal (void)
{
  uint64_t begin = next_ticket (), sealed;

  if (replica_seal (r, 0, &sealed, NULL) == -1)
    ck_abort_msg ("seal: %m");
  ck_assert_uint_lt (sealed, EPOCHS);
  epochs[sealed].begin = begin;
  epochs[sealed].end = next_ticket ();
  return sealed;
}

static void
commit (uint64_t epoch)
{
  struct commit_request req = { .has_epoch = true, .epoch = epoch };
  struct commit_answer a;
  struct mcerror err = { 0 };
  uint64_t was = ahead;

  epochs[epoch].committing = true;
  if (replica_commit (r, &req, &a, &err) == -1)
    ck_abort_msg ("commit: %s", err.text);
  ck_assert_uint_eq (a.checkpoint, epoch);
  acknowledged = epoch;
  ahead -= was;
}

/* Seals up to three epochs, commits one of them, all the time. */
static void *
committer (void *arg)
{
  uint64_t sealed[3];

  (void) arg;
  host_seed (99);
  while (running > 0) {
    unsigned n = 1 + host_below (3);

    for (unsigned i = 0; i < n; i++)
      sealed[i] = seal ();
    commit (sealed[host_below (n)]);
  }
  return NULL;
}

static void
crash (void)
{
  struct crash *c = &crashes[ncrashes++];

  c->acknowledged = acknowledged;
  c->disk = simdisk_crash (disk, host_below (SIMDISK_HOWS), host_bits);
}

/* --- looking back --- */

static void
index_writes (void)
{
  for (unsigned id = 1; id <= nwrites; id++) {
    const struct write *w = &writes[id];

    for (unsigned s = w->first; s < w->first + w->n; s++) {
      unsigned n = touch[w->disk][s].n++;

      if ((n & (n - 1)) == 0) {
        touch[w->disk][s].list = realloc (touch[w->disk][s].list,
                                          2 * (n + 1) * sizeof (unsigned));
        assert (touch[w->disk][s].list);
      }
      touch[w->disk][s].list[n] = id;
    }
  }
}

/* Can W be what PIECE of disk D holds for somebody who came after BEFORE and left before AFTER? */
static bool
is_newest (const struct write *w, unsigned d, unsigned piece, uint64_t before,
           uint64_t after)
{
  if (w->begin >= after)
    return false;
  for (unsigned i = 0; i < touch[d][piece].n; i++) {
    const struct write *other = &writes[touch[d][piece].list[i]];

    if (other->end != 0 && other->end < before && w->end != 0 && w->end < other->begin)
      return false;
  }
  return true;
}

static bool
holds (uint64_t value, unsigned d, unsigned piece, uint64_t before,
       uint64_t after)
{
  static const struct write first = { .begin = 0, .end = 1 };

  if (value != 0) {
    const struct write *w = &writes[value];

    return value <= nwrites && !w->zero && w->disk == d && piece >= w->first &&
      piece < w->first + w->n && is_newest (w, d, piece, before, after);
  }
  if (is_newest (&first, d, piece, before, after))
    return true;
  for (unsigned i = 0; i < touch[d][piece].n; i++) {
    const struct write *w = &writes[touch[d][piece].list[i]];

    if (w->zero && is_newest (w, d, piece, before, after))
      return true;
  }
  return false;
}

static uint64_t
check_looks (void)
{
  uint64_t n = 0;

  for (unsigned me = 0; me < READERS; me++)
    for (unsigned i = 0; i < nlooks[me]; i++, n++) {
      const struct look *l = &looks[me][i];

      ck_assert_msg (holds (l->value, l->disk, l->piece, l->begin, l->end),
                     "piece %u of disk %u was read as write %llu", l->piece, l->disk,
                     (unsigned long long) l->value);
    }
  return n;
}

static void
read_images (struct simdisk *s, uint64_t got[DISKS][PIECES])
{
  static uint8_t image[PIECES * PIECE];

  for (unsigned d = 0; d < DISKS; d++) {
    simdisk_read (s, d ? "/sim/1.img" : "/sim/0.img", image, sizeof image);
    for (unsigned i = 0; i < PIECES; i++) {
      memcpy (&got[d][i], image + i * PIECE, 8);
      for (unsigned k = 8; k < PIECE; k += 8)
        if (memcmp (image + i * PIECE + k, &got[d][i], 8) != 0)
          ck_abort_msg ("piece %u of disk %u is torn", i, d);
    }
  }
}

static uint64_t
recover (const struct crash *c)
{
  struct recover_params p = { .fs = simdisk_fs (c->disk), .dir = TORTURE_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };

  (void) host_boot (host_new_boot ());
  if (recover_run (&p, &result, &err) == -1)
    ck_abort_msg ("recovery: %s", err.text);
  ck_assert_uint_ge (result.checkpoint.id, c->acknowledged);
  ck_assert (result.checkpoint.id < EPOCHS && epochs[result.checkpoint.id].committing);
  return result.checkpoint.id;
}

static void
check_crash (const struct crash *c)
{
  static uint64_t got[DISKS][PIECES];
  uint64_t id = recover (c), last = 0;
  const struct epoch_log *e = &epochs[id];

  read_images (c->disk, got);
  for (unsigned d = 0; d < DISKS; d++)
    for (unsigned i = 0; i < PIECES; i++)
      last = MAX (last, writes[got[d][i]].begin);
  for (unsigned d = 0; d < DISKS; d++)
    for (unsigned i = 0; i < PIECES; i++) {
      const struct write *w = &writes[got[d][i]];

      ck_assert_msg (holds (got[d][i], d, i, MAX (e->begin, last), e->end),
                     "checkpoint %llu: piece %u of disk %u holds write %llu",
                     (unsigned long long) id, i, d, (unsigned long long) got[d][i]);
      for (unsigned s = w->first; s < w->first + w->n; s++) {
        const struct write *v = &writes[got[d][s]];

        ck_assert_msg (got[d][s] == 0 || v->end == 0 || v->end > w->begin,
                       "checkpoint %llu: of write %llu piece %u is there, and not %u",
                       (unsigned long long) id, (unsigned long long) got[d][i], i, s);
      }
    }
}

/* --- the run --- */

static void
open_server (void)
{
  struct replica_disk_params d[DISKS] = {
    { .name = "vda", .path = "/sim/0.img", .create = true, .size = PIECES * PIECE },
    { .name = "vdb", .path = "/sim/1.img", .create = true, .size = PIECES * PIECE } };
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR, .disks = d, .ndisks = DISKS,
                              .journal_size = UINT64_C (32) << 20, .buffer = UINT64_C (8) << 20,
                              .baseline_trusted = true };
  struct mcerror err = { 0 };

  if (replica_open (&p, &r, &err) == -1 || replica_run (r) == -1)
    ck_abort_msg ("%s: %m", err.text);
}

/* What all disks read as is sealed; whatever comes after that is not in the checkpoint. */
static void
exactly (void)
{
  static uint8_t want[DISKS][PIECES * PIECE];
  struct crash c;
  uint64_t epoch;

  for (unsigned d = 0; d < DISKS; d++) {
    struct replica_export x = inlet (d);

    ck_assert_int_eq (replica_pread (r, &x, want[d], sizeof want[d], 0), 0);
  }
  epoch = seal ();
  for (unsigned i = 0; i < 50; i++) {
    struct replica_export x = inlet (i % DISKS);
    uint8_t junk[PIECE];

    memset (junk, 0xee, sizeof junk);
    ck_assert_int_eq (replica_pwrite (r, &x, junk, sizeof junk, i * PIECE, 0), 0);
    if (i == 25)
      commit (epoch);
  }
  c = (struct crash) { simdisk_crash (disk, SIMDISK_SECTORS, host_bits), epoch };
  ck_assert_uint_eq (recover (&c), epoch);
  for (unsigned d = 0; d < DISKS; d++)
    ck_assert (simdisk_equals (c.disk, d ? "/sim/1.img" : "/sim/0.img", want[d], sizeof want[d]));
  simdisk_free (c.disk);
}

/* Nothing is left of the run before. */
static void
begin (void)
{
  ticket = 1;
  ahead = acknowledged = 0;
  running = WRITERS;
  nwrites = ncrashes = 0;
  memset (writes, 0, sizeof writes);
  memset (epochs, 0, sizeof epochs);
  epochs[0] = (struct epoch_log) { 0, 1, true };        /* the baseline */
  for (unsigned d = 0; d < DISKS; d++)
    for (unsigned i = 0; i < PIECES; i++) {
      free (touch[d][i].list);
      touch[d][i].list = NULL;
      touch[d][i].n = 0;
    }
}

START_TEST (race)
{
  pthread_t threads[WRITERS + READERS + 1];
  unsigned n = 0;
  uint64_t reads;

  disk = simdisk_new ();
  simvfs_default (disk);
  host_reset (_i + 1, false);
  host_seed (_i + 1);
  begin ();
  open_server ();
  for (unsigned i = 0; i < WRITERS; i++)
    ck_assert_int_eq (pthread_create (&threads[n++], NULL, writer, (void *) (uintptr_t) (i + 1)), 0);
  for (unsigned i = 0; i < READERS; i++)
    ck_assert_int_eq (pthread_create (&threads[n++], NULL, reader, (void *) (uintptr_t) i), 0);
  ck_assert_int_eq (pthread_create (&threads[n++], NULL, committer, NULL), 0);
  while (running > 0) {
    if (ncrashes < CRASHES && nwrites > ncrashes * WRITERS * WRITES / CRASHES)
      crash ();
    sched_yield ();
  }
  for (unsigned i = 0; i < n; i++)
    ck_assert_int_eq (pthread_join (threads[i], NULL), 0);
  crash ();
  index_writes ();
  reads = check_looks ();
  for (unsigned i = 0; i < ncrashes; i++) {
    check_crash (&crashes[i]);
    simdisk_free (crashes[i].disk);
  }
  exactly ();
  replica_close (r);
  simdisk_free (disk);
  printf ("TRIED invariant=4,5 test=unit/test-replica-race what=\"reads among writers\" n=%llu\n"
          "TRIED invariant=1,2,3,4 test=unit/test-replica-race what=\"crashes among writers\" n=%u\n",
          (unsigned long long) reads, ncrashes);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("race");
  SRunner *sr = srunner_create (s);
  int failed;

  simvfs_register ();
  tcase_set_timeout (t, 240);
  tcase_add_loop_test (t, race, 0, 2);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
