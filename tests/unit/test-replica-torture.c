/* SPDX-License-Identifier: BSD-3-Clause */
/* Power is lost at any write, sync, unlink or rename of a whole replica's life.  What was acknowledged is there,
 * byte for byte; nothing else is.
 *
 * MCBUF_TEST_SEED replays; MCBUF_TORTURE_SEEDS is how many lives to live (make torture SEEDS=...);
 * MCBUF_TORTURE_ONLY is "crash", "threads", "looks" or "scratch": one life of that kind.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

#define STATES 100000           /* of "make check" */
#define LOOKS 40                /* lives */
#define SCRATCHES 9

/* What was found once, and mended. */
static const uint64_t pinned[] = { 5007, 5030, 5041 };

static uint64_t seed;
static uint64_t seeds;          /* 0: what "make check" does */

static uint64_t
number (const char *name, uint64_t or)
{
  const char *text = getenv (name);

  return text && *text ? strtoull (text, NULL, 0) : or;
}

static double
seconds (void)
{
  struct timespec ts;

  (void) clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Lives of several kinds. */
static struct life_params
crash_params (uint64_t s)
{
  struct life_params p = { .seed = s, .crash = true, .laps = 3, .steps = 150, .meanwhile = 4 };

  switch (s % 8) {
  case 0:                       /* many subsets of what each operation leaves */
    p.subsets = 8;
    p.steps = 15;
    break;
  case 2:                       /* the journal is lapped */
    p.large = true;
    p.every = 3;
    p.steps = 300;
    break;
  case 3: case 7:               /* and fills up */
    p.large = p.greedy = true;
    p.every = 8;
    p.steps = 400;
    break;
  case 4:
    p.meanwhile = 0;
    p.short_len = 512 * (1 + s % 40);
    break;
  }
  return p;
}

static struct life_params
threads_params (uint64_t s)
{
  return (struct life_params) {
    .seed = s, .crash = true, .threads = true, .laps = 3, .steps = 60,
    .large = s % 4 == 0 };
}

static void
live (struct life_params p)
{
  (void) torture_life (&p);
  if (getenv ("TORTURE_LIVES"))
    fprintf (stderr, "%llu: %llu\n", (unsigned long long) p.seed, (unsigned long long) torture_states);
}

/* Scratches are written to, and promoted: with every operation of that a power loss. */
static struct life_params
scratch_params (uint64_t s)
{
  static const char *const scripts[] = {
    "wswwcuuvuuvquwrfoowfiR", "wcwcwuuucuvuuuuwwquowfKuw", "wcouuwuBwcwuuyuuqRuwfo",
  };

  return (struct life_params) {
    .seed = s, .crash = true, .subsets = 3, .script = scripts[s % 3] };
}

/* By hand: each run is its replay. */
static void
power_loss (uint64_t states)
{
  uint64_t from = torture_states;

  torture_test = "power loss";
  for (size_t i = 0; i < sizeof pinned / sizeof pinned[0]; i++)
    live (crash_params (pinned[i]));
  for (uint64_t i = 0; i < SCRATCHES; i++)
    live (scratch_params (seed + i));
  for (uint64_t i = 0; seeds ? i < seeds : torture_states - from < states; i++)
    live (crash_params (seed + i));
}

/* With all threads. */
static void
power_loss_threads (uint64_t states)
{
  uint64_t from = torture_states;

  torture_test = "power loss with threads";
  for (uint64_t i = 0; seeds ? i < seeds / 8 : torture_states - from < states; i++)
    live (threads_params (seed + i));
}

/* Long lives, of which only the ends of servers are crashes: what views and scratches show. */
static struct life_params
looks_params (uint64_t s)
{
  return (struct life_params) {
    .seed = s, .laps = 6, .steps = 500, .meanwhile = 4, .threads = s % 5 == 4,
    .large = s % 3 == 1, .greedy = s % 9 == 1 };
}

static void
looks (void)
{
  torture_test = "looks";
  for (uint64_t i = 0; i < (seeds ? seeds : LOOKS); i++)
    live (looks_params (seed + i));
}

static bool
replay (void)
{
  const char *only = getenv ("MCBUF_TORTURE_ONLY");

  if (only == NULL || *only == '\0')
    return false;
  torture_test = only;
  live (strcmp (only, "threads") == 0 ? threads_params (seed) :
        strcmp (only, "scratch") == 0 ? scratch_params (seed) :
        strcmp (only, "looks") == 0 ? looks_params (seed) : crash_params (seed));
  return true;
}

int
main (void)
{
  double since = seconds ();
  uint64_t states;

  simvfs_register ();
  seeds = number ("MCBUF_TORTURE_SEEDS", 0);
  /* The share of "make check" is the same each time; new seeds are for make torture. */
  seed = number ("MCBUF_TEST_SEED", seeds ? (uint64_t) time (NULL) : 1000);
  printf ("MCBUF_TEST_SEED=%llu\n", (unsigned long long) seed);
  fflush (stdout);

  if (replay ())
    return 0;
  power_loss (STATES);
  states = torture_states;
  printf ("TRIED invariant=1,2,3,6,8 test=unit/test-replica-torture what=\"crash states\" n=%llu\n",
          (unsigned long long) states);
  printf ("%.1f s\n", seconds () - since);
  fflush (stdout);
  looks ();
  printf ("TRIED invariant=2,5 test=unit/test-replica-torture what=\"looks at views, and writes to scratch, while "
          "replication went on\" n=%llu\n",
          (unsigned long long) (torture_count[COUNT_VIEW] + torture_count[COUNT_SCRATCH]));
  printf ("%.1f s\n", seconds () - since);
  fflush (stdout);
  states = torture_states;
  for (unsigned i = 0; i < COUNTS; i++) {
    printf ("%s: %llu\n", torture_count_name[i], (unsigned long long) torture_count[i]);
    MUST (torture_count[i] > 0, "no life had any %s", torture_count_name[i]);
  }
  power_loss_threads (STATES / 50);
  printf ("TRIED invariant=1,2,3,6,8 test=unit/test-replica-torture what=\"crash states with threads\" n=%llu\n",
          (unsigned long long) (torture_states - states));
  printf ("%.1f s\n", seconds () - since);
  return 0;
}
