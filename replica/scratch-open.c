/* SPDX-License-Identifier: BSD-3-Clause */
/* Which scratch a client gets, and for how long it is kept.
 *
 * A SET has at most one scratch of each disk, all over one checkpoint: the disks of one machine.  An open
 * scratch stays the disk it was.  Who opens one shares that of the newest set if there has been no
 * commit since, or is the one that the set lacked so far; else begins a new set, and
 * the old one goes on beside it.  While nobody has a scratch open its view is closed, so that
 * write-out goes on; what was written is kept until a later commit, a newer set or "reset" makes it
 * worthless.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define BLOCKS 4096             /* a map's first size */

void
scratch_free (struct scratch *s)
{
  int saved = errno;

  if (s) {
    io_close (s->file);
    map_free (s->map);
    free (s);
  }
  errno = saved;
}

/* Its name in the journal's directory is gone at once.  Another process cannot have it: the journal
 * is locked; nor another thread.
 */
struct scratch *
scratch_new (struct replica *r, unsigned disk)
{
  CLEANUP_FREE char *path = NULL;
  struct scratch *s;
  uint64_t number;

  if (r->disks[disk].size / JOURNAL_BLOCK > UINT32_MAX) {
    errno = EFBIG;
    return NULL;
  }
  {
    SCOPED_LOCK (&r->lock);
    number = r->scratch_files++;
  }
  if (asprintf (&path, "%s/scratch-%" PRIu64, r->dir, number) == -1) {
    path = NULL;
    return NULL;
  }
  s = calloc (1, sizeof *s);
  if (s == NULL)
    return NULL;
  s->disk = disk;
  s->map = map_new (BLOCKS);
  if (s->map == NULL || io_open (r->fs, path, O_RDWR | O_CREAT | O_TRUNC, 0600, &s->file) == -1)
    goto error;
  if (io_unlink (r->fs, path) == -1 ||
      io_truncate (s->file, r->disks[disk].size) == -1)
    goto error;
  return s;

 error:
  scratch_free (s);
  return NULL;
}

static struct scratch *
find_locked (struct replica *r, uint64_t set, unsigned disk)
{
  struct scratch *s;

  for (s = r->scratches; s; s = s->next)
    if (s->set == set && s->disk == disk)
      break;
  return s;
}

static bool
is_revoked (const struct scratch *s)
{
  return s->look && s->look->revoked;
}

static bool
set_is_open_locked (struct replica *r, uint64_t set)
{
  for (const struct scratch *s = r->scratches; s; s = s->next)
    if (s->set == set && s->users > 0)
      return true;
  return false;
}

/* Is anything in a set over another checkpoint than the newest? */
static bool
set_is_old_locked (struct replica *r, uint64_t set)
{
  for (const struct scratch *s = r->scratches; s; s = s->next)
    if (s->set == set && s->checkpoint != r->checkpoint.id)
      return true;
  return false;
}

/* Take out of the list what nobody will open any more: what is not the newest, and not open.  For the
 * caller to free without the lock.
 */
static struct scratch *
take_worthless_locked (struct replica *r)
{
  struct scratch **p = &r->scratches, *list = NULL;

  assert_locked (r);
  while (*p) {
    struct scratch *s = *p;

    if (s->users > 0 || set_is_open_locked (r, s->set) ||
        (s->set == r->scratches->set && !set_is_old_locked (r, s->set))) {
      p = &s->next;
      continue;
    }
    *p = s->next;
    s->next = list;
    list = s;
    p = &r->scratches;          /* the rest of its set, too */
  }
  return list;
}

static void
free_list (struct scratch *list)
{
  while (list) {
    struct scratch *next = list->next;

    scratch_free (list);
    list = next;
  }
}

/* Which checkpoint do those of SET show that are open?  VIEW_LATEST: nobody has one open.  One can be
 * ahead of another only in the middle of a reset of all.
 */
static uint64_t
base_locked (struct replica *r, uint64_t set)
{
  uint64_t base = VIEW_LATEST;

  for (const struct scratch *s = r->scratches; s; s = s->next)
    if (s->set == set && s->users > 0)
      base = base == VIEW_LATEST ? s->checkpoint : MAX (base, s->checkpoint);
  return base;
}

/* What an open of DISK comes to.  *BASE is the checkpoint below (VIEW_LATEST: whatever is the newest), *SET
 * the set (0: a new one).  The scratch to share, or NULL for a fresh one.
 */
static struct scratch *
plan_locked (struct replica *r, unsigned disk, uint64_t *base, uint64_t *set)
{
  struct scratch *s = NULL;
  bool revoked = false;

  *base = VIEW_LATEST;
  *set = r->scratches ? r->scratches->set : 0;
  if (*set)
    s = find_locked (r, *set, disk);
  for (const struct scratch *i = r->scratches; i && i->set == *set; i = i->next)
    revoked = revoked || is_revoked (i);
  if (*set == 0 || revoked || (s && s->checkpoint != r->checkpoint.id)) {
    *set = 0;
    return NULL;
  }
  /* One that was reset may be ahead of the others. */
  *base = s ? s->checkpoint : base_locked (r, *set);
  return s;
}

struct opening {
  uint64_t since;               /* the newest checkpoint when it began */
  struct scratch *fresh;        /* or NULL … */
  struct view *look;            /* … as yet */
  uint64_t want;                /* the next view to open; VIEW_LATEST */
  bool need_fresh;
};

/* 0: *SCRATCH is open; 1: something is needed first; -1. */
static int
install_locked (struct replica *r, unsigned disk, struct opening *o,
                struct scratch **scratch)
{
  uint64_t newest = VIEW_LATEST, set;
  struct scratch *s;

  if (view_check_state_locked (r, &newest) == -1)
    return -1;
  o->since = MIN (o->since, newest);
  s = plan_locked (r, disk, &o->want, &set);
  if ((o->want == VIEW_LATEST ? newest : o->want) < r->disks[disk].joined) {
    errno = ENOENT;             /* it is in no checkpoint of then */
    return -1;
  }
  if (s && s->users > 0) {
    s->users++;
    *scratch = s;
    return 0;
  }
  o->need_fresh = s == NULL;
  /* One that was the newest when this began is new enough for a set of its own. */
  if (o->look == NULL || o->look->revoked || (s == NULL && o->fresh == NULL) ||
      (s ? o->look->checkpoint != s->checkpoint :
       o->want != VIEW_LATEST ? o->look->checkpoint != o->want :
       set ? o->look->checkpoint != newest : o->look->checkpoint < o->since))
    return 1;
  if (s == NULL) {
    s = o->fresh;
    o->fresh = NULL;
    s->set = set ? set : ++r->scratch_sets;
    s->next = r->scratches;
    r->scratches = s;
  }
  s->look = o->look;
  s->checkpoint = o->look->checkpoint;
  s->users = 1;
  o->look = NULL;
  *scratch = s;
  return 0;
}

int
scratch_open (struct replica *r, unsigned disk, struct scratch **scratch)
{
  struct opening o = { .since = UINT64_MAX };
  struct scratch *worthless;
  int result, saved;

  do {
    {
      SCOPED_LOCK (&r->lock);
      while (r->scratch_held)
        pthread_cond_wait (&r->changed, &r->lock);
      worthless = take_worthless_locked (r);
      result = install_locked (r, disk, &o, scratch);
    }
    saved = errno;
    free_list (worthless);
    errno = saved;
    if (result == 1 && o.need_fresh && o.fresh == NULL &&
        (o.fresh = scratch_new (r, disk)) == NULL)
      result = -1;
    if (result == 1) {
      if (o.look)
        view_close (r, o.look);
      o.look = NULL;
      if (view_open (r, o.want, &o.look) == -1)
        result = -1;
    }
  } while (result == 1);
  saved = errno;
  if (o.look)
    view_close (r, o.look);
  scratch_free (o.fresh);
  errno = saved;
  return result;
}

void
scratch_close (struct replica *r, struct scratch *s)
{
  struct scratch *worthless = NULL;
  struct view *look = NULL;
  bool last;

  {
    SCOPED_LOCK (&r->lock);

    assert (s->users > 0);
    last = --s->users == 0;
    if (last) {
      look = s->look;
      s->look = NULL;
      if (!r->scratch_held)
        worthless = take_worthless_locked (r);
    }
    last = last && s->became_disk;
  }
  if (look)
    view_close (r, look);
  if (last)
    scratch_free (s);           /* a promote took it out of the list */
  free_list (worthless);
}

void
scratch_forget (struct replica *r)
{
  free_list (r->scratches);
  r->scratches = NULL;
}

void
scratch_take_unused (struct replica *r)
{
  struct scratch *list = NULL;

  {
    SCOPED_LOCK (&r->lock);
    for (struct scratch **p = &r->scratches; *p;) {
      struct scratch *s = *p;

      if (s->users > 0) {
        p = &s->next;
        continue;
      }
      *p = s->next;
      s->next = list;
      list = s;
    }
  }
  free_list (list);
}
