/* SPDX-License-Identifier: BSD-3-Clause */
/* The whole replica against a plain model in memory.
 *
 * Random reads, writes, zeroes, trims, seals, commits, resyncs, clean restarts, kills and recoveries on
 * one to three disks of odd sizes.  The server is forked off (forked.c), and killed with SIGKILL between
 * two requests; the model lives here.
 * MCBUF_TEST_SEED replays a run, MCBUF_TEST_STEPS makes it longer.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <check.h>
#include <jansson.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "replica/recover.h"
#include "unit/forked.h"

#define MAX_DISKS FORKED_DISKS
#define MAX_SEALED 8

static uint64_t rng;
static char dir[] = "/tmp/mcbuf-model-XXXXXX";
static char journal_path[128], image_path[MAX_DISKS][128];
static unsigned ndisks;
static uint64_t size[MAX_DISKS];

struct content { uint8_t *disk[MAX_DISKS]; };
static struct content now, committed, sealed[MAX_SEALED];
static uint64_t sealed_epoch[MAX_SEALED], open_epoch, checkpoint;
static unsigned nsealed;
static bool has_checkpoint, resyncing;
static char shm_name[64];       /* the replica's shared memory */

static uint64_t
rnd (uint64_t below)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng % below;
}

static void
content_new (struct content *c)
{
  for (unsigned i = 0; i < ndisks; i++)
    ck_assert_ptr_nonnull (c->disk[i] = calloc (1, size[i]));
}

static void
content_copy (struct content *to, const struct content *from)
{
  for (unsigned i = 0; i < ndisks; i++)
    memcpy (to->disk[i], from->disk[i], size[i]);
}

static void
content_free (struct content *c)
{
  for (unsigned i = 0; i < ndisks; i++)
    free (c->disk[i]);
}

static void
start (void)
{
  struct forked f = { .journal = journal_path, .ndisks = ndisks, .size = size };

  if (rnd (3) == 0)
    f.history.checkpoints = 1 + rnd (30);
  else if (rnd (3) == 0)
    f.history.ns = 1 + rnd (3000000000u);
  for (unsigned i = 0; i < ndisks; i++)
    f.image[i] = image_path[i];
  forked_start (&f);
}

static json_t *
control (const char *line, int expect)
{
  char reply[65536];
  json_t *json;
  int r = forked_ask (OP_CONTROL, 0, 0, strlen (line), line, reply, sizeof reply);

  json = json_loads (reply, 0, NULL);
  ck_assert_ptr_nonnull (json);
  ck_assert_msg (r == expect, "%s: %s", line, reply);
  return json;
}

static uint64_t
number (json_t *json, const char *key)
{
  json_t *v = json_object_get (json, key);

  ck_assert_msg (json_is_integer (v), "no number \"%s\"", key);
  return json_integer_value (v);
}

/* --- the steps ------------------------------------------------------------------- */

static void
pick_range (unsigned *disk, uint64_t *offset, uint32_t *count, uint32_t max)
{
  static const uint32_t grain[] = { 1, 512, 4096, 65536 };
  uint32_t g = grain[rnd (4)];

  *disk = rnd (ndisks);
  *offset = ROUND_DOWN (rnd (size[*disk]), (uint64_t) g);
  *count = 1 + rnd (MIN (size[*disk] - *offset, (uint64_t) max));
  if (*count > g)
    *count = ROUND_DOWN (*count, g);
  if (rnd (40) == 0) {          /* the very end */
    *count = 1 + rnd (MIN (size[*disk], (uint64_t) 5000));
    *offset = size[*disk] - *count;
  }
}

static void
step_write (void)
{
  static uint8_t buf[200000];
  unsigned disk;
  uint64_t offset;
  uint32_t count;

  pick_range (&disk, &offset, &count, rnd (10) ? 9000 : sizeof buf);
  for (uint32_t i = 0; i < count; i += 8) {
    uint64_t v = rnd (UINT64_MAX);

    memcpy (buf + i, &v, MIN (8u, count - i));
  }
  /* A resync brings what is there already, more often than not. */
  if (resyncing && rnd (4) != 0) {
    uint32_t keep = rnd (3) == 0 ? rnd (count) : count;

    memcpy (buf, committed.disk[disk] + offset, keep);
  }
  ck_assert_int_eq (forked_ask (OP_WRITE, disk, offset, count, buf, NULL, 0), 0);
  memcpy (now.disk[disk] + offset, buf, count);
}

static void
step_zero (void)
{
  unsigned disk;
  uint64_t offset;
  uint32_t count;

  pick_range (&disk, &offset, &count, rnd (4) ? 20000 : 2000000);
  ck_assert_int_eq (forked_ask (rnd (2) ? OP_ZERO : OP_TRIM, disk, offset, count,
                         NULL, NULL, 0), 0);
  memset (now.disk[disk] + offset, 0, count);
}

static void
step_read (void)
{
  static uint8_t buf[300000];
  unsigned disk;
  uint64_t offset;
  uint32_t count;

  pick_range (&disk, &offset, &count, rnd (4) ? 20000 : sizeof buf);
  ck_assert_int_eq (forked_ask (OP_READ, disk, offset, count, NULL, buf, sizeof buf), 0);
  for (uint32_t i = 0; i < count; i++)
    if (buf[i] != now.disk[disk][offset + i])
      ck_abort_msg ("disk %u offset %" PRIu64 ": read %02x, expected %02x (range %" PRIu64 "+%u)",
                    disk, offset + i, buf[i], now.disk[disk][offset + i],
                    offset, count);
}

static void
step_seal (void)
{
  json_t *json;

  if (nsealed == MAX_SEALED)
    return;
  json = control ("seal", 0);
  ck_assert_uint_eq (number (json, "sealed"), open_epoch);
  json_decref (json);
  content_copy (&sealed[nsealed], &now);
  sealed_epoch[nsealed++] = open_epoch++;
}

static void
step_commit (void)
{
  unsigned i = nsealed ? rnd (nsealed + 1) : 0;
  char line[64] = "commit label=from the model";
  json_t *json;
  uint64_t n;

  if (i < nsealed) {
    n = sealed_epoch[i];
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, n);
    content_copy (&committed, &sealed[i]);
    for (unsigned k = i + 1; k < nsealed; k++) {
      content_copy (&sealed[k - i - 1], &sealed[k]);
      sealed_epoch[k - i - 1] = sealed_epoch[k];
    }
    nsealed -= i + 1;
  }
  else {
    n = open_epoch++;
    content_copy (&committed, &now);
    nsealed = 0;
  }
  json = control (line, 0);
  ck_assert_uint_eq (number (json, "checkpoint"), n);
  json_decref (json);
  checkpoint = n;
  has_checkpoint = true;
  resyncing = false;
}

/* All of it, as it is in the checkpoint: nothing has to be taken. */
static void
copy_unchanged (void)
{
  json_t *json, *speculation;

  for (unsigned d = 0; d < ndisks; d++)
    for (uint64_t at = 0; at < size[d];) {
      uint32_t n = 1 + rnd (MIN (size[d] - at, UINT64_C (300000)));
      const uint8_t *data = committed.disk[d] + at;
      bool zero = data[0] == 0 && memcmp (data, data + 1, n - 1) == 0;

      ck_assert_int_eq (forked_ask (zero ? OP_ZERO : OP_WRITE, d, at, n,
                             zero ? NULL : data, NULL, 0), 0);
      at += n;
    }
  json = control ("status", 0);
  speculation = json_object_get (json, "speculation");
  ck_assert_uint_eq (number (speculation, "extents"), 0);
  ck_assert_uint_eq (number (speculation, "bytes"), 0);
  json_decref (json);
}

static void
step_resync (void)
{
  json_t *json;

  if (!has_checkpoint)
    return;
  json = control ("resync", 0);
  json_decref (json);
  resyncing = true;
  nsealed = 0;
  open_epoch++;
  content_copy (&now, &committed);
  if (rnd (2))
    copy_unchanged ();
}

static void
resume (void)
{
  json_t *json;

  start ();
  json = control ("status", 0);
  ck_assert_str_eq (json_string_value (json_object_get (json, "state")),
                    resyncing ? "resyncing" : has_checkpoint ? "protected" : "syncing");
  ck_assert_uint_eq (number (json, "open_epoch"), open_epoch);
  ck_assert_uint_eq (number (json, "sealed_epochs"), nsealed);
  json_decref (json);
}

/* Shared memory outlives a server that was killed, for the next one; and goes with
 * a clean stop and with a recovery.
 */
static bool
shm_exists (void)
{
  CLEANUP_CLOSE int fd = shm_open (shm_name, O_RDONLY, 0);

  return fd != -1;
}

static void
step_restart (void)
{
  forked_close ();
  resume ();
}

static void
step_kill (void)
{
  forked_kill ();
  resume ();
}

static void
check_images (void)
{
  for (unsigned d = 0; d < ndisks; d++) {
    CLEANUP_CLOSE int fd = open (image_path[d], O_RDONLY | O_CLOEXEC);
    CLEANUP_FREE uint8_t *buf = malloc (size[d]);

    ck_assert_int_ne (fd, -1);
    ck_assert_ptr_nonnull (buf);
    ck_assert_int_eq (pread (fd, buf, size[d], 0), (ssize_t) size[d]);
    for (uint64_t i = 0; i < size[d]; i++)
      if (buf[i] != committed.disk[d][i])
        ck_abort_msg ("disk %u offset %" PRIu64 ": image %02x, checkpoint %02x",
                      d, i, buf[i], committed.disk[d][i]);
  }
}

static void
remove_all (void)
{
  char command[256];

  snprintf (command, sizeof command, "rm -rf %s/*", dir);
  ck_assert_int_eq (system (command), 0);
}

/* Fail over, twice, and begin a new life with new disks. */
static void
step_recover (bool clean)
{
  struct recover_params p = { .fs = &io_posix, .dir = journal_path };
  struct recover_result first, second;
  struct mcerror err;

  if (clean) {
    ck_assert_int_eq (forked_ask (OP_CLOSE, 0, 0, 0, NULL, NULL, 0), 0);
  }
  else
    forked_kill ();
  if (!has_checkpoint) {
    ck_assert_int_eq (recover_run (&p, &first, &err), -1);
    ck_assert_int_eq (err.code, MCEXIT_NO_CHECKPOINT);
    /* Nobody will come for it: this replica is about to be removed. */
    ck_assert_int_eq (shm_exists (), !clean);
    ck_assert (clean || shm_unlink (shm_name) == 0);
  }
  else {
    ck_assert_msg (recover_run (&p, &first, &err) == 0, "%s", err.text);
    ck_assert_uint_eq (first.checkpoint.id, checkpoint);
    check_images ();
    ck_assert_msg (recover_run (&p, &second, &err) == 0, "%s", err.text);
    ck_assert_uint_eq (second.checkpoint.id, checkpoint);
    ck_assert_uint_eq (second.generation, first.generation);
    ck_assert_uint_eq (second.discarded_bytes, first.discarded_bytes);
    ck_assert_uint_eq (second.written_bytes, 0);
    check_images ();
    ck_assert (!shm_exists ());
  }
  remove_all ();
}

static void
begin_life (void)
{
  json_t *json;

  ndisks = 1 + rnd (MAX_DISKS);
  for (unsigned i = 0; i < ndisks; i++)
    size[i] = 1 + rnd (3) * 1000000 + rnd (700001);
  content_new (&now);
  content_new (&committed);
  for (unsigned i = 0; i < MAX_SEALED; i++)
    content_new (&sealed[i]);
  nsealed = 0;
  open_epoch = 1;
  has_checkpoint = resyncing = false;
  start ();
  json = control ("status", 0);
  snprintf (shm_name, sizeof shm_name, "/mcbuf-%s",
            json_string_value (json_object_get (json, "replica")));
  json_decref (json);
}

static void
end_life (bool clean)
{
  step_recover (clean);
  content_free (&now);
  content_free (&committed);
  for (unsigned i = 0; i < MAX_SEALED; i++)
    content_free (&sealed[i]);
}

START_TEST (model)
{
  const char *seed = getenv ("MCBUF_TEST_SEED");
  const char *steps = getenv ("MCBUF_TEST_STEPS");
  unsigned n = steps ? strtoul (steps, NULL, 0) : 6000;

  rng = seed ? strtoull (seed, NULL, 0) : host_time_ns () | 1;
  printf ("MCBUF_TEST_SEED=%" PRIu64 "\n", rng);
  fflush (stdout);
  ck_assert_ptr_nonnull (mkdtemp (dir));
  snprintf (journal_path, sizeof journal_path, "%s/journal", dir);
  for (unsigned i = 0; i < MAX_DISKS; i++)
    snprintf (image_path[i], sizeof image_path[i], "%s/d%u.img", dir, i);

  begin_life ();
  for (unsigned i = 0; i < n; i++) {
    uint64_t what = rnd (1000);

    if (what < 500)
      step_write ();
    else if (what < 560)
      step_zero ();
    else if (what < 800)
      step_read ();
    else if (what < 860)
      step_seal ();
    else if (what < 980)
      step_commit ();
    else if (what < 986)
      step_restart ();
    else if (what < 992)
      step_kill ();
    else if (what < 995)
      step_resync ();
    else if (what < 997) {
      end_life (rnd (2));
      begin_life ();
    }
  }
  end_life (true);
  printf ("TRIED invariant=1,2,3,4,5,6 test=unit/test-replica-model what=\"random requests, restarts and kills\" n=%u\n",
          n);
  ck_assert_int_eq (rmdir (dir), 0);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica-model");
  TCase *t = tcase_create ("model");
  SRunner *runner;
  int failed;

  tcase_set_timeout (t, 600);
  tcase_add_test (t, model);
  suite_add_tcase (s, t);
  runner = srunner_create (s);
  srunner_set_fork_status (runner, CK_NOFORK);
  srunner_run_all (runner, CK_NORMAL);
  failed = srunner_ntests_failed (runner);
  srunner_free (runner);
  forked_end ();
  if (failed)
    (void) shm_unlink (shm_name);
  if (failed) {
    char command[64];

    snprintf (command, sizeof command, "rm -rf %s", dir);
    if (getenv ("MCBUF_TEST_KEEP") == NULL && system (command) != 0)
      return EXIT_FAILURE;
  }
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
