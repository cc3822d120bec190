/* SPDX-License-Identifier: BSD-3-Clause */
/* Writers, a committer, write-out and readers at once, on a journal that is
 * hardly larger than what they keep in it.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "unit/journal-help.h"

#define MIB (UINT64_C (1) << 20)
#define WRITERS 4
#define BLOCKS 4096u            /* of the model's disk; each writer has its own */
#define COMMITS 60u

static struct help h;

/* The replica's lock and what it guards. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t room = PTHREAD_COND_INITIALIZER;
static uint64_t epoch = 1;
static uint64_t now[BLOCKS];
static uint32_t where[BLOCKS];
static uint64_t snap[BLOCKS];
static bool stop;

struct writer {
  pthread_t thread;
  unsigned n;
  uint64_t random;
  uint64_t writes, full;
};

static unsigned
below (struct writer *w, unsigned n)
{
  w->random = w->random * UINT64_C (6364136223846793005) + 1;
  return (w->random >> 33) % n;
}

static void
write_one (struct writer *w)
{
  const unsigned mine = BLOCKS / WRITERS;
  unsigned n = 1 + below (w, below (w, 8) ? 4 : 200);
  unsigned block = w->n * mine + below (w, mine - n);
  struct journal_span span;
  uint32_t crc[JOURNAL_CHUNK_BLOCKS];
  uint64_t stamp = (w->writes << 8 | w->n) << 12;

  if (journal_reserve (h.j, n, &span) == -1) {
    ck_assert_int_eq (errno, ENOSPC);
    w->full++;
    pthread_mutex_lock (&lock);
    if (!stop)
      pthread_cond_wait (&room, &lock);
    pthread_mutex_unlock (&lock);
    return;
  }
  for (unsigned i = 0; i < span.nblocks; i++) {
    char *p = (char *) span.mem + i * JOURNAL_BLOCK;

    help_fill (p, stamp + i);
    crc[i] = crc32c (p, JOURNAL_BLOCK, 0);
  }
  journal_filled (h.j, &span, crc);
  if (below (w, 20) == 0 || journal_credit (h.j, 1, span.nblocks) == -1) {
    journal_abandon (h.j, &span);
    return;
  }
  SCOPED_LOCK (&lock);
  const struct journal_extent ext = {
    .flags = JOURNAL_DATA, .nsectors = span.nblocks * 8,
    .sector = block * UINT64_C (8), .block = span.block,
  };
  journal_publish (h.j, epoch, &ext, 1);
  for (unsigned i = 0; i < span.nblocks; i++) {
    now[block + i] = stamp + i;
    where[block + i] = span.block + i;
  }
  w->writes++;
}

static void *
writer (void *arg)
{
  struct writer *w = arg;

  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED))
    write_one (w);
  return NULL;
}

/* Read what is published, from the buffers or the file; the lock keeps it
 * from being forgotten.
 */
static void *
reader (void *arg)
{
  struct writer *w = arg;

  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    unsigned b = below (w, BLOCKS);
    uint64_t got[JOURNAL_BLOCK / 8];
    SCOPED_LOCK (&lock);

    if (where[b] == 0)
      continue;
    ck_assert_int_eq (journal_read (h.j, where[b], 0, JOURNAL_BLOCK, got, NULL),
                      0);
    ck_assert_uint_eq (got[0], now[b]);
  }
  return NULL;
}

static void
commit_change (struct journal_state *state, void *opaque)
{
  state->checkpoint.id = *(uint64_t *) opaque;
}

static int
replay (void *opaque, uint64_t e, const struct journal_extent *ext)
{
  uint64_t *disk = opaque;
  uint64_t got;

  (void) e;
  for (unsigned i = 0; i < ext->nsectors / 8; i++) {
    if (journal_read (h.j, ext->block + i, 0, sizeof got, &got, NULL) == -1)
      return -1;
    disk[ext->sector / 8 + i] = got;
  }
  return 0;
}

START_TEST (all_at_once)
{
  struct writer w[WRITERS + 1];
  uint64_t *disk = calloc (BLOCKS, sizeof *disk);
  uint64_t done = 0, full = 0;

  help_open (&h, 12 * MIB, false);
  ck_assert_int_eq (journal_run (h.j), 0);
  for (unsigned i = 0; i <= WRITERS; i++) {
    w[i] = (struct writer) { .n = i, .random = help_random (), .writes = 1 };
    ck_assert_int_eq (pthread_create (&w[i].thread, NULL,
                                      i < WRITERS ? writer : reader, &w[i]), 0);
  }
  for (unsigned c = 0; c < COMMITS; c++) {
    struct journal_commit commit = { .kind = JOURNAL_REC_COMMIT,
                                     .change = commit_change };
    uint64_t from;

    pthread_mutex_lock (&lock);
    journal_seal (h.j, epoch);
    commit.epoch = epoch++;
    commit.opaque = &commit.epoch;
    memcpy (snap, now, sizeof snap);
    pthread_mutex_unlock (&lock);
    ck_assert_int_eq (journal_do_commit (h.j, &commit), 0);
    if (c % 5 != 4)
      continue;
    /* Write out: what is replayed is the model; then nobody may read it. */
    from = done;
    ck_assert_int_eq (journal_replay (h.j, from, commit.epoch, replay, disk,
                                      NULL), 0);
    ck_assert_mem_eq (disk, snap, sizeof snap);
    pthread_mutex_lock (&lock);
    for (unsigned b = 0; b < BLOCKS; b++)
      if (now[b] == snap[b])
        where[b] = 0;
    pthread_mutex_unlock (&lock);
    done = commit.epoch;
    ck_assert_int_eq (help_watermark (&h, done), 0);
    pthread_cond_broadcast (&room);
  }
  pthread_mutex_lock (&lock);
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  pthread_mutex_unlock (&lock);
  pthread_cond_broadcast (&room);
  for (unsigned i = 0; i <= WRITERS; i++) {
    pthread_join (w[i].thread, NULL);
    full += w[i].full;
  }
  printf ("%llu times full\n", (unsigned long long) full);
  printf ("TRIED invariant=10 test=unit/test-journal-threads what=\"writes into a journal that is nearly full\" n=%llu\n",
          (unsigned long long) (w[0].writes + w[1].writes + w[2].writes + w[3].writes));
  help_close (&h, true);
  help_open (&h, 0, false);
  ck_assert_uint_eq (h.checkpoint, COMMITS);
  ck_assert_int_eq (journal_verify (h.j, done, COMMITS, NULL, NULL, NULL), 0);
  free (disk);
}
END_TEST

static void
setup (void)
{
  help_seed ();
  help_init (&h, &io_posix, 48 * MIB);
  help_create (&h);
}

static void
teardown (void)
{
  if (h.j)
    help_close (&h, true);
  help_remove (&h);
}

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("threads");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 300);
  tcase_add_test (t, all_at_once);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
