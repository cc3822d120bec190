/* SPDX-License-Identifier: BSD-3-Clause */
/* What a replica makes of a host that lacks something: threads, room in the journal; and of
 * requests that come in the wrong moment.
 */
#include "config.h"

#include <inttypes.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <check.h>

#include "common/bytes.h"
#include "fuzz/fuzz.h"
#include "fuzz/world.h"
#include "journal/internal.h"
#include "unit/fail-some.h"
#include "unit/torture.h"
#include "unit/unit.h"

enum { BACKLOG = 0, WRITTEN = 2, CLEAN = 3, RECOVERED = 7 };    /* of world.c */

/* --- threads --- */

extern int __real_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                                  void *(*fn) (void *), void *arg);
extern int __wrap_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                                  void *(*fn) (void *), void *arg);

static unsigned threads_left = UINT32_MAX;

int
__wrap_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                       void *(*fn) (void *), void *arg)
{
  if (threads_left == 0)
    return EAGAIN;
  threads_left--;
  return __real_pthread_create (thread, attr, fn, arg);
}

static struct simdisk *disk;
static struct replica *r;
static struct mcerror err;

static void
setup (void)
{
  (void) world_get (BACKLOG);
  (void) world_get (WRITTEN);
  (void) world_get (CLEAN);
  (void) world_get (RECOVERED);
  host_reset (81, false);
  host_boot (0);
  disk = world_copy (world_get (CLEAN)->disk);
}

static void
teardown (void)
{
  simdisk_free (disk);
}

static void
start (void)
{
  r = world_open (disk, &err);
  ck_assert_msg (r != NULL, "%s", err.text);
}

/* Whichever thread cannot be had: an error, and an end. */
START_TEST (no_threads)
{
  unsigned n;

  for (n = 0; ; n++) {
    int result;

    start ();
    r->by_hand = false;
    threads_left = n;
    result = replica_run (r);
    threads_left = UINT32_MAX;
    if (result == -1)
      ck_assert_int_eq (errno, EAGAIN);
    replica_close (r);
    if (result == 0)
      break;
  }
  ck_assert_uint_eq (n, 6);     /* pushing twice, zeroing, the mark; writing out, the house */
}
END_TEST

/* --- room --- */

static struct replica_export
inlet (unsigned number)
{
  return (struct replica_export) { .disk = number, .fence = r->fence };
}

/* Uncommitted epochs alone fill the journal: an error, stale, and the checkpoint stays. */
START_TEST (full_of_data)
{
  static uint8_t block[65536];
  struct replica_export x;
  struct recover_params p = { .dir = WORLD_DIR };
  struct recover_result result;
  unsigned n = 0;

  host_reset (83, true);        /* nobody writes out: it does not wait long */
  start ();
  x = inlet (0);
  memset (block, 7, sizeof block);
  while (replica_pwrite (r, &x, block, sizeof block, 0, 0) == 0)
    ck_assert_uint_lt (++n, 1000);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (r->state, JOURNAL_STALE);
  ck_assert (strstr (r->reason, "journal is full") != NULL);
  ck_assert_int_eq (replica_pwrite (r, &x, block, 512, 0, 0), -1);
  ck_assert_int_eq (errno, EIO);
  replica_close (r);
  p.fs = simdisk_fs (disk);
  ck_assert_msg (recover_run (&p, &result, &err) == 0, "%s", err.text);
  ck_assert (world_images_are (disk, &world_get (CLEAN)->final));
}
END_TEST

/* The same by descriptors alone, which need no data. */
START_TEST (full_of_descriptors)
{
  struct replica_export x;
  unsigned n = 0;

  host_reset (83, true);        /* nobody writes out: it does not wait long */
  start ();
  x = inlet (0);
  while (replica_zero (r, &x, 512, n % 100 * 512, 0) == 0)
    ck_assert_uint_lt (++n, 2000000);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (r->state, JOURNAL_STALE);
  replica_close (r);
}
END_TEST

/* A writer waits for write-out, while there is some. */
START_TEST (waits_for_writeout)
{
  static uint8_t block[65536];
  struct replica_export x;
  struct commit_answer a;

  start ();
  r->by_hand = false;
  EXPECT (replica_run (r) == 0);
  x = inlet (0);
  for (unsigned i = 0; i < 600; i++) {
    memset (block, i, sizeof block);
    ck_assert_msg (replica_pwrite (r, &x, block, sizeof block, 0, 0) == 0, "%s", r->reason);
    if (i % 40 == 39)
      EXPECT (replica_commit (r, &(struct commit_request) { 0 }, &a, NULL) == 0);
  }
  replica_close (r);
}
END_TEST

/* Pieces of more than a list of them holds at first. */
START_TEST (large_request)
{
  const uint64_t size = 24 << 20;
  struct replica_disk_params d = { .name = "vda", .path = "/sim/large.img",
                                   .create = true, .size = size };
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = "/sim/large",
                              .disks = &d, .ndisks = 1, .journal_size = 64 << 20,
                              .buffer = 8 << 20, .baseline_trusted = true };
  uint8_t *data = malloc (size), *got = malloc (size);
  struct replica_export x = { .disk = 0 };

  EXPECT (data && got);
  for (uint64_t i = 0; i < size; i++)
    data[i] = i * 31 >> 7;
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  r->by_hand = true;
  EXPECT (replica_pwrite (r, &x, data, size - 3, 3, 0) == 0);
  EXPECT (replica_pread (r, &x, got, size - 3, 3) == 0);
  ck_assert (memcmp (data, got, size - 3) == 0);
  EXPECT (replica_pread (r, &x, got, 0, 0) == 0);
  replica_close (r);
  free (data);
  free (got);
}
END_TEST

/* --- moments --- */

/* A connection from before a promote, or a resync, is told so. */
START_TEST (old_connections)
{
  struct replica_export before, after, with;
  struct promote_answer a;
  char text[512];
  uint8_t block[512] = { 0 };

  start ();
  EXPECT (replica_open_export (r, "vda", &before) == 0);
  EXPECT (replica_open_export (r, "vda@g1", &with) == 0);
  ck_assert_int_eq (replica_pwrite (r, &with, block, 512, 0, 0), 0);
  EXPECT (replica_promote (r, NULL, false, &a, NULL) == 0);
  ck_assert_int_eq (replica_pwrite (r, &before, block, 512, 0, 0), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  replica_explain (r, &before, errno, text, sizeof text);
  ck_assert_msg (strstr (text, "generation 2") != NULL, "%s", text);
  ck_assert_int_eq (replica_pread (r, &with, block, 512, 0), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  EXPECT (replica_open_export (r, "vda@promoted", &after) == 0);
  EXPECT (replica_pwrite (r, &after, block, 512, 0, 0) == 0);

  EXPECT (replica_resync (r, true, NULL) == 0);
  ck_assert_int_eq (replica_pwrite (r, &after, block, 512, 0, 0), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  ck_assert_int_eq (replica_pwrite (r, &before, block, 512, 0, 0), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  replica_explain (r, &before, errno, text, sizeof text);
  ck_assert_msg (strstr (text, "resync") != NULL, "%s", text);
  replica_close (r);
}
END_TEST

/* A server that is stopping takes nothing more. */
START_TEST (stopping)
{
  struct replica_export x;
  struct commit_answer c;
  struct promote_answer a;
  uint8_t block[512] = { 0 };
  uint64_t sealed;

  start ();
  x = inlet (0);
  {
    SCOPED_LOCK (&r->lock);
    r->stopping = true;
  }
  ck_assert_int_eq (replica_pwrite (r, &x, block, 512, 0, 0), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  ck_assert_int_eq (replica_commit (r, &(struct commit_request) { 0 }, &c, &err), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  ck_assert_int_eq (replica_promote (r, NULL, false, &a, &err), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  ck_assert_int_eq (replica_resync (r, false, &err), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  ck_assert_int_eq (replica_seal (r, 0, &sealed, &err), -1);
  ck_assert_int_eq (errno, ESHUTDOWN);
  {
    SCOPED_LOCK (&r->lock);
    r->stopping = false;
  }
  replica_stop (r);
  replica_stop (r);             /* a second time: nothing */
  replica_close (r);
}
END_TEST

/* More sealed epochs than there are spares, over a clean stop. */
START_TEST (many_sealed)
{
  struct replica_export x;
  uint8_t block[512] = { 1 }, got[512];
  uint64_t sealed = 0, first = 0;
  struct commit_answer a;

  start ();
  x = inlet (1);
  for (unsigned i = 0; i < 9; i++) {
    block[0] = i;
    EXPECT (replica_pwrite (r, &x, block, 512, i * 512, 0) == 0);
    EXPECT (replica_seal (r, 0, &sealed, NULL) == 0);
    if (i == 0)
      first = sealed;
    EXPECT (replica_seal (r, 0, &sealed, NULL) == 0);      /* an empty one, too */
  }
  replica_close (r);
  start ();
  x = inlet (1);
  ck_assert_uint_eq (speculation_open_number (r->spec), sealed + 1);
  for (unsigned i = 0; i < 9; i++) {
    EXPECT (replica_pread (r, &x, got, 512, i * 512) == 0);
    ck_assert_uint_eq (got[0], i);
  }
  EXPECT (replica_commit (r, &(struct commit_request) { .has_epoch = true, .epoch = first + 4 },
                          &a, &err) == 0);
  ck_assert_uint_eq (a.checkpoint, first + 4);
  replica_close (r);
}
END_TEST

/* A block that a reader finds damaged: EIO, and the replica has failed. */
START_TEST (damaged_read)
{
  static uint8_t buf[60000];
  struct replica_export x;
  uint32_t data = 0;

  simdisk_free (disk);
  disk = world_copy (world_get (CLEAN)->disk);
  start ();
  x = inlet (0);
  for (uint32_t c = 1; c < r->journal->nchunks && data == 0; c++)
    if (r->journal->chunks[c].kind == CHUNK_DATA)
      data = c;
  EXPECT (replica_pread (r, &x, buf, sizeof buf, 0) == 0);
  for (unsigned b = 0; b < 64; b++)
    simdisk_flip (disk, WORLD_JOURNAL, (uint64_t) data * JOURNAL_CHUNK +
                  b * JOURNAL_BLOCK + 7, 1);
  ck_assert_int_eq (replica_pread (r, &x, buf, sizeof buf, 0), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (r->state, JOURNAL_FAILED);
  replica_close (r);
}
END_TEST

/* --- the control socket --- */

static void
dial (const char *dir, const char *words)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  char answer[1000];
  size_t used = 0;
  ssize_t n;

  EXPECT (fd != -1);
  EXPECT ((size_t) snprintf (addr.sun_path, sizeof addr.sun_path, "%s/control",
                             dir) < sizeof addr.sun_path);
  EXPECT (connect (fd, (struct sockaddr *) &addr, sizeof addr) == 0);
  /* Who is turned away may be gone by then; what he was told is there to be read. */
  EXPECT (send (fd, "seal now\n", 9, MSG_NOSIGNAL) == 9 || errno == EPIPE);
  while (used < sizeof answer - 1 && (used == 0 || answer[used - 1] != '\n') &&
         (n = recv (fd, answer + used, sizeof answer - 1 - used, 0)) > 0)
    used += n;
  answer[used] = '\0';
  ck_assert_msg (strstr (answer, words) != NULL, "%s", answer);
  (void) close (fd);
}

START_TEST (socket_limits)
{
  const char *tmp = getenv ("TMPDIR");
  char dir[200], path[300];
  struct control *c = NULL;

  snprintf (dir, sizeof dir, "%s/mcbuf-limits-XXXXXX", tmp ? tmp : "/var/tmp");
  EXPECT (mkdtemp (dir) != NULL);
  start ();
  for (unsigned n = 1; c == NULL; n++) {        /* memory for it */
    fail_alloc (n, false);
    c = control_listen (r, dir, &err);
    fail_alloc (0, false);
    if (c == NULL)
      ck_assert (strstr (err.text, "/control") != NULL);
    ck_assert_uint_lt (n, 10);
  }
  threads_left = 0;             /* a thread for it */
  ck_assert_int_eq (control_run (c), -1);
  ck_assert_int_eq (errno, EAGAIN);
  threads_left = 1;
  EXPECT (control_run (c) == 0);
  dial (dir, "cannot start a thread");  /* and for a client */
  threads_left = UINT32_MAX;
  dial (dir, "takes generation=G");
  control_close (c);
  replica_close (r);
  snprintf (path, sizeof path, "%s/control", dir);
  ck_assert_int_eq (access (path, F_OK), -1);
  ck_assert_int_eq (rmdir (dir), 0);
}
END_TEST

/* --- reading the journal --- */

/* Images that were damaged since a chunk was loaded, or before; what is not in use; what is nowhere. */
START_TEST (journal_reads)
{
  static uint8_t buf[3 * JOURNAL_BLOCK];
  struct journal_damage damage;
  struct journal *j;
  uint32_t first = 0, last, n;
  const struct live *live;

  simdisk_free (disk);
  disk = world_copy (world_get (BACKLOG)->disk);
  EXPECT (journal_open (simdisk_fs (disk), WORLD_DIR, &j, &err) == 0);
  for (uint32_t c = 1; c < j->nchunks && first == 0; c++)
    if (j->chunks[c].kind == CHUNK_DATA)
      first = c * JOURNAL_CHUNK_BLOCKS;
  live = j->chunks[chunk_of (first)].live;
  EXPECT (bits_test (&live->known, 0) && bits_test (&live->known, 1));
  for (last = 0; bits_test (&live->known, last); last++)
    ;

  EXPECT (journal_read (j, first, 0, 0, buf, &damage) == 0);
  EXPECT (journal_read (j, first, 100, 2 * JOURNAL_BLOCK, buf, &damage) == 0);
  ck_assert_int_eq (journal_read (j, 0, 0, 1, buf, &damage), -1);
  ck_assert_int_eq (errno, EINVAL);
  ck_assert_int_eq (journal_read (j, first + JOURNAL_CHUNK_BLOCKS - 1, 0, sizeof buf, buf, &damage), -1);
  ck_assert_int_eq (errno, EINVAL);
  ck_assert_int_eq (journal_read (j, first + last, 0, 1, buf, &damage), -1);
  ck_assert_int_eq (errno, EBADMSG);
  ck_assert_uint_eq (damage.offset, block_offset (first + last));

  simdisk_flip (disk, WORLD_JOURNAL, block_offset (first + 1) + 9, 4);
  n = 1;
  ck_assert_ptr_null (journal_pin (j, first, &n, false, NULL));
  ck_assert_ptr_null (journal_pin (j, 0, &n, true, NULL));
  n = 3;
  EXPECT (journal_pin (j, first, &n, true, &damage) != NULL);
  ck_assert_uint_eq (n, 1);     /* as far as they are whole */
  ck_assert_ptr_null (journal_pin (j, first + 1, &n, true, &damage));
  ck_assert_int_eq (errno, EBADMSG);
  ck_assert_uint_eq (damage.offset, block_offset (first + 1));
  journal_unpin (j, first);
  EXPECT (journal_read (j, first, 0, JOURNAL_BLOCK, buf, &damage) == 0);
  ck_assert_int_eq (journal_read (j, first, 0, 2 * JOURNAL_BLOCK, buf, &damage), -1);
  ck_assert_uint_eq (damage.offset, block_offset (first + 1));
  journal_close (j);
}
END_TEST

/* What of a journal cannot be changed. */
START_TEST (configuration)
{
  struct journal_config other;
  struct journal *j;

  EXPECT (journal_open (simdisk_fs (disk), WORLD_DIR, &j, &err) == 0);
  ck_assert_str_eq (journal_dir (j), WORLD_DIR);
  other = *journal_get_config (j);
  other.size++;
  ck_assert_int_eq (journal_set_config (j, &other, &err), -1);
  other = *journal_get_config (j);
  other.id[3]++;
  ck_assert_int_eq (journal_set_config (j, &other, &err), -1);
  ck_assert (strstr (err.text, "can be changed") != NULL);
  other = *journal_get_config (j);
  simdisk_fail (disk, 1, EIO, false);
  ck_assert_int_eq (journal_set_config (j, &other, &err), -1);
  ck_assert (strstr (err.text, "superblock") != NULL);
  fail_alloc (1, false);
  ck_assert_int_eq (journal_set_config (j, &other, &err), -1);
  fail_alloc (0, false);
  EXPECT (journal_set_config (j, &other, &err) == 0);
  journal_close (j);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("limits");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, no_threads);
  tcase_add_test (t, full_of_data);
  tcase_add_test (t, full_of_descriptors);
  tcase_add_test (t, waits_for_writeout);
  tcase_add_test (t, large_request);
  tcase_add_test (t, old_connections);
  tcase_add_test (t, stopping);
  tcase_add_test (t, many_sealed);
  tcase_add_test (t, damaged_read);
  tcase_add_test (t, socket_limits);
  tcase_add_test (t, journal_reads);
  tcase_add_test (t, configuration);
  suite_add_tcase (s, t);
  return unit_run (s);
}
