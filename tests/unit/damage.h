/* SPDX-License-Identifier: BSD-3-Clause */
/* Replicas on a simulated disk, and harm done to them.
 *
 *   damage-life.c   a short random life of a replica, and where everything lies in what it leaves
 *   damage-harm.c   one or two pieces of harm
 *   test-replica-damage.c  what recovery and a server make of it
 */
#ifndef MCBUF_TESTS_UNIT_DAMAGE_H
#define MCBUF_TESTS_UNIT_DAMAGE_H

#include "unit/torture.h"

#define DAMAGE_DISKS 3
#define DAMAGE_DIR "/sim/j"
#define DAMAGE_JOURNAL DAMAGE_DIR "/journal"
#define DAMAGE_ACKED DAMAGE_DIR "/acked"
#define DAMAGE_JOURNAL_SIZE (UINT64_C (16) << 20)
#define DAMAGE_KNOWN 2048       /* checkpoint numbers of one life */
#define DAMAGE_PLACES 8192

/* How a life ends. */
enum damage_ending {
  END_KILLED,                   /* speculation is lost */
  END_STOPPED,                  /* and saved */
  END_TORN,                     /* power loss within a commit */
  END_WRITING,                  /* power loss within a cycle of write-out */
  END_PROMOTED,                 /* with a backlog, and writes since */
  END_DRAINED,                  /* ... and with neither */
  END_COPIED,                   /* right after the first copy */
  END_COPYING,                  /* within it */
  END_LONG,                     /* many records */
  ENDINGS
};

/* What lies where in the journal. */
enum damage_area {
  AREA_SUPER_A, AREA_SUPER_B, AREA_ANCHOR_A, AREA_ANCHOR_B, AREA_RECORD,
  AREA_TABLE, AREA_DATA, AREA_SAVED, AREAS
};

struct damage_place {
  enum damage_area area;
  uint64_t off;
  uint32_t len;
  uint64_t checkpoint;          /* that needs it; 0: none does by itself */
};

struct damage_life {
  uint64_t seed;
  enum damage_ending ending;
  struct simdisk *disk;         /* what it leaves */
  struct simdisk *older;        /* what it would have left some time before */
  unsigned ndisks;
  uint64_t size[DAMAGE_DISKS];
  char name[DAMAGE_DISKS][8], path[DAMAGE_DISKS][32];

  /* What recovery has to answer. */
  bool has_checkpoint, promoted, drained;       /* drained: the images are nobody's business */
  uint64_t newest;
  uint8_t *want[DAMAGE_DISKS];
  /* Of other checkpoints, what they were; NULL: never was one. */
  uint8_t *known[DAMAGE_KNOWN][DAMAGE_DISKS];
  uint8_t *inlet[DAMAGE_DISKS]; /* with speculation */
  bool torn;                    /* NEWEST, or the checkpoint after it */
  uint8_t *torn_want[DAMAGE_DISKS];

  struct damage_place place[DAMAGE_PLACES];
  unsigned nplaces;
  uint64_t used;                /* nothing was ever written behind here */
};

/* Live it; the same seed and sizes twice give two replicas with disks of the same
 * names, paths and sizes.
 */
extern struct damage_life *damage_life_new (uint64_t seed, uint64_t sizes,
                                            enum damage_ending ending);
extern void damage_life_free (struct damage_life *l);
extern struct replica *damage_open (const struct damage_life *l,
                                    struct simdisk *disk, struct mcerror *err);

extern void damage_fill (void *buf, size_t len, uint64_t stamp);

/* --- damage-harm.c --- */

enum harm {
  HARM_NONE,
  HARM_BIT,                     /* in some structure */
  HARM_ANY_BIT,                 /* anywhere in the file */
  HARM_BITS,                    /* of a sector: garbage */
  HARM_UNREADABLE,
  HARM_CUT,
  HARM_SWAP,                    /* two chunks */
  HARM_ZERO,                    /* a chunk */
  HARM_OLD_CHUNK,               /* as it was some time before */
  HARM_OLD_BLOCK,
  HARM_LOST,
  HARM_OLD,
  HARM_OTHER,                   /* of another replica */
  HARM_ACKED_BIT, HARM_ACKED_CUT, HARM_ACKED_LOST, HARM_ACKED_OLD,
  HARM_ACKED_OTHER,
  HARM_IMAGE_SIZE, HARM_IMAGE_LOST, HARM_IMAGES_SWAPPED, HARM_IMAGE_OTHER,
  HARM_IMAGE_OLD, HARM_IMAGE_WRITTEN,
  HARMS
};

struct harmed {
  enum harm harm;
  char what[320];
  bool journal, acked, images;  /* which were touched */
  bool second;                  /* so was something else */
  bool none;                    /* nothing to harm there */
  struct damage_place place;    /* HARM_BIT, HARM_BITS, HARM_UNREADABLE */
};

/* Do HARM to DISK, a copy of what L left.  OTHER is another replica. */
extern struct harmed damage_harm (const struct damage_life *l,
                                  const struct damage_life *other,
                                  struct simdisk *disk, enum harm harm);

#endif /* MCBUF_TESTS_UNIT_DAMAGE_H */
