/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections to the server of an NBD export; see backing-nbd.h.
 *
 * libnbd is loaded when the first such image is opened: mcbuf-recover and the plugin do without
 * otherwise.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/host.h"
#include "common/library.h"
#include "replica/backing-nbd.h"

#define LIBRARY "libnbd.so.0"
#define CONTEXT "base:allocation"

#define CONNECT_MS 10000        /* for connection and handshake */
#define LOOK_MS 3000            /* is anything there? */
#define GROW_MS 2000            /* for one more beside those that there are */
#define POLL_MS 500             /* how often a request looks at the deadline */
#define RETRY_MS 100            /* between attempts to connect */

/* A host that is gone without a word is found out in so many seconds. */
#define KEEPALIVE_IDLE_S 10
#define KEEPALIVE_EVERY_S 5
#define KEEPALIVE_COUNT 4
#define USER_TIMEOUT_MS 30000

#define MAX_TRANSFER (UINT32_C (32) << 20)      /* the protocol's default */

struct nbd_functions nbd_lib;
static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;
static bool library_loaded;

static int
load (const char *uri, struct mcerror *err)
{
  const struct library_function fn[] = {
#define F(name) { "nbd_" #name, &nbd_lib.name },
    NBD_FUNCTIONS (F)
#undef F
  };
  const char *why;
  SCOPED_LOCK (&library_lock);

  if (!library_loaded &&
      library_load (LIBRARY, fn, sizeof fn / sizeof fn[0], &why) == -1)
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: cannot load %s: %s: install libnbd 1.14 or newer",
                        uri, LIBRARY, why);
  library_loaded = true;
  return 0;
}

/* Errors of a server, or of libnbd, as callers of backing.h know them. */
static int
known_errno (int e)
{
  switch (e) {
  case ENOSPC: case ENOMEM: case EPERM: case EACCES: case EINVAL:
  case ENOTSUP: case ENOENT: case ETIMEDOUT: case ENOTCONN: case EPIPE:
  case ECONNREFUSED: case ECONNRESET: case EHOSTUNREACH: case ENETUNREACH:
    return e;
  default:
    return EIO;
  }
}

/* --- making one ------------------------------------------------------------------ */

static void
keep_alive (int fd)
{
  static const struct { int level, option, value; } options[] = {
    { SOL_SOCKET, SO_KEEPALIVE, 1 },
    { IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S },
    { IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_EVERY_S },
    { IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT },
    { IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS },
  };
  int domain;
  socklen_t len = sizeof domain;

  if (getsockopt (fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == -1 ||
      (domain != AF_INET && domain != AF_INET6))
    return;
  /* Without them it takes longer, that is all. */
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
    (void) setsockopt (fd, options[i].level, options[i].option,
                       &options[i].value, sizeof options[i].value);
}

/* Connect H.  UNTIL: monotonic ns. */
static int
handshake (struct nbd_handle *h, const char *uri, uint64_t until)
{
  if (nbd_lib.set_uri_allow_local_file (h, true) == -1 ||
      nbd_lib.set_pread_initialize (h, false) == -1 ||
      nbd_lib.add_meta_context (h, CONTEXT) == -1 ||
      nbd_lib.aio_connect_uri (h, uri) == -1)
    return -1;
  while (nbd_lib.aio_is_ready (h) != 1) {
    if (nbd_lib.aio_is_dead (h) != 0 || nbd_lib.aio_is_closed (h) != 0)
      return -1;
    if (host_monotonic_ns () >= until) {
      errno = ETIMEDOUT;
      return 1;
    }
    if (nbd_lib.poll (h, 100) == -1)
      return -1;
  }
  return 0;
}

/* What libnbd says, without the name of its function. */
static const char *
reason (void)
{
  const char *why = nbd_lib.get_error (), *colon;

  if (why == NULL)
    return "libnbd gives no reason";
  colon = strncmp (why, "nbd_", 4) == 0 ? strstr (why, ": ") : NULL;
  return colon ? colon + 2 : why;
}

static struct nbd_handle *
connect_uri (const char *uri, unsigned ms, struct mcerror *err)
{
  struct nbd_handle *h = nbd_lib.create ();
  int r = -1, e;

  if (h)
    r = handshake (h, uri, host_monotonic_ns () + ms * UINT64_C (1000000));
  if (r == 0) {
    keep_alive (nbd_lib.aio_get_fd (h));
    return h;
  }
  if (r == 1) {
    e = ETIMEDOUT;
    mcerror_set (err, MCEXIT_USAGE,
                 "%s: the backing image's server does not answer within %u s: "
                 "is it well, and does it take one more client?", uri, ms / 1000);
  }
  else {
    e = known_errno (nbd_lib.get_errno ());
    mcerror_set (err, MCEXIT_USAGE, "%s: cannot open the backing image: %s", uri,
                 reason ());
  }
  if (h)
    nbd_lib.close (h);
  errno = e;
  return NULL;
}

int
backing_nbd_exists (const char *uri)
{
  struct nbd_handle *h;

  if (load (uri, NULL) == -1)
    return -1;
  h = connect_uri (uri, LOOK_MS, NULL);
  if (h)
    nbd_lib.close (h);
  return h != NULL;
}

struct export {
  uint64_t size;
  uint32_t min, max;
};

static int
look_at (struct nbd_handle *h, struct export *e)
{
  int64_t size = nbd_lib.get_size (h);
  int64_t min = nbd_lib.get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t max = nbd_lib.get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size == -1 || min == -1 || max == -1) {
    errno = EIO;
    return -1;
  }
  e->size = size;
  e->min = min == 0 ? 1 : min;
  e->max = max == 0 || max > MAX_TRANSFER ? MAX_TRANSFER : max;
  e->max = MAX (ROUND_DOWN (e->max, e->min), e->min);
  return 0;
}

/* One more, of the same export as before. */
static struct nbd_handle *
connect_again (const struct nbd_image *img, unsigned ms)
{
  struct nbd_handle *h = connect_uri (img->b.path, ms, NULL);
  struct export e;

  if (h == NULL)
    return NULL;
  if (look_at (h, &e) == 0 && e.size == img->b.size && img->min % e.min == 0 &&
      e.max >= img->max && nbd_lib.is_read_only (h) == 0 &&
      nbd_lib.can_flush (h) == 1)
    return h;
  nbd_lib.close (h);
  errno = ESTALE;               /* not what was there when the replica was opened */
  return NULL;
}

static int
refuse_export (const struct nbd_image *img, struct mcerror *err,
               const char *what)
{
  errno = EINVAL;
  return mcerror_set (err, MCEXIT_USAGE, "%s: %s", img->b.path, what);
}

int
nbd_image_connect (struct nbd_image *img, struct mcerror *err)
{
  struct nbd_handle *h;
  struct export e;

  if (load (img->b.path, err) == -1)
    return -1;
  h = connect_uri (img->b.path, CONNECT_MS, err);
  if (h == NULL)
    return -1;
  img->conn[0].h = h;
  img->conn[0].fd = nbd_lib.aio_get_fd (h);
  img->max_conns = nbd_lib.can_multi_conn (h) == 1 ? NBD_CONNS : 1;
  if (look_at (h, &e) == -1)
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: cannot learn the size of the export: %s",
                        img->b.path, reason ());
  if (nbd_lib.is_read_only (h) != 0)
    return refuse_export (img, err, "the export is read-only: serve it for writing");
  if (nbd_lib.can_flush (h) != 1)
    return refuse_export (img, err, "the server cannot flush, so nothing in it would ever be durable: "
                          "use another server, or another setting of its cache");
  if (e.size == 0)
    return refuse_export (img, err, "the export is empty: give it the size of the primary's disk");
  if ((e.min & (e.min - 1)) != 0 || e.size % e.min != 0) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the export has %" PRIu64 " bytes, which is no multiple of its minimum block size %u",
                        img->b.path, e.size, e.min);
  }
  img->b.size = e.size;
  img->min = e.min;
  img->max = e.max;
  img->can_zero = nbd_lib.can_zero (h) == 1;
  img->can_fast_zero = nbd_lib.can_fast_zero (h) == 1;
  img->can_cache = nbd_lib.can_cache (h) == 1;
  img->can_extents = nbd_lib.can_meta_context (h, CONTEXT) == 1;
  return 0;
}

void
nbd_image_disconnect (struct nbd_image *img)
{
  for (unsigned i = 0; i < NBD_CONNS; i++) {
    if (img->conn[i].h)
      nbd_lib.close (img->conn[i].h);
    free (img->conn[i].bounce);
  }
}

/* --- losing one ------------------------------------------------------------------ */

/* The server may have been restarted: no connection that exists is good any more. */
static void
lose_locked (struct nbd_image *img)
{
  img->losses++;
  if (img->acked != img->flushed)
    img->lost = true;
  for (unsigned i = 0; i < NBD_CONNS; i++) {
    struct nbd_conn *c = &img->conn[i];

    if (c->h == NULL)
      continue;
    /* Who waits for an answer on it will get none. */
    (void) shutdown (c->fd, SHUT_RDWR);
    c->lost = true;
  }
  pthread_cond_broadcast (&img->changed);
}

static bool
hung_up (const struct nbd_conn *c)
{
  struct pollfd p = { .fd = c->fd, .events = POLLRDHUP };

  /* What can be read means nothing: TLS sends more than answers. */
  return poll (&p, 1, 0) == 1 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

/* --- one for a request ------------------------------------------------------------ */

static void
wait_locked (struct nbd_image *img, uint64_t ns)
{
  struct timespec ts = { .tv_sec = ns / 1000000000,
                         .tv_nsec = ns % 1000000000 };

  /* A timeout and a wake-up both mean: look again. */
  (void) pthread_cond_timedwait (&img->changed, &img->lock, &ts);
}

/* An idle one that is good, or a place for a new one; NULL: neither.  Closes those that are not good. */
static struct nbd_conn *
find_locked (struct nbd_image *img)
{
  struct nbd_conn *place = NULL;

  for (unsigned i = 0; i < NBD_CONNS; i++) {
    struct nbd_conn *c = &img->conn[i];

    if (c->h && !c->busy && !c->lost && hung_up (c))
      lose_locked (img);
  }
  for (unsigned i = 0; i < NBD_CONNS; i++) {
    struct nbd_conn *c = &img->conn[i];

    if (c->busy)
      continue;
    if (c->h && c->lost) {
      nbd_lib.close (c->h);
      c->h = NULL;
      c->lost = false;
    }
    if (c->h)
      return c;
    if (place == NULL && i < img->max_conns)
      place = c;
  }
  return place;
}

static bool
others_locked (const struct nbd_image *img)
{
  for (unsigned i = 0; i < NBD_CONNS; i++)
    if (img->conn[i].h && !img->conn[i].lost)
      return true;
  return false;
}

/* Connect at place C, which is busy.  The lock is let go meanwhile.  -1: not now. */
static int
grow_locked (struct nbd_image *img, struct nbd_conn *c)
{
  unsigned ms = others_locked (img) ? GROW_MS : CONNECT_MS;
  uint64_t losses = img->losses;
  struct nbd_handle *h;
  int saved;

  pthread_mutex_unlock (&img->lock);
  h = connect_again (img, ms);
  saved = errno;
  pthread_mutex_lock (&img->lock);
  if (h && img->losses != losses) {
    /* Perhaps to the server that is gone by now. */
    nbd_lib.close (h);
    return 0;
  }
  if (h) {
    c->h = h;
    c->fd = nbd_lib.aio_get_fd (h);
    return 0;
  }
  if (others_locked (img)) {
    /* The server takes no more clients: do with those that there are. */
    img->max_conns = 0;
    for (unsigned i = 0; i < NBD_CONNS; i++)
      if (img->conn[i].h)
        img->max_conns = i + 1;
    return 0;
  }
  img->retry_at = host_monotonic_ns () + RETRY_MS * UINT64_C (1000000);
  errno = saved;
  return -1;
}

struct nbd_conn *
nbd_conn_get (struct nbd_image *img, uint64_t *losses)
{
  SCOPED_LOCK (&img->lock);

  for (;;) {
    struct nbd_conn *c = find_locked (img);

    if (img->deadline && host_monotonic_ns () >= img->deadline) {
      errno = ETIMEDOUT;
      return NULL;
    }
    if (c == NULL) {
      wait_locked (img, host_monotonic_ns () + POLL_MS * UINT64_C (1000000));
      continue;
    }
    if (c->h == NULL) {
      int r;

      if (host_monotonic_ns () < img->retry_at && !others_locked (img)) {
        wait_locked (img, img->retry_at);
        continue;
      }
      c->busy = true;
      r = grow_locked (img, c);
      c->busy = false;
      pthread_cond_broadcast (&img->changed);
      if (r == -1)
        return NULL;
      continue;
    }
    c->busy = true;
    *losses = img->losses;
    return c;
  }
}

bool
nbd_conn_put (struct nbd_image *img, struct nbd_conn *c)
{
  int saved = errno;
  SCOPED_LOCK (&img->lock);
  bool lost = c->lost;

  c->busy = false;              /* if it is lost, the next one closes it */
  pthread_cond_broadcast (&img->changed);
  errno = saved;
  return lost;
}

int
nbd_conn_wait (struct nbd_image *img, struct nbd_conn *c, int64_t cookie)
{
  int r = -1, e = 0;

  while (cookie != -1) {
    r = nbd_lib.aio_command_completed (c->h, cookie);
    if (r != 0)
      break;
    if (nbd_lib.poll (c->h, POLL_MS) == -1)
      e = known_errno (nbd_lib.get_errno ());
    else {
      SCOPED_LOCK (&img->lock);
      if (img->deadline && host_monotonic_ns () >= img->deadline)
        e = ETIMEDOUT;
    }
    if (e) {
      r = -1;
      break;
    }
  }
  if (r == 1)
    return 0;
  if (e == 0) {
    e = known_errno (nbd_lib.get_errno ());
    if (nbd_lib.aio_is_dead (c->h) == 0 && nbd_lib.aio_is_closed (c->h) == 0) {
      errno = e;                /* the server's own answer */
      return -1;
    }
  }
  {
    SCOPED_LOCK (&img->lock);
    if (!c->lost)
      lose_locked (img);
  }
  errno = e == ENOTSUP || e == EINVAL ? EIO : e;
  return -1;
}
