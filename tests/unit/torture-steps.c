/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests.  Each can be made in any state: where that does not take it, it is to be refused. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit/torture.h"

#define rnd life_random

enum journal_replica_state
life_state (struct life *l)
{
  SCOPED_LOCK (&l->r->lock);

  return l->r->state;
}

uint64_t
life_open_epoch (struct life *l)
{
  SCOPED_LOCK (&l->r->lock);

  return speculation_open_number (l->r->spec);
}

struct replica_export
life_export (struct life *l, unsigned disk)
{
  SCOPED_LOCK (&l->r->lock);

  return (struct replica_export) {
    .disk = disk, .fence = l->r->fence,
    .view = l->cur.kind == OUTCOME_PROMOTED ? REPLICA_PROMOTED : REPLICA_INLET };
}

/* A request failed, in a state that takes it.  RECORDS: it has no data, and room for it is reserved. */
void
step_excuse (struct life *l, bool records)
{
  struct journal_usage usage;
  int error = errno;

  if (fault_excuses (l))
    return;
  journal_get_usage (l->r->journal, &usage);
  MUST (error == ENOSPC && (records ? usage.used == usage.size :
                            usage.available < 4 * JOURNAL_CHUNK),
        "failed: %s (%s: %s), %" PRIu64 " bytes available, %" PRIu64 " free", strerror (error),
        replica_state_word (life_state (l)), l->r->reason, usage.available, usage.size - usage.used);
}

/* --- data --- */

void
step_pick (struct life *l, unsigned disk, uint64_t *off, uint32_t *len)
{
  static const uint32_t grain[] = { 1, 512, 4096, 4096 };
  uint32_t g = grain[rnd (l, 4)];
  uint64_t size = l->size[disk];
  uint64_t most = l->p.large && !l->nested && (l->p.greedy || rnd (l, 4)) ? UINT64_C (200000) :
    rnd (l, 8) ? UINT64_C (12000) : UINT64_C (70000);

  *off = ROUND_DOWN (rnd (l, l->p.large ? size / 8 : size), (uint64_t) g);
  *len = 1 + rnd (l, MIN (size - *off, most));
  if (*len > g)
    *len = ROUND_DOWN (*len, g);
  if (rnd (l, 20) == 0) {
    *len = 1 + rnd (l, MIN (size, UINT64_C (3000)));
    *off = size - *len;
  }
}

void
step_flush (struct life *l, unsigned disk)
{
  struct replica_export x = life_export (l, disk);
  enum journal_replica_state state = life_state (l);
  struct mark mark = { NULL, 0 };

  if (state == JOURNAL_STALE || state == JOURNAL_FAILED)
    return;
  model_begin (l, "flushing");
  if (l->cur.kind == OUTCOME_PROMOTED)
    mark = model_mark (l);
  if (LIBRARY (replica_flush (l->r, &x)) == -1)
    step_excuse (l, l->cur.kind != OUTCOME_PROMOTED);
  else if (l->cur.kind == OUTCOME_PROMOTED) {
    model_flushed (l, disk, mark);
    torture_count[COUNT_FLUSH]++;
  }
}

static void
step_flush_any (struct life *l)
{
  step_flush (l, rnd (l, l->ndisks));
}

static void
refused_write (struct life *l)
{
  enum journal_replica_state state;

  if (errno == ENOSPC && !l->fault.hit)
    torture_count[COUNT_FULL]++;
  if (!l->hole)
    step_excuse (l, false);
  if (l->cur.kind == OUTCOME_PROMOTED)
    return;
  l->hole = true;
  state = life_state (l);
  MUST (state == JOURNAL_STALE || state == JOURNAL_FAILED,
        "a write was refused, and the replica is %s", replica_state_word (state));
}

static void
write_at (struct life *l, unsigned disk, uint64_t off, uint32_t len,
          unsigned kind)
{
  static uint8_t buf[256 << 10];
  static uint64_t bytes;
  struct replica_export x = life_export (l, disk);
  bool promoted = l->cur.kind == OUTCOME_PROMOTED;
  unsigned flags = rnd (l, 10) == 0 && !l->nested ? REPLICA_FUA : 0;
  uint32_t late = 0;
  struct mark mark;
  int result;

  if (promoted && l->nlate == TORTURE_LATE && !l->nested)
    step_flush (l, disk);
  if (promoted && l->nlate == TORTURE_LATE)
    return;
  model_begin (l, kind ? "zeroing" : "writing");
  if (kind == 0)
    torture_fill (buf, len, rnd (l, UINT64_MAX));
  if (promoted) {
    late = l->nlate;
    model_late (l, disk, off, len, kind ? NULL : buf);
  }
  if (kind == 0)
    result = LIBRARY (replica_pwrite (l->r, &x, buf, len, off, flags));
  else
    result = LIBRARY (replica_zero (l->r, &x, len, off, flags |
                                    (kind == 2 ? REPLICA_MAY_TRIM : 0)));
  if (promoted && result == -1) {
    SCOPED_LOCK (&l->lock);
    l->late[late].failed = true;
    l->hole = true;             /* NOW is not what is read */
  }
  if (result == -1) {
    refused_write (l);
    return;
  }
  bytes += len;
  torture_count[COUNT_MIB] = bytes >> 20;
  MUST (!l->hole || promoted, "a write was acknowledged after one that was refused");
  if (kind == 0)
    memcpy (l->now->disk[disk] + off, buf, len);
  else
    memset (l->now->disk[disk] + off, 0, len);
  if (promoted && flags && !l->hole) {
    mark = model_mark (l);
    model_flushed (l, disk, mark);
  }
  else
    model_dirty (l);
}

/* All of it. */
void
step_first_copy (struct life *l)
{
  for (unsigned d = 0; d < l->ndisks; d++)
    for (uint64_t off = 0; off < l->size[d] && !l->hole; ) {
      uint32_t len = MIN (l->size[d] - off, 1 + rnd (l, 150000));

      write_at (l, d, off, len, rnd (l, 3));
      off += len;
    }
}

static void
step_write (struct life *l)
{
  unsigned disk = rnd (l, l->ndisks), kind = rnd (l, 8);
  uint64_t off;
  uint32_t len;

  step_pick (l, disk, &off, &len);
  write_at (l, disk, off, len, kind > 2 ? 0 : kind);
}

void
step_read_export (struct life *l, const struct replica_export *x)
{
  static uint8_t buf[TORTURE_REQUEST];
  uint64_t off;
  uint32_t len;

  step_pick (l, x->disk, &off, &len);
  if (l->hole)
    return;
  if (LIBRARY (replica_pread (l->r, x, buf, len, off)) == -1) {
    MUST (fault_excuses (l), "read: %m");
    return;
  }
  MUST (memcmp (buf, l->now->disk[x->disk] + off, len) == 0,
        "disk %u, %" PRIu64 "+%u does not read as it was written", x->disk, off, len);
}

static void
step_read (struct life *l)
{
  struct replica_export x = life_export (l, rnd (l, l->ndisks));

  torture_doing = "reading";
  step_read_export (l, &x);
}

/* --- what threads do --- */

static void
step_writeout (struct life *l)
{
  torture_doing = "writing out";
  if (l->p.threads || l->nested)
    return;
  torture_count[COUNT_WRITEOUT]++;
  MUST (LIBRARY (writeout_step (l->r)) == 0 || fault_excuses (l), "write-out: %m (%s)", l->r->wo_error);
}

static void
step_chores (struct life *l)
{
  struct io_file *file;

  torture_doing = "doing chores";
  if (rnd (l, 2)) {
    if (!l->r->clean && takes_writes (life_state (l)))
      MUST (LIBRARY (replica_prepare_seal (l->r)) == 0 || fault_excuses (l), "prepare: %m");
  }
  else if (io_open (simdisk_fs (l->disk), TORTURE_DIR "/acked", O_RDWR, 0, &file) == 0) {
    (void) io_fdatasync (file);
    io_close (file);
  }
}

static void
step_catalog (struct life *l)
{
  torture_doing = "keeping the catalog";
  if (l->p.threads || l->nested)
    return;
  catalog_step (l->disk, l->r);
  if (l->fault.hit && l->fault.sticky)
    return;
  if (l->fault.hit)             /* what it missed, it makes up for */
    for (unsigned i = 0; i < 2; i++)
      catalog_step (l->disk, l->r);
  simdisk_calls (l->disk, NULL, NULL);
  catalog_match (l, l->disk, l->r);
  fault_move (l);
  torture_count[COUNT_CATALOG]++;
}

/* --- which --- */

/* How often in each state; the letter is for scripts.  In syncing, with nothing to promote. */
static const struct step {
  char letter;
  void (*make) (struct life *l);
  bool overtakes;               /* can be made while write-out waits for the disk */
  unsigned syncing, protected, stale, resyncing, promoted, failed;
} steps[] = {
  { 'w', step_write, true, 500, 470, 150, 480, 540, 400 },
  { 'r', step_read, true, 80, 80, 20, 80, 150, 50 },
  { 's', step_seal, true, 60, 90, 20, 90, 10, 50 },
  { 'c', step_commit, true, 150, 180, 100, 150, 10, 300 },
  { 'o', step_writeout, false, 20, 100, 20, 100, 140, 20 },
  { 'h', step_chores, false, 30, 20, 20, 20, 30, 20 },
  { 'k', step_catalog, false, 20, 15, 20, 15, 15, 10 },
  { 'n', step_nonsense, false, 10, 15, 10, 15, 10, 20 },
  { 'i', step_status, false, 10, 10, 20, 10, 10, 30 },
  { 'f', step_flush_any, true, 40, 7, 0, 7, 100, 30 },
  { 'p', step_promote, true, 2, 6, 100, 10, 5, 20 },
  { 'y', step_resync, true, 2, 10, 450, 10, 5, 20 },
  { 'x', step_overwrite, false, 5, 3, 100, 3, 10, 20 },
  { 'v', step_view, true, 5, 120, 60, 120, 3, 10 },
  { 'u', step_scratch, true, 5, 160, 100, 160, 10, 10 },
  { 'q', step_promote_scratch, false, 1, 10, 100, 10, 0, 3 },
};
#define STEPS (sizeof steps / sizeof steps[0])

static unsigned
weight (const struct life *l, const struct step *s,
        enum journal_replica_state state, bool overtaking)
{
  if (overtaking && !s->overtakes)
    return 0;
  /* So that it fills up: first something to have, then writes only. */
  if (l->p.greedy && takes_writes (state) && strchr ("coyxpq", s->letter))
    return l->nsteps % l->p.steps < l->p.steps / 8 ? s->protected / 4 : 0;
  switch (state) {
  case JOURNAL_SYNCING: return s->syncing;
  case JOURNAL_PROTECTED: return s->protected;
  case JOURNAL_STALE: return s->stale;
  case JOURNAL_RESYNCING: return s->resyncing;
  case JOURNAL_PROMOTED: return s->promoted;
  case JOURNAL_FAILED: return s->failed;
  }
  return 0;
}

static void
make (struct life *l, bool overtaking)
{
  enum journal_replica_state state = life_state (l);
  unsigned sum = 0, w;
  uint64_t dice;

  for (size_t i = 0; i < STEPS; i++)
    sum += weight (l, &steps[i], state, overtaking);
  dice = rnd (l, sum);
  for (size_t i = 0; i < STEPS; i++) {
    w = weight (l, &steps[i], state, overtaking);
    if (dice < w) {
      steps[i].make (l);
      return;
    }
    dice -= w;
  }
}

void
step_random (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  struct journal_usage usage;

  MUST (state != JOURNAL_FAILED || fault_excuses (l), "failed: %s", l->r->reason);
  l->nsteps++;
  if (state == JOURNAL_STALE)
    l->hole = true;
  journal_get_usage (l->r->journal, &usage);
  if (takes_writes (state) && usage.available < 5 * JOURNAL_CHUNK &&
      !l->p.greedy && rnd (l, 60)) {
    if (l->p.threads || writeout_is_empty (l->r->wo))
      step_commit (l);
    step_writeout (l);
  }
  make (l, false);
  fault_check (l);
}

void
step_letter (struct life *l, char letter)
{
  l->nsteps++;
  if (life_state (l) == JOURNAL_STALE)
    l->hole = true;
  for (size_t i = 0; i < STEPS; i++)
    if (steps[i].letter == letter) {
      steps[i].make (l);
      fault_check (l);
      return;
    }
  torture_fail ("'%c' is no step", letter);
}

/* Only what is sure not to wait for the one that waits for the disk. */
void
step_meanwhile (struct life *l, enum simdisk_op op)
{
  const char *was = torture_doing, *path = simdisk_op_path ();
  struct replica *r = l->r;
  struct journal_usage usage;
  bool write_out, commit;

  if (r == NULL || l->nested || op == SIMDISK_NAME)
    return;
  write_out = strcmp (was, "writing out") == 0 && strstr (path, ".img");
  commit = (strcmp (was, "committing") == 0 || strcmp (was, "flushing") == 0) &&
    strcmp (path, TORTURE_DIR "/journal") == 0;
  {
    SCOPED_LOCK (&r->lock);

    if (r->stopping || r->clean || r->drain_hold || r->moving || r->closing ||
        r->failing || r->holing || r->hold_writeout || r->through > 0 ||
        r->journaled > 0)
      return;
    write_out = write_out && r->writing_out && !r->commit_turn;
    commit = commit && r->commit_turn &&
      (l->cur.kind == OUTCOME_PROMOTED ? !r->direct :
       takes_writes (r->state) && speculation_open_number (r->spec) > l->sealed_upto);
  }
  journal_get_usage (r->journal, &usage);
  if (usage.available < 7 * JOURNAL_CHUNK || usage.buffer_used > 2 * JOURNAL_CHUNK ||
      !(write_out || commit))
    return;
  l->nested = true;
  torture_count[COUNT_OVERTAKEN]++;
  if (write_out)
    make (l, true);
  else if (rnd (l, 4))
    step_write (l);
  else
    step_read (l);
  l->nested = false;
  torture_doing = was;
}
