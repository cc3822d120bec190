/* SPDX-License-Identifier: BSD-3-Clause */
/* The page mcbuf-journal(5), held against journal/format.h: each offset table of the page is
 * a structure of the header, field by field, and each structure has its table; so do magic
 * words, kinds, states and flags.  And what the page says of journals of a newer mcbuf.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "unit/format-fields.h"
#include "unit/journal-help.h"
#include "unit/simdisk.h"

#define ROWS 64
#define TABLES 32
#define JOURNAL "/sim/j/journal"

struct row {
  unsigned offset, size;
  char text[120];
};

struct table {
  struct row row[ROWS];
  unsigned n, line;             /* of the page */
};

static struct table tables[TABLES];
static unsigned ntables;
static char *page;              /* all of it */

/* --- reading the page --- */

/* "  OFFSET [SIZE]  TEXT" */
static bool
parse_row (const char *line, struct row *row)
{
  const char *p = line;
  char *end;

  if (!isblank ((unsigned char) *p))
    return false;
  p += strspn (p, " ");
  if (!isdigit ((unsigned char) *p))
    return false;
  row->offset = strtoul (p, &end, 10);
  p = end + strspn (end, " ");
  row->size = 0;
  if (isdigit ((unsigned char) *p)) {
    row->size = strtoul (p, &end, 10);
    p = end;
  }
  else if (p - end < 2)
    return false;
  if (strncmp (p, "  ", 2) != 0 && row->size != 0)
    return false;
  p += strspn (p, " ");
  snprintf (row->text, sizeof row->text, "%s", p);
  if (row->size == 0) {
    const char *to = strstr (row->text, "up to ");

    ck_assert_msg (to != NULL, "no size: %s", line);
    row->size = strtoul (to + strlen ("up to "), NULL, 10) - row->offset;
  }
  return true;
}

static void
read_page (void)
{
  FILE *fp = fopen (FORMAT_PAGE, "r");
  char line[400];
  unsigned number = 0;
  size_t size = 0;

  ck_assert_msg (fp != NULL, "%s: %m", FORMAT_PAGE);
  page = calloc (1, 1 << 20);
  ck_assert_ptr_nonnull (page);
  while (fgets (line, sizeof line, fp)) {
    struct row row;

    number++;
    ck_assert_uint_lt (size + strlen (line), 1 << 20);
    memcpy (page + size, line, strlen (line));
    size += strlen (line);
    line[strcspn (line, "\n")] = '\0';
    if (!parse_row (line, &row))
      continue;
    if (row.offset == 0) {
      ck_assert_uint_lt (ntables, TABLES);
      tables[ntables++].line = number;
    }
    ck_assert_uint_gt (ntables, 0);
    ck_assert_uint_lt (tables[ntables - 1].n, ROWS);
    tables[ntables - 1].row[tables[ntables - 1].n++] = row;
  }
  fclose (fp);
}

/* --- tables and structures --- */

static bool
is_reserved (const struct format_field *f)
{
  return strncmp (f->name, "reserved", 8) == 0;
}

/* Does T describe F?  Reserved bytes may be left out. */
static bool
fits (const struct table *t, const struct format_fields *f)
{
  unsigned i = 0;

  for (unsigned k = 0; k < f->n; k++) {
    if (i < t->n && t->row[i].offset == f->field[k].offset &&
        t->row[i].size == f->field[k].size)
      i++;
    else if (!is_reserved (&f->field[k]))
      return false;
  }
  return i == t->n;
}

/* The structures have no holes, so that nothing undescribed is on disk. */
START_TEST (no_holes)
{
  for (const struct format_fields *f = format_fields; f->name; f++) {
    unsigned at = 0;

    for (unsigned k = 0; k < f->n; k++) {
      ck_assert_msg (f->field[k].offset == at, "%s.%s lies at %u, not %u",
                     f->name, f->field[k].name, f->field[k].offset, at);
      at += f->field[k].size;
    }
    ck_assert_msg (at == f->size, "%s: %u bytes, its fields have %u", f->name,
                   f->size, at);
  }
}
END_TEST

START_TEST (offsets)
{
  unsigned n = 0;

  for (const struct format_fields *f = format_fields; f->name; f++, n++) {
    bool found = false;

    for (unsigned i = 0; i < ntables && !found; i++)
      found = fits (&tables[i], f);
    ck_assert_msg (found, "no table of the page describes struct format_%s",
                   f->name);
  }
  for (unsigned i = 0; i < ntables; i++) {
    bool found = false;

    for (const struct format_fields *f = format_fields; f->name && !found; f++)
      found = fits (&tables[i], f);
    ck_assert_msg (found, "the table at line %u of the page is no structure of "
                   "journal/format.h", tables[i].line);
  }
  ck_assert_uint_gt (n, 8);
  printf ("%u structures, %u tables\n", n, ntables);
}
END_TEST

/* --- words --- */

static void
says (const char *text)
{
  ck_assert_msg (strstr (page, text) != NULL, "the page does not say \"%s\"", text);
}

START_TEST (words)
{
  static const struct { const char *name; unsigned number; } kinds[] = {
    { "CREATE", JOURNAL_REC_CREATE }, { "OPEN", JOURNAL_REC_OPEN },
    { "DIRTY", JOURNAL_REC_DIRTY }, { "CLEAN", JOURNAL_REC_CLEAN },
    { "PART", JOURNAL_REC_PART }, { "COMMIT", JOURNAL_REC_COMMIT },
    { "TARGET", JOURNAL_REC_TARGET }, { "WATERMARK", JOURNAL_REC_WATERMARK },
    { "STATE", JOURNAL_REC_STATE }, { "PROMOTE", JOURNAL_REC_PROMOTE },
    { "PROMOTED_COMMIT", JOURNAL_REC_PROMOTED_COMMIT },
  };
  static const struct { const char *name; unsigned number; } states[] = {
    { "syncing", JOURNAL_SYNCING }, { "protected", JOURNAL_PROTECTED },
    { "stale", JOURNAL_STALE }, { "resyncing", JOURNAL_RESYNCING },
    { "promoted", JOURNAL_PROMOTED }, { "failed", JOURNAL_FAILED },
  };
  static const char *const magic[] = {
    FORMAT_SUPER_MAGIC, FORMAT_ANCHOR_MAGIC, FORMAT_RECORD_MAGIC,
    FORMAT_TABLE_MAGIC, FORMAT_ACKED_MAGIC,
  };
  char text[200];

  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    snprintf (text, sizeof text, " %u %s", kinds[i].number, kinds[i].name);
    says (text);
  }
  for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
    snprintf (text, sizeof text, " %u %s", states[i].number, states[i].name);
    says (text);
  }
  for (size_t i = 0; i < sizeof magic / sizeof magic[0]; i++) {
    snprintf (text, sizeof text, "0    8  magic \"%s\"\n", magic[i]);
    says (text);
  }
  snprintf (text, sizeof text, "flags: %u has a checkpoint, %u clean, %u first copy closed, %u drained",
            FORMAT_HAS_CHECKPOINT, FORMAT_CLEAN, FORMAT_CLOSED, FORMAT_DRAINED);
  says (text);
  snprintf (text, sizeof text, "flags: %u INLINE", FORMAT_INLINE);
  says (text);
  snprintf (text, sizeof text, "flags: %u data, %u zeroes, %u (with %u) may become a hole",
            JOURNAL_DATA, JOURNAL_ZERO, JOURNAL_MAY_TRIM, JOURNAL_ZERO);
  says (text);
  snprintf (text, sizeof text, "flags: %u failed", FORMAT_ACKED_FAILED);
  says (text);
  snprintf (text, sizeof text, "format version %u", FORMAT_VERSION);
  says (text);
  snprintf (text, sizeof text, "block %2u   superblock B", FORMAT_SUPER_B);
  says (text);
  snprintf (text, sizeof text, "block %u  anchor A", FORMAT_ANCHOR_A);
  says (text);
  snprintf (text, sizeof text, "block %u  anchor B", FORMAT_ANCHOR_B);
  says (text);
  snprintf (text, sizeof text, "chunk size: %u", JOURNAL_CHUNK);
  says (text);
  snprintf (text, sizeof text, "block size: %u", JOURNAL_BLOCK);
  says (text);
  snprintf (text, sizeof text, "size of a disk entry: %zu", sizeof (struct format_disk));
  says (text);
  snprintf (text, sizeof text, "at most %u", JOURNAL_MAX_DISKS);
  says (text);
  snprintf (text, sizeof text, "at most %u slots", (unsigned) FORMAT_INLINE_SLOTS);
  says (text);
}
END_TEST

/* --- journals of another mcbuf --- */

static struct help h;
static struct simdisk *disk;

static void
setup (void)
{
  read_page ();
  disk = simdisk_new ();
  help_init (&h, simdisk_fs (disk), JOURNAL_MIN_SIZE);
  help_create (&h);
}

static void
teardown (void)
{
  free (page);
  simdisk_free (disk);
}

/* Set version and flags of a superblock. */
static void
set_super (unsigned copy, uint32_t version, uint32_t compat, uint32_t incompat)
{
  static uint8_t all[JOURNAL_BLOCK + 2 * sizeof (struct format_disk)];
  struct format_super *super = (struct format_super *) all;
  uint64_t at = (copy ? FORMAT_SUPER_B : FORMAT_SUPER_A) * (uint64_t) JOURNAL_BLOCK;
  struct io_file *file;

  ck_assert_int_eq (io_open (h.fs, JOURNAL, O_RDWR, 0, &file), 0);
  ck_assert_int_eq (io_pread (file, all, sizeof all, at), 0);
  ck_assert_uint_eq (get32 (super->length), sizeof all);
  super->version = put32 (version);
  super->compat = put32 (compat);
  super->incompat = put32 (incompat);
  super->crc = put32 (0);
  super->crc = put32 (crc32c (all, sizeof all, 0));
  ck_assert_int_eq (io_pwrite (file, all, sizeof all, at), 0);
  io_close (file);
}

static uint32_t
get_compat (unsigned copy)
{
  struct format_super super;
  struct io_file *file;

  ck_assert_int_eq (io_open (h.fs, JOURNAL, O_RDWR, 0, &file), 0);
  ck_assert_int_eq (io_pread (file, &super, sizeof super,
                              (copy ? FORMAT_SUPER_B : FORMAT_SUPER_A) *
                              (uint64_t) JOURNAL_BLOCK), 0);
  io_close (file);
  return get32 (super.compat);
}

/* A higher version, or an incompatible flag, in whichever copy: refused, nothing touched, both versions
 * named.
 */
START_TEST (newer)
{
  static const struct { unsigned copies; uint32_t version, incompat; const char *words; } super[] = {
    { 3, FORMAT_VERSION + 1, 0, "format version 2 (features 0)" },
    { 3, FORMAT_VERSION, 0x80000000, "format version 1 (features 0x80000000)" },
    { 1, FORMAT_VERSION + 1, 0, "format version 2 (features 0)" },
    { 2, FORMAT_VERSION, 2, "format version 1 (features 0x2)" },
  };
  struct mcerror err = { 0 };
  struct journal *j;
  uint64_t ops;

  for (unsigned copy = 0; copy < 2; copy++)
    if (super[_i].copies & 1u << copy)
      set_super (copy, super[_i].version, 0, super[_i].incompat);
  ops = simdisk_ops (disk);
  ck_assert_int_eq (journal_open (h.fs, h.dir, &j, &err), -1);
  ck_assert_int_eq (err.code, MCEXIT_USAGE);
  ck_assert_int_eq (errno, ENOTSUP);
  ck_assert_msg (strstr (err.text, super[_i].words) != NULL, "%s", err.text);
  ck_assert_msg (strstr (err.text, "reads version 1 (features 0x1)") != NULL, "%s", err.text);
  /* The lock is signed and what is there is synced: that is all. */
  ck_assert_uint_le (simdisk_ops (disk) - ops, 4);
  ck_assert_uint_eq (simdisk_size (disk, JOURNAL), JOURNAL_MIN_SIZE);
}
END_TEST

/* A compatible flag that is not known: go on, and leave it where it is. */
START_TEST (compatible)
{
  struct mcerror err = { 0 };
  struct journal_config changed;
  struct journal_disk disks[2];

  for (unsigned copy = 0; copy < 2; copy++)
    set_super (copy, FORMAT_VERSION, 0x40, 0);
  help_open (&h, 8 << 20, false);
  help_close (&h, true);
  help_open (&h, 0, false);
  changed = *journal_get_config (h.j);
  memcpy (disks, changed.disks, sizeof disks);
  strcpy (disks[0].path, "/moved.img");
  changed.disks = disks;
  ck_assert_msg (journal_set_config (h.j, &changed, &err) == 0, "%s", err.text);
  journal_close (h.j);
  for (unsigned copy = 0; copy < 2; copy++)
    ck_assert_uint_eq (get_compat (copy), 0x40);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("journal");
  TCase *t = tcase_create ("format page");
  SRunner *sr = srunner_create (s);
  int failed;

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_add_test (t, no_holes);
  tcase_add_test (t, offsets);
  tcase_add_test (t, words);
  tcase_add_loop_test (t, newer, 0, 4);
  tcase_add_test (t, compatible);
  suite_add_tcase (s, t);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
