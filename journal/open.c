/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening a journal: the lock, the newest record, and which chunks the live
 * records need.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "journal/internal.h"

/* --- The lock --- */

/* Who is it?  For people only: the file's content decides nothing. */
void
lock_sign (struct journal *j)
{
  char text[32];
  int n = snprintf (text, sizeof text, "%-20ld\n", (long) getpid ());

  (void) io_pwrite (j->lock_file, text, n, 0);
}

int
lock_take (struct journal *j, struct mcerror *err)
{
  CLEANUP_FREE char *path = path_join (j->dir, "lock");
  char owner[32] = "", who[48] = "another process";
  uint64_t since = 0;
  bool taken;
  long pid;

  if (path == NULL ||
      io_open (j->fs, path, j->look ? O_RDONLY : O_RDWR | O_CREAT, 0600,
               &j->lock_file) == -1) {
    if (path && j->look && errno == ENOENT)
      return 0;                 /* whoever serves it has made one */
    return mcerror_set (err, MCEXIT_USAGE, "cannot open %s/lock: %m", j->dir);
  }
  do
    taken = io_lock (j->lock_file, j->look ? IO_LOCK_SHARED : IO_LOCK_EXCLUSIVE, 0, 0) == 0;
  while (!taken && (errno == EAGAIN || errno == EACCES) && host_wait_busy (&since));
  if (taken) {
    if (!j->look)
      lock_sign (j);
    return 0;
  }
  if (since == 0)
    return mcerror_set (err, MCEXIT_USAGE, "cannot lock %s/lock: %m", j->dir);
  if (io_pread_some (j->lock_file, owner, sizeof owner - 1, 0) < 0)
    owner[0] = '\0';
  pid = strtol (owner, NULL, 10);
  if (pid > 0 && (kill (pid, 0) == 0 || errno == EPERM))        /* it is no old mark */
    snprintf (who, sizeof who, "process %ld", pid);
  errno = EBUSY;
  return mcerror_set (err, MCEXIT_USAGE,
                      "the journal %s is in use by %s: ask that server, or "
                      "stop it", j->dir, who);
}

/* --- What is in use --- */

struct claims {
  struct journal *j;
  uint64_t epoch;               /* of the commit; 0: each item's own */
  uint64_t after;               /* leave out epochs up to here */
};

static int
claim_item (void *opaque, const struct table_item *item)
{
  const struct claims *cl = opaque;
  uint32_t c = chunk_of (item->ext.block);
  unsigned i = item->ext.block % JOURNAL_CHUNK_BLOCKS;
  struct live *live;

  if (item->nblocks == 0 || item->epoch <= cl->after)
    return 0;
  if (chunk_claim (cl->j, c, CHUNK_DATA, cl->epoch ? cl->epoch : item->epoch)
      == -1)
    return -1;
  live = cl->j->chunks[c].live;
  for (uint32_t m = 0; m < item->nblocks; m++)
    live->crc[i + m] = table_item_crc (item, m);
  bits_set (&live->known, i, item->nblocks);
  return 0;
}

/* Mark what the record SEQ needs as in use.  -1 with EBADMSG and *DAMAGE. */
static int
claim_record (struct journal *j, uint64_t seq, uint32_t nparts, uint64_t epoch,
              uint64_t after, struct journal_damage *damage)
{
  struct claims cl = { .j = j, .epoch = epoch, .after = after };
  struct table_runs runs;
  int r;

  memset (damage, 0, sizeof *damage);
  if (table_runs_read (j, seq, nparts, epoch, &runs, damage) == -1)
    return -1;
  r = table_runs_walk (j, &runs, epoch, claim_item, &cl, damage);
  for (size_t i = 0; i < runs.nruns && r == 0; i++)
    r = chunk_claim (j, chunk_of (get32 (runs.runs[i].block)), CHUNK_TABLE,
                     epoch ? epoch : runs.epoch);
  if (r == -1 && errno == EBADMSG && damage->file[0] == '\0')
    damage_set (damage, "journal", 0, epoch,
                "two records use the same chunk for different things");
  cleanup_free (&runs.runs);
  return r;
}

uint64_t
newest_committed (struct journal *j)
{
  uint64_t epoch = j->forgotten;

  if (j->log.ncommits > 0)
    epoch = MAX (epoch, commits_at (j, j->log.ncommits - 1)->epoch);
  return epoch;
}

uint64_t
newest_settled (struct journal *j)
{
  return MAX (newest_committed (j), j->state.void_epoch);
}

int
space_claim (struct journal *j)
{
  struct journal_damage damage;

  for (size_t i = 0; i < j->log.nchain; i++)
    if (chunk_claim (j, j->log.chain[i].chunk, CHUNK_RECORD, 0) == -1)
      return -1;
  if (j->log.next_chunk != 0 &&
      chunk_claim (j, j->log.next_chunk, CHUNK_RECORD, 0) == -1)
    return -1;
  for (size_t i = 0; i < j->log.ncommits; i++) {
    const struct commit *c = commits_at (j, i);

    if (claim_record (j, c->seq, c->nparts, c->epoch, 0, &damage) == -1) {
      if (errno != EBADMSG)
        return -1;
      damage_note (j, &damage);
      j->distrust = true;
      j->distrust_upto = MAX (j->distrust_upto, c->epoch);
    }
  }
  if (j->log.saved_seq != 0 &&
      claim_record (j, j->log.saved_seq, j->log.saved_nparts, 0,
                    newest_settled (j), &damage) == -1) {
    if (errno != EBADMSG)
      return -1;
    /* No checkpoint is hurt; but what was acknowledged is gone. */
    j->saved_bad = true;
    j->saved_damage = damage;
    j->log.saved_seq = 0;
    j->state.clean = false;
  }
  space_settle (j);
  return 0;
}

/* --- Open and close --- */

static int
open_files (struct journal *j, struct mcerror *err)
{
  if (host_boot_id (j->boot_id) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot read the boot id: %m");
  if (journal_file_open (j, "journal") == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open %s/journal: %m",
                        j->dir);
  /* Records may so far be in the page cache only. */
  if (file_sync (j) == -1) {
    mcerror_set (err, MCEXIT_DAMAGE, "cannot sync %s/journal: %m; nothing in it can be "
                 "trusted", j->dir);
    acked_distrust (j);         /* a second sync would not fail again */
    return -1;
  }
  /* So may the names, when whoever made them was killed in time. */
  if (io_sync_dir (j->fs, j->dir) == -1 || sync_parent (j->fs, j->dir) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot sync the directory %s: %m",
                        j->dir);
  /* After a sync that failed, pages that never got to the disk pass for read ones. */
  if (!j->direct)
    (void) io_advise (j->file, 0, 0, POSIX_FADV_DONTNEED);
  return super_read (j, err);
}

/* The file ends before it should.  Whatever is whole in what is left is so, but nobody knows
 * whether that is all.
 */
static void
note_cut (struct journal *j)
{
  uint64_t first = newest_committed (j) + 1;
  struct journal_damage d;

  if (j->file_size >= j->config.size)
    return;
  for (uint32_t c = j->file_size / JOURNAL_CHUNK; c < j->nchunks; c++)
    if (j->chunks[c].kind == CHUNK_DATA || j->chunks[c].kind == CHUNK_TABLE)
      first = MIN (first, MAX (j->chunks[c].min_epoch, UINT64_C (1)));
  damage_set (&d, "journal", j->file_size, first,
              "the file ends here and should have %llu bytes",
              (unsigned long long) j->config.size);
  damage_note (j, &d);
}

int
no_journal (struct journal *j, struct mcerror *err)
{
  struct journal_damage d;
  struct format_acked acked;

  if (acked_read (j, &acked) == 1 && get64 (acked.seq) > 1) {
    damage_set (&d, "journal", 0, 0,
                "the file is gone, and acked says that it had checkpoint %llu",
                (unsigned long long) get64 (acked.checkpoint));
    return damage_fatal (j, &d, err);
  }
  errno = ENOENT;
  return mcerror_set (err, MCEXIT_USAGE, "there is no journal in %s", j->dir);
}

static int
open_journal (const struct io_fs *fs, const char *dir, bool look, size_t room,
              unsigned threads, struct journal **journal, struct journal_damage *damage,
              struct mcerror *err)
{
  struct journal *j = journal_new (fs, dir);

  if (j == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open %s/journal: %m", dir);
  j->look = look;
  j->load_room = room;
  j->load_threads = threads;
  j->opening = room > 0;
  switch (journal_exists (fs, dir)) {
  case -1:
    mcerror_set (err, MCEXIT_USAGE, "cannot open %s/journal: %m", dir);
    goto fail;
  case 0:
    no_journal (j, err);
    goto fail;
  }
  if (lock_take (j, err) == -1 || open_files (j, err) == -1)
    goto fail;
  if (space_init (j) == -1 || tables_init (j) == -1) {
    mcerror_set (err, MCEXIT_USAGE, "cannot open %s/journal: %m", dir);
    goto fail;
  }
  if (log_open (j, err) == -1)
    goto fail;
  if (j->state.has_checkpoint)
    j->forgotten = j->state.watermark.id;
  if (space_claim (j) == -1) {
    mcerror_set (err, errno == EBADMSG ? MCEXIT_DAMAGE : MCEXIT_USAGE,
                 "cannot work out what is in use in %s/journal: %m", dir);
    goto fail;
  }
  note_cut (j);
  j->opening = false;
  loaded_settle (j);
  *journal = j;
  return 0;

 fail:
  if (damage)
    *damage = j->damage;
  journal_destroy (j);
  return -1;
}

int
journal_open (const struct io_fs *fs, const char *dir,
              struct journal **journal, struct mcerror *err)
{
  return open_journal (fs, dir, false, 0, 0, journal, NULL, err);
}

int
journal_open_keep (const struct io_fs *fs, const char *dir, size_t chunks,
                   unsigned threads, struct journal **journal,
                   struct mcerror *err)
{
  return open_journal (fs, dir, false, chunks, threads, journal, NULL, err);
}

int
journal_look (const struct io_fs *fs, const char *dir,
              struct journal **journal, struct journal_damage *damage,
              struct mcerror *err)
{
  return open_journal (fs, dir, true, 0, 0, journal, damage, err);
}

void
journal_close (struct journal *j)
{
  if (j == NULL)
    return;
  assert (!j->running);
  /* A region that nobody wrote through is of use to nobody. */
  staging_close (j, j->region && j->region->instance == 0);
  journal_destroy (j);
}
