/* SPDX-License-Identifier: BSD-3-Clause */
/* The torture of a whole replica on a simulated disk.
 *
 *   torture-host.c    time, boots, random numbers and memory of the simulated host
 *   torture-check.c   what may be found after a crash, and looking for it
 *   torture-life.c    one life of a replica: random requests, and the model that they change
 *   test-replica-torture.c  which lives are lived
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
#define TORTURE_CHECKPOINTS 8192        /* epoch numbers of one life */
#define TORTURE_LATE 256

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

/* --- torture-check.c ------------------------------------------------------ */

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
  enum clean clean;             /* has the server stopped cleanly? */
  const struct version *saved;  /* then inlets read this ... */
  uint64_t open_epoch;          /* ... and this epoch is open */
  unsigned nsealed;
};

struct life;

extern uint64_t torture_states, torture_faults;

/* DISK is what a crash of kind HOW left: recover it, and more. */
extern void torture_check (const struct life *life, struct simdisk *disk,
                           const struct expect *e, enum simdisk_crash how);
/* Is the content of DISK's images what O allows?  GARBLE: sectors in flight may hold anything. */
extern bool torture_images (const struct life *life, struct simdisk *disk,
                            const struct expect *e, const struct outcome *o,
                            bool garble);
/* Are the bytes GOT? */
extern bool torture_contents (const struct life *life,
                              const struct version *got,
                              const struct expect *e, const struct outcome *o,
                              bool garble);

/* --- torture-life.c ------------------------------------------------------- */

struct life_params {
  uint64_t seed;
  bool threads;                 /* replica_run; else stepped by hand */
  bool crash;                   /* at every operation */
  uint64_t fail_at;             /* the operation that fails; 0: none */
  int fail_error;
  bool fail_sticky;
  unsigned short_len;           /* of writes */
  unsigned laps, steps;         /* lives on the way, requests in each */
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
  struct { uint64_t epoch; const struct version *v; } sealed[8];
  unsigned nsealed;
  uint64_t newest_epoch;        /* no epoch up to it is ever given out again */
  struct late *late;
  unsigned nlate;
  struct blob *blobs;           /* what LATE points to */
  const struct version *known[TORTURE_CHECKPOINTS];     /* by checkpoint */
  uint64_t rng;                 /* of the requests */
  unsigned boot;
  bool garbled;                 /* by the last crash */
  bool log_error;
  bool doubt;                   /* a sync of the journal failed */
};

/* Live it.  Returns how many operations the disk saw. */
extern uint64_t torture_life (const struct life_params *p);
/* Of what E allows, what has R come up as? */
extern const struct outcome *torture_match (const struct life *life,
                                            struct replica *r,
                                            const struct expect *e);
/* Open the replica of LIFE on DISK.  NULL only where a fault was asked for. */
extern struct replica *torture_open (const struct life *life,
                                     struct simdisk *disk, bool threads);
extern void torture_fill (void *buf, size_t len, uint64_t stamp);

/* For messages: what is going on now. */
extern const struct life *torture_now;
extern const char *torture_doing;
extern const char *torture_test;

#endif
