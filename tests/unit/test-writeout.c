/* SPDX-License-Identifier: BSD-3-Clause */
/* The write-out buffer by itself: what may be drained, and when; through how many maps a read looks. */
#include "config.h"

#include "buffers/speculation.h"
#include "buffers/writeout.h"
#include "unit/unit.h"

static struct speculation *spec;
static struct writeout *wo;

static void
setup (void)
{
  spec = speculation_new (7);
  wo = writeout_new ();
  EXPECT (spec != NULL);
  EXPECT (wo != NULL);
}

static void
teardown (void)
{
  unit_fail_alloc (0);
  speculation_free (spec);
  writeout_free (wo);
}

/* A checkpoint of several epochs is drained whole or not at all. */
START_TEST (test_partial)
{
  struct epoch *done;
  uint64_t target;

  for (unsigned i = 0; i < 3; i++) {
    EXPECT (speculation_put (spec, 0, i * 8, 8, i) == 0);
    EXPECT (speculation_seal (spec) == 0);
  }
  writeout_add (wo, 9, 0, 1, speculation_take (spec, 9));
  EXPECT (writeout_newest (wo) == 9 && writeout_merged (wo) == 0);
  EXPECT (writeout_begin (wo, &target) == NULL && errno == ENOENT);
  for (unsigned i = 0; i < 3; i++) {
    do {
      EXPECT (i == 0 || writeout_begin (wo, &target) == NULL);
      EXPECT (i == 0 || errno == EAGAIN);
      EXPECT (writeout_merge (wo, 1, &done) == (i < 2 || !done));
    } while (done == NULL);
    epoch_free (done);
  }
  EXPECT (writeout_merged (wo) == 9);
  EXPECT (writeout_merge (wo, 1, &done) == 0 && done == NULL);
  const struct map *m = writeout_begin (wo, &target);
  EXPECT (m != NULL && target == 9 && map_blocks (m) == 3);
  EXPECT (writeout_begin (wo, &target) == NULL && errno == EBUSY);
  /* What comes in meanwhile does not change what is to be drained. */
  writeout_add (wo, 10, 0, 1, NULL);
  EXPECT (writeout_resume (wo, &target) == m && target == 9);
  map_free (writeout_end (wo));
  EXPECT (writeout_resume (wo, &target) == NULL && target == 0);
  EXPECT (writeout_begin (wo, &target) != NULL && target == 10);
  map_free (writeout_end (wo));
  EXPECT (writeout_is_empty (wo));

  /* An empty checkpoint moves the watermark. */
  writeout_add (wo, 12, 0, 1, NULL);
  EXPECT (!writeout_is_empty (wo));
  m = writeout_begin (wo, &target);
  EXPECT (m != NULL && target == 12 && map_is_empty (m));
  map_free (writeout_end (wo));
  EXPECT (writeout_is_empty (wo));
}
END_TEST

/* However many checkpoints are kept, a read looks through a bounded number of maps. */
START_TEST (test_bounded)
{
  const struct writeout_limits limits[] = {
    { .checkpoints = 5000 / 8 }, { .ns = 5000 / 8 }, { .checkpoints = 1 },
    { .bytes = 1 }, { .ns = 1 },
  };

  for (unsigned k = 0; k < sizeof limits / sizeof limits[0]; k++) {
    struct writeout *w = writeout_new ();

    EXPECT (w != NULL);
    writeout_set_limits (w, &limits[k]);
    for (unsigned i = 1; i <= 5000; i++) {
      struct epoch *e = NULL, *done;

      if (i % 3) {
        e = epoch_new ();
        EXPECT (e != NULL && map_put (e->map, 0, i * 8, 8, i) == 0);
        e->bytes = 4096;
      }
      writeout_add (w, i, i, 1, e);
      while (writeout_merge (w, SIZE_MAX, &done) == 1 || done) {
        epoch_free (done);
        done = NULL;
      }
      EXPECT (writeout_segments (w) <= (k < 2 ? 10 : WRITEOUT_SEGMENTS));
    }
    EXPECT (writeout_segments (w) >= (k < 2 ? 8 : WRITEOUT_SEGMENTS));
    writeout_free (w);
  }
}
END_TEST

/* Who closes segments for views closes a few only, so that those that are full are always closed. */
START_TEST (test_early)
{
  struct writeout_limits limits = { .checkpoints = 100 / 8 };
  struct writeout_oldest oldest;
  unsigned cut = 0;

  writeout_set_limits (wo, &limits);
  for (unsigned i = 1; i <= 1000; i++) {
    uint64_t target;

    writeout_add (wo, i, i, 1, NULL);
    if (writeout_may_cut (wo)) {
      EXPECT (writeout_cut (wo) == 0);
      EXPECT (writeout_may_cut (wo));   /* there is nothing to close */
      cut++;
    }
    while (writeout_get_oldest (wo, &oldest) && oldest.newer >= 100) {
      EXPECT (writeout_begin (wo, &target) != NULL && target == oldest.last);
      map_free (writeout_end (wo));
    }
    if (i > 200) {
      struct writeout_stat st;

      writeout_get_stat (wo, &st);
      EXPECT (st.checkpoints >= 100 && st.checkpoints < 100 + 12);
    }
    EXPECT (writeout_segments (wo) <= 1 + WRITEOUT_EARLY + 100 / 12 + 1);
  }
  EXPECT (cut > WRITEOUT_EARLY);
}
END_TEST

/* Checkpoints without a write come with the one before that is not merged yet. */
START_TEST (test_nothing_written)
{
  struct writeout_stat st;
  struct epoch *e = epoch_new (), *done;
  uint64_t target;

  EXPECT (e != NULL && map_put (e->map, 0, 0, 8, 5) == 0);
  writeout_add (wo, 3, 30, 1, e);
  writeout_add (wo, 4, 40, 1, NULL);
  writeout_add (wo, 7, 70, 2, NULL);
  writeout_get_stat (wo, &st);
  EXPECT (st.checkpoints == 4 && writeout_newest (wo) == 7 && writeout_merged (wo) == 0);
  while (writeout_merge (wo, SIZE_MAX, &done) == 1 || done)
    epoch_free (done);
  EXPECT (writeout_merged (wo) == 7);
  EXPECT (writeout_begin (wo, &target) != NULL && target == 7);
  map_free (writeout_end (wo));
  EXPECT (writeout_is_empty (wo));
}
END_TEST

/* Without memory nothing begins, and what is there waits. */
START_TEST (test_no_memory)
{
  struct writeout *w;
  uint64_t target;
  unsigned n = 0;

  do {
    unit_fail_alloc (++n);
    w = writeout_new ();
    EXPECT (w != NULL || errno == ENOMEM);
    unit_fail_alloc (0);
  } while (w == NULL);
  EXPECT (n > 2);
  writeout_free (w);

  writeout_add (wo, 9, 0, 1, NULL);
  unit_fail_alloc (1);
  EXPECT (writeout_begin (wo, &target) == NULL && errno == ENOMEM);
  unit_fail_alloc (0);
  EXPECT (!writeout_is_empty (wo));
  EXPECT (writeout_begin (wo, &target) != NULL && target == 9);
  map_free (writeout_end (wo));
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("writeout");
  TCase *tc = tcase_create ("writeout");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, test_partial);
  tcase_add_test (tc, test_bounded);
  tcase_add_test (tc, test_early);
  tcase_add_test (tc, test_nothing_written);
  tcase_add_test (tc, test_no_memory);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
