/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading block images: from the staging buffer while the chunk has one, else
 * from the file, verified each time.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

/* Loaded chunks that nobody has pinned are kept up to a part of the staging buffers, but
 * no fewer and no more than these.
 */
#define LOADED_PART 16u
#define LOADED_MIN 4u
#define LOADED_MAX 16u

static int
image_damage (uint32_t block, struct journal_damage *damage, const char *what)
{
  damage_set (damage, "journal", block_offset (block), 0, "%s", what);
  errno = EBADMSG;
  return -1;
}

/* Copies of the crcs of N images; those not KNOWN are not in use. */
static void
crcs_get (struct journal *j, uint32_t block, uint32_t n, uint32_t *crc,
          struct bits *known)
{
  SCOPED_LOCK (&j->lock);
  const struct chunk *chunk = &j->chunks[chunk_of (block)];
  unsigned i = block % JOURNAL_CHUNK_BLOCKS;

  *known = (struct bits) { { 0 } };
  if (chunk->kind != CHUNK_DATA)
    return;
  memcpy (crc, &chunk->live->crc[i], n * sizeof *crc);
  for (uint32_t m = 0; m < n; m++)
    if (bits_test (&chunk->live->known, i + m))
      bits_set (known, m, 1);
}

bool
journal_block_crc (struct journal *j, uint32_t block, uint32_t *crc)
{
  uint32_t c = chunk_of (block), i = block % JOURNAL_CHUNK_BLOCKS;
  SCOPED_LOCK (&j->lock);

  if (c >= j->nchunks || j->chunks[c].kind != CHUNK_DATA ||
      !bits_test (&j->chunks[c].live->known, i))
    return false;
  *crc = j->chunks[c].live->crc[i];
  return true;
}

static int
read_file (struct journal *j, uint32_t block, uint32_t offset, uint32_t len,
           void *buf, struct journal_damage *damage)
{
  uint32_t n = DIV_UP (offset + len, JOURNAL_BLOCK);
  CLEANUP_FREE uint8_t *mem = aligned_blocks ((size_t) n * JOURNAL_BLOCK);
  uint32_t crc[JOURNAL_CHUNK_BLOCKS];
  struct bits known;

  if (mem == NULL)
    return -1;
  crcs_get (j, block, n, crc, &known);
  if (file_read (j, mem, (size_t) n * JOURNAL_BLOCK, block_offset (block))
      == -1) {
    damage_set (damage, "journal", block_offset (block), 0,
                "data cannot be read: %m");
    errno = EBADMSG;
    return -1;
  }
  for (uint32_t i = 0; i < n; i++) {
    if (!bits_test (&known, i))
      return image_damage (block + i, damage, "the block is not in use");
    if (crc32c (mem + (size_t) i * JOURNAL_BLOCK, JOURNAL_BLOCK, 0) != crc[i])
      return image_damage (block + i, damage,
                           "data is not what was written");
  }
  memcpy (buf, mem + offset, len);
  return 0;
}

int
journal_read (struct journal *j, uint32_t block, uint32_t offset, uint32_t len,
              void *buf, struct journal_damage *damage)
{
  uint32_t n, have;
  const uint8_t *p;

  block += offset / JOURNAL_BLOCK;
  offset %= JOURNAL_BLOCK;
  if (len == 0)
    return 0;
  n = DIV_UP (offset + len, JOURNAL_BLOCK);
  if (chunk_of (block) == 0 || chunk_of (block) >= j->nchunks ||
      block % JOURNAL_CHUNK_BLOCKS + n > JOURNAL_CHUNK_BLOCKS) {
    errno = EINVAL;
    return -1;
  }
  have = n;
  p = journal_pin (j, block, &have, false, NULL);
  if (p && have == n)
    memcpy (buf, p + offset, len);
  if (p)
    journal_unpin (j, block);
  return p && have == n ? 0 : read_file (j, block, offset, len, buf, damage);
}

int
journal_verify_blocks (struct journal *j, const uint32_t *block, size_t n,
                       struct journal_damage *damage)
{
  CLEANUP_FREE uint8_t *mem = n > 0 ? aligned_blocks (JOURNAL_CHUNK) : NULL;
  uint32_t crc[JOURNAL_CHUNK_BLOCKS];

  if (n > 0 && mem == NULL)
    return -1;
  while (n > 0) {
    size_t k = 1;
    uint32_t first = block[0], last;
    struct bits known;

    if (chunk_of (first) == 0 || chunk_of (first) >= j->nchunks) {
      errno = EINVAL;
      return -1;
    }
    while (k < n && chunk_of (block[k]) == chunk_of (first))
      k++;
    last = block[k - 1];
    crcs_get (j, first, last - first + 1, crc, &known);
    if (file_read (j, mem, (size_t) (last - first + 1) * JOURNAL_BLOCK,
                   block_offset (first)) == -1)
      return image_damage (first, damage, "data cannot be read");
    for (size_t i = 0; i < k; i++) {
      uint32_t at = block[i] - first;

      if (!bits_test (&known, at) ||
          crc32c (mem + (size_t) at * JOURNAL_BLOCK, JOURNAL_BLOCK, 0) != crc[at])
        return image_damage (block[i], damage, "data is not what was written");
    }
    block += k;
    n -= k;
  }
  return 0;
}

/* --- Pins --- */

void
journal_set_load_room (struct journal *j, size_t chunks)
{
  j->load_room = chunks;
}

size_t
journal_load_room (const struct journal *j)
{
  return j->load_room ? j->load_room :
    MIN (MAX (j->nbuffers / LOADED_PART, LOADED_MIN), LOADED_MAX);
}

static struct loaded *
loaded_find_locked (struct journal *j, uint32_t c)
{
  return j->chunks[c].loaded;
}

/* A loaded_chunk of one's own for C, busy. */
static struct loaded *
loaded_new_locked (struct journal *j, uint32_t c)
{
  struct loaded *oldest = NULL;

  for (struct loaded *l = j->loaded; l && j->nloaded >= journal_load_room (j); l = l->next)
    if (l->pins == 0 && !l->busy && (oldest == NULL || l->used < oldest->used))
      oldest = l;
  if (oldest == NULL) {
    oldest = calloc (1, sizeof *oldest);
    if (oldest == NULL)
      return NULL;
    oldest->mem = aligned_blocks (JOURNAL_CHUNK);
    if (oldest->mem == NULL) {
      cleanup_free (&oldest);
      return NULL;
    }
    oldest->next = j->loaded;
    j->loaded = oldest;
    j->nloaded++;
  }
  if (oldest->chunk != 0 && j->chunks[oldest->chunk].loaded == oldest)
    j->chunks[oldest->chunk].loaded = NULL;
  oldest->chunk = c;
  j->chunks[c].loaded = oldest;
  oldest->busy = true;
  oldest->raw = false;
  oldest->pins = 1;
  return oldest;
}

/* Each image stands for itself: one that is damaged may be somebody else's. */
static void
loaded_fill (struct journal *j, struct loaded *l)
{
  const uint32_t first = l->chunk * JOURNAL_CHUNK_BLOCKS;
  uint32_t crc[JOURNAL_CHUNK_BLOCKS];
  struct bits known;
  bool whole = l->raw;

  crcs_get (j, first, JOURNAL_CHUNK_BLOCKS, crc, &known);
  l->bad = (struct bits) { { 0 } };
  if (!whole)
    whole = file_read (j, l->mem, JOURNAL_CHUNK, block_offset (first)) == 0;
  for (unsigned i = 0; i < JOURNAL_CHUNK_BLOCKS; i++) {
    uint8_t *p = l->mem + (size_t) i * JOURNAL_BLOCK;

    if (!bits_test (&known, i) ||
        (!whole &&
         file_read (j, p, JOURNAL_BLOCK, block_offset (first + i)) == -1) ||
        crc32c (p, JOURNAL_BLOCK, 0) != crc[i])
      bits_set (&l->bad, i, 1);
  }
}

/* Image I of L and up to *N in all, as far as they verify. */
static const void *
loaded_get (struct loaded *l, uint32_t i, uint32_t *n)
{
  uint32_t good = 0;

  while (good < *n && !bits_test (&l->bad, i + good))
    good++;
  if (good == 0)
    return NULL;
  *n = good;
  return l->mem + (size_t) i * JOURNAL_BLOCK;
}

const void *
journal_pin (struct journal *j, uint32_t block, uint32_t *n, bool load,
             struct journal_damage *damage)
{
  uint32_t c = chunk_of (block), i = block % JOURNAL_CHUNK_BLOCKS;
  struct loaded *l;
  const void *p;

  if (c == 0 || c >= j->nchunks) {
    errno = EINVAL;
    return NULL;
  }
  *n = MIN (*n, JOURNAL_CHUNK_BLOCKS - i);
  SCOPED_LOCK (&j->lock);
  if (j->chunks[c].buffer != NO_BUFFER) {
    struct buffer *b = &j->buffers[j->chunks[c].buffer];

    b->pins++;
    return b->mem + (size_t) i * JOURNAL_BLOCK;
  }
  l = loaded_find_locked (j, c);
  while (l && l->busy) {
    pthread_cond_wait (&j->buffer_cond, &j->lock);
    l = loaded_find_locked (j, c);
  }
  if (l == NULL && !load)
    return NULL;
  if (l == NULL || l->raw) {
    if (l) {
      l->pins++;
      l->busy = true;
    }
    else if ((l = loaded_new_locked (j, c)) == NULL)
      return NULL;
    pthread_mutex_unlock (&j->lock);
    loaded_fill (j, l);
    pthread_mutex_lock (&j->lock);
    l->raw = l->busy = false;
    pthread_cond_broadcast (&j->buffer_cond);
  }
  else
    l->pins++;
  l->used = ++j->load_clock;
  p = loaded_get (l, i, n);
  if (p == NULL) {
    if (--l->pins == 0)
      chunk_try_free_locked (j, c);
    if (load)
      (void) image_damage (block, damage, "data cannot be read, or is not what was written");
  }
  return p;
}

void
journal_unpin (struct journal *j, uint32_t block)
{
  SCOPED_LOCK (&j->lock);
  uint32_t c = chunk_of (block);
  struct loaded *l = loaded_find_locked (j, c);

  /* Whoever pinned the buffer keeps it bound, so that one is found first
   * unless the chunk was loaded, which needs it not to have a buffer.
   */
  if (j->chunks[c].buffer != NO_BUFFER) {
    struct buffer *b = &j->buffers[j->chunks[c].buffer];

    assert (b->pins > 0);
    if (--b->pins == 0) {
      chunk_try_free_locked (j, c);
      pthread_cond_broadcast (&j->buffer_cond);
    }
    return;
  }
  assert (l && l->pins > 0);
  if (--l->pins == 0)
    chunk_try_free_locked (j, c);
}

bool
loaded_pinned_locked (struct journal *j, uint32_t c)
{
  const struct loaded *l = loaded_find_locked (j, c);

  return l && (l->pins > 0 || l->busy);
}

/* The chunk was given back: what was loaded of it is void. */
void
loaded_drop_locked (struct journal *j, uint32_t c)
{
  struct loaded *l = loaded_find_locked (j, c);

  if (l) {
    l->chunk = 0;
    j->chunks[c].loaded = NULL;
  }
}

struct loaded *
loaded_read_raw (struct journal *j, uint32_t c)
{
  struct loaded *l;
  int r;

  {
    SCOPED_LOCK (&j->lock);
    l = c > 0 && c < j->nchunks ? loaded_find_locked (j, c) : NULL;
    if (l)
      return l;
    if (c == 0 || c >= j->nchunks || j->nloaded >= j->load_room || (l = loaded_new_locked (j, c)) == NULL)
      return NULL;
  }
  /* If this fails, what is needed of it may still be readable: see file_read. */
  r = io_pread (j->file, l->mem, JOURNAL_CHUNK, block_offset (c * JOURNAL_CHUNK_BLOCKS));
  SCOPED_LOCK (&j->lock);
  l->pins = 0;
  l->busy = false;
  l->raw = true;
  if (r == -1) {
    loaded_drop_locked (j, c);
    return NULL;
  }
  return l;
}

void
loaded_settle (struct journal *j)
{
  SCOPED_LOCK (&j->lock);

  for (struct loaded *l = j->loaded; l; l = l->next)
    if (l->chunk != 0 && j->chunks[l->chunk].kind != CHUNK_DATA)
      loaded_drop_locked (j, l->chunk);
}

bool
loaded_has (struct journal *j, const struct table_item *item)
{
  uint32_t c = chunk_of (item->ext.block), first = item->ext.block % JOURNAL_CHUNK_BLOCKS;
  SCOPED_LOCK (&j->lock);
  const struct loaded *l = loaded_find_locked (j, c);

  if (l == NULL || l->busy || l->raw || j->chunks[c].kind != CHUNK_DATA)
    return false;
  for (uint32_t i = 0; i < item->nblocks; i++)
    if (bits_test (&l->bad, first + i) ||
        j->chunks[c].live->crc[first + i] != table_item_crc (item, i))
      return false;
  return true;
}
