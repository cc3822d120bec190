/* SPDX-License-Identifier: BSD-3-Clause */
/* Epochs that stay sealed for long take no more memory than what they hold needs, and hold the same;
 * and what needs no memory at all.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "buffers/map-impl.h"
#include "buffers/speculation.h"
#include "common/bytes.h"
#include "unit/unit.h"

#define SPARE 8                 /* newest sealed epochs that are left as they are */
#define FIXED 8192u             /* bytes that any epoch may take */
#define PER_BLOCK 64u

static struct speculation *spec;

static void
setup (void)
{
  unit_seed ();
  spec = speculation_new (1);
  EXPECT (spec);
}

static void
teardown (void)
{
  unit_fail_alloc (0);
  speculation_free (spec);
}

static struct epoch *
sealed (uint64_t number)
{
  struct epoch *e = speculation_newest (spec)->older;

  while (e && e->number != number)
    e = e->older;
  return e;
}

static void
restock (void)
{
  while (speculation_spares_wanted (spec) > 0) {
    struct epoch *e = epoch_new ();

    EXPECT (e != NULL);
    speculation_restock (spec, e);
  }
}

static void
seal (void)
{
  restock ();
  EXPECT (speculation_seal (spec) == 0);
}

/* As the replica does it.  Returns how many epochs were done; -1: no memory. */
static int
tighten (size_t max, unsigned drop)
{
  uint64_t number;
  size_t blocks;
  int done = 0;

  while ((blocks = speculation_loose (spec, &number)) > 0) {
    struct map *map = map_new (blocks), *left = NULL;
    uint64_t cursor = 0;
    int r;

    if (map == NULL)
      return -1;
    while ((r = speculation_tighten (spec, number, map, max, &cursor, &left)) == 1) {
      EXPECT (left == NULL);
      if (unit_chance (drop)) {
        /* It is committed meanwhile. */
        struct epoch *e = speculation_take (spec, number);

        EXPECT (e && e->number == number);
        while (e) {
          struct epoch *older = e->older;

          epoch_free (e);
          e = older;
        }
      }
    }
    if (r == -1) {
      map_free (map);
      return -1;
    }
    EXPECT (left);
    EXPECT ((left == map) == (sealed (number) == NULL));
    map_free (left);
    done++;
  }
  return done;
}

/* Epoch N has N % 7 single blocks and more of N % 1000 in a row. */
static void
fill (uint64_t n, unsigned blocks)
{
  for (unsigned i = 0; i < n % 7; i++)
    EXPECT (speculation_put (spec, i % 3, (n * 1000 + i * 77) * 8, 8, n * 10000 + i) == 0);
  if (blocks)
    EXPECT (speculation_put (spec, 3, n * 8, blocks * 8, n * 10000 + 100) == 0);
  if (n % 5 == 0)
    EXPECT (speculation_zero (spec, 4, n * 1000, 100000, n % 2) == 0);
}

static void
check_map (const struct epoch *e, unsigned blocks)
{
  struct map_hit hit[MAP_BLOCK_SECTORS];
  uint64_t n = e->number;

  EXPECT (map_blocks (e->map) == n % 7 + blocks);
  for (unsigned i = 0; i < n % 7; i++) {
    EXPECT (map_get (e->map, i % 3, n * 1000 + i * 77, 0xff, hit) == 1);
    EXPECT (hit[0].mask == 0xff && hit[0].loc == n * 10000 + i);
  }
  for (unsigned i = 0; i < blocks; i++) {
    EXPECT (map_get (e->map, 3, n + i, 0xff, hit) == 1);
    EXPECT (hit[0].mask == 0xff && hit[0].loc == n * 10000 + 100 + i);
  }
  EXPECT (map_get (e->map, 3, n + blocks, 0xff, hit) == 0);
  if (n % 5 == 0) {
    bool may_trim;

    EXPECT (map_is_zero_at (e->map, 4, n * 125 + 1, 12000, &may_trim));
    EXPECT (may_trim == n % 2);
  }
  else
    EXPECT (map_get (e->map, 4, n * 125 + 1, 0xff, hit) == 0);
}

static unsigned
blocks_of (uint64_t n)
{
  static const unsigned sizes[] = { 0, 0, 1, 64, 700, 3000, 5000, 20000, 60000 };

  return sizes[n * 2654435761u % (sizeof sizes / sizeof sizes[0])];
}

START_TEST (test_tight)
{
  const unsigned many = 150;

  for (uint64_t n = 1; n <= many; n++) {
    fill (n, blocks_of (n));
    seal ();
    if (unit_chance (30))
      EXPECT (tighten (1 + unit_random (2000), 0) >= 0);
  }
  EXPECT (tighten (512, 0) >= 0);
  EXPECT (tighten (512, 0) == 0);
  for (uint64_t n = 1; n <= many; n++) {
    struct epoch *e = sealed (n);

    EXPECT (e);
    check_map (e, blocks_of (n));
    if (n + SPARE <= many)
      ck_assert_msg (map_memory (e->map) - zeroset_memory (&e->map->zeroes) <=
                     FIXED + PER_BLOCK * map_blocks (e->map),
                     "epoch %u: %zu bytes for %zu blocks", (unsigned) n,
                     map_memory (e->map), map_blocks (e->map));
  }
}
END_TEST

/* Commits come in between. */
START_TEST (test_taken)
{
  for (uint64_t n = 1; n <= 60; n++) {
    fill (n, blocks_of (n));
    seal ();
    EXPECT (tighten (1 + unit_random (500), 5) >= 0);
    for (const struct epoch *e = speculation_newest (spec)->older; e; e = e->older)
      check_map (e, blocks_of (e->number));
  }
}
END_TEST

/* Without memory an epoch stays as it is. */
START_TEST (test_no_memory)
{
  int r;

  for (uint64_t n = 1; n <= 20; n++) {
    fill (n, blocks_of (n));
    seal ();
  }
  for (unsigned nth = 1; ; nth++) {
    unit_fail_alloc (nth);
    r = tighten (300, 0);
    if (unit_failed () == 0)
      break;
    unit_fail_alloc (0);
    for (uint64_t n = 1; n <= 20; n++)
      check_map (sealed (n), blocks_of (n));
    EXPECT (r == -1 || nth > 1);
  }
  unit_fail_alloc (0);
  EXPECT (r >= 0);
  for (uint64_t n = 1; n <= 20; n++)
    check_map (sealed (n), blocks_of (n));
}
END_TEST

/* Two seals, and after that a take of all, need no memory. */
START_TEST (test_spares)
{
  for (unsigned i = 0; i < 20; i++) {
    uint64_t first = speculation_open_number (spec);
    struct epoch *e;

    restock ();
    unsigned seals = 0, taken = 0;

    unit_fail_alloc (1);
    while (speculation_seal (spec) == 0)
      seals++;
    int errno_c = errno;
    uint64_t number = speculation_open_number (spec);
    e = speculation_take_all (spec, number + 10);
    struct epoch *f = speculation_take_all (spec, number + 20);
    int errno_f = errno;
    unit_fail_alloc (0);

    EXPECT (seals == (i == 0 ? 3 : 2));
    EXPECT (errno_c == ENOMEM);
    EXPECT (f == NULL && errno_f == ENOMEM);
    EXPECT (number == first + seals);
    EXPECT (e != NULL && e->number == number);
    EXPECT (speculation_open_number (spec) == number + 10);
    while (e) {
      struct epoch *older = e->older;

      epoch_clear (e);
      EXPECT (e->older == NULL && e->bytes == 0 && map_is_empty (e->map));
      speculation_restock (spec, e);
      e = older;
      taken++;
    }
    EXPECT (taken == seals + 1);
    EXPECT (speculation_spares_wanted (spec) == 0);
    EXPECT (speculation_seal (spec) == 0);
    EXPECT (speculation_spares_wanted (spec) == (i == 0 ? 0 : 1));
    e = speculation_take_all (spec, number + 10);
    epoch_free (e->older);
    epoch_free (e);
  }
  /* One too many is taken, too. */
  restock ();
  while (speculation_spares_room (spec))
    speculation_restock (spec, epoch_new ());
  speculation_restock (spec, epoch_new ());
  EXPECT (speculation_spares_wanted (spec) == 0);
}
END_TEST

/* As long as each epoch comes back soon, nobody has to make one. */
START_TEST (test_spares_come_back)
{
  for (unsigned i = 0; i < 100; i++) {
    struct epoch *e;

    EXPECT (speculation_seal (spec) == 0);
    EXPECT (speculation_spares_wanted (spec) == 0);
    e = speculation_take_all (spec, speculation_open_number (spec) + 1);
    while (e) {
      struct epoch *older = e->older;

      epoch_clear (e);
      EXPECT (speculation_spares_room (spec));
      speculation_restock (spec, e);
      e = older;
    }
  }
}
END_TEST

/* Without memory there is none, or no more of it; what is there stays. */
START_TEST (test_refused)
{
  struct speculation *s;
  struct speculation_stat st;
  struct epoch *e;
  unsigned n = 0, refused = 0;

  do {
    unit_fail_alloc (++n);
    s = speculation_new (1);
    EXPECT (s != NULL || errno == ENOMEM);
    unit_fail_alloc (0);
  } while (s == NULL);
  EXPECT (n > 4);
  speculation_free (s);

  unit_fail_alloc (1);
  e = epoch_of (NULL);
  EXPECT (e == NULL && errno == ENOMEM);
  for (unsigned i = 0; i < 100000 && refused < 2; i++) {
    int r = refused == 0 ? speculation_put (spec, 0, i * 16, 8, i) :
      speculation_zero (spec, 1, (uint64_t) i * 99, 8, false);

    if (r == -1) {
      EXPECT (errno == ENOMEM);
      speculation_get_stat (spec, &st);
      EXPECT (st.extents == i);
      unit_fail_alloc (0);
      EXPECT (speculation_put (spec, 0, i * 16, 8, i) == 0);
      refused++;
      unit_fail_alloc (1);
    }
  }
  unit_fail_alloc (0);
  EXPECT (refused == 2);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("speculation");
  TCase *tc = tcase_create ("tight");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_set_timeout (tc, 60);
  tcase_add_test (tc, test_tight);
  tcase_add_test (tc, test_taken);
  tcase_add_test (tc, test_no_memory);
  tcase_add_test (tc, test_spares);
  tcase_add_test (tc, test_spares_come_back);
  tcase_add_test (tc, test_refused);
  suite_add_tcase (suite, tc);
  return unit_run (suite);
}
