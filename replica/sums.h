/* SPDX-License-Identifier: BSD-3-Clause */
/* Checksums of what was written out to the backing images: JOURNAL/sums, 16 bits for each 4 KiB of
 * a disk.  With them a start, or a recovery, knows an image for what was written out, however large it
 * is; the samples that the journal itself has (samples.h) are for what is never noted here: first
 * copies, and images behind NBD.
 *
 * After each write-out they are noted, and synced before the record of its end: of a block that was written as a
 * whole what was to be written, by the crc of its image in the journal; others are read back.  Each page
 * of the file has a checksum, and what is not there, or torn, is not known.  So an error costs
 * knowledge, never the replica.  In the range of a write-out that is under way anything may be in the images:
 * it is replayed.
 *
 * Callers queue: the write-out thread, or whoever opens the replica, before it runs.
 */
#ifndef MCBUF_REPLICA_SUMS_H
#define MCBUF_REPLICA_SUMS_H

#include "buffers/map.h"
#include "journal/journal.h"

struct disk;
struct samples_miss;
struct sums;

/* Those of the replica in DIR, which has the journal's disks.  LOOK: nothing is changed.  NULL: there
 * are none to be had; all functions take that.
 */
extern struct sums *sums_open (const struct io_fs *fs, const char *dir,
                               struct journal *j, bool look);
extern void sums_close (struct sums *s);

/* The images are going to be written past the journal: nothing is known of them any more. */
extern void sums_forget (struct sums *s);

/* A write-out begins: has anybody else written to an image since the last one?  Then its time will not say any more that
 * nobody did.
 */
extern void sums_prepare (struct sums *s, struct disk *disks, unsigned ndisks);

/* RUNS, sorted, were written to the images of DISKS by a write-out up to UPTO, which is whole.  PROGRESS
 * (may be NULL) is called now and then; with -1 it asks for an end: the rest is not known then.
 */
extern void sums_note (struct sums *s, struct disk *disks, unsigned ndisks,
                       const struct map_run *runs, size_t n, uint64_t upto,
                       int (*progress) (void *opaque, uint64_t bytes), void *opaque);

enum sums_depth {
  SUMS_SOME,                    /* so much of each image that was touched as does not take long */
  SUMS_CHANGED,                 /* all of it, unless a write-out was under way or nothing tells whether it was touched */
  SUMS_ALL,
};

/* Are the images, those that are open, what was written out to them?  1 yes, or not known; 0 no, *MISS says
 * where; -1 with errno: ENOMEM, or with SUMS_ALL MISS->disk cannot be read.
 */
extern int sums_check (struct sums *s, struct disk *disks, unsigned ndisks,
                       enum sums_depth depth, struct samples_miss *miss);

#endif /* MCBUF_REPLICA_SUMS_H */
