/* SPDX-License-Identifier: BSD-3-Clause */
/* Replicas for the fuzzers to damage: each lived a small life on a simulated disk
 * before, and it is known to the byte what recovery has to make of it.
 *
 * Made once, when the fuzzer starts, by the simulated host of torture-host.c: always the same
 * bytes, so that an input means the same tomorrow.
 */
#ifndef MCBUF_TESTS_FUZZ_WORLD_H
#define MCBUF_TESTS_FUZZ_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "replica/internal.h"
#include "replica/recover.h"
#include "unit/simdisk.h"

#define WORLD_DISKS 2
#define WORLD_DIR "/sim/j"
#define WORLD_JOURNAL WORLD_DIR "/journal"
#define WORLD_ACKED WORLD_DIR "/acked"
#define WORLD_KNOWN 512
#define WORLDS 11

extern const uint64_t world_size[WORLD_DISKS];
extern const char *const world_name[WORLD_DISKS];
extern const char *const world_path[WORLD_DISKS];

/* Content of all disks. */
struct images {
  uint64_t id;                  /* of the checkpoint */
  uint8_t *disk[WORLD_DISKS];
};

/* Journal blocks that are not all zeroes, by what they are. */
enum place { PLACE_SUPER, PLACE_ANCHOR, PLACE_RECORD, PLACE_OTHER, PLACES };

struct world {
  const char *name;
  struct simdisk *disk;         /* as it was left */
  struct simdisk *older;        /* as it was some time before */
  enum mcexit code;             /* of a recovery without damage */
  bool promoted;
  struct images final;         /* what that recovers to */
  struct images known[WORLD_KNOWN];    /* checkpoints that there were */
  unsigned nknown;
  uint32_t *block[PLACES];
  unsigned nblocks[PLACES];
};

/* World I (of WORLDS), made when it is first asked for. */
extern const struct world *world_get (unsigned i);

/* Open the replica on DISK as a server that runs no threads.  NULL with ERR. */
extern struct replica *world_open (struct simdisk *disk, struct mcerror *err);

/* A copy that can be changed; free with simdisk_free. */
extern struct simdisk *world_copy (struct simdisk *disk);

extern void world_read (struct simdisk *disk, const char *path, void *buf,
                        size_t len, uint64_t off);
extern void world_write (struct simdisk *disk, const char *path,
                         const void *buf, size_t len, uint64_t off);
/* Are DISK's images V, of their old size? */
extern bool world_images_are (struct simdisk *disk, const struct images *v);

#endif /* MCBUF_TESTS_FUZZ_WORLD_H */
