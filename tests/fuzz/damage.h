/* SPDX-License-Identifier: BSD-3-Clause */
/* What a fuzzer's input does to a replica's files: a list of commands of 12 bytes.
 *
 *   byte 0     what: enum damage_op
 *   byte 1     which sort of block: enum place; higher: any block
 *   2, 3       which of them
 *   4 .. 11    a value
 *
 * Flipped bits alone never get beyond the checksums.  So some commands set
 * checksums right again; what has been through one of those is *forged*, and may be a
 * whole journal of another content.
 */
#ifndef MCBUF_TESTS_FUZZ_DAMAGE_H
#define MCBUF_TESTS_FUZZ_DAMAGE_H

#include "fuzz/world.h"

#define DAMAGE_COMMAND 12u
#define DAMAGE_MAX 64u          /* commands */

enum damage_op {
  DAMAGE_XOR,                   /* bytes of a block */
  DAMAGE_SET,                   /* a field of a structure */
  DAMAGE_COPY,                  /* a block over another one */
  DAMAGE_ZERO,                  /* a block */
  DAMAGE_OLDER,                 /* a block becomes what it was some time before */
  DAMAGE_CUT,                   /* the journal file */
  DAMAGE_BAD,                   /* a sector that cannot be read */
  DAMAGE_ACKED_XOR, DAMAGE_ACKED_SET, DAMAGE_ACKED_LOST, DAMAGE_ACKED_CUT,
  DAMAGE_IMAGE_CUT,             /* a backing image */
  DAMAGE_DESC,                  /* a field of a descriptor; its crc is right again */
  DAMAGE_SEAL,                  /* the crc of a block's structure is right again */
  DAMAGE_MEND,                  /* so are all, and the chain of records */
  DAMAGE_ACKED_MEND,
  DAMAGE_TO,                    /* recover to that checkpoint */
  DAMAGE_BOOT,                  /* the host was booted */
  DAMAGE_OPS
};

struct damage {
  const struct world *w;
  struct simdisk *disk;         /* changed in place */
  bool journal, acked, image;   /* were touched */
  bool forged;
  uint64_t bad_off, bad_len;    /* of the journal: cannot be read */
  unsigned boot;
  bool has_to;
  char to[300];
};

/* Carry out SIZE bytes of commands. */
extern void damage_apply (struct damage *d, const uint8_t *data, size_t size);

/* A copy of the damaged disk, bad sectors and all. */
extern struct simdisk *damage_copy (const struct damage *d);

#endif /* MCBUF_TESTS_FUZZ_DAMAGE_H */
