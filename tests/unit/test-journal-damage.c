/* SPDX-License-Identifier: BSD-3-Clause */
/* One bit of a small journal is wrong, or one sector cannot be read, wherever it
 * is: what is found is right, or it is called damage.  Never silently less.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "common/crc.h"
#include "journal/internal.h"
#include "unit/journal-help.h"
#include "unit/simdisk.h"

#define MIB (UINT64_C (1) << 20)
#define JOURNAL "/sim/j/journal"

typedef uint64_t image[HELP_DISK_BLOCKS];

static struct help h;
static struct simdisk *disk;
static image snap[64];
static struct journal_state state;
static struct journal_checkpoint list[64];
static size_t nlist;
static unsigned stale;           /* states whose speculation was lost */
static uint32_t record_chunk, table_chunk, data_chunk;

static void
set_clean (struct journal_state *s, void *opaque)
{
  (void) opaque;
  s->clean = true;
}

static void
build (unsigned last)
{
  disk = simdisk_new ();
  help_init (&h, simdisk_fs (disk), 16 * MIB);
  help_create (&h);
  help_open (&h, 8 * MIB, false);
  for (unsigned e = 1; e <= 8; e++) {
    /* Tables within the record and tables of their own. */
    unsigned n = e % 2 ? 3 + e : 120;

    for (unsigned i = 0; i < n; i++)
      ck_assert_int_eq (help_write (&h, help_below (500),
                                    1 + help_below (n == 120 ? 2 : 12)), 0);
    ck_assert_int_eq (help_zero (&h, help_below (500), 5), 0);
    memcpy (snap[e], h.now, sizeof h.now);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), "label"), 0);
    if (e == 4)
      ck_assert_int_eq (help_watermark (&h, 2), 0);
  }
  /* Whichever kind comes last must not be lost unnoticed. */
  if (last == 1)
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, NULL), 0);
  else if (last == 2) {
    h.epoch++;
    ck_assert_int_eq (help_write (&h, 0, 100), 0);
    memcpy (snap[h.epoch], h.now, sizeof h.now);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  }
  else if (last == 3) {
    struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                    .change = set_clean };

    h.epoch++;
    for (unsigned i = 0; i < 110; i++)
      ck_assert_int_eq (help_write (&h, i, 1), 0);
    ck_assert_int_eq (journal_do_commit (h.j, &clean), 0);
  }
  journal_get_state (h.j, &state);
  nlist = journal_checkpoints (h.j, list, 64);
  for (uint32_t c = 1; c < h.j->nchunks; c++)
    switch (h.j->chunks[c].kind) {
    case CHUNK_RECORD:
      if (c == h.j->log.chain[0].chunk)
        record_chunk = c;
      break;
    case CHUNK_TABLE:
      if (h.j->chunks[c].max_epoch > 0)
        table_chunk = c;
      break;
    case CHUNK_DATA:
      if (h.j->chunks[c].min_epoch > 2 && h.j->chunks[c].closed)
        data_chunk = c;
    }
  ck_assert (record_chunk && table_chunk && data_chunk);
  help_close (&h, true);
}

static void
setup (void)
{
  help_seed ();
}

static void
teardown (void)
{
  simdisk_free (disk);
}

/* What D holds is right as far as it says so.  1: nothing is wrong, 0: damage was
 * reported.
 */
static int
judge (struct simdisk *d, const char *where)
{
  struct journal_damage damage = { 0 };
  struct journal_checkpoint got[64];
  struct journal_state found;
  struct mcerror err = { 0 };
  struct help o = h;
  image content;
  uint64_t from;
  size_t n;
  int bad;

  o.fs = simdisk_fs (d);
  if (journal_open (o.fs, o.dir, &o.j, &err) == -1) {
    ck_assert_msg (err.code == MCEXIT_DAMAGE, "%s: code %d: %s", where,
                   err.code, err.text);
    return 0;
  }
  bad = journal_get_damage (o.j, &damage);
  journal_get_state (o.j, &found);
  n = journal_checkpoints (o.j, got, 64);
  if (bad) {
    ck_assert_msg (damage.file[0] && damage.what[0], "%s: unnamed damage",
                   where);
    ck_assert_msg (n <= nlist, "%s: more checkpoints than there were", where);
    /* A write must still be possible, without harm to what is whole. */
  }
  else {
    if (state.clean && !found.clean) {
      enum journal_took took;

      /* Speculation is lost, which the replica must be told. */
      ck_assert_int_eq (journal_start (o.j, 8 * MIB, false, &took, NULL), 0);
      ck_assert_int_eq (took, JOURNAL_TOOK_BAD);
      journal_stop (o.j, true);
      found.clean = true;
      found.zero_filled = state.zero_filled;
      stale++;
    }
    ck_assert_msg (memcmp (&found, &state, sizeof found) == 0,
                   "%s: another state, and no damage", where);
    ck_assert_msg (n == nlist, "%s: %zu checkpoints, not %zu, and no damage",
                   where, n, nlist);
  }
  from = found.watermark.id;
  memcpy (content, snap[from], sizeof content);
  for (size_t i = 0; i < n; i++) {
    ck_assert_uint_eq (got[i].id, list[i].id);
    ck_assert_str_eq (got[i].label, list[i].label);
    if (help_replay (&o, from, got[i].id, content, &damage) == -1) {
      ck_assert_msg (errno == EBADMSG, "%s: %s", where, strerror (errno));
      ck_assert_int_eq (journal_verify (o.j, from, got[i].id, NULL, NULL,
                                        &damage), -1);
      ck_assert_int_eq (errno, EBADMSG);
      ck_assert_uint_eq (damage.checkpoint, got[i].id);
      bad = 1;
      break;
    }
    from = got[i].id;
    ck_assert_msg (memcmp (content, snap[from], sizeof content) == 0,
                   "%s: checkpoint %llu is not what it was", where,
                   (unsigned long long) from);
  }
  if (bad) {
    enum journal_took took;

    /* The replica must be able to note that it has failed. */
    ck_assert_msg (journal_start (o.j, 8 * MIB, false, &took, &err) == 0,
                   "%s: %s", where, err.text);
    ck_assert_int_eq (help_record (&o, JOURNAL_REC_STATE, NULL), 0);
  }
  journal_stop (o.j, true);
  journal_close (o.j);
  return !bad;
}

enum area { SUPER, ANCHOR, RECORDS, TABLES, DATA, ACKED, ANYWHERE, AREAS };
static const char *const area_name[] = {
  "superblocks", "anchors", "records", "tables", "data", "acked", "anywhere",
};

static uint64_t
pick (enum area area)
{
  switch (area) {
  case SUPER:
    return help_below (2) * FORMAT_SUPER_B * JOURNAL_BLOCK + help_below (13000);
  case ANCHOR:
    return (FORMAT_ANCHOR_A + help_below (2)) * JOURNAL_BLOCK +
           help_below (help_below (2) ? 64 : JOURNAL_BLOCK);
  case RECORDS:
    return record_chunk * MIB + help_below (20 * JOURNAL_BLOCK);
  case TABLES:
    return table_chunk * MIB + help_below (16 * JOURNAL_BLOCK);
  case DATA:
    return data_chunk * MIB + help_below (200 * JOURNAL_BLOCK);
  case ACKED:
    return help_below (128);
  default:
    return help_random () % (16 * MIB);
  }
}

START_TEST (one_bit)
{
  unsigned whole[AREAS] = { 0 }, damaged[AREAS] = { 0 };

  build (_i);
  ck_assert_int_eq (judge (disk, "as built"), 1);
  for (unsigned lap = 0; lap < 1200; lap++) {
    struct simdisk *d = simdisk_crash (disk, SIMDISK_KILL, help_random);
    enum area area = help_below (AREAS);
    uint64_t off = pick (area);
    char where[100];

    snprintf (where, sizeof where, "%s, byte %llu", area_name[area],
              (unsigned long long) off);
    if (area == ACKED)
      simdisk_flip (d, "/sim/j/acked", off, 1 << help_below (8));
    else
      simdisk_flip (d, JOURNAL, off, 1 << help_below (8));
    if (judge (d, where))
      whole[area]++;
    else
      damaged[area]++;
    simdisk_free (d);
  }
  for (enum area a = 0; a < AREAS; a++)
    printf ("%s: %u harmless, %u found\n", area_name[a], whole[a], damaged[a]);
  printf ("TRIED invariant=1 test=unit/test-journal-damage what=\"bits of a journal flipped\" n=1200\n");
  ck_assert_uint_eq (damaged[SUPER], 0);
  ck_assert_uint_eq (damaged[ANCHOR], 0);
  ck_assert_uint_eq (damaged[ACKED], 0);
  ck_assert_uint_gt (damaged[RECORDS], 0);
  ck_assert_uint_gt (damaged[TABLES], 0);
  ck_assert_uint_gt (damaged[DATA], 0);
  ck_assert (_i != 3 || stale > 0);
}
END_TEST

START_TEST (unreadable)
{
  build (_i);
  for (unsigned lap = 0; lap < 300; lap++) {
    struct simdisk *d = simdisk_crash (disk, SIMDISK_KILL, help_random);
    enum area area = help_below (ACKED);
    uint64_t off = ROUND_DOWN (pick (area), (uint64_t) 512);
    char where[100];

    snprintf (where, sizeof where, "%s, sector at %llu", area_name[area],
              (unsigned long long) off);
    simdisk_bad (d, JOURNAL, off, 512);
    (void) judge (d, where);
    simdisk_free (d);
  }
}
END_TEST

/* What was made by a newer mcbuf, or is none of ours, is refused as such. */
START_TEST (not_ours)
{
  struct journal *j;
  struct mcerror err = { 0 };
  struct simdisk *d;

  build (0);
  /* Version 0 -> 128 + 1 in both copies; their crc is set right by hand. */
  for (unsigned i = 0; i < 2; i++) {
    struct format_super super;
    uint64_t at = i * FORMAT_SUPER_B * JOURNAL_BLOCK;
    struct io_file *file;
    uint8_t all[16384];
    uint32_t len;

    ck_assert_int_eq (io_open (simdisk_fs (disk), JOURNAL, 2, 0, &file), 0);
    ck_assert_int_eq (io_pread (file, all, sizeof all, at), 0);
    memcpy (&super, all, sizeof super);
    len = get32 (super.length);
    super.version = put32 (129);
    super.incompat = put32 (4);
    super.crc = put32 (0);
    memcpy (all, &super, sizeof super);
    super.crc = put32 (crc32c (all, len, 0));
    memcpy (all, &super, sizeof super);
    ck_assert_int_eq (io_pwrite (file, all, sizeof all, at), 0);
    io_close (file);
  }
  ck_assert_int_eq (journal_open (simdisk_fs (disk), "/sim/j", &j, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_USAGE);
  ck_assert_msg (strstr (err.text, "version 129") && strstr (err.text, "version 1 "),
                 "%s", err.text);

  d = simdisk_new ();
  {
    struct io_file *file;
    char junk[65536];

    memset (junk, 'x', sizeof junk);
    ck_assert_int_eq (io_open (simdisk_fs (d), JOURNAL, 0102, 0, &file), 0);
    ck_assert_int_eq (io_pwrite (file, junk, sizeof junk, 0), 0);
    io_close (file);
  }
  ck_assert_int_eq (journal_open (simdisk_fs (d), "/sim/j", &j, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_USAGE);
  simdisk_free (d);

  d = simdisk_new ();
  ck_assert_int_eq (journal_open (simdisk_fs (d), "/sim/j", &j, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_USAGE);
  ck_assert_int_eq (errno, ENOENT);
  simdisk_free (d);
}
END_TEST

/* Both anchors, or the mark of another replica: no half measures. */
START_TEST (both_copies)
{
  struct journal *j;
  struct journal_damage damage;
  struct mcerror err = { 0 };
  struct simdisk *d;

  build (0);
  d = simdisk_crash (disk, SIMDISK_KILL, help_random);
  simdisk_flip (d, JOURNAL, FORMAT_ANCHOR_A * JOURNAL_BLOCK + 40, 1);
  simdisk_flip (d, JOURNAL, FORMAT_ANCHOR_B * JOURNAL_BLOCK + 44, 1);
  ck_assert_int_eq (journal_open (simdisk_fs (d), "/sim/j", &j, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_DAMAGE);
  simdisk_free (d);

  d = simdisk_crash (disk, SIMDISK_KILL, help_random);
  simdisk_flip (d, JOURNAL, 40, 1);
  simdisk_flip (d, JOURNAL, FORMAT_SUPER_B * JOURNAL_BLOCK + 44, 1);
  ck_assert_int_eq (journal_open (simdisk_fs (d), "/sim/j", &j, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_DAMAGE);
  simdisk_free (d);

  /* An acknowledged mark that is whole, but not of this replica. */
  {
    struct simdisk *mine = disk;
    struct io_file *file;
    struct format_acked a;

    build (0);
    ck_assert_int_eq (io_open (simdisk_fs (disk), "/sim/j/acked", 2, 0, &file), 0);
    ck_assert_int_eq (io_pread (file, &a, sizeof a, 0), 0);
    io_close (file);
    ck_assert_int_eq (io_open (simdisk_fs (mine), "/sim/j/acked", 2, 0, &file), 0);
    ck_assert_int_eq (io_pwrite (file, &a, sizeof a, 0), 0);
    io_close (file);
    ck_assert_int_eq (journal_open (simdisk_fs (mine), "/sim/j", &j, &err), 0);
    ck_assert_int_eq (journal_get_damage (j, &damage), 1);
    ck_assert_str_eq (damage.file, "acked");
    journal_close (j);
    simdisk_free (mine);
  }
}
END_TEST

static void
give_up (struct journal_state *s)
{
  s->has_checkpoint = false;
  s->watermark = s->checkpoint = (struct journal_checkpoint) { .id = 0 };
  s->watermark.id = s->target = h.epoch - 1;
}

/* Records are lost at the end of a chunk, or at the beginning of the next one, and the anchors move
 * on to that: what comes after is all there.
 */
START_TEST (hole_between_chunks)
{
  static const unsigned lost[][2] = { { 254, 256 }, { 255, 258 }, { 257, 260 } };
  const unsigned *range = lost[_i % 3];
  struct journal_damage damage;
  uint64_t chunk[2];
  enum journal_took took;
  image content;

  disk = simdisk_new ();
  help_init (&h, simdisk_fs (disk), 16 * MIB);
  help_create (&h);
  help_open (&h, 8 * MIB, false);
  ck_assert_int_eq (help_write (&h, 0, 20), 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  while (h.j->log.seq < 250)
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, NULL), 0);
  while (h.j->log.seq < (_i % 3 == 0 ? 257 : 262)) {
    ck_assert_int_eq (help_write (&h, 40, 1), 0);
    ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  }
  chunk[0] = h.j->log.chain[0].chunk;
  chunk[1] = h.j->log.chain[1].chunk;
  help_close (&h, true);

  for (unsigned seq = range[0]; seq <= range[1]; seq++)
    simdisk_flip (disk, JOURNAL, chunk[(seq - 1) / 256] * MIB +
                  (seq - 1) % 256 * JOURNAL_BLOCK + 100, 1);
  /* As a server that has failed: nothing is written before the way out. */
  ck_assert_int_eq (journal_open (h.fs, h.dir, &h.j, NULL), 0);
  ck_assert_int_eq (journal_start (h.j, 8 * MIB, false, &took, NULL), 0);
  ck_assert_int_eq (journal_get_damage (h.j, &damage), 1);
  ck_assert_uint_gt (damage.checkpoint, 1);
  ck_assert_uint_lt (damage.checkpoint, 13);
  if (_i < 3)
    ck_assert_int_eq (help_watermark (&h, h.epoch - 1), 0);
  else {                        /* a new first copy */
    ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, give_up), 0);
    ck_assert_int_eq (journal_forget (h.j, h.epoch - 1), 0);
  }
  ck_assert_uint_eq (h.j->log.nchain, 1);
  ck_assert_int_eq (help_write (&h, 30, 5), 0);
  memcpy (content, h.now, sizeof content);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  help_close (&h, true);

  help_open (&h, 8 * MIB, false);
  ck_assert_msg (journal_get_damage (h.j, &damage) == 0, "%s", damage.what);
  ck_assert_uint_eq (journal_checkpoints (h.j, list, 64), 2);
  ck_assert_int_eq (help_replay (&h, 1, list[1].id, h.now, &damage), 0);
  ck_assert (memcmp (h.now, content, sizeof content) == 0);
  help_close (&h, true);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("damage");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 300);
  tcase_add_loop_test (t, one_bit, 0, 4);
  tcase_add_loop_test (t, unreadable, 0, 4);
  tcase_add_test (t, not_ours);
  tcase_add_test (t, both_copies);
  tcase_add_loop_test (t, hole_between_chunks, 0, 6);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
