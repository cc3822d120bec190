/* SPDX-License-Identifier: BSD-3-Clause */
/* Talk to a replica's control: requests out, one line of JSON back for each.
 *
 * TARGET is a journal directory (the Unix socket TARGET/control) or an NBD
 * URI (the export mcbuf-control of that server).  One struct of operations,
 * one file for each way in: client-unix.c, client-nbd.c.
 *
 * Ownership: a client belongs to one thread.  Errors: NULL or -1 with a
 * struct mcerror filled.
 */
#ifndef MCBUF_TOOLS_CLIENT_H
#define MCBUF_TOOLS_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "common/mcerror.h"

#define CLIENT_REQUEST_MAX 65535u       /* bytes; the control export holds 64 KiB */
#define CLIENT_REPLY_MAX (64u << 20)    /* bytes; a "list" of some 500 000 checkpoints */

struct client;

/* An answer.  Both stay valid until the next call on the client. */
struct answer {
  const char *line;             /* as it came, without newline; NULL: there was none */
  json_t *object;               /* LINE parsed, borrowed; NULL without LINE */
};

/* Is TARGET an NBD URI, going by its scheme? */
extern bool client_is_uri (const char *target);

/* Connect.  With a URI, and if there is a secret (secret.h; OPTION is what --secret= said,
 * or NULL), it is given to the server first.  NULL with errno ECONNREFUSED when TARGET is a
 * directory where no server listens; any other errno for any other failure.  ERR is filled in
 * each case.
 */
extern struct client *client_open (const char *target, const char *option,
                                   struct mcerror *err);
extern void client_close (struct client *c);    /* NULL is allowed */

/* Send a request of LEN bytes without newline, wait for its answer for as
 * long as it takes.  0: carried out.  -1 with ERR: refused (ANSWER->line is the refusal,
 * ERR its text and code), or no answer that can be used (ANSWER->line is NULL; the client
 * is of no more use, except after a request that was too long or empty).
 */
extern int client_call (struct client *c, const char *request, size_t len,
                        struct answer *answer, struct mcerror *err);

/* Of no more use: a call lost the connection. */
extern bool client_is_broken (const struct client *c);

/* … because the server hung up before it had answered: it ends, or is dying. */
extern bool client_is_lost (const struct client *c);

/* --- For the backends ----------------------------------------------------- */

struct client_ops {
  /* Connect; NULL with errno and ERR. */
  void *(*open) (const char *target, struct mcerror *err);
  void (*close) (void *handle);
  /* Send REQUEST, receive *LINE: owned by the handle until the next call, one
   * line, no newline.  *FAILED: the transport itself said that the request was refused.
   * -1 with ERR when the connection is of no more use; errno is ECONNRESET when the peer hung up.
   */
  int (*call) (void *handle, const char *request, size_t len,
               const char **line, bool *failed, struct mcerror *err);
};

extern const struct client_ops client_unix_ops, client_nbd_ops;

#endif /* MCBUF_TOOLS_CLIENT_H */
