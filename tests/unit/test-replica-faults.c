/* SPDX-License-Identifier: BSD-3-Clause */
/* Every call of a short life of a replica fails, one after the other, in each way that it can; and every
 * allocation.  Nothing that was not done is acknowledged, nothing hangs, nothing crashes, and the state is the one that
 * DESIGN.md names: see fault_check.
 *
 * MCBUF_TEST_SEED replays (the lives of one script); MCBUF_TORTURE_SEEDS is how many seeds to try;
 * MCBUF_TORTURE_ONLY is "AT,ERROR,STICKY" or "memory,AT,STICKY", or all of "faults", "memory", "recovery".
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

/* The letters are those of torture-steps.c; R: stop and start, B: stop, lose the power, start; K: only that. */
static const char *const scripts[] = {
  /* The first copy, its end, the life of a standby, and a clean stop with speculation. */
  "wwfswwcwrwcswsokwcihnrokwwRrwcokB",
  /* An older epoch, a resync, and the server is killed. */
  "wcwswswcokwywwcwcoiKkywcrR",
  /* Failover with a backlog; it drains while it is written to; two starts, the second of which is to find
   * all that the first may have called damaged; then a standby again.
   */
  "wcwcwswpwwrfowfkwowofowwfiRwKrfxwcok",
  /* The new copy is cut short, and made again. */
  "wxwsKxwwcwkcwrpowiwoowB",
  /* Views and scratches; a scratch that is promoted, and what was written to it afterwards. */
  "wwcvuuvuwcvuuuuqwurfouwRuB",
};
/* Allocations are many: in "make check" those of shorter lives. */
static const char *const short_scripts[] = {
  "wswcrwokRsc",
  "wcywcoB",
  "wcwspwfowfi",
  "xwcKpowxwcR",
  "wcvuuquwfR",
};
#define SCRIPTS (sizeof scripts / sizeof scripts[0])

static uint64_t seed, seeds;
static uint64_t tried[FAULT_IMAGE + 1], allocations;

static uint64_t
number (const char *name, uint64_t or)
{
  const char *text = getenv (name);

  return text && *text ? strtoull (text, NULL, 0) : or;
}

static struct life_params
params (uint64_t s, bool memory)
{
  return (struct life_params) {
    .seed = s, .script = memory && seeds == 0 ? short_scripts[s % SCRIPTS] : scripts[s % SCRIPTS] };
}

static void
calls (uint64_t s)
{
  struct life_params p = params (s, false);
  struct fault all;

  torture_test = "faults";
  torture_trace (&p, &all);
  for (uint64_t n = 0; n < all.ntrace; n++)
    for (unsigned k = 0; fault_way (all.trace[n].call, k, &p.fault); k++) {
      p.fault.at = n + 1;
      (void) torture_life (&p);
      tried[all.trace[n].where]++;
    }
  free (all.trace);
}

static void
memory (uint64_t s)
{
  struct life_params p = params (s, true);
  struct fault all;

  torture_test = "memory";
  p.fault.memory = true;
  torture_trace (&p, &all);
  for (uint64_t n = 1; n <= all.n; n++)
    for (unsigned sticky = 0; sticky < (n % 4 == 0 ? 2 : 1); sticky++) {
      p.fault = (struct fault) { .at = n, .memory = true, .sticky = sticky };
      (void) torture_life (&p);
      allocations++;
    }
  free (all.trace);
}

/* A life up to each step of the script, and recovery with faults of what that leaves. */
static void
recoveries (uint64_t s)
{
  struct life_params p = params (s, false);
  char part[64];

  torture_test = "recovery";
  p.refault = true;
  for (size_t len = 1 + s % 7; len <= strlen (p.script); len += 7) {
    snprintf (part, sizeof part, "%.*s", (int) len, scripts[s % SCRIPTS]);
    p.script = part;
    (void) torture_life (&p);
    p.script = scripts[s % SCRIPTS];
  }
}

static bool
replay (void)
{
  const char *only = getenv ("MCBUF_TORTURE_ONLY");
  struct life_params p;
  unsigned long long at = 0;
  int error = 0, sticky = 0;

  if (only == NULL || *only == '\0')
    return false;
  torture_test = only;
  if (strcmp (only, "faults") == 0)
    calls (seed);
  else if (strcmp (only, "memory") == 0)
    memory (seed);
  else if (strcmp (only, "recovery") == 0)
    recoveries (seed);
  else {
    bool memory_too = sscanf (only, "memory,%llu,%d", &at, &sticky) == 2;

    p = params (seed, memory_too);
    p.fault.memory = memory_too;
    MUST (p.fault.memory || sscanf (only, "%llu,%d,%d", &at, &error, &sticky) == 3, "MCBUF_TORTURE_ONLY=%s", only);
    /* Warmed up, as it was then: some allocations are made once. */
    (void) torture_life (&p);
    p.fault.at = at;
    p.fault.error = error;
    p.fault.sticky = sticky;
    (void) torture_life (&p);
  }
  return true;
}

static void
report (const char *where, uint64_t n)
{
  printf ("TRIED invariant=1,7,8,10 test=unit/test-replica-faults what=\"%s\" n=%llu\n", where,
          (unsigned long long) n);
}

int
main (void)
{
  simvfs_register ();
  seeds = number ("MCBUF_TORTURE_SEEDS", 0);
  seed = number ("MCBUF_TEST_SEED", seeds ? (uint64_t) time (NULL) : 400);
  printf ("MCBUF_TEST_SEED=%llu\n", (unsigned long long) seed);
  fflush (stdout);
  if (replay ())
    return 0;
  for (uint64_t i = 0; i < MAX (seeds, (uint64_t) SCRIPTS); i++) {
    calls (seed + i);
    memory (seed + i);
    recoveries (seed + i);
  }
  report ("faults of the journal", tried[FAULT_JOURNAL]);
  report ("faults of the acknowledged mark and the lock", tried[FAULT_MARK]);
  report ("faults of the catalog", tried[FAULT_CATALOG]);
  report ("faults of backing images", tried[FAULT_IMAGE]);
  report ("faults of scratch files", tried[FAULT_SCRATCH]);
  report ("allocations that failed", allocations);
  printf ("TRIED invariant=6,7 test=unit/test-replica-faults what=\"calls and allocations of a recovery that failed\" n=%llu\n",
          (unsigned long long) torture_refaults);
  return 0;
}
