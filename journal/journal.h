/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal: bytes on disk that hold epochs.
 *
 * A journal is a directory with one preallocated file cut into 1 MiB chunks.
 * Chunks hold data (4 KiB block images, packed in order of arrival), tables
 * (descriptors: which disk range each block image belongs to) or records (one
 * 4 KiB block each: commits and changes of state, in one order).  Chunks in
 * use are mirrored by buffers in a staging region of POSIX shared memory
 * until they are on disk, and for as long as nobody needs the buffer.
 *
 * The journal knows nothing of NBD, of maps or of rules about states: it
 * keeps what the replica tells it, durably and in order.
 *
 * Threads: every function may be called from any thread once journal_start
 * has returned, except journal_stop and journal_close.  The journal's own
 * lock is taken inside the replica's and never held across I/O.
 *
 * Errors: -1 with errno; functions that take a struct mcerror fill it too.
 * After a write or sync of the journal file fails, the journal is poisoned: each
 * function that would write returns EIO for ever (journal_failed tells why).
 */
#ifndef MCBUF_JOURNAL_JOURNAL_H
#define MCBUF_JOURNAL_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/host.h"
#include "common/io.h"
#include "common/mcerror.h"

#define JOURNAL_SECTOR 512u
#define JOURNAL_BLOCK 4096u
#define JOURNAL_CHUNK (1u << 20)
#define JOURNAL_CHUNK_BLOCKS (JOURNAL_CHUNK / JOURNAL_BLOCK)
#define JOURNAL_MAX_DISKS 64u
#define JOURNAL_NAME_MAX 63u      /* bytes in a disk's name, without the NUL */
#define JOURNAL_PATH_MAX 4095u
#define JOURNAL_LABEL_MAX 255u
#define JOURNAL_MIN_SIZE (UINT64_C (16) << 20)
#define JOURNAL_MAX_SIZE (UINT64_C (16) << 40)  /* 32 bits of blocks */

struct journal;

/* What never changes by itself: who the replica is and which disks it has. */
struct journal_disk {
  char name[JOURNAL_NAME_MAX + 1];
  char path[JOURNAL_PATH_MAX + 1];      /* absolute path of the backing image, or URI */
  uint64_t size;                        /* bytes */
  uint64_t joined;                      /* checkpoints before this one do not have it; 0: all have */
};

struct journal_config {
  uint8_t id[HOST_ID_LEN];              /* the replica's identity */
  uint64_t size;                        /* of the journal file, bytes */
  unsigned ndisks;
  struct journal_disk *disks;           /* owned by whoever made the struct */
};

/* The states of DESIGN.md, as the numbers on disk. */
enum journal_replica_state {
  JOURNAL_SYNCING = 1,
  JOURNAL_PROTECTED = 2,
  JOURNAL_STALE = 3,
  JOURNAL_RESYNCING = 4,
  JOURNAL_PROMOTED = 5,
  JOURNAL_FAILED = 6,
};

/* A point that can be recovered to. */
struct journal_checkpoint {
  uint64_t id;                          /* the epoch it ends with */
  uint64_t time;                        /* ns since 1970 */
  uint64_t extents, bytes;              /* what its commit swept in */
  char label[JOURNAL_LABEL_MAX + 1];    /* UTF-8, "" for none */
};

/* The replica's state.  Every record carries it whole, so the newest valid
 * record is the truth.
 */
struct journal_state {
  enum journal_replica_state state;
  uint64_t generation;                  /* from 1 */
  bool has_checkpoint;                  /* CHECKPOINT and WATERMARK mean something */
  bool clean;                           /* the clean mark: nothing acknowledged is missing */
  bool closed;                          /* in syncing: a seal closed the first copy */
  bool drained;                         /* promoted: the backing images are the disk */
  bool pending;                         /* promoted: uncommitted epochs are void, a scratch is being promoted */
  bool scratch;                         /* promoted: what was written to a scratch is in it, or pending */
  uint8_t boot_id[HOST_ID_LEN];         /* the boot that wrote the record */
  uint64_t instance;                    /* counts starts of the server */
  uint64_t epoch;                       /* open epoch when the record was written */
  uint64_t epoch_limit;                 /* no epoch over this was ever open */
  uint64_t void_epoch;                  /* uncommitted epochs up to it were discarded, */
  uint64_t void_from;                   /* the last time those over this */
  uint64_t void_floor;                  /* and before that some up to this */
  struct journal_checkpoint checkpoint; /* newest committed */
  struct journal_checkpoint watermark;  /* newest wholly in the backing images */
  uint64_t target;                      /* write-out aims at this; == watermark.id when idle */
  uint64_t discarded_epochs, discarded_bytes;   /* by the last promote */
  uint64_t zero_filled;                 /* chunks below this were written once (the journal keeps it) */
};

enum journal_kind {
  JOURNAL_REC_CREATE = 1,
  JOURNAL_REC_OPEN = 2,         /* a server, or recovery, took the journal over */
  JOURNAL_REC_DIRTY = 3,        /* the clean mark is off */
  JOURNAL_REC_CLEAN = 4,        /* clean stop; carries the tables of uncommitted epochs */
  JOURNAL_REC_PART = 5,         /* tables of the COMMIT or CLEAN that follows */
  JOURNAL_REC_COMMIT = 6,
  JOURNAL_REC_TARGET = 7,       /* writing out up to state.target */
  JOURNAL_REC_WATERMARK = 8,
  JOURNAL_REC_STATE = 9,        /* any other change of state */
  JOURNAL_REC_PROMOTE = 10,
  JOURNAL_REC_PROMOTED_COMMIT = 11, /* flush of promoted writes: an epoch, not a checkpoint */
};

/* One range of one disk.  Data ranges lie in consecutive block images from
 * BLOCK on: the first image holds the disk's block that SECTOR is in.
 */
#define JOURNAL_DATA 1u
#define JOURNAL_ZERO 2u         /* reads as zeroes; no data */
#define JOURNAL_MAY_TRIM 4u     /* with ZERO: may be a hole */

struct journal_extent {
  uint16_t disk;
  uint16_t flags;
  uint32_t nsectors;            /* 512 byte units, > 0 */
  uint64_t sector;
  uint32_t block;               /* journal block of the first image (DATA) */
};

/* Disk blocks that EXT touches: the number of block images of a DATA extent. */
static inline uint32_t
journal_extent_blocks (const struct journal_extent *ext)
{
  return (ext->sector % 8 + ext->nsectors + 7) / 8;
}

/* Where something does not verify. */
struct journal_damage {
  char file[64];                /* within the directory */
  uint64_t offset;              /* bytes */
  uint64_t checkpoint;          /* the oldest checkpoint that needs it; 0: none, or not known */
  char what[160];
};

/* What a range of a backing image held when the newest state was recorded: enough of these
 * tell the image from another one, and from what somebody else wrote to it.
 */
#define JOURNAL_SAMPLES 192u

struct journal_sample {
  uint16_t disk;
  uint32_t nsectors;            /* > 0 */
  uint64_t sector;              /* below 2^48 */
  uint32_t crc;                 /* crc32c of those bytes; the image's last sector may be short */
};

/* --- Making, opening, closing -------------------------------------------- */

/* Is there a journal in DIR?  1, 0, or -1 with errno. */
extern int journal_exists (const struct io_fs *fs, const char *dir);

/* Make DIR (mode 0700; an empty existing directory is taken) with a new
 * journal whose first record (CREATE) carries STATE.  Durable on return.  Takes
 * milliseconds whatever the size: space is allocated, zeroing goes on in the background of
 * journal_start.  Killed half way, it leaves something that journal_exists calls 0
 * and that a second journal_create overwrites.
 */
extern int journal_create (const struct io_fs *fs, const char *dir,
                           const struct journal_config *config,
                           const struct journal_state *state,
                           struct mcerror *err);

/* Open for recovery or service.  Takes the exclusive lock (fails with EBUSY
 * and says who when another process has it), syncs the file before believing any
 * record, walks the records, and verifies the newest commit to its last byte unless a
 * later record proves that it was durable.  A newest commit that does not verify is
 * dropped as torn, or, when the acknowledged mark names it, is damage.
 * Writes nothing (journal_start and journal_record do; the first record
 * written takes the place of whatever was torn).
 *
 * Damage that leaves some checkpoint whole does not fail here: see
 * journal_get_damage.  Fails with MCEXIT_DAMAGE when no record can be trusted,
 * MCEXIT_USAGE for what is not a journal, not to be read, or made by a newer mcbuf.
 */
extern int journal_open (const struct io_fs *fs, const char *dir,
                         struct journal **journal, struct mcerror *err);
/* The same for recovery: what has to be read already now, and what journal_verify reads, is kept, up to CHUNKS
 * chunks (or what journal_set_load_room says later); up to THREADS of them are read at a time.
 */
extern int journal_open_keep (const struct io_fs *fs, const char *dir,
                              size_t chunks, unsigned threads,
                              struct journal **journal, struct mcerror *err);
extern void journal_close (struct journal *j);  /* NULL is allowed; does not sync */

/* Open to look only: the same, but nothing on disk is changed, not even a time stamp, and the
 * files need not be writable.  Others may look at the same time.  Good for all that
 * follows up to journal_check; not for journal_start.  When it fails because of damage, *DAMAGE
 * says where; else its file is "".
 */
extern int journal_look (const struct io_fs *fs, const char *dir,
                         struct journal **journal,
                         struct journal_damage *damage, struct mcerror *err);

extern const struct journal_config *journal_get_config (struct journal *j);
/* Store another set of disks, new paths, or sizes.  Durable.  Before journal_start only. */
extern int journal_set_config (struct journal *j,
                               const struct journal_config *config,
                               struct mcerror *err);
extern const char *journal_dir (struct journal *j);

/* Make the file SIZE bytes (in whole chunks) from now on.  Durable.  Before journal_start only.
 * Smaller: -1 with EBUSY while what is retained lies behind the new end, or leaves too little
 * room; EAGAIN without the clean mark.  Larger: ENOSPC.  All of these leave it as it was.
 * EINVAL: not a size for a journal, or the journal is damaged.
 */
extern int journal_resize (struct journal *j, uint64_t size);

/* A consistent copy of the newest state. */
extern void journal_get_state (struct journal *j, struct journal_state *state);

/* 1 and *DAMAGE filled when journal_open found any, else 0. */
extern int journal_get_damage (struct journal *j,
                               struct journal_damage *damage);

/* errno of the failure that poisoned the journal, 0 when healthy. */
extern int journal_failed (struct journal *j);
/* Had it failed under the process before this one (good from journal_start on)? */
extern bool journal_was_failed (struct journal *j);

/* The journal has failed, and writes are about to be refused.  Leaves word of it beside the
 * log, durably as far as that goes: the next process on this host may find in the page cache what a
 * failed sync never brought to the disk, or after a power loss a clean mark that was to go.  DURABLE: no
 * power loss may bring back what was refused.  -1: that failed, and only shared memory still tells.
 */
extern int journal_note_failed (struct journal *j, bool durable);

/* --- What is in it -------------------------------------------------------- */

/* Checkpoints that the journal can still recover to, oldest first, at most
 * MAX of them into LIST; returns how many there are.  The first is the watermark, or the
 * write-out target once that has been started.  PROMOTED_COMMITs are not checkpoints: of a promoted
 * replica the list is the checkpoint that was promoted.
 * None from the one on that damage has hit; none at all when records are lost, which might
 * have said that write-out had gone further.
 */
extern size_t journal_checkpoints (struct journal *j,
                                   struct journal_checkpoint *list, size_t max);

/* The one of them that is number ID. */
extern bool journal_find_checkpoint (struct journal *j, uint64_t id,
                                     struct journal_checkpoint *cp);
/* The newest of them.  False: there is none. */
extern bool journal_newest_checkpoint (struct journal *j, uint64_t *id);
/* How many commits are behind the watermark, PROMOTED_COMMITs too. */
extern size_t journal_backlog (struct journal *j);
/* Its sequence number: it grows, and a journal that has less is of before. */
extern uint64_t journal_newest_record (struct journal *j);

/* Call FN for every extent of every committed epoch in (FROM, UPTO], oldest
 * first, in the order of the writes.  EPOCH is the one the *commit* ends with.  FN
 * returns 0 to go on, -1 (errno set) to stop.  Tables are verified as they are read: -1 with
 * EBADMSG and *DAMAGE (may be NULL) filled when one is not what was committed.
 */
typedef int (*journal_extent_fn) (void *opaque, uint64_t epoch,
                                  const struct journal_extent *ext);
extern int journal_replay (struct journal *j, uint64_t from, uint64_t upto,
                           journal_extent_fn fn, void *opaque,
                           struct journal_damage *damage);

/* The same for epochs that are not committed: saved by a clean stop, or found
 * in the shared memory of a server that died (after journal_start).  Here
 * EPOCH is each extent's own; *OPEN_EPOCH becomes the epoch that was open.  0 extents is no error.
 */
extern int journal_replay_uncommitted (struct journal *j, journal_extent_fn fn,
                                       void *opaque, uint64_t *open_epoch,
                                       struct journal_damage *damage);

/* After journal_look: what journal_start would find in the shared memory of a server that died is found by
 * journal_replay_uncommitted.  Nothing is changed, there neither.  -1 with errno.
 */
extern int journal_look_uncommitted (struct journal *j);

/* Read and check every byte of table and data that commits in (FROM, UPTO] need.
 * PROGRESS (may be NULL) gets bytes done and to do.  -1 with EBADMSG and
 * *DAMAGE at the first that does not verify, oldest checkpoint first.
 */
typedef void (*journal_progress_fn) (void *opaque, uint64_t done,
                                     uint64_t total);
extern int journal_verify (struct journal *j, uint64_t from, uint64_t upto,
                           journal_progress_fn progress, void *opaque,
                           struct journal_damage *damage);

/* Read and check every byte that is retained, whoever needs it: both superblocks and anchors,
 * every record, the acknowledged mark, tables and data of every commit behind
 * the watermark, and what a clean stop saved.  FN is told of each damage; what the newest state
 * does not need has checkpoint 0.  *BYTES: how much was read.  0 when all was looked at.
 */
typedef void (*journal_damage_fn) (void *opaque,
                                   const struct journal_damage *damage);
extern int journal_check (struct journal *j, journal_progress_fn progress,
                          void *progress_opaque, journal_damage_fn fn,
                          void *opaque, uint64_t *bytes);

/* --- Service -------------------------------------------------------------- */

enum journal_took {
  JOURNAL_TOOK_NOTHING,         /* no speculation was there to be had */
  JOURNAL_TOOK_SAVED,           /* saved by a clean stop */
  JOURNAL_TOOK_SHARED,          /* from the shared memory of a server that died */
  JOURNAL_TOOK_BAD,             /* there was some, but it is not whole */
};

/* Get ready to write: BUFFER bytes of staging (rounded to chunks, at least 8 of
 * them), prefaulted.  Looks for speculation that outlived the last server and
 * says in *TOOK what it found, and in ERR's text, for NOTHING and BAD, why what there was
 * cannot be taken over ("" when there was none).  Starts no thread and writes nothing to the journal.  SHARED is
 * false for recovery and tests: private memory, nothing left behind, nothing looked for.
 */
extern int journal_start (struct journal *j, uint64_t buffer, bool shared,
                          enum journal_took *took, struct mcerror *err);

/* Make do with LEAST bytes (at least 8 MiB) where journal_start cannot get all that it is asked
 * for: with half, or half of that, and so on.  By default it is all or nothing.
 */
extern void journal_set_least_buffer (struct journal *j, uint64_t least);

/* Start the threads that push chunks and zero the rest of the file.  After
 * any fork.  Without it, chunks are pushed by whoever needs a buffer, and by commits.
 */
extern int journal_run (struct journal *j);

/* Stop and join the threads.  Uncommitted data stays in shared memory unless
 * END, which unlinks it: the replica has ended or saved it.
 */
extern void journal_stop (struct journal *j, bool end);

/* --- Writing -------------------------------------------------------------- */

/* Up to 256 consecutive block images of one chunk, and the memory they are filled through. */
struct journal_span {
  uint32_t block;
  uint32_t nblocks;
  void *mem;                    /* nblocks * JOURNAL_BLOCK bytes */
};

/* Reserve room for 1 to WANT images; SPAN tells how many there are.  May wait
 * for the journal device, never for write-out: ENOSPC when no chunk is free (room for
 * records, and for the tables of what is reserved, is kept back).  Never wait for
 * anything else, or reserve again, before journal_filled.
 */
extern int journal_reserve (struct journal *j, uint32_t want,
                            struct journal_span *span);

/* The same, and when no chunk is free FULL is called, with no lock held: it waits until some
 * may be free and returns 0, or gives up with -1 and errno.  SINCE is the monotonic time when
 * this writer began to wait for that.  Meanwhile he keeps his place, and those behind him theirs.
 */
typedef int (*journal_full_fn) (void *opaque, uint64_t since);
extern int journal_reserve_or_wait (struct journal *j, uint32_t want,
                                    struct journal_span *span,
                                    journal_full_fn full, void *opaque);

/* SPAN's memory is filled (sectors that hold no data zeroed); CRC[i] is
 * crc32c of image i.  It may go to disk from here on, and must no longer be changed.
 */
extern void journal_filled (struct journal *j, const struct journal_span *span,
                            const uint32_t *crc);

/* Give back a filled span that will not be published. */
extern void journal_abandon (struct journal *j,
                             const struct journal_span *span);

/* Room for the descriptors of one publication: N extents, BLOCKS images in all.
 * Call it before the replica's lock is taken; each is used up by journal_publish,
 * or given back by journal_uncredit.  May wait for the device; ENOSPC.
 */
extern int journal_credit (struct journal *j, unsigned n, uint32_t blocks);
extern void journal_uncredit (struct journal *j, unsigned n, uint32_t blocks);

/* Publish: EXT[0..N) belong to EPOCH from now on, all of them or none whatever
 * happens to the process.  Called with the replica's lock held, which gives the order;
 * does no I/O and cannot fail.  Uses up the credit.
 */
extern void journal_publish (struct journal *j, uint64_t epoch,
                             const struct journal_extent *ext, unsigned n);

/* EPOCH is closed: later publications have a higher number.  Called with the
 * replica's lock held; no I/O, cannot fail.  Survives SIGKILL on return.
 */
extern void journal_seal (struct journal *j, uint64_t epoch);

/* --- Records -------------------------------------------------------------- */

/* Change the state: called with a copy of the newest, no lock held, at the one
 * moment when no other record can come in between.
 */
typedef void (*journal_change_fn) (struct journal_state *state, void *opaque);

/* Append a record, durable on return.  Callers queue.  The journal sets
 * boot_id and zero_filled itself.
 */
extern int journal_record (struct journal *j, enum journal_kind kind,
                           journal_change_fn change, void *opaque);

/* A STATE record that begins a new first copy: CHANGE makes all that was before void, and it is to be
 * forgotten.  It is the only one that a failed journal takes, if the device does: then that is over, and
 * what was noted too.  Durable when it returns.  -1 as journal_record: a failed journal stays that.
 */
extern int journal_begin_anew (struct journal *j, journal_change_fn change,
                               void *opaque);

/* The samples that records carry from now on (those with a table do not), and those that the newest
 * such record had.  What was sampled must be durable.
 */
extern void journal_set_samples (struct journal *j,
                                 const struct journal_sample *samples,
                                 unsigned n);
extern unsigned journal_get_samples (struct journal *j,
                                     struct journal_sample samples[JOURNAL_SAMPLES]);

struct journal_commit {
  enum journal_kind kind;       /* COMMIT, PROMOTED_COMMIT, or CLEAN */
  uint64_t epoch;               /* everything up to it, sealed (CLEAN: all there is) */
  journal_change_fn change;
  void *opaque;
  uint64_t extents, bytes;      /* out: what was swept in; known before CHANGE is called */
};

/* Commit: push what is not on disk yet, the tables and the record, one fdatasync,
 * then (COMMIT only) the acknowledged mark.  On return it is durable and may be
 * acknowledged.  An error means that it was not: EIO, the journal is poisoned; ENOSPC,
 * no record chunk is free (what is left is for changes of state), so nothing happened and it
 * can be tried again after journal_forget; ENOMEM likewise.
 */
extern int journal_do_commit (struct journal *j, struct journal_commit *commit);

/* The watermark has passed EPOCH: recycle what only epochs up to it needed.
 * The caller has made the WATERMARK record durable and sees to it that no
 * reader still uses their blocks.
 */
extern int journal_forget (struct journal *j, uint64_t epoch);

/* Drop every uncommitted epoch.  The caller has made durable that they are
 * void, and no reader uses their blocks.
 */
extern int journal_discard (struct journal *j);

/* --- Reading -------------------------------------------------------------- */

/* LEN bytes that begin OFFSET bytes into block image BLOCK; may run on into
 * the images behind it in the same chunk.  Verified: EBADMSG when an image is not what was
 * written (*DAMAGE may be NULL).  The caller sees to it that the blocks are not forgotten meanwhile.
 */
extern int journal_read (struct journal *j, uint32_t block, uint32_t offset,
                         uint32_t len, void *buf,
                         struct journal_damage *damage);

/* The memory of block image BLOCK and of those behind it in its chunk (*N in: wanted,
 * out: to be had), if it is in RAM now, else NULL.  With LOAD, a chunk that is not is read whole and
 * kept while there is room: for recovery and write-out; then NULL is an error with errno, EBADMSG when
 * that image does not verify (others of the chunk are as good as they are).  Stays valid until journal_unpin with the same block.
 */
extern const void *journal_pin (struct journal *j, uint32_t block, uint32_t *n,
                                bool load, struct journal_damage *damage);
extern void journal_unpin (struct journal *j, uint32_t block);
/* How many chunks that are loaded so are kept at a time: by default a small part of the
 * staging memory.  Set it before anything is loaded.
 */
extern size_t journal_load_room (const struct journal *j);
extern void journal_set_load_room (struct journal *j, size_t chunks);

/* The crc32c of block image BLOCK, which is in use: of what was written to it, not of what can be read there. */
extern bool journal_block_crc (struct journal *j, uint32_t block, uint32_t *crc);

/* Are the images at BLOCK[0..N), in ascending order, in the file as they were written?  As
 * journal_read, for many at a time.
 */
extern int journal_verify_blocks (struct journal *j, const uint32_t *block,
                                  size_t n, struct journal_damage *damage);

struct journal_usage {
  uint64_t size, used;          /* journal file; used: chunks that are not free */
  uint64_t available;           /* bytes that journal_reserve would still give */
  uint64_t buffer_size, buffer_used;    /* staging; used: not on disk yet */
  uint64_t buffer_asked;        /* what journal_start was asked for */
  int buffer_error;             /* why it is not that much, 0 when it is */
  uint64_t buffer_ns;           /* how long it took to get */
  unsigned held;                /* thousandths of the last second for which writers waited for the device */
};
extern void journal_get_usage (struct journal *j, struct journal_usage *usage);

#endif /* MCBUF_JOURNAL_JOURNAL_H */
