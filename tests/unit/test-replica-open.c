/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening a replica that does not fit what is there: other disks, other sizes, other paths, a
 * directory of somebody else's; and what is told to the user then.
 */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#include <check.h>

#include "common/bytes.h"
#include "fuzz/fuzz.h"
#include "fuzz/world.h"
#include "journal/internal.h"
#include "unit/torture.h"
#include "unit/unit.h"

enum { BACKLOG = 0, WRITTEN = 2 };      /* of world.c */

#define DISKS_MAX 3

static struct simdisk *disk;
static struct replica_disk_params d[DISKS_MAX];
static struct replica_params p;

static void
setup (void)
{
  (void) world_get (BACKLOG);
  (void) world_get (WRITTEN);
  host_reset (80, true);
  host_boot (0);
  disk = world_copy (world_get (BACKLOG)->disk);
  p = (struct replica_params) { .fs = simdisk_fs (disk), .dir = WORLD_DIR,
                                .disks = d, .ndisks = WORLD_DISKS,
                                .buffer = 8 << 20 };
  for (unsigned i = 0; i < WORLD_DISKS; i++)
    d[i] = (struct replica_disk_params) { .name = world_name[i],
                                          .path = world_path[i] };
}

static void
teardown (void)
{
  simdisk_free (disk);
}

static void
refused (const char *words)
{
  struct mcerror err = { 0 };
  struct replica *r;

  ck_assert_int_eq (replica_open (&p, &r, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_USAGE);
  ck_assert_msg (strstr (err.text, words) != NULL, "%s", err.text);
}

static struct replica *
opened (void)
{
  struct mcerror err = { 0 };
  struct replica *r;

  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  return r;
}

static void
make_image (const char *path, uint64_t size)
{
  struct io_file *f;

  EXPECT (io_open (p.fs, path, O_RDWR | O_CREAT, 0600, &f) == 0);
  EXPECT (io_truncate (f, size) == 0 && io_fdatasync (f) == 0);
  io_close (f);
}

START_TEST (other_disks)
{
  static char too_long[JOURNAL_PATH_MAX + 10] = "/sim/";

  p.ndisks = 0;
  refused ("0 disks");
  p.ndisks = JOURNAL_MAX_DISKS + 1;
  refused ("65 disks");

  p.ndisks = 1;                 /* one is missing */
  refused ("this journal has disk vdb, which is not named");
  p.ndisks = 2;
  d[1].name = "vdc";            /* another name */
  refused ("vdb");
  d[1].name = "vdb";
  make_image ("/sim/c.img", 4096);
  d[2] = (struct replica_disk_params) { .name = "vdc", .path = "/sim/c.img" };
  p.ndisks = 3;                 /* one too many */
  refused ("it has no disk vdc");
  p.ndisks = 2;

  memset (too_long + 5, 'x', sizeof too_long - 6);
  d[1].path = too_long;
  refused ("/sim/xxx");
  ck_assert_int_eq (errno, ENAMETOOLONG);
  d[1].path = "/sim/nowhere.img";
  refused ("the backing image is gone");
}
END_TEST

START_TEST (other_sizes)
{
  d[0].create = true;
  d[0].size = world_size[0] + 1;
  refused ("size= says 70002");
  d[0].create = false;
  make_image (world_path[1], world_size[1] + 512);
  refused ("has 25088 bytes, but had 24576");
  make_image (world_path[1], 0);
  refused ("is empty");
}
END_TEST

/* An image that was moved is taken, and its new place noted; another one beside
 * it is not.
 */
START_TEST (moved)
{
  struct replica *r;

  make_image ("/sim/other.img", world_size[0]);
  d[0].path = "/sim/other.img";
  refused ("belongs to another image");

  EXPECT (io_unlink (p.fs, "/sim/other.img") == 0);
  EXPECT (io_rename (p.fs, world_path[0], "/sim/other.img") == 0);
  r = opened ();
  ck_assert_str_eq (journal_get_config (r->journal)->disks[0].path, "/sim/other.img");
  replica_close (r);
  r = opened ();                /* and it is noted */
  ck_assert_str_eq (journal_get_config (r->journal)->disks[0].path, "/sim/other.img");
  replica_close (r);
}
END_TEST

/* Recovery with --disk=. */
START_TEST (moved_for_recovery)
{
  struct recover_disk other[2] = { { "vda", "/sim/other.img" }, { "vdx", "/sim/x" } };
  struct recover_params rp = { .fs = p.fs, .dir = WORLD_DIR, .disks = other };
  struct recover_result result;
  struct mcerror err = { 0 };

  EXPECT (io_rename (p.fs, world_path[0], "/sim/other.img") == 0);
  ck_assert_int_eq (recover_run (&rp, &result, &err), -1);
  ck_assert (err.code == MCEXIT_USAGE);
  rp.ndisks = 2;
  ck_assert_int_eq (recover_run (&rp, &result, &err), -1);
  ck_assert_msg (strstr (err.text, "no disk of that name") != NULL, "%s", err.text);
  rp.ndisks = 1;
  ck_assert_msg (recover_run (&rp, &result, &err) == 0, "%s", err.text);
  EXPECT (io_rename (p.fs, "/sim/other.img", world_path[0]) == 0);
  ck_assert (world_images_are (disk, &world_get (BACKLOG)->final));
}
END_TEST

/* A trusted baseline has to be durable before it is a checkpoint. */
START_TEST (baseline)
{
  struct replica *r;

  p.dir = "/sim/new";
  p.journal_size = JOURNAL_MIN_SIZE;
  p.baseline_trusted = true;
  simdisk_fail (disk, 1, EIO, false);
  refused ("cannot make the baseline durable");
  r = opened ();
  ck_assert (r->state == JOURNAL_PROTECTED && r->has_checkpoint &&
             r->checkpoint.id == 0);
  replica_close (r);
}
END_TEST

/* A write-out that finds the journal's data damaged says which checkpoint needed it, and the
 * replica has failed; so does recovery.
 */
START_TEST (damaged_under_a_server)
{
  struct recover_params rp = { .fs = p.fs, .dir = WORLD_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };
  struct replica *r;
  struct journal_checkpoint list[16];
  size_t n;
  uint32_t data = 0;
  char *reply;

  r = opened ();
  r->by_hand = true;
  ck_assert (!writeout_is_empty (r->wo));
  n = journal_checkpoints (r->journal, list, 16);
  ck_assert_uint_gt (n, 1);
  for (uint32_t c = 1; c < r->journal->nchunks && data == 0; c++)
    if (r->journal->chunks[c].kind == CHUNK_DATA)
      data = c;
  for (unsigned b = 0; b < 64; b++)
    simdisk_flip (disk, WORLD_JOURNAL, (uint64_t) data * JOURNAL_CHUNK +
                  b * JOURNAL_BLOCK + 7, 1);
  ck_assert_int_eq (writeout_step (r), -1);
  ck_assert_int_eq (r->state, JOURNAL_FAILED);
  ck_assert_int_eq (replica_control (r, true, "commit", 6, &reply), -1);
  ck_assert_msg (strstr (reply, "failed") != NULL, "%s", reply);
  free (reply);
  replica_close (r);

  ck_assert_int_eq (recover_run (&rp, &result, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_DAMAGE);
}
END_TEST

/* Nobody's directory is taken for a journal's. */
START_TEST (directory_of_others)
{
  const char *tmp = getenv ("TMPDIR");
  char top[200], path[300], image[300];
  struct replica *r;
  struct journal_config config = { .size = JOURNAL_MIN_SIZE, .ndisks = 1 };
  struct journal_state state = { .state = JOURNAL_SYNCING, .generation = 1, .epoch = 1 };
  struct mcerror err = { 0 };
  struct stat st;
  int fd;

  snprintf (top, sizeof top, "%s/mcbuf-open-XXXXXX", tmp ? tmp : "/var/tmp");
  EXPECT (mkdtemp (top) != NULL);
  snprintf (image, sizeof image, "%s/a.img", top);
  snprintf (path, sizeof path, "%s/letter", top);
  fd = open (path, O_CREAT | O_WRONLY, 0600);
  EXPECT (fd != -1);
  (void) close (fd);
  d[0] = (struct replica_disk_params) { .name = "", .path = image, .create = true,
                                        .size = 8192 };
  p = (struct replica_params) { .fs = &io_posix, .dir = top, .disks = d, .ndisks = 1,
                                .journal_size = JOURNAL_MIN_SIZE, .buffer = 8 << 20 };
  refused ("holds \"");
  EXPECT (unlink (path) == 0);
  snprintf (path, sizeof path, "%s/a.img", top);
  p.dir = path;                 /* not a directory */
  refused ("a.img");

  snprintf (path, sizeof path, "%s/j", top);
  p.dir = path;
  r = opened ();
  EXPECT (stat (path, &st) == 0);
  ck_assert_uint_eq (st.st_mode & 0777, 0700);
  replica_close (r);
  /* A second journal in its place is not made. */
  config.disks = calloc (1, sizeof *config.disks);
  EXPECT (config.disks);
  ck_assert_int_eq (journal_create (&io_posix, path, &config, &state, &err), -1);
  ck_assert_msg (err.code == MCEXIT_USAGE && err.text[0], "%s", err.text);
  config.size = JOURNAL_MIN_SIZE - 1;
  ck_assert_int_eq (journal_create (&io_posix, path, &config, &state, &err), -1);
  config.ndisks = JOURNAL_MAX_DISKS + 1;
  config.size = JOURNAL_MIN_SIZE;
  ck_assert_int_eq (journal_create (&io_posix, path, &config, &state, &err), -1);
  free (config.disks);
  {
    static const char *const names[] = { "j/journal", "j/acked", "j/lock", "a.img",
      "j/sums", "j/catalog.sqlite", "j/catalog.sqlite-wal", "j/catalog.sqlite-shm" };
    char name[600];

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
      snprintf (name, sizeof name, "%s/%s", top, names[i]);
      (void) unlink (name);
    }
    (void) rmdir (path);
    ck_assert_int_eq (rmdir (top), 0);
  }
}
END_TEST

/* Exports by name. */
START_TEST (exports)
{
  static const struct { const char *name; int errnum; } bad[] = {
    { "vdc", ENOENT }, { "", ENOENT }, { "vda@", ENOENT }, { "vda@x", ENOENT },
    { "vda@g", ENOENT }, { "vda@g0", ENOENT }, { "vda@g01", ENOENT },
    { "vda@g1x", ENOENT }, { "vda@g18446744073709551616", ENOENT },
    { "vda@promoted", ESHUTDOWN }, { "vdc@promoted", ENOENT },
  };
  struct replica_export x;
  struct replica *r = opened ();
  char text[512];

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    ck_assert_msg (replica_open_export (r, bad[i].name, &x) == -1, "%s", bad[i].name);
    ck_assert_int_eq (errno, bad[i].errnum);
  }
  ck_assert_int_eq (replica_open_export (r, "vdb@g18446744073709551615", &x), 0);
  ck_assert (x.disk == 1 && x.generation == UINT64_MAX);
  ck_assert_int_eq (replica_open_export (r, "vda", &x), 0);
  replica_explain (r, &x, ENOSPC, text, sizeof text);
  ck_assert (strstr (text, "vda") != NULL);
  replica_close (r);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("open");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, other_disks);
  tcase_add_test (t, other_sizes);
  tcase_add_test (t, moved);
  tcase_add_test (t, moved_for_recovery);
  tcase_add_test (t, baseline);
  tcase_add_test (t, damaged_under_a_server);
  tcase_add_test (t, directory_of_others);
  tcase_add_test (t, exports);
  suite_add_tcase (s, t);
  return unit_run (s);
}
