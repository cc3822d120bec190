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

static int
resolve_locked (struct replica *r, unsigned disk, uint64_t offset,
                uint64_t count)
{
  if (overlay_resolve (r->spec, r->wo, disk, offset, count, &pieces) == -1)
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
            void *buf)
{
  struct journal_damage damage;

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
                        (char *) buf + done, &damage) == -1) {
        if (errno == EBADMSG) {
          replica_log (r, REPLICA_LOG_ERROR, "%s/%s: offset %llu: %s", r->dir,
                       damage.file, (unsigned long long) damage.offset,
                       damage.what);
          replica_fail (r, "a block does not verify", 0);
          errno = EIO;
        }
        return -1;
      }
      done += n;
    }
    return 0;
  }
  errno = EINVAL;
  return -1;
}

int
read_overlay (struct replica *r, unsigned disk, void *buf, uint32_t count,
              uint64_t offset)
{
  struct disk *d = &r->disks[disk];
  bool guarded = false;
  unsigned phase = 0;
  int result = 0;

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
    if (resolve_locked (r, disk, offset, count) == -1)
      return -1;
    for (size_t i = 0; i < pieces.n && !guarded; i++)
      guarded = pieces.piece[i].source == OVERLAY_DATA;
    if (guarded)
      phase = reader_begin_locked (r);
  }
  for (size_t i = 0; i < pieces.n && result == 0; i++)
    result = read_piece (r, d, &pieces.piece[i],
                         (char *) buf + (pieces.piece[i].offset - offset));
  if (guarded) {
    int saved = errno;

    reader_end (r, phase);
    errno = saved;
  }
  return result;
}

int
replica_pread (struct replica *r, const struct replica_export *e, void *buf,
               uint32_t count, uint64_t offset)
{
  bool direct;

  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1)
      return -1;
    direct = r->direct;
  }
  if (direct)
    return backing_pread (r->disks[e->disk].backing, buf, count, offset);
  return read_overlay (r, e->disk, buf, count, offset);
}

int
replica_cache (struct replica *r, const struct replica_export *e,
               uint32_t count, uint64_t offset)
{
  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1)
      return -1;
  }
  return backing_cache (r->disks[e->disk].backing, count, offset);
}

/* Neighbours of one kind go out as one. */
struct extent_gather {
  replica_extent_fn fn;
  void *opaque;
  uint64_t offset, length;
  bool hole, zero;
};

static int
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

int
replica_extents (struct replica *r, const struct replica_export *e,
                 uint32_t count, uint64_t offset, replica_extent_fn fn,
                 void *opaque)
{
  struct extent_gather g = { .fn = fn, .opaque = opaque };
  struct backing *b = r->disks[e->disk].backing;

  if (pthread_once (&pieces_once, make_key) != 0) {
    errno = ENOMEM;
    return -1;
  }
  {
    SCOPED_LOCK (&r->lock);
    if (admit_locked (r, e, false) == -1 ||
        resolve_locked (r, e->disk, offset, count) == -1)
      return -1;
  }
  for (size_t i = 0; i < pieces.n; i++) {
    const struct overlay_piece *p = &pieces.piece[i];
    int result = 0;

    switch (p->source) {
    case OVERLAY_BACKING:
      result = backing_extents (b, p->offset, p->length, &g);
      break;
    case OVERLAY_ZERO:
      result = gather_extent (&g, p->offset, p->length, p->may_trim, true);
      break;
    case OVERLAY_DATA:
      result = gather_extent (&g, p->offset, p->length, false, false);
      break;
    }
    if (result == -1)
      return -1;
  }
  return g.length > 0 ? fn (opaque, g.offset, g.length, g.hole, g.zero) : 0;
}
