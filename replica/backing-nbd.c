/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing images that are NBD exports: requests.  See backing-nbd.h.
 *
 * The server says how small and how large a request may be.  What is smaller is read, changed
 * and written back (with all other writes kept out); what is larger is split.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/host.h"
#include "replica/backing-nbd.h"

#define ZERO_MAX (UINT64_C (64) << 20)  /* of one zero request: some servers write them out */
#define EXTENT_MAX (UINT64_C (1) << 30)
#define STOP_MS 10000

/* --- requests that may be sent again when a connection is lost ---------------------- */

struct extent {
  uint64_t length;
  bool hole;
};

static int
note_extent (void *opaque, const char *context, uint64_t offset,
             uint32_t *entries, size_t n, int *error)
{
  struct extent *e = opaque;

  (void) context;
  (void) offset;
  (void) error;
  /* The first is all that is asked for. */
  if (n >= 2 && e->length == 0) {
    e->length = entries[0];
    e->hole = (entries[1] & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO)) ==
      (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO);
  }
  return 0;
}

enum harmless { REQ_READ, REQ_FLUSH, REQ_CACHE, REQ_EXTENT };

static int64_t
send_harmless (struct nbd_conn *c, enum harmless what, void *buf, uint64_t len,
               uint64_t off)
{
  switch (what) {
  case REQ_READ:
    return nbd_lib.aio_pread (c->h, buf, len, off, NBD_NULL_COMPLETION, 0);
  case REQ_FLUSH:
    return nbd_lib.aio_flush (c->h, NBD_NULL_COMPLETION, 0);
  case REQ_CACHE:
    return nbd_lib.aio_cache (c->h, len, off, NBD_NULL_COMPLETION, 0);
  case REQ_EXTENT:
    return nbd_lib.aio_block_status (c->h, len, off,
                                     (nbd_extent_callback) {
                                       .callback = note_extent,
                                       .user_data = buf },
                                     NBD_NULL_COMPLETION,
                                     LIBNBD_CMD_FLAG_REQ_ONE);
  }
  errno = EINVAL;
  return -1;
}

static int
harmless (struct nbd_image *img, enum harmless what, void *buf, uint64_t len,
          uint64_t off)
{
  int result = -1;

  /* The second attempt is for a connection that is lost meanwhile. */
  for (unsigned attempt = 0; attempt < 2 && result == -1; attempt++) {
    uint64_t losses;
    struct nbd_conn *c = nbd_conn_get (img, &losses);

    if (c == NULL)
      return -1;
    result = nbd_conn_wait (img, c, send_harmless (c, what, buf, len, off));
    if (!nbd_conn_put (img, c))
      break;
  }
  return result;
}

/* LEN and OFF are multiples of min. */
static int
read_whole (struct nbd_image *img, uint8_t *buf, uint64_t len, uint64_t off)
{
  while (len > 0) {
    uint32_t n = MIN (len, (uint64_t) img->max);

    if (harmless (img, REQ_READ, buf, n, off) == -1) {
      if (errno == ENOSPC || errno == ENOTSUP)
        errno = EIO;
      return -1;
    }
    buf += n;
    off += n;
    len -= n;
  }
  return 0;
}

static int
image_pread (struct backing *b, void *buf, size_t len, uint64_t off)
{
  struct nbd_image *img = (struct nbd_image *) b;
  CLEANUP_FREE uint8_t *block = NULL;
  uint64_t min = img->min;
  uint8_t *to = buf;

  while (len > 0) {
    uint64_t n = ROUND_DOWN ((uint64_t) len, min), skip = off % min;

    if (skip == 0 && n > 0) {
      if (read_whole (img, to, n, off) == -1)
        return -1;
    }
    else {
      n = MIN (min - skip, (uint64_t) len);
      if ((block == NULL && (block = malloc (min)) == NULL) ||
          read_whole (img, block, min, off - skip) == -1)
        return -1;
      memcpy (to, block + skip, n);
    }
    to += n;
    off += n;
    len -= n;
  }
  return 0;
}

static int
image_cache (struct backing *b, uint64_t len, uint64_t off)
{
  struct nbd_image *img = (struct nbd_image *) b;
  uint64_t end = ROUND_UP (off + len, (uint64_t) img->min);

  off = ROUND_DOWN (off, (uint64_t) img->min);
  while (img->can_cache && off < end) {
    uint64_t n = MIN (end - off, (uint64_t) img->max);

    if (harmless (img, REQ_CACHE, NULL, n, off) == -1)
      return -1;
    off += n;
  }
  return 0;
}

static int
image_extent (struct backing *b, uint64_t off, uint64_t max, uint64_t *len,
              bool *hole)
{
  struct nbd_image *img = (struct nbd_image *) b;
  uint64_t start = ROUND_DOWN (off, (uint64_t) img->min);
  uint64_t end = ROUND_UP (off + MIN (max, EXTENT_MAX), (uint64_t) img->min);
  struct extent e = { 0, false };

  *len = max;
  *hole = false;
  if (!img->can_extents)
    return 0;
  if (harmless (img, REQ_EXTENT, &e, end - start, start) == -1)
    return -1;
  if (e.length > off - start) {
    *len = MIN (max, e.length - (off - start));
    *hole = e.hole;
  }
  return 0;
}

/* --- requests that change something ------------------------------------------------ */

/* 0; -1: what was written before is lost, so nothing more is taken. */
static int
write_begin (struct nbd_image *img)
{
  SCOPED_LOCK (&img->lock);

  if (!img->lost)
    return 0;
  errno = EIO;
  return -1;
}

/* The server has acknowledged a write that was sent when LOSSES had been counted. */
static int
write_end (struct nbd_image *img, uint64_t losses)
{
  SCOPED_LOCK (&img->lock);

  img->acked++;
  if (img->losses == losses)
    return 0;
  img->lost = true;
  errno = EIO;
  return -1;
}

enum change { REQ_WRITE, REQ_ZERO };

/* One request.  IOV: N pieces that are copied together when there are several. */
static int
change (struct nbd_image *img, enum change what, const struct iovec *iov,
        int n, uint64_t len, uint64_t off, uint32_t flags)
{
  uint64_t losses;
  struct nbd_conn *c;
  int result = -1;

  if (write_begin (img) == -1 || (c = nbd_conn_get (img, &losses)) == NULL)
    return -1;
  /* A connection that was lost before it was chosen may have taken something with it. */
  if (write_begin (img) == -1)
    ;
  else if (what == REQ_ZERO)
    result = nbd_conn_wait (img, c, nbd_lib.aio_zero (c->h, len, off,
                                                      NBD_NULL_COMPLETION,
                                                      flags));
  else if (n == 1)
    result = nbd_conn_wait (img, c, nbd_lib.aio_pwrite (c->h, iov->iov_base, len, off,
                                                        NBD_NULL_COMPLETION, flags));
  else if (c->bounce || (c->bounce = malloc (NBD_BOUNCE)) != NULL) {
    uint8_t *to = c->bounce;

    for (int i = 0; i < n; i++) {
      memcpy (to, iov[i].iov_base, iov[i].iov_len);
      to += iov[i].iov_len;
    }
    result = nbd_conn_wait (img, c, nbd_lib.aio_pwrite (c->h, c->bounce, len, off,
                                                        NBD_NULL_COMPLETION, flags));
  }
  (void) nbd_conn_put (img, c);
  return result == -1 ? -1 : write_end (img, losses);
}

/* Keep others away from the block of which a part is changed. */
static void
turn_begin (struct nbd_image *img, bool partial)
{
  if (img->min > 1) {
    SCOPED_LOCK (&img->lock);

    while (img->partial || (partial && img->writers > 0))
      pthread_cond_wait (&img->changed, &img->lock);
    if (partial)
      img->partial = true;
    else
      img->writers++;
  }
}

static void
turn_end (struct nbd_image *img, bool partial)
{
  int saved = errno;

  if (img->min > 1) {
    SCOPED_LOCK (&img->lock);

    if (partial)
      img->partial = false;
    else
      img->writers--;
    pthread_cond_broadcast (&img->changed);
  }
  errno = saved;
}

/* LEN bytes of DATA (NULL: zeroes) within one block. */
static int
write_partial (struct nbd_image *img, const uint8_t *data, uint64_t len,
               uint64_t off)
{
  uint64_t skip = off % img->min;
  CLEANUP_FREE uint8_t *block = malloc (img->min);
  struct iovec iov = { .iov_base = block, .iov_len = img->min };
  int result;

  if (block == NULL)
    return -1;
  turn_begin (img, true);
  result = read_whole (img, block, img->min, off - skip);
  if (result == 0) {
    if (data)
      memcpy (block + skip, data, len);
    else
      memset (block + skip, 0, len);
    result = change (img, REQ_WRITE, &iov, 1, img->min, off - skip, 0);
  }
  turn_end (img, true);
  return result;
}

/* Whole blocks, in requests that the server takes. */
static int
write_whole (struct nbd_image *img, const uint8_t *data, uint64_t len,
             uint64_t off)
{
  int result = 0;

  turn_begin (img, false);
  while (len > 0 && result == 0) {
    uint64_t n = MIN (len, (uint64_t) img->max);
    struct iovec iov = { .iov_base = (void *) (uintptr_t) data, .iov_len = n };

    result = change (img, REQ_WRITE, &iov, 1, n, off, 0);
    data += n;
    off += n;
    len -= n;
  }
  turn_end (img, false);
  return result;
}

static int
write_any (struct nbd_image *img, const uint8_t *data, uint64_t len,
           uint64_t off)
{
  while (len > 0) {
    uint64_t min = img->min, skip = off % min, n = ROUND_DOWN (len, min);
    int result;

    if (skip == 0 && n > 0)
      result = write_whole (img, data, n, off);
    else {
      n = MIN (min - skip, len);
      result = write_partial (img, data, n, off);
    }
    if (result == -1)
      return -1;
    data += n;
    off += n;
    len -= n;
  }
  return 0;
}

/* Pieces that together make one request. */
static int
write_gathered (struct nbd_image *img, struct iovec *iov, int n, uint64_t len,
                uint64_t off)
{
  int result;

  turn_begin (img, false);
  result = change (img, REQ_WRITE, iov, n, len, off, 0);
  turn_end (img, false);
  return result;
}

static int
image_pwritev (struct backing *b, struct iovec *iov, int n, uint64_t off)
{
  struct nbd_image *img = (struct nbd_image *) b;
  uint64_t most = MIN (img->max, NBD_BOUNCE);

  for (int i = 0; i < n;) {
    uint64_t len = iov[i].iov_len;
    int k = i + 1;

    while (k < n && len + iov[k].iov_len <= most)
      len += iov[k++].iov_len;
    if (k > i + 1 && off % img->min == 0 && len % img->min == 0) {
      if (write_gathered (img, iov + i, k - i, len, off) == -1)
        return -1;
      i = k;
    }
    else {
      len = iov[i].iov_len;
      if (write_any (img, iov[i].iov_base, len, off) == -1)
        return -1;
      i++;
    }
    off += len;
  }
  return 0;
}

static int
write_zeroes (struct nbd_image *img, uint64_t len, uint64_t off)
{
  uint64_t most = MIN (img->max, NBD_BOUNCE);
  CLEANUP_FREE uint8_t *zeroes = calloc (1, MIN (len, most));

  if (zeroes == NULL)
    return -1;
  while (len > 0) {
    uint64_t n = MIN (len, most);

    if (write_any (img, zeroes, n, off) == -1)
      return -1;
    off += n;
    len -= n;
  }
  return 0;
}

/* Whole blocks.  ENOTSUP: the server cannot, or not fast. */
static int
zero_whole (struct nbd_image *img, uint64_t len, uint64_t off, uint32_t flags)
{
  int result = 0;

  turn_begin (img, false);
  while (len > 0 && result == 0) {
    uint64_t n = MIN (len, MAX (ROUND_DOWN (ZERO_MAX, (uint64_t) img->min),
                                (uint64_t) img->min));

    result = change (img, REQ_ZERO, NULL, 0, n, off, flags);
    off += n;
    len -= n;
  }
  turn_end (img, false);
  return result;
}

static int
image_zero (struct backing *b, uint64_t len, uint64_t off, bool may_trim,
            bool fast)
{
  struct nbd_image *img = (struct nbd_image *) b;
  uint64_t min = img->min;
  uint64_t head = MIN ((min - off % min) % min, len);
  uint64_t whole = ROUND_DOWN (len - head, min);
  uint64_t tail = len - head - whole;
  uint32_t flags = (may_trim ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
    (fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);

  if (fast && !(img->can_zero && img->can_fast_zero)) {
    errno = ENOTSUP;
    return -1;
  }
  if (whole > 0) {
    int result = -1;

    errno = ENOTSUP;
    if (img->can_zero)
      result = zero_whole (img, whole, off + head, flags);
    if (result == -1 && !fast && (errno == ENOTSUP || errno == EINVAL))
      result = write_zeroes (img, whole, off + head);
    if (result == -1)
      return -1;
  }
  if (head > 0 && write_partial (img, NULL, head, off) == -1)
    return -1;
  return tail > 0 ? write_partial (img, NULL, tail, off + head + whole) : 0;
}

static int
image_flush (struct backing *b)
{
  struct nbd_image *img = (struct nbd_image *) b;
  uint64_t acked, losses;

  {
    SCOPED_LOCK (&img->lock);
    if (img->lost) {
      errno = EIO;
      return -1;
    }
    acked = img->acked;
    losses = img->losses;
  }
  if (harmless (img, REQ_FLUSH, NULL, 0, 0) == -1) {
    if (errno == ENOTSUP)
      errno = EIO;
    return -1;
  }
  SCOPED_LOCK (&img->lock);
  /* With nothing to lose a new connection will do: the flush was answered on it. */
  if (img->lost) {
    errno = EIO;
    return -1;
  }
  if (img->losses == losses)
    img->flushed = MAX (img->flushed, acked);
  return 0;
}

static void
image_restart (struct backing *b)
{
  struct nbd_image *img = (struct nbd_image *) b;
  SCOPED_LOCK (&img->lock);

  img->lost = false;
  img->flushed = img->acked;
}

static void
image_stop (struct backing *b)
{
  struct nbd_image *img = (struct nbd_image *) b;
  SCOPED_LOCK (&img->lock);

  img->deadline = host_monotonic_ns () + STOP_MS * UINT64_C (1000000);
  pthread_cond_broadcast (&img->changed);
}

/* --- life ---------------------------------------------------------------------------- */

static void
image_close (struct backing *b)
{
  struct nbd_image *img = (struct nbd_image *) b;

  nbd_image_disconnect (img);
  (void) pthread_cond_destroy (&img->changed);
  (void) pthread_mutex_destroy (&img->lock);
  free (img->b.path);
  free (img);
}

static const struct backing_ops image_ops = {
  .close = image_close,
  .pread = image_pread,
  .pwritev = image_pwritev,
  .zero = image_zero,
  .flush = image_flush,
  .cache = image_cache,
  .extent = image_extent,
  .restart = image_restart,
  .stop = image_stop,
};

static int
init_sync (struct nbd_image *img)
{
  pthread_condattr_t attr;
  int e = pthread_condattr_init (&attr);

  if (e == 0)
    e = pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  if (e == 0)
    e = pthread_cond_init (&img->changed, &attr);
  if (e == 0)
    e = pthread_mutex_init (&img->lock, NULL);
  if (e != 0) {
    errno = e;
    return -1;
  }
  (void) pthread_condattr_destroy (&attr);
  return 0;
}

int
backing_nbd_open (const char *uri, bool create, uint64_t size,
                  struct backing **backing, struct mcerror *err)
{
  struct nbd_image *img = calloc (1, sizeof *img);

  if (img == NULL || (img->b.path = strdup (uri)) == NULL ||
      init_sync (img) == -1) {
    mcerror_set (err, MCEXIT_USAGE, "%s: %m", uri);
    if (img)
      free (img->b.path);
    free (img);
    return -1;
  }
  img->b.ops = &image_ops;
  if (nbd_image_connect (img, err) == -1) {
    backing_close (&img->b);
    return -1;
  }
  if (create && img->b.size != size) {
    errno = EINVAL;
    mcerror_set (err, MCEXIT_USAGE,
                 "%s: the export has %llu bytes, size= says %llu: leave size= out, or name another export",
                 uri, (unsigned long long) img->b.size,
                 (unsigned long long) size);
    backing_close (&img->b);
    return -1;
  }
  *backing = &img->b;
  return 0;
}
