/* SPDX-License-Identifier: BSD-3-Clause */
/* Another size for a journal that nobody serves.
 *
 * Growing is easy: the file gets longer, durably, then the superblocks say so.
 *
 * Shrinking: tables and data that commits or a clean stop refer to must lie below the new
 * end, they are not moved.  Records are: those that are still needed are written again as a new
 * chain in a free chunk, and when that is durable the anchors point there.  Then the
 * superblocks give the new size, and last the file is cut.  A crash in between leaves the old
 * chain or the new one, and at worst a file that is longer than it need be.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"

#define SPARE_CHUNKS 8u         /* what is retained must leave so many */

/* --- records, moved --- */

struct moved {
  struct format_record *rec;    /* those that are needed, the newest state last; a chunk of them */
  size_t n;
  size_t ncommits;
};

/* Append record SEQ and the PARTs before it. */
static int
add_records (struct journal *j, struct moved *m, uint64_t seq, uint32_t nparts)
{
  uint64_t offset;

  for (uint64_t s = seq - nparts; s <= seq; s++) {
    if (m->n + 2 >= JOURNAL_CHUNK_BLOCKS) {
      errno = EBUSY;            /* too many for one chunk: when some are written out */
      return -1;
    }
    if (log_read (j, s, &m->rec[m->n], &offset) == -1)
      return -1;
    m->ncommits += record_is_commit (&m->rec[m->n]);
    m->n++;
  }
  return 0;
}

/* What is still needed of the log.  Their places in the new chain follow from the order: commits,
 * what a clean stop saved, the state.
 */
static int
gather (struct journal *j, struct moved *m)
{
  const struct log *log = &j->log;

  for (size_t i = 0; i < log->ncommits; i++)
    if (add_records (j, m, commits_at (j, i)->seq, commits_at (j, i)->nparts) == -1)
      return -1;
  if (log->saved_seq != 0 &&
      add_records (j, m, log->saved_seq, log->saved_nparts) == -1)
    return -1;
  record_encode (j, &m->rec[m->n], JOURNAL_REC_STATE, &j->state);
  record_put_samples (&m->rec[m->n], j->samples, j->nsamples);
  m->n++;
  return 0;
}

/* Chain them, as the records of chunk C. */
static void
chain (struct journal *j, struct moved *m, const struct chain_chunk *c)
{
  uint64_t ncommits = c->ncommits;
  uint32_t prev_crc = c->prev_crc;

  (void) j;
  for (size_t i = 0; i < m->n; i++) {
    struct format_record *rec = &m->rec[i];

    ncommits += record_is_commit (rec);
    rec->seq = put64 (c->first + i);
    /* All of them are, before an anchor leads here. */
    rec->durable = put64 (c->first + m->n - 1);
    rec->salt = put64 (c->salt);
    rec->prev_crc = put32 (prev_crc);
    rec->ncommits = put64 (ncommits);
    rec->next_chunk = put32 (0);
    rec->next_salt = put64 (0);
    rec->chunk = put32 (c->chunk);
    rec->slot = put32 (i);
    record_seal (rec);
    prev_crc = get32 (rec->crc);
  }
}

/* The new chain is the log. */
static void
adopt (struct journal *j, const struct moved *m, const struct chain_chunk *c)
{
  struct log *log = &j->log;
  uint64_t seq = c->first - 1;

  for (size_t i = 0; i < log->ncommits; i++) {
    struct commit *k = commits_at (j, i);

    seq += k->nparts + 1;
    k->seq = seq;
  }
  if (log->saved_seq != 0)
    log->saved_seq = seq + log->saved_nparts + 1;
  log->chain[0] = *c;
  log->nchain = 1;
  log->next_chunk = 0;
  log->seq = log->durable = c->first + m->n - 1;
  log->prev_crc = get32 (m->rec[m->n - 1].crc);
  log->samples_seq = j->nsamples > 0 ? log->seq : 0;
  log->anchor_seq++;
  log->anchor_differs = false;
}

/* After an error of a write or sync nobody knows what is on the disk. */
static int
poisoned (struct journal *j)
{
  int error = errno;
  SCOPED_LOCK (&j->lock);

  poison_locked (j, error);
  errno = EIO;
  return -1;
}

static int
move_records (struct journal *j, uint32_t to)
{
  struct moved m = { .rec = aligned_blocks (JOURNAL_CHUNK) };
  struct chain_chunk c = { .chunk = to, .first = j->log.seq + 1,
                           .prev_crc = j->log.prev_crc };
  int r = -1;

  if (m.rec && host_random (&c.salt, sizeof c.salt) == 0 && gather (j, &m) == 0) {
    c.ncommits = j->log.ncommitted - m.ncommits;
    chain (j, &m, &c);
    if (file_write (j, m.rec, m.n * sizeof *m.rec,
                    (uint64_t) to * JOURNAL_CHUNK) == -1 ||
        file_sync (j) == -1 ||
        anchor_write (j, &c, j->log.anchor_seq + 1) == -1)
      r = poisoned (j);
    else {
      adopt (j, &m, &c);
      /* An error leaves the mark behind, which is what it may be. */
      (void) acked_write (j, j->state.has_checkpoint ? j->state.checkpoint.id : 0,
                          j->state.generation, j->log.seq, 0);
      r = 0;
    }
  }
  cleanup_free (&m.rec);
  return r;
}

/* --- shrinking --- */

/* What lies at or behind chunk N: 0 nothing; 1 records only; -1 with EBUSY. */
static int
look_behind (struct journal *j, uint32_t n, uint32_t *first_free)
{
  uint32_t used = 0;
  int records = 0;

  *first_free = 0;
  for (uint32_t c = 1; c < j->nchunks; c++) {
    enum chunk_kind kind = j->chunks[c].kind;

    if (kind == CHUNK_FREE && c < n && *first_free == 0)
      *first_free = c;
    if (kind == CHUNK_RECORD && c >= n)
      records = 1;
    else if (kind != CHUNK_FREE) {
      used++;
      if (c >= n) {
        errno = EBUSY;
        return -1;
      }
    }
  }
  if (used + SPARE_CHUNKS > n || *first_free == 0) {
    errno = EBUSY;
    return -1;
  }
  return records;
}

static int
set_size (struct journal *j, uint64_t size)
{
  struct journal_config next = j->config;

  next.size = size;
  if (super_write (j, &next, j->super_seq + 1) == -1)
    return poisoned (j);
  j->super_seq++;
  j->config.size = size;
  return 0;
}

/* Work out again what is in use; what was known was of the old size. */
static int
settle (struct journal *j)
{
  space_free (j);
  return space_init (j) == -1 || space_claim (j) == -1 ? -1 : 0;
}

static int
shrink (struct journal *j, uint64_t size)
{
  uint32_t n = size / JOURNAL_CHUNK, to;

  /* What a killed server left in shared memory may refer to any chunk. */
  if (!j->state.clean) {
    errno = EAGAIN;
    return -1;
  }
  switch (look_behind (j, n, &to)) {
  case -1:
    return -1;
  case 1:
    if (move_records (j, to) == -1)
      return -1;
  }
  if (j->log.next_chunk >= n)
    j->log.next_chunk = 0;
  if (set_size (j, size) == -1 || settle (j) == -1)
    return -1;
  /* Room that is not given back harms nobody. */
  (void) io_truncate (j->file, size);
  j->file_size = size;
  return 0;
}

/* --- growing --- */

static int
lengthen (struct journal *j, uint64_t size)
{
  static const size_t piece = JOURNAL_CHUNK;
  CLEANUP_FREE void *zeroes = NULL;
  uint64_t from = j->config.size;

  if (io_fallocate (j->file, 0, from, size - from) == 0)
    return 0;
  if (errno != EOPNOTSUPP && errno != ENOSYS)
    return -1;
  zeroes = aligned_blocks (piece);
  if (zeroes == NULL)
    return -1;
  memset (zeroes, 0, piece);
  for (uint64_t off = from; off < size; off += piece)
    if (file_write (j, zeroes, piece, off) == -1)
      return -1;
  return 0;
}

static int
grow (struct journal *j, uint64_t size)
{
  if (lengthen (j, size) == -1) {
    int saved = errno;

    (void) io_truncate (j->file, j->config.size);
    errno = saved;
    return -1;
  }
  if (file_sync (j) == -1)
    return poisoned (j);
  if (set_size (j, size) == -1)
    return -1;
  j->file_size = size;
  return settle (j);
}

int
journal_resize (struct journal *j, uint64_t size)
{
  assert (!j->started && !j->look);
  size = ROUND_DOWN (size, (uint64_t) JOURNAL_CHUNK);
  if (size < JOURNAL_MIN_SIZE || size > JOURNAL_MAX_SIZE || j->damaged ||
      j->distrust) {
    errno = EINVAL;
    return -1;
  }
  return size == j->config.size ? 0 :
    size < j->config.size ? shrink (j, size) : grow (j, size);
}
