/* SPDX-License-Identifier: BSD-3-Clause */
/* The set of zero ranges against an array of sectors, on both sides of the
 * border between two disks, with enough ranges for many chunks.
 */
#include "config.h"

#include <string.h>

#include "buffers/zeroset.h"
#include "unit/unit.h"

#define N 6000u
#define BORDER (UINT64_C (4) << ZEROSET_DISK_SHIFT)
#define BASE (BORDER - N / 2)

static struct zeroset set;
static uint8_t model[N];        /* 0 nothing, 1 zero, 2 may be trimmed */

static void
setup (void)
{
  unit_seed ();
  memset (&set, 0, sizeof set);
  memset (model, 0, sizeof model);
}

static void
teardown (void)
{
  unit_fail_alloc (0);
  zeroset_clear (&set);
}

static bool
same_disk (uint64_t a, uint64_t b)
{
  return a >> ZEROSET_DISK_SHIFT == b >> ZEROSET_DISK_SHIFT;
}

static void
check (void)
{
  struct zeroset_at at = { 0, 0 };
  const struct zero_range *r, *last = NULL;
  uint8_t got[N] = { 0 };
  size_t n = 0;

  for (; (r = zeroset_get (&set, at)) != NULL; at = zeroset_next (&set, at)) {
    EXPECT (r->start < r->end && same_disk (r->start, r->end - 1));
    EXPECT (r->start >= BASE && r->end <= BASE + N);
    if (last) {
      EXPECT (last->end <= r->start);
      /* Neighbours that could be one are one. */
      EXPECT (last->end < r->start || last->may_trim != r->may_trim ||
              !same_disk (last->start, r->start));
    }
    memset (got + (r->start - BASE), 1 + r->may_trim, r->end - r->start);
    last = r;
    n++;
  }
  EXPECT (memcmp (got, model, N) == 0);
  EXPECT (zeroset_count (&set) == n);
  EXPECT (zeroset_is_empty (&set) == (n == 0));

  for (unsigned i = 0; i < 50; i++) {
    uint64_t pos = unit_random (N), k = pos;

    while (k < N && model[k] == 0)
      k++;
    r = zeroset_get (&set, zeroset_seek (&set, BASE + pos));
    EXPECT ((r == NULL) == (k == N));
    EXPECT (r == NULL || (r->start <= BASE + k && r->end > BASE + k));
  }
}

START_TEST (test_random)
{
  /* Short ranges make many; long ones make many go. */
  size_t most = 0;

  for (unsigned i = 0; i < 20000; i++) {
    unsigned from = unit_random (N), to;
    bool may_trim = unit_chance (50), failing = unit_chance (10);
    unsigned kind = unit_random (1000);
    int r;

    to = from + unit_random (kind == 0 ? N : kind < 10 ? 200
                                           : kind < 500 ? 8 : 2);
    if (to > N)
      to = N;
    if (from < N / 2 && to > N / 2)
      to = N / 2;
    unit_fail_alloc (failing ? 1 + unit_random (2) : 0);
    r = zeroset_add (&set, BASE + from, BASE + to, may_trim);
    EXPECT ((r == -1) == (unit_failed () > 0));
    EXPECT (r == 0 || errno == ENOMEM);
    unit_fail_alloc (0);
    if (r == 0)
      memset (model + from, 1 + may_trim, to - from);
    if (i % 10 == 0 || r == -1)
      check ();
    if (zeroset_count (&set) > most)
      most = zeroset_count (&set);
    if (unit_random (2000) == 0) {
      zeroset_clear (&set);
      EXPECT (zeroset_memory (&set) == 0);
      memset (model, 0, sizeof model);
    }
  }
  check ();
  EXPECT (most > 3 * ZEROSET_FAN);
}
END_TEST

/* One sector of every two, in three orders: the memory stays in proportion. */
START_TEST (test_orders)
{
  for (unsigned i = 0; i < N / 2; i++) {
    /* 7 and N / 2 have no divisor in common. */
    unsigned at = 2 * (_i == 0 ? i : _i == 1 ? N / 2 - 1 - i
                                             : i * 7 % (N / 2));

    EXPECT (zeroset_add (&set, BASE + at, BASE + at + 1, true) == 0);
    model[at] = 2;
    if (i % 50 == 0)
      check ();
  }
  check ();
  EXPECT (zeroset_count (&set) == N / 2);
  EXPECT (zeroset_memory (&set) < N / 2 * 2 * 20 + 10000);
  EXPECT (zeroset_add (&set, BASE, BORDER, true) == 0);
  memset (model, 2, N / 2);
  check ();
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("zeroset");
  TCase *tc = tcase_create ("zeroset");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_set_timeout (tc, 120);
  tcase_add_loop_test (tc, test_random, 0, 3);
  tcase_add_loop_test (tc, test_orders, 0, 3);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
