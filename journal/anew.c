/* SPDX-License-Identifier: BSD-3-Clause */
/* Beginning anew: the one record that may follow a failure.
 *
 * Once a write or a sync has failed nothing later is believed: neither what is in memory
 * nor what can be read, for the page cache may hold what the disk does not.
 * What was durable before still is: each of those records, with all that it needs, has been under
 * a sync that succeeded, and "acked" says which was the last.  A record that needs nothing
 * but them can follow, at the place of the first that was refused: a STATE record of a new first copy
 * needs not even them.  It gives up the rest, and all of that is forgotten with it.
 *
 * Until that record is durable the failure stays noted in "acked", so that whoever opens the journal
 * after a crash in between finds what was durable before.  That nobody else's record comes first, the turn sees to.
 * Each sync is checked; when one fails again all is as it was: failed.
 */
#include "config.h"

#include <errno.h>

#include "journal/internal.h"

/* With the turn: take back what the failure has left half done.  -1: the device still fails. */
static int
mend (struct journal *j)
{
  /* What is noted durably now, and what the device says to an easy question. */
  if (journal_note_failed (j, true) == -1 || file_sync (j) == -1)
    return -1;

  SCOPED_LOCK (&j->lock);
  log_revert_locked (j);
  j->log.anchor_differs = true;         /* either may have been written */
  j->heal = true;
  j->failed = 0;
  return 0;
}

int
journal_begin_anew (struct journal *j, journal_change_fn change, void *opaque)
{
  bool noted;
  int r = 0, error, saved;

  pthread_mutex_lock (&j->lock);
  log_turn_take_locked (j);
  error = j->failed;
  noted = j->noted_failed;
  pthread_mutex_unlock (&j->lock);

  if (error)
    r = mend (j);
  if (r == 0) {
    {
      SCOPED_LOCK (&j->lock);
      j->noted_failed = false;
    }
    r = record_turn (j, JOURNAL_REC_STATE, change, opaque);
  }
  saved = errno;
  if (r == -1) {
    SCOPED_LOCK (&j->lock);
    j->noted_failed = noted;
    /* Whatever it was, also that there is no room: the journal is as failed as before. */
    if (error)
      poison_locked (j, error);
  }
  if (r == -1 && (error || noted))
    (void) journal_note_failed (j, true);

  SCOPED_LOCK (&j->lock);
  if (r == 0)
    j->log.refused = 0;
  log_turn_give_locked (j);
  errno = saved;
  return r;
}
