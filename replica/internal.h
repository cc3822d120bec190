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
#include "common/held.h"
#include "journal/catalog.h"
#include "replica/backing.h"
#include "replica/replica.h"

struct control;                 /* socket.c */
struct house_event;             /* house.c */

/* A checkpoint that somebody looks at (view.c). */
struct view {
  uint64_t checkpoint;
  uint64_t hold;                /* no segment that goes further may be written out */
  uint64_t upto;                /* whole segments up to it; 0: none … */
  struct epoch *first;          /* … and what leads on from there; NULL: nothing */
  unsigned users;
  bool building, revoked;
  struct view *next;
};

#define LATENCIES 1024
#define REST_MS 10000           /* how long promote and resync wait for writes to images under way */

/* A write that covers part of a sector: it reads the rest, and has to start
 * over when somebody publishes that sector meanwhile.
 */
struct rmw {
  unsigned disk;
  uint64_t sector[2];           /* first and last of the write */
  bool dirty;
  struct rmw *next;
};

/* The house thread's own. */
struct house {
  struct catalog *catalog;      /* NULL: not open */
  bool behind;                  /* it may lack what the journal has */
  uint64_t oldest, last;        /* that it shows as recoverable … */
  uint64_t newest;              /* … and at all */
  bool complained, unprepared;  /* said so */
  uint64_t due;                 /* monotonic: not before that is it written again */
};

struct disk {
  char *name;
  uint64_t size;
  struct backing *backing;
  uint64_t joined;              /* checkpoints before this one do not have the disk */
  bool lost;                    /* it leaves, and its image is not there, or another one */
  /* Promoted and direct; guarded by the replica's lock. */
  bool syncing;                 /* a flush is under way */
  bool sync_failed;             /* flushed writes may be gone, none is acknowledged */
};

struct replica {
  /* Set by replica_open, then constant. */
  const struct io_fs *fs;
  char *dir;
  replica_log_fn log;
  void *log_opaque;
  struct journal *journal;
  struct sums *sums;            /* of the backing images, or NULL */
  struct disk *disks;
  unsigned ndisks;
  bool shared;
  struct control *control;

  pthread_mutex_t lock;
  pthread_cond_t changed;       /* anything below changed that a request may wait for */
  pthread_cond_t work;          /* for the write-out thread */
  pthread_cond_t chores;        /* for the house thread */

  enum journal_replica_state state;
  char reason[512];             /* for status, one line */
  bool lost;                    /* stale: acknowledged writes are gone, inlets cannot be read */
  uint64_t generation;
  uint64_t fence;               /* exports opened before it was raised are shut out */
  bool damaged;                 /* failed from the start: the journal is not written to, and has no threads */
  bool keep_memory;             /* shared memory is as another server left it: it stays so */
  bool failing;                 /* the failure is being noted: no refusal goes out before */
  bool failure_noted;           /* … and was */
  bool holing;                  /* "stale" is being made durable: no refusal goes out before */
  uint64_t moves;               /* counts promotes and resyncs */
  unsigned parked;              /* of those in through: they were refused, and wait for a move to end */
  bool moving;                  /* promote or resync changes the state: who would act on it waits … */
  pthread_t mover;              /* … but for this thread, which does it */
  bool clean;                   /* the clean mark is on: take it off before a write is acknowledged */
  bool closing, closed;         /* the first copy: being closed, was closed by a seal */
  uint64_t closed_epoch;        /* … of this epoch */
  bool direct;                  /* promoted: drained, the backing images are the disk */
  bool drained;                 /* … and the journal knows it */
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
  struct replica_history history;       /* constant */
  bool history_yields;          /* the journal runs short */
  unsigned restored;            /* epochs that a restart made of the history, to be merged */
  struct view *views;
  struct divergence *divergence;        /* of the last promote; NULL: none that is known */
  struct epoch *discarded;      /* by it, to be noted there … */
  struct divergence *discarded_for;     /* … which is this (NULL: nowhere) */
  struct scratch *scratches;    /* of all disks, newest set first */
  uint64_t scratch_sets, scratch_files;         /* counted */
  bool scratch_held;            /* promote has all scratches for itself */
  bool scratch_is_disk;         /* promoted: NAME@scratch is another name for NAME@promoted */
  struct rmw *rmws;

  unsigned want_idle;           /* how many wait for one of these two to become 0 */
  unsigned through;             /* writes on their way straight to the backing image */
  unsigned journaled;           /* writes on their way into the journal */
  unsigned readers[2], phase;   /* readers of journal blocks, by phase */
  bool quiescing;

  bool commit_turn;             /* commit, promote, resync, stop: one at a time */
  bool copy_turn;               /* a commit ends a first copy: one at a time, from before its commit_turn to its end */
  bool finishing;               /* … and does I/O on the images for that */
  bool writing_out;             /* the write-out thread is in a cycle */
  bool hold_writeout;           /* it must not begin another */
  unsigned waiting;             /* writers that wait for journal space */
  uint64_t wo_progress;         /* counts what write-out gets done */
  uint64_t wo_written;          /* bytes written to backing images so far ... */
  uint64_t wo_written_at;       /* ... and when that last grew, or the cycle ended */
  struct held held;             /* writers, by write-out */
  uint64_t backlog_since;       /* monotonic ns of the oldest checkpoint that waits; 0 */
  char wo_error[256];           /* "" when write-out is well */

  uint64_t latency[LATENCIES];  /* of commits, microseconds */
  unsigned nlatency;
  unsigned connections;

  struct house_event *events, **events_end;     /* for the catalog */
  bool missed;                  /* there was no memory for one of them */
  struct house house;

  pthread_t wo_thread, house_thread;
  bool running;
  bool by_hand;                 /* no threads run; close it as if they had */
  bool once;                    /* write-out does not try again */
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

/* A data request that was let in (route_begin), and what it was let into. */
enum route {
  ROUTE_THROUGH,                /* straight to the backing image (syncing) */
  ROUTE_SPECULATE,              /* into the open epoch */
  ROUTE_DIRECT,                 /* promoted and drained: the backing image */
};
struct admitted {
  enum route route;
  uint64_t moves;               /* replica.moves of then */
};

/* It was refused with ERRNUM after it was accepted as valid: the stream has a hole, durably before this
 * returns 0.  A promote or resync under way is waited for.  -1 with EAGAIN: there was one since A was let in, so
 * that the stream with the hole is not the one of now, to which nothing has happened.  Called without the lock.
 */
extern int replica_refused (struct replica *r, const struct admitted *a,
                            int errnum, const char *what);
/* The same with the turn, or before anybody else is there: of the stream of now. */
extern void replica_hole (struct replica *r, int errnum, const char *what);
/* The same without the turn, of the stream of when r->moves was MOVES.  -1 with EAGAIN: it is another one now. */
extern int replica_hole_since (struct replica *r, uint64_t moves, int errnum,
                               const char *what);

/* The journal cannot be trusted any more: WHAT failed, with ERRNUM (0: WHAT says it all).
 * Called without the lock, by those whom a promote or resync waits for.
 */
extern void replica_fail (struct replica *r, const char *what, int errnum);

/* The same of what was begun when r->moves was MOVES, by anybody else: a promote or resync under way is waited for, and
 * -1 with EAGAIN: there was one since, which may have mended the journal or forgotten what was damaged.  Nothing has
 * happened to what is there now.  Not as a reader of journal blocks: discarding waits for those.
 */
extern int replica_fail_since (struct replica *r, uint64_t moves,
                               const char *what, int errnum);

/* The same two: it was found damaged. */
extern void replica_damaged (struct replica *r, const struct journal_damage *damage);
extern int replica_damaged_since (struct replica *r, uint64_t moves,
                                  const struct journal_damage *damage);

/* Take the clean mark off, durably, before anything is acknowledged that it
 * does not know.  Without the lock.  A NULL: with the turn, or of what is there now.  -1 with EIO, or
 * EAGAIN as replica_refused.
 */
extern int make_dirty (struct replica *r, const struct admitted *a);

/* For the change of every record: the open epoch, and numbers reserved ahead. */
extern void state_epoch (struct journal_state *state, uint64_t open);
/* Uncommitted epochs up to UPTO are discarded; STATE's checkpoint is what they would have followed. */
extern void state_discard (struct journal_state *state, uint64_t upto);
/* Was EPOCH committed, as far as is known?  Of epochs from before the last discard but one it is not. */
extern bool state_has_committed (const struct journal_state *state, uint64_t epoch);

/* --- config.c, wake.c: parts of replica_open ------------------------------ */

/* realpath of PATH in FS, malloced.  NULL with errno.  A block device keeps the name that it was given. */
extern char *real_path (const struct io_fs *fs, const char *path);
/* Make the journal of a new replica. */
extern int replica_create (struct replica *r,
                           const struct replica_params *params,
                           struct mcerror *err);
/* Are the names those of the disks that CONFIG knows? */
extern int check_disk_names (const struct replica_params *params,
                        const struct journal_config *config,
                        struct mcerror *err);
/* Are the images?  Puts the disks into the journal's order. */
extern int check_config (struct replica *r, struct mcerror *err);
/* What messages call the disk that has no name. */
extern const char *show_name (const char *name);
/* PATH made absolute; the last component need not exist.  Malloced. */
extern char *absolute_path (const struct io_fs *fs, const char *path,
                            struct mcerror *err);
/* regroup.c: disks join and leave, as PARAMS say, if they have not yet. */
extern int replica_regroup (const struct replica_params *params,
                            struct mcerror *err);
/* Open the image of a disk that leaves, if it is there; is it what it should be? */
extern int leaving_open (const struct io_fs *fs, const char *path,
                         uint64_t size, struct disk *d, struct mcerror *err);
extern int leaving_check (struct replica *r,
                          const struct replica_params *params);
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

/* For a write, zero or trim on E.  May wait (a seal that closes the first
 * copy; the switch to direct).  0 with *A and the request counted in
 * through or journaled until route_end; -1 with errno.
 */
extern int route_begin (struct replica *r, const struct replica_export *e,
                        struct admitted *a);
extern void route_end (struct replica *r, enum route route);
extern int replica_find_disk (struct replica *r, const char *name, size_t len,
                              unsigned *disk);
extern int admit_locked (struct replica *r, const struct replica_export *e,
                         bool write);

/* Has no checkpoint DISK? */
extern bool disk_is_fresh_locked (const struct replica *r, unsigned disk);
/* Is the first copy of DISK being made, straight into its image?  Of any disk? */
extern bool copying_locked (const struct replica *r, unsigned disk);
extern bool copying_any_locked (const struct replica *r);

/* --- read.c --------------------------------------------------------------- */

/* COMMITTED: without speculation, the content that the newest checkpoint has. */
extern int read_overlay (struct replica *r, unsigned disk, bool committed,
                         void *buf, uint32_t count, uint64_t offset);
/* How many bytes of committed content from OFFSET on are zero, as far as that can be
 * told without reading them?  At most LENGTH.
 */
extern uint64_t committed_zero (struct replica *r, unsigned disk,
                                uint64_t offset, uint64_t length);

/* --- compare.c: what a resync has to take ---------------------------------- */

struct range { uint64_t offset, length; };      /* bytes of a disk */
struct ranges { struct range *range; size_t n, room; };
#define RANGES_INIT { NULL, 0, 0 }
extern void ranges_free (struct ranges *list);

/* The parts of a write (DATA NULL: of zeroes) that differ from committed content or that lie over
 * something uncommitted, in order: at whole blocks, or where the write begins
 * or ends.  -1 with ENOMEM.
 */
extern int compare_write (struct replica *r, unsigned disk, const uint8_t *data,
                          uint64_t length, uint64_t offset,
                          struct ranges *list);

/* Neighbours of one kind go out as one. */
struct extent_gather {
  replica_extent_fn fn;
  void *opaque;
  uint64_t offset, length;
  bool hole, zero;
};
extern int gather_extent (struct extent_gather *g, uint64_t offset,
                          uint64_t length, bool hole, bool zero);
extern int read_view (struct replica *r, const struct view *look, unsigned disk,
                      void *buf, uint64_t count, uint64_t offset);
extern int view_extents (struct replica *r, const struct view *look,
                         unsigned disk, uint64_t count, uint64_t offset,
                         struct extent_gather *g);

/* --- history.c ------------------------------------------------------------- */

/* An empty write-out buffer that is cut as the history wants it.  NULL with ENOMEM. */
extern struct writeout *history_writeout_new (struct replica *r);
extern bool history_is_on (const struct replica *r);
/* Has the oldest segment to stay?  Not when the journal runs short: then history yields. */
extern bool history_holds_locked (struct replica *r,
                                  const struct writeout_oldest *oldest);
extern bool history_runs_short_locked (struct replica *r);
/* The committed backlog, from the journal. */
extern int history_restore (struct replica *r, const struct journal_state *state,
                            uint64_t *newest, struct journal_damage *damage);

/* --- view.c ----------------------------------------------------------------- */

#define VIEW_LATEST UINT64_MAX
/* A view of CHECKPOINT or the latest.  -1: ENOENT, none that can be looked at; EMFILE, too many
 * are looked at; ESHUTDOWN after a promote; EIO; ENOMEM.
 */
extern int view_open (struct replica *r, uint64_t checkpoint,
                      struct view **view);
/* Can there be one now?  VIEW_LATEST becomes its number.  -1 as view_open. */
extern int view_check_state_locked (struct replica *r, uint64_t *checkpoint);
extern void view_close (struct replica *r, struct view *v);
extern int view_resolve_locked (struct replica *r, const struct view *v,
                                unsigned disk, uint64_t offset,
                                uint64_t length, struct overlay_pieces *pieces);
/* After reading: was it still what it ought to be?  -1 with EIO. */
extern int view_check (struct replica *r, const struct view *v);
/* Has the oldest segment to stay?  Not when the journal runs short: then views are revoked. */
extern bool views_hold_locked (struct replica *r,
                               const struct writeout_oldest *oldest);
/* End all views of checkpoints below BELOW (UINT64_MAX: all). */
extern void views_revoke_locked (struct replica *r, uint64_t below);

/* --- scratch.c, scratch-open.c: a checkpoint to write to -------------------- */

struct scratch {
  struct scratch *next;
  uint64_t set;                 /* scratches of one set are one machine's */
  unsigned disk;
  uint64_t checkpoint;          /* below … */
  struct view *look;            /* … and its view; NULL while nobody has the scratch open */
  struct map *map;              /* what was written (the replica's lock); … */
  struct io_file *file;         /* … it lies here at the same place */
  unsigned users;
  unsigned shared;              /* requests under way … */
  bool alone;                   /* … or one that wants no other */
  uint64_t came, went_in;       /* those who came so far, and those of them whose turn it was: they wait in a line */
  bool became_disk;             /* "promote scratch" made it the promoted disk … */
  uint64_t fence;               /* … for as long as this is the replica's fence */
};
/* The scratch of DISK over the newest checkpoint, or over that of the newest open set if the set has
 * none of DISK yet.  -1 as view_open; EFBIG.
 */
extern int scratch_open (struct replica *r, unsigned disk,
                         struct scratch **scratch);
extern void scratch_close (struct replica *r, struct scratch *s);
/* One that is in no set yet. */
extern struct scratch *scratch_new (struct replica *r, unsigned disk);
extern void scratch_free (struct scratch *s);   /* NULL is allowed */
/* Nobody has one open, and the server ends. */
extern void scratch_forget (struct replica *r);
/* The copy is the disk now: those that nobody has open are of no use. */
extern void scratch_take_unused (struct replica *r);
/* -1: EAGAIN, it became the disk; ESHUTDOWN; EIO, its view was revoked. */
extern int scratch_begin (struct replica *r, struct scratch *s, bool alone);
extern void scratch_end (struct replica *r, struct scratch *s);
extern int scratch_read (struct replica *r, struct scratch *s, void *buf,
                         uint64_t len, uint64_t off);
/* BUF NULL: zeroes. */
extern int scratch_write (struct replica *r, struct scratch *s, const void *buf,
                          uint64_t len, uint64_t off, bool may_trim);
extern int scratch_extents (struct replica *r, struct scratch *s, uint64_t len,
                            uint64_t off, struct extent_gather *g);
/* E is open on a scratch that became the disk: *NOW is what it means from then on. */
extern bool scratch_is_disk (struct replica *r, const struct replica_export *e,
                             struct replica_export *now);
/* Discard what was written; an open one goes on with the newest checkpoint. */
extern int scratch_reset (struct replica *r, unsigned disk,
                          uint64_t *checkpoint);

/* --- promote-scratch.c: all with the turn ------------------------------------ */

extern int scratch_check_promote (struct replica *r, struct mcerror *err);
/* Nobody reads, writes, opens or resets a scratch until it is released. */
extern int scratch_hold_all (struct replica *r, struct mcerror *err);
extern void scratch_release_all (struct replica *r);
/* After the PROMOTE record, moving. */
extern int scratch_ingest (struct replica *r, uint64_t checkpoint,
                           struct mcerror *err);

/* --- divergence.c: what differs from the old primary's disk -------------------- */

#define DIVERGENCE_REGION (64u << 10)

/* Before the PROMOTE record that raises the generation to GENERATION; NULL (and logged) when
 * there can be none.
 */
extern struct divergence *divergence_begin (struct replica *r,
                                            uint64_t generation);
/* With the promote, before the state changes.  Takes D (may be NULL).  WHOLE: nothing is missing. */
extern void divergence_install_locked (struct replica *r, struct divergence *d,
                                       bool whole);
/* Mark what DISCARDED holds in D (may be NULL), free it, and from then on D is known. */
extern void divergence_finish (struct replica *r, struct divergence *d,
                               struct epoch *discarded);
/* What a server before this one left; NULL: nothing that can be relied on. */
extern struct divergence *divergence_load (struct replica *r);
/* At a clean stop. */
extern void divergence_save (struct replica *r);
/* Recovery has written all that it writes to the images: who does so from now on is somebody else. */
extern int divergence_settle (struct replica *r);
extern void divergence_free (struct divergence *d);     /* and those before it */

/* Before a write to a promoted disk is acknowledged. */
extern void divergence_mark (struct replica *r, unsigned disk, uint64_t offset,
                             uint64_t length);
/* An inlet's write was refused. */
extern void divergence_refused (struct replica *r);

/* Is it known?  Else WHY not, for people. */
extern bool divergence_known (struct replica *r, char *why, size_t size);
/* From OFFSET on, at most to END: how many bytes are alike in whether they may differ? */
extern uint64_t divergence_run (struct replica *r, unsigned disk,
                                uint64_t offset, uint64_t end, bool *differs);

/* --- put.c: writes into the open epoch ------------------------------------ */

/* Somebody for whom the journal may turn out to be full.  A, what he was let in to, may be NULL. */
struct space {
  struct replica *r;
  const struct admitted *a;
  uint64_t seen;                /* wo_progress from before the last attempt */
};
extern struct space space_seen (struct replica *r, const struct admitted *a);
/* It is: wait for write-out to make some room, while it gets anywhere, without the turn.  0: try again; -1 with ENOSPC, or EAGAIN
 * as replica_refused.  SINCE is when he began to wait for that.
 */
extern int wait_space (void *space, uint64_t since);

/* -1 with EAGAIN: the route has changed, or the replica has moved since A was let in; nothing was taken. */
extern int put_data (struct replica *r, const struct replica_export *e,
                     const struct admitted *a, const void *buf, uint32_t count,
                     uint64_t offset);
/* Of the replica itself, into a promoted disk, while it moves.  BUF NULL: zeroes. */
extern int put_own (struct replica *r, unsigned disk, const void *buf,
                    uint32_t count, uint64_t offset, bool may_trim);
extern int put_zero (struct replica *r, const struct replica_export *e,
                     const struct admitted *a, uint32_t count,
                     uint64_t offset, bool may_trim);

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
/* WHAT was asked for in GENERATION (0: whatever it is).  -1 with ESHUTDOWN: it is another one now. */
extern int check_generation_locked (struct replica *r, const char *what,
                                    uint64_t generation, struct mcerror *err);
/* GENERATION 0: whatever it is. */
extern int replica_seal (struct replica *r, uint64_t generation,
                         uint64_t *sealed, struct mcerror *err);
extern int replica_commit (struct replica *r, const struct commit_request *req,
                           struct commit_answer *answer, struct mcerror *err);
extern bool state_takes_writes (enum journal_replica_state state);
/* -1: WHAT is not to be had in this state. */
extern int refuse_state_locked (struct replica *r, const char *what,
                                struct mcerror *err);
/* What a seal must not wait for: spare maps, epoch numbers.  Without the lock. */
extern int replica_prepare_seal (struct replica *r);
/* Give back what sealed epochs' maps do not need.  Without the lock. */
extern int replica_tighten (struct replica *r);
/* Promoted writes so far become durable. */
extern int promoted_flush (struct replica *r);
extern int promoted_flush_turn (struct replica *r);     /* the caller has the turn */

/* --- copy.c: the end of a first copy ---------------------------------------- */

/* Make the images of the copy of MOVES durable, for a commit that is not in its turn.  *MINE: the copy turn
 * is taken, until copy_turn_end.  0: look again with the turn, there may have been a promote or a resync.
 */
extern int finish_copy (struct replica *r, uint64_t moves, bool *mine,
                        struct mcerror *err);
/* With the turn: what finish_copy has sampled is durable before the commit. */
extern int copy_record_samples (struct replica *r, struct mcerror *err);
extern void copy_turn_end (struct replica *r);

/* --- drain.c: from maps to backing images ---------------------------------- */

struct drain {
  const struct io_fs *fs;
  struct journal *journal;
  struct disk *disks;
  unsigned ndisks;
  struct sums *sums;            /* of the images; may be NULL */
  uint64_t upto;                /* the checkpoint that is aimed at */
  bool verified;                /* all of it was, so drain_prepare need not */
  bool hurry;                   /* nobody else needs the disk: give it as much at a time as it takes */
  /* Called now and then with bytes written since the last call; -1 stops with ECANCELED. May be NULL. */
  int (*progress) (void *opaque, uint64_t bytes);
  void *opaque;
  uint64_t written;             /* out: bytes */
  const char *failed_path;      /* out: the image, or NULL for the journal */
  struct journal_damage damage; /* out: with EBADMSG */
};
/* direct.c: for a drain that is in a hurry.  NULL: there is none to be had; then it does nothing. */
struct direct;
extern struct direct *direct_new (struct drain *d);
extern void direct_free (struct direct *w);
/* Write those of RUNS, in disk order, that can be so.  The others are RUNS[0..*LEFT) then.  TOUCHED (by
 * disk): there was one.  Nothing is under way when it returns.
 */
extern int direct_part (struct direct *w, struct map_run *runs, size_t n,
                        bool load, bool *touched, size_t *left);

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
  uint64_t backlog;             /* bytes to be written out, overwritten ones counted each time */
  bool drained;
  bool already;                 /* somebody else had promoted before */
};
/* TO (NULL: the newest) names a checkpoint; SCRATCH: with what was written to scratch. */
extern int replica_promote (struct replica *r, const char *to, bool scratch,
                            struct promote_answer *answer,
                            struct mcerror *err);
/* Drop every uncommitted epoch; the caller has made it void, durably. */
extern int discard_speculation (struct replica *r);
/* The same for a promote: what was dropped is kept in discarded, for the divergence. */
extern int hand_over_speculation (struct replica *r, struct epoch *more);
extern int replica_resync (struct replica *r, bool overwrite,
                           struct mcerror *err);
/* If this is GENERATION. */
extern int replica_resync_in (struct replica *r, uint64_t generation,
                              bool overwrite, struct mcerror *err);

/* --- house.c: what has time --------------------------------------------------- */

extern void *house_main (void *replica);
/* What the thread does once, now: for tests that run no threads. */
extern void house_step (struct replica *r);
extern void house_event_locked (struct replica *r, const char *kind,
                                const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));
extern void house_checkpoint_locked (struct replica *r,
                                     const struct journal_checkpoint *cp);
extern void house_free (struct replica *r);

/* --- status.c ------------------------------------------------------------------- */

extern char *status_json (struct replica *r);
/* Ranges of DISK, from byte FROM on, as far as they fit into one reply. */
extern char *divergence_json (struct replica *r, unsigned disk, uint64_t from);
extern char *list_json (struct replica *r, size_t max);

/* --- socket.c --------------------------------------------------------------------- */

extern struct control *control_listen (struct replica *r, const char *dir,
                                       struct mcerror *err);
extern int control_run (struct control *c);
extern void control_close (struct control *c);

#endif /* MCBUF_REPLICA_INTERNAL_H */
