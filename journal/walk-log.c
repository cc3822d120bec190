/* SPDX-License-Identifier: BSD-3-Clause */
/* Finding the newest record: from the anchor along the chain, each record
 * proving that it follows the one before, to the first that does not.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"

struct log_walk {
  struct journal *j;
  struct format_record *mem;    /* a chunk of records */
  struct chain_chunk at;        /* the chunk that is walked */
  struct format_record last;    /* the newest record accepted */
  bool any;
  uint64_t seq;
  uint32_t prev_crc;
  uint64_t proven;              /* some record says that this one is durable */
  /* The newest record that is no PART, and what led up to it: PARTs without
   * their commit are as good as not written.
   */
  struct format_record whole;
  bool any_whole;
  size_t whole_chain;           /* chain chunks by then */
  uint32_t parts;               /* PARTs since */
};

/* Does REC follow what was accepted so far, as slot SLOT of chunk AT? */
static bool
follows (const struct log_walk *w, const struct format_record *rec,
         unsigned slot)
{
  return record_is_whole (&w->j->config, rec) &&
         get64 (rec->seq) == w->seq + 1 &&
         get64 (rec->salt) == w->at.salt &&
         get32 (rec->prev_crc) == w->prev_crc &&
         get32 (rec->chunk) == w->at.chunk && get32 (rec->slot) == slot;
}

static bool
carries_table (uint16_t kind)
{
  return kind == JOURNAL_REC_COMMIT || kind == JOURNAL_REC_PROMOTED_COMMIT ||
         kind == JOURNAL_REC_CLEAN;
}

static int
note_record (struct log_walk *w, const struct format_record *rec)
{
  struct journal *j = w->j;
  uint16_t kind = get16 (rec->kind);
  struct journal_state state;

  w->last = *rec;
  w->any = true;
  w->seq++;
  w->prev_crc = get32 (rec->crc);
  w->proven = MAX (w->proven, get64 (rec->durable));
  if (kind == JOURNAL_REC_PART) {
    w->parts++;
    return 0;
  }

  record_decode_state (rec, &state);
  if (kind == JOURNAL_REC_COMMIT || kind == JOURNAL_REC_PROMOTED_COMMIT) {
    struct commit c;

    if (commit_of (rec, &c) == -1 || commits_add (j, &c) == -1)
      return -1;
  }
  else if (kind == JOURNAL_REC_CLEAN) {
    j->log.saved_seq = w->seq;
    j->log.saved_nparts = get32 (rec->nparts);
  }
  if (!state.clean || kind == JOURNAL_REC_PROMOTE)
    j->log.saved_seq = 0;
  commits_void (j, &state);
  while (j->log.ncommits > 0 &&
         commits_at (j, 0)->epoch <= state.watermark.id && state.has_checkpoint)
    commits_drop_oldest (j);
  j->state = state;
  w->whole = *rec;
  w->any_whole = true;
  w->whole_chain = j->log.nchain;
  w->parts = 0;
  return 0;
}

/* A record behind the end of the chain that says it was written when record
 * MISSING was durable?  In chunk AT from SLOT on.
 */
static bool
proves_missing (const struct log_walk *w, const struct chain_chunk *at,
                unsigned slot, uint64_t missing)
{
  for (; slot < JOURNAL_CHUNK_BLOCKS; slot++) {
    const struct format_record *rec = &w->mem[slot];

    if (record_is_whole (&w->j->config, rec) &&
        get64 (rec->salt) == at->salt && get64 (rec->seq) > missing &&
        get64 (rec->durable) >= missing)
      return true;
  }
  return false;
}

static int
read_chunk (struct log_walk *w, uint32_t c)
{
  /* Block by block when the whole is not to be had: one bad sector must not
   * hide the others.
   */
  if (file_read (w->j, w->mem, JOURNAL_CHUNK,
                 (uint64_t) c * JOURNAL_CHUNK) == 0)
    return 0;
  for (unsigned i = 0; i < JOURNAL_CHUNK_BLOCKS; i++)
    if (file_read (w->j, &w->mem[i], JOURNAL_BLOCK,
                   (uint64_t) c * JOURNAL_CHUNK + block_offset (i)) == -1)
      memset (&w->mem[i], 0, JOURNAL_BLOCK);
  return 0;
}

/* Walk the chain to its end.  SLOT of the last chunk is where it ends. */
static int
walk_chain (struct log_walk *w, unsigned *slot)
{
  struct journal *j = w->j;

  for (;;) {
    if (read_chunk (w, w->at.chunk) == -1 || chain_add (j, &w->at) == -1)
      return -1;
    for (*slot = 0; *slot < JOURNAL_CHUNK_BLOCKS; ++*slot) {
      if (!follows (w, &w->mem[*slot], *slot))
        return 0;
      if (note_record (w, &w->mem[*slot]) == -1)
        return -1;
    }
    if (get32 (w->last.next_chunk) == 0 ||
        get32 (w->last.next_chunk) >= j->nchunks)
      return 0;
    w->at = (struct chain_chunk) {
      .chunk = get32 (w->last.next_chunk), .salt = get64 (w->last.next_salt),
      .first = w->seq + 1, .prev_crc = w->prev_crc,
    };
  }
}

static void
missing_damage (struct log_walk *w, uint64_t offset, uint64_t checkpoint,
                const char *how)
{
  struct journal_damage d;

  damage_set (&d, "journal", offset, checkpoint,
              "record %llu is lost, though %s that it was durable",
              (unsigned long long) w->seq + 1, how);
  damage_note (w->j, &d);
  /* Whatever it said of the write-out is not known: no checkpoint is provably
   * whole.
   */
  w->j->lost = true;
}

/* Look behind the end for proof that there was more. */
static void
look_behind (struct log_walk *w, unsigned slot)
{
  struct journal *j = w->j;
  uint64_t offset = (uint64_t) w->at.chunk * JOURNAL_CHUNK + block_offset (slot);
  bool proof = slot < JOURNAL_CHUNK_BLOCKS &&
               proves_missing (w, &w->at, slot, w->seq + 1);

  if (!proof && w->any && get32 (w->last.next_chunk) != 0 &&
      get32 (w->last.next_chunk) < j->nchunks &&
      get32 (w->last.next_chunk) != w->at.chunk) {
    struct chain_chunk next = { .chunk = get32 (w->last.next_chunk),
                                .salt = get64 (w->last.next_salt) };

    proof = read_chunk (w, next.chunk) == 0 &&
            proves_missing (w, &next, 0, w->seq + 1);
  }
  if (proof)
    missing_damage (w, offset, 0, "a later one proves");
}

/* The newest record swept in data by the same barrier that made itself
 * durable, and nothing later proves that the barrier was passed: does all of it
 * verify?  1 yes, 0 no, -1 errno.
 */
static int
newest_verifies (struct log_walk *w, struct journal_damage *damage)
{
  struct journal *j = w->j;
  uint64_t seq = get64 (w->whole.seq);
  uint32_t nparts = get32 (w->whole.nparts);
  struct checker check;
  int r;

  if (nparts >= seq)
    return 0;
  if (checker_init (&check, j) == -1)
    return -1;
  check.damage = damage;
  r = table_walk_record (j, seq, nparts, get64 (w->whole.epoch), checker_item,
                         &check, damage);
  checker_free (&check);
  if (r == 0)
    return 1;
  return errno == EBADMSG ? 0 : -1;
}

/* Walk again, but only to before SEQ: the simplest way to be in the state
 * of an earlier record.
 */
static int
walk_until (struct log_walk *w, uint64_t seq)
{
  struct journal *j = w->j;
  const struct chain_chunk first = j->log.chain[0];
  struct format_record *mem = w->mem;

  while (j->log.ncommits > 0)
    commits_drop_oldest (j);
  j->log.nchain = 0;
  j->log.saved_seq = 0;
  *w = (struct log_walk) { .j = j, .mem = mem, .at = first,
                           .seq = first.first - 1,
                           .prev_crc = first.prev_crc };
  while (w->seq + 1 < seq) {
    unsigned slot;

    if (read_chunk (w, w->at.chunk) == -1 || chain_add (j, &w->at) == -1)
      return -1;
    for (slot = 0; slot < JOURNAL_CHUNK_BLOCKS && w->seq + 1 < seq; slot++) {
      if (!follows (w, &mem[slot], slot)) {
        errno = EBADMSG;
        return -1;
      }
      if (note_record (w, &mem[slot]) == -1)
        return -1;
    }
    if (w->seq + 1 < seq)
      w->at = (struct chain_chunk) {
        .chunk = get32 (w->last.next_chunk),
        .salt = get64 (w->last.next_salt),
        .first = w->seq + 1, .prev_crc = w->prev_crc,
      };
  }
  return 0;
}

/* What the acknowledged mark knows that the log does not. */
static int
check_acked (struct log_walk *w, uint64_t end, const struct journal_damage *torn)
{
  struct journal *j = w->j;
  struct format_acked acked;
  struct journal_damage d;

  switch (acked_read (j, &acked)) {
  case -1: return -1;
  case 0: return 0;
  }
  if (memcmp (acked.id, j->config.id, HOST_ID_LEN) != 0) {
    damage_set (&d, "acked", 0, 0, "it is of another replica");
    damage_note (j, &d);
  }
  else if (get64 (acked.seq) > w->seq && torn) {
    d = *torn;                  /* the commit is there, but not whole */
    d.checkpoint = get64 (acked.checkpoint);
    damage_note (j, &d);
  }
  else if (get64 (acked.seq) > w->seq) {
    missing_damage (w, end, get64 (acked.checkpoint),
                    "the acknowledged mark says");
  }
  else if (get64 (acked.generation) > j->state.generation) {
    damage_set (&d, "acked", 0, get64 (acked.checkpoint),
                "it knows generation %llu, the journal only %llu",
                (unsigned long long) get64 (acked.generation),
                (unsigned long long) j->state.generation);
    damage_note (j, &d);
  }
  return 0;
}

static int
no_record (struct journal *j, uint64_t offset, struct mcerror *err)
{
  errno = EBADMSG;
  return mcerror_set (err, MCEXIT_DAMAGE,
                      "no record of %s/journal can be trusted: the first one, "
                      "at offset %llu, does not verify; the image must not be "
                      "used", j->dir, (unsigned long long) offset);
}

static int
open_failed (struct journal *j, struct mcerror *err)
{
  return mcerror_set (err, errno == EBADMSG ? MCEXIT_DAMAGE : MCEXIT_USAGE,
                      "cannot read the records of %s/journal: %m", j->dir);
}

int
log_open (struct journal *j, struct mcerror *err)
{
  CLEANUP_FREE struct log_walk *w = calloc (1, sizeof *w);
  CLEANUP_FREE struct format_record *mem = aligned_blocks (JOURNAL_CHUNK);
  struct journal_damage torn;
  bool is_torn = false;
  unsigned slot;
  uint64_t end, keep = 0;

  if (w == NULL || mem == NULL)
    return open_failed (j, err);
  w->j = j;
  w->mem = mem;
  if (anchor_read (j, &w->at, err) == -1)
    return -1;
  w->seq = w->at.first - 1;
  w->prev_crc = w->at.prev_crc;
  if (walk_chain (w, &slot) == -1)
    return open_failed (j, err);
  end = (uint64_t) w->at.chunk * JOURNAL_CHUNK + block_offset (slot);
  if (!w->any_whole)
    return no_record (j, end, err);
  look_behind (w, slot);

  if (w->parts > 0)
    keep = get64 (w->whole.seq) + 1;
  if (carries_table (get16 (w->whole.kind)) &&
      get64 (w->whole.seq) > w->proven && w->parts == 0) {
    switch (newest_verifies (w, &torn)) {
    case -1:
      return open_failed (j, err);
    case 0:
      is_torn = true;
      keep = get64 (w->whole.seq) - MIN (get32 (w->whole.nparts),
                                         get64 (w->whole.seq));
    }
  }
  if (keep != 0 && walk_until (w, keep) == -1)
    return open_failed (j, err);
  if (!w->any_whole)
    return no_record (j, end, err);
  if (check_acked (w, end, is_torn ? &torn : NULL) == -1)
    return open_failed (j, err);

  j->log.seq = j->log.durable = w->seq;
  j->log.prev_crc = w->prev_crc;
  j->log.next_chunk = get32 (w->last.next_chunk);
  j->log.next_salt = get64 (w->last.next_salt);
  if (j->log.next_chunk >= j->nchunks ||
      j->log.next_chunk == j->log.chain[j->log.nchain - 1].chunk)
    j->log.next_chunk = 0;
  if (j->damaged) {
    /* What the lost records referred to is not known. */
    j->distrust = true;
    j->distrust_upto = UINT64_MAX;
  }
  return 0;
}
