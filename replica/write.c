/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes, zeroes and flushes: which way each goes. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "replica/internal.h"

static void
note_sync_failed_locked (struct replica *r, struct disk *d, int errnum)
{
  d->sync_failed = true;
  set_reason_locked (r, "%s cannot be synced (%s), and no flush succeeds any more: mend it, check what "
                     "is on it, and restart the server", backing_path (d->backing),
                     strerror (errnum));
  house_event_locked (r, "sync", "%s: %s", backing_path (d->backing), strerror (errnum));
}

/* A sync that failed may have lost pages that the next one does not know of:
 * a promoted disk has no journal to write them from again.  So one at a time: the kernel tells
 * the first, and the next must know.
 */
static int
flush_promoted (struct replica *r, struct disk *d)
{
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    while (d->syncing)
      pthread_cond_wait (&r->changed, &r->lock);
    if (d->sync_failed) {
      errno = EIO;
      return -1;
    }
    d->syncing = true;
  }
  result = backing_flush (d->backing);
  saved = errno;
  {
    SCOPED_LOCK (&r->lock);
    d->syncing = false;
    if (result == -1)
      note_sync_failed_locked (r, d, saved);
    pthread_cond_broadcast (&r->changed);
  }
  errno = saved;
  return result;
}

static int
flush_image (struct replica *r, const struct replica_export *e)
{
  struct disk *d = &r->disks[e->disk];

  return e->view == REPLICA_PROMOTED ? flush_promoted (r, d) : backing_flush (d->backing);
}

/* Straight to the backing image.  In syncing an error is a hole in the copy. */
static int
through (struct replica *r, const struct replica_export *e,
         const struct admitted *a, const void *buf, uint32_t count,
         uint64_t offset, unsigned flags)
{
  struct backing *b = r->disks[e->disk].backing;
  struct iovec iov = { .iov_base = (void *) (uintptr_t) buf, .iov_len = count };
  int result;

  if (make_dirty (r, a) == -1)
    return -1;
  result = buf ? backing_pwritev (b, &iov, 1, offset) :
    backing_zero (b, count, offset, flags & REPLICA_MAY_TRIM,
                  flags & REPLICA_FAST_ZERO);
  if (result == 0 && flags & REPLICA_FUA)
    result = flush_image (r, e);
  if (result == -1 && !(errno == ENOTSUP && flags & REPLICA_FAST_ZERO)) {
    int saved = errno;

    replica_log (r, REPLICA_LOG_ERROR, "%s: cannot write: %m", backing_path (b));
    /* A hole or not, the client is told what happened. */
    (void) replica_refused (r, a, saved, backing_path (b));
    errno = saved == ENOSPC || saved == ENOMEM ? saved : EIO;
  }
  return result;
}

static int
submit (struct replica *r, const struct replica_export *e, const void *buf,
        uint32_t count, uint64_t offset, unsigned flags)
{
  struct replica_export now;
  struct admitted a;
  int result;

  if (count == 0)
    return 0;
  if (e->view == REPLICA_SCRATCH) {
    /* Nothing of it outlives the server, so there is nothing for FUA to do. */
    result = scratch_write (r, e->scratch, buf, count, offset,
                            flags & REPLICA_MAY_TRIM);
    if (result == 0 || errno != EAGAIN || !scratch_is_disk (r, e, &now))
      return result;
    e = &now;
  }
  do {
    int saved;

    if (route_begin (r, e, &a) == -1) {
      saved = errno;
      if (e->view == REPLICA_INLET && saved == ESHUTDOWN)
        divergence_refused (r);
      errno = saved;
      return -1;
    }
    if (e->view == REPLICA_PROMOTED)
      divergence_mark (r, e->disk, offset, count);
    if (a.route != ROUTE_SPECULATE)
      result = through (r, e, &a, buf, count, offset, flags);
    else if (buf)
      result = put_data (r, e, &a, buf, count, offset);
    else
      result = put_zero (r, e, &a, count, offset, flags & REPLICA_MAY_TRIM);
    saved = errno;
    route_end (r, a.route);
    errno = saved;
  } while (result == -1 && errno == EAGAIN);
  if (result == -1 && e->view == REPLICA_INLET && errno == ESHUTDOWN) {
    divergence_refused (r);
    errno = ESHUTDOWN;
  }
  /* Before a promote there is nothing for FUA to do in the speculation
   * buffer: no write of it is durable before the commit, and then all are.
   */
  if (result == 0 && a.route == ROUTE_SPECULATE &&
      e->view == REPLICA_PROMOTED && flags & REPLICA_FUA)
    result = promoted_flush (r);
  return result;
}

int
replica_pwrite (struct replica *r, const struct replica_export *e,
                const void *buf, uint32_t count, uint64_t offset,
                unsigned flags)
{
  return submit (r, e, buf, count, offset, flags);
}

int
replica_zero (struct replica *r, const struct replica_export *e,
              uint32_t count, uint64_t offset, unsigned flags)
{
  return submit (r, e, NULL, count, offset, flags);
}

int
replica_flush (struct replica *r, const struct replica_export *e)
{
  struct backing *b = r->disks[e->disk].backing;
  struct replica_export now;
  struct admitted a = { .route = ROUTE_THROUGH };
  int result = 0;
  bool image;

  if (e->view == REPLICA_SCRATCH) {
    if (!scratch_is_disk (r, e, &now))
      return 0;
    e = &now;
  }
  {
    SCOPED_LOCK (&r->lock);
    wait_settled_locked (r);
    /* Who only reads has nothing to make durable. */
    if (e->view == REPLICA_CHECKPOINT || e->view == REPLICA_DIVERGENCE)
      return admit_locked (r, e, false);
    if (admit_locked (r, e, true) == -1)
      return -1;
    /* Counted, for the kernel reports a lost page only once: a first commit must
     * not sync the image between our error and the hole that it is.  It waits for those that came before the
     * copy was closed; later ones have nothing to do with the image.
     */
    image = r->state == JOURNAL_PROMOTED ? r->direct : copying_locked (r, e->disk);
    if (image)
      r->through++;
    a.moves = r->moves;
  }
  if (e->view == REPLICA_PROMOTED && !image && promoted_flush (r) == -1)
    return -1;
  if (image && flush_image (r, e) == -1) {
    int saved = errno;

    replica_log (r, REPLICA_LOG_ERROR, "%s: cannot sync: %m", backing_path (b));
    if (e->view == REPLICA_INLET)
      (void) replica_refused (r, &a, saved, backing_path (b));
    result = -1;
  }
  if (image)
    route_end (r, a.route);
  if (result == -1)
    errno = EIO;
  return result;
}
