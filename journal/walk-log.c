/* SPDX-License-Identifier: BSD-3-Clause */
/* Finding the newest record: from the anchor along the chain, each record
 * proving that it follows the one before, to the first that does not.
 *
 * A record further on that says it was written when the missing one was already
 * durable proves a hole: the walk goes on there.  Whether a commit is missing shows
 * in the count of commits that each record carries.
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
  uint64_t bad_slot;            /* offset of a block that could not be read; 0: none */
  uint64_t seq;
  uint32_t prev_crc;
  uint64_t proven;              /* some record says that this one is durable */
  uint64_t ncommits;            /* as the last one counts them */
  uint64_t hole;                /* where the first record of a hole lies; 0: none */
  /* The newest record that is no PART, and what led up to it: PARTs without
   * their commit are as good as not written.
   */
  struct format_record whole;
  bool any_whole;
  uint32_t parts;               /* PARTs since */
  bool no_memory;
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
  w->ncommits = get64 (rec->ncommits);
  if (kind == JOURNAL_REC_PART) {
    w->parts++;
    return 0;
  }

  record_decode_state (rec, &state);
  if (!record_has_table (rec)) {
    j->nsamples = record_get_samples (rec, j->samples);
    j->log.samples_seq = j->nsamples > 0 ? w->seq : 0;
  }
  if (kind == JOURNAL_REC_COMMIT || kind == JOURNAL_REC_PROMOTED_COMMIT) {
    struct commit c;

    if (commit_of (rec, &c) == -1)
      return -1;
    if (commits_add (j, &c) == -1) {
      cleanup_free (&c.label);
      return -1;
    }
  }
  else if (kind == JOURNAL_REC_CLEAN) {
    j->log.saved_seq = w->seq;
    j->log.saved_nparts = get32 (rec->nparts);
  }
  if (!state.clean || kind == JOURNAL_REC_PROMOTE)
    j->log.saved_seq = 0;
  if (kind == JOURNAL_REC_PROMOTE && j->hole_upto != 0 &&
      state.checkpoint.id <= MAX (j->hole_from, state.watermark.id)) {
    /* To a checkpoint before them: the lost commits are void. */
    j->hole_from = j->hole_upto = 0;
    j->damaged = false;
  }
  commits_void (j, &state);
  while (j->log.ncommits > 0 &&
         commits_at (j, 0)->epoch <= state.watermark.id && state.has_checkpoint)
    commits_drop_oldest (j);
  j->state = state;
  w->whole = *rec;
  w->any_whole = true;
  w->parts = 0;
  return 0;
}

/* The first slot of chunk AT, from SLOT on, with a record that says it was written
 * when record MISSING was durable; JOURNAL_CHUNK_BLOCKS when there is none.
 */
static unsigned
find_proof (const struct log_walk *w, const struct chain_chunk *at,
            unsigned slot, uint64_t missing)
{
  for (; slot < JOURNAL_CHUNK_BLOCKS; slot++) {
    const struct format_record *rec = &w->mem[slot];

    if (record_is_whole (&w->j->config, rec) &&
        get64 (rec->salt) == at->salt && get64 (rec->seq) == at->first + slot &&
        get32 (rec->chunk) == at->chunk && get32 (rec->slot) == slot &&
        get64 (rec->durable) >= missing)
      break;
  }
  return slot;
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
      {
        memset (&w->mem[i], 0, JOURNAL_BLOCK);
        if (w->bad_slot == 0)
          w->bad_slot = (uint64_t) c * JOURNAL_CHUNK + block_offset (i);
      }
  return 0;
}

/* Where the chain goes on behind the chunk that is walked; false: nowhere. */
static bool
next_chunk (const struct log_walk *w, struct chain_chunk *next)
{
  if (!w->any || get32 (w->last.next_chunk) == 0 ||
      get32 (w->last.next_chunk) >= w->j->nchunks ||
      get32 (w->last.next_chunk) == w->at.chunk)
    return false;
  *next = (struct chain_chunk) {
    .chunk = get32 (w->last.next_chunk), .salt = get64 (w->last.next_salt),
    .first = w->at.first + JOURNAL_CHUNK_BLOCKS, .prev_crc = w->prev_crc,
    .ncommits = w->ncommits,
  };
  return true;
}

/* The hole that ends before REC: which commits may be in it? */
static void
note_hole (struct log_walk *w, const struct format_record *rec)
{
  struct journal *j = w->j;
  uint64_t known = get64 (rec->ncommits) - record_is_commit (rec);
  struct journal_damage d;

  if (known == w->ncommits)
    return;                     /* no commit was lost: REC has the newest state */
  if (!(rec->state_flags & FORMAT_HAS_CHECKPOINT))
    return;                     /* a new first copy: they are void */
  damage_set (&d, "journal", w->hole, 0,
              "record %llu is lost, though a later one proves that it was durable",
              (unsigned long long) w->seq + 1);
  damage_note (j, &d);
  if (j->hole_upto == 0)
    j->hole_from = w->any_whole ? newest_committed (j) : 0;
  if (record_is_commit (rec))
    j->hole_upto = get64 (rec->epoch) - 1;
  else if (rec->state == JOURNAL_PROMOTED)
    j->hole_upto = get64 (rec->open_epoch);
  else
    j->hole_upto = get64 (rec->checkpoint.id);
}

/* The record in *SLOT does not follow: go on behind the hole.  False: there is
 * none, this is the end.
 */
static bool
skip_hole (struct log_walk *w, unsigned *slot)
{
  uint64_t missing = w->seq + 1, offset;
  struct chain_chunk next;
  unsigned proof;

  offset = (uint64_t) w->at.chunk * JOURNAL_CHUNK + block_offset (*slot);
  proof = find_proof (w, &w->at, *slot, missing);
  if (proof == JOURNAL_CHUNK_BLOCKS && next_chunk (w, &next) &&
      read_chunk (w, next.chunk) == 0) {
    proof = find_proof (w, &next, 0, missing);
    if (proof == JOURNAL_CHUNK_BLOCKS)
      return false;
    /* What an anchor that points here one day is to say: what is lost before the
     * proof is then not needed any more.
     */
    next.prev_crc = get32 (w->mem[proof].prev_crc);
    next.ncommits = get64 (w->mem[proof].ncommits) -
                    record_is_commit (&w->mem[proof]);
    if (chain_add (w->j, &next) == -1) {
      w->no_memory = true;
      return false;
    }
    w->at = next;
  }
  if (proof == JOURNAL_CHUNK_BLOCKS)
    return false;
  /* A record that is lost may have said that the images have changed. */
  w->j->nsamples = 0;
  w->j->log.samples_seq = 0;
  w->hole = offset;
  note_hole (w, &w->mem[proof]);
  w->seq = w->at.first + proof - 1;
  w->prev_crc = get32 (w->mem[proof].prev_crc);
  w->parts = 0;
  *slot = proof;
  return true;
}

/* Walk the chain to its end, or to before record UPTO. */
static int
walk_chain (struct log_walk *w, uint64_t upto)
{
  struct journal *j = w->j;

  do {
    if (read_chunk (w, w->at.chunk) == -1 || chain_add (j, &w->at) == -1)
      return -1;
    for (unsigned slot = 0; slot < JOURNAL_CHUNK_BLOCKS; slot++) {
      if (w->seq + 1 == upto)
        return 0;
      if (!follows (w, &w->mem[slot], slot) && !skip_hole (w, &slot))
        return w->no_memory ? -1 : 0;
      if (note_record (w, &w->mem[slot]) == -1)
        return -1;
    }
  } while (next_chunk (w, &w->at));
  return 0;
}

/* Are the records behind the last one, up to the one that was acknowledged, nothing but that
 * commit?  Then write-out had not gone on since, and older checkpoints are as they were.  A mark of an earlier
 * boot may be old: who knows what was recorded after it.
 */
static bool
lost_is_commit (const struct log_walk *w, const struct format_acked *acked)
{
  const struct journal *j = w->j;
  uint64_t seq = get64 (acked->seq), slot = seq - w->at.first;
  const struct format_record *rec = &w->mem[slot % JOURNAL_CHUNK_BLOCKS];

  if (!j->state.has_checkpoint ||
      get64 (acked->checkpoint) <= j->state.checkpoint.id ||
      get64 (acked->generation) != j->state.generation ||
      memcmp (acked->boot_id, j->boot_id, HOST_ID_LEN) != 0)
    return false;
  if (seq == w->seq + 1)
    return true;                /* each record has a mark of its own */
  return slot < JOURNAL_CHUNK_BLOCKS && record_is_whole (&j->config, rec) &&
         get64 (rec->salt) == w->at.salt && get64 (rec->seq) == seq &&
         get64 (rec->epoch) == get64 (acked->checkpoint) &&
         get32 (rec->nparts) == seq - w->seq - 1;
}

static void
missing_damage (struct log_walk *w, uint64_t offset,
                const struct format_acked *acked)
{
  struct journal_damage d;

  damage_set (&d, "journal", offset, get64 (acked->checkpoint),
              "record %llu is lost, though the acknowledged mark says that it "
              "was durable", (unsigned long long) w->seq + 1);
  /* Unless it is known what it said of the write-out, no checkpoint is provably
   * whole.
   */
  w->j->lost = !lost_is_commit (w, acked);
  if (w->j->lost)
    d.checkpoint = 0;
  damage_note (w->j, &d);
}

/* The log seems to end at a block that cannot be read. */
static void
unreadable_damage (struct log_walk *w, uint64_t offset)
{
  struct journal_damage d;

  damage_set (&d, "journal", offset, 0,
              "the device cannot read what may be record %llu",
              (unsigned long long) w->seq + 1);
  damage_note (w->j, &d);
  w->j->lost = true;
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
  preload_raw (j, seq, nparts);
  r = table_walk_record (j, seq, nparts, get64 (w->whole.epoch), checker_item,
                         &check, damage);
  checker_free (&check);
  if (r == 0)
    return 1;
  return errno == EBADMSG ? 0 : -1;
}

static void
walk_init (struct log_walk *w, struct journal *j, struct format_record *mem,
           const struct chain_chunk *at)
{
  while (j->log.ncommits > 0)
    commits_drop_oldest (j);
  j->log.nchain = 0;
  j->log.saved_seq = j->log.samples_seq = 0;
  j->nsamples = 0;
  j->hole_from = j->hole_upto = 0;
  j->damaged = false;
  *w = (struct log_walk) { .j = j, .mem = mem, .at = *at,
                           .seq = at->first - 1, .prev_crc = at->prev_crc,
                           .ncommits = at->ncommits };
}

/* A hole matters while what was lost is not in the backing images. */
static void
judge_hole (struct log_walk *w)
{
  struct journal *j = w->j;

  if (w->hole != 0 && j->state.clean && j->log.saved_seq == 0) {
    j->state.clean = false;     /* it was the CLEAN record that is lost */
    j->saved_bad = true;
  }
  if (j->hole_upto == 0)
    return;
  if (!j->state.has_checkpoint || j->state.watermark.id >= j->hole_upto) {
    j->hole_from = j->hole_upto = 0;
    j->damaged = false;
    return;
  }
  j->hole_from = MAX (j->hole_from, j->state.watermark.id);
  j->damage.checkpoint = j->hole_from + 1;
  j->distrust = true;
  j->distrust_upto = j->hole_upto;
}

/* Behind the last record, where the next one would be, is there something that was one? */
static bool
tail_is_suspicious (const struct log_walk *w)
{
  uint64_t slot = w->seq + 1 - w->at.first;
  const struct format_record *rec = &w->mem[slot % JOURNAL_CHUNK_BLOCKS];

  return slot < JOURNAL_CHUNK_BLOCKS &&
         (get64 (rec->salt) == w->at.salt ||
          (memcmp (rec->magic, FORMAT_RECORD_MAGIC, FORMAT_MAGIC_LEN) == 0 &&
           get64 (rec->seq) == w->seq + 1));
}

/* No crash takes the mark away.  What is lost with it is the word on how the log ends. */
static void
check_no_acked (struct log_walk *w, uint64_t end,
                const struct format_record *torn,
                const struct journal_damage *torn_damage)
{
  struct journal_damage d;

  if (!acked_is_lost (w->j))
    return;
  if (torn && get16 (torn->kind) != JOURNAL_REC_CLEAN) {
    d = *torn_damage;
    d.checkpoint = get64 (torn->epoch);
    damage_note (w->j, &d);
  }
  else if (torn == NULL && tail_is_suspicious (w)) {
    damage_set (&d, "journal", end, 0,
                "what may be record %llu does not verify, and acked, which would know, is lost",
                (unsigned long long) w->seq + 1);
    w->j->lost = true;
    damage_note (w->j, &d);
  }
}

/* What the acknowledged mark knows that the log does not. */
static int
check_acked (struct log_walk *w, uint64_t end, const struct format_record *torn,
             const struct journal_damage *torn_damage)
{
  struct journal *j = w->j;
  struct format_acked acked;
  struct journal_damage d;

  (void) read_chunk (w, w->at.chunk);   /* the walk may have looked ahead */
  switch (acked_read (j, &acked)) {
  case -1: return -1;
  case 0:
    check_no_acked (w, end, torn, torn_damage);
    return 0;
  }
  if (memcmp (acked.id, j->config.id, HOST_ID_LEN) != 0) {
    damage_set (&d, "acked", offsetof (struct format_acked, id), 0,
                "it is of another replica than the file journal: put the right one back");
    j->lost = true;
    damage_note (j, &d);
  }
  else if (get64 (acked.seq) > w->seq && torn &&
           get64 (acked.seq) == get64 (torn->seq)) {
    /* It is there, but what it refers to is not whole. */
    if (get16 (torn->kind) == JOURNAL_REC_CLEAN) {
      j->saved_bad = true;      /* no checkpoint is hurt */
      j->saved_damage = *torn_damage;
    }
    else {
      d = *torn_damage;
      d.checkpoint = get64 (torn->epoch);
      damage_note (j, &d);
    }
  }
  else if (get64 (acked.seq) > w->seq)
    missing_damage (w, end, &acked);
  else if (get64 (acked.generation) > j->state.generation) {
    damage_set (&d, "acked", offsetof (struct format_acked, generation), 0,
                "it knows generation %llu, the journal only %llu: put the right one back",
                (unsigned long long) get64 (acked.generation),
                (unsigned long long) j->state.generation);
    j->lost = true;
    damage_note (j, &d);
  }
  return 0;
}

static int
no_record (struct journal *j, uint64_t offset, struct mcerror *err)
{
  struct journal_damage d;

  damage_set (&d, "journal", offset, 0,
              "the first record does not verify, so no other can be trusted");
  return damage_fatal (j, &d, err);
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
  CLEANUP_FREE struct format_record *torn_record = malloc (sizeof *torn_record);
  struct journal_damage torn;
  struct chain_chunk first;
  bool is_torn = false, is_unreadable = false, failed;
  struct format_acked acked;
  uint64_t end, keep = 0;

  if (w == NULL || mem == NULL || torn_record == NULL)
    return open_failed (j, err);
  if (anchor_read (j, &first, err) == -1)
    return -1;
  walk_init (w, j, mem, &first);
  if (walk_chain (w, 0) == -1)
    return open_failed (j, err);
  end = (uint64_t) w->at.chunk * JOURNAL_CHUNK +
        block_offset (w->seq + 1 - w->at.first);
  if (!w->any_whole)
    return no_record (j, end, err);

  failed = acked_read (j, &acked) == 1 &&
    memcmp (acked.id, j->config.id, HOST_ID_LEN) == 0 &&
    (get32 (acked.flags) & FORMAT_ACKED_FAILED);
  if (failed && get64 (acked.seq) < w->seq)
    keep = get64 (acked.seq) + 1;       /* the rest was refused */
  else if (w->parts > 0)
    keep = get64 (w->whole.seq) + 1;
  else if (record_has_table (&w->whole) &&
           get64 (w->whole.seq) > w->proven) {
    switch (newest_verifies (w, &torn)) {
    case -1:
      return open_failed (j, err);
    case 0:
      is_torn = true;
      is_unreadable = j->unreadable;
      *torn_record = w->whole;
      keep = get64 (w->whole.seq) - MIN (get32 (w->whole.nparts),
                                         get64 (w->whole.seq));
    }
  }
  if (keep != 0) {
    /* The simplest way to be in the state of an earlier record. */
    walk_init (w, j, mem, &first);
    if (walk_chain (w, keep) == -1)
      return open_failed (j, err);
    if (!w->any_whole || w->seq + 1 != keep)
      return no_record (j, end, err);
  }
  judge_hole (w);
  if (failed) {
    /* Writes were refused since: whatever else is left of the speculation is not whole. */
    j->saved_bad = true;
    j->state.clean = false;
    j->log.saved_seq = 0;
    j->mark_failed = j->was_failed = true;
  }
  if (is_unreadable && get16 (torn_record->kind) != JOURNAL_REC_CLEAN) {
    /* It may be whole: to drop it as torn would be to lose it. */
    torn.checkpoint = get64 (torn_record->epoch);
    damage_note (j, &torn);
  }
  else if (is_unreadable) {
    j->saved_bad = true;
    j->saved_damage = torn;
  }
  if (w->bad_slot != 0 && w->bad_slot == end && !is_torn)
    unreadable_damage (w, end);
  if (check_acked (w, end, is_torn ? torn_record : NULL, &torn) == -1)
    return open_failed (j, err);

  j->log.seq = j->log.durable = w->seq;
  j->log.prev_crc = w->prev_crc;
  j->log.ncommitted = w->ncommits;
  j->log.next_chunk = get32 (w->last.next_chunk);
  j->log.next_salt = get64 (w->last.next_salt);
  if (j->log.next_chunk >= j->nchunks ||
      j->log.next_chunk == j->log.chain[j->log.nchain - 1].chunk)
    j->log.next_chunk = 0;
  if (j->damaged && j->hole_upto == 0) {
    /* What the lost records referred to is not known. */
    j->distrust = true;
    j->distrust_upto = j->state.epoch_limit;
  }
  return 0;
}
