/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "common/cleanup.h"
#include "plugin/control.h"

#define AUTH "auth "
#define AUTHORISED "{\"authorised\":true}"
#define WANTED                                                          \
  "{\"error\":\"this server's control-secret is needed first: give the " \
  "tool --secret=+FILE, or send auth SECRET\",\"code\":1}"
#define WRONG                                                           \
  "{\"error\":\"auth: this is not the server's control-secret\",\"code\":1}"

struct control_client {
  struct replica *replica;
  const struct secret *secret;
  uint64_t generation;          /* when it was opened */

  pthread_mutex_t lock;         /* guards what follows */
  bool authorised;
  char *reply;
};

struct control_client *
control_client_new (struct replica *r, const struct secret *secret)
{
  struct control_client *c = calloc (1, sizeof *c);

  if (c == NULL || pthread_mutex_init (&c->lock, NULL) != 0) {
    nbdkit_error ("cannot open the control export: out of memory");
    free (c);
    return NULL;
  }
  c->replica = r;
  c->secret = secret;
  c->generation = replica_get_generation (r);
  c->authorised = secret == NULL;
  return c;
}

void
control_client_free (struct control_client *c)
{
  if (c == NULL)
    return;
  (void) pthread_mutex_destroy (&c->lock);
  free (c->reply);
  free (c);
}

int
control_client_read (struct control_client *c, void *buf, uint32_t count,
                     uint64_t offset)
{
  size_t len, n = 0;
  SCOPED_LOCK (&c->lock);

  len = c->reply ? strlen (c->reply) : 0;
  if (offset < len)
    n = len - offset < count ? len - offset : count;
  if (n > 0)
    memcpy (buf, c->reply + offset, n);
  memset ((char *) buf + n, 0, count - n);
  return 0;
}

static bool
is_authorised (struct control_client *c)
{
  SCOPED_LOCK (&c->lock);

  return c->authorised;
}

/* The same answer with and without a secret to be right, so that a tool may
 * always begin with it.
 */
static int
authorise (struct control_client *c, const char *text, size_t len, char **reply)
{
  while (len > 0 && (text[len - 1] == '\0' || text[len - 1] == '\n'))
    len--;
  if (c->secret && !secret_is (c->secret, text, len)) {
    *reply = strdup (WRONG);
    errno = EPERM;
    return -1;
  }
  {
    SCOPED_LOCK (&c->lock);
    c->authorised = true;
  }
  *reply = strdup (AUTHORISED);
  return *reply ? 0 : -1;
}

static int
carry_out (struct control_client *c, const char *request, size_t len,
           char **reply)
{
  const size_t n = strlen (AUTH);

  if (len >= n && memcmp (request, AUTH, n) == 0)
    return authorise (c, request + n, len - n, reply);
  if (!is_authorised (c)) {
    *reply = strdup (WANTED);
    errno = EPERM;
    return -1;
  }
  return replica_control_since (c->replica, c->generation, request, len, reply);
}

int
control_client_write (struct control_client *c, const void *buf,
                      uint32_t count, uint64_t offset)
{
  char *reply = NULL;
  int r, errnum;

  if (offset != 0) {
    nbdkit_error ("a control request is written at offset 0");
    nbdkit_set_error (EINVAL);
    return -1;
  }
  r = carry_out (c, buf, count, &reply);
  errnum = errno;
  if (r == -1) {
    nbdkit_error ("control request refused: %s",
                  reply ? reply : strerror (errnum));
    nbdkit_set_error (errnum);
  }
  SCOPED_LOCK (&c->lock);
  free (c->reply);
  c->reply = reply;
  return r;
}
