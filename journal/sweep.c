/* SPDX-License-Identifier: BSD-3-Clause */
/* The uncommitted epochs that one record is to cover, and where their tables are. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

void
sweep_gather (struct journal *j, uint64_t epoch, struct sweep *s)
{
  SCOPED_LOCK (&j->lock);

  for (size_t i = 0; i < j->tab.nepochs; i++) {
    const struct epoch_info *e = tables_epoch_locked (j, i);

    if (e->epoch > epoch)
      break;
    if (s->first == 0)
      s->first = e->epoch;
    s->last = e->epoch;
    s->extents += e->extents;
    s->bytes += e->bytes;
    s->slots += e->slots;
    s->nepochs++;
  }
  /* It may be the open epoch that is saved: what follows begins a new block. */
  if (s->nepochs > 0 && s->nepochs == j->tab.nepochs)
    tables_pad_locked (j);
  s->inline_ = s->slots <= FORMAT_INLINE_SLOTS;
}

static int
add_run (struct sweep *s, uint64_t block, uint32_t bytes)
{
  struct format_run *last = s->nruns ? &s->runs[s->nruns - 1] : NULL;

  if (last && get32 (last->block) / JOURNAL_CHUNK_BLOCKS ==
      block / JOURNAL_CHUNK_BLOCKS &&
      get32 (last->block) + DIV_UP (get32 (last->bytes), JOURNAL_BLOCK) ==
      block) {
    last->bytes = put32 ((block - get32 (last->block)) * JOURNAL_BLOCK + bytes);
    return 0;
  }
  if (s->nruns == s->cap) {
    size_t cap = s->cap * 2 + 8;
    struct format_run *runs = realloc (s->runs, cap * sizeof *runs);

    if (runs == NULL)
      return -1;
    s->runs = runs;
    s->cap = cap;
  }
  s->runs[s->nruns++] = (struct format_run) { put32 (block), put32 (bytes) };
  return 0;
}

/* The pieces of table that hold the epochs of S. */
int
sweep_runs (struct journal *j, struct sweep *s)
{
  SCOPED_LOCK (&j->lock);

  for (size_t i = 0; i < s->nepochs; i++) {
    const struct epoch_info *e = tables_epoch_locked (j, i);

    for (uint64_t pos = e->start; pos < e->end; ) {
      uint32_t c = stream_chunk_locked (j, pos);
      uint64_t base = ROUND_DOWN (pos, (uint64_t) FORMAT_CHUNK_SLOTS);
      uint64_t end = base + FORMAT_CHUNK_SLOTS;
      uint64_t slot = pos - base;

      end = MIN (end, e->end);
      if (add_run (s, (uint64_t) c * JOURNAL_CHUNK_BLOCKS +
                   slot / FORMAT_BLOCK_SLOTS, (end - pos) * FORMAT_SLOT) == -1)
        return -1;
      if (e->end <= base + FORMAT_CHUNK_SLOTS)
        break;
      /* The next chunk's first block is its head. */
      pos = base + FORMAT_CHUNK_SLOTS + FORMAT_BLOCK_SLOTS;
    }
  }
  return 0;
}

/* Run I in memory: its buffer (then *PINNED, to be unpinned), or, when that has
 * been given to another chunk since, *MEM, read from the file.
 */
const uint8_t *
sweep_run_get (struct journal *j, const struct sweep *s, size_t i,
               uint8_t **mem, bool *pinned)
{
  uint32_t block = get32 (s->runs[i].block);
  uint32_t want = DIV_UP (get32 (s->runs[i].bytes), JOURNAL_BLOCK);
  uint32_t have = want;
  const uint8_t *p = journal_pin (j, block, &have, false, NULL);

  *pinned = p != NULL;
  if (*pinned) {
    assert (have == want);
    return p;
  }
  if (*mem == NULL && (*mem = aligned_blocks (JOURNAL_CHUNK)) == NULL)
    return NULL;
  if (file_read (j, *mem, (size_t) want * JOURNAL_BLOCK, block_offset (block))
      == -1)
    return NULL;
  return *mem;
}

/* Work out size and crc of the table, or copy it to INLINE_TO without padding. */
int
sweep_table (struct journal *j, struct sweep *s, uint8_t *inline_to)
{
  static const uint8_t zeroes[FORMAT_SLOT];
  CLEANUP_FREE uint8_t *mem = NULL;
  size_t fill = 0;

  s->table_crc = 0;
  s->table_bytes = 0;
  for (size_t i = 0; i < s->nruns; i++) {
    uint32_t block = get32 (s->runs[i].block), n = get32 (s->runs[i].bytes);
    const uint8_t *p;
    bool pinned;

    p = sweep_run_get (j, s, i, &mem, &pinned);
    if (p == NULL)
      return -1;
    if (inline_to) {
      for (size_t off = 0; off < n; off += FORMAT_SLOT) {
        const struct format_desc *d = (const struct format_desc *) (p + off);
        size_t slots = 1;

        if (memcmp (d, zeroes, FORMAT_SLOT) == 0) {
          off = ROUND_DOWN (off, (size_t) JOURNAL_BLOCK) + JOURNAL_BLOCK -
                FORMAT_SLOT;
          continue;
        }
        if (get16 (d->flags) & JOURNAL_DATA) {
          struct journal_extent ext = { .sector = get64 (d->sector),
                                        .nsectors = get32 (d->nsectors) };

          slots += DIV_UP (journal_extent_blocks (&ext) - 1,
                           FORMAT_CRCS_PER_SLOT);
        }
        assert (fill + slots * FORMAT_SLOT <= FORMAT_PAYLOAD);
        memcpy (inline_to + fill, d, slots * FORMAT_SLOT);
        fill += slots * FORMAT_SLOT;
        off += (slots - 1) * FORMAT_SLOT;
      }
    }
    else {
      s->table_crc = crc32c (p, n, s->table_crc);
      s->table_bytes += n;
    }
    if (pinned)
      journal_unpin (j, block);
  }
  if (inline_to)
    s->table_bytes = fill;
  return 0;
}
