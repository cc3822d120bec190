/* SPDX-License-Identifier: BSD-3-Clause */
/* What the recovery fuzzer has found, in words.  The worlds are the fuzzer's. */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "fuzz/damage.h"
#include "fuzz/fuzz.h"
#include "journal/internal.h"
#include "unit/torture.h"
#include "unit/unit.h"

enum { BACKLOG = 0 };           /* of world.c */

static const struct world *world;
static struct simdisk *disk;

static void
setup (void)
{
  world = world_get (BACKLOG);
  disk = world_copy (world->disk);
  host_reset (77, true);
  host_boot (0);
}

static void
teardown (void)
{
  simdisk_free (disk);
}

static enum mcexit
recover (const char *to, struct recover_result *result, struct mcerror *err)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = WORLD_DIR, .to = to };

  return recover_run (&p, result, err) == 0 ? MCEXIT_DONE : err->code;
}

/* --- where things are --- */

struct find {
  uint64_t epoch;
  struct journal_extent ext;
};

static int
find_extent (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  struct find *f = opaque;

  if (epoch == f->epoch && ext->flags & JOURNAL_DATA && f->ext.block == 0)
    f->ext = *ext;
  return 0;
}

/* The first data of the checkpoint that is N-th of those that there were. */
static struct journal_extent
data_of (unsigned n)
{
  struct find f = { .epoch = world->known[n].id };
  struct journal_damage damage;
  struct mcerror err;
  struct journal *j;

  EXPECT (journal_open (simdisk_fs (disk), WORLD_DIR, &j, &err) == 0);
  EXPECT (journal_replay (j, 0, UINT64_MAX, find_extent, &f, &damage) == 0);
  journal_close (j);
  EXPECT (f.ext.block != 0);
  return f.ext;
}

/* --- tests --- */

/* Damage of a newer checkpoint, in the chunk that an older one's data lies in too, is none
 * of the older one's business.
 */
START_TEST (neighbour)
{
  struct recover_result result;
  struct journal_extent newer = data_of (world->nknown - 1), older = data_of (1);
  struct mcerror err = { 0 };
  char to[32];

  ck_assert_uint_eq (chunk_of (newer.block), chunk_of (older.block));
  simdisk_flip (disk, WORLD_JOURNAL, block_offset (newer.block) + 5, 1);
  ck_assert_int_eq (recover (NULL, &result, &err), MCEXIT_DAMAGE);
  ck_assert (strstr (err.text, "offset") != NULL);
  snprintf (to, sizeof to, "%" PRIu64, world->known[1].id);
  ck_assert_msg (recover (to, &result, &err) == MCEXIT_DONE, "%s", err.text);
  ck_assert_uint_eq (result.checkpoint.id, world->known[1].id);
  ck_assert (world_images_are (disk, &world->known[1]));
}
END_TEST

/* The same with a sector that cannot be read. */
START_TEST (unreadable_neighbour)
{
  struct recover_result result;
  struct journal_extent newer = data_of (world->nknown - 1);
  struct mcerror err = { 0 };
  char to[32];

  simdisk_bad (disk, WORLD_JOURNAL, block_offset (newer.block), 512);
  snprintf (to, sizeof to, "%" PRIu64, world->known[1].id);
  ck_assert_msg (recover (to, &result, &err) == MCEXIT_DONE, "%s", err.text);
  ck_assert (world_images_are (disk, &world->known[1]));
}
END_TEST

/* A descriptor whose checksum is right, but which lies beyond its disk, or on a disk that
 * there is not: damage, and no image grows.
 */
START_TEST (beyond_disk)
{
  static const struct { uint64_t sector; uint16_t number; } bad[] = {
    { UINT64_C (1) << 40, 0 }, { 137, 0 }, { 0, WORLD_DISKS }, { 0, 63 },
  };
  struct recover_result result;
  struct mcerror err = { 0 };
  struct damage d = { .w = world };
  uint8_t mend[DAMAGE_COMMAND] = { DAMAGE_MEND };
  struct format_record rec;
  struct format_desc *desc = (struct format_desc *) rec.payload;
  struct format_super super;
  struct journal_config config;
  uint64_t at = 0;

  /* The newest commit has its table within its record. */
  for (unsigned i = 0; i < world->nblocks[PLACE_RECORD]; i++) {
    uint64_t off = block_offset (world->block[PLACE_RECORD][i]);

    world_read (disk, WORLD_JOURNAL, &rec, sizeof rec, off);
    if (record_is_commit (&rec))
      at = off;
  }
  world_read (disk, WORLD_JOURNAL, &rec, sizeof rec, at);
  world_read (disk, WORLD_JOURNAL, &super, sizeof super, 0);
  memcpy (config.id, super.id, HOST_ID_LEN);
  ck_assert (get16 (rec.flags) & FORMAT_INLINE);
  desc->sector = put64 (bad[_i].sector);
  desc->disk = put16 (bad[_i].number);
  desc->nsectors = put32 (1);
  desc->self_crc = put32 (crc32c (desc, offsetof (struct format_desc, self_crc),
                                  desc_seed (&config, get32 (desc->epoch_low))));
  rec.table_bytes = put64 (FORMAT_SLOT);
  world_write (disk, WORLD_JOURNAL, &rec, sizeof rec, at);
  d.disk = disk;
  damage_apply (&d, mend, sizeof mend);

  ck_assert_int_eq (recover (NULL, &result, &err), MCEXIT_DAMAGE);
  ck_assert (strstr (err.text, "offset") != NULL);
  for (unsigned i = 0; i < WORLD_DISKS; i++)
    ck_assert (simdisk_same (disk, world->disk, world_path[i]));
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("recovery");
  TCase *t = tcase_create ("found");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, neighbour);
  tcase_add_test (t, unreadable_neighbour);
  tcase_add_loop_test (t, beyond_disk, 0, 4);
  suite_add_tcase (s, t);
  return unit_run (s);
}
