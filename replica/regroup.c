/* SPDX-License-Identifier: BSD-3-Clause */
/* Disks join and leave a replica, between two runs of its server.
 *
 * Extents in the journal name disks by number, so no extent may be left when the
 * numbers change: the replica is opened once more with the disks that it had, what is
 * committed is written out, and what is not is made void (if there was any, the stream
 * has a hole).  A disk that leaves is then at the last checkpoint, and no longer anybody's.  If its image is
 * lost it leaves without.
 *
 * A disk that joins is in no checkpoint yet.  The superblock notes the first one that can
 * have it (joined).  Until that is committed the replica is "resyncing": the old checkpoint,
 * without that disk, can be recovered to, and writes to the disk go straight to its image,
 * as those of any first copy.  The commit makes that image durable first, so that it covers all disks.
 *
 * The superblock is written last, in one step: killed before, the replica has the disks that it had,
 * and what was done to it by then might have been done at any time.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/uri.h"
#include "replica/internal.h"
#include "replica/samples.h"
#include "replica/sums.h"

struct regroup {
  const struct replica_params *params;
  struct journal_config old;    /* disks as they were */
  bool lost[JOURNAL_MAX_DISKS]; /* of these the image is lost */
  struct mcerror *err;
};

static bool
listed (const char *const *list, unsigned n, const char *name)
{
  for (unsigned i = 0; i < n; i++)
    if (strcmp (list[i], name) == 0)
      return true;
  return false;
}

static const struct replica_disk_params *
find_params (const struct replica_params *params, const char *name)
{
  for (unsigned i = 0; i < params->ndisks; i++)
    if (strcmp (params->disks[i].name, name) == 0)
      return &params->disks[i];
  return NULL;
}

static bool
was_there (const struct regroup *g, const char *name)
{
  for (unsigned i = 0; i < g->old.ndisks; i++)
    if (strcmp (g->old.disks[i].name, name) == 0)
      return true;
  return false;
}

static int
read_config (struct regroup *g)
{
  struct journal *j;
  const struct journal_config *config;

  if (journal_open (g->params->fs, g->params->dir, &j, g->err) == -1)
    return -1;
  config = journal_get_config (j);
  g->old = *config;
  g->old.disks = calloc (config->ndisks, sizeof *g->old.disks);
  if (g->old.disks)
    memcpy (g->old.disks, config->disks, config->ndisks * sizeof *g->old.disks);
  journal_close (j);
  return g->old.disks ? 0 :
    mcerror_set (g->err, MCEXIT_USAGE, "cannot change the set of disks: %m");
}

/* 1: there is something to do; 0: nothing, or another difference too, which is somebody else's to
 * refuse; -1.
 */
static int
is_wanted (const struct regroup *g)
{
  const struct replica_params *p = g->params;
  unsigned stay = 0, change = 0;

  for (unsigned i = 0; i < p->nadd; i++)
    if (find_params (p, p->add[i]) == NULL) {
      errno = EINVAL;
      return mcerror_set (g->err, MCEXIT_USAGE,
                          "add-disk=%s: disk=%s:PATH is missing", p->add[i], p->add[i]);
    }
  for (unsigned i = 0; i < p->nremove; i++)
    if (find_params (p, p->remove[i])) {
      errno = EINVAL;
      return mcerror_set (g->err, MCEXIT_USAGE,
                          "remove-disk=%s: there is a disk=%s:PATH: leave one of them out",
                          p->remove[i], p->remove[i]);
    }
  for (unsigned i = 0; i < g->old.ndisks; i++) {
    if (find_params (p, g->old.disks[i].name))
      stay++;
    else if (listed (p->remove, p->nremove, g->old.disks[i].name))
      change++;
    else
      return 0;
  }
  for (unsigned i = 0; i < p->ndisks; i++)
    if (!was_there (g, p->disks[i].name)) {
      if (!listed (p->add, p->nadd, p->disks[i].name))
        return 0;
      change++;
    }
  if (change > 0 && stay == 0) {
    errno = EINVAL;
    return mcerror_set (g->err, MCEXIT_USAGE,
                        "%s: no disk of this replica would stay: begin a new one with another journal=",
                        p->dir);
  }
  return change > 0;
}

/* --- a disk that leaves ---------------------------------------------------------------- */

static int
lose (struct disk *d, const char *path, uint64_t size)
{
  struct backing *none;

  if (backing_none (path, size, &none) == -1)
    return -1;
  backing_close (d->backing);
  d->backing = none;
  d->lost = true;
  return 0;
}

int
leaving_open (const struct io_fs *fs, const char *path, uint64_t size,
              struct disk *d, struct mcerror *err)
{
  /* A server that gives no answer may be down for a moment only. */
  bool there = uri_is_nbd (path) || backing_exists (fs, path) != 0;

  d->size = size;
  if (there && backing_open (fs, path, false, 0, &d->backing, err) == -1) {
    if (!uri_is_nbd (path))
      return -1;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: the image of a disk that leaves cannot be opened: %m: start its server, or have it serve an "
                        "empty image of the same size there", path);
  }
  if (d->backing)
    backing_fit (d->backing, size);     /* a device may be larger */
  if ((d->backing == NULL || backing_size (d->backing) != size) &&
      lose (d, path, size) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open the disks: %m");
  return 0;
}

/* An image that is not what was written out to it belongs to somebody else: it is left alone. */
int
leaving_check (struct replica *r, const struct replica_params *params)
{
  for (unsigned i = 0; i < params->ndisks; i++)
    for (unsigned k = 0; params->disks[i].leaves && k < r->ndisks; k++) {
      CLEANUP_FREE struct disk *alone = calloc (r->ndisks, sizeof *alone);
      CLEANUP_FREE char *path = NULL;
      struct samples_miss miss;
      int known;

      if (alone == NULL)
        return -1;
      if (strcmp (params->disks[i].name, r->disks[k].name) != 0 || r->disks[k].lost)
        continue;
      alone[k] = r->disks[k];
      r->sums = sums_open (r->fs, r->dir, r->journal, true);
      known = samples_check (r->journal, alone, r->ndisks, &miss);
      if (known == 1)
        known = sums_check (r->sums, alone, r->ndisks, SUMS_CHANGED, &miss);
      sums_close (r->sums);
      r->sums = NULL;
      switch (known) {
      case 1:
        continue;
      case 0:
        break;
      default:                  /* write-out meets it, too */
        if (errno == ENOMEM)
          return -1;
        continue;
      }
      path = strdup (backing_path (r->disks[k].backing));
      if (path == NULL || lose (&r->disks[k], path, r->disks[k].size) == -1)
        return -1;
    }
  return 0;
}

/* --- the replica as it was ---------------------------------------------------------- */

static struct replica *
open_old (const struct regroup *g)
{
  CLEANUP_FREE struct replica_disk_params *disks =
    calloc (g->old.ndisks, sizeof *disks);
  struct replica_params params = *g->params;
  struct replica *r;

  if (disks == NULL) {
    mcerror_set (g->err, MCEXIT_USAGE, "cannot change the set of disks: %m");
    return NULL;
  }
  for (unsigned i = 0; i < g->old.ndisks; i++) {
    const struct journal_disk *d = &g->old.disks[i];
    const struct replica_disk_params *p = find_params (g->params, d->name);

    disks[i] = (struct replica_disk_params) { .name = d->name,
                                              .path = p ? p->path : d->path,
                                              .leaves = p == NULL, .size = d->size };
  }
  params.disks = disks;
  params.ndisks = g->old.ndisks;
  params.nadd = params.nremove = 0;
  params.control = params.baseline_trusted = false;
  params.history = (struct replica_history) { .checkpoints = 0 };       /* all goes out */
  if (replica_open (&params, &r, g->err) == -1)
    return NULL;
  r->by_hand = r->once = true;
  return r;
}

static int
refuse (const struct regroup *g, struct replica *r, const char *way_out)
{
  errno = EPERM;
  return mcerror_set (g->err, MCEXIT_REFUSED,
                      "%s: the set of disks cannot be changed while the replica is %s: %s",
                      r->dir, replica_state_word (r->state), way_out);
}

struct void_change {
  uint64_t open;
  bool hole;
};

static void
change_void (struct journal_state *state, void *opaque)
{
  const struct void_change *c = opaque;

  state_epoch (state, c->open);
  state_discard (state, c->open - 1);
  state->closed = false;
  if (c->hole) {
    state->state = JOURNAL_STALE;
    state->clean = false;
  }
}

/* The disks that are lost are in no checkpoint any more: should the set stay as it was after all,
 * they need a copy of everything.
 */
static int
note_lost (struct regroup *g, struct replica *r)
{
  struct journal_config next = *journal_get_config (r->journal);
  CLEANUP_FREE struct journal_disk *disks = calloc (next.ndisks, sizeof *disks);

  if (disks == NULL)
    return mcerror_set (g->err, MCEXIT_USAGE, "cannot change the set of disks: %m");
  memcpy (disks, next.disks, next.ndisks * sizeof *disks);
  next.disks = disks;
  for (unsigned i = 0; i < next.ndisks; i++)
    if (r->disks[i].lost) {
      g->lost[i] = true;
      if (r->has_checkpoint)
        disks[i].joined = r->checkpoint.id + 1;
    }
  sums_forget (r->sums);        /* they will be copied anew */
  return journal_set_config (r->journal, &next, g->err);
}

static bool
any_lost (const struct replica *r)
{
  for (unsigned i = 0; i < r->ndisks; i++)
    if (r->disks[i].lost)
      return true;
  return false;
}

/* Nothing that is not committed may be left. */
static int
discard_rest (const struct regroup *g, struct replica *r)
{
  struct speculation_stat stat;
  struct void_change c;

  speculation_get_stat (r->spec, &stat);
  c = (struct void_change) { .open = speculation_open_number (r->spec) + 1,
                             /* A copy that runs has sent what it will not send again. */
                             .hole = stat.extents > 0 || (r->state == JOURNAL_RESYNCING && any_lost (r)) };
  /* Samples, too, name disks by number. */
  journal_set_samples (r->journal, NULL, 0);
  if (journal_record (r->journal, JOURNAL_REC_STATE, change_void, &c) == -1)
    return mcerror_set (g->err, MCEXIT_USAGE, "%s/journal: cannot write: %m", r->dir);
  if (c.hole) {
    r->state = JOURNAL_STALE;
    replica_log (r, REPLICA_LOG_ERROR,
                 "%s: %" PRIu64 " bytes that were not committed are discarded with the old set of disks: "
                 "a new full mirror is needed, after the verb resync", r->dir, stat.bytes);
  }
  r->closed = false;
  if (discard_speculation (r) == -1)
    return mcerror_set (g->err, MCEXIT_USAGE, "%s/journal: %m", r->dir);
  return 0;
}

/* Everything that is committed into the images, and nothing else left. */
static int
bring_to_rest (struct regroup *g, struct replica *r)
{
  switch (r->state) {
  case JOURNAL_SYNCING:
    if (r->closed)
      return refuse (g, r, "the first copy is closed: commit it with the disks as they were");
    return any_lost (r) ? note_lost (g, r) : 0;
  case JOURNAL_PROMOTED:
    return refuse (g, r, "this copy is the disk: make it a standby again with resync overwrite first");
  case JOURNAL_FAILED:
    return refuse (g, r, r->reason);
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
  case JOURNAL_STALE:
    break;
  }
  /* What is written out without an image is gone.  From before that a disk which is lost has to be known
   * to be in no checkpoint, and with that nothing of it may be speculation.
   */
  if (any_lost (r) && (discard_rest (g, r) == -1 || note_lost (g, r) == -1))
    return -1;
  while (!writeout_is_empty (r->wo))
    if (writeout_step (r) == -1) {
      errno = EIO;
      return mcerror_set (g->err, MCEXIT_USAGE,
                          "%s: the set of disks is not changed: what is committed cannot be written out: %s: "
                          "mend that, or name the disks as before",
                          r->dir, r->wo_error[0] ? r->wo_error : r->reason);
    }
  return discard_rest (g, r);
}

/* --- the replica as it is to be -------------------------------------------------------- */

static int
fill_joined (const struct regroup *g, const struct replica_disk_params *p,
             struct journal_disk *d)
{
  CLEANUP_FREE char *path = absolute_path (g->params->fs, p->path, g->err);
  struct backing *b;

  if (path == NULL)
    return -1;
  if (strlen (path) > JOURNAL_PATH_MAX) {
    errno = ENAMETOOLONG;
    return mcerror_set (g->err, MCEXIT_USAGE, "%s: %m", path);
  }
  if (backing_open (g->params->fs, path, p->create, p->size, &b, g->err) == -1)
    return -1;
  snprintf (d->name, sizeof d->name, "%s", p->name);
  snprintf (d->path, sizeof d->path, "%s", path);
  d->size = backing_size (b);
  backing_close (b);
  return 0;
}

static void
tell (const struct regroup *g, enum replica_log_level level, const char *fmt,
      const char *name, const char *path)
{
  char line[JOURNAL_PATH_MAX + 256];

  if (g->params->log == NULL)
    return;
  snprintf (line, sizeof line, fmt, show_name (name), path);
  g->params->log (g->params->log_opaque, level, line);
}

static int
set_disks (const struct regroup *g, struct journal *j,
           struct journal_disk *disks)
{
  const struct replica_params *p = g->params;
  const struct journal_config *now = journal_get_config (j);
  struct journal_config next = *now;
  struct journal_state state;

  journal_get_state (j, &state);
  /* Not clean: something went wrong when it was closed, and what is left names the old disks. */
  if (!state.clean && state.state != JOURNAL_STALE) {
    errno = EIO;
    return mcerror_set (g->err, MCEXIT_USAGE,
                        "%s: the set of disks is not changed: the replica could not be closed cleanly: "
                        "name the disks as before", p->dir);
  }
  next.ndisks = 0;
  for (unsigned i = 0; i < now->ndisks; i++)
    if (find_params (p, now->disks[i].name))
      disks[next.ndisks++] = now->disks[i];
  for (unsigned i = 0; i < p->ndisks; i++)
    if (!was_there (g, p->disks[i].name)) {
      struct journal_disk *d = &disks[next.ndisks++];

      if (fill_joined (g, &p->disks[i], d) == -1)
        return -1;
      d->joined = state.has_checkpoint ? state.checkpoint.id + 1 : 0;
    }
  next.disks = disks;
  if (journal_set_config (j, &next, g->err) == -1)
    return -1;
  for (unsigned i = 0; i < g->old.ndisks; i++)
    if (find_params (p, g->old.disks[i].name) == NULL)
      tell (g, g->lost[i] ? REPLICA_LOG_ERROR : REPLICA_LOG_INFO, g->lost[i] ?
            "disk %s has left the replica without its image: %s is gone, or not what was written out to it, "
            "and was left as it is" :
            "disk %s has left the replica; its image was %s", g->old.disks[i].name,
            g->old.disks[i].path);
  for (unsigned i = 0; i < next.ndisks; i++)
    if (!was_there (g, disks[i].name))
      tell (g, REPLICA_LOG_INFO, "disk %s has joined the replica; its image is %s", disks[i].name,
            disks[i].path);
  return 0;
}

static int
change_set (struct regroup *g)
{
  CLEANUP_FREE struct journal_disk *disks =
    calloc (g->params->ndisks, sizeof *disks);
  struct replica *r;
  struct journal *j;
  int result;

  if (disks == NULL)
    return mcerror_set (g->err, MCEXIT_USAGE, "cannot change the set of disks: %m");
  r = open_old (g);
  if (r == NULL)
    return -1;
  result = bring_to_rest (g, r);
  replica_close (r);
  if (result == -1 ||
      journal_open (g->params->fs, g->params->dir, &j, g->err) == -1)
    return -1;
  result = set_disks (g, j, disks);
  journal_close (j);
  return result;
}

int
replica_regroup (const struct replica_params *params, struct mcerror *err)
{
  struct regroup g = { .params = params, .err = err };
  int result;

  if (params->nadd == 0 && params->nremove == 0)
    return 0;
  if (read_config (&g) == -1)
    return -1;
  result = is_wanted (&g);
  if (result == 1)
    result = change_set (&g);
  free (g.old.disks);
  return result;
}
