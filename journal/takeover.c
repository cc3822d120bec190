/* SPDX-License-Identifier: BSD-3-Clause */
/* Going on with the staging region of a server that was killed.
 *
 * What was published lies between START and MARK of the table stream.  The
 * chunk that the mark is in is always bound to a buffer; each table chunk names the one
 * before, in its buffer or in the file.  Every descriptor is checked, and every
 * image of theirs that is in a buffer; those that are not were pushed before
 * their buffer was given away, and are verified whenever they are read.
 *
 * The region is adopted where it is, and stays a valid one at every instant: a
 * server that is killed in here can be succeeded like any other.  Only what is behind
 * the mark is changed, which nobody believes.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

struct takeover {
  struct journal *j;
  int32_t *bound;               /* chunk -> buffer, or NO_BUFFER */
  uint32_t *chain;              /* table chunks, serials FIRST .. LAST */
  uint64_t first, last;
  uint64_t start, mark;
  uint64_t settled;
  uint64_t base;                /* position that the bytes being walked begin at */
  struct table_walk walk;
};

static int
bad (void)
{
  errno = EBADMSG;
  return -1;
}

/* Which chunk each buffer says it mirrors. */
static int
read_buffers (struct takeover *t)
{
  struct journal *j = t->j;

  t->bound = malloc (j->nchunks * sizeof *t->bound);
  if (t->bound == NULL)
    return -1;
  for (uint32_t c = 0; c < j->nchunks; c++)
    t->bound[c] = NO_BUFFER;
  for (unsigned b = 0; b < j->nbuffers; b++) {
    enum chunk_kind kind;
    int64_t c = meta_get (j->buffers[b].meta, &kind);

    if (c == 0)
      continue;
    if (c == -1 || c >= j->nchunks || t->bound[c] != NO_BUFFER ||
        (kind != CHUNK_DATA && kind != CHUNK_TABLE))
      return bad ();
    t->bound[c] = b;
  }
  return 0;
}

/* Table chunk C with its bytes at MEM: is it number SERIAL of the stream? */
bool
is_table (struct journal *j, uint32_t c, const void *mem, uint64_t serial)
{
  struct format_table head;
  uint32_t crc;

  memcpy (&head, mem, sizeof head);
  crc = get32 (head.crc);
  head.crc = put32 (0);
  return memcmp (head.magic, FORMAT_TABLE_MAGIC, FORMAT_MAGIC_LEN) == 0 &&
         memcmp (head.id, j->config.id, HOST_ID_LEN) == 0 &&
         crc32c (&head, sizeof head, 0) == crc &&
         get32 (head.chunk) == c && get64 (head.serial) == serial;
}

/* Bytes of table chunk C: in its buffer, else read into MEM. */
static const uint8_t *
table_mem (struct takeover *t, uint32_t c, uint8_t *mem, size_t len)
{
  if (t->bound[c] != NO_BUFFER)
    return t->j->buffers[t->bound[c]].mem;
  if (file_read (t->j, mem, len, (uint64_t) c * JOURNAL_CHUNK) == -1)
    return NULL;
  return mem;
}

/* Find the table chunks, from the last back to the first. */
static int
find_chain (struct takeover *t)
{
  struct journal *j = t->j;
  CLEANUP_FREE uint8_t *mem = aligned_blocks (JOURNAL_BLOCK);
  uint32_t c = 0;

  if (mem == NULL)
    return -1;
  t->first = t->start / FORMAT_CHUNK_SLOTS;
  t->last = (t->mark - 1) / FORMAT_CHUNK_SLOTS;
  /* With nothing behind START, the chunk it is in may be the one to come. */
  t->first = MIN (t->first, t->last);
  if (t->last - t->first >= j->nchunks)
    return bad ();
  t->chain = calloc (t->last - t->first + 1, sizeof *t->chain);
  if (t->chain == NULL)
    return -1;
  for (unsigned b = 0; b < j->nbuffers && c == 0; b++) {
    enum chunk_kind kind;
    int64_t at = meta_get (j->buffers[b].meta, &kind);

    if (at > 0 && kind == CHUNK_TABLE &&
        is_table (j, at, j->buffers[b].mem, t->last))
      c = at;
  }
  for (uint64_t serial = t->last; ; serial--) {
    const uint8_t *p;

    if (c == 0 || c >= j->nchunks)
      return bad ();
    p = table_mem (t, c, mem, JOURNAL_BLOCK);
    if (p == NULL || !is_table (j, c, p, serial))
      return bad ();
    t->chain[serial - t->first] = c;
    if (serial == t->first)
      return 0;
    c = get32 (((const struct format_table *) p)->prev);
  }
}

/* An extent of an epoch that is neither committed nor void. */
static int
take_item (void *opaque, const struct table_item *item)
{
  struct takeover *t = opaque;
  struct journal *j = t->j;
  uint32_t c = chunk_of (item->ext.block);
  unsigned i = item->ext.block % JOURNAL_CHUNK_BLOCKS;
  uint64_t pos = t->base + t->walk.at / FORMAT_SLOT;
  struct epoch_info *e = NULL;

  if (item->epoch <= t->settled)
    return 0;
  if (j->tab.nepochs > 0)
    e = tables_epoch_locked (j, j->tab.nepochs - 1);
  if (e && e->epoch > item->epoch)
    return bad ();
  if (e == NULL || e->epoch < item->epoch) {
    if (tables_grow_locked (j) == -1)
      return -1;
    e = tables_epoch_locked (j, j->tab.nepochs++);
    *e = (struct epoch_info) { .epoch = item->epoch, .start = pos };
  }
  e->end = pos + t->walk.slots;
  e->slots += t->walk.slots;
  e->extents++;
  if (item->nblocks == 0)
    return 0;

  e->bytes += (uint64_t) item->ext.nsectors * JOURNAL_SECTOR;
  if (chunk_claim (j, c, CHUNK_DATA, item->epoch) == -1)
    return -1;
  for (uint32_t m = 0; m < item->nblocks; m++)
    j->chunks[c].live->crc[i + m] = table_item_crc (item, m);
  bits_set (&j->chunks[c].live->known, i, item->nblocks);
  /* For adopt_buffers: none is pending, all this is published. */
  if (t->bound[c] != NO_BUFFER)
    bits_set (&j->chunks[c].live->pending, i, item->nblocks);
  return 0;
}

static int
walk_chain (struct takeover *t)
{
  struct journal *j = t->j;
  CLEANUP_FREE uint8_t *mem = aligned_blocks (JOURNAL_CHUNK);

  if (mem == NULL)
    return -1;
  t->walk = (struct table_walk) {
    .j = j, .fn = take_item, .opaque = t, .epoch = UINT64_MAX,
    /* Not before it by more than the lower half of an epoch can tell. */
    .first_epoch = t->settled > UINT32_MAX / 2 ?
                   t->settled - UINT32_MAX / 2 : 1,
  };
  for (uint64_t serial = t->first; serial <= t->last; serial++) {
    uint32_t c = t->chain[serial - t->first];
    uint64_t from = serial * FORMAT_CHUNK_SLOTS + FORMAT_BLOCK_SLOTS;
    uint64_t to = MIN ((serial + 1) * FORMAT_CHUNK_SLOTS, t->mark);
    const uint8_t *p = table_mem (t, c, mem, JOURNAL_CHUNK);
    size_t offset;

    if (p == NULL || chunk_claim (j, c, CHUNK_TABLE, t->settled) == -1)
      return bad ();
    from = MAX (from, t->start);
    if (from >= to)
      continue;
    t->base = from;
    if (table_walk_bytes (&t->walk,
                          p + from % FORMAT_CHUNK_SLOTS * FORMAT_SLOT,
                          (to - from) * FORMAT_SLOT, false, &offset) == -1)
      return -1;
  }
  return 0;
}

/* Every image that a descriptor knows in a buffer that uncommitted epochs need. */
static int
check_images (struct takeover *t)
{
  struct journal *j = t->j;

  for (uint32_t c = 1; c < j->nchunks; c++) {
    const struct chunk *chunk = &j->chunks[c];
    const struct buffer *b;
    enum chunk_kind kind;

    if (chunk->kind != CHUNK_DATA || chunk->max_epoch <= t->settled ||
        t->bound[c] == NO_BUFFER)
      continue;
    b = &j->buffers[t->bound[c]];
    if (meta_get (b->meta, &kind) == -1 || kind != CHUNK_DATA ||
        !bits_within (&chunk->live->known, &b->meta->filled))
      return bad ();
    for (unsigned i = 0; i < JOURNAL_CHUNK_BLOCKS; i++)
      if (bits_test (&chunk->live->known, i) &&
          crc32c (b->mem + (size_t) i * JOURNAL_BLOCK, JOURNAL_BLOCK, 0) !=
          chunk->live->crc[i])
        return bad ();
  }
  return 0;
}

/* All is well: from here on the buffers are this process' own.  No chunk is gone
 * on with: what was reserved in it and not published stays a hole.
 */
static void
adopt_buffers (struct takeover *t)
{
  struct journal *j = t->j;

  for (unsigned n = 0; n < j->nbuffers; n++) {
    struct buffer *b = &j->buffers[n];
    enum chunk_kind kind;
    int64_t c = meta_get (b->meta, &kind);
    struct chunk *chunk = &j->chunks[c];
    struct bits all = { { 0 } }, holes;

    bits_set (&all, 0, JOURNAL_CHUNK_BLOCKS);
    if (c == 0 || kind != chunk->kind ||
        (chunk->kind == CHUNK_DATA && chunk->max_epoch <= t->settled) ||
        (chunk->kind == CHUNK_TABLE && !chunk->stream)) {
      meta_set (b->meta, 0, CHUNK_FREE);
      continue;
    }
    if (chunk->kind == CHUNK_TABLE && c == t->chain[t->last - t->first]) {
      /* Behind the mark there may be half a publication, and a block with it
       * may have been pushed.
       */
      uint64_t slot = t->mark - t->last * FORMAT_CHUNK_SLOTS;
      unsigned block = slot / FORMAT_BLOCK_SLOTS;

      memset (b->mem + slot * FORMAT_SLOT, 0,
              (FORMAT_CHUNK_SLOTS - slot) * FORMAT_SLOT);
      bits_clear (&b->meta->pushed, block, JOURNAL_CHUNK_BLOCKS - block);
      bits_set (&b->meta->filled, block, JOURNAL_CHUNK_BLOCKS - block);
    }
    if (chunk->kind == CHUNK_DATA) {
      /* These have just been checked; whether they were pushed is only said. */
      b->meta->pushed = bits_minus (&b->meta->pushed, &chunk->live->pending);
      chunk->live->pending = (struct bits) { { 0 } };
    }
    holes = bits_minus (&all, &b->meta->filled);
    b->meta->pushed = bits_or (&b->meta->pushed, &holes);
    b->meta->filled = all;
    b->chunk = c;
    b->bump = JOURNAL_CHUNK_BLOCKS;
    chunk->buffer = n;
    j->nunbound--;
    if (!bits_within (&all, &b->meta->pushed))
      j->dirty[n / 64] |= UINT64_C (1) << (n % 64);
    (void) push_ready_locked (j, n);    /* no thread runs yet */
  }
}

/* Room for the chain in the ring of the stream. */
static int
stream_grow (struct takeover *t)
{
  struct tables *tab = &t->j->tab;
  size_t cap = t->last - t->first + 1 + READY_MAX + 1;
  uint32_t *chunks;

  assert (tab->nchunks == 0);
  if (tab->chunks_cap >= cap)
    return 0;
  chunks = realloc (tab->chunks, cap * sizeof *chunks);
  if (chunks == NULL)
    return -1;
  tab->chunks = chunks;
  tab->chunks_cap = cap;
  return 0;
}

/* The chain is the stream of this process. */
static void
adopt_stream_locked (struct takeover *t)
{
  struct journal *j = t->j;

  j->tab.chunks_head = 0;
  j->tab.nchunks = t->last - t->first + 1;
  for (size_t i = 0; i < j->tab.nchunks; i++) {
    j->chunks[t->chain[i]].stream = true;
    j->tab.chunks[i] = t->chain[i];
  }
  j->tab.first_serial = t->first;
  j->tab.last_chunk = t->chain[j->tab.nchunks - 1];
  /* The next publication opens a chunk; up to there it is all padding. */
  j->tab.mark = (t->last + 1) * FORMAT_CHUNK_SLOTS;
}

static void
publish_mark_locked (struct takeover *t)
{
  struct journal *j = t->j;
  uint64_t epoch = 0;

  if (j->tab.nepochs > 0)
    epoch = tables_epoch_locked (j, j->tab.nepochs - 1)->epoch;
  if (j->region->open_epoch < epoch)
    __atomic_store_n (&j->region->open_epoch, epoch, __ATOMIC_RELAXED);
  __atomic_store_n (&j->region->mark, j->tab.mark, __ATOMIC_RELEASE);
  tables_drop_locked (j, 0, 0, false);
}

static int
take (struct takeover *t)
{
  struct journal *j = t->j;

  if (t->mark == 0) {
    /* Nothing was ever published; but buffers may be bound. */
    for (unsigned b = 0; b < j->nbuffers; b++)
      meta_set (j->buffers[b].meta, 0, CHUNK_FREE);
    return 0;
  }
  if (t->start == 0)
    t->start = FORMAT_CHUNK_SLOTS + FORMAT_BLOCK_SLOTS;
  if (t->start > t->mark || t->start % FORMAT_BLOCK_SLOTS != 0)
    return bad ();
  if (read_buffers (t) == -1 || find_chain (t) == -1 ||
      stream_grow (t) == -1 || walk_chain (t) == -1 || check_images (t) == -1)
    return -1;

  SCOPED_LOCK (&j->lock);
  adopt_stream_locked (t);
  adopt_buffers (t);
  publish_mark_locked (t);
  return 0;
}

/* Start from the log alone again. */
static int
give_up (struct journal *j)
{
  j->tab.nepochs = 0;
  space_free (j);
  if (space_init (j) == -1 || space_claim (j) == -1)
    return -1;
  staging_reset (j);
  return 0;
}

int
takeover (struct journal *j, enum journal_took *took)
{
  struct takeover t = { .j = j, .start = j->region->start,
                        .mark = j->region->mark,
                        .settled = newest_settled (j) };
  uint64_t instance = j->region->instance;
  int r;

  *took = JOURNAL_TOOK_NOTHING;
  if (instance == STAGING_VOID) {
    /* Writes were refused: what a clean stop saved before them is not whole either. */
    j->was_failed = true;
    j->log.saved_seq = 0;
    j->state.clean = false;
  }
  /* Nobody wrote through it, or all was saved since. */
  else if (instance == 0 || j->state.clean) {
    staging_reset (j);
    return 0;
  }
  if (j->mark_failed ||
      (instance != j->state.instance && instance != j->state.instance + 1))
    r = bad ();
  else
    r = take (&t);
  cleanup_free (&t.bound);
  cleanup_free (&t.chain);
  if (r == 0) {
    space_settle (j);
    *took = JOURNAL_TOOK_SHARED;
    return 0;
  }
  if (errno != EBADMSG)
    return -1;
  *took = JOURNAL_TOOK_BAD;
  return give_up (j);
}

/* --- What a clean stop saved --- */

/* The table chunks that RUNS lie in, as a piece of stream. */
static int
runs_chain (struct takeover *t, const struct table_runs *runs)
{
  struct journal *j = t->j;
  CLEANUP_FREE uint8_t *mem = aligned_blocks (JOURNAL_BLOCK);
  uint64_t serial = 0;

  if (mem == NULL)
    return -1;
  t->chain = calloc (runs->nruns, sizeof *t->chain);
  t->bound = malloc (j->nchunks * sizeof *t->bound);
  if (t->chain == NULL || t->bound == NULL)
    return -1;
  for (uint32_t c = 0; c < j->nchunks; c++)
    t->bound[c] = NO_BUFFER;
  for (size_t i = 0; i < runs->nruns; i++) {
    uint32_t block = get32 (runs->runs[i].block), c = chunk_of (block);
    uint32_t first = block % JOURNAL_CHUNK_BLOCKS;
    uint64_t slots = get32 (runs->runs[i].bytes) / FORMAT_SLOT;
    uint64_t slot = (uint64_t) first * FORMAT_BLOCK_SLOTS;

    if (file_read (j, mem, JOURNAL_BLOCK, (uint64_t) c * JOURNAL_CHUNK) == -1)
      return bad ();
    if (i == 0) {
      serial = get64 (((const struct format_table *) mem)->serial);
      t->first = serial;
      t->start = serial * FORMAT_CHUNK_SLOTS + slot;
    }
    else if (serial++, first != 1)
      return bad ();            /* all but padding in between is listed */
    if (first == 0 || serial == 0 || !is_table (j, c, mem, serial))
      return bad ();
    t->chain[i] = c;
    t->last = serial;
    t->mark = serial * FORMAT_CHUNK_SLOTS + slot + slots;
  }
  return 0;
}

/* The last chunk gets a buffer: whoever takes over from us must find zeroes
 * behind what was saved, in the file there is anything.
 */
static int
load_last (struct takeover *t)
{
  struct journal *j = t->j;
  uint32_t c = t->chain[t->last - t->first];
  uint64_t end = t->mark - t->last * FORMAT_CHUNK_SLOTS;
  unsigned used = DIV_UP (end, FORMAT_BLOCK_SLOTS);
  struct buffer *b;
  int n;

  pthread_mutex_lock (&j->lock);
  n = buffer_take_locked (j);
  pthread_mutex_unlock (&j->lock);
  if (n == -1)
    return -1;
  b = &j->buffers[n];
  if (file_read (j, b->mem, (size_t) used * JOURNAL_BLOCK,
                 (uint64_t) c * JOURNAL_CHUNK) == -1)
    return bad ();
  memset (b->mem + end * FORMAT_SLOT, 0,
          (FORMAT_CHUNK_SLOTS - end) * FORMAT_SLOT);

  SCOPED_LOCK (&j->lock);
  buffer_bind_locked (j, n, c);
  bits_set (&b->meta->pushed, 0, used);
  (void) buffer_filled_locked (j, n, 0, JOURNAL_CHUNK_BLOCKS);
  chunk_close_locked (j, c, JOURNAL_CHUNK_BLOCKS);
  t->bound[c] = n;
  return 0;
}

/* Make the tables that a CLEAN record refers to the stream of this process,
 * where they are.  The region is a fresh one, and nobody's yet.
 */
int
saved_adopt (struct journal *j, const struct table_runs *runs)
{
  struct takeover t = { .j = j, .settled = newest_settled (j) };
  int r = -1;

  if (runs_chain (&t, runs) == 0 && stream_grow (&t) == 0 &&
      load_last (&t) == 0 && walk_chain (&t) == 0) {
    SCOPED_LOCK (&j->lock);
    adopt_stream_locked (&t);
    publish_mark_locked (&t);
    r = 0;
  }
  cleanup_free (&t.bound);
  cleanup_free (&t.chain);
  return r;
}
