/* SPDX-License-Identifier: BSD-3-Clause */
/* From maps to backing images: newest wins (the map sees to that), in disk
 * order, neighbours in one pwritev, data from RAM where it is still there.
 *
 * A long backlog has left RAM.  Its blocks lie in the journal in the order in which they were written, so that
 * disk order would read them one by one.  So the map is drained in parts: what is in RAM, and then
 * as many chunks of the journal at a time as can be held, each read in one go, and
 * each part in disk order.  The parts of a map do not overlap.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/samples.h"
#include "replica/sums.h"

#define BATCH_BYTES (1u << 20)
#define BATCH_PIECES 256
#define LARGE (64u << 10)       /* a piece that is worth a transfer of its own to the disk */
#define FEW 8                   /* so few blocks of a chunk are read one by one */

/* One transfer in the making. */
struct batch {
  struct drain *d;
  bool load;                    /* read chunks whole */
  unsigned disk;
  uint64_t offset, length;
  int niov;
  unsigned npins;
  struct iovec iov[BATCH_PIECES];
  uint32_t pin[BATCH_PIECES];
  uint8_t *bounce;              /* BATCH_BYTES: for what is not in RAM */
  size_t bounced;
};

static void
batch_reset (struct batch *b)
{
  int saved = errno;

  for (unsigned i = 0; i < b->npins; i++)
    journal_unpin (b->d->journal, b->pin[i]);
  b->npins = 0;
  b->niov = 0;
  b->length = 0;
  b->bounced = 0;
  errno = saved;
}

static int
batch_write (struct batch *b)
{
  struct drain *d = b->d;
  uint64_t length = b->length;
  int result = 0;

  if (length > 0) {
    struct backing *image = d->disks[b->disk].backing;

    result = backing_pwritev (image, b->iov, b->niov, b->offset);
    if (result == -1)
      d->failed_path = backing_path (image);
    else if (length >= LARGE)
      /* All of it at the sync, a hundred megabytes at once, would keep commits from the disk. */
      backing_begin_flush (image, b->offset, length);
  }
  batch_reset (b);
  if (result == 0 && length > 0) {
    d->written += length;
    if (d->progress)
      result = d->progress (d->opaque, length);
  }
  return result;
}

/* LEN bytes at SKIP of image LOC, by reference or by copy.  A chunk that does not verify may do so where it
 * is needed.
 */
static const void *
fetch (struct batch *b, uint32_t loc, uint32_t skip, uint32_t len)
{
  struct drain *d = b->d;
  uint32_t n = 1;
  const uint8_t *mem = journal_pin (d->journal, loc, &n, b->load, &d->damage);
  uint8_t *copy;

  if (mem) {
    b->pin[b->npins++] = loc;
    return mem + skip;
  }
  copy = b->bounce + b->bounced;
  if (journal_read (d->journal, loc, skip, len, copy, &d->damage) == -1)
    return NULL;
  b->bounced += len;
  return copy;
}

static int
add_data (struct batch *b, const struct map_run *run)
{
  uint64_t offset = run->sector * MAP_SECTOR;
  uint64_t length = run->nsectors * MAP_SECTOR;
  uint64_t size = b->d->disks[run->disk].size;
  const void *mem;

  length = MIN (length, size - offset);         /* the last sector may be short */
  if (b->length > 0 &&
      (b->disk != run->disk || b->offset + b->length != offset ||
       b->niov == BATCH_PIECES || b->npins == BATCH_PIECES ||
       b->length + length > BATCH_BYTES) &&
      batch_write (b) == -1)
    return -1;
  mem = fetch (b, run->loc, offset % JOURNAL_BLOCK, length);
  if (mem == NULL)
    return -1;
  if (b->length == 0) {
    b->disk = run->disk;
    b->offset = offset;
  }
  if (b->niov > 0 && (const uint8_t *) b->iov[b->niov - 1].iov_base +
      b->iov[b->niov - 1].iov_len == mem)
    b->iov[b->niov - 1].iov_len += length;
  else
    b->iov[b->niov++] = (struct iovec) {
      .iov_base = (void *) (uintptr_t) mem, .iov_len = length };
  b->length += length;
  return 0;
}

static int
add_zero (struct batch *b, const struct map_run *run)
{
  struct disk *disk = &b->d->disks[run->disk];
  uint64_t offset = run->sector * MAP_SECTOR;
  uint64_t length = MIN (run->nsectors * MAP_SECTOR, disk->size - offset);

  if (batch_write (b) == -1)
    return -1;
  if (backing_zero (disk->backing, length, offset, run->may_trim,
                    false) == -1) {
    b->d->failed_path = backing_path (disk->backing);
    return -1;
  }
  return b->d->progress ? b->d->progress (b->d->opaque, 0) : 0;
}

static bool
is_in_ram (struct drain *d, uint32_t chunk)
{
  uint32_t n = 1, block = chunk * JOURNAL_CHUNK_BLOCKS;

  if (journal_pin (d->journal, block, &n, false, NULL) == NULL)
    return false;
  journal_unpin (d->journal, block);
  return true;
}

/* RUNS by part into *PARTED, and within a part in disk order as before: part 0 needs no chunk to be
 * read whole.  *STARTS has one more entry than there are parts.  Both are malloced.
 */
static int
split (struct drain *d, const struct map_run *runs, size_t n,
       struct map_run **parted, size_t **starts, size_t *nparts)
{
  size_t room = journal_load_room (d->journal), chunks = 0, loaded = 0;
  CLEANUP_FREE uint32_t *part = NULL;   /* of each chunk; first, how many runs need it */
  CLEANUP_FREE size_t *at = NULL;
  struct map_run *sorted;

  for (size_t i = 0; i < n; i++)
    if (!runs[i].zero)
      chunks = MAX (chunks, (size_t) runs[i].loc / JOURNAL_CHUNK_BLOCKS + 1);
  part = calloc (chunks + 1, sizeof *part);
  if (part == NULL)
    return -1;
  for (size_t i = 0; i < n; i++)
    if (!runs[i].zero)
      part[runs[i].loc / JOURNAL_CHUNK_BLOCKS]++;
  for (size_t c = 0; c < chunks; c++)
    part[c] = part[c] < FEW || is_in_ram (d, c) ? 0 :
      1 + loaded++ / room;

  *nparts = 1 + DIV_UP (loaded, room);
  *starts = calloc (*nparts + 1, sizeof **starts);
  at = calloc (*nparts + 1, sizeof *at);
  sorted = malloc (n * sizeof *sorted);
  if (*starts == NULL || at == NULL || sorted == NULL) {
    free (sorted);
    return -1;
  }
  for (size_t i = 0; i < n; i++)
    (*starts)[1 + (runs[i].zero ? 0 : part[runs[i].loc / JOURNAL_CHUNK_BLOCKS])]++;
  for (size_t p = 0; p < *nparts; p++)
    at[p + 1] = (*starts)[p + 1] += (*starts)[p];
  for (size_t i = 0; i < n; i++)
    sorted[at[runs[i].zero ? 0 : part[runs[i].loc / JOURNAL_CHUNK_BLOCKS]]++] = runs[i];
  *parted = sorted;
  return 0;
}

static int
flush_touched (struct drain *d, const bool *touched)
{
  for (unsigned i = 0; i < d->ndisks; i++)
    if (touched[i] && backing_flush (d->disks[i].backing) == -1) {
      d->failed_path = backing_path (d->disks[i].backing);
      return -1;
    }
  return 0;
}

int
drain_map (struct drain *d, const struct map *map)
{
  CLEANUP_FREE struct map_run *runs = NULL;
  CLEANUP_FREE struct batch *b = NULL;
  CLEANUP_FREE uint8_t *bounce = NULL;
  CLEANUP_FREE struct map_run *parted = NULL;
  CLEANUP_FREE size_t *starts = NULL;
  bool touched[JOURNAL_MAX_DISKS] = { false };
  size_t n, nparts;
  int result = 0;
  struct direct *direct = NULL;
  bool buffered = false;

  d->failed_path = NULL;
  if (map_sorted (map, &runs, &n) == -1)
    return -1;
  if (n == 0) {
    sums_note (d->sums, d->disks, d->ndisks, runs, 0, d->upto, NULL, NULL);
    return 0;
  }
  sums_prepare (d->sums, d->disks, d->ndisks);
  if (split (d, runs, n, &parted, &starts, &nparts) == -1)
    return -1;
  b = calloc (1, sizeof *b);
  bounce = malloc (BATCH_BYTES);
  if (b == NULL || bounce == NULL)
    return -1;
  b->d = d;
  b->bounce = bounce;
  if (d->hurry)
    direct = direct_new (d);
  for (size_t p = 0; p < nparts && result == 0; p++) {
    size_t left;

    b->load = p > 0;
    if (buffered && direct)
      result = flush_touched (d, touched);      /* see direct.c */
    if (result == 0)
      result = direct_part (direct, parted + starts[p], starts[p + 1] - starts[p], b->load,
                            touched, &left);
    for (size_t i = starts[p]; result == 0 && i < starts[p] + left; i++) {
      const struct map_run *run = &parted[i];

      buffered = true;

      if (d->disks[run->disk].backing == NULL) {
        /* Recovery opens no image of a disk that joined later: no commit before that names it. */
        d->damage = (struct journal_damage) { .file = "journal",
          .offset = (uint64_t) run->loc * JOURNAL_BLOCK,
          .what = "a commit names a disk that joined after it" };
        errno = EBADMSG;
        result = -1;
        break;
      }
      if (!touched[run->disk]) {
        touched[run->disk] = true;
        /* MAP has all that was written there since the last good flush. */
        backing_restart (d->disks[run->disk].backing);
      }
      result = run->zero ? add_zero (b, run) : add_data (b, run);
    }
    if (result == 0)
      result = batch_write (b);
  }
  batch_reset (b);
  direct_free (direct);
  if (result == 0)
    result = flush_touched (d, touched);
  if (result == 0) {
    samples_update (d->journal, d->disks, d->ndisks, runs, n);
    sums_note (d->sums, d->disks, d->ndisks, runs, n, d->upto, d->progress, d->opaque);
  }
  return result;
}

static int
compare_block (const void *a, const void *b)
{
  uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;

  return x < y ? -1 : x > y;
}

int
drain_prepare (struct drain *d, const struct map *map, bool *news)
{
  CLEANUP_FREE struct map_run *runs = NULL;
  CLEANUP_FREE uint32_t *blocks = NULL;
  size_t n, nblocks = 0;

  *news = false;
  if (map_sorted (map, &runs, &n) == -1)
    return -1;
  blocks = malloc (MAX (n, (size_t) 1) * sizeof *blocks);
  if (blocks == NULL)
    return -1;
  for (size_t i = 0; i < n; i++) {
    uint32_t one = 1;

    if (runs[i].zero || d->verified)
      continue;
    if (journal_pin (d->journal, runs[i].loc, &one, false, NULL))
      journal_unpin (d->journal, runs[i].loc);
    else
      blocks[nblocks++] = runs[i].loc;
  }
  qsort (blocks, nblocks, sizeof *blocks, compare_block);
  if (journal_verify_blocks (d->journal, blocks, nblocks, &d->damage) == -1)
    return -1;
  *news = samples_prepare (d->journal, d->disks, d->ndisks, runs, n);
  return 0;
}

struct replay {
  struct epoch *epoch;
  uint64_t newest;
};

static int
replay_extent (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  struct replay *p = opaque;

  p->newest = MAX (p->newest, epoch);
  p->epoch->extents++;
  p->epoch->bytes += (uint64_t) ext->nsectors * JOURNAL_SECTOR;
  return ext->flags & JOURNAL_ZERO ?
    map_zero (p->epoch->map, ext->disk, ext->sector, ext->nsectors,
              ext->flags & JOURNAL_MAY_TRIM) :
    map_put (p->epoch->map, ext->disk, ext->sector, ext->nsectors, ext->block);
}

int
replay_map (struct journal *j, uint64_t from, uint64_t upto, struct epoch *e,
            uint64_t *newest, struct journal_damage *damage)
{
  struct replay p = { .epoch = e };

  if (journal_replay (j, from, upto, replay_extent, &p, damage) == -1)
    return -1;
  *newest = MAX (*newest, p.newest);
  return 0;
}
