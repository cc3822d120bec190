/* SPDX-License-Identifier: BSD-3-Clause */
/* The log: a chain of record chunks, 256 records each.  Every record names the
 * chunk that the chain goes on in, which is allocated long before it is needed.
 *
 * Appending is serialised by the turn: tickets, served in order, so that the
 * lock need not be held while records are written and synced.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"

/* --- The turn --- */

void
log_turn_take_locked (struct journal *j)
{
  uint64_t mine;

  ASSERT_LOCKED (j);
  mine = j->log.ticket++;
  while (j->log.serving != mine)
    pthread_cond_wait (&j->turn_cond, &j->lock);
}

void
log_turn_give_locked (struct journal *j)
{
  ASSERT_LOCKED (j);
  j->log.serving++;
  if (j->log.serving != j->log.ticket)
    pthread_cond_broadcast (&j->turn_cond);
}

/* --- Chain --- */

int
chain_add (struct journal *j, const struct chain_chunk *c)
{
  struct log *log = &j->log;

  if (log->nchain == log->chain_cap) {
    size_t cap = log->chain_cap * 2 + 16;
    struct chain_chunk *chain = realloc (log->chain, cap * sizeof *chain);

    if (chain == NULL)
      return -1;
    log->chain = chain;
    log->chain_cap = cap;
  }
  log->chain[log->nchain++] = *c;
  return 0;
}

/* Where record SEQ lies, in bytes; 0 when it is not in the chain. */
static uint64_t
record_offset_locked (struct journal *j, uint64_t seq)
{
  const struct log *log = &j->log;
  size_t lo = 0, hi = log->nchain;

  while (lo < hi) {
    size_t mid = (lo + hi) / 2;

    if (log->chain[mid].first <= seq)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (lo == 0 || seq - log->chain[lo - 1].first >= JOURNAL_CHUNK_BLOCKS)
    return 0;
  return block_offset ((uint64_t) log->chain[lo - 1].chunk *
                       JOURNAL_CHUNK_BLOCKS + seq - log->chain[lo - 1].first);
}

/* Read record SEQ again.  -1 with EBADMSG when it is not what was written;
 * *OFFSET says where it is.
 */
int
log_read (struct journal *j, uint64_t seq, struct format_record *rec,
          uint64_t *offset)
{
  {
    SCOPED_LOCK (&j->lock);
    *offset = record_offset_locked (j, seq);
  }
  if (*offset == 0 || file_read (j, rec, sizeof *rec, *offset) == -1 ||
      !record_is_whole (&j->config, rec) || get64 (rec->seq) != seq) {
    errno = EBADMSG;
    return -1;
  }
  return 0;
}

/* --- Commits --- */

struct commit *
commits_at (struct journal *j, size_t i)
{
  struct log *log = &j->log;

  return &log->commits[(log->commits_head + i) % log->commits_cap];
}

/* Room for one more, so that commits_add cannot fail. */
int
commits_grow (struct journal *j)
{
  struct log *log = &j->log;
  size_t cap = log->commits_cap * 2 + 64;
  struct commit *commits;

  if (log->ncommits < log->commits_cap)
    return 0;
  commits = calloc (cap, sizeof *commits);
  if (commits == NULL)
    return -1;
  for (size_t i = 0; i < log->ncommits; i++)
    commits[i] = *commits_at (j, i);
  free (log->commits);
  log->commits = commits;
  log->commits_cap = cap;
  log->commits_head = 0;
  return 0;
}

int
commits_add (struct journal *j, const struct commit *c)
{
  if (commits_grow (j) == -1)
    return -1;
  *commits_at (j, j->log.ncommits++) = *c;
  return 0;
}

void
commits_drop_oldest (struct journal *j)
{
  struct log *log = &j->log;

  free (log->commits[log->commits_head].label);
  log->commits_head = (log->commits_head + 1) % log->commits_cap;
  log->ncommits--;
}

void
commits_drop_newest (struct journal *j)
{
  free (commits_at (j, j->log.ncommits - 1)->label);
  j->log.ncommits--;
}

/* A promote to an older checkpoint makes those after it void, and so does the
 * loss of the checkpoint itself.
 */
void
commits_void (struct journal *j, const struct journal_state *state)
{
  while (j->log.ncommits > 0) {
    const struct commit *c = commits_at (j, j->log.ncommits - 1);

    if (state->has_checkpoint &&
        (c->kind != JOURNAL_REC_COMMIT || c->epoch <= state->checkpoint.id))
      break;
    commits_drop_newest (j);
  }
}

int
commit_of (const struct format_record *rec, struct commit *c)
{
  *c = (struct commit) {
    .epoch = get64 (rec->epoch), .first_epoch = get64 (rec->first_epoch),
    .seq = get64 (rec->seq), .extents = get64 (rec->extents),
    .bytes = get64 (rec->bytes), .nparts = get32 (rec->nparts),
    .kind = get16 (rec->kind), .time = get64 (rec->checkpoint.time),
  };
  if (rec->checkpoint.label[0] != '\0') {
    c->label = strndup (rec->checkpoint.label, JOURNAL_LABEL_MAX);
    if (c->label == NULL)
      return -1;
  }
  return 0;
}

/* --- Appending --- */

int
log_reserve (struct journal *j, size_t n)
{
  struct log *log = &j->log;
  struct format_record *buf;

  if (n <= log->buf_cap)
    return 0;
  buf = aligned_blocks (n * sizeof *buf);
  if (buf == NULL)
    return -1;
  free (log->buf);
  log->buf = buf;
  log->buf_cap = n;
  return 0;
}

/* Find a chunk for the chain to go on in, if it lacks one. */
static int
next_chunk_find (struct journal *j)
{
  struct log *log = &j->log;
  uint64_t salt;

  if (log->next_chunk != 0)
    return 0;
  if (host_random (&salt, sizeof salt) == -1)
    return -1;
  SCOPED_LOCK (&j->lock);
  log->next_chunk = chunk_alloc_locked (j, CHUNK_RECORD, 0);
  if (log->next_chunk == 0) {
    errno = ENOSPC;
    return -1;
  }
  log->next_salt = salt;
  return 0;
}

/* The oldest record that somebody may still ask for. */
static uint64_t
oldest_needed_locked (struct journal *j)
{
  const struct log *log = &j->log;
  uint64_t seq = log->durable;

  if (log->ncommits > 0) {
    const struct commit *c = commits_at (j, 0);

    seq = MIN (seq, c->seq - c->nparts);
  }
  if (log->saved_seq != 0)
    seq = MIN (seq, log->saved_seq - log->saved_nparts);
  if (log->samples_seq != 0)
    seq = MIN (seq, log->samples_seq);
  return seq;
}

/* Point the anchors at chain[N] and forget the chunks before.  Not within the turn
 * only: whoever recycles may come in between, then it has done the work.
 */
static int
anchor_move (struct journal *j, bool recycle)
{
  struct log *log = &j->log;
  struct chain_chunk head;
  uint64_t seq;
  size_t n = 0;
  int error = 0;

  {
    SCOPED_LOCK (&j->lock);
    if (log->anchoring || j->failed)
      return 0;
    if (recycle) {
      /* Counted under the lock that claims the anchors: N is of this chain. */
      uint64_t needed = oldest_needed_locked (j);

      while (n + 1 < log->nchain && log->chain[n + 1].first <= needed)
        n++;
      if (n == 0)
        return 0;
    }
    log->anchoring = true;
    head = log->chain[n];
    seq = log->anchor_seq + 1;
  }
  if (anchor_write (j, &head, seq) == -1)
    error = errno;

  SCOPED_LOCK (&j->lock);
  log->anchoring = false;
  if (error) {
    poison_locked (j, error);
    errno = EIO;
    return -1;
  }
  log->anchor_seq = seq;
  log->anchor_differs = false;
  for (size_t i = 0; i < n; i++)
    chunk_free_locked (j, log->chain[i].chunk);
  memmove (log->chain, log->chain + n, (log->nchain - n) * sizeof head);
  log->nchain -= n;
  return 0;
}

/* Go over to the chunk that was set aside. */
static int
chain_next (struct journal *j, uint64_t seq, uint32_t prev_crc,
            struct chain_chunk *c)
{
  struct log *log = &j->log;

  *c = (struct chain_chunk) { .chunk = log->next_chunk, .salt = log->next_salt,
                              .first = seq, .prev_crc = prev_crc,
                              .ncommits = log->ncommitted };
  {
    SCOPED_LOCK (&j->lock);
    if (chain_add (j, c) == -1)
      return -1;
    log->next_chunk = 0;
  }
  /* A chunk's last record must say where to go on; the others need not. */
  if (next_chunk_find (j) == -1 && errno != ENOSPC)
    return -1;
  return 0;
}

/* Give the N records their places, and write them. */
static int
write_records (struct journal *j, size_t n, struct chain_chunk *c,
               uint64_t *seq, uint32_t *prev_crc)
{
  struct log *log = &j->log;
  size_t from = 0;

  for (size_t i = 0; i < n; i++) {
    struct format_record *rec = &log->buf[i];
    uint64_t slot;

    ++*seq;
    if (*seq - c->first == JOURNAL_CHUNK_BLOCKS &&
        chain_next (j, *seq, *prev_crc, c) == -1)
      return -1;
    slot = *seq - c->first;
    if (slot == JOURNAL_CHUNK_BLOCKS - 1 && log->next_chunk == 0) {
      errno = ENOSPC;
      return -1;
    }
    rec->seq = put64 (*seq);
    rec->durable = put64 (log->durable);
    rec->salt = put64 (c->salt);
    rec->prev_crc = put32 (*prev_crc);
    rec->ncommits = put64 (log->ncommitted + record_is_commit (rec));
    rec->next_chunk = put32 (log->next_chunk);
    rec->next_salt = put64 (log->next_chunk ? log->next_salt : 0);
    rec->chunk = put32 (c->chunk);
    rec->slot = put32 (slot);
    record_seal (rec);
    *prev_crc = get32 (rec->crc);

    /* What is one piece of file is one write. */
    if (i == n - 1 || slot == JOURNAL_CHUNK_BLOCKS - 1) {
      uint64_t block = (uint64_t) c->chunk * JOURNAL_CHUNK_BLOCKS + slot;

      if (file_write (j, &log->buf[from], (i + 1 - from) * sizeof *rec,
                      block_offset (block - (i - from))) == -1)
        return -1;
      from = i + 1;
    }
  }
  return 0;
}

/* What is there in two copies is to be so again, and all of the file is to be had. */
static int
heal (struct journal *j)
{
  int r = 0;

  if (!j->heal)                 /* turn */
    return 0;
  if (j->file_size < j->config.size)
    r = io_fallocate (j->file, 0, 0, j->config.size);
  if (r == -1 && (errno == EOPNOTSUPP || errno == ENOSYS))
    r = io_truncate (j->file, j->config.size);
  if (r == 0)
    r = super_write (j, &j->config, j->super_seq + 1);
  if (r == -1) {
    int error = errno;
    SCOPED_LOCK (&j->lock);

    poison_locked (j, error);
    errno = EIO;
    return -1;
  }
  j->super_seq++;
  j->heal = false;
  return 0;
}

int
log_write (struct journal *j, size_t n, unsigned keep)
{
  struct log *log = &j->log;
  uint64_t left;
  struct chain_chunk c;
  bool differs;
  int error;

  log->new_seq = log->seq;
  log->new_crc = log->prev_crc;
  {
    SCOPED_LOCK (&j->lock);
    if (j->failed) {
      errno = EIO;
      return -1;
    }
    c = log->chain[log->nchain - 1];
    differs = log->anchor_differs;
  }
  /* Is there room?  What is checked here cannot fail below. */
  left = c.first + JOURNAL_CHUNK_BLOCKS - log->seq - 1;
  if (next_chunk_find (j) == -1 &&
      (errno != ENOSPC || left <= n + keep))
    return -1;
  /* Nothing may be overwritten that only one of the anchors knows to be free. */
  if ((differs && anchor_move (j, false) == -1) || heal (j) == -1)
    return -1;
  if (write_records (j, n, &c, &log->new_seq, &log->new_crc) == 0)
    return 0;
  error = errno;
  SCOPED_LOCK (&j->lock);
  poison_locked (j, error);
  errno = EIO;
  return -1;
}

int
log_sync (struct journal *j, size_t n)
{
  struct log *log = &j->log;
  int error = file_sync (j) == -1 ? errno : 0;
  SCOPED_LOCK (&j->lock);

  if (error)
    poison_locked (j, error);
  if (j->failed) {
    errno = EIO;
    return -1;
  }
  log->seq = log->durable = log->new_seq;
  log->prev_crc = log->new_crc;
  log->ncommitted += record_is_commit (&log->buf[n - 1]);
  return 0;
}

void
log_revert_locked (struct journal *j)
{
  struct log *log = &j->log;

  ASSERT_LOCKED (j);
  while (log->nchain > 1 && log->chain[log->nchain - 1].first > log->seq) {
    const struct chain_chunk *c = &log->chain[--log->nchain];

    if (log->next_chunk != 0)
      chunk_free_locked (j, log->next_chunk);
    log->next_chunk = c->chunk;
    log->next_salt = c->salt;
  }
}

/* --- Recycling --- */

int
log_recycle (struct journal *j)
{
  return anchor_move (j, true);
}
