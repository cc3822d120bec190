/* SPDX-License-Identifier: BSD-3-Clause */
/* What a resync has to take of a write: the blocks that differ from committed content,
 * or that something uncommitted lies over.
 *
 * A block that is equal may be dropped although nobody holds the lock between the look
 * and the end of the request: whatever is published on it meanwhile comes from a
 * request that runs at the same time, and counts as the later of the two.  What was
 * acknowledged before is found as an uncommitted entry, or is committed content by now.
 * When the replica moved (moves), committed content may be another: the
 * caller then starts over.
 *
 * Where committed content cannot be read, the write is taken: that is always right.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define BLOCK JOURNAL_BLOCK
#define SLICE (16u * BLOCK)     /* compared at a time; its blocks fit a bit mask */
#define LOOK (UINT64_C (64) << 20)      /* looked at for holes at a time */
/* Past so many ranges the rest is taken whole. */
#define RANGES_MAX 256u

void
ranges_free (struct ranges *list)
{
  int saved = errno;

  free (list->range);
  *list = (struct ranges) RANGES_INIT;
  errno = saved;
}

static int
ranges_add (struct ranges *list, uint64_t offset, uint64_t length)
{
  struct range *last = list->n > 0 ? &list->range[list->n - 1] : NULL;

  if (last && (last->offset + last->length == offset ||
               list->n == RANGES_MAX)) {
    last->length = offset + length - last->offset;
    return 0;
  }
  if (list->n == list->room) {
    size_t room = list->room ? 4 * list->room : 16;
    struct range *range = realloc (list->range, room * sizeof *range);

    if (range == NULL)
      return -1;
    list->range = range;
    list->room = room;
  }
  list->range[list->n++] = (struct range) { offset, length };
  return 0;
}

static bool
is_zero (const uint8_t *data, size_t len)
{
  return len == 0 || (data[0] == 0 && memcmp (data, data + 1, len - 1) == 0);
}

/* Bit i: something uncommitted lies over block FIRST + i. */
static unsigned
find_covered (struct replica *r, unsigned disk, uint64_t first, unsigned n)
{
  unsigned covered = 0;
  SCOPED_LOCK (&r->lock);

  if (!speculation_is_empty_at (r->spec, disk, first, n))
    for (unsigned i = 0; i < n; i++)
      if (!speculation_is_empty_at (r->spec, disk, first + i, 1))
        covered |= 1u << i;
  return covered;
}

/* One slice, which begins and ends on blocks or where the request does. */
static int
compare_slice (struct replica *r, unsigned disk, const uint8_t *data,
               uint64_t length, uint64_t offset, uint8_t *old,
               struct ranges *list)
{
  uint64_t first = offset / BLOCK, end = offset + length;
  unsigned n = DIV_UP (end, (uint64_t) BLOCK) - first;
  unsigned covered = find_covered (r, disk, first, n);

  if (covered == (1u << n) - 1 ||
      read_overlay (r, disk, true, old, length, offset) == -1)
    return ranges_add (list, offset, length);

  for (uint64_t at = offset; at < end;) {
    uint64_t next = MIN ((at / BLOCK + 1) * BLOCK, end), len = next - at;
    const uint8_t *was = old + (at - offset);

    if ((covered >> (at / BLOCK - first) & 1 ||
         !(data ? memcmp (data + (at - offset), was, len) == 0 :
           is_zero (was, len))) &&
        ranges_add (list, at, len) == -1)
      return -1;
    at = next;
  }
  return 0;
}

/* How many bytes from OFFSET on are known to be zero in committed content, without
 * reading, and have nothing uncommitted over them?
 */
static uint64_t
known_zero (struct replica *r, unsigned disk, uint64_t offset, uint64_t length)
{
  uint64_t n = committed_zero (r, disk, offset, MIN (length, (uint64_t) LOOK));

  /* Up to the end, or a block's: what an image says of holes may end anywhere. */
  if (n < length)
    n = MAX (ROUND_DOWN (offset + n, (uint64_t) BLOCK), offset) - offset;
  SCOPED_LOCK (&r->lock);

  return n > 0 &&
    speculation_is_empty_at (r->spec, disk, offset / BLOCK,
                             DIV_UP (offset + n, (uint64_t) BLOCK) - offset / BLOCK) ? n : 0;
}

int
compare_write (struct replica *r, unsigned disk, const uint8_t *data,
               uint64_t length, uint64_t offset, struct ranges *list)
{
  uint64_t start = offset, end = offset + length;
  uint64_t look = data ? end : start;   /* where a hole is worth looking for */
  uint8_t *old = malloc (SLICE);
  int result = 0;

  list->n = 0;
  if (old == NULL)
    return -1;
  while (result == 0 && offset < end) {
    uint64_t n = offset >= look ? known_zero (r, disk, offset, end - offset) : 0;

    if (n > 0)
      look = offset + n;
    else {
      n = MIN (ROUND_DOWN (offset, (uint64_t) SLICE) + SLICE, end) - offset;
      result = compare_slice (r, disk, data ? data + (offset - start) : NULL,
                              n, offset, old, list);
      look = MAX (look, offset + n);
    }
    offset += n;
  }
  free (old);
  return result;
}
