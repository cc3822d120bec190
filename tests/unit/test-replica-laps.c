/* SPDX-License-Identifier: BSD-3-Clause */
/* A small journal that is lapped hundreds of times, with all threads, against plain bytes in memory: what
 * an inlet reads, what a kill at any moment leaves, what a restart goes on with.  And what
 * happens when it is too small.
 *
 * MCBUF_TEST_SEED replays (as far as threads allow), MCBUF_LAPS makes it longer.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "journal/internal.h"
#include "replica/internal.h"
#include "replica/recover.h"
#include "unit/slow.h"
#include "unit/torture.h"

#define LAPS 250                /* of "make check" */
#define JOURNAL_SIZE (UINT64_C (16) << 20)
#define DISKS 2
#define MOST (512u << 10)       /* bytes of a write */

/* Commit after so much at the latest.  Of the 16 chunks write-out gives back all but the superblocks',
 * 3 of records, 2 of tables (the one that a clean stop left, and that of this process), and 4
 * are kept for records and tables: 6 are left for data.  Two of them may hold next to
 * nothing of the epoch: the one that the commit before ends in, and the one that was open at
 * a clean stop.  So EPOCH + MOST, and what is lost by whole blocks, have to fit into 4.
 */
#define EPOCH (UINT64_C (3) << 20)

static const uint64_t size[DISKS] = { (3 << 20) + 512, (1 << 20) + 1 };
static const char *const name[DISKS] = { "vda", "vdb" };
static const char *const path[DISKS] = { "/sim/a.img", "/sim/b.img" };

static uint64_t seed, journaled, commits, kills, restarts, holes;
static struct simdisk *disk;
static struct replica *r;
static uint8_t *now[DISKS], *committed[DISKS];
static uint64_t newest, pending;

const struct life *torture_now;
const char *torture_doing = "", *torture_test = "";

void
torture_fail (const char *fmt, ...)
{
  va_list args;

  fflush (stdout);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fprintf (stderr, "\n%" PRIu64 " bytes journaled; replay with MCBUF_TEST_SEED=%" PRIu64 "\n", journaled, seed);
  abort ();
}

static void
fill (void *buf, size_t len)
{
  uint64_t v = host_bits ();

  for (size_t i = 0; i < len; i += 8, v += UINT64_C (0x100000001b3))
    memcpy ((char *) buf + i, &v, MIN ((size_t) 8, len - i));
}

static void
open_replica (bool trusted, bool threads)
{
  struct replica_disk_params d[DISKS];
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR,
                              .disks = d, .ndisks = DISKS,
                              .journal_size = JOURNAL_SIZE,
                              .buffer = UINT64_C (8) << 20,
                              .baseline_trusted = trusted };
  struct mcerror err = { 0 };

  for (unsigned i = 0; i < DISKS; i++)
    d[i] = (struct replica_disk_params) {
      .name = name[i], .path = path[i], .create = true, .size = size[i] };
  MUST (replica_open (&p, &r, &err) == 0, "open: %s", err.text);
  if (threads)
    MUST (replica_run (r) == 0, "run: %m");
  else
    r->by_hand = true;
}

static struct replica_export
inlet (unsigned d)
{
  return (struct replica_export) { .disk = d, .view = REPLICA_INLET,
                                   .fence = r->fence };
}

/* -1 with errno: refused. */
static int
put (unsigned d, uint64_t off, uint32_t len, bool zero)
{
  static uint8_t buf[MOST + 8];
  struct replica_export x = inlet (d);

  if (zero) {
    if (replica_zero (r, &x, len, off, host_below (2) ? REPLICA_MAY_TRIM : 0) == -1)
      return -1;
    memset (now[d] + off, 0, len);
    return 0;
  }
  fill (buf, len);
  if (replica_pwrite (r, &x, buf, len, off, 0) == -1)
    return -1;
  memcpy (now[d] + off, buf, len);
  journaled += len;
  pending += len;
  return 0;
}

static void
must_read (unsigned d, uint64_t off, uint32_t len)
{
  static uint8_t buf[MOST];
  struct replica_export x = inlet (d);

  MUST (replica_pread (r, &x, buf, len, off) == 0, "read: %m");
  MUST (memcmp (buf, now[d] + off, len) == 0, "disk %u is not what was written at %" PRIu64, d, off);
}

static void
keep (uint8_t *const to[DISKS], uint8_t *const from[DISKS])
{
  for (unsigned d = 0; d < DISKS; d++)
    memcpy (to[d], from[d], size[d]);
}

static void
commit (void)
{
  struct commit_answer a;
  struct mcerror err = { 0 };

  MUST (replica_commit (r, &(struct commit_request) { .label = "lap" }, &a, &err) == 0,
        "commit: %s", err.text);
  newest = a.checkpoint;
  keep (committed, now);
  pending = 0;
  commits++;
}

/* SIGKILL now: what is recovered? */
static void
kill_and_recover (void)
{
  struct simdisk *after = simdisk_crash (disk, SIMDISK_KILL, host_bits);
  struct recover_params p = { .fs = simdisk_fs (after), .dir = TORTURE_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };

  kills++;
  MUST (recover_run (&p, &result, &err) == 0, "recover: %s", err.text);
  MUST (result.checkpoint.id == newest, "recovered to %" PRIu64 ", not %" PRIu64,
        result.checkpoint.id, newest);
  for (unsigned d = 0; d < DISKS; d++)
    MUST (simdisk_equals (after, path[d], committed[d], size[d]), "%s is not checkpoint %" PRIu64, path[d], newest);
  simdisk_free (after);
}

/* A stop, clean or not, and a start. */
static void
restart (bool clean)
{
  restarts++;
  if (clean)
    replica_close (r);
  else {
    struct simdisk *after = simdisk_crash (disk, SIMDISK_KILL, host_bits);

    replica_close (r);
    simdisk_free (disk);
    disk = after;
  }
  open_replica (false, true);
  if (!clean) {
    MUST (r->state == JOURNAL_STALE, "killed, and now %s", replica_state_word (r->state));
    MUST (replica_resync (r, false, NULL) == 0, "resync: %m");
    keep (now, committed);
    holes++;
  }
  MUST (r->checkpoint.id == newest, "checkpoint %" PRIu64 ", not %" PRIu64, r->checkpoint.id, newest);
  for (unsigned d = 0; d < DISKS; d++)
    for (uint64_t at = 0; at < size[d]; at += MOST)
      must_read (d, at, MIN (size[d] - at, (uint64_t) MOST));
}

static void
begin (bool threads)
{
  disk = simdisk_new ();
  for (unsigned d = 0; d < DISKS; d++) {
    now[d] = calloc (1, size[d]);
    committed[d] = calloc (1, size[d]);
  }
  newest = pending = 0;
  open_replica (true, threads);
}

static void
end (void)
{
  replica_close (r);
  simdisk_free (disk);
  for (unsigned d = 0; d < DISKS; d++) {
    free (now[d]);
    free (committed[d]);
  }
}

static void
laps (unsigned n)
{
  uint64_t until = journaled + n * JOURNAL_SIZE, next = 0, lap = 0;

  begin (true);
  while (journaled < until) {
    unsigned d = host_below (4) == 0;
    uint32_t len = host_below (3) ? 1 + host_below (MOST) : 1 + host_below (20000);
    uint64_t off;

    len = MIN ((uint64_t) len, size[d]);
    off = host_below (size[d] - len + 1);
    if (host_below (3)) {
      off = ROUND_DOWN (off, (uint64_t) 4096);
      len = MIN ((uint64_t) ROUND_UP (len, 4096u), size[d] - off);
      len = MIN (len, MOST);
    }
    if (host_below (8) == 0)
      must_read (d, off, len);
    else
      MUST (put (d, off, len, host_below (10) == 0) == 0, "write: %m");
    if (pending > EPOCH || host_below (16) == 0)
      commit ();
    if (journaled >= next) {
      next = journaled + JOURNAL_SIZE;
      if (++lap % 5 == 0)
        kill_and_recover ();
      if (lap % 7 == 0)
        restart (lap % 21 != 0);
    }
  }
  kill_and_recover ();
  end ();
}

/* --- too small ---------------------------------------------------------------------- */

/* An epoch that does not fit: the writes are refused, the checkpoint before stays. */
static void
too_small (void)
{
  struct commit_answer a;
  struct mcerror err = { 0 };
  uint64_t written = 0;

  for (unsigned d = 0; d < DISKS; d++)
    MUST (put (d, 0, MOST, false) == 0, "write: %m");
  commit ();
  for (;;) {
    errno = 0;
    if (put (0, host_below (5) * MOST, MOST, false) == -1)
      break;
    written += MOST;
    MUST (written < JOURNAL_SIZE, "an epoch of %" PRIu64 " bytes in a journal of %" PRIu64, written, JOURNAL_SIZE);
  }
  MUST (errno == ENOSPC, "refused with %m");
  MUST (written > JOURNAL_SIZE / 4, "refused after %" PRIu64 " bytes already", written);
  MUST (r->state == JOURNAL_STALE && strstr (r->reason, "No space left"), "%s: %s",
        replica_state_word (r->state), r->reason);
  MUST (replica_commit (r, &(struct commit_request) { 0 }, &a, &err) == -1 &&
        err.code == MCEXIT_REFUSED, "a stream with a hole was committed");
  kill_and_recover ();
  /* The way out; what was refused has given its room back. */
  MUST (replica_resync (r, false, &err) == 0, "resync: %s", err.text);
  keep (now, committed);
  for (unsigned i = 0; i < 8; i++)
    MUST (put (0, i % 5 * MOST, MOST, false) == 0, "write after a resync: %m");
  commit ();
  kill_and_recover ();
}

/* Commits that are not written out fill it: they stop, and promote still works. */
static void
full (void)
{
  struct replica_export x = { .view = REPLICA_PROMOTED };
  struct promote_answer a;
  struct mcerror err = { 0 };
  uint8_t *got;

  r->hold_writeout = true;      /* an image that does not take it */
  snprintf (r->wo_error, sizeof r->wo_error, "no more");
  for (unsigned i = 0; i < 200; i++) {
    if (put (0, host_below (5) * MOST, MOST, false) == -1)
      break;
    commit ();
  }
  MUST (errno == ENOSPC && r->state == JOURNAL_STALE, "%s: %m", replica_state_word (r->state));
  kill_and_recover ();
  MUST (replica_promote (r, NULL, false, &a, &err) == 0, "promote: %s", err.text);
  MUST (a.checkpoint.id == newest, "promoted to %" PRIu64 ", not %" PRIu64, a.checkpoint.id, newest);
  r->wo_error[0] = '\0';
  for (unsigned i = 0; i < 100 && !r->direct; i++)
    (void) writeout_step (r);
  MUST (r->direct, "the backlog does not drain");
  for (x.disk = 0; x.disk < DISKS; x.disk++) {
    got = malloc (size[x.disk]);
    x.fence = r->fence;
    MUST (replica_pread (r, &x, got, size[x.disk], 0) == 0, "read: %m");
    MUST (memcmp (got, committed[x.disk], size[x.disk]) == 0, "disk %u is not checkpoint %" PRIu64, x.disk, newest);
    free (got);
  }
}

int
main (void)
{
  unsigned n = getenv ("MCBUF_LAPS") ? strtoul (getenv ("MCBUF_LAPS"), NULL, 0) : unless_slow (LAPS);

  seed = first_seed ();
  printf ("laps: replay with MCBUF_TEST_SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  (void) mallopt (M_MMAP_THRESHOLD, 64 << 20);
  (void) mallopt (M_TRIM_THRESHOLD, 512 << 20);
  alarm (900);
  host_reset (seed, true);
  host_seed (seed);
  for (unsigned i = 0; i < 3; i++) {
    begin (false);
    too_small ();
    end ();
    begin (false);
    full ();
    end ();
  }
  host_reset (seed, false);
  journaled = 0;
  laps (n);
  printf ("%" PRIu64 " laps of %" PRIu64 " MiB: %" PRIu64 " commits, %" PRIu64 " kills, %" PRIu64
          " restarts, %" PRIu64 " of them with a hole\n", journaled / JOURNAL_SIZE,
          JOURNAL_SIZE >> 20, commits, kills, restarts, holes);
  return 0;
}
