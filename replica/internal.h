/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of replica/ share.
 *
 * LOCKS.  One mutex, replica.lock, guards everything in struct replica that is not marked
 * otherwise.  It is never held across I/O.  Work that has to keep others of its kind
 * out while it does I/O takes a *turn*: a flag under the lock, waited for on
 * replica.changed.  Order: turn, replica.lock, the journal's own lock.
 *
 * LOCATIONS.  A map answers with journal blocks.  They may be read outside the
 * lock by a reader that registered itself (reader_begin_locked); whoever
 * recycles blocks first takes them out of every map, then waits for the
 * readers of before (quiesce).
 */
#ifndef MCBUF_REPLICA_INTERNAL_H
#define MCBUF_REPLICA_INTERNAL_H

#include <pthread.h>

#include "buffers/overlay.h"
#include "common/cleanup.h"
#include "journal/catalog.h"
#include "replica/backing.h"
#include "replica/replica.h"

struct control;                 /* socket.c */
struct house_event;             /* house.c */

#define LATENCIES 1024

/* A write that covers part of a sector: it reads the rest, and has to start
 * over when somebody publishes that sector meanwhile.
 */
struct rmw {
  unsigned disk;
  uint64_t sector[2];           /* first and last of the write */
  bool dirty;
  struct rmw *next;
};

struct disk {
  char *name;
  uint64_t size;
  struct backing *backing;
  _Atomic bool sync_failed;     /* promoted and direct: flushed writes may be gone, none is acknowledged */
};

struct replica {
  /* Set by replica_open, then constant. */
  const struct io_fs *fs;
  char *dir;
  replica_log_fn log;
  void *log_opaque;
  struct journal *journal;
  struct disk *disks;
  unsigned ndisks;
  bool shared;
  struct control *control;

  pthread_mutex_t lock;
  pthread_cond_t changed;       /* anything below changed that a request may wait for */
  pthread_cond_t work;          /* for the write-out thread */
  pthread_cond_t chores;        /* for the house thread */

  enum journal_replica_state state;
  char reason[256];             /* for status, one line */
  bool lost;                    /* stale: acknowledged writes are gone, inlets cannot be read */
  uint64_t generation;
  uint64_t fence;               /* exports opened before it was raised are shut out */
  bool damaged;                 /* failed from the start: the journal is not written to, and has no threads */
  bool keep_memory;             /* shared memory is as another server left it: it stays so */
  bool failing;                 /* the failure is being noted: no refusal goes out before */
  bool holing;                  /* "stale" is being made durable: no refusal goes out before */
  uint64_t moves;               /* counts promotes and resyncs */
  unsigned parked;              /* refused writes that wait for a move to end */
  bool moving;                  /* promote or resync changes the state: who would act on it waits */
  bool clean;                   /* the clean mark is on: take it off before a write is acknowledged */
  bool closing, closed;         /* syncing: being closed, was closed by a seal */
  uint64_t closed_epoch;        /* … of this epoch */
  bool direct;                  /* promoted: drained, the backing images are the disk */
  bool drain_hold;              /* promoted: writers wait for the switch to direct */
  bool stopping;

  bool has_checkpoint;
  struct journal_checkpoint checkpoint; /* newest committed */
  uint64_t written_out;         /* the watermark's checkpoint */
  uint64_t void_epoch;          /* uncommitted epochs up to it were discarded */
  uint64_t epoch_limit;         /* epochs up to it may be opened without a record */
  uint64_t discarded_epochs, discarded_bytes;   /* by the last promote */

  struct speculation *spec;
  struct writeout *wo;
  struct rmw *rmws;

  unsigned want_idle;           /* how many wait for one of these two to become 0 */
  unsigned through;             /* writes on their way straight to the backing image */
  unsigned journaled;           /* writes on their way into the journal */
  unsigned readers[2], phase;   /* readers of journal blocks, by phase */
  bool quiescing;

  bool commit_turn;             /* commit, promote, resync, stop: one at a time */
  bool writing_out;             /* the write-out thread is in a cycle */
  bool hold_writeout;           /* it must not begin another */
  unsigned waiting;             /* writers that wait for journal space */
  uint64_t wo_progress;         /* counts what write-out gets done */
  uint64_t wo_written;          /* bytes written to backing images so far */
  uint64_t backlog_since;       /* monotonic ns of the oldest checkpoint that waits; 0 */
  char wo_error[256];           /* "" when write-out is well */

  uint64_t latency[LATENCIES];  /* of commits, microseconds */
  unsigned nlatency;
  unsigned connections;

  struct house_event *events, **events_end;     /* for the catalog */

  pthread_t wo_thread, house_thread;
  bool running;
  bool by_hand;                 /* a test that runs no threads; close it as if it had */
  void (*shutdown) (void);
};

/* --- state.c: words, log lines, moving between states --------------------- */

extern const char *replica_state_word (enum journal_replica_state state);
extern void replica_log (struct replica *r, enum replica_log_level level,
                         const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));
extern void set_reason_locked (struct replica *r, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));
extern void assert_locked (struct replica *r);

/* Wait for changed, at most MS milliseconds.  0, or -1 with ETIMEDOUT. */
extern int wait_changed_locked (struct replica *r, unsigned ms);

/* -1 with ESHUTDOWN: the server is stopping, and its stop has the turn for good. */
extern int turn_begin_locked (struct replica *r);
extern void turn_end_locked (struct replica *r);

/* A data request was refused with ERRNUM after it was accepted as valid: the
 * stream has a hole.  Durable before it returns.  Called without the lock.
 */
extern void replica_hole (struct replica *r, int errnum, const char *what);

/* The journal cannot be trusted any more: WHAT, and ERRNUM unless 0.  Called without the lock. */
extern void replica_fail (struct replica *r, const char *what, int errnum);

/* Take the clean mark off, durably, before anything is acknowledged that it
 * does not know.  Without the lock.  -1 with EIO.
 */
extern int make_dirty (struct replica *r);

/* For the change of every record: the open epoch, and numbers reserved ahead. */
extern void state_epoch (struct journal_state *state, uint64_t open);

/* --- config.c, wake.c: parts of replica_open ------------------------------ */

/* realpath of PATH in FS, malloced.  NULL with errno. */
extern char *real_path (const struct io_fs *fs, const char *path);
/* Make the journal of a new replica. */
extern int replica_create (struct replica *r,
                           const struct replica_params *params,
                           struct mcerror *err);
/* Are the disks those that the journal knows? */
extern int check_config (struct replica *r, struct mcerror *err);
/* Go on from what the journal, and perhaps shared memory, hold. */
extern int revive (struct replica *r, const struct replica_params *params,
                   struct mcerror *err);

/* Wait while the state is on the move, or "stale" is being made durable. */
extern void wait_settled_locked (struct replica *r);
/* Around a change of state that discards speculation, with the turn: nobody
 * publishes, seals, or begins a write in between.
 */
extern void move_begin_locked (struct replica *r);
extern void move_end (struct replica *r);

/* --- guard.c: readers of journal blocks ----------------------------------- */

extern unsigned reader_begin_locked (struct replica *r);
extern void reader_end (struct replica *r, unsigned phase);
/* Wait until every reader that began before has ended.  Without the lock. */
extern void quiesce (struct replica *r);

/* --- admit.c: who may do what now ----------------------------------------- */

enum route {
  ROUTE_THROUGH,                /* straight to the backing image (syncing) */
  ROUTE_SPECULATE,              /* into the open epoch */
  ROUTE_DIRECT,                 /* promoted and drained: the backing image */
};
/* For a write, zero or trim on E.  May wait (a seal that closes the first
 * copy; the switch to direct).  0 with *ROUTE and the request counted in
 * through or journaled until route_end; -1 with errno.
 */
extern int route_begin (struct replica *r, const struct replica_export *e,
                        enum route *route);
extern void route_end (struct replica *r, enum route route);
extern int admit_locked (struct replica *r, const struct replica_export *e,
                         bool write);

/* --- read.c --------------------------------------------------------------- */

extern int read_overlay (struct replica *r, unsigned disk, void *buf,
                         uint32_t count, uint64_t offset);

/* --- put.c: writes into the open epoch ------------------------------------ */

/* -1 with EAGAIN: the route has changed, nothing was taken. */
extern int put_data (struct replica *r, const struct replica_export *e,
                     const void *buf, uint32_t count, uint64_t offset);
extern int put_zero (struct replica *r, const struct replica_export *e,
                     uint32_t count, uint64_t offset, bool may_trim);

/* --- commit.c -------------------------------------------------------------- */

struct commit_request {
  bool has_epoch;               /* false: seal now and commit that */
  uint64_t epoch;
  uint64_t generation;          /* 0: whatever it is */
  const char *label;            /* NULL: none */
};
struct commit_answer {
  uint64_t checkpoint, epoch, extents, bytes, latency_us;
};
extern int replica_seal (struct replica *r, uint64_t *sealed,
                         struct mcerror *err);
extern int replica_commit (struct replica *r, const struct commit_request *req,
                           struct commit_answer *answer, struct mcerror *err);
/* What a seal must not wait for: spare maps, epoch numbers.  Without the lock. */
extern int replica_prepare_seal (struct replica *r);
/* Promoted writes so far become durable. */
extern int promoted_flush (struct replica *r);
extern int promoted_flush_turn (struct replica *r);     /* the caller has the turn */

/* --- drain.c: from maps to backing images ---------------------------------- */

struct drain {
  const struct io_fs *fs;
  struct journal *journal;
  struct disk *disks;
  unsigned ndisks;
  bool load;                    /* read whole chunks of the journal (recovery) */
  bool verified;                /* all of it was, so drain_prepare need not */
  /* Called now and then with bytes written since the last call; -1 stops with ECANCELED. May be NULL. */
  int (*progress) (void *opaque, uint64_t bytes);
  void *opaque;
  uint64_t written;             /* out: bytes */
  const char *failed_path;      /* out: the image, or NULL for the journal */
  struct journal_damage damage; /* out: with EBADMSG */
};
/* Bring MAP's content into the backing images and sync them. */
extern int drain_map (struct drain *d, const struct map *map);
/* Before the first of it: does all of it verify that is in the journal's file only?  And the samples
 * are made ready.  *NEWS: a record must carry them before anything is written.
 */
extern int drain_prepare (struct drain *d, const struct map *map, bool *news);

/* Build one epoch's map from committed epochs in (FROM, UPTO]. */
extern int replay_map (struct journal *j, uint64_t from, uint64_t upto,
                       struct epoch *e, uint64_t *newest,
                       struct journal_damage *damage);

/* --- writeout.c ------------------------------------------------------------- */

extern void *writeout_main (void *replica);
/* What the thread does once, now: for tests that run no threads.  -1: stopped, or failed. */
extern int writeout_step (struct replica *r);

/* --- promote.c, resync.c ---------------------------------------------------- */

struct promote_answer {
  struct journal_checkpoint checkpoint;
  uint64_t discarded_epochs, discarded_bytes, generation;
  uint64_t latency_ns;
  bool drained;
};
extern int replica_promote (struct replica *r, const char *to,
                            struct promote_answer *answer,
                            struct mcerror *err);
/* Drop every uncommitted epoch; the caller has made it void, durably. */
extern int discard_speculation (struct replica *r);
extern int replica_resync (struct replica *r, bool overwrite,
                           struct mcerror *err);

/* --- house.c: what has time --------------------------------------------------- */

extern void *house_main (void *replica);
extern void house_event_locked (struct replica *r, const char *kind,
                                const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));
extern void house_checkpoint_locked (struct replica *r,
                                     const struct journal_checkpoint *cp);
extern void house_free (struct replica *r);

/* --- status.c ------------------------------------------------------------------- */

extern char *status_json (struct replica *r);
extern char *list_json (struct replica *r, size_t max);

/* --- socket.c --------------------------------------------------------------------- */

extern struct control *control_listen (struct replica *r, const char *dir,
                                       struct mcerror *err);
extern int control_run (struct control *c);
extern void control_close (struct control *c);

#endif /* MCBUF_REPLICA_INTERNAL_H */
