/* SPDX-License-Identifier: BSD-3-Clause */
/* How much of the last second writers were held back. */
#include "config.h"

#include <stdio.h>

#include "common/held.h"
#include "unit/unit.h"

#define S UINT64_C (1000000000)
#define MS UINT64_C (1000000)

START_TEST (never)
{
  struct held h = { 0 };

  EXPECT (held_share (&h, 5 * S) == 0);
  EXPECT (held_share (&h, 500000 * S) == 0);
}
END_TEST

/* All the time: from the second window on it is all of the second. */
START_TEST (always)
{
  struct held h = { 0 };

  held_begin (&h, 7 * S + 300 * MS);
  EXPECT (held_share (&h, 7 * S + 300 * MS) == 0);
  EXPECT (held_share (&h, 7 * S + 400 * MS) == 100);
  EXPECT (held_share (&h, 7 * S + 800 * MS) == 500);
  for (uint64_t ns = 9 * S; ns < 40 * S; ns += 123 * MS)
    EXPECT (held_share (&h, ns) >= 999 && held_share (&h, ns) <= 1000);
  held_end (&h, 40 * S);
  EXPECT (held_share (&h, 40 * S) >= 999);
  EXPECT (held_share (&h, 40 * S + 500 * MS) == 500);
  EXPECT (held_share (&h, 42 * S) == 0);
}
END_TEST

/* Several at once count once. */
START_TEST (together)
{
  struct held h = { 0 };

  held_begin (&h, 10 * S);
  held_begin (&h, 10 * S + 100 * MS);
  held_end (&h, 10 * S + 200 * MS);
  EXPECT (held_share (&h, 10 * S + 250 * MS) == 250);
  held_end (&h, 10 * S + 300 * MS);
  EXPECT (held_share (&h, 10 * S + 900 * MS) == 300);
  EXPECT (held_share (&h, 11 * S) == 300);
  EXPECT (held_share (&h, 11 * S + 500 * MS) == 150);
  EXPECT (held_share (&h, 12 * S) == 0);
}
END_TEST

/* Against a plain sum over the second before: never further off than spreading can make it. */
START_TEST (random_times)
{
  struct held h = { 0 };
  uint64_t at = S, total = 0;

  unit_seed ();
  for (unsigned i = 0; i < 20000; i++) {
    uint64_t pause = unit_random (20 * MS) + 1, held = unit_random (20 * MS) + 1;

    at += pause;
    held_begin (&h, at);
    at += held;
    held_end (&h, at);
    total += held;
    EXPECT (held_share (&h, at) <= 1000);
    if (at > 3 * S)
      EXPECT (held_share (&h, at) > 250 && held_share (&h, at) < 750);
    if (unit_chance (1)) {
      at += unit_random (10 * S);
      EXPECT (held_share (&h, at) <= 1000);
      at += 2 * S;
      EXPECT (held_share (&h, at) == 0);
      h = (struct held) { 0 };
      at = S;
    }
  }
  EXPECT (total > 0);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("held");
  TCase *t = tcase_create ("share");

  tcase_add_test (t, never);
  tcase_add_test (t, always);
  tcase_add_test (t, together);
  tcase_add_test (t, random_times);
  suite_add_tcase (s, t);
  return unit_run (s);
}
