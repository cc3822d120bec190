/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the journal share with each other, and nobody else.
 *
 * Locks: J->lock guards everything in struct journal that is not marked
 * otherwise, and the metadata in the staging region.  It is never held across I/O.
 * The log turn (log.c) serialises those who append records; whoever has
 * the turn owns the fields marked "turn" and may do I/O.  Order: turn, then lock.
 *
 * A block of the journal file is in one of these hands: of the staging buffer
 * bound to its chunk (written through memory, pushed once), of the log (the chain
 * of record chunks), or of the superblock.
 */
#ifndef MCBUF_JOURNAL_INTERNAL_H
#define MCBUF_JOURNAL_INTERNAL_H

#include <pthread.h>

#include "common/cleanup.h"
#include "common/held.h"
#include "journal/bits.h"
#include "journal/format.h"
#include "journal/journal.h"
#include "journal/table.h"

#define NO_BUFFER (-1)
#define ZERO_AHEAD_MAX 256u     /* chunks that the zero-filler keeps ready */

/* --- Chunks --- */

enum chunk_kind {
  CHUNK_FREE = 0,
  CHUNK_SUPER,
  CHUNK_RECORD,
  CHUNK_TABLE,
  CHUNK_DATA,
  CHUNK_ZEROING,
};

/* What must be remembered of a data chunk for as long as it is in use. */
struct live {
  uint32_t crc[JOURNAL_CHUNK_BLOCKS];   /* of each image that was filled */
  struct bits pending;          /* reserved, neither published nor abandoned */
  struct bits known;            /* CRC means something */
  struct live *next;            /* in the pool of unused ones */
};

struct chunk {
  uint8_t kind;
  bool closed;                  /* no more room is given out */
  bool stream;                  /* a table chunk that uncommitted epochs may need */
  int32_t buffer;               /* bound to it, or NO_BUFFER */
  uint32_t next;                /* in the free list */
  uint64_t min_epoch, max_epoch;        /* published in it; 0: none */
  struct live *live;            /* data chunks */
  struct loaded *loaded;        /* it was read for journal_pin; NULL: it was not, or that is over */
};

/* How many free chunks an allocation must leave. */
#define KEEP_FOR_RECORDS 2u
#define KEEP_FOR_TABLES (KEEP_FOR_RECORDS + 2u)

/* --- Staging --- */

#define STAGING_MAGIC UINT64_C (0x314d485346554243)
#define STAGING_VERSION 1u
#define STAGING_MIN_BUFFERS 8u
#define STAGING_VOID UINT64_MAX /* an instance that no server has */

/* First page of the region.  Native byte order: it never leaves the host. */
struct staging_header {
  uint64_t magic;
  uint32_t version;
  uint32_t crc;                 /* of what lies between here and INSTANCE */
  uint8_t id[HOST_ID_LEN];
  uint8_t boot_id[HOST_ID_LEN];
  uint32_t nchunks;             /* of the journal */
  uint32_t unused;
  /* From here on each word changes by itself. */
  uint64_t instance;            /* the server that owns the region; 0: none yet */
  uint64_t nbuffers;
  uint64_t open_epoch;
  uint64_t start;               /* table stream: uncommitted epochs begin here ... */
  uint64_t mark;                /* ... and what is published ends here */
};

/* SIGKILL must not leave half of one: a store is one instruction, on every CPU that this compiles for. */
#define STAGING_WORD(type, field)                                        \
  _Static_assert (offsetof (struct type, field) % 8 == 0,               \
                  #type "." #field " is not aligned")
STAGING_WORD (staging_header, magic);
STAGING_WORD (staging_header, instance);
STAGING_WORD (staging_header, nbuffers);
STAGING_WORD (staging_header, open_epoch);
STAGING_WORD (staging_header, start);
STAGING_WORD (staging_header, mark);
_Static_assert (__atomic_always_lock_free (sizeof (uint64_t), 0),
                "this CPU has no atomic 64 bit store: mcbuf cannot survive SIGKILL on it");

/* Before each buffer, a page of it. */
struct buffer_meta {
  uint64_t bound;               /* chunk, kind, and a check of both: one word */
  struct bits filled, pushed;
};

STAGING_WORD (buffer_meta, bound);

struct buffer {
  uint32_t chunk;               /* 0: not bound */
  uint32_t bump;                /* blocks given out */
  unsigned pins;
  bool taken;                   /* neither free nor bound: being got ready */
  bool queued;                  /* in the queue of those to push */
  int32_t next_ready;
  struct bits pushing;
  struct buffer_meta *meta;
  uint8_t *mem;
};

/* A writer who waits for room; on his stack. */
struct waiter {
  uint32_t want;
  struct journal_span *span;
  bool served;
  pthread_cond_t cond;          /* served, or first in the line */
  struct waiter *next;
};

/* --- Log --- */

struct chain_chunk {
  uint32_t chunk;
  uint32_t prev_crc;            /* of the record before FIRST */
  uint64_t salt;
  uint64_t first;               /* seq of its first record */
  uint64_t ncommits;            /* commits in the records before */
};

/* A commit whose epochs are not all forgotten. */
struct commit {
  uint64_t epoch, first_epoch;
  uint64_t seq;
  uint64_t time, extents, bytes;
  char *label;                  /* NULL: none */
  uint32_t nparts;
  uint8_t kind;
};

struct log {
  struct chain_chunk *chain;    /* oldest first, where the anchors point; the last is written to */
  size_t nchain, chain_cap;
  uint32_t next_chunk;          /* where the chain goes on, 0: not known yet */
  uint64_t next_salt;
  uint64_t seq;                 /* of the newest record */
  uint64_t durable;             /* records up to here are durable */
  uint64_t refused;             /* ... but from this one on refused all the same; 0: none */
  uint32_t prev_crc;            /* of the newest record */
  uint64_t new_seq;             /* turn: the same of the one that is being written */
  uint32_t new_crc;
  uint64_t ncommitted;          /* commits that there ever were */
  uint64_t anchor_seq;
  bool anchor_differs;          /* the two slots are not the same yet */
  bool anchoring;               /* somebody writes them */
  struct commit *commits;       /* ring, oldest first */
  size_t commits_cap, commits_head, ncommits;
  uint64_t saved_seq;           /* CLEAN record whose tables are still good; 0: none */
  uint64_t samples_seq;         /* the newest record with samples; 0: none */
  uint32_t saved_nparts;
  /* The turn. */
  uint64_t ticket, serving;
  struct format_record *buf;    /* turn: page aligned */
  size_t buf_cap;               /* records */
};

/* A chunk that was read for journal_pin. */
struct loaded {
  uint32_t chunk;
  unsigned pins;
  bool busy;                    /* being read */
  bool raw;                     /* read, but not checked */
  uint64_t used;                /* for choosing the oldest */
  uint8_t *mem;
  struct bits bad;              /* images that do not verify, or cannot be read */
  struct loaded *next;
};

struct journal {
  const struct io_fs *fs;       /* fixed, as are the others of this paragraph */
  char *dir;
  struct io_file *lock_file, *file, *acked_file;
  pthread_mutex_t acked_lock;   /* before lock: one writes acked_file at a time */
  bool direct;
  struct journal_config config;
  uint64_t super_seq;
  uint32_t super_compat;        /* flags that are not ours, and stay */
  uint32_t nchunks;
  uint8_t boot_id[HOST_ID_LEN];
  bool started, shared;
  bool look;                    /* opened to look only */
  bool super_bad[2], anchor_bad[2];     /* as they were found */
  uint64_t file_size;           /* as it was found */
  size_t part_runs;             /* table runs in one record; FORMAT_RUNS, tests lower it */

  pthread_mutex_t lock;
  pthread_cond_t turn_cond;     /* the turn moved on */
  pthread_cond_t buffer_cond;   /* a buffer was pushed, filled, unpinned, freed */
  pthread_cond_t work_cond;     /* work for the threads */
  pthread_cond_t zero_cond;

  struct journal_state state;
  int failed;
  bool unreadable;              /* some read of the file failed (set while opening, then of no use) */
  bool damaged;
  bool lost;                    /* the newest records are */
  bool heal;                    /* a superblock is bad, or the file too short: mend that before any record */
  bool saved_bad;               /* a clean stop saved something, but it is not whole */
  bool was_failed;              /* under the process before this one */
  bool mark_failed;             /* "acked" says that the journal failed: take that back, durably, first ... */
  bool noted_failed;            /* ... unless that was this process, which has not begun anew */
  uint64_t hole_from, hole_upto;        /* commits after .. up to are; 0, 0: none */
  struct journal_damage damage;
  struct journal_damage saved_damage;   /* why SAVED_BAD; "": not for damage */
  bool distrust;                /* some table is not to be read: only virgin chunks are free ... */
  uint64_t distrust_upto;       /* ... until epochs up to here are forgotten */
  uint64_t forgotten;           /* epochs up to here are */

  /* space.c */
  struct chunk *chunks;
  uint32_t free_head, free_tail;        /* written once; 0: none */
  uint32_t nrecycled;
  uint32_t virgin;              /* chunks from here on were never used */
  struct live *live_pool;

  /* staging.c */
  struct staging_header *region;
  size_t region_size;
  int region_fd;                /* holds the region's lock; -1: private */
  char region_why[128];         /* why one that was there is of no use, or "" */
  uint64_t asked, least;        /* buffers: what is wanted, what will do */
  int short_error;              /* why it is fewer */
  uint64_t start_ns;            /* how long it took to get them */
  unsigned nbuffers, nunbound;
  struct buffer *buffers;
  uint64_t *dirty;              /* bit per buffer: filled but not pushed */
  struct bits *need;            /* what a commit waits for, of the buffers in ... */
  unsigned *needed, nneeded;    /* ... this list */
  unsigned hand;                /* where to look for a buffer to reuse */
  int32_t ready_head, ready_tail;

  /* reserve.c */
  uint32_t open_chunk;          /* data chunk that is given out from; 0: none */
  struct waiter *line;          /* who waits for the next one, the longest first */
  bool line_held;               /* ... and it is for the device */
  uint64_t full_since;          /* no chunk was to be had since then; 0: the last time there was one */
  struct held held;             /* writers, by the device */

  struct tables tab;
  struct log log;
  struct journal_sample samples[JOURNAL_SAMPLES];
  unsigned nsamples;

  /* read.c */
  struct loaded *loaded;
  unsigned nloaded;
  size_t load_room;             /* 0: the default */
  bool opening;                 /* ... and what is read meanwhile is kept if there is room */
  unsigned load_threads;
  uint64_t load_clock;

  /* threads */
  bool running, stopping;
  pthread_t push_threads[2];
  pthread_t zero_thread;
  pthread_t acked_thread;
  bool acked_dirty;
  pthread_cond_t acked_cond;
};

#define ASSERT_LOCKED(j)                                        \
  assert (pthread_mutex_trylock (&(j)->lock) != 0)

/* --- create.c --- */

/* Make the name of directory DIR durable. */
extern int sync_parent (const struct io_fs *fs, const char *dir);

/* --- space.c --- */

/* A chunk of KIND, leaving KEEP free ones; 0 when there is none. */
extern uint32_t chunk_alloc_locked (struct journal *j, enum chunk_kind kind,
                                    uint32_t keep);
extern uint32_t chunks_free_locked (struct journal *j);
/* Give the chunk back, and its buffer. */
extern void chunk_free_locked (struct journal *j, uint32_t c);
/* Give the chunk back if nobody needs it any longer. */
extern void chunk_try_free_locked (struct journal *j, uint32_t c);
/* Mark chunk C as in use by committed or saved epoch EPOCH (while opening).  -1 with
 * EBADMSG when it is in use as something else; ENOMEM.
 */
extern int chunk_claim (struct journal *j, uint32_t c, enum chunk_kind kind,
                        uint64_t epoch);
extern struct live *live_get (struct journal *j);
extern int space_init (struct journal *j);
/* Work out from the log what is in use. */
extern int space_claim (struct journal *j);
/* After all claims: everything else is free. */
extern void space_settle (struct journal *j);
extern void space_free (struct journal *j);
/* The commits whose tables could not be read are gone: trust the rest. */
extern void space_trust_locked (struct journal *j);

/* --- staging.c --- */

/* TRY_FOUND: look for a region to take over. */
extern int staging_open (struct journal *j, uint64_t size, bool *found);

/* The region of a server that died, as this process' own copy.  1, 0 when there is none, -1 errno. */
extern int staging_look (struct journal *j);
extern void staging_reset (struct journal *j);
extern void staging_close (struct journal *j, bool unlink);
/* A buffer of one's own.  May release the lock and wait.  -1: EIO. */
extern int buffer_take_locked (struct journal *j);
/* The same, but NO_BUFFER when there is none now. */
extern int buffer_find_locked (struct journal *j);
extern void buffer_bind_locked (struct journal *j, int b, uint32_t chunk);
/* Which chunk META says it is bound to (0: none) and of what kind; -1 when it
 * says nothing that makes sense.
 */
extern int64_t meta_get (const struct buffer_meta *meta, enum chunk_kind *kind);
extern void meta_set (struct buffer_meta *meta, uint32_t chunk,
                      enum chunk_kind kind);
extern void buffer_release_locked (struct journal *j, int b);
/* Blocks [FROM, FROM + N) of buffer B are as they will stay.  True: push_wake. */
extern bool buffer_filled_locked (struct journal *j, int b, unsigned from,
                                  unsigned n);
/* No more room in chunk C: BUMP blocks are all there will be. */
extern void chunk_close_locked (struct journal *j, uint32_t c, unsigned bump);

/* --- reserve.c --- */

/* Give those who wait for room as much as there is.  1; 0: it ends for want of a buffer; -1 when a
 * chunk cannot be opened.
 */
extern int line_serve_locked (struct journal *j);

/* --- push.c --- */

extern void poison_locked (struct journal *j, int error);
/* Queue buffer B if it is worth it; true: somebody should be woken. */
extern bool push_ready_locked (struct journal *j, int b);
/* With or without the lock; better without. */
extern void push_wake (struct journal *j);
extern void push_begin (struct journal *j, uint64_t epoch, bool tables);
/* Push something: what a commit needs first, then what is waiting.  False when there is
 * nothing.  Releases the lock when it returns true.
 */
extern bool push_help_locked (struct journal *j);
extern int push_end (struct journal *j);
extern void *push_thread (void *arg);

/* --- record.c --- */

extern void record_encode (const struct journal *j, struct format_record *rec,
                           enum journal_kind kind,
                           const struct journal_state *state);
extern void record_seal (struct format_record *rec);
extern void record_decode_state (const struct format_record *rec,
                                 struct journal_state *state);
/* Is it a whole record of this replica? */
extern bool record_is_whole (const struct journal_config *config,
                             const struct format_record *rec);

extern bool record_is_commit (const struct format_record *rec);
/* Is the payload a table, or runs of one?  Else it is samples. */
extern bool record_has_table (const struct format_record *rec);
extern void record_put_samples (struct format_record *rec,
                                const struct journal_sample *samples,
                                unsigned n);
extern unsigned record_get_samples (const struct format_record *rec,
                                    struct journal_sample samples[JOURNAL_SAMPLES]);

/* --- log.c --- */

extern void log_turn_take_locked (struct journal *j);
extern void log_turn_give_locked (struct journal *j);
/* Room for N records in log.buf.  Turn. */
extern int log_reserve (struct journal *j, size_t n);
/* Append the N records of log.buf, each encoded but for its place in the
 * chain, first without a sync, then with one.  Turn.  SPARE: leave room for
 * changes of state.  -1: EIO, or ENOSPC (nothing was written).
 */
/* KEEP records must still fit afterwards when the log cannot grow. */
extern int log_write (struct journal *j, size_t n, unsigned keep);
extern int log_sync (struct journal *j, size_t n);
/* Turn: leave the chunks again that records which failed had gone over to. */
extern void log_revert_locked (struct journal *j);
extern int log_read (struct journal *j, uint64_t seq, struct format_record *rec,
                     uint64_t *offset);
extern int chain_add (struct journal *j, const struct chain_chunk *c);
extern int commits_grow (struct journal *j);
extern int commits_add (struct journal *j, const struct commit *c);
extern struct commit *commits_at (struct journal *j, size_t i);
extern void commits_drop_oldest (struct journal *j);
extern void commits_drop_newest (struct journal *j);
/* STATE is the newest: drop commits that it makes void. */
extern void commits_void (struct journal *j, const struct journal_state *state);
extern int commit_of (const struct format_record *rec, struct commit *c);
/* Free record chunks that nobody needs. */
extern int log_recycle (struct journal *j);

/* --- walk-log.c --- */

/* Walk the chain from the anchor and find the newest record. */
extern int log_open (struct journal *j, struct mcerror *err);

/* --- super.c --- */

extern int super_read (struct journal *j, struct mcerror *err);
extern int super_write (struct journal *j, const struct journal_config *config,
                        uint64_t seq);
extern int anchor_read (struct journal *j, struct chain_chunk *c,
                        struct mcerror *err);
extern int anchor_write (struct journal *j, const struct chain_chunk *c,
                         uint64_t seq);
extern int config_copy (struct journal_config *to,
                        const struct journal_config *from);
extern void config_free (struct journal_config *config);

/* --- commit.c --- */

/* journal_record, for who has the turn. */
extern int record_turn (struct journal *j, enum journal_kind kind,
                        journal_change_fn change, void *opaque);

/* --- acked.c --- */

extern int acked_open (struct journal *j, bool create);
extern int acked_write (struct journal *j, uint64_t checkpoint,
                        uint64_t generation, uint64_t seq, uint32_t flags);
/* 1 found, 0 none or not whole, -1 errno. */
extern int acked_read (struct journal *j, struct format_acked *acked);
/* There is none, or it has not even the right size: no crash leaves it so. */
extern bool acked_is_lost (struct journal *j);
extern void acked_distrust (struct journal *j);
extern void *acked_thread_main (void *arg);

/* --- preload.c --- */

/* Load what commits in (FROM, UPTO] need, the oldest first, as far as journal_set_load_room has given room. */
extern void preload (struct journal *j, uint64_t from, uint64_t upto,
                     journal_progress_fn progress, void *opaque, uint64_t total);

/* While opening: the same for record SEQ, whose table is not claimed yet. */
extern void preload_raw (struct journal *j, uint64_t seq, uint32_t nparts);

/* --- verify.c --- */

/* Checks data images against the file, a chunk at a time. */
struct checker {
  struct journal *j;
  uint8_t *mem;                 /* a chunk */
  uint32_t chunk;
  unsigned from;                /* blocks from here on are loaded */
  struct loaded *kept;          /* where CHUNK is instead of in MEM, or NULL */
  uint64_t checkpoint;
  struct journal_damage *damage;
  journal_progress_fn progress;
  void *opaque;
  uint64_t done, total;
  uint64_t told;                /* as done before it began */
};
extern int checker_item (void *checker, const struct table_item *item);
extern int checker_init (struct checker *c, struct journal *j);
extern void checker_free (struct checker *c);

/* A copy of those commits whose end is in (FROM, UPTO], without labels.  -1 with
 * EBADMSG and *DAMAGE when the record of one is lost.
 */
extern int commits_copy (struct journal *j, uint64_t from, uint64_t upto,
                         struct commit **list, size_t *n,
                         struct journal_damage *damage);

/* --- others --- */

extern int lock_take (struct journal *j, struct mcerror *err);
/* The file is not there.  -1: it never was (ENOENT), or it is lost (EBADMSG). */
extern int no_journal (struct journal *j, struct mcerror *err);
extern void lock_sign (struct journal *j);
/* Lock held, or alone. */
extern uint64_t newest_committed (struct journal *j);
/* Epochs up to here are committed or void. */
extern uint64_t newest_settled (struct journal *j);
extern bool loaded_pinned_locked (struct journal *j, uint32_t c);
extern void loaded_drop_locked (struct journal *j, uint32_t c);
/* Opened: what was read of chunks that turned out to hold no data is void. */
extern void loaded_settle (struct journal *j);
/* While opening: chunk C as it is in the file, read now unless it was; NULL: no room, or it cannot be read. */
extern struct loaded *loaded_read_raw (struct journal *j, uint32_t c);
/* Are the images of ITEM, as its crcs say, in a chunk that was loaded? */
extern bool loaded_has (struct journal *j, const struct table_item *item);

extern void damage_set (struct journal_damage *damage, const char *file,
                        uint64_t offset, uint64_t checkpoint, const char *fmt,
                        ...) __attribute__ ((format (printf, 5, 6)));
extern void damage_note (struct journal *j, const struct journal_damage *d);
/* Nothing at all can be recovered because of D.  Returns -1. */
extern int damage_fatal (struct journal *j, const struct journal_damage *d,
                         struct mcerror *err);
extern void *aligned_blocks (size_t bytes);
extern int file_read (struct journal *j, void *buf, size_t len, uint64_t off);
extern int file_write (struct journal *j, const void *buf, size_t len,
                       uint64_t off);
extern int file_sync (struct journal *j);
extern int journal_file_open (struct journal *j, const char *name);
extern char *path_join (const char *dir, const char *name);
extern void journal_destroy (struct journal *j);
extern struct journal *journal_new (const struct io_fs *fs, const char *dir);
extern bool is_table (struct journal *j, uint32_t c, const void *mem,
                      uint64_t serial);
extern int takeover (struct journal *j, enum journal_took *took);
extern int saved_adopt (struct journal *j, const struct table_runs *runs);
extern void *zero_thread_main (void *arg);

static inline uint64_t
block_offset (uint64_t block)
{
  return block * JOURNAL_BLOCK;
}

static inline uint32_t
chunk_of (uint32_t block)
{
  return block / JOURNAL_CHUNK_BLOCKS;
}

#endif /* MCBUF_JOURNAL_INTERNAL_H */
