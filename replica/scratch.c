/* SPDX-License-Identifier: BSD-3-Clause */
/* Scratch: a checkpoint as a disk to write to, apart from the replica.
 *
 * Below is a view of the checkpoint (view.c); above, what was written: a map that knows which sectors
 * those are, and a file without a name, in the journal's directory, that has them at the same
 * place.  Nothing of it outlives the server.
 *
 * Which one a client gets is scratch-open.c's affair.
 *
 * Requests hold the scratch shared.  A write that covers part of a sector reads the rest
 * first and holds it alone, as do reset and promote.  They go in in the order in which they came, so that a
 * guest that never rests holds up no reset: its next request waits behind it.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define SECTOR JOURNAL_SECTOR

/* --- one at a time, or many ------------------------------------------------------ */

/* Wait for our turn, until nobody is in who would disturb us.  The one behind is next. */
static void
line_locked (struct replica *r, struct scratch *s, bool alone)
{
  uint64_t number = s->came++;

  while (r->scratch_held || s->went_in != number || s->alone ||
         (alone && s->shared > 0))
    pthread_cond_wait (&r->changed, &r->lock);
  if (++s->went_in != s->came)
    pthread_cond_broadcast (&r->changed);
}

int
scratch_begin (struct replica *r, struct scratch *s, bool alone)
{
  SCOPED_LOCK (&r->lock);

  line_locked (r, s, alone);
  if (s->became_disk || r->stopping || (s->look && s->look->revoked)) {
    errno = s->became_disk ? EAGAIN : r->stopping ? ESHUTDOWN : EIO;
    return -1;
  }
  if (alone)
    s->alone = true;
  else
    s->shared++;
  return 0;
}

void
scratch_end (struct replica *r, struct scratch *s)
{
  int saved = errno;
  SCOPED_LOCK (&r->lock);

  if (s->alone)
    s->alone = false;
  else {
    assert (s->shared > 0);
    s->shared--;
  }
  pthread_cond_broadcast (&r->changed);
  errno = saved;
}

/* --- requests ----------------------------------------------------------------------------- */

static int
read_scratch (struct replica *r, struct scratch *s, void *buf, uint64_t len,
              uint64_t off)
{
  struct overlay_pieces pieces = OVERLAY_PIECES_INIT;
  int result;

  {
    SCOPED_LOCK (&r->lock);
    result = overlay_resolve_at (s->map, NULL, 0, s->disk, off, len, &pieces);
  }
  for (size_t i = 0; i < pieces.n && result == 0; i++) {
    const struct overlay_piece *p = &pieces.piece[i];
    char *to = (char *) buf + (p->offset - off);

    switch (p->source) {
    case OVERLAY_DATA:
      result = io_pread (s->file, to, p->length, p->offset);
      break;
    case OVERLAY_ZERO:
      memset (to, 0, p->length);
      break;
    case OVERLAY_BACKING:
      result = read_view (r, s->look, s->disk, to, p->length, p->offset);
      break;
    }
  }
  overlay_pieces_free (&pieces);
  return result;
}

int
scratch_read (struct replica *r, struct scratch *s, void *buf, uint64_t len,
              uint64_t off)
{
  int result;

  if (scratch_begin (r, s, false) == -1)
    return -1;
  result = read_scratch (r, s, buf, len, off);
  scratch_end (r, s);
  return result;
}

/* Whole sectors (or up to the end of the disk). */
static int
write_sectors (struct replica *r, struct scratch *s, const void *data,
               uint64_t len, uint64_t off)
{
  if (io_pwrite (s->file, data, len, off) == -1)
    return -1;
  SCOPED_LOCK (&r->lock);

  return map_put (s->map, s->disk, off / SECTOR, DIV_UP (len, (uint64_t) SECTOR),
                  off / JOURNAL_BLOCK);
}

/* The part of one sector; alone. */
static int
write_part (struct replica *r, struct scratch *s, const void *data,
            uint64_t len, uint64_t off)
{
  uint64_t at = ROUND_DOWN (off, (uint64_t) SECTOR);
  uint64_t n = MIN ((uint64_t) SECTOR, r->disks[s->disk].size - at);
  uint8_t sector[SECTOR];

  if (read_scratch (r, s, sector, n, at) == -1)
    return -1;
  if (data)
    memcpy (sector + (off - at), data, len);
  else
    memset (sector + (off - at), 0, len);
  return write_sectors (r, s, sector, n, at);
}

static int
write_middle (struct replica *r, struct scratch *s, const void *data,
              uint64_t len, uint64_t off, bool may_trim)
{
  if (data)
    return write_sectors (r, s, data, len, off);
  SCOPED_LOCK (&r->lock);

  return map_zero (s->map, s->disk, off / SECTOR,
                   DIV_UP (len, (uint64_t) SECTOR), may_trim);
}

int
scratch_write (struct replica *r, struct scratch *s, const void *buf,
               uint64_t len, uint64_t off, bool may_trim)
{
  uint64_t size = r->disks[s->disk].size, end = off + len;
  uint64_t from = MIN (ROUND_UP (off, (uint64_t) SECTOR), end);
  uint64_t to = end == size ? end : MAX (ROUND_DOWN (end, (uint64_t) SECTOR), from);
  const char *data = buf;
  int result = 0;

  if (scratch_begin (r, s, from != off || to != end) == -1)
    return -1;
  if (off < from)
    result = write_part (r, s, data, from - off, off);
  if (result == 0 && from < to)
    result = write_middle (r, s, data ? data + (from - off) : NULL, to - from,
                           from, may_trim);
  if (result == 0 && to < end)
    result = write_part (r, s, data ? data + (to - off) : NULL, end - to, to);
  scratch_end (r, s);
  return result;
}

int
scratch_extents (struct replica *r, struct scratch *s, uint64_t len, uint64_t off,
                 struct extent_gather *g)
{
  struct overlay_pieces pieces = OVERLAY_PIECES_INIT;
  int result;

  if (scratch_begin (r, s, false) == -1)
    return -1;
  {
    SCOPED_LOCK (&r->lock);
    result = overlay_resolve_at (s->map, NULL, 0, s->disk, off, len, &pieces);
  }
  for (size_t i = 0; i < pieces.n && result == 0; i++) {
    const struct overlay_piece *p = &pieces.piece[i];

    if (p->source == OVERLAY_BACKING)
      result = view_extents (r, s->look, s->disk, p->length, p->offset, g);
    else
      result = gather_extent (g, p->offset, p->length,
                              p->source == OVERLAY_ZERO,
                              p->source == OVERLAY_ZERO);
  }
  scratch_end (r, s);
  overlay_pieces_free (&pieces);
  return result;
}

bool
scratch_is_disk (struct replica *r, const struct replica_export *e,
                 struct replica_export *now)
{
  SCOPED_LOCK (&r->lock);

  if (!e->scratch->became_disk)
    return false;
  *now = (struct replica_export) { .disk = e->disk, .view = REPLICA_PROMOTED,
                                   .fence = e->scratch->fence };
  return true;
}

/* --- reset ---------------------------------------------------------------------------------- */

/* Take the place of what S has, and of where it stands. */
static void
swap_locked (struct scratch *s, struct scratch *fresh, struct view **look)
{
  struct map *map = s->map;
  struct io_file *file = s->file;
  struct view *old = s->look;

  s->map = fresh->map;
  s->file = fresh->file;
  s->look = *look;
  s->checkpoint = (*look)->checkpoint;
  fresh->map = map;
  fresh->file = file;
  *look = old;
}

/* The newest of DISK: one that nobody has open goes as a whole; one that is open gets another user, us. */
static struct scratch *
take (struct replica *r, unsigned disk)
{
  struct scratch *s, *unused = NULL;

  {
    SCOPED_LOCK (&r->lock);
    struct scratch **p = &r->scratches;

    while (r->scratch_held)
      pthread_cond_wait (&r->changed, &r->lock);
    while (*p && (*p)->disk != disk)
      p = &(*p)->next;
    s = *p;
    if (s && s->users > 0)
      s->users++;
    else if (s) {
      *p = s->next;
      unused = s;
      s = NULL;
    }
  }
  scratch_free (unused);
  return s;
}

int
scratch_reset (struct replica *r, unsigned disk, uint64_t *checkpoint)
{
  struct scratch *fresh = NULL, *s;
  struct view *look = NULL;
  int result = -1;

  {
    SCOPED_LOCK (&r->lock);
    *checkpoint = VIEW_LATEST;
    if (view_check_state_locked (r, checkpoint) == -1)
      return -1;
  }
  s = take (r, disk);
  if (s == NULL)
    return 0;
  if ((fresh = scratch_new (r, disk)) && view_open (r, VIEW_LATEST, &look) == 0) {
    bool alone = true;

    {
      SCOPED_LOCK (&r->lock);
      /* A revoked one is what a reset is needed for. */
      line_locked (r, s, true);
      if (s->became_disk) {
        errno = ESHUTDOWN;
        alone = false;
      }
      else {
        *checkpoint = look->checkpoint;
        swap_locked (s, fresh, &look);
      }
    }
    result = alone ? 0 : -1;
  }
  int saved = errno;
  if (look)
    view_close (r, look);
  scratch_close (r, s);
  scratch_free (fresh);
  errno = saved;
  return result;
}
