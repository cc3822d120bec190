/* SPDX-License-Identifier: BSD-3-Clause */
/* "promote scratch": the checkpoint with what was written to its scratch over it becomes the disk.
 *
 * The PROMOTE record comes first and says that something is pending.  Then all that was written to
 * scratch goes into the journal as promoted writes, and one record commits it and takes the
 * word back.  Killed in between, the replica is promoted to the checkpoint
 * alone: what is pending is void to whoever comes next.  The record also says that the disk was a scratch, so
 * that NAME@scratch serves it from then on, in the life of the next server, too.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define PIECE (1u << 20)
#define ZEROES (UINT64_C (1) << 30)     /* at a time */

/* Room in the journal for what a scratch holds: blocks, and descriptors. */
static uint64_t
room_needed (const struct scratch *s)
{
  return map_blocks (s->map) * (JOURNAL_BLOCK + 64) + 2 * JOURNAL_CHUNK;
}

/* The newest set is what is promoted; any other that somebody has open might have been meant. */
int
scratch_check_promote (struct replica *r, struct mcerror *err)
{
  struct journal_usage usage;
  uint64_t need = 0;
  unsigned n = 0;
  SCOPED_LOCK (&r->lock);

  for (const struct scratch *s = r->scratches; s; s = s->next) {
    const char *name = r->disks[s->disk].name;

    if (s->set != r->scratches->set) {
      if (s->users == 0)
        continue;
      errno = EPERM;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "cannot promote scratch: \"%s@scratch\" is open twice, over checkpoint %" PRIu64
                          " and in a newer set: close the one that is not meant, or promote without it",
                          name, s->checkpoint);
    }
    n++;
    need += room_needed (s);
    if (s->checkpoint != r->checkpoint.id) {
      errno = EPERM;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "cannot promote scratch: \"%s@scratch\" is over checkpoint %" PRIu64
                          ", the newest is %" PRIu64 ": reset it, or promote without it",
                          name, s->checkpoint, r->checkpoint.id);
    }
    if (s->look && s->look->revoked) {
      errno = EPERM;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "cannot promote scratch: \"%s@scratch\" was revoked: reset it, or promote without it",
                          name);
    }
  }
  if (n == 0) {
    errno = EPERM;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot promote scratch: nobody has written to NAME@scratch since the last checkpoint: "
                        "promote without it");
  }
  journal_get_usage (r->journal, &usage);
  if (need > usage.available) {
    errno = ENOSPC;
    return mcerror_set (err, MCEXIT_REFUSED,
                        "cannot promote scratch: %" PRIu64 " bytes of it do not fit into the journal, which has room for %"
                        PRIu64 ": wait for write-out, or promote without it", need, usage.available);
  }
  return 0;
}

/* Neighbouring runs of data as one piece of at most PIECE bytes; zeroes by themselves. */
static int
ingest_runs (struct replica *r, struct scratch *s, const struct map_run *runs,
             size_t n, uint8_t *buf)
{
  uint64_t size = r->disks[s->disk].size;

  for (size_t i = 0; i < n;) {
    uint64_t from = runs[i].sector, to = from + runs[i].nsectors, end, part;
    bool zero = runs[i].zero, may_trim = runs[i].may_trim;

    i++;
    while (!zero && i < n && !runs[i].zero && runs[i].sector == to &&
           (to + runs[i].nsectors - from) * JOURNAL_SECTOR <= PIECE) {
      to += runs[i].nsectors;
      i++;
    }
    from *= JOURNAL_SECTOR;
    end = MIN (to * JOURNAL_SECTOR, size);
    if (!zero && io_pread (s->file, buf, end - from, from) == -1)
      return -1;
    for (; from < end; from += part) {
      part = zero ? MIN (end - from, ZEROES) : end - from;
      divergence_mark (r, s->disk, from, part);
      if (put_own (r, s->disk, zero ? NULL : buf, part, from, may_trim) == -1)
        return -1;
    }
  }
  return 0;
}

static void
change_whole (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->pending = false;
}

/* The commit takes the word back; where nothing was written there is none. */
static int
finish (struct replica *r)
{
  struct journal_state state;

  if (promoted_flush_turn (r) == -1)
    return -1;
  journal_get_state (r->journal, &state);
  return state.pending ?
    journal_record (r->journal, JOURNAL_REC_STATE, change_whole, NULL) : 0;
}

static int
ingest (struct replica *r)
{
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);

  if (buf == NULL)
    return -1;
  /* All are held: the list stays as it is. */
  for (struct scratch *s = r->scratches; s && s->set == r->scratches->set; s = s->next) {
    CLEANUP_FREE struct map_run *runs = NULL;
    size_t n;

    if (map_sorted (s->map, &runs, &n) == -1 ||
        ingest_runs (r, s, runs, n, buf) == -1)
      return -1;
  }
  return finish (r);
}

static bool
busy_locked (struct replica *r)
{
  for (const struct scratch *s = r->scratches; s; s = s->next)
    if (s->alone || s->shared > 0)
      return true;
  return false;
}

int
scratch_hold_all (struct replica *r, struct mcerror *err)
{
  uint64_t until = host_monotonic_ns () + REST_MS * UINT64_C (1000000);
  SCOPED_LOCK (&r->lock);

  r->scratch_held = true;
  while (busy_locked (r) && !r->stopping && host_monotonic_ns () < until)
    (void) wait_changed_locked (r, 100);
  if (!busy_locked (r))
    return 0;
  r->scratch_held = false;
  pthread_cond_broadcast (&r->changed);
  errno = EPERM;
  return mcerror_set (err, MCEXIT_REFUSED, "cannot promote scratch: a request of NAME@scratch does not come to an end: "
                      "mend the backing image that it reads, or promote without scratch");
}

void
scratch_release_all (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  r->scratch_held = false;
  pthread_cond_broadcast (&r->changed);
}

/* From now on who has it open has the disk, and who opens it, too. */
static void
hand_over_locked (struct replica *r)
{
  struct scratch **p = &r->scratches;
  uint64_t set = *p ? (*p)->set : 0;

  r->scratch_is_disk = true;
  while (*p) {
    struct scratch *s = *p;

    if (s->set != set || s->users == 0) {
      p = &s->next;             /* scratch_take_unused is for it */
      continue;
    }
    s->became_disk = true;
    s->fence = r->fence;
    *p = s->next;
  }
}

static void
change_void (struct journal_state *state, void *opaque)
{
  state_epoch (state, *(uint64_t *) opaque);
  state_discard (state, *(uint64_t *) opaque - 1);
  state->pending = state->scratch = false;
}

/* Promoted without it: what is in the journal of it must never be seen. */
static void
give_up (struct replica *r)
{
  uint64_t open;

  {
    SCOPED_LOCK (&r->lock);
    open = speculation_open_number (r->spec) + 1;
  }
  if (journal_record (r->journal, JOURNAL_REC_STATE, change_void, &open) == -1 ||
      discard_speculation (r) == -1)
    replica_fail (r, "discarding what was written to scratch", errno);
}

int
scratch_ingest (struct replica *r, uint64_t checkpoint, struct mcerror *err)
{
  if (ingest (r) == -1) {
    int saved = errno;

    if (journal_failed (r->journal))
      replica_fail (r, "promoting scratch", saved);
    else
      give_up (r);
    errno = saved;
    return mcerror_set (err, MCEXIT_PARTIAL,
                        "promoted to checkpoint %" PRIu64 ", but without what was written to scratch: %s",
                        checkpoint, strerror (saved));
  }
  {
    SCOPED_LOCK (&r->lock);
    hand_over_locked (r);
  }
  scratch_take_unused (r);
  return 0;
}
