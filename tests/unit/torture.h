/* SPDX-License-Identifier: BSD-3-Clause */
/* The torture of a whole replica on a simulated disk.
 *
 *   torture-host.c     time, boots, random numbers and memory of the simulated host
 *   torture-model.c    what the outside world knows: versions, what is acknowledged, what in flight
 *   torture-steps.c, torture-verbs.c   requests, each of which first notes what it may make of the
 *                      replica and afterwards, if it was acknowledged, what it has
 *   torture-views.c    the same: views, scratches
 *   torture-life.c     one life of a replica: servers come and go, steps follow each other
 *   torture-fault.c    one call of the disk, or one allocation, that fails
 *   torture-check.c    what a crash left: recovery, or a server that goes on
 *   torture-refault.c  recovery whose calls and allocations fail
 *   torture-catalog.c  what the catalog says
 *   test-replica-*.c   which lives are lived
 *
 * A new request is a function in torture-steps.c and a line in its table.
 */
#ifndef MCBUF_TESTS_UNIT_TORTURE_H
#define MCBUF_TESTS_UNIT_TORTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/recover.h"
#include "unit/simdisk.h"

#define TORTURE_DISKS 3
#define TORTURE_DIR "/sim/j"
#define TORTURE_CHECKPOINTS 16384       /* epoch numbers of one life */
#define TORTURE_LATE 256
#define TORTURE_SEALED 8
#define TORTURE_VIEWS 3         /* open at a time, and as many scratches */
#define TORTURE_SCRATCHES 16    /* whose content is known */
#define TORTURE_REQUEST 200000u /* bytes at the most */

/* Say what went wrong, and how to replay it, and abort. */
extern void torture_fail (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2), noreturn));
#define MUST(cond, ...)                                                 \
  do {                                                                  \
    if (!(cond))                                                        \
      torture_fail (__VA_ARGS__);                                       \
  } while (0)

/* --- torture-host.c ------------------------------------------------------- */

/* Each thread has a stream of random numbers of its own. */
extern void host_seed (uint64_t seed);
extern uint64_t host_bits (void);
extern uint64_t host_below (uint64_t n);
/* Begin the replica's own (salts, identities, clocks) anew.  STEPPED: clocks run only when they are looked at. */
extern void host_reset (uint64_t seed, bool stepped);
/* The boot that this thread lives in.  Returns the one before. */
extern unsigned host_boot (unsigned boot);
extern unsigned host_new_boot (void);

/* --- torture-model.c ------------------------------------------------------ */

/* What all disks hold, never changed once it is known to more than one. */
struct version {
  uint8_t *disk[TORTURE_DISKS];
  struct version *next;         /* of the life */
};

enum outcome_kind {
  OUTCOME_ABSENT,               /* no journal yet */
  OUTCOME_NONE,                 /* no checkpoint */
  OUTCOME_CHECKPOINT,
  OUTCOME_PROMOTED,
};

/* What recovery may find. */
struct outcome {
  enum outcome_kind kind;
  uint64_t id;
  const struct version *base;
};

/* A write to a promoted disk that no flush covers. */
struct late {
  unsigned disk;
  uint64_t off;
  uint32_t len;
  const uint8_t *data;          /* NULL: zeroes */
  bool failed;                  /* nobody knows what is there now */
};

enum clean { CLEAN_NO, CLEAN_MAYBE, CLEAN_YES };

/* What the outside world knows at one instant: what is acknowledged, and what is in flight. */
struct expect {
  struct outcome out[4];        /* one of them */
  unsigned n;
  const struct late *late;      /* promoted: may be there, sector by sector */
  unsigned nlate;
  bool garbled;                 /* the last crash left garbage in sectors that were in flight */
  enum clean clean;             /* has the server stopped cleanly? */
  const struct version *saved;  /* then inlets read this ... */
  uint64_t open_epoch;          /* ... and this epoch is open */
};

struct sealed {
  uint64_t epoch;
  const struct version *v;
};

/* What a flush that begins now will have made durable. */
struct mark {
  const struct version *v;
  unsigned nlate;
};

struct life;

extern uint64_t life_random (struct life *l, uint64_t n);
extern void torture_fill (void *buf, size_t len, uint64_t stamp);
extern struct version *version_copy (struct life *l, const struct version *from);
extern void now_is (struct life *l, const struct version *v);
/* A request begins, and may have these outcomes; nothing is in flight any more. */
extern void model_begin (struct life *l, const char *doing);
extern void model_perhaps (struct life *l, struct outcome o);
extern void model_settle (struct life *l, enum clean clean);
extern void model_dirty (struct life *l);
/* A promoted disk's writes, of which there are none yet. */
extern void model_no_late (struct life *l);
extern void model_late (struct life *l, unsigned disk, uint64_t off,
                        uint32_t len, const uint8_t *data);
extern struct mark model_mark (struct life *l);
extern void model_flushed (struct life *l, unsigned disk, struct mark mark);
extern void model_sealed (struct life *l, uint64_t epoch,
                          const struct version *v);
extern void model_committed (struct life *l, struct outcome o);
/* A promote or a resync: V (NULL: nobody knows what) is what is read from here on. */
extern void model_new_stream (struct life *l, const struct version *v);
extern void model_free (struct life *l);

/* --- torture-fault.c ------------------------------------------------------ */

/* What kind of file a call was about. */
enum fault_where { FAULT_SCRATCH, FAULT_JOURNAL, FAULT_MARK, FAULT_CATALOG, FAULT_IMAGE };

struct fault_call {
  enum simdisk_call call;
  enum fault_where where;
};

struct fault {
  /* To fail: the AT-th call (1: the first; 0: none), or allocation. */
  uint64_t at;
  int error;                    /* 0: cut short */
  bool sticky;                  /* and those of its kind that follow, for a while */
  bool memory;                  /* AT counts allocations */

  uint64_t n;                   /* seen so far */
  bool hit;
  struct fault_call what;       /* was hit */
  uint64_t step;                /* in this step */
  bool past;                    /* the server that met it is gone */
  enum journal_replica_state state;     /* when it was hit; 0: no server was up */
  uint64_t moves;               /* … and its moves */
  unsigned server;              /* which one it was */
  bool over;                    /* nothing fails any more */
  unsigned checked;             /* steps since */
  const char *shown;            /* an image's path, which status is to name */
  struct fault_call *trace;     /* NULL: not wanted */
  size_t ntrace, room;
};

/* From here on L's disk's calls, and allocations while the library runs, count. */
extern void fault_watch (struct life *l);
/* From here on DISK's calls count anew, for F. */
extern void fault_arm (struct life *l, struct simdisk *disk, const struct fault *f);
/* The Kth way in which CALL can fail; false: there are no more. */
extern bool fault_way (enum simdisk_call call, unsigned k, struct fault *f);
/* Can be gone on with at once, or nothing depends on it. */
extern bool fault_is_harmless (const struct fault *f);
extern void fault_move (struct life *l);        /* to a new disk */
extern void fault_end (struct life *l);
/* May a request fail because of what was done to it? */
extern bool fault_excuses (const struct life *l);
/* After each step: is the state what DESIGN.md says? */
extern void fault_check (struct life *l);
/* The library runs, or does not any more. */
extern void torture_library (bool in);
#define LIBRARY(call)                                                   \
  ({                                                                    \
    torture_library (true);                                             \
    __auto_type result_ = (call);                                       \
    torture_library (false);                                            \
    result_;                                                            \
  })

/* --- torture-life.c ------------------------------------------------------- */

struct life_params {
  uint64_t seed;
  bool threads;                 /* replica_run; else stepped by hand */
  bool crash;                   /* at every operation ... */
  unsigned every;               /* ... or one in so many (0: each) ... */
  unsigned subsets;             /* ... so many times (0: once, and a sync twice) */
  const char *script;           /* letters of steps instead of random ones */
  unsigned laps, steps;         /* lives on the way, requests in each */
  bool large;                   /* writes that lap the journal */
  bool greedy;                  /* until it is full */
  bool refault;                 /* at the end, recovery with faults */
  unsigned meanwhile;           /* one operation in so many is overtaken by a request; 0: none */
  unsigned short_len;           /* of writes */
  struct fault fault;
};

/* A view that is open; BASE is what it shows, NULL: it is not. */
struct torture_view {
  struct replica_export x;
  const struct version *base;
};

/* A scratch that is open (or X.scratch is NULL). */
struct torture_opened {
  struct replica_export x;
  uint64_t set;
};

/* What a scratch holds. */
struct torture_scratch {
  uint64_t set, id;             /* ID: the checkpoint below */
  unsigned disk;
  uint8_t *data;
  bool unsure;                  /* a write to it failed */
};

struct life {
  struct life_params p;
  struct simdisk *disk;
  struct replica *r;
  unsigned ndisks;
  uint64_t size[TORTURE_DISKS];
  char path[TORTURE_DISKS][32];

  pthread_mutex_t lock;         /* guards EXPECT */
  struct expect expect;

  struct version *versions;
  struct outcome cur;           /* the newest that was acknowledged */
  struct version *now;          /* as inlets, or NAME@promoted, read */
  bool hole;                    /* a write was refused: NOW is not known */
  struct sealed sealed[TORTURE_SEALED];
  unsigned nsealed;
  uint64_t newest_epoch;        /* no epoch up to it is ever given out again */
  struct late *late;
  unsigned nlate;
  struct torture_view views[TORTURE_VIEWS];
  struct torture_opened scratch_of[TORTURE_VIEWS];
  struct torture_scratch scratches[TORTURE_SCRATCHES];
  unsigned nscratches;
  enum clean scratch_is_disk;   /* promoted: NAME@scratch serves it; CLEAN_MAYBE: nobody knows */
  struct blob *blobs;           /* what LATE points to */
  const struct version *known[TORTURE_CHECKPOINTS];     /* by checkpoint */
  bool ever[TORTURE_CHECKPOINTS];       /* may have been one */
  uint64_t rng;                 /* of the requests */
  uint64_t nsteps;
  unsigned servers;             /* that have come up */
  unsigned boot;
  bool log_error;
  bool nested;                  /* a request that overtakes another */
  uint64_t sealed_upto;         /* a commit that is under way has sealed this */
  struct fault fault;
};

/* Live it.  Returns how many operations the disk saw. */
extern uint64_t torture_life (const struct life_params *p);
/* The same; the calls or allocations that it made go to *FAULT (see its trace). */
extern void torture_trace (const struct life_params *p, struct fault *fault);
/* Open the replica of LIFE on DISK.  NULL only where a fault was asked for. */
extern struct replica *torture_open (const struct life *life,
                                     struct simdisk *disk, bool threads);

/* For messages: what is going on now, and the letters that replay it. */
extern const struct life *torture_now;
extern const char *torture_doing;
extern const char *torture_test;
/* Watch for hangs: abort, as torture_fail, unless called again in time. */
extern void torture_alarm (void);

/* What the lives so far were made of: a share of each is to be had, or the test tests nothing. */
enum torture_count {
  COUNT_COMMIT, COUNT_OLDER, COUNT_PROMOTE, COUNT_PROMOTE_OLDER, COUNT_FLUSH, COUNT_RESYNC, COUNT_OVERWRITE,
  COUNT_WRITEOUT, COUNT_CATALOG, COUNT_STOP, COUNT_CRASH, COUNT_FULL, COUNT_OVERTAKEN, COUNT_MIB,
  COUNT_VIEW, COUNT_REVOKED, COUNT_SCRATCH, COUNT_RESET, COUNT_PROMOTE_SCRATCH,
  COUNTS
};
extern uint64_t torture_count[COUNTS];
extern const char *const torture_count_name[COUNTS];

/* --- torture-steps.c ------------------------------------------------------ */

extern void step_random (struct life *l);
extern void step_letter (struct life *l, char letter);
/* A request that can be made while another waits for the disk, if there is one. */
extern void step_meanwhile (struct life *l, enum simdisk_op op);
extern void step_flush (struct life *l, unsigned disk);
extern void step_first_copy (struct life *l);
/* A request failed, in a state that takes it: was it allowed to?  RECORDS: it has no data, and room for
 * it is reserved.
 */
extern void step_excuse (struct life *l, bool records);
/* A range of DISK. */
extern void step_pick (struct life *l, unsigned disk, uint64_t *off, uint32_t *len);
/* X serves the disk: does it read as it was written? */
extern void step_read_export (struct life *l, const struct replica_export *x);

/* --- torture-verbs.c ------------------------------------------------------ */

extern void step_seal (struct life *l);
extern void step_commit (struct life *l);
extern void step_nonsense (struct life *l);
extern void step_promote (struct life *l);
extern void step_resync (struct life *l);
extern void step_overwrite (struct life *l);
extern void step_status (struct life *l);
/* A verb: KEY's number of the answer goes to *NUMBER, of a refusal its code (0: there was none). */
extern int torture_control (struct life *l, const char *line, const char *key, uint64_t *number);

static inline bool
takes_writes (enum journal_replica_state state)
{
  return state == JOURNAL_SYNCING || state == JOURNAL_PROTECTED ||
    state == JOURNAL_RESYNCING;
}

extern enum journal_replica_state life_state (struct life *l);
extern uint64_t life_open_epoch (struct life *l);
extern struct replica_export life_export (struct life *l, unsigned disk);

/* --- torture-views.c ------------------------------------------------------ */

extern void step_view (struct life *l);
extern void step_scratch (struct life *l);
extern void step_promote_scratch (struct life *l);
/* A scratch's file: it loses its name at once. */
extern bool torture_is_scratch (const char *path);
/* Whoever looks at something goes, as before a server ends. */
extern void views_end (struct life *l);

/* --- torture-check.c ------------------------------------------------------ */

extern uint64_t torture_states, torture_faults;

struct answer {
  int code;                     /* enum mcexit */
  uint64_t id, generation;
  char text[1024];
};

extern struct answer torture_recover (struct simdisk *disk, const char *to);
/* Of what may be, which is it?  GARBLE: sectors in flight may hold anything. */
extern const struct outcome *torture_match_answer (const struct life *life,
                                                   struct simdisk *disk,
                                                   const struct expect *e,
                                                   const struct answer *a,
                                                   bool garble);
extern void torture_same_answer (const struct answer *a, const struct answer *b,
                                 const char *what);

/* DISK is what a crash of kind HOW, at an operation on PATH, left: recover it, and more. */
extern void torture_check (const struct life *life, struct simdisk *disk,
                           const struct expect *e, enum simdisk_crash how,
                           const char *path);
/* Are the bytes GOT what O allows?  GARBLE: sectors in flight may hold anything. */
extern bool torture_contents (const struct life *life,
                              const struct version *got,
                              const struct expect *e, const struct outcome *o,
                              bool garble);
/* Of what E allows, what has R, which is promoted to O's checkpoint and reads as GOT, come up as?  NULL: nothing. */
extern const struct outcome *torture_promoted (const struct life *life,
                                               const struct version *got,
                                               const struct expect *e,
                                               const struct outcome *o, bool garble);
/* Of what E allows, what has R come up as? */
/* NULL: none of them. */
extern const struct outcome *torture_find (struct replica *r, const struct expect *e);
extern const struct outcome *torture_match (const struct life *life,
                                            struct replica *r,
                                            const struct expect *e);

/* --- torture-refault.c ---------------------------------------------------- */

extern uint64_t torture_refaults;
/* The power was lost: recover, with each call and each allocation failing. */
extern void torture_refault (struct life *l);

/* --- torture-catalog.c ---------------------------------------------------- */

/* As a tool, before any server: whatever is listed was a checkpoint. */
extern void catalog_look (const struct life *life, struct simdisk *disk);
/* The house thread's work is done: the list is the journal's. */
extern void catalog_match (const struct life *life, struct simdisk *disk,
                           struct replica *r);
/* Do that work, if R is stepped by hand, with DISK's catalog. */
extern void catalog_step (struct simdisk *disk, struct replica *r);

#endif
