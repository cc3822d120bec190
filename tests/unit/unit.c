/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit/unit.h"

static uint64_t state;

void
unit_seed (void)
{
  const char *s = getenv ("MCBUF_TEST_SEED"), *series = getenv ("MCBUF_TEST_SERIES");
  const char *name = program_invocation_short_name;
  static unsigned times;

  if (s && *s)
    state = strtoull (s, NULL, 0);
  else {
    state = (series && *series ? strtoull (series, NULL, 0) : 1) * 1000 + ++times;
    for (const char *p = strncmp (name, "lt-", 3) == 0 ? name + 3 : name; *p; p++)
      state = state * 31 + (unsigned char) *p;
    state %= 1000000000;
  }
  printf ("MCBUF_TEST_SEED=%llu\n", (unsigned long long) state);
  (void) fflush (stdout);
}

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t
unit_random (uint64_t below)
{
  uint64_t z = state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  z ^= z >> 31;
  return below ? z % below : 0;
}

bool
unit_chance (unsigned percent)
{
  return unit_random (100) < percent;
}

int
unit_run (Suite *suite)
{
  SRunner *runner = srunner_create (suite);
  int failed;

  srunner_run_all (runner, CK_ENV);
  failed = srunner_ntests_failed (runner);
  srunner_free (runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
