/* SPDX-License-Identifier: BSD-3-Clause */
/* A whole replica with all its threads, and many clients at once: writers and readers that each
 * have a part of a disk of their own and know what is in it, committers, people who look at
 * the state in both ways in, and in the midst of it promote and resync.
 *
 * Under ThreadSanitizer (make check-tsan) it looks for races; anywhere, at the bytes.
 * MCBUF_TEST_SEED gives the same requests, if not the same order of threads.
 */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include <check.h>
#include <jansson.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/recover.h"
#include "unit/unit.h"

#define DISKS 2u
#define WRITERS 6u
#define MIB (UINT64_C (1) << 20)
#define PART (1 * MIB)          /* of a disk, for each writer */
#define DISK_SIZE (WRITERS / DISKS * PART + 300)
#define MAX_LEN 70000u
#define DEADLINE 120            /* seconds that a phase may take */

static char dir[256], image[DISKS][300];
static struct replica *r;
static atomic_bool stop;
static atomic_ulong writes, reads, commits, asked;

struct writer {
  pthread_t thread;
  unsigned n;
  uint64_t random;
  bool promoted;                /* writes to NAME@promoted */
  _Atomic bool shut;            /* was told ESHUTDOWN */
  struct replica_export export;
  uint8_t now[PART];
};

static struct writer writers[WRITERS];

static uint64_t
below (uint64_t *random, uint64_t n)
{
  *random = *random * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (*random >> 20) % n;
}

static const char *
name_of (unsigned disk)
{
  return disk == 0 ? "vda" : "vdb";
}

/* --- writers --- */

static uint64_t
base_of (const struct writer *w)
{
  return w->n / DISKS * PART;
}

static void
find_export (struct writer *w)
{
  char name[32];

  snprintf (name, sizeof name, "%s%s", name_of (w->n % DISKS),
            w->promoted ? "@promoted" : "");
  EXPECT (replica_open_export (r, name, &w->export) == 0);
}

/* Refused because the replica has moved on: that is how it ends. */
static bool
is_over (struct writer *w)
{
  EXPECT (errno == ESHUTDOWN || errno == EIO);
  w->shut = true;
  return true;
}

static bool
write_one (struct writer *w, uint8_t *buf)
{
  uint64_t off = below (&w->random, PART), sort = below (&w->random, 10);
  uint32_t len = 1 + below (&w->random, MIN (PART - off, (uint64_t) MAX_LEN));
  uint64_t stamp = ++writes * UINT64_C (0x9e3779b97f4a7c15) | 1;
  int result;

  if (below (&w->random, 3)) {
    off = ROUND_DOWN (off, (uint64_t) 4096);
    len = MIN (ROUND_UP (len, 4096u), (uint32_t) (PART - off));
  }
  if (sort < 7) {
    for (uint32_t i = 0; i < len; i++)
      buf[i] = stamp >> i % 8 * 8;
    result = replica_pwrite (r, &w->export, buf, len, base_of (w) + off,
                             sort == 0 ? REPLICA_FUA : 0);
  }
  else {
    memset (buf, 0, len);
    result = replica_zero (r, &w->export, len, base_of (w) + off,
                           sort == 7 ? REPLICA_MAY_TRIM : 0);
  }
  if (result == -1)
    return is_over (w);
  memcpy (w->now + off, buf, len);
  return false;
}

static bool
read_one (struct writer *w, uint8_t *buf)
{
  uint64_t off = below (&w->random, PART);
  uint32_t len = 1 + below (&w->random, MIN (PART - off, (uint64_t) MAX_LEN));

  reads++;
  if (replica_pread (r, &w->export, buf, len, base_of (w) + off) == -1)
    return is_over (w);
  ck_assert_msg (memcmp (buf, w->now + off, len) == 0,
                 "writer %u reads something else at %" PRIu64, w->n, off);
  return false;
}

static int
ignore_extent (void *opaque, uint64_t offset, uint64_t length, bool hole,
               bool zero)
{
  (void) opaque;
  (void) offset;
  (void) length;
  (void) hole;
  (void) zero;
  return 0;
}

static void *
writer_main (void *arg)
{
  struct writer *w = arg;
  uint8_t *buf = malloc (MAX_LEN + 4096);
  bool over = false;

  EXPECT (buf);
  while (!stop && !over) {
    switch (below (&w->random, 16)) {
    case 0: case 1: case 2: case 3: case 4:
      over = read_one (w, buf);
      break;
    case 5:
      if (replica_flush (r, &w->export) == -1)
        over = is_over (w);
      break;
    case 6:
      if (replica_extents (r, &w->export, PART, base_of (w), ignore_extent,
                           NULL) == -1 ||
          replica_cache (r, &w->export, MAX_LEN, base_of (w)) == -1)
        over = is_over (w);
      break;
    default:
      over = write_one (w, buf);
    }
  }
  free (buf);
  return NULL;
}

/* What is there now is what each of them goes on from. */
static void
take_stock (bool promoted)
{
  for (unsigned i = 0; i < WRITERS; i++) {
    struct writer *w = &writers[i];

    w->promoted = promoted;
    w->shut = false;
    find_export (w);
    EXPECT (replica_pread (r, &w->export, w->now, PART, base_of (w)) == 0);
  }
}

/* Each finds what it wrote. */
static void
check_all (void)
{
  static uint8_t buf[PART];

  for (unsigned i = 0; i < WRITERS; i++) {
    struct writer *w = &writers[i];

    EXPECT (replica_pread (r, &w->export, buf, PART, base_of (w)) == 0);
    ck_assert_msg (memcmp (buf, w->now, PART) == 0, "writer %u", i);
  }
}

/* --- committers and onlookers --- */

/* An object is answered; of what is refused, the code. */
static json_int_t
check_reply (const char *reply)
{
  json_t *json = json_loads (reply, 0, NULL);
  json_int_t code;

  ck_assert_msg (json_is_object (json), "%s", reply);
  code = json_integer_value (json_object_get (json, "code"));
  json_decref (json);
  asked++;
  return code;
}

static void
ask (const char *line)
{
  char *reply;

  (void) replica_control (r, true, line, strlen (line), &reply);
  EXPECT (reply);
  if (check_reply (reply) == 0 && strncmp (line, "commit", 6) == 0)
    commits++;
  free (reply);
}

static void *
committer_main (void *arg)
{
  uint64_t random = *(uint64_t *) arg;

  while (!stop) {
    if (below (&random, 3) == 0)
      ask ("seal");
    ask (below (&random, 2) ? "commit" : "commit label=by threads");
    (void) usleep (below (&random, 3000));
  }
  return NULL;
}

static void *
onlooker_main (void *arg)
{
  uint64_t random = *(uint64_t *) arg;

  while (!stop) {
    ask (below (&random, 2) ? "status" : "list");
    replica_connections_add (r, 1);
    (void) replica_is_promoted (r);
    (void) replica_generation (r);
    replica_connections_add (r, -1);
    (void) usleep (below (&random, 2000));
  }
  return NULL;
}

/* By the socket: one connection, many requests. */
static void *
client_main (void *arg)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM, 0);
  char reply[65536];

  (void) arg;
  EXPECT ((size_t) snprintf (addr.sun_path, sizeof addr.sun_path, "%s/control",
                             dir) < sizeof addr.sun_path);
  EXPECT (fd != -1 && connect (fd, (struct sockaddr *) &addr, sizeof addr) == 0);
  while (!stop) {
    size_t used = 0;

    EXPECT (send (fd, "status\n", 7, MSG_NOSIGNAL) == 7);
    do {
      ssize_t n = recv (fd, reply + used, sizeof reply - used, 0);

      EXPECT (n > 0);
      used += n;
    } while (reply[used - 1] != '\n');
    reply[used - 1] = '\0';
    EXPECT (check_reply (reply) == 0);
  }
  (void) close (fd);
  return NULL;
}

/* --- phases --- */

static unsigned
seconds (void)
{
  const char *text = getenv ("MCBUF_TEST_SECONDS");

  return text && atoi (text) > 0 ? atoi (text) : 5;
}

static pthread_t others[6];
static uint64_t random_of[6];

static void
begin_writers (void)
{
  for (unsigned i = 0; i < WRITERS; i++)
    EXPECT (pthread_create (&writers[i].thread, NULL, writer_main,
                            &writers[i]) == 0);
}

static void
begin (const char *what)
{
  void *(*const mains[]) (void *) = { committer_main, committer_main,
                                      onlooker_main, onlooker_main,
                                      client_main, client_main };

  printf ("%s\n", what);
  (void) fflush (stdout);
  alarm (DEADLINE);
  stop = false;
  for (unsigned i = 0; i < 6; i++) {
    random_of[i] = unit_random (0);
    EXPECT (pthread_create (&others[i], NULL, mains[i], &random_of[i]) == 0);
  }
}

/* A fifth of the whole. */
static void
go_on (void)
{
  (void) usleep (seconds () * 200000);
}

static void
end (void)
{
  stop = true;
  for (unsigned i = 0; i < WRITERS; i++)
    EXPECT (pthread_join (writers[i].thread, NULL) == 0);
  for (unsigned i = 0; i < 6; i++)
    EXPECT (pthread_join (others[i], NULL) == 0);
}

/* Each finds it out with its next write, whenever it gets to that. */
static void
wait_shut (void)
{
  for (unsigned i = 0; i < WRITERS; i++)
    for (unsigned n = 0; !writers[i].shut; n++) {
      ck_assert_msg (n < 120000, "writer %u was not shut out", i);
      (void) usleep (1000);
    }
}

static void
expect_shut (bool shut)
{
  for (unsigned i = 0; i < WRITERS; i++)
    ck_assert_msg (writers[i].shut == shut, "writer %u", i);
}

static void
on_log (void *opaque, enum replica_log_level level, const char *line)
{
  (void) opaque;
  /* Who commits or seals after the promote is told, and so is the log. */
  ck_assert_msg (level != REPLICA_LOG_ERROR ||
                 strstr (line, "control request refused: cannot "), "%s", line);
}

static void
start (void)
{
  struct replica_disk_params d[DISKS];
  struct replica_params p = { .fs = &io_posix, .dir = dir, .disks = d,
                              .ndisks = DISKS, .journal_size = 64 * MIB,
                              .buffer = 16 * MIB, .control = true,
                              .log = on_log };
  struct mcerror err;

  for (unsigned i = 0; i < DISKS; i++)
    d[i] = (struct replica_disk_params) { .name = name_of (i), .path = image[i],
                                          .create = true, .size = DISK_SIZE };
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  EXPECT (replica_run (r) == 0);
}

START_TEST (everybody)
{
  struct recover_params p = { .fs = &io_posix, .dir = dir };
  struct recover_result result;
  struct mcerror err;

  start ();

  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i].n = i;
    writers[i].random = unit_random (0);
    find_export (&writers[i]);
  }
  begin ("first copy, and checkpoints");        /* a commit ends the copy */
  begin_writers ();
  go_on ();
  end ();
  expect_shut (false);
  check_all ();

  /* It drops what is not committed: nobody knows what that was. */
  begin ("a resync in between checkpoints");
  ask ("resync");
  take_stock (false);
  begin_writers ();
  go_on ();
  end ();
  expect_shut (false);
  check_all ();

  begin ("a promote while all go on");
  begin_writers ();
  (void) usleep (seconds () * 100000);
  ask ("promote");
  wait_shut ();
  end ();
  expect_shut (true);
  take_stock (true);

  begin ("promoted");
  begin_writers ();
  go_on ();
  end ();
  expect_shut (false);
  check_all ();

  printf ("a stop and a start\n");
  replica_close (r);
  start ();
  for (unsigned i = 0; i < WRITERS; i++)
    find_export (&writers[i]);
  check_all ();

  ask ("resync overwrite");
  take_stock (false);
  begin ("a new first copy");
  begin_writers ();
  go_on ();
  end ();
  expect_shut (false);
  ask ("commit");
  check_all ();
  replica_close (r);

  ck_assert_msg (recover_run (&p, &result, &err) == 0, "%s", err.text);
  for (unsigned i = 0; i < WRITERS; i++) {
    static uint8_t buf[PART];
    struct io_file *f;

    EXPECT (io_open (&io_posix, image[i % DISKS], O_RDONLY, 0, &f) == 0);
    EXPECT (io_pread (f, buf, PART, base_of (&writers[i])) == 0);
    io_close (f);
    ck_assert_msg (memcmp (buf, writers[i].now, PART) == 0,
                   "writer %u's part was not recovered", i);
  }
  printf ("%lu writes, %lu reads, %lu commits, %lu questions\n", writes, reads,
          commits, asked);
  printf ("TRIED invariant=4,5,10 test=unit/test-replica-threads what=\"requests by threads at once\" n=%lu\n",
          writes + reads + commits + asked);
}
END_TEST

static void
setup (void)
{
  const char *tmp = getenv ("TMPDIR");

  unit_seed ();
  snprintf (dir, sizeof dir, "%s/mcbuf-threads-XXXXXX", tmp ? tmp : "/var/tmp");
  EXPECT (mkdtemp (dir) != NULL);
  for (unsigned i = 0; i < DISKS; i++)
    snprintf (image[i], sizeof image[i], "%s/%u.img", dir, i);
  strcat (dir, "/j");
}

static void
teardown (void)
{
  static const char *const names[] = { "journal", "acked", "lock", "control",
    "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm" };
  char path[600];

  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    snprintf (path, sizeof path, "%s/%s", dir, names[i]);
    (void) unlink (path);
  }
  (void) rmdir (dir);
  for (unsigned i = 0; i < DISKS; i++)
    (void) unlink (image[i]);
  *strrchr (dir, '/') = '\0';
  (void) rmdir (dir);
}

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("threads");

  tcase_add_unchecked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 6 * DEADLINE);
  tcase_add_test (t, everybody);
  suite_add_tcase (s, t);
  return unit_run (s);
}
