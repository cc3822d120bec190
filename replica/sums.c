/* SPDX-License-Identifier: BSD-3-Clause */
/* See sums.h; the file's layout is in mcbuf-journal(5). */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "journal/format.h"
#include "replica/internal.h"
#include "replica/samples.h"
#include "replica/sums.h"

#define BLOCK 4096u
#define SECTORS (BLOCK / JOURNAL_SECTOR)
#define READ_BLOCKS 256u        /* of an image, at once */
#define PROGRESS_RUNS 4096u     /* noted without a word */
#define LONG_BLOCKS 16384u      /* zeroes over more than this are rather forgotten */
#define SOME_BLOCKS 65536u      /* looked at where not all are */

struct sums {
  struct journal *journal;
  struct io_file *file;
  const struct io_fs *fs;
  char *path;
  bool look, broken;
  bool later;                   /* the file is of a later time than the journal: broken, and as it was found */
  bool touched[JOURNAL_MAX_DISKS];      /* an image was, by somebody else */
  int (*progress) (void *opaque, uint64_t bytes);
  void *opaque;
  bool hurry;                   /* do not read any more: not known */
  uint64_t base[JOURNAL_MAX_DISKS];     /* a disk's first page in the file */
  uint64_t blocks[JOURNAL_MAX_DISKS];   /* of a disk */
  uint16_t zero;                /* the sum of BLOCK zeroes */
  struct format_sums head;
  struct format_page page;             /* the one at hand */
  uint64_t at;                  /* which that is in the file, 0: none */
  bool dirty;
  uint8_t mem[READ_BLOCKS * BLOCK];
};

/* --- the file ----------------------------------------------------------------------- */

static uint32_t
page_crc (const void *p)
{
  static const le32 none;
  const uint8_t *bytes = p;
  uint32_t crc = crc32c (bytes, 8, 0);

  crc = crc32c (&none, sizeof none, crc);
  return crc32c (bytes + 12, BLOCK - 12, crc);
}

static uint16_t
fold (uint32_t crc)
{
  uint16_t sum = crc ^ crc >> 16;

  return sum ? sum : 1;
}

static uint16_t
sum_of (const void *p, size_t len)
{
  return fold (crc32c (p, len, 0));
}

static uint32_t
disks_crc (const struct journal_config *config)
{
  uint32_t crc = 0;

  for (unsigned i = 0; i < config->ndisks; i++) {
    const le64 size = put64 (config->disks[i].size), joined = put64 (config->disks[i].joined);

    crc = crc32c (config->disks[i].name, strlen (config->disks[i].name) + 1, crc);
    crc = crc32c (&size, sizeof size, crc);
    crc = crc32c (&joined, sizeof joined, crc);
  }
  return crc;
}

/* From here on there are none.  Were the file to stay, its first page would name an older checkpoint
 * than the state does as soon as that matters, and not count.
 */
static void
give_up (struct sums *s)
{
  s->at = 0;
  s->dirty = false;
  s->broken = true;
  if (io_truncate (s->file, 0) == -1)
    (void) io_unlink (s->fs, s->path);
}

/* Is nothing left, for good?  A new first page must not bring old ones back. */
static bool
is_empty (struct sums *s)
{
  struct io_stat st;

  return io_stat (s->file, &st) == 0 && st.size == 0 &&
         io_fdatasync (s->file) == 0;
}

/* Without a whole head nothing counts. */
static int
put_head (struct sums *s)
{
  s->head.crc = put32 (0);
  s->head.crc = put32 (page_crc (&s->head));
  return io_pwrite (s->file, &s->head, sizeof s->head, 0);
}

static void
begin_head (struct sums *s)
{
  const struct journal_config *config = journal_get_config (s->journal);

  memset (&s->head, 0, sizeof s->head);
  memcpy (s->head.magic, FORMAT_SUMS_MAGIC, sizeof s->head.magic);
  memcpy (s->head.id, config->id, HOST_ID_LEN);
  s->head.disks_crc = put32 (disks_crc (config));
}

static bool
read_page (struct sums *s, uint64_t at, void *page)
{
  return io_pread_some (s->file, page, BLOCK, at * BLOCK) == BLOCK &&
         get32 (((const struct format_page *) page)->crc) == page_crc (page);
}

/* Is what is there of this replica, and whole? */
static bool
head_is_ours (struct sums *s)
{
  const struct journal_config *config = journal_get_config (s->journal);

  return read_page (s, 0, &s->head) &&
         memcmp (s->head.magic, FORMAT_SUMS_MAGIC, sizeof s->head.magic) == 0 &&
         memcmp (s->head.id, config->id, HOST_ID_LEN) == 0 &&
         get32 (s->head.disks_crc) == disks_crc (config);
}

/* And of now? */
static bool
head_counts (struct sums *s)
{
  struct journal_state state;

  journal_get_state (s->journal, &state);
  return get64 (s->head.upto) >= state.watermark.id &&
         get64 (s->head.seq) <= journal_newest_record (s->journal);
}

/* Has DISK been written to by a write-out that the journal does not know of?  No write-out begins before a
 * record of its target is durable.
 */
static bool
is_later (const struct sums *s, unsigned disk)
{
  struct journal_state state;

  journal_get_state (s->journal, &state);
  return get64 (s->head.written[disk]) > state.target;
}

static bool
any_is_later (const struct sums *s)
{
  for (unsigned i = 0; i < journal_get_config (s->journal)->ndisks; i++)
    if (is_later (s, i))
      return true;
  return false;
}

static void
begin_anew (struct sums *s)
{
  give_up (s);
  begin_head (s);
  s->broken = !is_empty (s) || put_head (s) == -1;
}

static void
flush_page (struct sums *s)
{
  if (!s->dirty)
    return;
  s->dirty = false;
  s->page.crc = put32 (0);
  s->page.crc = put32 (page_crc (&s->page));
  if (io_pwrite (s->file, &s->page, BLOCK, s->at * BLOCK) == -1)
    give_up (s);     /* what it had before may be wrong now */
}

/* The sum of BLOCK of DISK, in the page at hand; WRITE: it will be changed.  NULL: given up. */
static le16 *
find (struct sums *s, unsigned disk, uint64_t block, bool write)
{
  uint64_t number = block / FORMAT_SUMS, at = s->base[disk] + number;

  if (at != s->at) {
    flush_page (s);
    if (s->broken)
      return NULL;
    s->at = at;
    if (!read_page (s, at, &s->page) ||
        memcmp (s->page.magic, FORMAT_SUMS_PAGE_MAGIC, sizeof s->page.magic) != 0 ||
        get32 (s->page.disk) != disk || get64 (s->page.number) != number) {
      memset (&s->page, 0, sizeof s->page);
      memcpy (s->page.magic, FORMAT_SUMS_PAGE_MAGIC, sizeof s->page.magic);
      s->page.disk = put32 (disk);
      s->page.number = put64 (number);
    }
  }
  s->dirty = s->dirty || write;
  return &s->page.sum[block % FORMAT_SUMS];
}

struct sums *
sums_open (const struct io_fs *fs, const char *dir, struct journal *j,
           bool look)
{
  const struct journal_config *config = journal_get_config (j);
  static const uint8_t zeroes[BLOCK];
  struct sums *s = calloc (1, sizeof *s);
  uint64_t at = 1;

  if (s == NULL)
    return NULL;
  s->journal = j;
  s->fs = fs;
  s->look = look;
  s->zero = sum_of (zeroes, sizeof zeroes);
  for (unsigned i = 0; i < config->ndisks; i++) {
    s->base[i] = at;
    s->blocks[i] = DIV_UP (config->disks[i].size, (uint64_t) BLOCK);
    at += DIV_UP (s->blocks[i], (uint64_t) FORMAT_SUMS);
  }
  if (asprintf (&s->path, "%s/sums", dir) == -1) {
    s->path = NULL;
    goto none;
  }
  if (io_open (fs, s->path, look ? O_RDONLY : O_RDWR | O_CREAT | O_NOFOLLOW, 0600, &s->file) == -1)
    goto none;
  if (head_is_ours (s)) {
    if (any_is_later (s))
      s->later = s->broken = true;
    else if (head_counts (s))
      return s;
  }
  if (s->later)
    return s;
  if (look)
    goto none;
  begin_anew (s);
  return s;

 none:
  sums_close (s);
  return NULL;
}

void
sums_forget (struct sums *s)
{
  bool broken;

  if (s == NULL || s->look)
    return;
  if (s->later) {
    s->later = false;
    begin_anew (s);
    return;
  }
  broken = s->broken;
  give_up (s);
  memset (s->head.stamp, 0, sizeof s->head.stamp);
  memset (s->head.written, 0, sizeof s->head.written);
  s->broken = broken || !is_empty (s) || put_head (s) == -1;
}

void
sums_close (struct sums *s)
{
  if (s == NULL)
    return;
  io_close (s->file);
  free (s->path);
  free (s);
}

/* --- after a write-out -------------------------------------------------------------------- */

/* What is in the images in [FROM, TO) of DISK, in blocks, is what was written out. */
static void
take (struct sums *s, struct disk *disk, unsigned number, uint64_t from,
      uint64_t to)
{
  while (from < to && !s->broken) {
    uint64_t n = MIN (to - from, (uint64_t) READ_BLOCKS), off = from * BLOCK;
    size_t len = MIN (n * BLOCK, disk->size - off);
    bool known = !s->hurry && backing_pread (disk->backing, s->mem, len, off) == 0;

    /* Who waits for this sees that it goes on, as if it had been written; who wants it to end gets that. */
    if (s->progress && !s->hurry && s->progress (s->opaque, 1) == -1)
      s->hurry = true;

    for (uint64_t i = 0; i < n; i++) {
      le16 *sum = find (s, number, from + i, true);

      if (sum == NULL)
        return;
      *sum = put16 (known ? sum_of (s->mem + i * BLOCK, MIN (len - i * BLOCK, (size_t) BLOCK)) : 0);
    }
    from += n;
  }
}

/* They are zeroes. */
static void
take_zeroes (struct sums *s, struct disk *disk, unsigned number,
             uint64_t from, uint64_t to)
{
  bool many = to - from > LONG_BLOCKS;

  while (from < to && !s->broken) {
    uint64_t next = ROUND_DOWN (from, (uint64_t) FORMAT_SUMS) + FORMAT_SUMS;
    le16 *sum;

    if (many && from % FORMAT_SUMS == 0 && next <= to) {
      uint64_t pages = (to - from) / FORMAT_SUMS;

      flush_page (s);
      s->at = 0;
      if (s->broken || io_fallocate (s->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                     (s->base[number] + from / FORMAT_SUMS) * BLOCK,
                                     pages * BLOCK) == -1) {
        give_up (s);
        return;
      }
      from += pages * FORMAT_SUMS;
      continue;
    }
    sum = find (s, number, from, true);
    if (sum == NULL)
      return;
    *sum = put16 (from * BLOCK + BLOCK <= disk->size ? s->zero : 0);
    from++;
  }
}

static bool
is_whole (const struct disk *disk, const struct map_run *run)
{
  return !run->zero && run->nsectors == SECTORS && run->sector % SECTORS == 0 &&
    (run->sector + SECTORS) * JOURNAL_SECTOR <= disk->size;
}

/* A block that was written as a whole: its sum follows from the crc that the journal has of its image, which what was
 * written had.  (The page cache would tell the same, or what somebody else has just written there.)
 */
static bool
take_whole (struct sums *s, const struct disk *disk, const struct map_run *run)
{
  uint32_t crc;
  le16 *sum;

  if (!is_whole (disk, run) || !journal_block_crc (s->journal, run->loc, &crc))
    return false;
  sum = find (s, run->disk, run->sector / SECTORS, true);
  if (sum)
    *sum = put16 (fold (crc));
  return true;
}

static bool
is_known (const struct disk *disk)
{
  return disk->backing && !disk->lost && backing_outlives (disk->backing);
}

/* *TELLS: a change would be seen. */
static bool
is_untouched (const struct sums *s, const struct disk *disk, unsigned number,
              bool *tells)
{
  const struct format_stamp *was = &s->head.stamp[number];
  uint64_t inode, mtime;

  *tells = backing_stamp (disk->backing, &inode, &mtime) == 0 && mtime != 0;
  return *tells && get64 (was->inode) == inode && get64 (was->mtime) == mtime;
}

/* A write-out of RUNS is done. */
static void
stamp (struct sums *s, struct disk *disks, unsigned ndisks,
       const struct map_run *runs, size_t n, uint64_t upto)
{
  s->head.upto = put64 (upto);
  for (size_t i = 0; i < n; i++)
    if (i == 0 || runs[i].disk != runs[i - 1].disk)
      s->head.written[runs[i].disk] = put64 (upto);
  s->head.seq = put64 (journal_newest_record (s->journal));
  for (unsigned i = 0; i < ndisks; i++) {
    uint64_t inode = 0, mtime = 0;

    if (!is_known (&disks[i]) || s->touched[i] ||
        backing_stamp (disks[i].backing, &inode, &mtime) == -1)
      inode = mtime = 0;
    s->head.stamp[i] = (struct format_stamp) { .inode = put64 (inode), .mtime = put64 (mtime) };
  }
  if (put_head (s) == -1)
    give_up (s);
}

void
sums_prepare (struct sums *s, struct disk *disks, unsigned ndisks)
{
  if (s == NULL || s->look || s->broken)
    return;
  for (unsigned i = 0; i < ndisks; i++) {
    bool tells;

    if (is_known (&disks[i]) && get64 (s->head.stamp[i].mtime) != 0 &&
        !is_untouched (s, &disks[i], i, &tells))
      s->touched[i] = true;
  }
}

void
sums_note (struct sums *s, struct disk *disks, unsigned ndisks,
           const struct map_run *runs, size_t n, uint64_t upto,
           int (*progress) (void *opaque, uint64_t bytes), void *opaque)
{
  if (s == NULL || s->look || s->broken)
    return;
  s->progress = progress;
  s->opaque = opaque;
  s->hurry = false;
  for (size_t i = 0; i < n && !s->broken; i++) {
    const struct map_run *run = &runs[i];
    uint64_t end = run->sector + run->nsectors;
    uint64_t from = run->sector / SECTORS, to = DIV_UP (end, (uint64_t) SECTORS);

    if (i % PROGRESS_RUNS == PROGRESS_RUNS - 1 && progress && !s->hurry && progress (opaque, 1) == -1)
      s->hurry = true;
    if (!is_known (&disks[run->disk]) || take_whole (s, &disks[run->disk], run))
      continue;
    to = MIN (to, s->blocks[run->disk]);
    if (run->zero && to - from > 2) {
      uint64_t first = DIV_UP (run->sector, (uint64_t) SECTORS), last = end / SECTORS;

      take (s, &disks[run->disk], run->disk, from, first);
      take_zeroes (s, &disks[run->disk], run->disk, first, last);
      take (s, &disks[run->disk], run->disk, last, to);
      continue;
    }
    /* Neighbours in one go. */
    while (i + 1 < n && runs[i + 1].disk == run->disk && !runs[i + 1].zero &&
           runs[i + 1].sector / SECTORS <= to && !is_whole (&disks[run->disk], &runs[i + 1])) {
      end = runs[i + 1].sector + runs[i + 1].nsectors;
      to = MIN (DIV_UP (end, (uint64_t) SECTORS), s->blocks[run->disk]);
      i++;
    }
    take (s, &disks[run->disk], run->disk, from, to);
  }
  flush_page (s);
  if (!s->broken)
    stamp (s, disks, ndisks, runs, n, upto);
  /* Before the record that says that all this was written. */
  if (!s->broken && n > 0 && io_fdatasync (s->file) == -1)
    give_up (s);
}

/* --- holding the images against them -------------------------------------------------------- */

/* 0: not known. */
static uint16_t
known_sum (struct sums *s, unsigned disk, uint64_t block)
{
  const le16 *sum = find (s, disk, block, false);

  return sum ? get16 (*sum) : 0;
}

/* What a write-out under way may have changed, sorted, *N of them, malloced. */
static int
under_way (struct sums *s, struct map_run **runs, size_t *n)
{
  struct journal_damage damage;
  struct journal_state state;
  struct epoch *e;
  uint64_t newest = 0, upto;
  int r = 0;

  *runs = NULL;
  *n = 0;
  journal_get_state (s->journal, &state);
  /* All that a promoted one has is replayed. */
  upto = state.state == JOURNAL_PROMOTED ? UINT64_MAX : state.target;
  if (upto <= state.watermark.id)
    return 0;
  e = epoch_new ();
  if (e == NULL)
    return -1;
  if (replay_map (s->journal, state.watermark.id, upto, e, &newest, &damage) == -1 ||
      map_sorted (e->map, runs, n) == -1)
    r = -1;
  epoch_free (e);
  return r;
}

static bool
is_under_way (const struct map_run *runs, size_t n, unsigned disk,
              uint64_t block)
{
  uint64_t sector = block * SECTORS;
  size_t i = map_run_find (runs, n, disk, sector);

  return i < n && runs[i].disk == disk && runs[i].sector < sector + SECTORS;
}

/* 1, 0 or -1 as sums_check; *LEFT blocks may be looked at. */
static int
check_disk (struct sums *s, struct disk *disk, unsigned number,
            const struct map_run *runs, size_t n, bool all, uint64_t *left,
            struct samples_miss *miss)
{
  uint64_t block = 0, blocks = MIN (s->blocks[number], DIV_UP (disk->size, (uint64_t) BLOCK));

  while (block < blocks && *left > 0) {
    unsigned have = 0;
    size_t len;

    /* Where the file has a hole nothing is known. */
    if (block % FORMAT_SUMS == 0) {
      uint64_t at = s->base[number] + block / FORMAT_SUMS;
      off_t data = io_seek (s->file, at * BLOCK, SEEK_DATA);

      if (data == -1 && errno == ENXIO)
        break;
      if (data != -1 && (uint64_t) data / BLOCK > at) {
        block = ((uint64_t) data / BLOCK - s->base[number]) * FORMAT_SUMS;
        continue;
      }
    }
    if (known_sum (s, number, block) == 0) {
      block++;
      continue;
    }
    while (have < READ_BLOCKS && block + have < blocks &&
           (block + have) % FORMAT_SUMS >= have &&
           known_sum (s, number, block + have) != 0)
      have++;
    len = MIN ((uint64_t) have * BLOCK, disk->size - block * BLOCK);
    miss->disk = number;
    miss->offset = block * BLOCK;
    if (backing_pread (disk->backing, s->mem, len, block * BLOCK) == -1) {
      if (all)
        return -1;
      block += have;            /* who needs it will say so */
      continue;
    }
    for (unsigned i = 0; i < have; i++)
      if (known_sum (s, number, block + i) !=
          sum_of (s->mem + i * BLOCK, MIN (len - i * BLOCK, (size_t) BLOCK)) &&
          !is_under_way (runs, n, number, block + i)) {
        miss->offset = (block + i) * BLOCK;
        return 0;
      }
    block += have;
    *left -= MIN (*left, (uint64_t) have);
  }
  return 1;
}

/* The journal is of an earlier time than the file.  An image that is just as that write-out has left it is
 * of that later time, too; if none is, the images have been put back with the journal.
 */
static int
check_later (struct sums *s, struct disk *disks, unsigned ndisks,
             struct samples_miss *miss)
{
  for (unsigned i = 0; i < ndisks; i++) {
    bool tells;

    if (is_known (&disks[i]) && is_later (s, i) && is_untouched (s, &disks[i], i, &tells)) {
      *miss = (struct samples_miss) { .disk = i, .later = true };
      return 0;
    }
  }
  if (!s->look) {
    s->later = false;
    begin_anew (s);
  }
  return 1;
}

int
sums_check (struct sums *s, struct disk *disks, unsigned ndisks,
            enum sums_depth depth, struct samples_miss *miss)
{
  CLEANUP_FREE struct map_run *runs = NULL;
  struct journal_state state;
  size_t n;
  int r = 1;

  *miss = (struct samples_miss) { .disk = 0 };
  if (s == NULL || (s->broken && !s->later))
    return 1;
  journal_get_state (s->journal, &state);
  if (!state.has_checkpoint ||
      (state.state == JOURNAL_PROMOTED && journal_backlog (s->journal) == 0))
    return 1;                   /* written to by others: see samples_check */
  if (s->later)
    return check_later (s, disks, ndisks, miss);
  if (under_way (s, &runs, &n) == -1)
    return errno == ENOMEM ? -1 : 1;    /* damage of the journal: others tell of that */
  for (unsigned i = 0; i < ndisks && r == 1; i++) {
    bool tells = false;
    uint64_t left;

    if (!is_known (&disks[i]) || disks[i].joined > state.checkpoint.id ||
        (depth != SUMS_ALL && is_untouched (s, &disks[i], i, &tells)))
      continue;
    left = depth == SUMS_ALL || (depth == SUMS_CHANGED && tells && n == 0) ? UINT64_MAX : SOME_BLOCKS;
    r = check_disk (s, &disks[i], i, runs, n, depth == SUMS_ALL, &left, miss);
  }
  return r;
}
