/* SPDX-License-Identifier: BSD-3-Clause */
/* The format, held against bytes that version 1 wrote: the journal that is made
 * here must come out the same to the last bit, and that of the golden file must
 * be read as what it is.
 *
 * When the format changes on purpose: raise the version, keep the old file, and let
 * MCBUF_GOLDEN_WRITE name the new one.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "journal/internal.h"
#include "unit/journal-help.h"
#include "unit/simdisk.h"

#define MIB (UINT64_C (1) << 20)
#define JOURNAL "/sim/j/journal"
#define LINE 16u

/* Linked in place of the host's, so that nothing is random. */
extern int __wrap_host_random (void *buf, unsigned len);
extern int __wrap_host_boot_id (uint8_t id[HOST_ID_LEN]);

static uint8_t next_random;

int
__wrap_host_random (void *buf, unsigned len)
{
  for (unsigned i = 0; i < len; i++)
    ((uint8_t *) buf)[i] = ++next_random * 7;
  if (len == 8) {               /* a number: the same one on every CPU */
    le64 v;

    memcpy (&v, buf, sizeof v);
    *(uint64_t *) buf = get64 (v);
  }
  return 0;
}

int
__wrap_host_boot_id (uint8_t id[HOST_ID_LEN])
{
  for (unsigned i = 0; i < HOST_ID_LEN; i++)
    id[i] = 0xb0 + i;
  return 0;
}

static struct help h;

static void
set_watermark (struct journal_state *state)
{
  state->watermark = state->checkpoint;
  state->target = state->checkpoint.id;
}

static void
set_all (struct journal_state *state)
{
  state->state = JOURNAL_PROMOTED;
  state->drained = true;
  state->closed = true;
  state->generation = 0x1122334455667788;
  state->epoch_limit = 0x99;
  state->discarded_epochs = 0x77;
  state->discarded_bytes = 0x66;
  state->void_epoch = 2;
}

static void
set_clean (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->clean = true;
}

static void
write_images (unsigned n, uint64_t sector, unsigned nsectors, uint16_t number)
{
  struct journal_span span;
  uint32_t crc[16];
  struct journal_extent ext = { .disk = number, .flags = JOURNAL_DATA,
                                .nsectors = nsectors, .sector = sector };

  ck_assert_int_eq (journal_reserve (h.j, n, &span), 0);
  ck_assert_uint_eq (span.nblocks, n);
  for (unsigned i = 0; i < n; i++) {
    char *p = (char *) span.mem + i * JOURNAL_BLOCK;

    memset (p, 0, JOURNAL_BLOCK);
    p[i] = 1 + i;
    crc[i] = crc32c (p, JOURNAL_BLOCK, 0);
  }
  journal_filled (h.j, &span, crc);
  ck_assert_int_eq (journal_credit (h.j, 1, n), 0);
  ext.block = span.block;
  journal_publish (h.j, h.epoch, &ext, 1);
}

/* One of everything. */
static struct simdisk *
make (void)
{
  struct simdisk *disk = simdisk_new ();
  struct journal_commit clean = { .kind = JOURNAL_REC_CLEAN,
                                  .change = set_clean };

  next_random = 0;
  help_init (&h, simdisk_fs (disk), 16 * MIB);
  help_create (&h);
  help_open (&h, 8 * MIB, false);
  write_images (1, 8, 8, 0);
  write_images (11, 0x123456789a, 81, 1);
  ck_assert_int_eq (help_zero (&h, 100, 5), 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), "gr\303\274n"), 0);
  ck_assert_int_eq (help_record (&h, JOURNAL_REC_WATERMARK, set_watermark), 0);
  for (unsigned i = 0; i < 100; i++)
    ck_assert_int_eq (help_zero (&h, i, 1), 0);
  (void) help_seal (&h);
  write_images (2, 16, 16, 0);
  ck_assert_int_eq (help_commit (&h, help_seal (&h), NULL), 0);
  ck_assert_int_eq (help_record (&h, JOURNAL_REC_STATE, set_all), 0);
  write_images (1, 800, 8, 0);
  ck_assert_int_eq (journal_do_commit (h.j, &clean), 0);
  help_close (&h, true);
  return disk;
}

static FILE *
golden_open (void)
{
  FILE *fp = fopen (SRCDIR "/unit/journal-format-1.golden", "r");

  ck_assert_msg (fp != NULL, "%s/unit/journal-format-1.golden: %m", SRCDIR);
  return fp;
}

/* The next line of FP: where it lies and its bytes. */
static bool
golden_line (FILE *fp, char *name, uint64_t *off, uint8_t bytes[LINE])
{
  char text[2 * LINE + 1];
  unsigned long long at;

  if (fscanf (fp, " %15s %llx %32s", name, &at, text) != 3)
    return false;
  *off = at;
  for (unsigned i = 0; i < LINE; i++) {
    unsigned byte;

    ck_assert_int_eq (sscanf (text + 2 * i, "%2x", &byte), 1);
    bytes[i] = byte;
  }
  return true;
}

static const char *const files[] = { "journal", "acked" };

/* Call with each line of what is on DISK that is not zeroes. */
static void
each_line (struct simdisk *disk,
           void (*fn) (const char *name, uint64_t off, const uint8_t *bytes,
                       void *opaque), void *opaque)
{
  static const uint8_t zeroes[LINE];
  uint8_t *mem = malloc (MIB);

  for (unsigned f = 0; f < 2; f++) {
    struct io_file *file;
    char path[32];
    uint64_t size;

    snprintf (path, sizeof path, "/sim/j/%s", files[f]);
    size = simdisk_size (disk, path);
    ck_assert_int_eq (io_open (simdisk_fs (disk), path, O_RDONLY, 0, &file), 0);
    for (uint64_t off = 0; off < size; off += MIB) {
      size_t len = MIN (MIB, size - off);

      ck_assert_int_eq (io_pread (file, mem, len, off), 0);
      for (size_t i = 0; i < len; i += LINE)
        if (memcmp (mem + i, zeroes, LINE) != 0)
          fn (files[f], off + i, mem + i, opaque);
    }
    io_close (file);
  }
  free (mem);
}

static void
write_line (const char *name, uint64_t off, const uint8_t *bytes, void *opaque)
{
  FILE *fp = opaque;

  fprintf (fp, "%s %llx ", name, (unsigned long long) off);
  for (unsigned i = 0; i < LINE; i++)
    fprintf (fp, "%02x", bytes[i]);
  fprintf (fp, "\n");
}

static void
compare_line (const char *name, uint64_t off, const uint8_t *bytes,
              void *opaque)
{
  FILE *fp = opaque;
  uint8_t want[LINE];
  char want_name[16];
  uint64_t want_off;

  ck_assert_msg (golden_line (fp, want_name, &want_off, want),
                 "%s %llx: not in the golden file", name,
                 (unsigned long long) off);
  ck_assert_msg (strcmp (name, want_name) == 0 && off == want_off &&
                 memcmp (bytes, want, LINE) == 0,
                 "%s %llx differs from the golden file's %s %llx", name,
                 (unsigned long long) off, want_name,
                 (unsigned long long) want_off);
}

/* Samples in a record's payload, byte for byte. */
START_TEST (samples)
{
  static const uint8_t bytes[] = {
    0x06, 0x05, 0x04, 0x03, 0x02, 0x01, 0x08, 0x07, 0x80, 0, 0, 0, 0xd4, 0xc3, 0xb2, 0xa1,
    0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  };
  static const struct journal_sample s[] = {
    { .disk = 0x0708, .sector = 0x010203040506, .nsectors = 128, .crc = 0xa1b2c3d4 },
    { .disk = 0, .sector = 0, .nsectors = 1, .crc = 0xffffffff },
  };
  static struct format_record rec;
  struct journal_sample got[JOURNAL_SAMPLES];

  record_put_samples (&rec, s, 2);
  ck_assert_mem_eq ((const uint8_t *) &rec + 1024, bytes, sizeof bytes);
  ck_assert_uint_eq (record_get_samples (&rec, got), 2);
  for (unsigned i = 0; i < 2; i++) {
    ck_assert_uint_eq (got[i].disk, s[i].disk);
    ck_assert_uint_eq (got[i].sector, s[i].sector);
    ck_assert_uint_eq (got[i].nsectors, s[i].nsectors);
    ck_assert_uint_eq (got[i].crc, s[i].crc);
  }
  for (unsigned i = 0; i < JOURNAL_SAMPLES; i++)
    got[i] = s[1];
  record_put_samples (&rec, got, JOURNAL_SAMPLES);
  ck_assert_uint_eq (record_get_samples (&rec, got), JOURNAL_SAMPLES);
}
END_TEST

START_TEST (written)
{
  struct simdisk *disk = make ();
  const char *to = getenv ("MCBUF_GOLDEN_WRITE");
  FILE *fp = to ? fopen (to, "w") : golden_open ();

  ck_assert_ptr_nonnull (fp);
  each_line (disk, to ? write_line : compare_line, fp);
  if (!to) {
    uint8_t bytes[LINE];
    char name[16];
    uint64_t off;

    ck_assert_msg (!golden_line (fp, name, &off, bytes),
                   "%s %llx of the golden file was not written", name,
                   (unsigned long long) off);
  }
  ck_assert_int_eq (fclose (fp), 0);
  simdisk_free (disk);
}
END_TEST

static int
count_extent (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  unsigned *n = opaque;
  uint8_t data[JOURNAL_BLOCK];

  ck_assert (epoch == 1 || epoch == 3 || epoch == 4);
  if (ext->flags & JOURNAL_DATA)
    for (unsigned i = 0; i < journal_extent_blocks (ext); i++) {
      ck_assert_int_eq (journal_read (h.j, ext->block + i, 0, JOURNAL_BLOCK,
                                      data, NULL), 0);
      ck_assert_uint_eq (data[i], 1 + i);
    }
  if (epoch == 1 && ext->disk == 1) {
    ck_assert_uint_eq (ext->sector, 0x123456789a);
    ck_assert_uint_eq (ext->nsectors, 81);
  }
  ++*n;
  return 0;
}

START_TEST (read_golden)
{
  struct simdisk *disk = simdisk_new ();
  FILE *fp = golden_open ();
  struct io_file *file[2];
  struct journal_state state;
  struct mcerror err = { 0 };
  uint8_t bytes[LINE];
  char name[16];
  uint64_t off, open_epoch;
  unsigned n = 0;

  for (unsigned f = 0; f < 2; f++) {
    char path[32];

    snprintf (path, sizeof path, "/sim/j/%s", files[f]);
    ck_assert_int_eq (io_open (simdisk_fs (disk), path, O_RDWR | O_CREAT, 0600,
                               &file[f]), 0);
  }
  ck_assert_int_eq (io_fallocate (file[0], 0, 0, 16 * MIB), 0);
  ck_assert_int_eq (io_fallocate (file[1], 0, 0, 128), 0);
  while (golden_line (fp, name, &off, bytes))
    ck_assert_int_eq (io_pwrite (file[strcmp (name, "journal") != 0], bytes,
                                 LINE, off), 0);
  fclose (fp);
  io_close (file[0]);
  io_close (file[1]);

  ck_assert_msg (journal_open (simdisk_fs (disk), "/sim/j", &h.j, &err) == 0,
                 "%s", err.text);
  ck_assert_int_eq (journal_get_damage (h.j, &(struct journal_damage) { 0 }), 0);
  journal_get_state (h.j, &state);
  ck_assert_int_eq (state.state, JOURNAL_PROMOTED);
  ck_assert (state.drained && state.closed && state.clean &&
             state.has_checkpoint);
  ck_assert_uint_eq (state.generation, 0x1122334455667788);
  ck_assert_uint_eq (state.epoch_limit, 0x99);
  ck_assert_uint_eq (state.discarded_epochs, 0x77);
  ck_assert_uint_eq (state.discarded_bytes, 0x66);
  ck_assert_uint_eq (state.void_epoch, 2);
  ck_assert_uint_eq (state.watermark.id, 1);
  ck_assert_str_eq (state.watermark.label, "gr\303\274n");
  ck_assert_uint_eq (state.checkpoint.id, 3);
  ck_assert_str_eq (journal_get_config (h.j)->disks[1].path, "/vm/b.img");
  ck_assert_int_eq (journal_replay (h.j, 1, 3, count_extent, &n, NULL), 0);
  ck_assert_uint_eq (n, 101);
  ck_assert_int_eq (journal_replay_uncommitted (h.j, count_extent, &n,
                                                &open_epoch, NULL), 0);
  ck_assert_uint_eq (n, 102);
  journal_close (h.j);
  simdisk_free (disk);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("format");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_add_test (t, written);
  tcase_add_test (t, read_golden);
  tcase_add_test (t, samples);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
