/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes into the open epoch.
 *
 * A write is copied into journal spans first and published afterwards, all of it in
 * one step under the lock: it belongs to the epoch that is open then, and a long copy holds
 * up nobody.  Whole sectors never read first.  A write that covers part of a sector reads
 * the rest from the overlay; it notes the sector, and whoever publishes the same
 * one meanwhile makes it start over.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "replica/internal.h"

#define SECTOR JOURNAL_SECTOR
#define BLOCK JOURNAL_BLOCK
#define FEW 8                   /* spans of a write that needs no allocation */
#define STALLED_MS 10000        /* write-out without progress for so long is none */

/* One publication in the making. */
struct put {
  struct replica *r;
  const struct admitted *a;     /* NULL: of the replica itself */
  unsigned disk;
  uint64_t size;                /* of the disk */
  struct journal_extent few[FEW], *ext;
  struct journal_span few_spans[FEW], *span;
  unsigned n, nspans, room;
  uint32_t blocks;
  bool compared;                /* resyncing: only RANGES are taken … */
  uint64_t moves;               /* … as long as the replica has not moved since */
  bool holed;                   /* published, though not all of it: in the stream of MOVES */
  struct ranges ranges;
  struct rmw rmw;
  bool partial;                 /* rmw is in the list */
  uint8_t head[SECTOR], tail[SECTOR];   /* what partly covered sectors hold */
};

static void
put_init (struct put *p, struct replica *r, const struct admitted *a,
          unsigned disk)
{
  p->r = r;
  p->a = a;
  p->disk = disk;
  p->size = r->disks[disk].size;
  p->ext = p->few;
  p->span = p->few_spans;
  p->room = FEW;
  p->n = p->nspans = 0;
  p->blocks = 0;
  p->compared = p->holed = false;
  p->ranges = (struct ranges) RANGES_INIT;
  p->partial = false;
}

static void
put_free (struct put *p)
{
  int saved = errno;

  ranges_free (&p->ranges);
  if (p->ext != p->few)
    free (p->ext);
  if (p->span != p->few_spans)
    free (p->span);
  errno = saved;
}

static int
put_grow (struct put *p)
{
  unsigned room = p->room * 4;
  struct journal_extent *ext;
  struct journal_span *span;

  if (p->n < p->room && p->nspans < p->room)
    return 0;
  ext = malloc (room * sizeof *ext);
  span = malloc (room * sizeof *span);
  if (ext == NULL || span == NULL) {
    free (ext);
    free (span);
    errno = ENOMEM;
    return -1;
  }
  memcpy (ext, p->ext, p->n * sizeof *ext);
  memcpy (span, p->span, p->nspans * sizeof *span);
  if (p->ext != p->few)
    free (p->ext);
  if (p->span != p->few_spans)
    free (p->span);
  p->ext = ext;
  p->span = span;
  p->room = room;
  return 0;
}

/* Will somebody make room?  Write-out, a commit under way that gives it work, or the flush of
 * promoted writes that the write-out thread does when it is idle.
 */
static bool
room_may_come_locked (struct replica *r)
{
  struct speculation_stat stat;

  if (r->stopping || r->wo_error[0])
    return false;
  if (!writeout_is_empty (r->wo) || r->writing_out || r->commit_turn || r->copy_turn)
    return true;
  speculation_get_stat (r->spec, &stat);
  return r->state == JOURNAL_PROMOTED && stat.extents > 0;
}

struct space
space_seen (struct replica *r, const struct admitted *a)
{
  return (struct space) {
    .r = r, .a = a,
    .seen = __atomic_load_n (&r->wo_progress, __ATOMIC_ACQUIRE),
  };
}

/* Who has waited SINCE long ago, behind others that gave up, does not begin anew.
 * A promote or a resync may have made room, but also other rules: EAGAIN, who waits is let in by these, or is not.
 */
int
wait_space (void *space, uint64_t since)
{
  struct space *s = space;
  struct replica *r = s->r;
  int result = -1;
  SCOPED_LOCK (&r->lock);
  uint64_t written = r->wo_written;

  since = MAX (since, r->wo_written_at);
  r->waiting++;
  held_begin (&r->held, host_monotonic_ns ());
  pthread_cond_signal (&r->work);
  for (;;) {
    if (s->a && r->moves != s->a->moves) {
      errno = EAGAIN;
      break;
    }
    if (r->wo_progress != s->seen) {
      s->seen = r->wo_progress;
      result = 0;
      break;
    }
    if (r->wo_written != written) {
      written = r->wo_written;
      since = host_monotonic_ns ();
    }
    if (!room_may_come_locked (r) ||
        host_monotonic_ns () - since > STALLED_MS * UINT64_C (1000000)) {
      errno = ENOSPC;
      break;
    }
    pthread_cond_signal (&r->work);
    if (wait_changed_locked (r, 100) == -1 && errno != ETIMEDOUT)
      break;
  }
  r->waiting--;
  held_end (&r->held, host_monotonic_ns ());
  return result;
}

static int
reserve (const struct put *p, uint32_t want, struct journal_span *span)
{
  struct space space = space_seen (p->r, p->a);

  return journal_reserve_or_wait (p->r->journal, want, span, wait_space, &space);
}

/* Not in line behind those who have nothing in the journal yet. */
static int
credit (const struct put *p)
{
  struct space space = space_seen (p->r, p->a);
  uint64_t since = 0;

  while (journal_credit (p->r->journal, p->n, p->blocks) == -1) {
    if (since == 0)
      since = host_monotonic_ns ();
    if (errno != ENOSPC || wait_space (&space, since) == -1)
      return -1;
  }
  return 0;
}

/* One image: the disk's BLOCK bytes at AT, of which [FROM, TO) (whole sectors) are
 * written.  DATA is what the client sent for [OFF, OFF + LEN), NULL for zeroes.
 */
static void
fill_image (struct put *p, uint8_t *image, uint64_t at, uint64_t from,
            uint64_t to, const uint8_t *data, uint64_t off, uint64_t len)
{
  uint64_t b = MAX (at, off), e = MIN (at + BLOCK, off + len);

  if (b == at && e == at + BLOCK) {
    if (data)
      memcpy (image, data + (at - off), BLOCK);
    else
      memset (image, 0, BLOCK);
    return;
  }
  memset (image, 0, BLOCK);
  if (from < off && from >= at)
    memcpy (image + (from - at), p->head, SECTOR);
  if (to > off + len && to <= at + BLOCK)
    memcpy (image + (to - SECTOR - at), p->tail, SECTOR);
  if (data)
    memcpy (image + (b - at), data + (b - off), e - b);
  else
    memset (image + (b - at), 0, e - b);
}

/* Take a range of bytes into spans of the journal. */
static int
put_range (struct put *p, const uint8_t *data, uint64_t len, uint64_t off)
{
  uint64_t from = ROUND_DOWN (off, (uint64_t) SECTOR);
  uint64_t to = ROUND_UP (off + len, (uint64_t) SECTOR);
  uint64_t at = ROUND_DOWN (off, (uint64_t) BLOCK);

  while (at < to) {
    uint32_t crc[JOURNAL_CHUNK_BLOCKS];
    struct journal_span *span;
    uint64_t first, last;

    if (put_grow (p) == -1)
      return -1;
    span = &p->span[p->nspans];
    if (reserve (p, MIN (DIV_UP (to - at, (uint64_t) BLOCK),
                         (uint64_t) JOURNAL_CHUNK_BLOCKS), span) == -1)
      return -1;
    for (uint32_t i = 0; i < span->nblocks; i++) {
      uint8_t *image = (uint8_t *) span->mem + (size_t) i * BLOCK;

      fill_image (p, image, at + (uint64_t) i * BLOCK, from, to, data, off,
                  len);
      crc[i] = crc32c (image, BLOCK, 0);
    }
    journal_filled (p->r->journal, span, crc);
    p->nspans++;

    first = MAX (at, from);
    last = MIN (at + (uint64_t) span->nblocks * BLOCK, to);
    p->ext[p->n++] = (struct journal_extent) {
      .disk = p->disk, .flags = JOURNAL_DATA, .sector = first / SECTOR,
      .nsectors = (last - first) / SECTOR, .block = span->block,
    };
    p->blocks += span->nblocks;
    at += (uint64_t) span->nblocks * BLOCK;
  }
  return 0;
}

static void
put_abandon (struct put *p)
{
  int saved = errno;

  for (unsigned i = 0; i < p->nspans; i++)
    journal_abandon (p->r->journal, &p->span[i]);
  p->n = p->nspans = 0;
  p->blocks = 0;
  errno = saved;
}

static void
rmw_remove_locked (struct put *p)
{
  assert_locked (p->r);
  if (p->partial) {
    struct rmw **q = &p->r->rmws;

    while (*q != &p->rmw)
      q = &(*q)->next;
    *q = p->rmw.next;
    p->partial = false;
  }
}

/* Does [OFF, OFF + LEN) begin or end within a sector?  (The end of the disk is
 * the end of its last sector.)  Then read what those hold.
 */
static int
put_edges (struct put *p, uint64_t len, uint64_t off)
{
  struct replica *r = p->r;
  bool head = off % SECTOR != 0;
  bool tail = (off + len) % SECTOR != 0 && off + len != p->size;
  uint64_t first = ROUND_DOWN (off, (uint64_t) SECTOR);
  uint64_t last = ROUND_DOWN (off + len - 1, (uint64_t) SECTOR);

  memset (p->head, 0, SECTOR);
  memset (p->tail, 0, SECTOR);
  if (!head && !tail)
    return 0;
  {
    SCOPED_LOCK (&r->lock);

    /* A write that was on its way straight to the image when a seal closed
     * the first copy has to be there before the sector is read.
     */
    r->want_idle++;
    while (disk_is_fresh_locked (r, p->disk) && r->through > 0 && !r->stopping)
      pthread_cond_wait (&r->changed, &r->lock);
    r->want_idle--;
    p->rmw = (struct rmw) { .disk = p->disk,
                            .sector = { first / SECTOR, last / SECTOR },
                            .next = r->rmws };
    r->rmws = &p->rmw;
    p->partial = true;
  }
  if (head && read_overlay (r, p->disk, false, p->head,
                            MIN (SECTOR, p->size - first), first) == -1)
    return -1;
  if (tail && read_overlay (r, p->disk, false, p->tail,
                            MIN (SECTOR, p->size - last), last) == -1)
    return -1;
  /* One sector with both ends in it, or two: each side finds its own. */
  if (first == last && head)
    memcpy (p->tail, p->head, SECTOR);
  return 0;
}

static void
rmw_dirty_locked (struct replica *r, const struct put *p)
{
  for (struct rmw *w = r->rmws; w; w = w->next)
    for (unsigned i = 0; i < p->n; i++) {
      const struct journal_extent *e = &p->ext[i];

      if (w != &p->rmw && w->disk == e->disk &&
          ((w->sector[0] >= e->sector && w->sector[0] < e->sector + e->nsectors) ||
           (w->sector[1] >= e->sector && w->sector[1] < e->sector + e->nsectors)))
        w->dirty = true;
    }
}

/* Make it part of the open epoch.  E NULL: the replica itself writes, while it moves.  0; 1 when it has to start over; -1. */
static int
put_publish (struct put *p, const struct replica_export *e)
{
  struct replica *r = p->r;
  int result = 0;

  if (credit (p) == -1)
    return -1;

  SCOPED_LOCK (&r->lock);

  if (e)
    wait_settled_locked (r);
  if (e && admit_locked (r, e, true) == -1) {
    journal_uncredit (r->journal, p->n, p->blocks);
    rmw_remove_locked (p);
    return -1;
  }
  if (copying_locked (r, p->disk)) {
    /* A resync came in between: this belongs into the image now. */
    journal_uncredit (r->journal, p->n, p->blocks);
    rmw_remove_locked (p);
    errno = EAGAIN;
    return -1;
  }
  /* What it has read, compared or pushed before a resync is worth nothing after it. */
  if ((p->partial && p->rmw.dirty) || ((e || p->compared) && p->moves != r->moves)) {
    journal_uncredit (r->journal, p->n, p->blocks);
    rmw_remove_locked (p);
    return 1;
  }
  rmw_remove_locked (p);
  if (p->n == 0) {
    /* A resync brought nothing new. */
    journal_uncredit (r->journal, 0, 0);
    return 0;
  }
  if (r->rmws)
    rmw_dirty_locked (r, p);

  /* Published whole even where the map runs out of memory half way: the write is not
   * acknowledged then, and the epoch can never be committed.
   */
  journal_publish (r->journal, speculation_open_number (r->spec), p->ext, p->n);
  for (unsigned i = 0; i < p->n && result == 0; i++) {
    const struct journal_extent *x = &p->ext[i];

    result = x->flags & JOURNAL_ZERO ?
      speculation_zero (r->spec, x->disk, x->sector, x->nsectors,
                        x->flags & JOURNAL_MAY_TRIM) :
      speculation_put (r->spec, x->disk, x->sector, x->nsectors, x->block);
  }
  p->nspans = 0;
  p->holed = result == -1;
  p->moves = r->moves;
  return result;
}

/* LEN bytes of DATA, or zeroes, at OFF; ZERO: whole sectors become a descriptor without data. */
static int
put_part (struct put *p, const uint8_t *data, uint64_t len, uint64_t off,
          bool zero, bool may_trim)
{
  uint64_t from = ROUND_UP (off, (uint64_t) SECTOR);
  uint64_t to = off + len == p->size ? ROUND_UP (off + len, (uint64_t) SECTOR) :
    ROUND_DOWN (off + len, (uint64_t) SECTOR);

  if (!zero || from >= to)
    return put_range (p, data, len, off);
  if (off < from && put_range (p, NULL, from - off, off) == -1)
    return -1;
  if (put_grow (p) == -1)
    return -1;
  p->ext[p->n++] = (struct journal_extent) {
    .disk = p->disk,
    .flags = JOURNAL_ZERO | (may_trim ? JOURNAL_MAY_TRIM : 0),
    .sector = from / SECTOR, .nsectors = (to - from) / SECTOR,
  };
  return off + len > to ? put_range (p, NULL, off + len - to, to) : 0;
}

/* Does a resync run?  Then find out what it has to take. */
static int
put_compare (struct put *p, const uint8_t *data, uint64_t len, uint64_t off)
{
  struct replica *r = p->r;

  {
    SCOPED_LOCK (&r->lock);
    p->compared = r->state == JOURNAL_RESYNCING &&
      !disk_is_fresh_locked (r, p->disk);
    p->moves = r->moves;
  }
  return p->compared ?
    compare_write (r, p->disk, data, len, off, &p->ranges) : 0;
}

static int
put_once (struct put *p, const struct replica_export *e, const uint8_t *data,
          uint64_t len, uint64_t off, bool zero, bool may_trim)
{
  if (put_compare (p, data, len, off) == -1 ||
      put_edges (p, len, off) == -1)
    return -1;
  if (!p->compared) {
    if (put_part (p, data, len, off, zero, may_trim) == -1)
      return -1;
  }
  else
    for (size_t i = 0; i < p->ranges.n; i++) {
      const struct range *g = &p->ranges.range[i];

      if (put_part (p, data ? data + (g->offset - off) : NULL, g->length,
                    g->offset, zero, may_trim) == -1)
        return -1;
    }
  return put_publish (p, e);
}

/* Of what, and what to do. */
static const char *
journal_is_full (struct replica *r, char *what, size_t size)
{
  int saved = errno;
  SCOPED_LOCK (&r->lock);

  if (r->wo_error[0])
    snprintf (what, size, "the journal is full, for write-out is paused (%s): raise journal-size to bridge longer pauses",
              r->wo_error);
  else if (!writeout_is_empty (r->wo))
    snprintf (what, size, "the journal is full, and write-out makes no progress: "
              "raise journal-size, or use faster backing images");
  else
    snprintf (what, size, "the journal is full of uncommitted epochs: raise journal-size or commit more often");
  errno = saved;
  return what;
}

/* E's write was not taken, for ERRNUM.  What that means depends on whether the replica is the one that it was
 * meant for: EAGAIN, when it has moved; else the errno for the client.
 */
static int
refused (struct replica *r, const struct admitted *a, int errnum)
{
  int why = journal_failed (r->journal);
  char what[384];

  if (why)
    return replica_fail_since (r, a->moves, "writing the journal", why) == -1 ?
      EAGAIN : EIO;
  if (errnum == ESHUTDOWN || errnum == EAGAIN)
    return errnum;
  return replica_refused (r, a, errnum, errnum == ENOSPC ?
                          journal_is_full (r, what, sizeof what) :
                          "cannot take a write into the journal") == -1 ?
    EAGAIN : errnum;
}

/* E and A are NULL when the replica itself writes. */
static int
put (struct replica *r, const struct replica_export *e,
     const struct admitted *a, unsigned disk, const void *data, uint64_t len,
     uint64_t off, bool zero, bool may_trim)
{
  struct put p;
  int result;

  if (len == 0)
    return 0;
  if (make_dirty (r, a) == -1)
    return -1;
  put_init (&p, r, a, disk);
  while ((result = put_once (&p, e, data, len, off, zero, may_trim)) == 1)
    put_abandon (&p);
  if (result == -1) {
    int saved = errno;

    if (p.partial) {
      SCOPED_LOCK (&r->lock);
      rmw_remove_locked (&p);
    }
    put_abandon (&p);
    /* Of the replica itself: the caller knows what to do. */
    if (a && p.holed) {
      struct admitted now = *a; /* a resync may have come before it */

      now.moves = p.moves;
      errno = refused (r, &now, saved);
    }
    else
      errno = a ? refused (r, a, saved) : saved;
  }
  put_free (&p);
  return result;
}

int
put_data (struct replica *r, const struct replica_export *e,
          const struct admitted *a, const void *buf, uint32_t count,
          uint64_t offset)
{
  return put (r, e, a, e->disk, buf, count, offset, false, false);
}

int
put_own (struct replica *r, unsigned disk, const void *buf, uint32_t count,
         uint64_t offset, bool may_trim)
{
  return put (r, NULL, NULL, disk, buf, count, offset, buf == NULL, may_trim);
}

int
put_zero (struct replica *r, const struct replica_export *e,
          const struct admitted *a, uint32_t count, uint64_t offset,
          bool may_trim)
{
  return put (r, e, a, e->disk, NULL, count, offset, true, may_trim);
}
