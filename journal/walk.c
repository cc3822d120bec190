/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading tables back: the descriptors that a commit or CLEAN record refers to. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

/* The epoch that LOW is the lower half of, at FIRST or after. */
static uint64_t
whole_epoch (uint64_t first, uint32_t low)
{
  uint64_t epoch = (first & ~UINT64_C (0xffffffff)) | low;

  return epoch < first ? epoch + (UINT64_C (1) << 32) : epoch;
}

static bool
desc_is_sane (struct journal *j, const struct journal_extent *ext)
{
  uint32_t k = journal_extent_blocks (ext);
  uint64_t end;                 /* of the disk; its last sector may be short */

  if (ext->nsectors == 0 || ext->disk >= j->config.ndisks)
    return false;
  end = DIV_UP (j->config.disks[ext->disk].size, (uint64_t) JOURNAL_SECTOR);
  if (ext->nsectors > end || ext->sector > end - ext->nsectors)
    return false;
  switch (ext->flags) {
  case JOURNAL_DATA:
    return ext->nsectors <= JOURNAL_CHUNK / JOURNAL_SECTOR &&
           ext->block >= JOURNAL_CHUNK_BLOCKS &&
           chunk_of (ext->block) < j->nchunks &&
           ext->block % JOURNAL_CHUNK_BLOCKS + k <= JOURNAL_CHUNK_BLOCKS;
  case JOURNAL_ZERO:
  case JOURNAL_ZERO | JOURNAL_MAY_TRIM:
    return ext->block == 0;
  default:
    return false;
  }
}

int
table_walk_bytes (struct table_walk *walk, const void *p, size_t len,
                  bool inline_, size_t *offset)
{
  static const uint8_t zeroes[FORMAT_SLOT];
  size_t off = 0;

  while (off + FORMAT_SLOT <= len) {
    const struct format_desc *d =
      (const struct format_desc *) ((const uint8_t *) p + off);
    struct table_item item;
    unsigned slots = 1;
    uint32_t crc;

    *offset = off;
    if (!inline_ && memcmp (d, zeroes, FORMAT_SLOT) == 0) {
      /* Padding: the rest of the block. */
      off = ROUND_DOWN (off, (size_t) JOURNAL_BLOCK) + JOURNAL_BLOCK;
      continue;
    }
    item.ext = (struct journal_extent) {
      .disk = get16 (d->disk), .flags = get16 (d->flags),
      .nsectors = get32 (d->nsectors), .sector = get64 (d->sector),
      .block = get32 (d->block),
    };
    if (!desc_is_sane (walk->j, &item.ext))
      goto bad;
    item.nblocks = item.ext.flags & JOURNAL_DATA ?
      journal_extent_blocks (&item.ext) : 0;
    if (item.nblocks > 1)
      slots += DIV_UP (item.nblocks - 1, FORMAT_CRCS_PER_SLOT);
    if (off + slots * FORMAT_SLOT > len)
      goto bad;
    item.epoch = whole_epoch (walk->first_epoch, get32 (d->epoch_low));
    if (item.epoch < walk->first_epoch || item.epoch > walk->epoch)
      goto bad;
    if (item.epoch != walk->seed_epoch || walk->items == 0) {
      walk->seed_epoch = item.epoch;
      walk->seed = desc_seed (&walk->j->config, item.epoch);
    }
    crc = crc32c (d, offsetof (struct format_desc, self_crc), walk->seed);
    if (slots > 1)
      crc = crc32c (d + 1, (slots - 1) * FORMAT_SLOT, crc);
    if (crc != get32 (d->self_crc))
      goto bad;
    item.crc_first = get32 (d->crc_first);
    item.more = (const le32 *) (d + 1);
    walk->items++;
    walk->at = off;
    walk->slots = slots;
    /* What it was before it joined, with an image that is lost, is nothing any more. */
    if (item.epoch >= walk->j->config.disks[item.ext.disk].joined &&
        walk->fn (walk->opaque, &item) == -1)
      return -1;
    off += slots * FORMAT_SLOT;
  }
  return 0;

 bad:
  walk->malformed = true;
  errno = EBADMSG;
  return -1;
}

/* Gather what record SEQ and its PARTs say of their table.  On success the
 * caller frees RUNS->runs.
 */
int
table_runs_read (struct journal *j, uint64_t seq, uint32_t nparts,
                 uint64_t checkpoint, struct table_runs *runs,
                 struct journal_damage *damage)
{
  CLEANUP_FREE struct format_record *rec = aligned_blocks (sizeof *rec);
  CLEANUP_FREE struct format_run *list = NULL;
  uint64_t total = 0, offset = 0;

  memset (runs, 0, sizeof *runs);
  if (rec == NULL)
    return -1;
  for (uint64_t s = seq - nparts; s <= seq; s++) {
    uint32_t n;

    if (log_read (j, s, rec, &offset) == -1)
      goto bad;
    n = get32 (rec->nruns);
    if (n > FORMAT_RUNS || (s < seq && get16 (rec->kind) != JOURNAL_REC_PART))
      goto bad;
    if (n > 0) {
      struct format_run *more = realloc (list, (runs->nruns + n) * sizeof *list);

      if (more == NULL)
        return -1;
      list = more;
      memcpy (list + runs->nruns, rec->payload, n * sizeof *list);
      runs->nruns += n;
    }
  }
  if (get32 (rec->nparts) != nparts)
    goto bad;
  runs->bytes = get64 (rec->table_bytes);
  runs->crc = get32 (rec->table_crc);
  runs->inline_ = get16 (rec->flags) & FORMAT_INLINE;
  runs->first_epoch = get64 (rec->first_epoch);
  runs->epoch = get64 (rec->epoch);
  if (runs->inline_) {
    if (runs->bytes > FORMAT_PAYLOAD || runs->nruns > 0)
      goto bad;
    memcpy (runs->payload, rec->payload, FORMAT_PAYLOAD);
  }
  else {
    for (size_t i = 0; i < runs->nruns; i++) {
      uint32_t block = get32 (list[i].block), bytes = get32 (list[i].bytes);

      if (chunk_of (block) == 0 || chunk_of (block) >= j->nchunks ||
          bytes == 0 || bytes % FORMAT_SLOT != 0 ||
          (uint64_t) (block % JOURNAL_CHUNK_BLOCKS) * JOURNAL_BLOCK + bytes >
          JOURNAL_CHUNK)
        goto bad;
      total += bytes;
    }
    if (total != runs->bytes)
      goto bad;
  }
  runs->runs = list;
  list = NULL;
  return 0;

 bad:
  damage_set (damage, "journal", offset, checkpoint,
              "record %llu, which says where the table is, does not verify",
              (unsigned long long) seq);
  errno = EBADMSG;
  return -1;
}

int
table_runs_walk (struct journal *j, const struct table_runs *runs,
                 uint64_t checkpoint, table_item_fn fn, void *opaque,
                 struct journal_damage *damage)
{
  struct table_walk walk = {
    .j = j, .first_epoch = runs->first_epoch, .epoch = runs->epoch,
    .fn = fn, .opaque = opaque,
  };
  CLEANUP_FREE uint8_t *mem = NULL;
  uint32_t crc = 0;
  size_t offset;

  if (runs->inline_) {
    /* The record's own crc covers it. */
    if (table_walk_bytes (&walk, runs->payload, runs->bytes, true,
                          &offset) == 0)
      return 0;
    if (errno == EBADMSG && walk.malformed)
      damage_set (damage, "journal", 0, checkpoint,
                  "the table within a record is not well-formed");
    return -1;
  }

  if (runs->nruns > 0 && (mem = aligned_blocks (JOURNAL_CHUNK)) == NULL)
    return -1;
  for (size_t i = 0; i < runs->nruns; i++) {
    uint64_t off = block_offset (get32 (runs->runs[i].block));
    uint32_t bytes = get32 (runs->runs[i].bytes);

    if (file_read (j, mem, ROUND_UP (bytes, JOURNAL_BLOCK), off) == -1) {
      damage_set (damage, "journal", off, checkpoint,
                  "a table cannot be read: %m");
      errno = EBADMSG;
      return -1;
    }
    crc = crc32c (mem, bytes, crc);
    if (table_walk_bytes (&walk, mem, bytes, false, &offset) == -1) {
      if (errno == EBADMSG && walk.malformed)
        damage_set (damage, "journal", off + offset, checkpoint,
                    "a table descriptor does not verify");
      return -1;
    }
  }
  if (crc != runs->crc) {
    damage_set (damage, "journal",
                runs->nruns > 0 ? block_offset (get32 (runs->runs[0].block)) : 0,
                checkpoint, "a table is not what was committed");
    errno = EBADMSG;
    return -1;
  }
  return 0;
}

int
table_walk_record (struct journal *j, uint64_t seq, uint32_t nparts,
                   uint64_t checkpoint, table_item_fn fn, void *opaque,
                   struct journal_damage *damage)
{
  struct table_runs runs;
  int r;

  if (table_runs_read (j, seq, nparts, checkpoint, &runs, damage) == -1)
    return -1;
  r = table_runs_walk (j, &runs, checkpoint, fn, opaque, damage);
  cleanup_free (&runs.runs);
  return r;
}
