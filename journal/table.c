/* SPDX-License-Identifier: BSD-3-Clause */
/* The table stream: descriptors of what is published, in that order.
 *
 * The stream runs through table chunks, each bound to a buffer; their first block says
 * which of the stream they are.  Each epoch begins at a fresh block, so that a block
 * that a commit refers to is never written again.  A descriptor and its crc
 * slots lie in one chunk; where they would not fit, the chunk's rest stays zero.
 * What is published ends at the mark, one word of the region that is stored
 * last: so a publication is there wholly or not at all, whatever becomes of
 * the process.
 *
 * Credit.  Let R be the room in whole blocks: of the open chunk behind the mark
 * rounded up to a block, and of the chunks that are ready; the last block of
 * each is not counted, it makes up for what is left unused at a chunk's end.
 * A publication of S slots takes at most S rounded up to blocks plus one block
 * off R, the padding when its epoch is sealed included.  Its credit is that
 * much, and credit is given only while the sum of it is within R; so neither
 * a publication nor a seal ever lacks room.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

#define ROOM_PER_CHUNK (FORMAT_CHUNK_SLOTS - 2 * FORMAT_BLOCK_SLOTS)

int
tables_init (struct journal *j)
{
  struct tables *t = &j->tab;

  t->chunks_cap = t->epochs_cap = 64;
  t->chunks = calloc (t->chunks_cap, sizeof *t->chunks);
  t->epochs = calloc (t->epochs_cap, sizeof *t->epochs);
  t->first_serial = 1;
  return t->chunks == NULL || t->epochs == NULL ? -1 : 0;
}

void
tables_free (struct journal *j)
{
  free (j->tab.chunks);
  free (j->tab.epochs);
  memset (&j->tab, 0, sizeof j->tab);
}

struct epoch_info *
tables_epoch_locked (struct journal *j, size_t i)
{
  struct tables *t = &j->tab;

  return &t->epochs[(t->epochs_head + i) % t->epochs_cap];
}

uint32_t
stream_chunk_locked (struct journal *j, uint64_t pos)
{
  struct tables *t = &j->tab;
  uint64_t i = pos / FORMAT_CHUNK_SLOTS - t->first_serial;

  assert (i < t->nchunks);
  return t->chunks[(t->chunks_head + i) % t->chunks_cap];
}

uint32_t
desc_seed (const struct journal_config *config, uint64_t epoch)
{
  const le64 e = put64 (epoch);

  return crc32c (&e, sizeof e, crc32c (config->id, HOST_ID_LEN, 0));
}

static uint64_t
slots_needed (unsigned n, uint32_t blocks)
{
  uint64_t slots = 2 * (uint64_t) n + blocks / FORMAT_CRCS_PER_SLOT;

  return ROUND_UP (slots, (uint64_t) FORMAT_BLOCK_SLOTS) + FORMAT_BLOCK_SLOTS;
}

static uint64_t
room_locked (struct journal *j)
{
  const struct tables *t = &j->tab;
  uint64_t room = (uint64_t) t->nready * ROOM_PER_CHUNK;

  if (t->mark != 0) {
    uint64_t slot = ROUND_UP (t->mark % FORMAT_CHUNK_SLOTS,
                              (uint64_t) FORMAT_BLOCK_SLOTS);

    if (t->mark % FORMAT_CHUNK_SLOTS != 0 &&
        slot < FORMAT_CHUNK_SLOTS - FORMAT_BLOCK_SLOTS)
      room += FORMAT_CHUNK_SLOTS - FORMAT_BLOCK_SLOTS - slot;
  }
  return room;
}

/* Get one more chunk ready.  Releases the lock. */
static int
ready_one_locked (struct journal *j)
{
  struct tables *t = &j->tab;
  uint32_t c;
  int n;

  if (t->nready == READY_MAX) {
    errno = ENOMEM;
    return -1;
  }
  c = chunk_alloc_locked (j, CHUNK_TABLE, KEEP_FOR_RECORDS);
  if (c == 0) {
    errno = ENOSPC;
    return -1;
  }
  j->chunks[c].stream = true;
  n = buffer_take_locked (j);
  if (n == -1) {
    chunk_free_locked (j, c);
    return -1;
  }
  pthread_mutex_unlock (&j->lock);
  memset (j->buffers[n].mem, 0, JOURNAL_CHUNK);
  pthread_mutex_lock (&j->lock);
  if (t->nready == READY_MAX) {
    buffer_release_locked (j, n);
    chunk_free_locked (j, c);
    errno = ENOMEM;
    return -1;
  }
  buffer_bind_locked (j, n, c);
  t->ready[t->nready++] = c;
  return 0;
}

/* Some more room than there is, by one for all: were everybody who finds too little to get a chunk ready, these
 * would take the staging buffers away from data, and then nobody could go on.  Releases the lock.
 */
static int
make_room_locked (struct journal *j)
{
  struct tables *t = &j->tab;
  int r;

  if (t->making) {
    pthread_cond_wait (&j->buffer_cond, &j->lock);
    if (j->failed == 0)
      return 0;
    errno = EIO;
    return -1;
  }
  t->making = true;
  r = ready_one_locked (j);
  t->making = false;
  pthread_cond_broadcast (&j->buffer_cond);
  return r;
}

/* So that publish and seal never allocate. */
int
tables_grow_locked (struct journal *j)
{
  struct tables *t = &j->tab;

  if (t->nepochs + t->credits + 2 > t->epochs_cap) {
    size_t cap = t->epochs_cap * 2 + t->credits;
    struct epoch_info *epochs = calloc (cap, sizeof *epochs);

    if (epochs == NULL)
      return -1;
    for (size_t i = 0; i < t->nepochs; i++)
      epochs[i] = *tables_epoch_locked (j, i);
    free (t->epochs);
    t->epochs = epochs;
    t->epochs_cap = cap;
    t->epochs_head = 0;
  }
  if (t->nchunks + READY_MAX + 1 > t->chunks_cap) {
    size_t cap = t->chunks_cap * 2 + READY_MAX;
    uint32_t *chunks = calloc (cap, sizeof *chunks);

    if (chunks == NULL)
      return -1;
    for (size_t i = 0; i < t->nchunks; i++)
      chunks[i] = t->chunks[(t->chunks_head + i) % t->chunks_cap];
    free (t->chunks);
    t->chunks = chunks;
    t->chunks_cap = cap;
    t->chunks_head = 0;
  }
  return 0;
}

int
journal_credit (struct journal *j, unsigned n, uint32_t blocks)
{
  SCOPED_LOCK (&j->lock);
  uint64_t need = slots_needed (n, blocks);

  if (j->failed) {
    errno = EIO;
    return -1;
  }
  while (room_locked (j) < j->tab.credit + need)
    if (make_room_locked (j) == -1)
      return -1;
  if (tables_grow_locked (j) == -1)
    return -1;
  j->tab.credit += need;
  j->tab.credits++;
  return 0;
}

void
journal_uncredit (struct journal *j, unsigned n, uint32_t blocks)
{
  SCOPED_LOCK (&j->lock);

  assert (j->tab.credits > 0 && j->tab.credit >= slots_needed (n, blocks));
  j->tab.credit -= slots_needed (n, blocks);
  j->tab.credits--;
}

/* The blocks of the open chunk before slot TO will stay as they are. */
static void
settle_locked (struct journal *j, uint64_t to)
{
  struct tables *t = &j->tab;
  uint64_t slot = t->mark % FORMAT_CHUNK_SLOTS;
  unsigned from = slot / FORMAT_BLOCK_SLOTS, upto = to / FORMAT_BLOCK_SLOTS;

  if (upto > from &&
      buffer_filled_locked (j, j->chunks[t->last_chunk].buffer, from,
                            upto - from))
    push_wake (j);
}

/* Go on in the next chunk.  One is ready: credit saw to that. */
static void
next_chunk_locked (struct journal *j)
{
  struct tables *t = &j->tab;
  struct format_table *head;
  uint64_t serial;
  uint32_t c;

  assert (t->nready > 0);
  assert (t->nchunks < t->chunks_cap);
  c = t->ready[0];
  memmove (t->ready, t->ready + 1, --t->nready * sizeof t->ready[0]);

  if (t->mark != 0) {
    /* The zeroes at its end go to disk, too: they are what a reader sees.  A mark
     * at the very end of the chunk is slot 0 of the next serial number.
     */
    if (t->mark % FORMAT_CHUNK_SLOTS != 0)
      settle_locked (j, FORMAT_CHUNK_SLOTS);
    chunk_close_locked (j, t->last_chunk, JOURNAL_CHUNK_BLOCKS);
  }

  serial = t->first_serial + t->nchunks;
  head = (struct format_table *) j->buffers[j->chunks[c].buffer].mem;
  memcpy (head->magic, FORMAT_TABLE_MAGIC, FORMAT_MAGIC_LEN);
  head->chunk = put32 (c);
  memcpy (head->id, j->config.id, HOST_ID_LEN);
  head->serial = put64 (serial);
  head->prev = put32 (t->nchunks > 0 ? t->last_chunk : 0);
  head->crc = put32 (0);
  head->crc = put32 (crc32c (head, sizeof *head, 0));
  (void) buffer_filled_locked (j, j->chunks[c].buffer, 0, 1);

  t->chunks[(t->chunks_head + t->nchunks++) % t->chunks_cap] = c;
  t->last_chunk = c;
  t->mark = serial * FORMAT_CHUNK_SLOTS + FORMAT_BLOCK_SLOTS;
}

/* Later publications begin at a fresh block. */
void
tables_pad_locked (struct journal *j)
{
  struct tables *t = &j->tab;
  uint64_t slot = t->mark % FORMAT_CHUNK_SLOTS;

  if (slot % FORMAT_BLOCK_SLOTS != 0) {
    uint64_t to = ROUND_UP (slot, (uint64_t) FORMAT_BLOCK_SLOTS);

    settle_locked (j, to);
    t->mark += to - slot;
    __atomic_store_n (&j->region->mark, t->mark, __ATOMIC_RELEASE);
  }
}

static void
put_desc_locked (struct journal *j, const struct journal_extent *ext,
                 uint64_t epoch, struct epoch_info *info)
{
  struct tables *t = &j->tab;
  uint32_t k = ext->flags & JOURNAL_DATA ? journal_extent_blocks (ext) : 0;
  unsigned more = k > 1 ? k - 1 : 0;
  unsigned slots = 1 + DIV_UP (more, FORMAT_CRCS_PER_SLOT);
  uint64_t slot = t->mark % FORMAT_CHUNK_SLOTS;
  uint32_t first = 0, crc;
  struct format_desc *d;

  /* What no reader would take must not be written. */
  assert (ext->nsectors > 0 && ext->disk < JOURNAL_MAX_DISKS);
  assert (ext->flags == JOURNAL_DATA ||
          (ext->flags & ~JOURNAL_MAY_TRIM) == JOURNAL_ZERO);
  if (t->mark == 0 || slot == 0 || slot + slots > FORMAT_CHUNK_SLOTS) {
    next_chunk_locked (j);
    slot = t->mark % FORMAT_CHUNK_SLOTS;
  }
  if (info->slots == 0)
    info->start = t->mark;
  d = (struct format_desc *)
    (j->buffers[j->chunks[t->last_chunk].buffer].mem + slot * FORMAT_SLOT);
  if (k > 0) {
    struct chunk *chunk = &j->chunks[chunk_of (ext->block)];
    unsigned i = ext->block % JOURNAL_CHUNK_BLOCKS;
    le32 *crcs = (le32 *) (d + 1);

    assert (chunk->kind == CHUNK_DATA && i + k <= JOURNAL_CHUNK_BLOCKS);
    first = chunk->live->crc[i];
    for (unsigned m = 0; m < more; m++)
      crcs[m] = put32 (chunk->live->crc[i + 1 + m]);
    bits_clear (&chunk->live->pending, i, k);
    if (chunk->min_epoch == 0 || epoch < chunk->min_epoch)
      chunk->min_epoch = epoch;
    chunk->max_epoch = MAX (chunk->max_epoch, epoch);
    info->bytes += (uint64_t) ext->nsectors * JOURNAL_SECTOR;
  }
  d->sector = put64 (ext->sector);
  d->nsectors = put32 (ext->nsectors);
  d->block = put32 (k > 0 ? ext->block : 0);
  d->disk = put16 (ext->disk);
  d->flags = put16 (ext->flags);
  d->crc_first = put32 (first);
  d->epoch_low = put32 ((uint32_t) epoch);
  crc = crc32c (d, offsetof (struct format_desc, self_crc), t->seed);
  if (slots > 1)
    crc = crc32c (d + 1, (slots - 1) * FORMAT_SLOT, crc);
  d->self_crc = put32 (crc);
  settle_locked (j, slot + slots);
  t->mark += slots;
  info->end = t->mark;
  info->slots += slots;
  info->extents++;
}

void
journal_publish (struct journal *j, uint64_t epoch,
                 const struct journal_extent *ext, unsigned n)
{
  SCOPED_LOCK (&j->lock);
  struct tables *t = &j->tab;
  struct epoch_info *info = NULL;
  uint32_t blocks = 0;

  if (t->nepochs > 0)
    info = tables_epoch_locked (j, t->nepochs - 1);
  assert (info == NULL || info->epoch <= epoch);
  if (info == NULL || info->epoch != epoch) {
    tables_pad_locked (j);
    assert (t->nepochs < t->epochs_cap);
    info = tables_epoch_locked (j, t->nepochs++);
    *info = (struct epoch_info) { .epoch = epoch };
  }
  if (t->seed_epoch != epoch) {
    t->seed_epoch = epoch;
    t->seed = desc_seed (&j->config, epoch);
  }
  for (unsigned i = 0; i < n; i++) {
    put_desc_locked (j, &ext[i], epoch, info);
    if (ext[i].flags & JOURNAL_DATA)
      blocks += journal_extent_blocks (&ext[i]);
  }
  if (j->region->open_epoch < epoch)
    __atomic_store_n (&j->region->open_epoch, epoch, __ATOMIC_RELAXED);
  __atomic_store_n (&j->region->mark, t->mark, __ATOMIC_RELEASE);
  assert (t->credits > 0 && t->credit >= slots_needed (n, blocks));
  t->credit -= slots_needed (n, blocks);
  t->credits--;
}

void
journal_seal (struct journal *j, uint64_t epoch)
{
  SCOPED_LOCK (&j->lock);
  struct tables *t = &j->tab;

  if (t->nepochs > 0 &&
      tables_epoch_locked (j, t->nepochs - 1)->epoch == epoch)
    tables_pad_locked (j);
  if (j->region->open_epoch <= epoch)
    __atomic_store_n (&j->region->open_epoch, epoch + 1, __ATOMIC_RELEASE);
}

/* Forget the bookkeeping of uncommitted epochs up to EPOCH, and the stream up to
 * where the next one begins.  REFERENCED: commit record COMMIT refers to their
 * tables on disk; else nobody does.
 */
void
tables_drop_locked (struct journal *j, uint64_t epoch, uint64_t commit,
                    bool referenced)
{
  struct tables *t = &j->tab;
  uint64_t start, first;

  ASSERT_LOCKED (j);
  while (t->nepochs > 0 && tables_epoch_locked (j, 0)->epoch <= epoch) {
    t->epochs_head = (t->epochs_head + 1) % t->epochs_cap;
    t->nepochs--;
  }
  if (t->nepochs == 0)
    tables_pad_locked (j);
  start = t->nepochs > 0 ? tables_epoch_locked (j, 0)->start : t->mark;
  if (start == 0)
    return;
  /* First the region: a takeover must not look for what is gone. */
  __atomic_store_n (&j->region->start, start, __ATOMIC_RELEASE);

  /* The open chunk stays, if only for its room. */
  first = start / FORMAT_CHUNK_SLOTS;
  for (size_t i = 0; i < t->nchunks; i++) {
    uint64_t serial = t->first_serial + i;
    uint32_t c = t->chunks[(t->chunks_head + i) % t->chunks_cap];
    struct chunk *chunk = &j->chunks[c];
    unsigned upto = serial < first ? JOURNAL_CHUNK_BLOCKS :
      start % FORMAT_CHUNK_SLOTS / FORMAT_BLOCK_SLOTS;

    if (serial > first)
      break;
    if (referenced) {
      if (chunk->min_epoch == 0)
        chunk->min_epoch = commit;
      chunk->max_epoch = MAX (chunk->max_epoch, commit);
    }
    else if (chunk->buffer != NO_BUFFER && upto > 1) {
      /* Their blocks need not go to disk, but for the chunk's head. */
      struct buffer *b = &j->buffers[chunk->buffer];
      struct bits skip = { { 0 } };

      bits_set (&skip, 1, upto - 1);
      skip = bits_and (&skip, &b->meta->filled);
      b->meta->pushed = bits_or (&b->meta->pushed, &skip);
      if (bits_within (&b->meta->filled, &b->meta->pushed))
        j->dirty[chunk->buffer / 64] &=
          ~(UINT64_C (1) << (chunk->buffer % 64));
    }
  }
  while (t->nchunks > 1 && t->first_serial < first) {
    uint32_t c = t->chunks[t->chunks_head];

    t->chunks_head = (t->chunks_head + 1) % t->chunks_cap;
    t->nchunks--;
    t->first_serial++;
    j->chunks[c].stream = false;
    chunk_try_free_locked (j, c);
  }
}
