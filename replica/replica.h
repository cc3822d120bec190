/* SPDX-License-Identifier: BSD-3-Clause */
/* A replica: one protected VM's disks, their journal and the rules about states.
 *
 * Life: replica_open (everything that can fail because of the user fails here, before
 * nbdkit forks), replica_run (threads), requests, replica_close.
 *
 * Threads: after replica_run every function but replica_close may be called from any thread.
 * Errors: -1 with errno; replica_open also fills a struct mcerror.
 */
#ifndef MCBUF_REPLICA_REPLICA_H
#define MCBUF_REPLICA_REPLICA_H

#include <stdarg.h>

#include "common/mcerror.h"
#include "journal/journal.h"

struct replica;

struct replica_disk_params {
  const char *name;             /* "" for the unnamed one */
  const char *path;             /* backing image; made absolute by replica_open */
  bool create;                  /* size= was given: make a missing image of SIZE bytes */
  bool leaves;                  /* it had SIZE bytes; its image may be lost (regroup.c) */
  uint64_t size;
};

enum replica_log_level { REPLICA_LOG_ERROR, REPLICA_LOG_INFO, REPLICA_LOG_DEBUG };
typedef void (*replica_log_fn) (void *opaque, enum replica_log_level level,
                                const char *line);

/* How much history is kept; both 0: none, write-out follows at once. */
struct replica_history {
  uint64_t checkpoints;         /* so many before the newest */
  uint64_t ns;                  /* or all that are no older than this */
};

struct replica_params {
  const struct io_fs *fs;       /* &io_posix */
  const char *dir;              /* the journal directory */
  const struct replica_disk_params *disks;
  unsigned ndisks;
  /* Disks that may join or leave a replica that is there, by name. */
  const char *const *add, *const *remove;
  unsigned nadd, nremove;
  uint64_t journal_size;        /* 0: the default; only looked at when the journal is made */
  uint64_t buffer;              /* staging, bytes; 0: the default */
  struct replica_history history;
  bool baseline_trusted;
  bool shared;                  /* staging in shared memory (a server); false: private (tests) */
  bool control;                 /* listen on DIR/control */
  replica_log_fn log;           /* may be NULL */
  void *log_opaque;
};

#define REPLICA_DEFAULT_JOURNAL_SIZE (UINT64_C (1) << 30)
#define REPLICA_DEFAULT_BUFFER (UINT64_C (256) << 20)
#define REPLICA_CONTROL_SIZE 65536u     /* of the control export, bytes */

extern int replica_open (const struct replica_params *params,
                         struct replica **replica, struct mcerror *err);
extern int replica_run (struct replica *r);
/* Clean stop: requests are refused from here on, speculation is saved and the clean mark
 * set, so that the next start goes on.  Other threads may still be in a request.
 */
extern void replica_stop (struct replica *r);
/* The same, and free it: nobody else may use it any more. */
extern void replica_close (struct replica *r);  /* NULL is allowed */

/* --- Exports -------------------------------------------------------------- */

extern unsigned replica_ndisks (struct replica *r);
extern const char *replica_disk_name (struct replica *r, unsigned disk);
extern uint64_t replica_disk_size (struct replica *r, unsigned disk);
extern uint64_t replica_generation (struct replica *r);

extern bool replica_is_promoted (struct replica *r);

/* One way to look at one disk. */
enum replica_view {
  REPLICA_INLET,                /* NAME, NAME@gG */
  REPLICA_PROMOTED,             /* NAME@promoted */
  REPLICA_CHECKPOINT,           /* NAME@latest, NAME@N: read-only */
  REPLICA_DIVERGENCE,           /* NAME@divergence: the promoted disk, read-only; its extents tell
                                   where the old primary's disk may differ */
  REPLICA_SCRATCH,              /* NAME@scratch: the newest checkpoint, to write to */
};
struct replica_export {
  unsigned disk;
  enum replica_view view;
  uint64_t generation;          /* INLET: NAME@gG's G; 0: no matter */
  uint64_t fence;               /* the replica's when the export was opened ... */
  uint64_t opened;              /* ... and its generation */
  struct view *look;            /* CHECKPOINT: what is looked at */
  uint64_t checkpoint;          /* CHECKPOINT: its number */
  bool latest;                  /* CHECKPOINT: another connection may find another one */
  struct scratch *scratch;      /* SCRATCH */
};

/* NAME as a client sent it -> *EXPORT, which replica_close_export ends.  -1: ENOENT for a name
 * that is none of ours, or a checkpoint that can no longer be looked at; ESHUTDOWN for
 * NAME@promoted before a promote and for checkpoints after one; EMFILE when too many checkpoints
 * are looked at; ENOMEM, EIO.  "mcbuf-control" is not looked at here.
 */
extern int replica_open_export (struct replica *r, const char *name,
                                struct replica_export *export);
extern void replica_close_export (struct replica *r,
                                  struct replica_export *export);

/* Can the export of DISK that shows VIEW (CHECKPOINT: the latest) be opened now? */
extern bool replica_can_open (struct replica *r, unsigned disk,
                              enum replica_view view);

/* Call FN for the number of each checkpoint of DISK that can be looked at, newest first, at most MAX. */
extern int replica_each_checkpoint (struct replica *r, unsigned disk, size_t max,
                                    int (*fn) (void *opaque, uint64_t number),
                                    void *opaque);

/* Data requests on an export.  Ranges lie within the disk. */
#define REPLICA_FUA 1u
#define REPLICA_MAY_TRIM 2u
#define REPLICA_FAST_ZERO 4u    /* ENOTSUP rather than slow */
extern int replica_pread (struct replica *r, const struct replica_export *e,
                          void *buf, uint32_t count, uint64_t offset);
extern int replica_pwrite (struct replica *r, const struct replica_export *e,
                           const void *buf, uint32_t count, uint64_t offset,
                           unsigned flags);
extern int replica_zero (struct replica *r, const struct replica_export *e,
                         uint32_t count, uint64_t offset, unsigned flags);
extern int replica_flush (struct replica *r, const struct replica_export *e);
extern int replica_cache (struct replica *r, const struct replica_export *e,
                          uint32_t count, uint64_t offset);

/* Why a data request on E failed with ERRNUM, in one line for the log. */
extern void replica_explain (struct replica *r, const struct replica_export *e,
                             int errnum, char *text, size_t size);

/* Tell FN about [OFFSET, OFFSET + COUNT) in order: a hole reads as zero and has no storage. */
typedef int (*replica_extent_fn) (void *opaque, uint64_t offset,
                                  uint64_t length, bool hole, bool zero);
extern int replica_extents (struct replica *r, const struct replica_export *e,
                            uint32_t count, uint64_t offset,
                            replica_extent_fn fn, void *opaque);

/* --- Control -------------------------------------------------------------- */

/* Carry out one control verb: REQUEST is a line of any LEN bytes (a trailing newline or
 * NULs are ignored).  The answer is one line of JSON without a newline, malloced, in *REPLY, also when
 * the verb is refused.  LOCAL: the Unix socket, all verbs; else the NBD control export's.
 * Returns 0, or -1 with the errno an NBD client shall see; *REPLY is NULL only with ENOMEM.
 */
extern int replica_control (struct replica *r, bool local, const char *request,
                            size_t len, char **reply);

/* The same for an NBD control export that was opened in GENERATION: what changes the stream (seal, commit, resync)
 * is meant for that one, unless the request names another.
 */
extern int replica_control_since (struct replica *r, uint64_t generation,
                                  const char *request, size_t len, char **reply);
extern uint64_t replica_get_generation (struct replica *r);

/* Called at most once, by the verb "shutdown": ask the server to stop. */
extern void replica_set_shutdown (struct replica *r, void (*fn) (void));

/* NBD connections come and go; status shows the count. */
extern void replica_connections_add (struct replica *r, int n);

#endif /* MCBUF_REPLICA_REPLICA_H */
