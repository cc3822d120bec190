/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tests of the journal have in common: a journal in a directory of
 * its own, and a model of what is in it.
 */
#ifndef MCBUF_TESTS_UNIT_JOURNAL_HELP_H
#define MCBUF_TESTS_UNIT_JOURNAL_HELP_H

#include "journal/journal.h"

#define HELP_DISK_BLOCKS 512u   /* of the model's disk */

struct help {
  const struct io_fs *fs;
  char dir[256];
  struct journal_config config;
  struct journal_disk disk[2];
  struct journal *j;
  enum journal_took took;
  uint64_t epoch;               /* open */
  uint64_t checkpoint;
  /* Each block is filled with one 64 bit number: 0 is a hole. */
  uint64_t now[HELP_DISK_BLOCKS];
  uint32_t where[HELP_DISK_BLOCKS];     /* journal block, 0: not in the journal */
  uint64_t stamp;               /* of the last block written */
};

/* Seeded from MCBUF_TEST_SEED, or from the clock; printed either way. */
extern void help_seed (void);
extern uint64_t help_random (void);
extern unsigned help_below (unsigned n);

extern void help_init (struct help *h, const struct io_fs *fs, uint64_t size);
extern void help_create (struct help *h);
/* Open, start (BUFFER bytes; 0: do not start) and take the replica over. */
extern void help_open (struct help *h, uint64_t buffer, bool shared);
extern void help_close (struct help *h, bool end);
extern void help_remove (struct help *h);

/* Write N blocks of the model's disk from BLOCK on: 0, or -1 with errno. */
extern int help_write (struct help *h, unsigned block, unsigned n);
extern int help_zero (struct help *h, unsigned block, unsigned n);
extern uint64_t help_seal (struct help *h);
extern int help_commit (struct help *h, uint64_t epoch, const char *label);
extern int help_record (struct help *h, enum journal_kind kind,
                        void (*change) (struct journal_state *));
/* Move the watermark to EPOCH and forget. */
extern int help_watermark (struct help *h, uint64_t epoch);

extern void help_fill (void *mem, uint64_t stamp);
/* Replay (FROM, UPTO] over DISK; read and check each block.  0, -1 errno. */
extern int help_replay (struct help *h, uint64_t from, uint64_t upto,
                        uint64_t disk[HELP_DISK_BLOCKS],
                        struct journal_damage *damage);
extern int help_replay_uncommitted (struct help *h,
                                    uint64_t disk[HELP_DISK_BLOCKS],
                                    uint64_t *open_epoch);

#endif
