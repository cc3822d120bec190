/* SPDX-License-Identifier: BSD-3-Clause */
/* Views: a checkpoint as a read-only disk that stays as it is while replication runs.
 *
 * Nothing is copied.  A view of checkpoint N reads the closed segments of the write-out buffer that end
 * with N or before it, and the images below.  If no segment ends with N, one more map leads on from the last
 * that does; it is built from the journal when the view is opened.  For the newest checkpoint the gathering
 * segment is closed instead, but only for a few: history goes out by segments, and what
 * views close must not leave too few for it.  While somebody looks, write-out
 * does not go past N, nor past where that map begins, for it would recycle the blocks that the map
 * names.  When the journal runs short the view is revoked, before write-out
 * goes on: whoever read meanwhile finds that out after reading, and gets EIO.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define VIEWS_MAX 16            /* checkpoints that are looked at at the same time */
#define MERGE_SLICE 512

static struct view *
find_locked (struct replica *r, uint64_t checkpoint)
{
  for (struct view *v = r->views; v; v = v->next)
    if (v->checkpoint == checkpoint && !v->revoked)
      return v;
  return NULL;
}

/* In the list, it holds write-out back. */
static struct view *
add_locked (struct replica *r, uint64_t checkpoint)
{
  struct view *v;
  unsigned n = 0;

  for (v = r->views; v; v = v->next)
    n++;
  if (n >= VIEWS_MAX) {
    errno = EMFILE;
    return NULL;
  }
  v = calloc (1, sizeof *v);
  if (v == NULL)
    return NULL;
  v->checkpoint = checkpoint;
  v->upto = v->hold = writeout_boundary (r->wo, checkpoint);
  v->users = 1;
  v->building = true;
  v->next = r->views;
  r->views = v;
  return v;
}

static void
drop_locked (struct replica *r, struct view *v)
{
  struct view **p = &r->views;

  assert_locked (r);
  assert (v->users > 0);
  if (--v->users > 0)
    return;
  while (*p != v)
    p = &(*p)->next;
  *p = v->next;
  if (v->first)
    epoch_free (v->first);
  free (v);
  pthread_cond_signal (&r->work);
}

void
view_close (struct replica *r, struct view *v)
{
  SCOPED_LOCK (&r->lock);

  drop_locked (r, v);
}

void
views_revoke_locked (struct replica *r, uint64_t below)
{
  assert_locked (r);
  for (struct view *v = r->views; v; v = v->next)
    if (!v->revoked && v->hold < below) {
      v->revoked = true;
      replica_log (r, REPLICA_LOG_ERROR, "the view of checkpoint %" PRIu64 " is revoked: %s",
                   v->checkpoint, below == UINT64_MAX ? "the replica has moved on" :
                   "the journal runs short, write-out has to go on");
      house_event_locked (r, "view", "revoked: checkpoint %" PRIu64, v->checkpoint);
    }
}

bool
views_hold_locked (struct replica *r, const struct writeout_oldest *oldest)
{
  bool held = false;

  assert_locked (r);
  for (const struct view *v = r->views; v && !held; v = v->next)
    held = !v->revoked && v->hold < oldest->last;
  if (!held)
    return false;
  if (!history_runs_short_locked (r))
    return true;
  views_revoke_locked (r, oldest->last);
  return false;
}

/* What an attempt to open a view has come to. */
enum { SHARED, ADDED, AGAIN };

/* Let a closed segment end with the newest checkpoint.  With the turn, so that no commit
 * comes in between.  AGAIN: others have closed too many meanwhile.
 */
static int
cut_at_newest (struct replica *r)
{
  int more;

  do {
    struct epoch *done = NULL;

    {
      SCOPED_LOCK (&r->lock);
      more = writeout_merge (r->wo, MERGE_SLICE, &done);
      if (more == 0)
        more = !writeout_may_cut (r->wo) ? AGAIN : writeout_cut (r->wo);
    }
    epoch_free (done);
  } while (more == 1);
  return more;
}

static bool
is_listed (struct replica *r, uint64_t checkpoint)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *list = calloc (n + 1, sizeof *list);

  if (list == NULL)
    return false;
  n = MIN (n, journal_checkpoints (r->journal, list, n));
  for (size_t i = 0; i < n; i++)
    if (list[i].id == checkpoint)
      return true;
  errno = ENOENT;
  return false;
}

/* The map that leads on from the last segment before V's checkpoint.  *HOLD is where it begins. */
static int
build_first (struct replica *r, struct view *v, uint64_t *hold)
{
  uint64_t from = v->upto, newest = 0;
  struct journal_damage damage;
  struct journal_state state;
  struct epoch *e;

  if (from == 0) {
    journal_get_state (r->journal, &state);
    from = state.watermark.id;
  }
  *hold = from;
  if (from == v->checkpoint)
    return 0;
  e = epoch_new ();
  if (e == NULL)
    return -1;
  if (replay_map (r->journal, from, v->checkpoint, e, &newest, &damage) == -1) {
    epoch_free (e);
    return -1;
  }
  SCOPED_LOCK (&r->lock);
  v->first = e;
  return 0;
}

int
view_check_state_locked (struct replica *r, uint64_t *checkpoint)
{
  if (r->stopping || r->state == JOURNAL_PROMOTED) {
    errno = ESHUTDOWN;
    return -1;
  }
  if (r->state == JOURNAL_FAILED) {
    errno = EIO;
    return -1;
  }
  if (!r->has_checkpoint) {
    errno = ENOENT;
    return -1;
  }
  if (*checkpoint == VIEW_LATEST)
    *checkpoint = r->checkpoint.id;
  return 0;
}

/* The newest checkpoint is cheap: no commit comes in between, and a segment ends with it.  AGAIN: it
 * is not WANTED any more.
 */
static int
add_newest (struct replica *r, uint64_t wanted, struct view **view)
{
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    if (turn_begin_locked (r) == -1)
      return -1;
  }
  result = cut_at_newest (r);
  saved = errno;
  SCOPED_LOCK (&r->lock);
  if (result == 0) {
    uint64_t checkpoint = VIEW_LATEST;

    result = view_check_state_locked (r, &checkpoint);
    if (result == 0)
      result = wanted != VIEW_LATEST && wanted != checkpoint ? AGAIN :
        (*view = add_locked (r, checkpoint)) ? ADDED : -1;
    saved = errno;
  }
  turn_end_locked (r);
  errno = saved;
  return result;
}

/* V is in the list: see that it can be had, and make what it lacks. */
static int
build (struct replica *r, struct view *v)
{
  uint64_t hold = 0;
  unsigned phase;
  int result, saved;

  {
    SCOPED_LOCK (&r->lock);
    phase = reader_begin_locked (r);    /* what the replay reads stays */
  }
  /* Only now that write-out cannot go past it any more is it worth asking. */
  result = is_listed (r, v->checkpoint) ? build_first (r, v, &hold) : -1;
  saved = errno;
  reader_end (r, phase);

  SCOPED_LOCK (&r->lock);
  v->building = false;
  v->hold = hold;
  pthread_cond_broadcast (&r->changed);
  pthread_cond_signal (&r->work);
  if (v->revoked) {
    saved = r->stopping || r->state == JOURNAL_PROMOTED ? ESHUTDOWN : ENOENT;
    result = -1;
  }
  if (result == -1)
    drop_locked (r, v);
  errno = saved;
  return result;
}

static int
try_open (struct replica *r, uint64_t wanted, struct view **view)
{
  uint64_t checkpoint = wanted, target;

  {
    SCOPED_LOCK (&r->lock);

    if (view_check_state_locked (r, &checkpoint) == -1)
      return -1;
    *view = find_locked (r, checkpoint);
    if (*view && (*view)->building) {
      pthread_cond_wait (&r->changed, &r->lock);
      return AGAIN;
    }
    if (*view) {
      (*view)->users++;
      return SHARED;
    }
    /* Too many segments: then the newest has a map of its own as any other. */
    if (checkpoint != r->checkpoint.id || !writeout_may_cut (r->wo)) {
      (void) writeout_resume (r->wo, &target);
      if (target > checkpoint) {
        errno = ENOENT;
        return -1;
      }
      return (*view = add_locked (r, checkpoint)) ? ADDED : -1;
    }
  }
  return add_newest (r, wanted, view);
}

int
view_open (struct replica *r, uint64_t checkpoint, struct view **view)
{
  int result;

  do
    result = try_open (r, checkpoint, view);
  while (result == AGAIN);
  if (result == ADDED)
    result = build (r, *view);
  if (result == -1)
    *view = NULL;               /* what could not be built is gone */
  return result;
}

int
view_resolve_locked (struct replica *r, const struct view *v, unsigned disk,
                     uint64_t offset, uint64_t length,
                     struct overlay_pieces *pieces)
{
  assert_locked (r);
  if (r->stopping) {
    errno = ESHUTDOWN;
    return -1;
  }
  if (v->revoked || r->state == JOURNAL_FAILED) {
    errno = EIO;
    return -1;
  }
  return overlay_resolve_at (v->first ? v->first->map : NULL, r->wo, v->upto,
                             disk, offset, length, pieces);
}

int
view_check (struct replica *r, const struct view *v)
{
  SCOPED_LOCK (&r->lock);

  if (!v->revoked)
    return 0;
  errno = EIO;
  return -1;
}
