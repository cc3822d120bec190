/* SPDX-License-Identifier: BSD-3-Clause */
/* Samples of the backing images: ranges with the crc of what is in them, kept in the journal.  They
 * tell whether an image still is what was written out: not another one, not an older
 * copy, not one that somebody wrote to.
 *
 * Of an image that is written to all the time only some places can be remembered; small images,
 * and what the last cycles wrote, are covered almost wholly.
 */
#ifndef MCBUF_REPLICA_SAMPLES_H
#define MCBUF_REPLICA_SAMPLES_H

#include "buffers/map.h"
#include "journal/journal.h"

struct disk;

/* Sample the images anew, all over.  They are durable, and nobody writes to them. */
extern void samples_take (struct journal *j, struct disk *disks,
                          unsigned ndisks);

/* RUNS, sorted, are about to be written to the images: from now on nothing is known of these
 * ranges, and what is left of the samples is.  True: that has changed them, and a record that carries
 * them must be durable before the first write.
 */
extern bool samples_prepare (struct journal *j, struct disk *disks,
                             unsigned ndisks, const struct map_run *runs,
                             size_t n);

/* RUNS have been written, and are durable. */
extern void samples_update (struct journal *j, struct disk *disks,
                            unsigned ndisks, const struct map_run *runs,
                            size_t n);

struct samples_miss {
  unsigned disk;
  uint64_t offset;              /* in its image, bytes */
  bool later;                   /* all of it is of a later time than the journal */
};

/* In words. */
extern const char *samples_miss_text (const struct samples_miss *miss);

/* Are the images, those that are open, what the samples say?  1 yes; 0 no, *MISS says where; -1 with errno: MISS->disk cannot be
 * read, or ENOMEM.
 */
extern int samples_check (struct journal *j, struct disk *disks,
                          unsigned ndisks, struct samples_miss *miss);

#endif /* MCBUF_REPLICA_SAMPLES_H */
