/* SPDX-License-Identifier: BSD-3-Clause */
/* Tables: the descriptors of epochs, from the stream in shared memory to what a commit refers to.
 * A part of journal/internal.h, whose locks these are, too.
 */
#ifndef MCBUF_JOURNAL_TABLE_H
#define MCBUF_JOURNAL_TABLE_H

#include "journal/format.h"
#include "journal/journal.h"

/* --- the stream: table.c --- */

/* An epoch that is not committed and not empty.  Positions count slots of the
 * stream: serial number of the table chunk * FORMAT_CHUNK_SLOTS + slot.
 */
struct epoch_info {
  uint64_t epoch;
  uint64_t start, end;
  uint64_t extents, bytes;
  uint64_t slots;               /* without padding */
};

#define READY_MAX 64

struct tables {
  uint32_t *chunks;             /* ring: table chunks of the stream, the last is open */
  size_t chunks_cap, chunks_head, nchunks;
  uint64_t first_serial;        /* of chunks[head] */
  uint64_t mark;                /* end of what is published; 0: no chunk is open */
  uint32_t last_chunk;          /* for the next one's header */
  uint32_t ready[READY_MAX];    /* chunks to go on in, zeroed and bound */
  unsigned nready;
  bool making;                  /* somebody gets one ready */
  uint64_t credit;              /* slots promised */
  unsigned credits;             /* publications promised */
  struct epoch_info *epochs;    /* ring, oldest first */
  size_t epochs_cap, epochs_head, nepochs;
  uint64_t seed_epoch;          /* SEED is of this epoch */
  uint32_t seed;
};

extern int tables_init (struct journal *j);
extern void tables_free (struct journal *j);
extern void tables_pad_locked (struct journal *j);
/* The uncommitted epochs up to EPOCH are committed, or void. */
extern void tables_drop_locked (struct journal *j, uint64_t epoch,
                                uint64_t commit, bool referenced);
extern struct epoch_info *tables_epoch_locked (struct journal *j, size_t i);
extern uint32_t stream_chunk_locked (struct journal *j, uint64_t pos);
extern int tables_grow_locked (struct journal *j);
extern uint32_t desc_seed (const struct journal_config *config, uint64_t epoch);

/* --- reading one: walk.c --- */

/* A descriptor, checked. */
struct table_item {
  struct journal_extent ext;
  uint64_t epoch;
  uint32_t nblocks;             /* 0 unless DATA */
  uint32_t crc_first;
  const le32 *more;             /* crcs of the other images */
};
typedef int (*table_item_fn) (void *opaque, const struct table_item *item);

struct table_walk {
  struct journal *j;
  uint64_t first_epoch, epoch;  /* what epochs are to be expected */
  table_item_fn fn;
  void *opaque;
  uint64_t seed_epoch;
  uint32_t seed;
  uint64_t items;
  size_t at;                    /* where the item that FN sees begins ... */
  size_t slots;                 /* ... and how long it is */
  bool malformed;               /* out: it is the table that is bad, and not what FN says */
};

static inline uint32_t
table_item_crc (const struct table_item *item, uint32_t i)
{
  return i == 0 ? item->crc_first : get32 (item->more[i - 1]);
}

/* Walk LEN bytes of table at P.  -1: EBADMSG and *OFFSET (where), or what FN said. */
extern int table_walk_bytes (struct table_walk *walk, const void *p, size_t len,
                             bool inline_, size_t *offset);
/* Walk the table of the commit or CLEAN record SEQ (NPARTS records before it
 * belong to it).  -1 with EBADMSG and *DAMAGE, or what FN said.
 */
extern int table_walk_record (struct journal *j, uint64_t seq, uint32_t nparts,
                              uint64_t checkpoint, table_item_fn fn,
                              void *opaque, struct journal_damage *damage);
/* Bytes of table of a record, for progress. */
struct table_runs {
  struct format_run *runs;      /* malloc'd */
  size_t nruns;
  uint64_t bytes;
  uint32_t crc;
  bool inline_;
  uint64_t first_epoch, epoch;
  uint8_t payload[FORMAT_PAYLOAD];
};
extern int table_runs_read (struct journal *j, uint64_t seq, uint32_t nparts,
                            uint64_t checkpoint, struct table_runs *runs,
                            struct journal_damage *damage);
extern int table_runs_walk (struct journal *j, const struct table_runs *runs,
                            uint64_t checkpoint, table_item_fn fn, void *opaque,
                            struct journal_damage *damage);

/* --- sweep.c --- */

/* What a commit sweeps in. */
struct sweep {
  uint64_t first, last;         /* epochs; first 0: no extent in any */
  uint64_t extents, bytes, slots;
  size_t nepochs;
  bool inline_;
  struct format_run *runs;      /* malloc'd */
  size_t nruns, cap;
  uint64_t table_bytes;
  uint32_t table_crc;
};

/* Which epochs up to EPOCH there are, and how much. */
extern void sweep_gather (struct journal *j, uint64_t epoch, struct sweep *s);
extern int sweep_runs (struct journal *j, struct sweep *s);
extern const uint8_t *sweep_run_get (struct journal *j, const struct sweep *s,
                                     size_t i, uint8_t **mem, bool *pinned);
extern int sweep_table (struct journal *j, struct sweep *s, uint8_t *inline_to);

#endif /* MCBUF_JOURNAL_TABLE_H */
