/* SPDX-License-Identifier: BSD-3-Clause */
/* The bytes of the journal file.  mcbuf-journal(5) says what they mean and
 * when they are believed; this header pins where they lie.
 *
 * Everything is little-endian.  Every checksum is crc32c of the structure with
 * the checksum field itself taken as zero.  Offsets are in bytes from the
 * start of the structure.
 */
#ifndef MCBUF_JOURNAL_FORMAT_H
#define MCBUF_JOURNAL_FORMAT_H

#include <stddef.h>

#include "common/bytes.h"
#include "common/host.h"
#include "journal/journal.h"

#define FORMAT_VERSION 1u
#define FORMAT_COMPAT 0u        /* features that a reader may ignore */
#define FORMAT_JOINED 1u         /* a disk joined the replica later */
#define FORMAT_INCOMPAT FORMAT_JOINED   /* features that a reader must know */

/* Chunk 0, in blocks. */
#define FORMAT_SUPER_A 0u
#define FORMAT_SUPER_B 96u
#define FORMAT_ANCHOR_A 254u
#define FORMAT_ANCHOR_B 255u

#define FORMAT_MAGIC_LEN 8
#define FORMAT_SUPER_MAGIC "MCBUFJNL"
#define FORMAT_ANCHOR_MAGIC "MCBUFANC"
#define FORMAT_RECORD_MAGIC "MCBUFREC"
#define FORMAT_TABLE_MAGIC "MCBUFTAB"
#define FORMAT_ACKED_MAGIC "MCBUFACK"
#define FORMAT_SUMS_MAGIC "MCBUFSMH"
#define FORMAT_SUMS_PAGE_MAGIC "MCBUFSMP"

#define FORMAT_PIN(type, field, offset)                                 \
  _Static_assert (offsetof (struct type, field) == (offset),            \
                  #type "." #field " has moved")
#define FORMAT_SIZE(type, size)                                         \
  _Static_assert (sizeof (struct type) == (size), #type " has a new size")

/* Superblock: who the replica is.  Followed by NDISKS disk entries. */
struct format_super {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;                     /* of LENGTH bytes */
  le32 version;
  le32 compat, incompat;
  le32 length;                  /* superblock and disk entries */
  le32 ndisks;
  uint8_t id[HOST_ID_LEN];
  le64 seq;                     /* the higher one of two is the newer */
  le64 size;                    /* of the journal file */
  le32 chunk_size, block_size, disk_size;
  uint8_t reserved[JOURNAL_BLOCK - 76];
};
FORMAT_PIN (format_super, crc, 8);
FORMAT_PIN (format_super, version, 12);
FORMAT_PIN (format_super, compat, 16);
FORMAT_PIN (format_super, incompat, 20);
FORMAT_PIN (format_super, length, 24);
FORMAT_PIN (format_super, ndisks, 28);
FORMAT_PIN (format_super, id, 32);
FORMAT_PIN (format_super, seq, 48);
FORMAT_PIN (format_super, size, 56);
FORMAT_PIN (format_super, chunk_size, 64);
FORMAT_PIN (format_super, block_size, 68);
FORMAT_PIN (format_super, disk_size, 72);
FORMAT_SIZE (format_super, JOURNAL_BLOCK);

struct format_disk {
  char name[JOURNAL_NAME_MAX + 1];
  le64 size;
  le64 joined;                  /* the first checkpoint that may have it; 0: all (FORMAT_JOINED) */
  uint8_t reserved[48];
  char path[JOURNAL_PATH_MAX + 1];
};
FORMAT_PIN (format_disk, size, 64);
FORMAT_PIN (format_disk, joined, 72);
FORMAT_PIN (format_disk, path, 128);
FORMAT_SIZE (format_disk, 4224);
_Static_assert (JOURNAL_BLOCK + JOURNAL_MAX_DISKS * sizeof (struct format_disk)
                <= (FORMAT_SUPER_B - FORMAT_SUPER_A) * JOURNAL_BLOCK,
                "superblock A must not reach B");
_Static_assert (FORMAT_SUPER_B * 2 <= FORMAT_ANCHOR_A,
                "superblock B must not reach the anchors");

/* Anchor: where the chain of records begins. */
struct format_anchor {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;
  le32 chunk;                   /* the first record chunk still needed */
  uint8_t id[HOST_ID_LEN];
  le64 seq;                     /* of the anchor */
  le64 salt;                    /* of that chunk */
  le64 first;                   /* seq of its first record */
  le64 ncommits;                /* commits before that */
  le32 prev_crc;                /* crc of the record before that */
  uint8_t reserved[JOURNAL_BLOCK - 68];
};
FORMAT_PIN (format_anchor, crc, 8);
FORMAT_PIN (format_anchor, chunk, 12);
FORMAT_PIN (format_anchor, id, 16);
FORMAT_PIN (format_anchor, seq, 32);
FORMAT_PIN (format_anchor, salt, 40);
FORMAT_PIN (format_anchor, first, 48);
FORMAT_PIN (format_anchor, ncommits, 56);
FORMAT_PIN (format_anchor, prev_crc, 64);
FORMAT_SIZE (format_anchor, JOURNAL_BLOCK);

struct format_checkpoint {
  le64 id, time, extents, bytes;
  char label[JOURNAL_LABEL_MAX + 1];
};
FORMAT_PIN (format_checkpoint, time, 8);
FORMAT_PIN (format_checkpoint, extents, 16);
FORMAT_PIN (format_checkpoint, bytes, 24);
FORMAT_PIN (format_checkpoint, label, 32);
FORMAT_SIZE (format_checkpoint, 288);

#define FORMAT_HAS_CHECKPOINT 1u
#define FORMAT_CLEAN 2u
#define FORMAT_CLOSED 4u
#define FORMAT_DRAINED 8u
#define FORMAT_PENDING 16u
#define FORMAT_SCRATCH 32u

#define FORMAT_INLINE 1u        /* record flag: the payload is the table itself */

#define FORMAT_PAYLOAD 3072u

/* A sample of a backing image, in the payload of records without a table. */
struct format_sample {
  le64 where;                   /* disk << 48 | first sector */
  le32 nsectors;                /* 0: no more samples */
  le32 crc;
};
FORMAT_PIN (format_sample, nsectors, 8);
FORMAT_PIN (format_sample, crc, 12);
FORMAT_SIZE (format_sample, 16);
_Static_assert (JOURNAL_SAMPLES * sizeof (struct format_sample) == FORMAT_PAYLOAD,
                "samples fill the payload");

/* Record: one block. */
struct format_record {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;
  le16 kind, flags;
  uint8_t id[HOST_ID_LEN];
  le64 seq;
  le64 durable;                 /* highest seq known durable by then */
  le64 salt;                    /* of the chunk */
  le32 prev_crc;                /* crc of record SEQ - 1 */
  le32 next_chunk;              /* record chunk to go on in; 0: not known yet */
  le64 next_salt;
  le32 chunk, slot;             /* where this record lies */
  /* COMMIT, PROMOTED_COMMIT, CLEAN and their PARTs: */
  le64 epoch, first_epoch;      /* last and first epoch swept in */
  le64 extents, bytes;
  le32 nparts;                  /* PART records right before this one */
  le32 nruns;                   /* table runs in this record's payload */
  le64 table_bytes;             /* of the whole table, all PARTs' runs too */
  le32 table_crc;
  /* The state: */
  uint8_t state, state_flags, reserved1[2];
  le64 generation;
  uint8_t boot_id[HOST_ID_LEN];
  le64 instance;
  le64 open_epoch, epoch_limit;
  le64 target;
  le64 discarded_epochs, discarded_bytes;
  le64 zero_filled;
  le64 void_epoch;
  le64 ncommits;                /* COMMITs and PROMOTED_COMMITs so far, this one too */
  le64 void_from, void_floor;   /* epochs over void_from are void; up to void_floor, some may be */
  uint8_t reserved2[8];
  struct format_checkpoint checkpoint, watermark;
  uint8_t reserved3[192];
  uint8_t payload[FORMAT_PAYLOAD];
};
FORMAT_PIN (format_record, crc, 8);
FORMAT_PIN (format_record, kind, 12);
FORMAT_PIN (format_record, flags, 14);
FORMAT_PIN (format_record, id, 16);
FORMAT_PIN (format_record, seq, 32);
FORMAT_PIN (format_record, durable, 40);
FORMAT_PIN (format_record, salt, 48);
FORMAT_PIN (format_record, prev_crc, 56);
FORMAT_PIN (format_record, next_chunk, 60);
FORMAT_PIN (format_record, next_salt, 64);
FORMAT_PIN (format_record, chunk, 72);
FORMAT_PIN (format_record, slot, 76);
FORMAT_PIN (format_record, epoch, 80);
FORMAT_PIN (format_record, first_epoch, 88);
FORMAT_PIN (format_record, extents, 96);
FORMAT_PIN (format_record, bytes, 104);
FORMAT_PIN (format_record, nparts, 112);
FORMAT_PIN (format_record, nruns, 116);
FORMAT_PIN (format_record, table_bytes, 120);
FORMAT_PIN (format_record, table_crc, 128);
FORMAT_PIN (format_record, state, 132);
FORMAT_PIN (format_record, state_flags, 133);
FORMAT_PIN (format_record, generation, 136);
FORMAT_PIN (format_record, boot_id, 144);
FORMAT_PIN (format_record, instance, 160);
FORMAT_PIN (format_record, open_epoch, 168);
FORMAT_PIN (format_record, epoch_limit, 176);
FORMAT_PIN (format_record, target, 184);
FORMAT_PIN (format_record, discarded_epochs, 192);
FORMAT_PIN (format_record, discarded_bytes, 200);
FORMAT_PIN (format_record, zero_filled, 208);
FORMAT_PIN (format_record, void_epoch, 216);
FORMAT_PIN (format_record, void_from, 232);
FORMAT_PIN (format_record, void_floor, 240);
FORMAT_PIN (format_record, ncommits, 224);
FORMAT_PIN (format_record, checkpoint, 256);
FORMAT_PIN (format_record, watermark, 544);
FORMAT_PIN (format_record, payload, 1024);
FORMAT_SIZE (format_record, JOURNAL_BLOCK);

/* A run of table bytes; a record's payload holds up to FORMAT_RUNS. */
struct format_run {
  le32 block;                   /* journal block that it begins at */
  le32 bytes;
};
FORMAT_PIN (format_run, bytes, 4);
FORMAT_SIZE (format_run, 8);
#define FORMAT_RUNS (FORMAT_PAYLOAD / sizeof (struct format_run))

/* Descriptor: one slot of a table.  K - 1 more images: their crcs follow in
 * ceil ((K - 1) / 8) slots of eight.  A slot of zeroes: go on at the next block.
 */
struct format_desc {
  le64 sector;
  le32 nsectors;
  le32 block;
  le16 disk, flags;             /* as struct journal_extent */
  le32 crc_first;               /* of the first image */
  le32 epoch_low;
  le32 self_crc;                /* seeded with replica id and epoch */
};
FORMAT_PIN (format_desc, nsectors, 8);
FORMAT_PIN (format_desc, block, 12);
FORMAT_PIN (format_desc, disk, 16);
FORMAT_PIN (format_desc, flags, 18);
FORMAT_PIN (format_desc, crc_first, 20);
FORMAT_PIN (format_desc, epoch_low, 24);
FORMAT_PIN (format_desc, self_crc, 28);
FORMAT_SIZE (format_desc, 32);

#define FORMAT_SLOT sizeof (struct format_desc)
#define FORMAT_CRCS_PER_SLOT 8u
#define FORMAT_BLOCK_SLOTS (JOURNAL_BLOCK / FORMAT_SLOT)        /* 128 */
#define FORMAT_CHUNK_SLOTS (JOURNAL_CHUNK / FORMAT_SLOT)        /* 32768 */
#define FORMAT_INLINE_SLOTS (FORMAT_PAYLOAD / FORMAT_SLOT)      /* 96 */
/* A descriptor of a whole chunk of images. */
#define FORMAT_DESC_SLOTS_MAX                                           \
  (1 + (JOURNAL_CHUNK_BLOCKS - 1 + FORMAT_CRCS_PER_SLOT - 1) / FORMAT_CRCS_PER_SLOT)

/* Block 0 of a table chunk; descriptors begin in block 1. */
struct format_table {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;
  le32 chunk;
  uint8_t id[HOST_ID_LEN];
  le64 serial;                  /* counts table chunks of one stream, from 1 */
  le32 prev;                    /* the chunk of SERIAL - 1, 0: none */
  uint8_t reserved[20];
};
FORMAT_PIN (format_table, crc, 8);
FORMAT_PIN (format_table, chunk, 12);
FORMAT_PIN (format_table, id, 16);
FORMAT_PIN (format_table, serial, 32);
FORMAT_PIN (format_table, prev, 40);
FORMAT_SIZE (format_table, 64);

/* The file `acked`. */
#define FORMAT_ACKED_FAILED 1u  /* the journal failed behind record SEQ: nothing later is to be believed */

struct format_acked {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;
  le32 flags;
  uint8_t id[HOST_ID_LEN];
  uint8_t boot_id[HOST_ID_LEN];
  le64 checkpoint;
  le64 generation;
  le64 seq;                     /* of the record that was acknowledged */
  uint8_t reserved2[56];
};
FORMAT_PIN (format_acked, crc, 8);
FORMAT_PIN (format_acked, id, 16);
FORMAT_PIN (format_acked, boot_id, 32);
FORMAT_PIN (format_acked, checkpoint, 48);
FORMAT_PIN (format_acked, generation, 56);
FORMAT_PIN (format_acked, seq, 64);
FORMAT_SIZE (format_acked, 128);

/* An image's file after a write-out; 0: not known. */
struct format_stamp {
  le64 inode, mtime;
};
FORMAT_PIN (format_stamp, mtime, 8);
FORMAT_SIZE (format_stamp, 16);

/* JOURNAL/sums, the checksums of what was written out: its first page ... */
struct format_sums {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;
  le32 disks_crc;               /* of names and sizes of the disks */
  uint8_t id[HOST_ID_LEN];
  le64 upto;                    /* the checkpoint that was written out last */
  le64 seq;                     /* the newest record then */
  uint8_t reserved1[80];
  struct format_stamp stamp[JOURNAL_MAX_DISKS];
  le64 written[JOURNAL_MAX_DISKS];      /* target of the last write-out that wrote to it; 0: not known */
  uint8_t reserved2[JOURNAL_BLOCK - 128 - 24 * JOURNAL_MAX_DISKS];
};
FORMAT_PIN (format_sums, crc, 8);
FORMAT_PIN (format_sums, disks_crc, 12);
FORMAT_PIN (format_sums, id, 16);
FORMAT_PIN (format_sums, upto, 32);
FORMAT_PIN (format_sums, seq, 40);
FORMAT_PIN (format_sums, stamp, 128);
FORMAT_PIN (format_sums, written, 1152);
FORMAT_SIZE (format_sums, JOURNAL_BLOCK);

/* ... and the others. */
#define FORMAT_SUMS 2032u       /* in a page */
struct format_page {
  char magic[FORMAT_MAGIC_LEN];
  le32 crc;
  le32 disk;
  le64 number;                  /* among the pages of the disk */
  le16 sum[FORMAT_SUMS];        /* 0: not known */
  uint8_t reserved[8];
};
FORMAT_PIN (format_page, crc, 8);
FORMAT_PIN (format_page, disk, 12);
FORMAT_PIN (format_page, number, 16);
FORMAT_PIN (format_page, sum, 24);
FORMAT_SIZE (format_page, JOURNAL_BLOCK);

#endif /* MCBUF_JOURNAL_FORMAT_H */
