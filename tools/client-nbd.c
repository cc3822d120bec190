/* SPDX-License-Identifier: BSD-3-Clause */
/* The way in from elsewhere: the NBD export mcbuf-control.  A write at offset
 * 0 carries the request and returns when it is carried out; a read at offset
 * 0 gives the reply, NUL-padded, also after a refusal.
 *
 * libnbd is loaded here and only here, when it is needed: a program linked
 * with it takes ten times as long to start as one that is not.
 */
#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "common/library.h"
#include "tools/client.h"

#define LIBRARY "libnbd.so.0"
#define EXPORT_NAME "mcbuf-control"
#define EXPORT_SIZE 65536u
#define FIRST_READ 4096u        /* nearly every reply fits */

/* Every function of libnbd that is used. */
#define NBD_FUNCTIONS(F)                                                \
  F (create) F (close) F (get_error) F (get_errno)                      \
  F (set_opt_mode) F (set_uri_allow_local_file) F (connect_uri)         \
  F (set_export_name) F (opt_go) F (get_size) F (pwrite) F (pread)      \
  F (aio_is_ready) F (aio_disconnect)

struct nbd_functions {
#define F(name) __typeof__ (&nbd_##name) name;
  NBD_FUNCTIONS (F)
#undef F
};

struct nbd_client {
  struct nbd_functions nbd;
  struct nbd_handle *h;
  const char *target;
  char buf[EXPORT_SIZE + 1];
};

static void
nbd_client_close (void *handle)
{
  struct nbd_client *n = handle;

  /* No nbd_shutdown, which would wait for a server that hangs.  Just to say
   * goodbye keeps the server from logging a TLS connection that was cut.
   */
  if (n->h) {
    if (n->nbd.aio_is_ready (n->h) == 1)
      (void) n->nbd.aio_disconnect (n->h, 0);
    n->nbd.close (n->h);
  }
  free (n);
}

static int
load (struct nbd_client *n, struct mcerror *err)
{
  const struct library_function fn[] = {
#define F(name) { "nbd_" #name, &n->nbd.name },
    NBD_FUNCTIONS (F)
#undef F
  };
  const char *why;

  if (library_load (LIBRARY, fn, sizeof fn / sizeof fn[0], &why) == 0)
    return 0;
  return mcerror_set (err, MCEXIT_USAGE, "%s: cannot load %s: %s: install "
                      "libnbd 1.14 or newer, or give the journal directory on "
                      "the server's own host", n->target, LIBRARY, why);
}

/* Why libnbd failed; it says which of its functions and what errno. */
static int
failure (const struct nbd_client *n, const char *what, struct mcerror *err)
{
  const char *why = n->nbd.get_error ();

  return mcerror_set (err, MCEXIT_USAGE, "%s: %s: %s", n->target, what,
                      why ? why : "libnbd gives no reason");
}

static void *
nbd_client_open (const char *target, struct mcerror *err)
{
  struct nbd_client *n = calloc (1, sizeof *n);
  int64_t size;

  if (n == NULL) {
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: %m", target);
    return NULL;
  }
  n->target = target;
  if (load (n, err) == -1)
    goto error;

  /* TARGET comes from the command line, so it may name TLS files.  In option
   * mode the URI's own export is never opened.
   */
  n->h = n->nbd.create ();
  if (n->h == NULL ||
      n->nbd.set_uri_allow_local_file (n->h, true) == -1 ||
      n->nbd.set_opt_mode (n->h, true) == -1 ||
      n->nbd.connect_uri (n->h, target) == -1) {
    (void) failure (n, "cannot connect", err);
    goto error;
  }
  if (n->nbd.set_export_name (n->h, EXPORT_NAME) == -1 ||
      n->nbd.opt_go (n->h) == -1) {
    (void) failure (n, n->nbd.get_errno () == ENOTSUP ?
                    "cannot open the export " EXPORT_NAME ", does the server "
                    "want TLS (nbds:// instead of nbd://)" :
                    "cannot open the export " EXPORT_NAME ", is an mcbuf "
                    "server behind it", err);
    goto error;
  }

  /* Some servers give a disk whatever name is asked for: never write a request
   * to a disk.
   */
  size = n->nbd.get_size (n->h);
  if (size != EXPORT_SIZE) {
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: its export " EXPORT_NAME
                        " has %lld bytes and not %u: this is not an mcbuf "
                        "server", target, (long long) size, EXPORT_SIZE);
    goto error;
  }
  return n;

 error:
  nbd_client_close (n);
  errno = EIO;                  /* anything but ECONNREFUSED, see client_open */
  return NULL;
}

static int
nbd_client_call (void *handle, const char *request, size_t len,
                 const char **line, bool *failed, struct mcerror *err)
{
  struct nbd_client *n = handle;
  char *end;

  *failed = n->nbd.pwrite (n->h, request, len, 0, 0) == -1;
  if (*failed && n->nbd.aio_is_ready (n->h) != 1)
    return failure (n, "connection lost, whether the request was carried out "
                    "is not known", err);

  if (n->nbd.pread (n->h, n->buf, FIRST_READ, 0, 0) == -1 ||
      (memchr (n->buf, '\0', FIRST_READ) == NULL &&
       n->nbd.pread (n->h, n->buf + FIRST_READ, EXPORT_SIZE - FIRST_READ,
                     FIRST_READ, 0) == -1))
    return failure (n, "cannot read the answer, whether the request was "
                    "carried out is not known", err);
  n->buf[EXPORT_SIZE] = '\0';
  if (n->buf[EXPORT_SIZE - 1] != '\0' && n->buf[EXPORT_SIZE - 1] != '\n' &&
      n->buf[EXPORT_SIZE - 1] != '}')
    return mcerror_set (err, MCEXIT_USAGE, "%s: the answer is longer than the "
                        "control export holds: ask on the server's own host, "
                        "by its journal directory", n->target);
  end = strchr (n->buf, '\n');
  if (end)
    *end = '\0';
  *line = n->buf;
  return 0;
}

const struct client_ops client_nbd_ops = {
  .open = nbd_client_open,
  .close = nbd_client_close,
  .call = nbd_client_call,
};
