/* SPDX-License-Identifier: BSD-3-Clause */
/* Power is lost at any write or sync of a whole replica's life, and any of its
 * writes and syncs fail.  What was acknowledged is there, byte for byte; nothing else is.
 *
 * MCBUF_TEST_SEED replays; MCBUF_TORTURE_SEEDS is how many lives to live (make torture SEEDS=...).
 */
#include "config.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "unit/torture.h"

#define STATES 100000           /* of "make check" */
#define DEADLINE 300            /* seconds that one life may take */

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

static uint64_t
live (struct life_params p)
{
  alarm (DEADLINE);             /* a hang ends the test */
  return torture_life (&p);
}

static struct life_params
crash_params (uint64_t s)
{
  return (struct life_params) {
    .seed = s, .crash = true, .laps = 3, .steps = 150,
    .short_len = s % 8 == 7 ? 512 * (1 + s % 40) : 0 };
}

static struct life_params
threads_params (uint64_t s)
{
  return (struct life_params) {
    .seed = s, .crash = true, .threads = true, .laps = 3, .steps = 60 };
}

static struct life_params
fault_params (uint64_t s)
{
  return (struct life_params) { .seed = s, .laps = 2, .steps = 40 };
}

/* By hand: each run is its replay. */
static void
power_loss (uint64_t states)
{
  uint64_t from = torture_states;

  torture_test = "power loss";
  for (uint64_t i = 0; seeds ? i < seeds : torture_states - from < states; i++)
    (void) live (crash_params (seed + i));
}

/* With all threads. */
static void
power_loss_threads (uint64_t states)
{
  uint64_t from = torture_states;

  torture_test = "power loss with threads";
  for (uint64_t i = 0; seeds ? i < seeds / 8 : torture_states - from < states; i++)
    (void) live (threads_params (seed + i));
}

/* Each operation of a run fails, in each way. */
static void
faults (uint64_t lives)
{
  static const struct { int error; bool sticky; } how[] = {
    { EIO, false }, { EIO, true }, { ENOSPC, false }, { ENOSPC, true },
    { EINTR, false },
  };

  torture_test = "faults";
  for (uint64_t i = 0; i < lives; i++) {
    struct life_params p = fault_params (seed + i);
    uint64_t ops = live (p);

    for (uint64_t n = 1; n <= ops; n++)
      for (unsigned k = 0; k < sizeof how / sizeof how[0]; k++) {
        p.fail_at = n;
        p.fail_error = how[k].error;
        p.fail_sticky = how[k].sticky;
        (void) live (p);
        torture_faults++;
      }
  }
}

/* MCBUF_TORTURE_ONLY is "crash", "threads" or "OPERATION,ERRNO,STICKY": that one life; or
 * "faults": all of one.
 */
static bool
replay (void)
{
  const char *only = getenv ("MCBUF_TORTURE_ONLY");
  struct life_params p = crash_params (seed);
  unsigned long long n = 0;
  int error = 0, sticky = 0;

  if (only == NULL || *only == '\0')
    return false;
  torture_test = only;
  if (strcmp (only, "faults") == 0) {
    faults (1);
    return true;
  }
  if (strcmp (only, "threads") == 0)
    p = threads_params (seed);
  else if (sscanf (only, "%llu,%d,%d", &n, &error, &sticky) == 3) {
    p = fault_params (seed);
    p.fail_at = n;
    p.fail_error = error;
    p.fail_sticky = sticky;
  }
  (void) live (p);
  return true;
}

int
main (void)
{
  double since = seconds (), each;
  uint64_t states;

  /* What each crash state takes and gives back stays with the process. */
  (void) mallopt (M_MMAP_THRESHOLD, 32 << 20);
  (void) mallopt (M_TRIM_THRESHOLD, 1 << 30);
  seeds = number ("MCBUF_TORTURE_SEEDS", 0);
  /* The share of "make check" is the same each time; new seeds are for make torture. */
  seed = number ("MCBUF_TEST_SEED", seeds ? (uint64_t) time (NULL) : 300);
  printf ("MCBUF_TEST_SEED=%llu\n", (unsigned long long) seed);
  fflush (stdout);

  if (replay ())
    return 0;
  power_loss (STATES);
  states = torture_states;
  each = seconds ();
  printf ("by hand: %llu crash states in %.1f s\n", (unsigned long long) states, each - since);
  fflush (stdout);
  power_loss_threads (STATES / 50);
  printf ("with threads: %llu crash states in %.1f s\n",
          (unsigned long long) (torture_states - states), seconds () - each);
  fflush (stdout);
  each = seconds ();
  faults (seeds ? seeds / 8 + 1 : 2);
  printf ("faults: %llu in %.1f s\n", (unsigned long long) torture_faults,
          seconds () - each);
  printf ("%llu crash states, %llu faults, %.0f s\n",
          (unsigned long long) torture_states,
          (unsigned long long) torture_faults, seconds () - since);
  return 0;
}
