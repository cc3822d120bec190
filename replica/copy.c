/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of a first copy, of all disks or of those that have joined: the commit that ends it makes the
 * images durable before its record.
 *
 * An image may take its time, or never answer.  So the commit does this without the turn, and a promote, a
 * resync or a stop does not wait behind it; it comes back with the turn, and looks at everything
 * anew.  What it waits for belongs to the copy of replica.moves: after another promote or resync it means
 * nothing.  A resync that lets a new copy into the same images waits until no flush of the old one is
 * under way (come_to_rest_locked): that could take the error of a write of the new one, and nobody would hear of it.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "replica/internal.h"
#include "replica/samples.h"

static bool
is_of_now_locked (const struct replica *r, uint64_t moves)
{
  return r->moves == moves && state_takes_writes (r->state) && !r->stopping;
}

/* Others who end a copy wait while this is *MINE; whatever was still on its way to the images has got there.  -1: it is
 * another copy by now, or none.
 */
static int
copy_begin_locked (struct replica *r, uint64_t moves, bool *mine)
{
  assert_locked (r);
  while (is_of_now_locked (r, moves) && r->copy_turn && !*mine)
    pthread_cond_wait (&r->changed, &r->lock);
  if (!is_of_now_locked (r, moves))
    return -1;
  r->copy_turn = *mine = true;
  r->want_idle++;
  while (is_of_now_locked (r, moves) &&
         (r->through > 0 || r->moving || r->holing || r->failing))
    pthread_cond_wait (&r->changed, &r->lock);
  r->want_idle--;
  return is_of_now_locked (r, moves) ? 0 : -1;
}

/* -1: of the image of disk *FAILED. */
static int
flush_images (struct replica *r, const bool fresh[JOURNAL_MAX_DISKS], unsigned *failed)
{
  for (unsigned i = 0; i < r->ndisks; i++)
    if (fresh[i] && backing_flush (r->disks[i].backing) == -1) {
      *failed = i;
      return -1;
    }
  return 0;
}

int
finish_copy (struct replica *r, uint64_t moves, bool *mine, struct mcerror *err)
{
  bool fresh[JOURNAL_MAX_DISKS] = { false };
  bool joined, any = false;
  unsigned failed = 0;
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);

    if (copy_begin_locked (r, moves, mine) == -1)
      return 0;                 /* with the turn it is told why */
    joined = r->has_checkpoint;
    for (unsigned i = 0; i < r->ndisks; i++) {
      fresh[i] = disk_is_fresh_locked (r, i);
      any = any || fresh[i];
    }
    if (!any)
      return 0;                 /* somebody else has ended it */
    r->finishing = true;
  }
  result = flush_images (r, fresh, &failed);
  saved = errno;
  /* Write-out goes on beside the copy of disks that have joined: they get samples with that.  A commit
   * has no room for samples: they are there before it, and mean nothing before it.
   */
  if (result == 0 && !joined)
    samples_take (r->journal, r->disks, r->ndisks);
  {
    SCOPED_LOCK (&r->lock);
    r->finishing = false;
    pthread_cond_broadcast (&r->changed);
  }
  if (result == 0)
    return 0;
  if (replica_hole_since (r, moves, saved, backing_path (r->disks[failed].backing)) == -1)
    return 0;
  errno = EIO;
  return mcerror_set (err, MCEXIT_REFUSED,
                      "cannot commit: %s: cannot make the first copy durable: %s: "
                      "mend the cause, then use resync%s",
                      backing_path (r->disks[failed].backing),
                      strerror (saved), joined ? "" : " overwrite");
}

static void
change_nothing (struct journal_state *state, void *opaque)
{
  (void) state;
  (void) opaque;
}

int
copy_record_samples (struct replica *r, struct mcerror *err)
{
  if (journal_record (r->journal, JOURNAL_REC_STATE, change_nothing, NULL) == 0)
    return 0;
  if (journal_failed (r->journal))
    replica_fail (r, "recording samples of the first copy", errno);
  return mcerror_set (err, MCEXIT_REFUSED, "cannot commit: %s/journal: %m", r->dir);
}

void
copy_turn_end (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  r->copy_turn = false;
  pthread_cond_broadcast (&r->changed);
}
