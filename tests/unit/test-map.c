/* SPDX-License-Identifier: BSD-3-Clause */
/* The map against a plain model. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "buffers/map-impl.h"
#include "unit/model.h"
#include "unit/unit.h"

static struct map *map;
static struct model *model;
static uint32_t next_loc;

static void
setup (void)
{
  unit_seed ();
  map = map_new (100);
  model = calloc (1, sizeof *model);
  EXPECT (map != NULL);
  EXPECT (model != NULL);
  next_loc = 1;
}

static void
teardown (void)
{
  map_free (map);
  free (model);
}

/* One random change to map and model. */
static void
step (struct map *m, struct model *to, unsigned zero_percent)
{
  bool zero = unit_chance (zero_percent), may_trim = unit_chance (50);
  struct model_range r = model_random_range (zero);

  if (zero) {
    EXPECT (map_zero (m, r.disk, r.sector, r.n, may_trim) == 0);
    model_zero (to, r.disk, r.sector, r.n, may_trim);
  }
  else {
    EXPECT (map_put (m, r.disk, r.sector, r.n, next_loc) == 0);
    model_put (to, r.disk, r.sector, r.n, next_loc);
    next_loc += r.n / MAP_BLOCK_SECTORS + 2;
  }
}

START_TEST (test_empty)
{
  struct map_hit hit[MAP_BLOCK_SECTORS];
  struct map_run *runs;
  size_t n = 1;

  map_free (NULL);
  EXPECT (map_is_empty (map));
  EXPECT (map_is_empty_at (map, 0, 0, UINT64_C (1) << 51));
  EXPECT (map_get (map, 63, 0, 0xff, hit) == 0);
  EXPECT ((map_sorted (map, &runs, &n)) == 0);
  EXPECT (n == 0);
  free (runs);
  EXPECT (map_put (map, 0, 5, 0, 7) == 0);
  EXPECT (map_zero (map, 0, 5, 0, true) == 0);
  EXPECT (map_is_empty (map));
  model_check (model, map);
}
END_TEST

/* Random changes, with few, some and many zero requests. */
START_TEST (test_random)
{
  static const unsigned zero_percent[] = { 0, 10, 50, 100 };

  for (unsigned i = 0; i < 4000; i++) {
    step (map, model, zero_percent[_i]);
    model_check_window (model, map, unit_random (MODEL_WINDOWS));
    if (i % 100 == 0)
      model_check (model, map);
    if (unit_random (1000) == 0) {
      map_clear (map);
      memset (model, 0, sizeof *model);
      EXPECT (map_is_empty (map));
      model_check (model, map);
    }
  }
  model_check (model, map);
}
END_TEST

/* A long range is cheap, and cheap to put something into. */
START_TEST (test_long_zero)
{
  size_t memory = map_memory (map);

  for (unsigned i = 0; i < 1000; i++) {
    EXPECT (map_zero (map, 2, 0, MODEL_END, i % 2) == 0);
    EXPECT (map_put (map, 2, unit_random (MODEL_END), 1, i) == 0);
  }
  EXPECT (map_blocks (map) == 1);
  EXPECT (map_memory (map) < memory + 8192);
}
END_TEST

/* A long range in short requests is one range, too. */
START_TEST (test_split_zero)
{
  size_t memory = map_memory (map), n;
  struct map_run *runs;

  for (uint64_t s = 0; s < 4000000; s += 128)
    EXPECT (map_zero (map, 3, 1000 + s, 128, true) == 0);
  EXPECT (map_memory (map) < memory + 8192);
  EXPECT ((map_sorted (map, &runs, &n)) == 0);
  EXPECT (n == 1);
  EXPECT (runs[0].sector == 1000);
  EXPECT (runs[0].nsectors == 4000000);
  EXPECT (runs[0].disk == 3);
  EXPECT (runs[0].zero && runs[0].may_trim);
  free (runs);
}
END_TEST

/* Many blocks on all disks: growth, order, memory, and what a clear keeps. */
START_TEST (test_growth)
{
  enum { N = 300000 };
  size_t before = map_memory (map), n;
  struct map_run *runs;
  struct map_hit hit[MAP_BLOCK_SECTORS];

  for (uint32_t i = 0; i < N; i++)
    EXPECT (map_put (map, i % 64, ((uint64_t) (i / 64) << 25) * 8, 8, i) == 0);
  EXPECT (map_blocks (map) == N);
  EXPECT (map_memory (map) < N * UINT64_C (64));
  for (uint32_t i = 0; i < N; i++) {
    EXPECT (map_get (map, i % 64, (uint64_t) (i / 64) << 25, 0xff, hit) == 1);
    EXPECT (hit[0].loc == i);
    EXPECT (hit[0].mask == 0xff);
  }
  EXPECT ((map_sorted (map, &runs, &n)) == 0);
  EXPECT (n == N);
  for (uint32_t i = 0; i < N; i++) {
    EXPECT (runs[i].loc % 64 == runs[i].disk);
    EXPECT (runs[i].sector == ((uint64_t) (runs[i].loc / 64) << 25) * 8);
    if (i > 0 && runs[i - 1].disk == runs[i].disk)
      EXPECT (runs[i - 1].sector < runs[i].sector);
    else if (i > 0)
      EXPECT (runs[i - 1].disk + 1 == runs[i].disk);
  }
  free (runs);
  map_clear (map);
  EXPECT (map_is_empty (map));
  EXPECT (map_memory (map) == before);
  model_check (model, map);
  step (map, model, 0);
  model_check (model, map);
}
END_TEST

/* Long writes that find the map growing, and make it grow again. */
START_TEST (test_growth_in_leaps)
{
  for (unsigned round = 0; round < 20; round++) {
    static uint32_t first[200], many[200];
    struct map_hit hit[MAP_BLOCK_SECTORS];
    unsigned n = 1 + unit_random (200);
    size_t total = 0;

    for (unsigned i = 0; i < n; i++) {
      many[i] = 1 + unit_random (unit_chance (70) ? 10 : 40 * (total + 100));
      if (many[i] > 20000)
        many[i] = 20000;
      first[i] = total;
      EXPECT (map_put (map, i % 64, (uint64_t) total * 24, many[i] * 8, total)
              == 0);
      total += many[i];
      EXPECT (map_blocks (map) == total);
    }
    for (unsigned i = 0; i < n; i++)
      for (unsigned k = 0; k < many[i]; k++) {
        EXPECT (map_get (map, i % 64, (uint64_t) first[i] * 3 + k, 0xff, hit)
                == 1);
        EXPECT (hit[0].loc == first[i] + k && hit[0].mask == 0xff);
      }
    map_clear (map);
  }
}
END_TEST

/* One put makes the table grow; the next, as long as the table or longer,
 * finds most slots in the old one.
 */
START_TEST (test_growth_twice)
{
  struct map_hit hit[MAP_BLOCK_SECTORS];

  for (unsigned more = 300; more < 1200; more++) {
    for (unsigned i = 0; i < 193; i++)
      EXPECT (map_put (map, 1, i * 8000, 8, i) == 0);
    EXPECT (map_put (map, 2, 0, more * 8, 1000) == 0);
    EXPECT (map_blocks (map) == 193 + more);
    for (unsigned i = 0; i < 193; i++)
      EXPECT (map_get (map, 1, i * 1000, 0xff, hit) == 1 && hit[0].loc == i);
    map_clear (map);
  }
}
END_TEST

/* Around the number of slots up to which they are listed. */
START_TEST (test_listed)
{
  static const unsigned many[] = { 4095, 4096, 4097, 4500, 6000 };
  struct map_hit hit[MAP_BLOCK_SECTORS];
  struct map *roomy = map_new (10000), *other = map_new (10);

  EXPECT (roomy != NULL && other != NULL);
  for (unsigned i = 0; i < 10; i++) {
    struct map *m = i % 2 ? roomy : map;
    struct map_run *runs;
    size_t n;
    uint64_t cursor = 0;

    for (unsigned k = 0; k < many[i / 2]; k++)
      EXPECT (map_put (m, 0, k * 800, 8, k) == 0);
    EXPECT (map_sorted (m, &runs, &n) == 0);
    EXPECT (n == many[i / 2]);
    for (unsigned k = 0; k < n; k++)
      EXPECT (runs[k].loc == k);
    free (runs);
    map_clear (other);
    while (map_merge (other, m, 100, &cursor) == 1)
      ;
    EXPECT (map_blocks (other) == many[i / 2]);
    EXPECT (map_zero (other, 0, 0, MODEL_END, false) == 0);
    EXPECT (map_blocks (other) == 0);
    map_clear (m);
    for (unsigned k = 0; k < many[i / 2]; k++)
      EXPECT (map_get (m, 0, k * 100, 0xff, hit) == 0);
    /* Nothing is left that a new block could bring back. */
    EXPECT (map_put (m, 1, 0, 1, 7) == 0);
    for (unsigned k = 0; k < many[i / 2]; k++)
      EXPECT (map_get (m, 0, k * 100, 0xff, hit) == 0);
    EXPECT (map_sorted (m, &runs, &n) == 0);
    EXPECT (n == 1);
    free (runs);
    map_clear (m);
  }
  map_free (roomy);
  map_free (other);
}
END_TEST

/* What is overwritten for ever does not make the table grow for ever. */
START_TEST (test_churn)
{
  size_t memory = 0;

  for (unsigned i = 0; i < 200; i++) {
    for (unsigned k = 0; k < 1000; k++)
      EXPECT (map_put (map, 1, unit_random (UINT64_C (1) << 40), 8, i) == 0);
    EXPECT (map_zero (map, 1, 0, MODEL_END, false) == 0);
    if (i == 10)
      memory = map_memory (map);
  }
  EXPECT (map_memory (map) == memory);
}
END_TEST

/* Without memory nothing changes, and later all goes on. */
START_TEST (test_enomem)
{
  unsigned failures = 0;

  for (unsigned i = 0; i < 6000; i++) {
    bool zero = unit_chance (30), may_trim = unit_chance (50);
    struct model_range r = model_random_range (zero);
    int ret;

    if (i % 100 == 0) {
      map_clear (map);
      memset (model, 0, sizeof *model);
    }
    unit_fail_alloc (1 + unit_random (3));
    ret = zero ? map_zero (map, r.disk, r.sector, r.n, may_trim)
               : map_put (map, r.disk, r.sector, r.n, next_loc);
    EXPECT (ret != -1 || errno == ENOMEM);
    EXPECT (ret == (unit_failed () ? -1 : 0));
    unit_fail_alloc (0);
    if (ret == -1) {
      failures++;
      model_check (model, map);
      ret = zero ? map_zero (map, r.disk, r.sector, r.n, may_trim)
                 : map_put (map, r.disk, r.sector, r.n, next_loc);
    }
    EXPECT (ret == 0);
    if (zero)
      model_zero (model, r.disk, r.sector, r.n, may_trim);
    else
      model_put (model, r.disk, r.sector, r.n, next_loc);
    next_loc += 1000;
  }
  EXPECT (failures > 10);
  model_check (model, map);

  struct map_run *runs;
  size_t n;
  for (unsigned nth = 1; ; nth++) {
    unit_fail_alloc (nth);
    int ret = map_sorted (map, &runs, &n);
    unsigned failed = unit_failed ();

    unit_fail_alloc (0);
    if (failed == 0) {
      EXPECT (ret == 0);
      EXPECT (nth > 3);
      free (runs);
      break;
    }
    EXPECT (ret == -1);
    EXPECT (errno == ENOMEM);
  }
  for (unsigned nth = 1; ; nth++) {
    struct map *m;

    unit_fail_alloc (nth);
    m = map_new (5);
    unsigned failed = unit_failed ();
    unit_fail_alloc (0);
    map_free (m);
    if (failed == 0) {
      EXPECT (m != NULL);
      EXPECT (nth > 3);
      break;
    }
    EXPECT (m == NULL);
  }
  errno = 0;
  EXPECT (map_new (SIZE_MAX) == NULL);
  EXPECT (errno == ENOMEM);
}
END_TEST

/* What a reader finds who asks NEWER first, then OLDER. */
static void
check_both (const struct model *want, const struct map *newer,
            const struct map *older, unsigned w)
{
  struct map_hit hit[2 * MAP_BLOCK_SECTORS];

  for (unsigned b = 0; b < MODEL_BLOCKS; b++) {
    uint64_t block = model_window[w].sector / MAP_BLOCK_SECTORS + b;
    unsigned missing = 0xff, n, k;

    n = map_get (newer, model_window[w].disk, block, missing, hit);
    for (unsigned i = 0; i < n; i++)
      missing &= ~hit[i].mask;
    k = map_get (older, model_window[w].disk, block, missing, hit + n);
    for (unsigned i = n; i < n + k; i++)
      missing &= ~hit[i].mask;
    n += k;
    for (unsigned s = 0; s < MAP_BLOCK_SECTORS; s++) {
      const struct model_cell *cell =
        &want->cell[w][b * MAP_BLOCK_SECTORS + s];
      bool found = false;

      EXPECT ((cell->kind == CELL_NONE) == (missing >> s & 1));
      for (unsigned i = 0; i < n; i++)
        if (hit[i].mask & 1u << s) {
          found = true;
          EXPECT (hit[i].zero == (cell->kind == CELL_ZERO));
          if (hit[i].zero)
            EXPECT (hit[i].may_trim == cell->may_trim);
          else
            EXPECT (hit[i].loc == cell->loc);
        }
      EXPECT (found == (cell->kind != CELL_NONE));
    }
  }
}

/* Merge in slices, at times without memory. */
START_TEST (test_merge)
{
  struct model *newer_model = calloc (1, sizeof *newer_model);
  struct map *newer = map_new (10);

  EXPECT (newer_model != NULL);
  EXPECT (newer != NULL);
  for (unsigned round = 0; round < 150; round++) {
    unsigned steps = unit_random (unit_chance (80) ? 20 : 300);
    unsigned zeroes = unit_random (3) * 30;
    uint64_t cursor = 0;
    size_t max = unit_chance (30) ? SIZE_MAX
                                              : unit_random (100);
    unsigned w = unit_random (MODEL_WINDOWS);
    int r;

    if (unit_chance (5)) {
      map_clear (map);
      memset (model, 0, sizeof *model);
    }
    map_clear (newer);
    memset (newer_model, 0, sizeof *newer_model);
    for (unsigned i = 0; i < steps; i++)
      step (newer, newer_model, zeroes);
    model_merge (model, newer_model);
    do {
      bool failing = unit_chance (30);

      unit_fail_alloc (failing ? 1 + unit_random (2) : 0);
      r = map_merge (map, newer, max, &cursor);
      EXPECT ((r == -1) == (unit_failed () > 0));
      EXPECT (r != -1 || errno == ENOMEM);
      unit_fail_alloc (0);
      if (unit_chance (20))
        check_both (model, newer, map, w);
    } while (r != 0);
    model_check (model, map);
    model_check (newer_model, newer);
  }
  map_free (newer);
  free (newer_model);
}
END_TEST

/* A slice does a bounded amount of work: no call finishes a large merge. */
START_TEST (test_merge_slices)
{
  struct map *newer = map_new (10);
  uint64_t cursor = 0;
  unsigned calls = 0;

  for (unsigned i = 0; i < 20000; i++) {
    EXPECT (map_put (newer, 0, (uint64_t) i * 8, 8, i) == 0);
    EXPECT (map_put (map, 1, (uint64_t) i * 80, 8, i) == 0);
  }
  EXPECT (map_zero (newer, 1, 0, MODEL_END, true) == 0);
  while (map_merge (map, newer, 100, &cursor) == 1)
    calls++;
  EXPECT (calls >= 200 + 200);
  EXPECT (calls < 4000);
  EXPECT (map_blocks (map) == 20000);
  map_free (newer);
}
END_TEST

/* The walk over the large one meets the slots in the order in which they lie
 * in the small one, too: that must not make it one run.  (It took minutes.)
 */
START_TEST (test_merge_large)
{
  enum { N = 1 << 20 };
  struct map *newer = map_new (N);
  uint64_t cursor = 0;

  EXPECT (newer != NULL);
  for (uint32_t i = 0; i < N; i++)
    EXPECT (map_put (newer, 0, (unit_random (N) * N + i) * 8, 8, i) == 0);
  while (map_merge (map, newer, 1000, &cursor) == 1)
    ;
  EXPECT (map_blocks (map) == N);
  map_free (newer);
}
END_TEST

/* What is said to be cheap to skip is skipped. */
START_TEST (test_skipping)
{
  bool may_trim = false;

  EXPECT (map_put (map, 5, 8000000, 8, 1) == 0);
  EXPECT (!map_is_empty_at (map, 5, 1000000, 1));
  EXPECT (!map_is_empty_at (map, 5, 999990, 20));
  EXPECT (!map_is_empty_at (map, 5, 0, UINT64_C (1) << 51));
  EXPECT (map_is_empty_at (map, 5, 1000001, 3));
  EXPECT (map_is_empty_at (map, 5, 1000001, 1000000));
  EXPECT (map_is_empty_at (map, 5, 0, 1000000));
  EXPECT (map_is_empty_at (map, 4, 0, UINT64_C (1) << 51));
  EXPECT (map_put (map, 5, 16000000, 8, 1) == 0);
  EXPECT (map_is_empty_at (map, 5, 1500032, 64));
  EXPECT (map_is_empty_at (map, 5, 1500032, 640));

  EXPECT (!map_is_zero_at (map, 5, 1500032, 64, &may_trim));
  EXPECT (map_zero (map, 5, 1000, MODEL_END - 1000, true) == 0);
  EXPECT (map_put (map, 5, 8000000, 8, 1) == 0);
  EXPECT (map_is_zero_at (map, 5, 1500032, 64, &may_trim) && may_trim);
  EXPECT (map_is_zero_at (map, 5, 125, 64, &may_trim));
  EXPECT (!map_is_zero_at (map, 5, 124, 64, &may_trim));
  EXPECT (!map_is_zero_at (map, 5, 1000000, 1, &may_trim));
  EXPECT (!map_is_zero_at (map, 5, 999990, 20, &may_trim));
  EXPECT (!map_is_zero_at (map, 4, 1500032, 64, &may_trim));
  EXPECT (!map_is_zero_at (map, 5, 1500032, 0, &may_trim));
  EXPECT (!map_is_empty_at (map, 5, 1500032, 1));
}
END_TEST

/* A map that has grown gives back on a clear what it has grown by, and works; also when there is no memory for a
 * table to begin anew with.
 */
START_TEST (test_clear_grown)
{
  const size_t base = _i == 0 ? 3 * MAP_SMALL : 64, more = 8 * base + 8 * MAP_SMALL;
  struct map *m = map_new (base);
  size_t began, grown;

  EXPECT (m != NULL);
  began = map_memory (m);
  for (unsigned lap = 0; lap < 3; lap++) {
    for (size_t i = 0; i < more; i++)
      EXPECT (map_put (m, 0, i * 16, 8, i) == 0);
    grown = map_memory (m);
    EXPECT (grown > began + more * 4 && map_blocks (m) == more);
    unit_fail_alloc (_i == 2 ? 1 : 0);
    map_clear (m);
    unit_fail_alloc (0);
    EXPECT (map_is_empty (m) && map_blocks (m) == 0);
    EXPECT (map_memory (m) < grown / 2);
    for (size_t i = 0; i < more; i += 97)
      EXPECT (map_is_empty_at (m, 0, i * 2, 1));
    EXPECT (map_put (m, 0, 8, 8, 77) == 0 && map_blocks (m) == 1);
    map_clear (m);
  }
  map_free (m);
}
END_TEST

/* An older map that has no room for what is merged into it: nothing is lost, and it can be gone on with. */
START_TEST (test_merge_no_memory)
{
  struct map *older = map_new (16), *newer = map_new (16);
  uint64_t cursor = 0;
  unsigned failed = 0;
  int r;

  EXPECT (older != NULL && newer != NULL);
  for (unsigned i = 0; i < 5000; i++)
    EXPECT (map_put (newer, 0, i * 16, 8, i) == 0);
  do {
    unit_fail_alloc (1);
    r = map_merge (older, newer, 100, &cursor);
    unit_fail_alloc (0);
    failed += r == -1;
    EXPECT (r != -1 || errno == ENOMEM);
    if (r == -1)
      r = map_merge (older, newer, 100, &cursor);
  } while (r == 1);
  EXPECT (r == 0 && failed > 0 && map_blocks (older) == 5000);
  EXPECT (map_merge (older, newer, 100, &cursor) == 0); /* it is over */
  for (unsigned i = 0; i < 5000; i++)
    EXPECT (!map_is_empty_at (older, 0, i * 2, 1));
  map_free (older);
  map_free (newer);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("map");
  TCase *tc = tcase_create ("map");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, test_empty);
  tcase_add_loop_test (tc, test_random, 0, 4);
  tcase_add_test (tc, test_long_zero);
  tcase_add_test (tc, test_split_zero);
  tcase_add_test (tc, test_growth);
  tcase_add_test (tc, test_growth_in_leaps);
  tcase_add_test (tc, test_growth_twice);
  tcase_add_test (tc, test_listed);
  tcase_add_test (tc, test_churn);
  tcase_add_test (tc, test_enomem);
  tcase_add_test (tc, test_merge);
  tcase_add_test (tc, test_merge_slices);
  tcase_add_test (tc, test_merge_large);
  tcase_add_test (tc, test_skipping);
  tcase_add_loop_test (tc, test_clear_grown, 0, 3);
  tcase_add_test (tc, test_merge_no_memory);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
