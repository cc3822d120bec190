/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads: stitched from speculation, write-out and backing. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

/* Kept per thread, so that a read allocates nothing once it is warm. */
static __thread struct overlay_pieces pieces = OVERLAY_PIECES_INIT;
static pthread_key_t pieces_key;
static pthread_once_t pieces_once = PTHREAD_ONCE_INIT;

static void
free_pieces (void *p)
{
  overlay_pieces_free (p);
}

static void
make_key (void)
{
  /* Without a key a thread's list is leaked at its end: no more than that. */
  if (pthread_key_create (&pieces_key, free_pieces) != 0)
    pieces_key = (pthread_key_t) -1;
}

/* What is read: the newest content; what is committed of it; or that of a view. */
struct what {
  bool committed;
  const struct view *look;
};

static int
resolve_locked (struct replica *r, unsigned disk, struct what what,
                uint64_t offset, uint64_t count)
{
  if (what.look ?
      view_resolve_locked (r, what.look, disk, offset, count, &pieces) == -1 :
      overlay_resolve (what.committed ? NULL : r->spec, r->wo, disk, offset,
                       count, &pieces) == -1)
    return -1;
  if (pieces.room && pieces_key != (pthread_key_t) -1 &&
      pthread_getspecific (pieces_key) == NULL &&
      pthread_setspecific (pieces_key, &pieces) != 0) {
    errno = ENOMEM;
    return -1;
  }
  return 0;
}

static int
read_piece (struct replica *r, struct disk *d, const struct overlay_piece *p,
            void *buf, struct journal_damage *damage)
{
  switch (p->source) {
  case OVERLAY_BACKING:
    return backing_pread (d->backing, buf, p->length, p->offset);
  case OVERLAY_ZERO:
    memset (buf, 0, p->length);
    return 0;
  case OVERLAY_DATA:
    /* A piece may run on over chunks. */
    for (uint64_t done = 0; done < p->length;) {
      uint64_t at = (uint64_t) p->loc * JOURNAL_BLOCK + p->skip + done;
      uint64_t n = MIN (p->length - done, JOURNAL_CHUNK - at % JOURNAL_CHUNK);

      if (journal_read (r->journal, at / JOURNAL_BLOCK, at % JOURNAL_BLOCK, n,
                        (char *) buf + done, damage) == -1)
        return -1;
      done += n;
    }
    return 0;
  }
  errno = EINVAL;
  return -1;
}

/* Those that come from the images, or those that do not. */
static int
read_pieces (struct replica *r, struct disk *d, bool images, void *buf,
             uint64_t offset, struct journal_damage *damage)
{
  for (size_t i = 0; i < pieces.n; i++) {
    const struct overlay_piece *p = &pieces.piece[i];

    if ((p->source == OVERLAY_BACKING) == images &&
        read_piece (r, d, p, (char *) buf + (p->offset - offset), damage) == -1)
      return -1;
  }
  return 0;
}

static int
read_what (struct replica *r, unsigned disk, struct what what, void *buf,
           uint32_t count, uint64_t offset)
{
  struct disk *d = &r->disks[disk];
  struct journal_damage damage = { .what = "" };
  bool guarded = false;
  unsigned phase = 0;
  uint64_t moves;
  int result;

  if (pthread_once (&pieces_once, make_key) != 0) {
    errno = ENOMEM;
    return -1;
  }
  {
    SCOPED_LOCK (&r->lock);

    if (r->stopping) {
      errno = ESHUTDOWN;
      return -1;
    }
    if (resolve_locked (r, disk, what, offset, count) == -1)
      return -1;
    for (size_t i = 0; i < pieces.n && !guarded; i++)
      guarded = pieces.piece[i].source == OVERLAY_DATA;
    if (guarded)
      phase = reader_begin_locked (r);
    moves = r->moves;
  }
  result = read_pieces (r, d, false, buf, offset, &damage);
  if (guarded) {
    int saved = errno;

    reader_end (r, phase);
    /* Of what a promote or a resync has forgotten meanwhile nothing needs to be said. */
    if (result == -1 && saved == EBADMSG && damage.what[0]) {
      (void) replica_damaged_since (r, moves, &damage);
      saved = EIO;
    }
    errno = saved;
  }
  /* Nobody who recycles waits for an image that hangs. */
  if (result == 0)
    result = read_pieces (r, d, true, buf, offset, &damage);
  return result == 0 && what.look ? view_check (r, what.look) : result;
}

int
read_overlay (struct replica *r, unsigned disk, bool committed, void *buf,
              uint32_t count, uint64_t offset)
{
  return read_what (r, disk, (struct what) { .committed = committed }, buf,
                    count, offset);
}

uint64_t
committed_zero (struct replica *r, unsigned disk, uint64_t offset,
                uint64_t length)
{
  const struct overlay_piece *p;
  uint64_t n;
  bool hole;

  if (pthread_once (&pieces_once, make_key) != 0)
    return 0;
  {
    SCOPED_LOCK (&r->lock);

    if (resolve_locked (r, disk, (struct what) { .committed = true }, offset,
                        length) == -1)
      return 0;
  }
  p = &pieces.piece[0];
  switch (p->source) {
  case OVERLAY_ZERO:
    return p->length;
  case OVERLAY_BACKING:
    if (backing_extent (r->disks[disk].backing, offset, p->length, &n, &hole) == 0 && hole)
      return n;
    break;
  case OVERLAY_DATA:
    break;
  }
  return 0;
}

int
read_view (struct replica *r, const struct view *look, unsigned disk, void *buf,
           uint64_t count, uint64_t offset)
{
  return read_what (r, disk, (struct what) { .look = look }, buf, count, offset);
}

int
replica_pread (struct replica *r, const struct replica_export *e, void *buf,
               uint32_t count, uint64_t offset)
{
  struct replica_export now;
  bool direct;

  if (e->view == REPLICA_SCRATCH) {
    int result = scratch_read (r, e->scratch, buf, count, offset);

    if (result == 0 || errno != EAGAIN || !scratch_is_disk (r, e, &now))
      return result;
    e = &now;
  }
  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1)
      return -1;
    direct = r->direct;
  }
  if (direct && e->look == NULL)
    return backing_pread (r->disks[e->disk].backing, buf, count, offset);
  return read_what (r, e->disk, (struct what) { .look = e->look }, buf, count,
                    offset);
}

int
replica_cache (struct replica *r, const struct replica_export *e,
               uint32_t count, uint64_t offset)
{
  if (e->view == REPLICA_SCRATCH)
    return 0;
  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1)
      return -1;
  }
  return backing_cache (r->disks[e->disk].backing, count, offset);
}

int
gather_extent (struct extent_gather *g, uint64_t offset, uint64_t length,
               bool hole, bool zero)
{
  if (g->length > 0 && g->hole == hole && g->zero == zero) {
    g->length += length;
    return 0;
  }
  if (g->length > 0 &&
      g->fn (g->opaque, g->offset, g->length, g->hole, g->zero) == -1)
    return -1;
  g->offset = offset;
  g->length = length;
  g->hole = hole;
  g->zero = zero;
  return 0;
}

static int
backing_extents (struct backing *b, uint64_t offset, uint64_t length,
                 struct extent_gather *g)
{
  while (length > 0) {
    uint64_t n;
    bool hole;

    if (backing_extent (b, offset, length, &n, &hole) == -1 ||
        gather_extent (g, offset, n, hole, hole) == -1)
      return -1;
    offset += n;
    length -= n;
  }
  return 0;
}

/* What was resolved into this thread's pieces. */
static int
pieces_extents (struct backing *b, struct extent_gather *g)
{
  for (size_t i = 0; i < pieces.n; i++) {
    const struct overlay_piece *p = &pieces.piece[i];
    int result = 0;

    switch (p->source) {
    case OVERLAY_BACKING:
      result = backing_extents (b, p->offset, p->length, g);
      break;
    case OVERLAY_ZERO:
      result = gather_extent (g, p->offset, p->length, p->may_trim, true);
      break;
    case OVERLAY_DATA:
      result = gather_extent (g, p->offset, p->length, false, false);
      break;
    }
    if (result == -1)
      return -1;
  }
  return 0;
}

int
view_extents (struct replica *r, const struct view *look, unsigned disk,
              uint64_t count, uint64_t offset, struct extent_gather *g)
{
  {
    SCOPED_LOCK (&r->lock);
    if (resolve_locked (r, disk, (struct what) { .look = look }, offset,
                        count) == -1)
      return -1;
  }
  if (pieces_extents (r->disks[disk].backing, g) == -1)
    return -1;
  return view_check (r, look);
}

static int
inlet_extents (struct replica *r, const struct replica_export *e,
               uint32_t count, uint64_t offset, struct extent_gather *g)
{
  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1 ||
        resolve_locked (r, e->disk, (struct what) { .look = NULL }, offset,
                        count) == -1)
      return -1;
  }
  return pieces_extents (r->disks[e->disk].backing, g);
}

/* No hole where the old primary's disk may differ.  Nothing is said of zeroes. */
static int
divergence_extents (struct replica *r, const struct replica_export *e,
                    uint32_t count, uint64_t offset, struct extent_gather *g)
{
  uint64_t end = offset + count;
  char why[8];

  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1)
      return -1;
  }
  while (offset < end) {
    bool differs;
    uint64_t n = divergence_run (r, e->disk, offset, end, &differs);

    if (gather_extent (g, offset, n, !differs, false) == -1)
      return -1;
    offset += n;
  }
  /* It may have become unknown meanwhile. */
  if (divergence_known (r, why, sizeof why))
    return 0;
  errno = EIO;
  return -1;
}

int
replica_extents (struct replica *r, const struct replica_export *e,
                 uint32_t count, uint64_t offset, replica_extent_fn fn,
                 void *opaque)
{
  struct extent_gather g = { .fn = fn, .opaque = opaque };
  struct replica_export now;
  int result;

  if (pthread_once (&pieces_once, make_key) != 0) {
    errno = ENOMEM;
    return -1;
  }
  switch (e->view) {
  case REPLICA_DIVERGENCE:
    result = divergence_extents (r, e, count, offset, &g);
    break;
  case REPLICA_SCRATCH:
    result = scratch_extents (r, e->scratch, count, offset, &g);
    if (result == -1 && errno == EAGAIN && scratch_is_disk (r, e, &now))
      result = inlet_extents (r, &now, count, offset, &g);
    break;
  case REPLICA_CHECKPOINT:
    result = view_extents (r, e->look, e->disk, count, offset, &g);
    break;
  default:
    result = inlet_extents (r, e, count, offset, &g);
  }
  if (result == -1)
    return -1;
  return g.length > 0 ? fn (opaque, g.offset, g.length, g.hole, g.zero) : 0;
}
