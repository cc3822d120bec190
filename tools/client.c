/* SPDX-License-Identifier: BSD-3-Clause */
/* What both ways in have in common: which one a TARGET means, what may be
 * sent, and what makes a line an answer.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/uri.h"
#include "tools/client.h"
#include "tools/secret.h"

struct client {
  const struct client_ops *ops;
  const char *target;           /* the caller's */
  void *handle;
  json_t *object;               /* of the last answer */
  bool broken, lost;
};

bool
client_is_uri (const char *target)
{
  return uri_is_nbd (target);
}

/* Give the server the secret, if there is one. */
static int
authorise (struct client *c, const char *option, struct mcerror *err)
{
  CLEANUP_FREE char *secret = NULL, *request = NULL;
  struct answer answer;
  int n, r;

  if (secret_get (option, &secret, err) == -1)
    return -1;
  if (secret == NULL)
    return 0;
  n = asprintf (&request, "auth %s", secret);
  explicit_bzero (secret, strlen (secret));
  if (n == -1) {
    request = NULL;
    return mcerror_set (err, MCEXIT_USAGE, "%s: %m", c->target);
  }
  r = client_call (c, request, n, &answer, err);
  explicit_bzero (request, n);
  return r;
}

struct client *
client_open (const char *target, const char *option, struct mcerror *err)
{
  struct client *c = calloc (1, sizeof *c);

  if (c == NULL) {
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: %m", target);
    return NULL;
  }
  c->target = target;
  c->ops = client_is_uri (target) ? &client_nbd_ops : &client_unix_ops;
  c->handle = c->ops->open (target, err);
  if (c->handle == NULL) {
    int saved = errno;

    free (c);
    errno = saved;
    return NULL;
  }
  /* On the local socket it is the user that counts. */
  if (c->ops == &client_nbd_ops && authorise (c, option, err) == -1) {
    client_close (c);
    errno = EPERM;
    return NULL;
  }
  return c;
}

void
client_close (struct client *c)
{
  if (c == NULL)
    return;
  json_decref (c->object);
  c->ops->close (c->handle);
  free (c);
}

bool
client_is_broken (const struct client *c)
{
  return c->broken;
}

bool
client_is_lost (const struct client *c)
{
  return c->lost;
}

/* The refusal in OBJECT to ERR. */
static int
refusal (const json_t *object, const json_t *text, struct mcerror *err)
{
  const json_t *code = json_object_get (object, "code");
  json_int_t n = json_is_integer (code) ? json_integer_value (code)
                                        : MCEXIT_REFUSED;

  /* A refusal is never a success, whatever number came with it. */
  if (n < MCEXIT_USAGE || n > MCEXIT_PARTIAL)
    n = MCEXIT_REFUSED;
  return mcerror_set (err, (enum mcexit) n, "%s",
                      json_string_length (text) > 0 ? json_string_value (text)
                                                    : "refused without a reason");
}

int
client_call (struct client *c, const char *request, size_t len,
             struct answer *answer, struct mcerror *err)
{
  const json_t *text;
  json_error_t where;
  const char *line;
  bool failed = false;

  answer->line = NULL;
  answer->object = NULL;
  json_decref (c->object);
  c->object = NULL;

  if (len == 0)
    return mcerror_set (err, MCEXIT_USAGE, "empty request: give a verb");
  if (len > CLIENT_REQUEST_MAX)
    return mcerror_set (err, MCEXIT_USAGE, "request of %zu bytes: "
                        "at most %u can be sent", len, CLIENT_REQUEST_MAX);

  if (c->ops->call (c->handle, request, len, &line, &failed, err) == -1) {
    c->lost = errno == ECONNRESET;
    c->broken = true;
    return -1;
  }

  c->object = json_loads (line, JSON_REJECT_DUPLICATES, &where);
  if (!json_is_object (c->object)) {
    c->broken = true;
    return mcerror_set (err, MCEXIT_USAGE, "%s: the answer is not a line of "
                        "JSON (\"%.40s\"): is an mcbuf server behind it?",
                        c->target, line);
  }
  text = json_object_get (c->object, "error");
  if (text == NULL && failed) {
    /* The reply that is kept there is not about this request. */
    c->broken = true;
    return mcerror_set (err, MCEXIT_USAGE, "%s: the request failed and the "
                        "server kept no reason: ask again", c->target);
  }
  answer->line = line;
  answer->object = c->object;
  return text ? refusal (c->object, text, err) : 0;
}
