/* SPDX-License-Identifier: BSD-3-Clause */
/* The control export, mcbuf-control: a write at offset 0 carries a request, a
 * read gives this connection's last reply, NUL-padded.
 *
 * With a secret, a connection's first request has to be "auth SECRET".  Until it
 * was, every other one is refused with EPERM.
 *
 * Threads: requests of one connection may come on several at once.  Errors: -1, and
 * nbdkit has been told why and which errno.
 */
#ifndef MCBUF_PLUGIN_CONTROL_H
#define MCBUF_PLUGIN_CONTROL_H

#include <stdint.h>

#include "common/secret.h"
#include "replica/replica.h"

struct control_client;

/* SECRET may be NULL: none is asked for.  It outlives the client.  NULL: nbdkit has been told. */
extern struct control_client *control_client_new (struct replica *r,
                                                  const struct secret *secret);
extern void control_client_free (struct control_client *c);     /* NULL is allowed */

extern int control_client_read (struct control_client *c, void *buf,
                                uint32_t count, uint64_t offset);
extern int control_client_write (struct control_client *c, const void *buf,
                                 uint32_t count, uint64_t offset);

#endif /* MCBUF_PLUGIN_CONTROL_H */
