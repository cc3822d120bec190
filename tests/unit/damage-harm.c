/* SPDX-License-Identifier: BSD-3-Clause */
/* Harm to what a life left: to the journal, the acknowledged mark, the images. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit/damage.h"

static const char *const area_name[] = {
  "superblock A", "superblock B", "anchor A", "anchor B", "record", "table",
  "data", "saved",
};

/* --- edits, all of them durable --- */

static struct io_file *
open_file (struct simdisk *disk, const char *path)
{
  struct io_file *file;

  MUST (io_open (simdisk_fs (disk), path, 2, 0, &file) == 0, "%s: %m", path);
  return file;
}

static void
write_bytes (struct simdisk *disk, const char *path, uint64_t off,
             const void *data, size_t len)
{
  struct io_file *file = open_file (disk, path);

  MUST (io_pwrite (file, data, len, off) == 0 && io_fdatasync (file) == 0,
        "%s: %m", path);
  io_close (file);
}

static void
read_bytes (struct simdisk *disk, const char *path, uint64_t off, void *data,
            size_t len)
{
  struct io_file *file = open_file (disk, path);

  MUST (io_pread (file, data, len, off) == 0, "%s: %m", path);
  io_close (file);
}

static void
cut (struct simdisk *disk, const char *path, uint64_t size)
{
  struct io_file *file = open_file (disk, path);

  MUST (io_truncate (file, size) == 0 && io_fdatasync (file) == 0, "%s: %m",
        path);
  io_close (file);
}

static void
lose (struct simdisk *disk, const char *path)
{
  MUST (io_unlink (simdisk_fs (disk), path) == 0 &&
        io_sync_dir (simdisk_fs (disk), DAMAGE_DIR) == 0, "%s: %m", path);
}

static void
replace (struct simdisk *disk, const char *path, struct simdisk *from,
         const char *source)
{
  lose (disk, path);
  simdisk_copy (disk, path, from, source);
}

/* --- harm to the journal --- */

/* Each area as often as the others, however small it is. */
static const struct damage_place *
some_place (const struct damage_life *l)
{
  for (;;) {
    enum damage_area area = host_below (AREAS);
    unsigned n = 0;

    for (unsigned i = 0; i < l->nplaces; i++)
      n += l->place[i].area == area;
    if (n == 0)
      continue;
    n = host_below (n);
    for (unsigned i = 0; i < l->nplaces; i++)
      if (l->place[i].area == area && n-- == 0)
        return &l->place[i];
  }
}

static uint64_t
some_chunk (const struct damage_life *l)
{
  return host_below (l->used / JOURNAL_CHUNK);
}

static void
harm_journal (const struct damage_life *l, const struct damage_life *other,
              struct simdisk *disk, struct harmed *h)
{
  static uint8_t mem[2][JOURNAL_CHUNK];
  const struct damage_place *p = some_place (l);
  uint64_t off = p->off + host_below (p->len), a, b;

  h->journal = true;
  switch (h->harm) {
  case HARM_BIT:
    h->place = *p;
    simdisk_flip (disk, DAMAGE_JOURNAL, off, 1 << host_below (8));
    snprintf (h->what, sizeof h->what, "a bit of %s at %" PRIu64 " (checkpoint %" PRIu64 ")",
              area_name[p->area], off, p->checkpoint);
    break;
  case HARM_ANY_BIT:
    off = host_below (l->used);
    simdisk_flip (disk, DAMAGE_JOURNAL, off, 1 << host_below (8));
    snprintf (h->what, sizeof h->what, "a bit at %" PRIu64, off);
    break;
  case HARM_BITS:
    h->place = *p;
    off = ROUND_DOWN (off, UINT64_C (512));
    damage_fill (mem[0], 512, host_bits () | 1);
    write_bytes (disk, DAMAGE_JOURNAL, off, mem[0], 512);
    snprintf (h->what, sizeof h->what, "garbage in %s at %" PRIu64 " (checkpoint %" PRIu64 ")",
              area_name[p->area], off, p->checkpoint);
    break;
  case HARM_UNREADABLE:
    h->place = *p;
    off = ROUND_DOWN (off, UINT64_C (512));
    simdisk_bad (disk, DAMAGE_JOURNAL, off, 512);
    snprintf (h->what, sizeof h->what, "%s cannot be read at %" PRIu64 " (checkpoint %" PRIu64 ")",
              area_name[p->area], off, p->checkpoint);
    break;
  case HARM_CUT:
    off = host_below (4) == 0 ? 0 : host_below (2) ?
      host_below (DAMAGE_JOURNAL_SIZE) : host_below (l->used);
    cut (disk, DAMAGE_JOURNAL, off);
    snprintf (h->what, sizeof h->what, "the journal cut to %" PRIu64, off);
    break;
  case HARM_SWAP:
    a = some_chunk (l);
    b = some_chunk (l);
    read_bytes (disk, DAMAGE_JOURNAL, a * JOURNAL_CHUNK, mem[0], JOURNAL_CHUNK);
    read_bytes (disk, DAMAGE_JOURNAL, b * JOURNAL_CHUNK, mem[1], JOURNAL_CHUNK);
    write_bytes (disk, DAMAGE_JOURNAL, a * JOURNAL_CHUNK, mem[1], JOURNAL_CHUNK);
    write_bytes (disk, DAMAGE_JOURNAL, b * JOURNAL_CHUNK, mem[0], JOURNAL_CHUNK);
    snprintf (h->what, sizeof h->what, "chunks %" PRIu64 " and %" PRIu64 " swapped", a, b);
    break;
  case HARM_ZERO:
    a = some_chunk (l);
    memset (mem[0], 0, JOURNAL_CHUNK);
    write_bytes (disk, DAMAGE_JOURNAL, a * JOURNAL_CHUNK, mem[0], JOURNAL_CHUNK);
    snprintf (h->what, sizeof h->what, "chunk %" PRIu64 " is zeroes", a);
    break;
  case HARM_OLD_CHUNK:
    a = some_chunk (l);
    read_bytes (l->older, DAMAGE_JOURNAL, a * JOURNAL_CHUNK, mem[0], JOURNAL_CHUNK);
    write_bytes (disk, DAMAGE_JOURNAL, a * JOURNAL_CHUNK, mem[0], JOURNAL_CHUNK);
    snprintf (h->what, sizeof h->what, "chunk %" PRIu64 " as it was before", a);
    break;
  case HARM_OLD_BLOCK:
    h->place = *p;
    off = ROUND_DOWN (off, (uint64_t) JOURNAL_BLOCK);
    read_bytes (l->older, DAMAGE_JOURNAL, off, mem[0], JOURNAL_BLOCK);
    write_bytes (disk, DAMAGE_JOURNAL, off, mem[0], JOURNAL_BLOCK);
    snprintf (h->what, sizeof h->what, "%s at %" PRIu64 " as it was before", area_name[p->area], off);
    break;
  case HARM_LOST:
    lose (disk, DAMAGE_JOURNAL);
    snprintf (h->what, sizeof h->what, "the journal is gone");
    break;
  case HARM_OLD:
    replace (disk, DAMAGE_JOURNAL, l->older, DAMAGE_JOURNAL);
    snprintf (h->what, sizeof h->what, "the journal as it was before");
    break;
  default:
    replace (disk, DAMAGE_JOURNAL, other->disk, DAMAGE_JOURNAL);
    snprintf (h->what, sizeof h->what, "the journal of another replica");
  }
}

/* --- to the mark and the images --- */

static void
harm_acked (const struct damage_life *l, const struct damage_life *other,
            struct simdisk *disk, struct harmed *h)
{
  uint64_t off = host_below (128);

  h->acked = true;
  switch (h->harm) {
  case HARM_ACKED_BIT:
    simdisk_flip (disk, DAMAGE_ACKED, off, 1 << host_below (8));
    snprintf (h->what, sizeof h->what, "a bit of acked, byte %" PRIu64, off);
    break;
  case HARM_ACKED_CUT:
    cut (disk, DAMAGE_ACKED, off);
    snprintf (h->what, sizeof h->what, "acked cut to %" PRIu64, off);
    break;
  case HARM_ACKED_LOST:
    lose (disk, DAMAGE_ACKED);
    snprintf (h->what, sizeof h->what, "acked is gone");
    break;
  case HARM_ACKED_OLD:
    replace (disk, DAMAGE_ACKED, l->older, DAMAGE_ACKED);
    snprintf (h->what, sizeof h->what, "acked as it was before");
    break;
  default:
    replace (disk, DAMAGE_ACKED, other->disk, DAMAGE_ACKED);
    snprintf (h->what, sizeof h->what, "acked of another replica");
  }
}

static void
harm_image (const struct damage_life *l, const struct damage_life *other,
            struct simdisk *disk, struct harmed *h)
{
  unsigned d = host_below (l->ndisks), e;
  uint64_t size = l->size[d], off;
  uint8_t junk[512];

  h->images = true;
  switch (h->harm) {
  case HARM_IMAGE_SIZE:
    off = host_below (2) ? size + 512 * (1 + host_below (9)) : host_below (size);
    cut (disk, l->path[d], off);
    snprintf (h->what, sizeof h->what, "%s has %" PRIu64 " bytes, not %" PRIu64, l->path[d], off, size);
    break;
  case HARM_IMAGE_LOST:
    lose (disk, l->path[d]);
    snprintf (h->what, sizeof h->what, "%s is gone", l->path[d]);
    break;
  case HARM_IMAGES_SWAPPED:
    if (l->ndisks < 2) {
      h->none = true;
      return;
    }
    replace (disk, l->path[0], l->disk, l->path[1]);
    replace (disk, l->path[1], l->disk, l->path[0]);
    snprintf (h->what, sizeof h->what, "the images are swapped");
    break;
  case HARM_IMAGE_OTHER:
    replace (disk, l->path[d], other->disk, l->path[d]);
    snprintf (h->what, sizeof h->what, "%s of another replica", l->path[d]);
    break;
  case HARM_IMAGE_OLD:
    replace (disk, l->path[d], l->older, l->path[d]);
    snprintf (h->what, sizeof h->what, "%s as it was before", l->path[d]);
    break;
  default:
    for (e = 0; e < sizeof junk; e += 8)
      memcpy (junk + e, &(uint64_t) { host_bits () }, 8);
    off = host_below (size - sizeof junk);
    write_bytes (disk, l->path[d], off, junk, 1 + host_below (sizeof junk));
    snprintf (h->what, sizeof h->what, "somebody wrote to %s at %" PRIu64, l->path[d], off);
  }
}

struct harmed
damage_harm (const struct damage_life *l, const struct damage_life *other,
             struct simdisk *disk, enum harm harm)
{
  struct harmed h = { .harm = harm, .what = "nothing" };

  if (harm >= HARM_IMAGE_SIZE)
    harm_image (l, other, disk, &h);
  else if (harm >= HARM_ACKED_BIT)
    harm_acked (l, other, disk, &h);
  else if (harm != HARM_NONE)
    harm_journal (l, other, disk, &h);
  return h;
}
