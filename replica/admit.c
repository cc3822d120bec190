/* SPDX-License-Identifier: BSD-3-Clause */
/* Who may do what now: exports, states, generations. */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

/* A disk of that name; "" is that of the only one, too. */
int
replica_find_disk (struct replica *r, const char *name, size_t len,
                   unsigned *disk)
{
  for (unsigned i = 0; i < r->ndisks; i++)
    if (strlen (r->disks[i].name) == len &&
        memcmp (r->disks[i].name, name, len) == 0) {
      *disk = i;
      return 0;
    }
  if (len == 0 && r->ndisks == 1) {
    *disk = 0;
    return 0;
  }
  errno = ENOENT;
  return -1;
}

/* The digits after "@g".  No leading zero, so that a generation has one name. */
static int
parse_generation (const char *text, uint64_t *generation)
{
  uint64_t g = 0;

  if (*text < '1' || *text > '9')
    goto bad;
  for (; *text; text++) {
    if (!isdigit ((unsigned char) *text) ||
        __builtin_mul_overflow (g, 10, &g) ||
        __builtin_add_overflow (g, *text - '0', &g))
      goto bad;
  }
  *generation = g;
  return 0;

 bad:
  errno = ENOENT;
  return -1;
}

/* After "@": "latest", or the number of a checkpoint. */
static bool
parse_checkpoint (const char *text, uint64_t *checkpoint)
{
  uint64_t n = 0;

  if (strcmp (text, "latest") == 0) {
    *checkpoint = VIEW_LATEST;
    return true;
  }
  if (*text == '\0' || (text[0] == '0' && text[1]))
    return false;
  for (; *text; text++)
    if (!isdigit ((unsigned char) *text) ||
        __builtin_mul_overflow (n, 10, &n) ||
        __builtin_add_overflow (n, *text - '0', &n))
      return false;
  *checkpoint = n;
  return n != VIEW_LATEST;
}

static int
find_export (struct replica *r, const char *name, struct replica_export *export)
{
  const char *at = strchr (name, '@');
  size_t len = at ? (size_t) (at - name) : strlen (name);
  struct replica_export e = { .view = REPLICA_INLET };
  SCOPED_LOCK (&r->lock);

  if (replica_find_disk (r, name, len, &e.disk) == -1)
    return -1;
  e.fence = r->fence;
  e.opened = r->generation;
  if (at && strcmp (at, "@promoted") == 0) {
    e.view = REPLICA_PROMOTED;
    if (r->state != JOURNAL_PROMOTED || disk_is_fresh_locked (r, e.disk)) {
      errno = ESHUTDOWN;
      return -1;
    }
  }
  else if (at && strncmp (at, "@g", 2) == 0) {
    if (parse_generation (at + 2, &e.generation) == -1)
      return -1;
  }
  else if (at && strcmp (at, "@divergence") == 0) {
    e.view = REPLICA_DIVERGENCE;
    if (r->state != JOURNAL_PROMOTED) {
      errno = ESHUTDOWN;
      return -1;
    }
  }
  else if (at && strcmp (at, "@scratch") == 0) {
    wait_settled_locked (r);
    /* Whoever was on it, and comes back, finds it. */
    e.view = r->state == JOURNAL_PROMOTED && r->scratch_is_disk &&
      !disk_is_fresh_locked (r, e.disk) ? REPLICA_PROMOTED : REPLICA_SCRATCH;
    e.fence = r->fence;
    e.opened = r->generation;
  }
  else if (at && parse_checkpoint (at + 1, &e.checkpoint))
    e.view = REPLICA_CHECKPOINT;
  else if (at) {
    errno = ENOENT;
    return -1;
  }
  *export = e;
  return 0;
}

/* No checkpoint has a disk from before it joined. */
static int
check_joined (struct replica *r, const struct replica_export *e)
{
  SCOPED_LOCK (&r->lock);

  if (e->view == REPLICA_CHECKPOINT && e->checkpoint != VIEW_LATEST ?
      e->checkpoint >= r->disks[e->disk].joined :
      !disk_is_fresh_locked (r, e->disk))
    return 0;
  errno = ENOENT;
  return -1;
}

int
replica_open_export (struct replica *r, const char *name,
                     struct replica_export *export)
{
  if (find_export (r, name, export) == -1)
    return -1;
  if ((export->view == REPLICA_CHECKPOINT || export->view == REPLICA_SCRATCH ||
       export->view == REPLICA_DIVERGENCE) &&
      check_joined (r, export) == -1)
    return -1;
  if (export->view == REPLICA_DIVERGENCE) {
    char why[256];

    if (!divergence_known (r, why, sizeof why)) {
      replica_log (r, REPLICA_LOG_ERROR, "export \"%s\": %s", name, why);
      errno = ENODATA;
      return -1;
    }
  }
  if (export->view == REPLICA_CHECKPOINT) {
    export->latest = export->checkpoint == VIEW_LATEST;
    if (view_open (r, export->checkpoint, &export->look) == -1)
      return -1;
    export->checkpoint = export->look->checkpoint;
  }
  if (export->view == REPLICA_SCRATCH &&
      scratch_open (r, export->disk, &export->scratch) == -1) {
    /* A promote that came in between may have made it the disk. */
    if (errno != ESHUTDOWN || find_export (r, name, export) == -1)
      return -1;
    if (export->view == REPLICA_SCRATCH) {
      errno = ESHUTDOWN;
      return -1;
    }
  }
  return 0;
}

void
replica_close_export (struct replica *r, struct replica_export *export)
{
  if (export->look)
    view_close (r, export->look);
  if (export->scratch)
    scratch_close (r, export->scratch);
  export->look = NULL;
  export->scratch = NULL;
}

bool
replica_can_open (struct replica *r, unsigned disk, enum replica_view view)
{
  uint64_t checkpoint = VIEW_LATEST;
  char why[256];

  if (view == REPLICA_DIVERGENCE && !divergence_known (r, why, sizeof why))
    return false;
  SCOPED_LOCK (&r->lock);
  switch (view) {
  case REPLICA_INLET:
    return true;
  case REPLICA_PROMOTED:
  case REPLICA_DIVERGENCE:
    return r->state == JOURNAL_PROMOTED && !disk_is_fresh_locked (r, disk);
  case REPLICA_SCRATCH:
    if (r->state == JOURNAL_PROMOTED && r->scratch_is_disk)
      return !disk_is_fresh_locked (r, disk);   /* it is the disk's other name */
    break;
  case REPLICA_CHECKPOINT:
    break;
  }
  return view_check_state_locked (r, &checkpoint) == 0 && !disk_is_fresh_locked (r, disk);
}

int
replica_each_checkpoint (struct replica *r, unsigned disk, size_t max,
                         int (*fn) (void *opaque, uint64_t number),
                         void *opaque)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *list = calloc (n + 1, sizeof *list);
  uint64_t joined = r->disks[disk].joined;

  {
    SCOPED_LOCK (&r->lock);
    if (r->state == JOURNAL_PROMOTED || r->state == JOURNAL_FAILED)
      return 0;
  }
  if (list == NULL)
    return -1;
  n = MIN (n, journal_checkpoints (r->journal, list, n));
  for (size_t i = n; i > 0 && n - i < max; i--)
    if (list[i - 1].id >= joined && fn (opaque, list[i - 1].id) == -1)
      return -1;
  return 0;
}

int
admit_locked (struct replica *r, const struct replica_export *e, bool write)
{
  assert_locked (r);
  if (r->stopping) {
    errno = ESHUTDOWN;
    return -1;
  }
  if (e->view == REPLICA_CHECKPOINT) {
    if (!write && !e->look->revoked && r->state != JOURNAL_FAILED)
      return 0;
    errno = write ? EPERM : EIO;
    return -1;
  }
  if (e->fence < r->fence) {
    errno = ESHUTDOWN;
    return -1;
  }
  if (e->view == REPLICA_DIVERGENCE && write) {
    errno = EPERM;
    return -1;
  }
  if (e->view == REPLICA_PROMOTED || e->view == REPLICA_DIVERGENCE) {
    if (r->state == JOURNAL_PROMOTED && e->fence >= r->fence)
      return 0;
    errno = r->state == JOURNAL_FAILED ? EIO : ESHUTDOWN;
    return -1;
  }
  if (r->state == JOURNAL_PROMOTED ||
      (e->generation != 0 && e->generation != r->generation)) {
    errno = ESHUTDOWN;
    return -1;
  }
  switch (r->state) {
  case JOURNAL_SYNCING:
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    return 0;
  case JOURNAL_STALE:
    /* What is left can be read, unless that would show an old block in the
     * place of an acknowledged newer one.
     */
    if (!write && !r->lost)
      return 0;
    break;
  case JOURNAL_PROMOTED:
  case JOURNAL_FAILED:
    break;
  }
  errno = EIO;
  return -1;
}

bool
disk_is_fresh_locked (const struct replica *r, unsigned disk)
{
  return !r->has_checkpoint || r->checkpoint.id < r->disks[disk].joined;
}

bool
copying_locked (const struct replica *r, unsigned disk)
{
  return !r->closed && disk_is_fresh_locked (r, disk) &&
    (r->state == JOURNAL_SYNCING || r->state == JOURNAL_RESYNCING);
}

bool
copying_any_locked (const struct replica *r)
{
  for (unsigned i = 0; i < r->ndisks; i++)
    if (copying_locked (r, i))
      return true;
  return false;
}

void
replica_explain (struct replica *r, const struct replica_export *e, int errnum,
                 char *text, size_t size)
{
  SCOPED_LOCK (&r->lock);
  const char *name = r->disks[e->disk].name;

  if (e->view == REPLICA_SCRATCH && errnum == EIO && e->scratch->look &&
      e->scratch->look->revoked)
    snprintf (text, size, "disk \"%s\": the checkpoint below its scratch was given up: the journal ran short, "
              "or the replica has moved on: reset it, or open it anew", name);
  else if (e->view == REPLICA_CHECKPOINT && e->look->revoked)
    snprintf (text, size, "disk \"%s\": the view of checkpoint %" PRIu64 " was revoked: the journal ran short, "
              "or the replica has moved on: open a newer one", name, e->checkpoint);
  else if (errnum == ESHUTDOWN && e->view == REPLICA_INLET &&
      (e->generation != 0 && e->generation != r->generation))
    snprintf (text, size, "inlet \"%s@g%" PRIu64 "\" is shut: it belongs to generation %" PRIu64
              ", the replica is in generation %" PRIu64, name, e->generation,
              e->generation, r->generation);
  else if (errnum == ESHUTDOWN && e->view == REPLICA_INLET &&
           r->state == JOURNAL_PROMOTED)
    snprintf (text, size, "inlet \"%s\" of generation %" PRIu64
              " is shut: this copy was promoted to generation %" PRIu64
              " and is the disk now", name, MIN (e->opened, r->generation - 1),
              r->generation);
  else if (errnum == ESHUTDOWN && e->view == REPLICA_INLET &&
           e->fence < r->fence)
    snprintf (text, size, "inlet \"%s\" is shut to connections from before the resync "
              "(of generation %" PRIu64 ", the replica is in generation %" PRIu64
              "): connect anew and mirror in full", name, e->opened, r->generation);
  else if (errnum == EIO && r->state != JOURNAL_SYNCING &&
           r->state != JOURNAL_PROTECTED && r->state != JOURNAL_PROMOTED)
    snprintf (text, size, "disk \"%s\": replica is %s: %s", name,
              replica_state_word (r->state), r->reason);
  else
    snprintf (text, size, "disk \"%s\": %s", name, strerror (errnum));
}

int
route_begin (struct replica *r, const struct replica_export *e,
             struct admitted *a)
{
  bool again;
  SCOPED_LOCK (&r->lock);

  do {
    again = false;
    wait_settled_locked (r);
    if (admit_locked (r, e, true) == -1)
      return -1;
    if (r->closing || (r->drain_hold && r->state == JOURNAL_PROMOTED)) {
      pthread_cond_wait (&r->changed, &r->lock);
      again = true;
    }
  } while (again);

  if (r->state == JOURNAL_PROMOTED && r->direct)
    a->route = ROUTE_DIRECT;
  else if (copying_locked (r, e->disk))
    a->route = ROUTE_THROUGH;
  else
    a->route = ROUTE_SPECULATE;
  a->moves = r->moves;

  if (a->route == ROUTE_SPECULATE)
    r->journaled++;
  else
    r->through++;
  return 0;
}

void
route_end (struct replica *r, enum route route)
{
  SCOPED_LOCK (&r->lock);
  unsigned *count = route == ROUTE_SPECULATE ? &r->journaled : &r->through;

  assert (*count > 0);
  if (--*count == 0 && r->want_idle > 0)
    pthread_cond_broadcast (&r->changed);
}
