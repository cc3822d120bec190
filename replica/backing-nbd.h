/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside backing images that are NBD exports; for backing-nbd*.c only.
 *
 * backing-nbd.c has the requests: splitting, alignment, what is durable.
 * backing-nbd-conn.c has the connections.
 *
 * CONNECTIONS.  One, or up to NBD_CONNS where the server says that a flush on one of them is good
 * for all (multi-conn).  Each carries one request at a time and belongs to its request
 * meanwhile (busy): no lock is held across I/O, and who has it need not ask who else.  They
 * live and die together: when one is lost the server may have been restarted, so all are.  The
 * loss is counted, and the next request connects anew.
 *
 * WHAT MAY BE LOST.  A write is *acknowledged* when the server has answered, *flushed* when a flush
 * that began later has been answered with no connection lost in between.  When one is
 * lost while writes are acknowledged and not flushed, LOST is set; writes and flushes
 * then fail until backing_restart.  A write that was under way on a lost connection fails
 * and is not sent again from here: whoever sent it knows what that means.
 */
#ifndef MCBUF_REPLICA_BACKING_NBD_H
#define MCBUF_REPLICA_BACKING_NBD_H

#include <pthread.h>

#include <libnbd.h>

#include "replica/backing-impl.h"

#define NBD_CONNS 4
#define NBD_BOUNCE (1u << 20)           /* bytes of a connection's own buffer */

/* Every function of libnbd that is used. */
#define NBD_FUNCTIONS(F)                                                \
  F (create) F (close) F (get_error) F (get_errno)                      \
  F (set_uri_allow_local_file) F (set_pread_initialize)                 \
  F (add_meta_context) F (aio_connect_uri) F (poll)                     \
  F (aio_is_ready) F (aio_is_dead) F (aio_is_closed) F (aio_get_fd)     \
  F (get_size) F (get_block_size) F (is_read_only) F (can_flush)        \
  F (can_zero) F (can_fast_zero) F (can_cache) F (can_multi_conn)       \
  F (can_meta_context)                                                  \
  F (aio_command_completed) F (aio_pread) F (aio_pwrite) F (aio_zero)   \
  F (aio_flush) F (aio_cache) F (aio_block_status)

struct nbd_functions {
#define F(name) __typeof__ (&nbd_##name) name;
  NBD_FUNCTIONS (F)
#undef F
};
/* Valid once nbd_image_connect, or backing_nbd_exists, has been called. */
extern struct nbd_functions nbd_lib;

struct nbd_conn {
  struct nbd_handle *h;         /* NULL: not connected */
  int fd;
  bool busy;                    /* belongs to a request */
  bool lost;                    /* busy, and no good any more */
  uint8_t *bounce;              /* NBD_BOUNCE bytes, or NULL */
};

struct nbd_image {
  struct backing b;

  /* Set by the first connection, then constant. */
  uint32_t min;                 /* every request is a multiple of this */
  uint32_t max;                 /* bytes of a read or write, a multiple of min */
  bool can_zero, can_fast_zero, can_cache, can_extents;

  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t changed;
  struct nbd_conn conn[NBD_CONNS];
  unsigned max_conns;
  uint64_t losses;              /* counts them */
  uint64_t acked, flushed;      /* writes */
  bool lost;                    /* acknowledged writes may be gone */
  uint64_t retry_at;            /* monotonic ns: no new connection before */
  uint64_t deadline;            /* monotonic ns, 0: none; see backing_stop */
  /* With min > 1: writes of whole blocks, and who changes a part of one keeps all others out. */
  unsigned writers;
  bool partial;
};

/* --- backing-nbd-conn.c ----------------------------------------------------- */

/* Make the first connection and learn about the export.  -1 with ERR filled. */
extern int nbd_image_connect (struct nbd_image *img, struct mcerror *err);
/* Close them all; nobody uses any. */
extern void nbd_image_disconnect (struct nbd_image *img);

/* A connection for one request: waits for one to be free, makes new ones.  Adds what
 * was lost up to that moment to *LOSSES.  NULL with errno.
 */
extern struct nbd_conn *nbd_conn_get (struct nbd_image *img, uint64_t *losses);
/* Give it back.  True: it was lost meanwhile. */
extern bool nbd_conn_put (struct nbd_image *img, struct nbd_conn *c);

/* Wait for the answer to the request with COOKIE, which may be -1: it could not be
 * sent.  0; -1 with errno, and the connection marked if it is no good any more.
 */
extern int nbd_conn_wait (struct nbd_image *img, struct nbd_conn *c,
                          int64_t cookie);

#endif /* MCBUF_REPLICA_BACKING_NBD_H */
