/* SPDX-License-Identifier: BSD-3-Clause */
/* Writers that wait for a slow device, or for room in the journal, do so in a line, and a commit
 * waits for nothing but what it needs.  The device does not write before the test lets it:
 * nothing here depends on time.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "common/host.h"
#include "journal/internal.h"
#include "unit/journal-help.h"
#include "unit/unit.h"

#define MIB (UINT64_C (1) << 20)
#define BUFFERS STAGING_MIN_BUFFERS
#define WRITERS 8u
#define DEADLINE_S 120

static struct help h;

/* --- The device --- */

static struct io_ops gate_ops;
static struct io_fs gate_fs;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_cond = PTHREAD_COND_INITIALIZER;
static bool gate_shut;
static unsigned tokens;         /* so many writes may pass */
static unsigned at_gate;        /* writes that wait before it */
static bool gate_fails;
static uint64_t passed_bytes;

static ssize_t
gate_pwritev (struct io_file *file, const struct iovec *iov, int n,
              uint64_t off)
{
  ssize_t r;

  pthread_mutex_lock (&gate);
  at_gate++;
  pthread_cond_broadcast (&gate_cond);
  while (gate_shut && tokens == 0)
    pthread_cond_wait (&gate_cond, &gate);
  at_gate--;
  tokens -= gate_shut;
  pthread_mutex_unlock (&gate);
  if (gate_fails) {
    errno = EIO;
    return -1;
  }
  r = io_posix.ops->pwritev (file, iov, n, off);
  pthread_mutex_lock (&gate);
  passed_bytes += r > 0 ? r : 0;
  pthread_mutex_unlock (&gate);
  return r;
}

static void
gate_set (bool shut, unsigned n)
{
  SCOPED_LOCK (&gate);

  gate_shut = shut;
  tokens = shut ? tokens + n : 0;
  pthread_cond_broadcast (&gate_cond);
}

/* --- Writers --- */

struct writer {
  pthread_t thread;
  uint32_t want;
  struct journal_span span;
  int result, error;
  journal_full_fn full;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static unsigned served;

static void
until (const bool *what)
{
  struct timespec ts;

  clock_gettime (CLOCK_REALTIME, &ts);
  ts.tv_sec += DEADLINE_S;
  while (!*what)
    EXPECT (pthread_cond_timedwait (&cond, &lock, &ts) == 0);
}

static void *
write_main (void *arg)
{
  struct writer *w = arg;

  w->result = journal_reserve_or_wait (h.j, w->want, &w->span, w->full, w);
  w->error = errno;
  SCOPED_LOCK (&lock);
  served++;
  pthread_cond_broadcast (&cond);
  return NULL;
}

static unsigned
line_length (void)
{
  SCOPED_LOCK (&h.j->lock);
  unsigned n = 0;

  for (const struct waiter *w = h.j->line; w; w = w->next)
    n++;
  return n;
}

static uint32_t
chunks_free (struct journal *j)
{
  SCOPED_LOCK (&j->lock);

  return chunks_free_locked (j);
}

static void
poll_line (unsigned n)
{
  const struct timespec ms = { .tv_nsec = 1000000 };

  for (unsigned i = 0; line_length () != n; i++) {
    EXPECT (i < DEADLINE_S * 1000);
    nanosleep (&ms, NULL);
  }
}

/* W comes to wait, behind those who do. */
static void
join_line (struct writer *w, uint32_t want, journal_full_fn full)
{
  unsigned n = line_length ();

  *w = (struct writer) { .want = want, .full = full };
  EXPECT (pthread_create (&w->thread, NULL, write_main, w) == 0);
  poll_line (n + 1);
}

static void
poll_served (unsigned n)
{
  SCOPED_LOCK (&lock);
  struct timespec ts;

  clock_gettime (CLOCK_REALTIME, &ts);
  ts.tv_sec += DEADLINE_S;
  while (served < n)
    EXPECT (pthread_cond_timedwait (&cond, &lock, &ts) == 0);
}

static void
fill (const struct journal_span *span)
{
  uint32_t crc[JOURNAL_CHUNK_BLOCKS];

  for (uint32_t i = 0; i < span->nblocks; i++) {
    char *p = (char *) span->mem + (size_t) i * JOURNAL_BLOCK;

    help_fill (p, span->block + i);
    crc[i] = crc32c (p, JOURNAL_BLOCK, 0);
  }
  journal_filled (h.j, span, crc);
}

static void
reserve_chunk (struct journal_span *span)
{
  EXPECT (journal_reserve (h.j, JOURNAL_CHUNK_BLOCKS, span) == 0);
  EXPECT (span->nblocks == JOURNAL_CHUNK_BLOCKS);
  fill (span);
}

/* All buffers are full, and the device takes nothing. */
static void
fill_buffers (void)
{
  struct journal_span span;

  gate_set (true, 0);
  for (unsigned i = 0; i < BUFFERS; i++)
    reserve_chunk (&span);
}

static void
join (struct writer *w, unsigned n)
{
  for (unsigned i = 0; i < n; i++)
    EXPECT (pthread_join (w[i].thread, NULL) == 0);
}

/* --- Tests --- */

START_TEST (one_chunk_serves_all)
{
  struct writer w[WRITERS];
  struct journal_span late;

  fill_buffers ();
  for (unsigned i = 0; i < WRITERS; i++)
    join_line (&w[i], 1 + i, NULL);
  gate_set (true, 1);           /* one buffer becomes free, and no other */
  poll_line (0);
  /* There is room left: who comes now does not wait. */
  EXPECT (journal_reserve (h.j, 1, &late) == 0);
  gate_set (false, 0);          /* for those who help to push */
  join (w, WRITERS);
  /* Nobody came before who was there first. */
  for (unsigned i = 0; i < WRITERS; i++) {
    EXPECT (w[i].result == 0 && w[i].span.nblocks == 1 + i);
    EXPECT (i == 0 || w[i].span.block == w[i - 1].span.block + i);
  }
  EXPECT (late.block == w[WRITERS - 1].span.block + WRITERS);
  for (unsigned i = 0; i < WRITERS; i++)
    fill (&w[i].span);
  fill (&late);
}
END_TEST

START_TEST (long_writes_do_not_overtake)
{
  static const uint32_t want[] = { JOURNAL_CHUNK_BLOCKS, 1, JOURNAL_CHUNK_BLOCKS, 2 };
  struct writer w[4];

  fill_buffers ();
  for (unsigned i = 0; i < 4; i++)
    join_line (&w[i], want[i], NULL);
  gate_set (true, 1);           /* a chunk for the first */
  poll_line (3);
  /* The next one: one block for the second, and all but that for the third. */
  gate_set (true, 1);
  poll_line (1);
  gate_set (true, 1);
  poll_line (0);
  gate_set (false, 0);          /* for those who help to push */
  join (w, 4);
  EXPECT (w[0].span.nblocks == JOURNAL_CHUNK_BLOCKS);
  EXPECT (w[1].span.nblocks == 1 && w[2].span.nblocks == JOURNAL_CHUNK_BLOCKS - 1);
  EXPECT (w[2].span.block == w[1].span.block + 1);
  EXPECT (w[3].span.nblocks == 2);
  for (unsigned i = 0; i < 4; i++)
    fill (&w[i].span);
}
END_TEST

START_TEST (device_fails)
{
  struct writer w[WRITERS];

  fill_buffers ();
  for (unsigned i = 0; i < WRITERS; i++)
    join_line (&w[i], 1, NULL);
  gate_fails = true;
  gate_set (false, 0);
  poll_served (WRITERS);
  join (w, WRITERS);
  for (unsigned i = 0; i < WRITERS; i++)
    EXPECT (w[i].result == -1 && w[i].error == EIO);
  EXPECT (line_length () == 0);
}
END_TEST

/* --- A journal that is full --- */

static struct writer *in_full;  /* whose FULL is being called */
static unsigned full_calls;
static uint64_t full_since;     /* what it was told */
static bool let_go;
static int verdict;             /* what FULL will return */

static int
full (void *opaque, uint64_t since)
{
  SCOPED_LOCK (&lock);

  EXPECT (in_full == NULL && since > 0);
  in_full = opaque;
  full_calls++;
  full_since = since;
  pthread_cond_broadcast (&cond);
  until (&let_go);
  let_go = false;
  in_full = NULL;
  errno = ENOSPC;
  return verdict;
}

static void
expect_full_of (const struct writer *w, unsigned call)
{
  SCOPED_LOCK (&lock);
  struct timespec ts;

  clock_gettime (CLOCK_REALTIME, &ts);
  ts.tv_sec += DEADLINE_S;
  while (full_calls < call)
    EXPECT (pthread_cond_timedwait (&cond, &lock, &ts) == 0);
  EXPECT (in_full == w && full_calls == call);
}

static void
let_full_return (int r)
{
  SCOPED_LOCK (&lock);

  verdict = r;
  let_go = true;
  pthread_cond_broadcast (&cond);
}

START_TEST (no_room)
{
  struct journal_span *spans = calloc (64, sizeof *spans);
  struct writer w[3], late;
  unsigned n = 0;

  EXPECT (spans != NULL);
  for (; journal_reserve (h.j, JOURNAL_CHUNK_BLOCKS, &spans[n]) == 0; n++) {
    EXPECT (n < 63);
    fill (&spans[n]);
  }
  EXPECT (errno == ENOSPC && n > 2);
  for (unsigned i = 0; i < 3; i++)
    join_line (&w[i], 10, full);
  expect_full_of (&w[0], 1);
  let_full_return (0);          /* and there is none after all: he is asked again, nobody else */
  expect_full_of (&w[0], 2);
  let_full_return (-1);         /* he gives up; the others keep their order */
  expect_full_of (&w[1], 3);
  poll_served (1);
  EXPECT (w[0].result == -1 && w[0].error == ENOSPC);
  join_line (&late, 10, full);
  journal_abandon (h.j, &spans[0]);     /* room for one chunk */
  let_full_return (0);
  poll_served (4);
  for (unsigned i = 1; i < 3; i++)
    EXPECT (w[i].result == 0);
  EXPECT (late.result == 0 && in_full == NULL);
  EXPECT (w[2].span.block == w[1].span.block + 10);
  EXPECT (late.span.block == w[2].span.block + 10);
  join (w, 3);
  join (&late, 1);
  fill (&w[1].span);
  fill (&w[2].span);
  fill (&late.span);
  free (spans);
}
END_TEST

/* Room comes, and is his, while he is told that there is none. */
START_TEST (served_meanwhile)
{
  struct journal_span *spans = calloc (64, sizeof *spans);
  struct writer w[2], late;
  unsigned n = 0;

  EXPECT (spans != NULL);
  for (; journal_reserve (h.j, JOURNAL_CHUNK_BLOCKS, &spans[n]) == 0; n++) {
    EXPECT (n < 63);
    fill (&spans[n]);
  }
  for (unsigned i = 0; i < (_i ? 2u : 1u); i++)
    join_line (&w[i], 10, full);
  expect_full_of (&w[0], 1);
  journal_abandon (h.j, &spans[0]);     /* room for one chunk ... */
  late = (struct writer) { .want = 10, .full = full };
  EXPECT (pthread_create (&late.thread, NULL, write_main, &late) == 0);
  poll_line (0);                /* ... and whoever comes serves the line */
  let_full_return (-1);
  join (w, _i ? 2 : 1);
  join (&late, 1);
  for (unsigned i = 0; i < (_i ? 2u : 1u); i++) {
    EXPECT (w[i].result == 0);
    fill (&w[i].span);
  }
  EXPECT (late.result == 0);
  fill (&late.span);
  free (spans);
}
END_TEST

/* Who waited long for the device has not waited for room meanwhile. */
START_TEST (no_room_any_more)
{
  struct journal_span span;
  struct writer w[2];
  uint64_t joined;

  while (chunks_free (h.j) > KEEP_FOR_TABLES + 1)
    reserve_chunk (&span);
  gate_set (true, 0);
  join_line (&w[0], JOURNAL_CHUNK_BLOCKS, full);
  join_line (&w[1], 1, full);
  joined = host_monotonic_ns ();
  gate_set (false, 0);
  expect_full_of (&w[1], 1);    /* the other one got the last chunk */
  EXPECT (full_since >= joined);
  let_full_return (-1);
  join (w, 2);
  EXPECT (w[0].result == 0 && w[0].span.nblocks == JOURNAL_CHUNK_BLOCKS);
  EXPECT (w[1].result == -1 && w[1].error == ENOSPC);
  fill (&w[0].span);
}
END_TEST

/* A commit whose epoch is small does not write what came behind it first. */
START_TEST (commit_of_its_own)
{
  uint64_t before, epoch;

  EXPECT (help_write (&h, 0, 1) == 0);
  epoch = help_seal (&h);
  EXPECT (help_write (&h, 1, JOURNAL_CHUNK_BLOCKS - 1) == 0);   /* the rest of the chunk */
  for (unsigned i = 0; i < BUFFERS - 3; i++)
    EXPECT (help_write (&h, 0, JOURNAL_CHUNK_BLOCKS) == 0);
  before = passed_bytes;
  EXPECT (help_commit (&h, epoch, NULL) == 0);
  printf ("a commit of one block wrote %llu bytes\n", (unsigned long long) (passed_bytes - before));
  EXPECT (passed_bytes - before < 2 * MIB);
  /* The rest follows with its own. */
  epoch = help_seal (&h);
  before = passed_bytes;
  EXPECT (help_commit (&h, epoch, NULL) == 0);
  EXPECT (passed_bytes - before > (BUFFERS - 4) * MIB);
}
END_TEST

static void
setup (void)
{
  help_init (&h, &io_posix, 32 * MIB);
  gate_ops = *io_posix.ops;
  gate_ops.pwritev = gate_pwritev;
  gate_fs = (struct io_fs) { .ops = &gate_ops, .opaque = io_posix.opaque };
  h.fs = &gate_fs;
  help_create (&h);
  help_open (&h, BUFFERS * MIB, false);
}

static void
teardown (void)
{
  help_close (&h, true);
  h.fs = &io_posix;
  help_remove (&h);
}

#define CREDITORS 16u

static pthread_barrier_t together;

static void *
credit_main (void *arg)
{
  int *result = arg;

  (void) pthread_barrier_wait (&together);
  *result = journal_credit (h.j, 1, 1);
  return NULL;
}

/* Many who find no room for their descriptors at once: one table chunk is got ready, and not one for each, which would leave
 * no buffer for data.
 */
START_TEST (one_table_for_all)
{
  pthread_t thread[CREDITORS];
  int result[CREDITORS];

  ck_assert_uint_eq (h.j->tab.nready, 0);
  ck_assert_int_eq (pthread_barrier_init (&together, NULL, CREDITORS), 0);
  for (unsigned i = 0; i < CREDITORS; i++)
    ck_assert_int_eq (pthread_create (&thread[i], NULL, credit_main, &result[i]), 0);
  for (unsigned i = 0; i < CREDITORS; i++) {
    ck_assert_int_eq (pthread_join (thread[i], NULL), 0);
    ck_assert_int_eq (result[i], 0);
  }
  ck_assert_uint_eq (h.j->tab.nready, 1);
  for (unsigned i = 0; i < CREDITORS; i++)
    journal_uncredit (h.j, 1, 1);
  (void) pthread_barrier_destroy (&together);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("line");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 300);
  tcase_add_test (t, one_chunk_serves_all);
  tcase_add_test (t, long_writes_do_not_overtake);
  tcase_add_test (t, device_fails);
  tcase_add_test (t, no_room);
  tcase_add_loop_test (t, served_meanwhile, 0, 2);
  tcase_add_test (t, no_room_any_more);
  tcase_add_test (t, commit_of_its_own);
  tcase_add_test (t, one_table_for_all);
  suite_add_tcase (s, t);
  return unit_run (s);
}
