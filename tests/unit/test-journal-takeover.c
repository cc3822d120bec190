/* SPDX-License-Identifier: BSD-3-Clause */
/* A server is killed at any instant; the next one finds all that was
 * acknowledged, committed or not, and nothing that was not asked for.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <check.h>

#include "unit/journal-help.h"

#define MIB (UINT64_C (1) << 20)

/* Shared by the servers that die one after the other. */
struct world {
  struct help h;
  uint64_t old[HELP_DISK_BLOCKS];       /* before the operation under way */
  volatile uint64_t ops;
  volatile int busy;
  uint64_t committing;          /* epoch that is being committed */
};

static struct world *w;

static void
setup (void)
{
  help_seed ();
  w = mmap (NULL, sizeof *w, PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ck_assert (w != MAP_FAILED);
  help_init (&w->h, &io_posix, 256 * MIB);
  help_create (&w->h);
}

static void
region_path (char path[128])
{
  char id[HOST_ID_STRLEN + 1];

  host_id_text (w->h.config.id, id);
  snprintf (path, 128, "/dev/shm/mcbuf-%s", id);
}

static void
teardown (void)
{
  char path[128];

  if (w->h.j)
    help_close (&w->h, true);
  region_path (path);
  unlink (path);
  help_remove (&w->h);
  munmap (w, sizeof *w);
}

/* Everything acknowledged is there; the operation under way is or is not. */
static void
check_world (void)
{
  uint64_t disk[HELP_DISK_BLOCKS] = { 0 }, open_epoch;
  struct journal_damage damage = { 0 };

  ck_assert_msg (help_replay (&w->h, 0, UINT64_MAX, disk, &damage) == 0,
                 "%s", damage.what);
  ck_assert_int_eq (help_replay_uncommitted (&w->h, disk, &open_epoch), 0);
  for (unsigned i = 0; i < HELP_DISK_BLOCKS; i++) {
    if (w->busy && disk[i] == w->old[i])
      w->h.now[i] = disk[i];
    ck_assert_msg (disk[i] == w->h.now[i], "block %u is %llu, not %llu", i,
                   (unsigned long long) disk[i],
                   (unsigned long long) w->h.now[i]);
  }
  ck_assert (open_epoch == w->h.epoch || (w->busy && open_epoch == w->h.epoch + 1));
  w->h.epoch = open_epoch;
}

static void
one_op (bool forget)
{
  struct help *h = &w->h;
  uint64_t sealed, id;

  memcpy (w->old, h->now, sizeof w->old);
  __atomic_store_n (&w->busy, 1, __ATOMIC_SEQ_CST);
  switch (help_below (forget ? 24 : 20)) {
  case 0:
    (void) help_seal (h);
    break;
  case 1:
    ck_assert_int_eq (help_zero (h, help_below (500), 1 + help_below (12)), 0);
    break;
  case 2:
    sealed = help_seal (h);
    ck_assert_int_eq (help_commit (h, sealed - help_below (2), NULL), 0);
    break;
  case 20: case 21: case 22: case 23:
    /* What is forgotten is no longer replayed: so all of it is overwritten first. */
    if (help_below (6) == 0) {
      sealed = help_seal (h);
      if (help_write (h, 0, HELP_DISK_BLOCKS) == 0) {
        id = help_seal (h);
        ck_assert_int_eq (help_commit (h, sealed, NULL), 0);
        ck_assert_int_eq (help_commit (h, id, NULL), 0);
        ck_assert_int_eq (help_watermark (h, sealed), 0);
      }
      break;
    }
    /* fallthrough */
  default:
    if (help_write (h, help_below (480), 1 + help_below (32)) == -1) {
      ck_assert_int_eq (errno, ENOSPC);
      sealed = help_seal (h);
      ck_assert_int_eq (help_commit (h, sealed, NULL), 0);
    }
  }
  __atomic_store_n (&w->busy, 0, __ATOMIC_SEQ_CST);
  w->ops++;
}

/* Check's messages go to a nameless file, which a process that is killed may leave with half of one. */
static void
leave_check (void)
{
  int null = open ("/dev/null", O_RDWR);

  for (int fd = 3; fd < 64; fd++) {
    struct stat st;

    if (fd != null && fstat (fd, &st) == 0 && S_ISREG (st.st_mode) && st.st_nlink == 0)
      dup2 (null, fd);
  }
}

static void
server (uint64_t seed, bool threads, uint64_t buffer)
{
  char text[32];

  snprintf (text, sizeof text, "%llu", (unsigned long long) seed);
  setenv ("MCBUF_TEST_SEED", text, 1);
  freopen ("/dev/null", "w", stdout);
  leave_check ();
  help_seed ();
  {
    uint64_t epoch = w->h.epoch;

    help_open (&w->h, buffer, true);
    if (w->ops > 0 && w->h.took != JOURNAL_TOOK_SHARED)
      _exit (3);
    w->h.epoch = epoch;
  }
  check_world ();
  w->busy = 0;
  if (threads && journal_run (w->h.j) == -1)
    _exit (4);
  for (;;)
    one_op (false);
}

/* Kill one server after another at arbitrary points. */
START_TEST (killed)
{
  for (unsigned lap = 0; lap < 12; lap++) {
    uint64_t seed = help_random (), until = w->ops + 1 + help_below (60);
    bool threads = help_below (2);
    uint64_t buffer = (8 + help_below (8)) * MIB;
    int status = 0;
    pid_t pid = fork ();

    if (pid == 0) {
      server (seed, threads, buffer);
      _exit (5);
    }
    ck_assert_int_gt (pid, 0);
    while (w->ops < until && waitpid (pid, &status, WNOHANG) == 0)
      ;
    for (volatile unsigned i = help_below (20000); i > 0; i--)
      ;
    if (status == 0) {
      kill (pid, SIGKILL);
      ck_assert_int_eq (waitpid (pid, &status, 0), pid);
    }
    ck_assert_msg (WIFSIGNALED (status) && WTERMSIG (status) == SIGKILL,
                   "lap %u: server ended with status %x", lap, status);
  }
  {
    uint64_t epoch = w->h.epoch;

    help_open (&w->h, 8 * MIB, true);
    ck_assert_int_eq (w->h.took, JOURNAL_TOOK_SHARED);
    w->h.epoch = epoch;
  }
  check_world ();
}
END_TEST

/* The last server stopped without saving: the same, within one process. */
static void
crash (void)
{
  help_close (&w->h, false);
}

START_TEST (spilled)
{
  help_open (&w->h, 8 * MIB, true);
  ck_assert_int_eq (w->h.took, JOURNAL_TOOK_NOTHING);
  /* More data than buffers, and many more descriptors than a chunk of table holds. */
  for (unsigned i = 0; i < 60; i++)
    ck_assert_int_eq (help_write (&w->h, help_below (300), 100), 0);
  for (unsigned i = 0; i < 100000; i++)
    ck_assert_int_eq (help_zero (&w->h, 500 + i % 12, 1), 0);
  for (unsigned i = 0; i < 60; i++) {
    ck_assert_int_eq (help_write (&w->h, help_below (300), 100), 0);
    (void) help_seal (&w->h);
  }
  crash ();
  for (unsigned lap = 0; lap < 3; lap++) {
    uint64_t epoch = w->h.epoch;

    help_open (&w->h, (8 + 4 * lap) * MIB, true);
    ck_assert_int_eq (w->h.took, JOURNAL_TOOK_SHARED);
    w->h.epoch = epoch;
    check_world ();
    ck_assert_int_eq (help_write (&w->h, help_below (300), 100), 0);
    crash ();
  }
  help_open (&w->h, 8 * MIB, true);
  ck_assert_int_eq (help_commit (&w->h, help_seal (&w->h), NULL), 0);
  help_close (&w->h, true);
  help_open (&w->h, 8 * MIB, true);
  check_world ();
}
END_TEST

static void
set_clean (struct journal_state *state, void *opaque)
{
  state->clean = true;
  state->epoch = *(uint64_t *) opaque;
}

static void
set_dirty (struct journal_state *state)
{
  state->clean = false;
}

/* Saved by a clean stop, gone on with, and then killed. */
START_TEST (saved_then_killed)
{
  struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                  .change = set_clean, .opaque = &w->h.epoch };

  for (unsigned lap = 0; lap < 6; lap++) {
    uint64_t epoch;

    help_open (&w->h, 8 * MIB, true);
    ck_assert_int_eq (w->h.took, lap ? JOURNAL_TOOK_SAVED :
                      JOURNAL_TOOK_NOTHING);
    ck_assert_int_eq (help_record (&w->h, JOURNAL_REC_DIRTY, set_dirty), 0);
    for (unsigned i = lap == 3 ? 3 : 200; i > 0; i--)
      ck_assert_int_eq (help_write (&w->h, help_below (480), 1 + i % 30), 0);
    if (lap % 2) {
      (void) help_seal (&w->h);
      ck_assert_int_eq (help_write (&w->h, help_below (480), 30), 0);
    }
    epoch = w->h.epoch;
    crash ();
    for (unsigned again = 0; again < 2; again++) {
      help_open (&w->h, 8 * MIB, true);
      ck_assert_int_eq (w->h.took, JOURNAL_TOOK_SHARED);
      w->h.epoch = epoch;
      check_world ();
      ck_assert_int_eq (help_write (&w->h, 500, 1), 0);
      if (lap % 3 == again)
        ck_assert_int_eq (help_commit (&w->h, help_seal (&w->h), NULL), 0);
      epoch = w->h.epoch;
      if (again == 0)
        crash ();
    }
    ck_assert_int_eq (journal_do_commit (w->h.j, &clean), 0);
    help_close (&w->h, true);
  }
}
END_TEST

/* Between the region's instance and the record that raises it. */
START_TEST (instance_ahead)
{
  struct journal_state state;
  char path[128];
  uint64_t instance;
  int fd;

  help_open (&w->h, 8 * MIB, true);
  ck_assert_int_eq (help_write (&w->h, 0, 9), 0);
  journal_get_state (w->h.j, &state);
  crash ();
  region_path (path);
  fd = open (path, O_RDWR);
  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (pread (fd, &instance, 8, 56), 8);
  ck_assert_uint_eq (instance, state.instance);
  for (unsigned ahead = 0; ahead < 4; ahead++) {
    struct journal *j;
    enum journal_took took;

    instance = state.instance + ahead - (ahead == 3 ? 4 : 0);
    ck_assert_int_eq (pwrite (fd, &instance, 8, 56), 8);
    ck_assert_int_eq (journal_open (&io_posix, w->h.dir, &j, NULL), 0);
    if (ahead == 3)
      ck_assert_int_eq (unlink (path), 0);
    ck_assert_int_eq (journal_start (j, 8 * MIB, true, &took, NULL), 0);
    ck_assert_int_eq (took, ahead < 2 ? JOURNAL_TOOK_SHARED :
                      ahead == 2 ? JOURNAL_TOOK_BAD : JOURNAL_TOOK_NOTHING);
    journal_stop (j, false);
    journal_close (j);
    if (ahead == 2) {
      /* It was made anew: what is bad is not looked at again. */
      ck_assert_int_eq (journal_open (&io_posix, w->h.dir, &j, NULL), 0);
      ck_assert_int_eq (journal_start (j, 8 * MIB, true, &took, NULL), 0);
      ck_assert_int_eq (took, JOURNAL_TOOK_NOTHING);
      journal_stop (j, false);
      journal_close (j);
    }
  }
  close (fd);
}
END_TEST

static int
failing_sync (struct io_file *file)
{
  (void) file;
  errno = EIO;
  return -1;
}

/* What was pushed before may be gone when a sync fails, at the start of the next server, too: then
 * the region is not believed by the one after that.
 */
START_TEST (unsynced)
{
  struct io_ops ops = *io_posix.ops;
  const struct io_fs fs = { .ops = &ops };
  struct journal *j;
  enum journal_took took;

  ops.fdatasync = failing_sync;
  help_open (&w->h, 8 * MIB, true);
  ck_assert_int_eq (help_write (&w->h, 0, 9), 0);
  crash ();
  ck_assert_int_eq (journal_open (&fs, w->h.dir, &j, NULL), -1);
  ck_assert_int_eq (journal_open (&io_posix, w->h.dir, &j, NULL), 0);
  ck_assert_int_eq (journal_start (j, 8 * MIB, true, &took, NULL), 0);
  ck_assert_int_eq (took, JOURNAL_TOOK_BAD);
  journal_stop (j, true);
  journal_close (j);
}
END_TEST

/* One bit of the region is wrong: what is taken over is right, or nothing is. */
START_TEST (flipped)
{
  char path[128];
  struct stat st;
  uint8_t *image, *map;
  unsigned taken = 0, refused = 0;
  uint64_t epoch;
  int fd;

  help_open (&w->h, 8 * MIB, true);
  for (unsigned i = 0; i < 30; i++) {
    ck_assert_int_eq (help_write (&w->h, help_below (480), 1 + help_below (32)),
                      0);
    if (i % 10 == 5)
      ck_assert_int_eq (help_commit (&w->h, help_seal (&w->h), NULL), 0);
  }
  epoch = w->h.epoch;
  crash ();
  region_path (path);
  fd = open (path, O_RDWR);
  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (fstat (fd, &st), 0);
  image = malloc (st.st_size);
  ck_assert_ptr_nonnull (image);
  ck_assert_int_eq (pread (fd, image, st.st_size, 0), st.st_size);
  close (fd);
  for (unsigned lap = 0; lap < 300; lap++) {
    enum journal_took took;
    /* The header, a buffer's page, a table or data near their beginnings. */
    uint64_t at = help_below (4) == 0 ? help_below (104) :
      4096 + help_below (3) * (4096 + MIB) +
      (help_below (3) == 0 ? help_below (80) : 4096 + help_below (200000));

    fd = open (path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge (fd, 0);
    ck_assert_int_eq (ftruncate (fd, st.st_size), 0);
    map = mmap (NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert (map != MAP_FAILED);
    memcpy (map, image, st.st_size);
    map[at] ^= 1 << help_below (8);
    munmap (map, st.st_size);
    close (fd);
    ck_assert_int_eq (journal_open (&io_posix, w->h.dir, &w->h.j, NULL), 0);
    ck_assert_int_eq (journal_start (w->h.j, 8 * MIB, true, &took, NULL), 0);
    if (took == JOURNAL_TOOK_SHARED) {
      /* A flipped bit of the open epoch's number or of the marks cannot be told
       * from the truth; everything else can.
       */
      uint64_t disk[HELP_DISK_BLOCKS] = { 0 }, open_epoch;

      if (at < 104 && at >= 72)
        taken++;
      else if (help_replay_uncommitted (&w->h, disk, &open_epoch) == -1) {
        /* Found when it is read: not taken over either. */
        ck_assert_int_eq (errno, EBADMSG);
        refused++;
      }
      else {
        w->h.epoch = epoch;
        check_world ();
        taken++;
      }
    }
    else
      refused++;
    journal_stop (w->h.j, true);
    journal_close (w->h.j);
    w->h.j = NULL;
  }
  free (image);
  ck_assert_uint_gt (taken, 0);
  ck_assert_uint_gt (refused, 0);
  printf ("TRIED invariant=4,8 test=unit/test-journal-takeover what=\"bits of shared memory flipped\" n=%u\n",
          taken + refused);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("takeover");
  SRunner *sr = srunner_create (s);
  int failed;

  if (access ("/dev/shm", W_OK) == -1) {
    printf ("SKIP: /dev/shm is not to be written\n");
    return 77;
  }
  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 300);
  tcase_add_loop_test (t, killed, 0, 3);
  tcase_add_test (t, spilled);
  tcase_add_test (t, saved_then_killed);
  tcase_add_test (t, instance_ahead);
  tcase_add_test (t, unsynced);
  tcase_add_test (t, flipped);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
