/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "buffers/overlay.h"
#include "buffers/writeout-impl.h"
#include "common/bytes.h"

#define ALL 0xffu
#define FEW_LAYERS 16u

/* Bytes for which the layers are looked through again, as most have nothing at
 * most places: what map_is_empty_at can tell at one glance.
 */
#define WINDOW (UINT64_C (64) * MAP_BLOCK)

/* The maps to ask, newest first, without those that have nothing to say. */
struct layers {
  const struct map **map;
  size_t n, room;
  const struct map *few[FEW_LAYERS];
};

void
overlay_pieces_free (struct overlay_pieces *p)
{
  free (p->piece);
  *p = (struct overlay_pieces) OVERLAY_PIECES_INIT;
}

static int
add_layer (struct layers *l, const struct map *map)
{
  if (l->n == l->room) {
    size_t room = 2 * l->room;
    const struct map **more = malloc (room * sizeof *more);

    if (more == NULL)
      return -1;
    for (size_t i = 0; i < l->n; i++)
      more[i] = l->map[i];
    if (l->map != l->few)
      free (l->map);
    l->map = more;
    l->room = room;
  }
  l->map[l->n++] = map;
  return 0;
}

static void
free_layers (struct layers *l)
{
  int saved = errno;

  if (l->map != l->few)
    free (l->map);
  errno = saved;
}

/* Where an answer may come from. */
struct sources {
  const struct map *first;
  const struct speculation *spec;
  const struct writeout *wo;
  uint64_t upto;                /* of WO: only whole segments up to it, unless UINT64_MAX */
};

static int
find_layers (struct layers *l, const struct sources *from, unsigned disk,
             uint64_t block, uint64_t nblocks)
{
  const struct writeout *wo = from->wo;
  const struct epoch *epochs[2] = {
    from->spec ? speculation_newest (from->spec) : NULL,
    wo && from->upto == UINT64_MAX ? wo->unmerged : NULL,
  };

  if (from->first && !map_is_empty_at (from->first, disk, block, nblocks) &&
      add_layer (l, from->first) == -1)
    return -1;
  for (unsigned i = 0; i < 2; i++)
    for (const struct epoch *e = epochs[i]; e; e = e->older)
      if (!map_is_empty_at (e->map, disk, block, nblocks) &&
          add_layer (l, e->map) == -1)
        return -1;
  for (const struct segment *s = wo ? wo->newest : NULL; s; s = s->older)
    if ((from->upto == UINT64_MAX || (s->last != 0 && s->last <= from->upto)) &&
        !map_is_empty_at (s->map, disk, block, nblocks) &&
        add_layer (l, s->map) == -1)
      return -1;
  return 0;
}

/* Does PIECE go on where LAST ends, so that one transfer serves both? */
static bool
goes_on (const struct overlay_piece *last, const struct overlay_piece *piece)
{
  if (last->source != piece->source)
    return false;
  switch (piece->source) {
  case OVERLAY_DATA:
    /* Images and disk have their blocks at the same places, so that where
     * the images go on, the bytes in them do.
     */
    return last->loc + (last->skip + last->length) / MAP_BLOCK == piece->loc;
  case OVERLAY_ZERO:
    return last->may_trim == piece->may_trim;
  default:
    return true;
  }
}

static int
add_piece (struct overlay_pieces *p, const struct overlay_piece *piece)
{
  if (p->n > 0 && goes_on (&p->piece[p->n - 1], piece)) {
    p->piece[p->n - 1].length += piece->length;
    return 0;
  }
  if (p->n == p->room) {
    size_t room = p->room ? 2 * p->room : 32;
    struct overlay_piece *more = realloc (p->piece, room * sizeof *more);

    if (more == NULL)
      return -1;
    p->piece = more;
    p->room = room;
  }
  p->piece[p->n++] = *piece;
  return 0;
}

/* The bytes [OFFSET, END) of one block, from one hit or (NULL) the backing. */
static int
add_hit (struct overlay_pieces *p, uint64_t offset, uint64_t end,
         const struct map_hit *hit)
{
  struct overlay_piece piece = {
    .offset = offset, .length = end - offset, .source = OVERLAY_BACKING,
  };

  if (hit && hit->zero) {
    piece.source = OVERLAY_ZERO;
    piece.may_trim = hit->may_trim;
  }
  else if (hit) {
    piece.source = OVERLAY_DATA;
    piece.loc = hit->loc;
    piece.skip = offset % MAP_BLOCK;
  }
  return add_piece (p, &piece);
}

/* The bytes [OFFSET, END), which lie in one block. */
static int
resolve_block (const struct layers *l, unsigned disk, uint64_t offset,
               uint64_t end, struct overlay_pieces *p)
{
  uint64_t block = offset / MAP_BLOCK, start = block * MAP_BLOCK;
  unsigned first = (offset - start) / MAP_SECTOR;
  unsigned last = (end - 1 - start) / MAP_SECTOR;       /* inclusive */
  unsigned want = ALL << first & ALL >> (MAP_BLOCK_SECTORS - 1 - last);
  struct map_hit hit[2 * MAP_BLOCK_SECTORS];
  const struct map_hit *owner[MAP_BLOCK_SECTORS] = { NULL };
  unsigned n = 0, to;

  for (size_t i = 0; i < l->n && want != 0; i++) {
    unsigned k = map_get (l->map[i], disk, block, want, hit + n);

    if (k == 1 && hit[n].mask == want && n == 0)
      return add_hit (p, offset, end, &hit[n]);
    for (; k > 0; k--, n++) {
      want &= ~hit[n].mask;
      for (unsigned s = first; s <= last; s++)
        if (hit[n].mask & 1u << s)
          owner[s] = &hit[n];
    }
  }
  if (n == 0)
    return add_hit (p, offset, end, NULL);

  for (unsigned s = first; s <= last; s = to) {
    for (to = s + 1; to <= last && owner[to] == owner[s]; to++)
      ;
    if (add_hit (p, MAX (offset, start + s * MAP_SECTOR),
                 MIN (end, start + to * MAP_SECTOR), owner[s]) == -1)
      return -1;
  }
  return 0;
}

/* The bytes [OFFSET, END), which lie in one window. */
static int
resolve_window (const struct layers *all, struct layers *some, unsigned disk,
                uint64_t offset, uint64_t end, struct overlay_pieces *p)
{
  uint64_t block = offset / MAP_BLOCK;
  uint64_t n = (end - 1) / MAP_BLOCK - block + 1;
  struct map_hit zero = { .zero = true };
  int r = 0;

  some->n = 0;
  for (size_t i = 0; i < all->n; i++)
    if (!map_is_empty_at (all->map[i], disk, block, n) &&
        add_layer (some, all->map[i]) == -1)
      return -1;
  if (some->n == 0)
    return add_hit (p, offset, end, NULL);
  if (map_is_zero_at (some->map[0], disk, block, n, &zero.may_trim))
    return add_hit (p, offset, end, &zero);
  while (r == 0 && offset < end) {
    uint64_t next = MIN (ROUND_DOWN (offset, MAP_BLOCK) + MAP_BLOCK, end);

    r = resolve_block (some, disk, offset, next, p);
    offset = next;
  }
  return r;
}

static int
resolve (const struct sources *from, unsigned disk, uint64_t offset,
         uint64_t length, struct overlay_pieces *pieces)
{
  uint64_t end = offset + length;
  struct layers all = { .room = FEW_LAYERS }, some = { .room = FEW_LAYERS };
  int r;

  all.map = all.few;
  some.map = some.few;
  pieces->n = 0;
  if (length == 0)
    return 0;

  r = find_layers (&all, from, disk, offset / MAP_BLOCK,
                   (end - 1) / MAP_BLOCK - offset / MAP_BLOCK + 1);
  if (r == 0 && all.n == 0)
    r = add_hit (pieces, offset, end, NULL);
  else
    while (r == 0 && offset < end) {
      uint64_t next = MIN (ROUND_DOWN (offset, WINDOW) + WINDOW, end);

      r = resolve_window (&all, &some, disk, offset, next, pieces);
      offset = next;
    }
  free_layers (&all);
  free_layers (&some);
  return r;
}

int
overlay_resolve (const struct speculation *spec, const struct writeout *wo,
                 unsigned disk, uint64_t offset, uint64_t length,
                 struct overlay_pieces *pieces)
{
  struct sources from = { .spec = spec, .wo = wo, .upto = UINT64_MAX };

  return resolve (&from, disk, offset, length, pieces);
}

int
overlay_resolve_at (const struct map *first, const struct writeout *wo,
                    uint64_t upto, unsigned disk, uint64_t offset,
                    uint64_t length, struct overlay_pieces *pieces)
{
  struct sources from = { .first = first, .wo = wo, .upto = upto };

  return resolve (&from, disk, offset, length, pieces);
}
