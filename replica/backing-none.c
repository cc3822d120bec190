/* SPDX-License-Identifier: BSD-3-Clause */
/* In the place of an image that is lost, of a disk that leaves: writes go nowhere.
 *
 * It reads as something that no image is likely to hold, so that samples taken of it are never
 * those of an image that comes back.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/backing-impl.h"

static void
none_close (struct backing *b)
{
  free (b->path);
  free (b);
}

static int
none_pread (struct backing *b, void *buf, size_t len, uint64_t off)
{
  static const char text[] = "mcbuf: no image ";        /* 16 */
  uint8_t *to = buf;

  (void) b;
  for (size_t i = 0; i < len; i++)
    to[i] = text[(off + i) % 16];
  return 0;
}

static int
none_pwritev (struct backing *b, struct iovec *iov, int n, uint64_t off)
{
  (void) b, (void) iov, (void) n, (void) off;
  return 0;
}

static int
none_zero (struct backing *b, uint64_t len, uint64_t off, bool may_trim,
           bool fast)
{
  (void) b, (void) len, (void) off, (void) may_trim, (void) fast;
  return 0;
}

static int
none_flush (struct backing *b)
{
  (void) b;
  return 0;
}

static int
none_cache (struct backing *b, uint64_t len, uint64_t off)
{
  (void) b, (void) len, (void) off;
  return 0;
}

static int
none_extent (struct backing *b, uint64_t off, uint64_t max, uint64_t *len,
             bool *hole)
{
  *len = MIN (max, b->size - off);
  *hole = false;
  return 0;
}

static const struct backing_ops none_ops = {
  .outlives = true,
  .close = none_close,
  .pread = none_pread,
  .pwritev = none_pwritev,
  .zero = none_zero,
  .flush = none_flush,
  .cache = none_cache,
  .extent = none_extent,
};

int
backing_none (const char *path, uint64_t size, struct backing **backing)
{
  struct backing *b = calloc (1, sizeof *b);

  if (b == NULL)
    return -1;
  b->ops = &none_ops;
  b->size = size;
  b->path = strdup (path);
  if (b->path == NULL) {
    free (b);
    errno = ENOMEM;
    return -1;
  }
  *backing = b;
  return 0;
}
