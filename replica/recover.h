/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery without a server: make the last checkpoint, or a chosen one, the disk. */
#ifndef MCBUF_REPLICA_RECOVER_H
#define MCBUF_REPLICA_RECOVER_H

#include "journal/journal.h"

/* --disk=NAME:PATH, for an image that has moved. */
struct recover_disk {
  const char *name;
  const char *path;
};

typedef void (*recover_progress_fn) (void *opaque, const char *phase,
                                     uint64_t done, uint64_t total);

struct recover_params {
  const struct io_fs *fs;               /* &io_posix */
  const char *dir;                      /* the journal */
  const char *to;                       /* number, label or time; NULL: the last */
  const struct recover_disk *disks;
  unsigned ndisks;
  recover_progress_fn progress;         /* may be NULL; called at most some times a second */
  void *opaque;
  uint64_t cache;                       /* bytes of journal to keep in RAM at most; 0: what is sensible */
};

struct recover_result {
  struct journal_checkpoint checkpoint; /* what the disk is now (or would be) */
  uint64_t discarded_bytes, discarded_epochs;
  uint64_t written_bytes;
  uint64_t generation;
  /* Disks that joined later and are not part of it: their images are left alone. */
  char without[JOURNAL_MAX_DISKS][JOURNAL_NAME_MAX + 1];
  unsigned nwithout;
  const char *state;                    /* a word of DESIGN.md, static */
  double seconds;
};

/* Recover.  Idempotent: killed at any instruction it can be run again, and a
 * second run changes nothing and gives the same answer.  -1 with ERR filled; its code is the
 * tool's exit code.
 */
extern int recover_run (const struct recover_params *params,
                        struct recover_result *result, struct mcerror *err);

/* What recover_run would do, and whether it could, without changing a byte. */
extern int recover_dry_run (const struct recover_params *params,
                            struct recover_result *result,
                            struct mcerror *err);

/* The checkpoints that can be recovered to, oldest first; *LIST is malloced. */
extern int recover_list (const struct recover_params *params,
                         struct journal_checkpoint **list, size_t *n,
                         struct mcerror *err);

/* What a verification has found. */
#define RECOVER_DAMAGES 64
#define RECOVER_NOTES 4

struct recover_damage {
  char *file;                   /* path; NULL: no memory for it */
  uint64_t offset;
  uint64_t checkpoint;          /* the oldest that needs it; 0: none, or not known */
  char what[160];
};

struct recover_findings {
  struct recover_damage damage[RECOVER_DAMAGES];
  unsigned ndamage;
  uint64_t total;               /* all that there is, if not listed */
  uint64_t bytes;               /* of the journal, read and checked */
  bool has_whole;
  struct journal_checkpoint whole;      /* the newest that can be recovered to */
  char note[RECOVER_NOTES][1024];       /* what is amiss and harms nothing */
  unsigned nnotes;
};

/* Check every retained byte of the journal, and the images as far as it knows them, without changing
 * any, or a time stamp.  RESULT: what is there.  0 when nothing is damaged; else -1 with
 * MCEXIT_DAMAGE, or another code when there is nothing to verify.
 */
extern int recover_verify (const struct recover_params *params,
                           struct recover_result *result,
                           struct recover_findings *findings,
                           struct mcerror *err);
extern void recover_findings_free (struct recover_findings *findings);

/* TO among LIST: the number, else the newest with that label, else the newest not after that time.  Digits
 * only is always a number.  -1 with MCEXIT_REFUSED when there is none.
 */
extern int recover_choose (const struct journal_checkpoint *list, size_t n,
                           const char *to, struct journal_checkpoint *chosen,
                           struct mcerror *err);

#endif /* MCBUF_REPLICA_RECOVER_H */
