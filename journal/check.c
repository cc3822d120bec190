/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading and checking every byte that is retained.
 *
 * Opening a journal finds what it takes to know the newest state; recovery checks what one
 * checkpoint needs.  This looks at all of it, and does not stop at the first damage.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"

struct check {
  struct journal *j;
  journal_damage_fn fn;
  void *opaque;
  journal_progress_fn progress;
  void *progress_opaque;
  uint64_t bytes;
  bool open_damage;             /* opening had found some, and it is told by now */
};

static void
tell (struct check *c, const struct journal_damage *d)
{
  /* Opening has found that one already, and knows more of it. */
  if (c->open_damage && strcmp (d->file, c->j->damage.file) == 0 &&
      d->offset == c->j->damage.offset)
    return;
  c->fn (c->opaque, d);
}

static void
check_heads (struct check *c)
{
  static const char *const name[] = { "A", "B" };
  static const uint64_t super[] = { FORMAT_SUPER_A, FORMAT_SUPER_B };
  static const uint64_t anchor[] = { FORMAT_ANCHOR_A, FORMAT_ANCHOR_B };
  struct journal_damage d;

  c->bytes += 2 * (sizeof (struct format_super) +
                   c->j->config.ndisks * sizeof (struct format_disk));
  c->bytes += 2 * sizeof (struct format_anchor);
  for (unsigned i = 0; i < 2; i++)
    if (c->j->super_bad[i]) {
      damage_set (&d, "journal", block_offset (super[i]), 0,
                  "superblock %s does not verify; the other one does", name[i]);
      tell (c, &d);
    }
  for (unsigned i = 0; i < 2; i++)
    if (c->j->anchor_bad[i]) {
      damage_set (&d, "journal", block_offset (anchor[i]), 0,
                  "anchor %s does not verify; the other one does", name[i]);
      tell (c, &d);
    }
}

/* The records of chain chunk AT, the newest at most; PREV_CRC is of the one before. */
static int
check_records (struct check *c, const struct chain_chunk *at, uint64_t newest,
               struct format_record *mem)
{
  struct journal *j = c->j;
  uint32_t prev_crc = at->prev_crc;
  bool known = true;
  struct journal_damage d;

  for (unsigned slot = 0; slot < JOURNAL_CHUNK_BLOCKS &&
         at->first + slot <= newest; slot++) {
    const struct format_record *rec = mem;
    uint64_t off = (uint64_t) at->chunk * JOURNAL_CHUNK + block_offset (slot);
    bool read = file_read (j, mem, JOURNAL_BLOCK, off) == 0;

    c->bytes += JOURNAL_BLOCK;
    if (!read || !record_is_whole (&j->config, rec) ||
        get64 (rec->seq) != at->first + slot ||
        get64 (rec->salt) != at->salt || get32 (rec->chunk) != at->chunk ||
        get32 (rec->slot) != slot ||
        (known && get32 (rec->prev_crc) != prev_crc)) {
      damage_set (&d, "journal", off, 0, read ? "record %llu does not verify" :
                  "record %llu cannot be read",
                  (unsigned long long) at->first + slot);
      tell (c, &d);
      known = false;
      continue;
    }
    prev_crc = get32 (rec->crc);
    known = true;
  }
  return 0;
}

static int
check_log (struct check *c)
{
  struct journal *j = c->j;
  CLEANUP_FREE struct format_record *mem = aligned_blocks (sizeof *mem);
  int r = mem == NULL ? -1 : 0;

  for (size_t i = 0; i < j->log.nchain && r == 0; i++)
    r = check_records (c, &j->log.chain[i], j->log.seq, mem);
  return r;
}

static int
check_mark (struct check *c)
{
  struct format_acked acked;
  struct journal_damage d;

  c->bytes += sizeof acked;
  switch (acked_read (c->j, &acked)) {
  case -1:
    return -1;
  case 0:
    damage_set (&d, "acked", 0, 0, acked_is_lost (c->j) ?
                "the acknowledged mark is gone, or cut short" :
                "the acknowledged mark does not verify");
    tell (c, &d);
  }
  return 0;
}

/* --- tables and data --- */

/* Items one by one: a bad one is told, and the rest is looked at. */
static int
check_item (void *opaque, const struct table_item *item)
{
  struct checker *checker = opaque;
  struct check *c = checker->opaque;

  c->bytes += (uint64_t) item->nblocks * JOURNAL_BLOCK;
  if (checker_item (checker, item) == -1) {
    if (errno != EBADMSG)
      return -1;
    tell (c, checker->damage);
  }
  return 0;
}

/* Whoever goes on from what was saved needs these, too. */
static void
check_table_heads (struct check *c, const struct table_runs *runs)
{
  CLEANUP_FREE struct format_table *mem = aligned_blocks (JOURNAL_BLOCK);
  struct journal_damage d;

  for (size_t i = 0; mem && i < runs->nruns; i++) {
    uint32_t chunk = chunk_of (get32 (runs->runs[i].block));

    c->bytes += sizeof *mem;
    if (file_read (c->j, mem, JOURNAL_BLOCK,
                   (uint64_t) chunk * JOURNAL_CHUNK) == -1 ||
        !is_table (c->j, chunk, mem, get64 (mem->serial))) {
      damage_set (&d, "journal", (uint64_t) chunk * JOURNAL_CHUNK, 0,
                  "the head of a table chunk of a clean stop does not verify");
      tell (c, &d);
    }
  }
}

/* The table of record SEQ, and what it refers to. */
static int
check_table (struct check *c, struct checker *checker, uint64_t seq,
             uint32_t nparts, uint64_t checkpoint)
{
  struct journal_damage d;
  struct table_runs runs;
  int r;

  checker->checkpoint = checkpoint;
  r = table_runs_read (c->j, seq, nparts, checkpoint, &runs, &d);
  if (r == 0) {
    c->bytes += runs.inline_ ? 0 : runs.bytes;
    if (checkpoint == 0)
      check_table_heads (c, &runs);
    r = table_runs_walk (c->j, &runs, checkpoint, check_item, checker, &d);
    cleanup_free (&runs.runs);
  }
  if (r == -1 && errno == EBADMSG) {
    tell (c, &d);
    r = 0;
  }
  return r;
}

static void
tell_progress (void *opaque, uint64_t done, uint64_t total)
{
  const struct check *c = opaque;

  if (c->progress)
    c->progress (c->progress_opaque, done, total);
}

static int
check_commits (struct check *c)
{
  struct journal *j = c->j;
  struct checker checker;
  struct journal_damage d;
  int r = 0;

  if (checker_init (&checker, j) == -1)
    return -1;
  checker.damage = &d;
  checker.progress = tell_progress;
  checker.opaque = c;
  for (size_t i = 0; i < j->log.ncommits; i++)
    checker.total += commits_at (j, i)->bytes;
  for (size_t i = 0; i < j->log.ncommits && r == 0; i++) {
    const struct commit *k = commits_at (j, i);

    r = check_table (c, &checker, k->seq, k->nparts, k->epoch);
  }
  if (r == 0 && j->log.saved_seq != 0)
    r = check_table (c, &checker, j->log.saved_seq, j->log.saved_nparts, 0);
  tell_progress (c, checker.total, checker.total);
  checker_free (&checker);
  return r;
}

int
journal_check (struct journal *j, journal_progress_fn progress,
               void *progress_opaque, journal_damage_fn fn, void *opaque,
               uint64_t *bytes)
{
  struct check c = { .j = j, .fn = fn, .opaque = opaque,
                     .progress = progress, .progress_opaque = progress_opaque };
  int r = 0;

  if (j->damaged)
    fn (opaque, &j->damage);
  c.open_damage = j->damaged;
  if (j->saved_damage.file[0])
    tell (&c, &j->saved_damage);
  check_heads (&c);
  if (check_log (&c) == -1 || check_mark (&c) == -1 ||
      check_commits (&c) == -1)
    r = -1;
  *bytes = c.bytes;
  return r;
}
