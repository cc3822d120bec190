/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of recovery share.
 *
 *   recover-begin.c   what is there, what is to be the disk, are the images what they should be
 *   recover-look.c    list, dry run, verify: nothing is changed
 *   recover.c         doing it
 */
#ifndef MCBUF_REPLICA_RECOVER_IMPL_H
#define MCBUF_REPLICA_RECOVER_IMPL_H

#include "replica/internal.h"
#include "replica/recover.h"
#include "replica/sums.h"

/* A commit that has to be written out, and how much data it has. */
struct recover_part {
  uint64_t epoch, blocks;
};

struct recovery {
  const struct recover_params *params;
  bool look;                    /* nothing may be changed */
  struct journal *j;
  struct journal_state state;
  struct journal_checkpoint *list;
  size_t nlist;
  struct journal_checkpoint chosen;
  struct disk *disks;
  struct sums *sums;            /* of their images, or NULL */
  unsigned ndisks;
  int wrong;                    /* disk whose image is not what it should be; -1 */
  struct journal_damage miss;   /* where; its file is not used */
  struct journal_disk *moved;   /* as the journal is to know them; NULL: it does */
  struct recover_part *parts;
  size_t nparts;
  bool whole;                   /* all that was acknowledged is still there */
  uint64_t cache;               /* bytes of journal that fit into RAM */
  const char *phase;
  uint64_t done, total, told;
  struct mcerror *err;
};

/* Bytes of the journal to keep in RAM at most (mcbuf-recover(1) says how many). */
extern uint64_t recover_cache (const struct recover_params *p);

/* Open the journal: state and list. */
extern int recover_open (struct recovery *rec, const struct recover_params *p,
                         bool look, struct journal_damage *damage,
                         struct mcerror *err);
/* Find out what is to be the disk.  -1: there is nothing, or it is damaged. */
extern int recover_aim (struct recovery *rec);
extern void recover_end (struct recovery *rec);

/* Open the images, and hold them against what the journal knows of them.  -1 with rec->wrong and
 * rec->miss when one is not what it should be.
 */
extern int recover_open_images (struct recovery *rec);
/* Its parts, once rec->disks is there: one image; those that are open. */
extern int recover_open_image (struct recovery *rec, unsigned i);
extern int recover_check_images (struct recovery *rec, enum sums_depth depth);

/* What there is to write out; does it verify? */
extern int recover_plan (struct recovery *rec);
extern int recover_check_data (struct recovery *rec);

/* Report D, and what can be recovered all the same.  -1. */
extern int recover_damage (struct recovery *rec,
                           const struct journal_damage *d);
/* The same when FILE is a path, and WHOLE (NULL: none) is known. */
extern int recover_damage_error (struct recovery *rec, const char *file,
                                 const struct journal_damage *d,
                                 const struct journal_checkpoint *whole);

/* Commits after the watermark up to what was chosen; of a promoted replica all, its own flushes included. */
static inline uint64_t
recover_upto (const struct recovery *rec)
{
  return rec->state.state == JOURNAL_PROMOTED ? UINT64_MAX : rec->chosen.id;
}

/* What is not committed, and goes: how much, and where. */
struct recover_tally {
  uint64_t bytes, epochs, last;
  struct epoch *ranges;         /* NULL: not wanted (any more) */
};
/* -1: it cannot be read, and nothing is counted. */
extern int recover_count_discarded (struct recovery *rec, struct recover_tally *tally);

extern void recover_fill_result (struct recovery *rec,
                                 struct recover_result *result);
extern void recover_tell (struct recovery *rec, bool now);
/* A journal_progress_fn. */
extern void recover_tell_verify (void *recovery, uint64_t done, uint64_t total);

#endif /* MCBUF_REPLICA_RECOVER_IMPL_H */
