/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery is killed, loses power, or meets an error, at every single write and sync that it
 * makes; what is left is recovered, which may be cut short in its turn.  The answer and the images
 * are always the same.
 *
 * MCBUF_TEST_SEED replays; MCBUF_RECOVER_STATES is how many recoveries to make.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"
#include "replica/internal.h"
#include "unit/damage.h"
#include "unit/slow.h"

#define STATES 8000             /* of "make check" */

static uint64_t seed, states, crashes, faults, windows;
/* So little memory that a backlog is written out in several pieces, and with the least of it read twice. */
static uint64_t cache;
static struct damage_life *life;
static const char *doing = "";
static uint64_t at_op;

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
  fprintf (stderr, "\n%s, operation %" PRIu64 "; ending %d; replay with MCBUF_TEST_SEED=%" PRIu64 " MCBUF_RECOVER_STATES=1\n",
           doing, at_op, life ? (int) life->ending : -1, seed);
  abort ();
}

static int
recover (struct simdisk *disk, struct recover_result *result,
         struct mcerror *err)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = DAMAGE_DIR,
                              .cache = cache };

  states++;
  memset (err, 0, sizeof *err);
  return recover_run (&p, result, err);
}

static void
must_be_recovered (struct simdisk *disk)
{
  struct recover_result result;
  struct mcerror err;

  MUST (recover (disk, &result, &err) == 0, "code %d: %s", err.code, err.text);
  MUST (result.checkpoint.id == life->newest, "checkpoint %" PRIu64 ", not %" PRIu64,
        result.checkpoint.id, life->newest);
  MUST (result.generation == 2, "generation %" PRIu64, result.generation);
  for (unsigned d = 0; d < life->ndisks; d++)
    MUST (simdisk_equals (disk, life->path[d], life->want[d], life->size[d]),
          "%s is not checkpoint %" PRIu64, life->path[d], life->newest);
}

/* --- crashes --- */

struct nested {
  struct simdisk *disk;
  unsigned depth;
};

static void
on_op (void *opaque, enum simdisk_op op)
{
  struct nested *x = opaque;

  (void) op;
  if (x->depth == 1)
    at_op++;
  else if (host_below (20) != 0)
    return;                     /* deeper down a few will do */
  for (enum simdisk_crash how = 0; how < SIMDISK_HOWS; how++) {
    struct simdisk *after = simdisk_crash (x->disk, how, host_bits);
    struct nested deeper = { after, x->depth + 1 };
    unsigned boot = host_boot (how == SIMDISK_KILL ? 1 : host_new_boot ());

    if (x->depth == 1 && host_below (8) == 0)
      simdisk_hook (after, on_op, &deeper);
    crashes++;
    must_be_recovered (after);
    simdisk_hook (after, NULL, NULL);
    must_be_recovered (after);
    host_boot (boot);
    simdisk_free (after);
  }
}

static uint64_t
crash_everywhere (void)
{
  struct simdisk *disk = simdisk_crash (life->disk, SIMDISK_KILL, host_bits);
  struct nested x = { disk, 1 };

  doing = "crashing";
  at_op = 0;
  simdisk_hook (disk, on_op, &x);
  must_be_recovered (disk);
  simdisk_hook (disk, NULL, NULL);
  simdisk_free (disk);
  return at_op;
}

/* --- errors --- */

static void
fail_once (uint64_t op, uint64_t ops, int error, bool sticky, bool torn)
{
  struct simdisk *disk = simdisk_crash (life->disk, SIMDISK_KILL, host_bits);
  struct recover_result result;
  struct simdisk *after;
  struct mcerror err;

  at_op = op;
  faults++;
  simdisk_torn (disk, torn);
  simdisk_fail (disk, op, error, sticky);
  if (recover (disk, &result, &err) == -1) {
    MUST (err.text[0] && strchr (err.text, '\n') == NULL, "not one line: %s", err.text);
    MUST (err.code == MCEXIT_USAGE || err.code == MCEXIT_PARTIAL ||
          (err.code == MCEXIT_DAMAGE && strstr (err.text, "cannot sync")),
          "code %d: %s", err.code, err.text);
  }
  else
    /* The very last write is of the acknowledged mark, which may lag. */
    MUST (!sticky || op == ops, "an error that lasts, and success");
  /* Mended; on a host that was rebooted meanwhile, or not. */
  simdisk_fail (disk, 0, 0, false);
  simdisk_torn (disk, false);
  after = simdisk_crash (disk, host_below (2) ? SIMDISK_KILL : SIMDISK_NONE, host_bits);
  host_boot (host_new_boot ());
  must_be_recovered (after);
  must_be_recovered (after);
  simdisk_free (after);
  simdisk_free (disk);
}

static void
fail_everywhere (uint64_t ops)
{
  doing = "failing";
  for (uint64_t op = 1; op <= ops; op++) {
    fail_once (op, ops, EIO, false, host_below (2));
    fail_once (op, ops, EIO, true, host_below (2));
    fail_once (op, ops, ENOSPC, host_below (2), false);
    fail_once (op, ops, EINTR, false, false);
  }
}

/* How many pieces did the last one take? */
static void
count_windows (void)
{
  struct simdisk *disk = simdisk_crash (life->disk, SIMDISK_KILL, host_bits);
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = DAMAGE_DIR, .cache = cache };
  struct recover_result result;
  struct journal *j;
  uint64_t before;

  MUST (journal_open (p.fs, p.dir, &j, NULL) == 0, "open: %m");
  before = j->log.seq;
  journal_close (j);
  MUST (recover_run (&p, &result, NULL) == 0, "recover: %m");
  MUST (journal_open (p.fs, p.dir, &j, NULL) == 0, "open: %m");
  /* PROMOTE, the end, and for each piece TARGET and WATERMARK. */
  windows = MAX (windows, (j->log.seq - before - 1) / 2);
  journal_close (j);
  simdisk_free (disk);
}

int
main (void)
{
  static const enum damage_ending endings[] = {
    END_KILLED, END_STOPPED, END_PROMOTED, END_LONG, END_COPIED };
  uint64_t wanted = getenv ("MCBUF_RECOVER_STATES") ?
    strtoull (getenv ("MCBUF_RECOVER_STATES"), NULL, 0) : unless_slow (STATES);

  seed = first_seed ();
  printf ("recovery: replay with MCBUF_TEST_SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  (void) mallopt (M_MMAP_THRESHOLD, 64 << 20);
  (void) mallopt (M_TRIM_THRESHOLD, 512 << 20);
  for (; states < wanted; seed++) {
    alarm (300);
    cache = seed / 5 % 2 ? 16u << 20 : 1;
    host_reset (seed, true);
    host_seed (seed);
    doing = "living";
    life = damage_life_new (seed, seed, endings[seed % 5]);
    host_boot (1);
    count_windows ();
    fail_everywhere (crash_everywhere ());
    damage_life_free (life);
    life = NULL;
  }
  printf ("%" PRIu64 " recoveries: %" PRIu64 " after crashes and %" PRIu64 " errors of others, in up to %" PRIu64 " pieces\n",
          states, crashes, faults, windows);
  return 0;
}
