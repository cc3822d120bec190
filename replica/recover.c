/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery without a server.
 *
 * In this order, so that it can be killed anywhere and run again: check every byte that will be
 * needed; PROMOTE record (from here on the answer is fixed); write out what is committed and not
 * in the images; sync them; WATERMARK record; note that the images are the disk.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/recover.h"

#define STAGING (UINT64_C (8) << 20)    /* for a few records */
#define MIN_CACHE (UINT64_C (16) << 20)
#define MAX_CACHE (UINT64_C (4) << 30)
#define PROGRESS_NS UINT64_C (100000000)

/* A commit that has to be written out, and how much data it has. */
struct part {
  uint64_t epoch, blocks;
};

struct recovery {
  const struct recover_params *params;
  struct journal *j;
  struct journal_state state;
  struct journal_checkpoint *list;
  size_t nlist;
  struct journal_checkpoint chosen;
  struct disk *disks;
  unsigned ndisks;
  struct part *parts;
  size_t nparts;
  bool whole;                   /* all that was acknowledged is still there */
  uint64_t cache;               /* bytes of journal that fit into RAM */
  const char *phase;
  uint64_t done, total, told;
  struct mcerror *err;
};

/* --- beginning ----------------------------------------------------------------- */

static int
load_list (struct recovery *rec)
{
  size_t n = journal_checkpoints (rec->j, NULL, 0);

  rec->list = calloc (n + 1, sizeof *rec->list);
  if (rec->list == NULL)
    return mcerror_set (rec->err, MCEXIT_USAGE, "cannot list checkpoints: %m");
  rec->nlist = MIN (n, journal_checkpoints (rec->j, rec->list, n));
  return 0;
}

static int
damage_error (struct recovery *rec, const struct journal_damage *d)
{
  errno = EBADMSG;
  return mcerror_set (rec->err, MCEXIT_DAMAGE,
                      "%s/%s: damage at offset %" PRIu64 ": %s: checkpoint %" PRIu64
                      " and later ones cannot be recovered; --list and --to=N name older ones",
                      rec->params->dir, d->file, d->offset, d->what,
                      d->checkpoint);
}

/* Open, and find out what is to be the disk. */
static int
begin (struct recovery *rec, const struct recover_params *params,
       struct mcerror *err)
{
  struct journal_damage damage;

  rec->params = params;
  rec->err = err;
  if (journal_open (params->fs, params->dir, &rec->j, err) == -1)
    return -1;
  journal_get_state (rec->j, &rec->state);
  if (load_list (rec) == -1)
    return -1;
  if (!rec->state.has_checkpoint) {
    if (journal_get_damage (rec->j, &damage) == 1)
      return damage_error (rec, &damage);
    errno = ENOENT;
    return mcerror_set (err, MCEXIT_NO_CHECKPOINT,
                        "%s: replica is %s and no checkpoint exists: the image must not be used",
                        params->dir, replica_state_word (rec->state.state));
  }
  rec->chosen = rec->state.checkpoint;
  if (rec->state.state == JOURNAL_PROMOTED) {
    struct journal_checkpoint same;

    if (params->to && recover_choose (&rec->chosen, 1, params->to, &same, NULL) == -1) {
      errno = EPERM;
      return mcerror_set (err, MCEXIT_REFUSED,
                          "%s: already promoted to checkpoint %" PRIu64 " in generation %" PRIu64
                          ": it cannot be recovered to %s any more",
                          params->dir, rec->chosen.id, rec->state.generation,
                          params->to);
    }
  }
  else if (params->to &&
           recover_choose (rec->list, rec->nlist, params->to, &rec->chosen, err) == -1)
    return -1;
  /* Damage above what was asked for by name does no harm to that; but nobody is
   * given an older checkpoint than the last who did not ask for one.
   */
  if (journal_get_damage (rec->j, &damage) == 1 &&
      (params->to == NULL || damage.checkpoint == 0 ||
       damage.checkpoint <= rec->chosen.id))
    return damage_error (rec, &damage);
  return 0;
}

static void
end (struct recovery *rec)
{
  int saved = errno;

  for (unsigned i = 0; i < rec->ndisks; i++)
    backing_close (rec->disks[i].backing);
  free (rec->disks);
  free (rec->list);
  free (rec->parts);
  journal_close (rec->j);
  errno = saved;
}

/* Commits after the watermark up to what was chosen; of a promoted replica all, its own flushes included. */
static uint64_t
upto (const struct recovery *rec)
{
  return rec->state.state == JOURNAL_PROMOTED ? UINT64_MAX : rec->chosen.id;
}

/* --- progress -------------------------------------------------------------------- */

static void
tell (struct recovery *rec, bool now)
{
  uint64_t ns = host_monotonic_ns ();

  if (rec->params->progress && (now || ns - rec->told >= PROGRESS_NS)) {
    rec->told = ns;
    rec->params->progress (rec->params->opaque, rec->phase, rec->done,
                           rec->total);
  }
}

static void
tell_verify (void *opaque, uint64_t done, uint64_t total)
{
  struct recovery *rec = opaque;

  rec->done = done;
  rec->total = total;
  tell (rec, done == total);
}

static int
tell_drain (void *opaque, uint64_t bytes)
{
  struct recovery *rec = opaque;

  rec->done += bytes;
  tell (rec, false);
  return 0;
}

/* --- images ------------------------------------------------------------------------ */

static const char *
moved_to (const struct recover_params *p, const char *name)
{
  for (unsigned i = 0; i < p->ndisks; i++)
    if (strcmp (p->disks[i].name, name) == 0)
      return p->disks[i].path;
  return NULL;
}

static int
check_names (struct recovery *rec, const struct journal_config *config)
{
  const struct recover_params *p = rec->params;

  for (unsigned i = 0; i < p->ndisks; i++) {
    bool known = false;

    for (unsigned d = 0; d < config->ndisks && !known; d++)
      known = strcmp (config->disks[d].name, p->disks[i].name) == 0;
    if (!known) {
      errno = EINVAL;
      return mcerror_set (rec->err, MCEXIT_USAGE,
                          "--disk=%s:%s: the journal has no disk of that name",
                          p->disks[i].name, p->disks[i].path);
    }
  }
  return 0;
}

static int
open_images (struct recovery *rec)
{
  const struct journal_config *config = journal_get_config (rec->j);
  CLEANUP_FREE struct journal_disk *disks = calloc (config->ndisks, sizeof *disks);
  struct journal_config next = *config;
  bool moved = false;

  if (check_names (rec, config) == -1)
    return -1;
  rec->disks = calloc (config->ndisks, sizeof *rec->disks);
  if (rec->disks == NULL || disks == NULL)
    return mcerror_set (rec->err, MCEXIT_USAGE, "cannot open the images: %m");
  for (unsigned i = 0; i < config->ndisks; i++) {
    const struct journal_disk *was = &config->disks[i];
    const char *other = moved_to (rec->params, was->name);
    CLEANUP_FREE char *real = real_path (rec->params->fs, other ? other : was->path);

    disks[i] = *was;
    rec->ndisks = i + 1;
    rec->disks[i].size = was->size;
    if (was->joined > rec->chosen.id)
      continue;                 /* it joined later */
    if (real == NULL)
      return mcerror_set (rec->err, MCEXIT_USAGE,
                          "%s: %m: if the image of disk %s has moved, use --disk=%s:PATH",
                          other ? other : was->path, was->name, was->name);
    if (strlen (real) > JOURNAL_PATH_MAX) {
      errno = ENAMETOOLONG;
      return mcerror_set (rec->err, MCEXIT_USAGE, "%s: %m", real);
    }
    if (strcmp (real, was->path) != 0) {
      moved = true;
      snprintf (disks[i].path, sizeof disks[i].path, "%s", real);
    }
    if (backing_open (rec->params->fs, real, false, 0,
                      &rec->disks[i].backing, rec->err) == -1)
      return -1;
    rec->disks[i].size = backing_size (rec->disks[i].backing);
    if (rec->disks[i].size != was->size) {
      errno = EINVAL;
      return mcerror_set (rec->err, MCEXIT_USAGE,
                          "%s: has %" PRIu64 " bytes, but disk %s has %" PRIu64
                          ": this is not its image, or it was resized",
                          real, rec->disks[i].size, was->name, was->size);
    }
  }
  next.disks = disks;
  return moved ? journal_set_config (rec->j, &next, rec->err) : 0;
}

/* --- what there is to do -------------------------------------------------------------- */

static int
note_part (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  struct recovery *rec = opaque;

  if (rec->nparts == 0 || rec->parts[rec->nparts - 1].epoch != epoch) {
    if ((rec->nparts & (rec->nparts - 1)) == 0) {       /* room doubles */
      struct part *more = realloc (rec->parts, (rec->nparts ? 2 * rec->nparts : 1) *
                                   sizeof *more);

      if (more == NULL)
        return -1;
      rec->parts = more;
    }
    rec->parts[rec->nparts++] = (struct part) { .epoch = epoch };
  }
  if (ext->flags & JOURNAL_DATA) {
    rec->parts[rec->nparts - 1].blocks += journal_extent_blocks (ext);
    rec->total += (uint64_t) ext->nsectors * JOURNAL_SECTOR;
  }
  return 0;
}

static int
plan (struct recovery *rec)
{
  struct journal_damage damage;

  rec->total = 0;
  if (journal_replay (rec->j, rec->state.watermark.id, upto (rec), note_part,
                      rec, &damage) == 0)
    return 0;
  if (errno == EBADMSG)
    return damage_error (rec, &damage);
  return mcerror_set (rec->err, MCEXIT_USAGE, "%s/journal: cannot read: %m",
                      rec->params->dir);
}

/* How much of the journal to keep in RAM: all that is needed, within reason. */
static uint64_t
cache_size (const struct recovery *rec)
{
  uint64_t need = MIN_CACHE, have;
  long pages = sysconf (_SC_AVPHYS_PAGES), page = sysconf (_SC_PAGESIZE);

  /* A commit's blocks can be spread thin over chunks that it shares with others. */
  for (size_t i = 0; i < rec->nparts; i++)
    need += rec->parts[i].blocks * JOURNAL_BLOCK + 2 * JOURNAL_CHUNK;
  have = pages > 0 && page > 0 ? (uint64_t) pages * page / 2 : MIN_CACHE;
  return MAX (MIN (MIN (need, have), MAX_CACHE), MIN_CACHE);
}

/* --- doing it ---------------------------------------------------------------------------- */

static int
verify (struct recovery *rec)
{
  struct journal_damage damage;

  rec->phase = "verifying";
  rec->done = 0;
  if (journal_verify (rec->j, rec->state.watermark.id, upto (rec), tell_verify,
                      rec, &damage) == 0)
    return 0;
  if (errno == EBADMSG)
    return damage_error (rec, &damage);
  return mcerror_set (rec->err, MCEXIT_USAGE, "%s/journal: cannot read: %m",
                      rec->params->dir);
}

struct change {
  const struct recovery *rec;
  uint64_t epochs, bytes;
  struct journal_checkpoint watermark;
};

static void
change_promote (struct journal_state *state, void *opaque)
{
  const struct change *c = opaque;

  state_epoch (state, state->epoch + 1);
  state->state = JOURNAL_PROMOTED;
  state->generation++;
  state->checkpoint = c->rec->chosen;
  state->discarded_epochs = c->epochs;
  state->discarded_bytes = c->bytes;
  state->drained = false;
  state->clean = true;          /* promoted, and nothing is in flight */
  state->void_epoch = state->epoch_limit;
  state_epoch (state, state->epoch_limit + 1);
}

static void
change_watermark (struct journal_state *state, void *opaque)
{
  const struct change *c = opaque;

  state->watermark = c->watermark;
  state->target = MAX (state->target, c->watermark.id);
}

static void
change_drained (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->drained = true;
  state->clean = true;
}

static int
journal_error (struct recovery *rec, enum mcexit code)
{
  return mcerror_set (rec->err, code, "%s/journal: %m%s", rec->params->dir,
                      code == MCEXIT_PARTIAL ?
                      ": recovery has begun; mend the cause and run it again" : "");
}

struct tally {
  uint64_t bytes, epochs, last;
  struct epoch *ranges;         /* NULL: not wanted (any more) */
};

static int
count_discarded (void *opaque, uint64_t epoch,
                 const struct journal_extent *ext)
{
  struct tally *t = opaque;

  if (epoch != t->last) {
    t->epochs++;
    t->last = epoch;
  }
  t->bytes += (uint64_t) ext->nsectors * JOURNAL_SECTOR;
  if (t->ranges && map_zero (t->ranges->map, ext->disk, ext->sector,
                             ext->nsectors, false) == -1) {
    epoch_free (t->ranges);
    t->ranges = NULL;
  }
  return 0;
}

/* Ranges of what was discarded, with those of what was committed after the checkpoint: T has them then, or
 * NULL.
 */
static void
add_later (struct recovery *rec, struct tally *t)
{
  struct journal_damage damage;
  uint64_t newest = 0;

  if (t->ranges && replay_map (rec->j, rec->chosen.id, UINT64_MAX, t->ranges,
                               &newest, &damage) == -1) {
    epoch_free (t->ranges);
    t->ranges = NULL;
  }
}

/* For a server that is started later: where the old primary's disk differs from what is recovered.
 * RANGES (NULL: not known) is taken.  After the PROMOTE record: if there is none the replica goes on, and
 * what is noted must not be found by a later recovery that could note nothing.
 */
static void
note_divergence (struct recovery *rec, struct epoch *ranges)
{
  struct replica r = { .fs = rec->params->fs, .dir = (char *) (uintptr_t) rec->params->dir,
                       .journal = rec->j, .disks = rec->disks,
                       .ndisks = rec->ndisks, .state = JOURNAL_PROTECTED };

  if (ranges == NULL || pthread_mutex_init (&r.lock, NULL) != 0)
    goto out;
  r.divergence = divergence_begin (&r, rec->state.generation + 1);
  if (r.divergence) {
    divergence_finish (&r, r.divergence, ranges);
    ranges = NULL;
    divergence_save (&r);
    divergence_free (r.divergence);
  }
  (void) pthread_mutex_destroy (&r.lock);
 out:
  epoch_free (ranges);
}

static int
promote (struct recovery *rec)
{
  struct tally t = { .bytes = 0 };
  struct change c = { .rec = rec };
  uint64_t open;
  struct journal_damage damage;

  if (rec->state.state == JOURNAL_PROTECTED && rec->whole)
    t.ranges = epoch_new ();

  /* How much goes is for the user to know, and no reason to fail. */
  if (journal_replay_uncommitted (rec->j, count_discarded, &t, &open, &damage) == 0) {
    c.epochs = t.epochs;
    c.bytes = t.bytes;
  }
  else {
    epoch_free (t.ranges);
    t.ranges = NULL;
  }
  add_later (rec, &t);
  if (journal_record (rec->j, JOURNAL_REC_PROMOTE, change_promote, &c) == -1) {
    epoch_free (t.ranges);
    return journal_error (rec, MCEXIT_USAGE);
  }
  note_divergence (rec, t.ranges);
  if (journal_discard (rec->j) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  return 0;
}

/* Write out parts [FROM, TO). */
static int
write_window (struct recovery *rec, size_t from, size_t to, uint64_t *written)
{
  struct drain d = { .fs = rec->params->fs, .journal = rec->j,
                     .disks = rec->disks, .ndisks = rec->ndisks,
                     .progress = tell_drain, .opaque = rec };
  uint64_t begin = from == 0 ? rec->state.watermark.id : rec->parts[from - 1].epoch;
  uint64_t last = rec->parts[to - 1].epoch, newest = 0;
  struct change c = { .rec = rec, .watermark = rec->chosen };
  struct epoch *e = epoch_new ();
  int result = -1;

  if (e == NULL)
    return mcerror_set (rec->err, MCEXIT_PARTIAL, "cannot go on: %m");
  if (replay_map (rec->j, begin, last, e, &newest, &d.damage) == 0 &&
      drain_map (&d, e->map) == 0)
    result = 0;
  else if (errno == EBADMSG) {
    /* It verified a moment ago. */
    if (d.damage.checkpoint == 0)
      d.damage.checkpoint = rec->parts[from].epoch;
    damage_error (rec, &d.damage);
  }
  else
    mcerror_set (rec->err, MCEXIT_PARTIAL,
                 "%s: %m: recovery has begun; mend the cause and run it again",
                 d.failed_path ? d.failed_path : rec->params->dir);
  *written += d.written;
  epoch_free (e);
  if (result == -1)
    return -1;
  c.watermark.id = last;
  if (journal_record (rec->j, JOURNAL_REC_WATERMARK, change_watermark,
                      &c) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  return 0;
}

static int
write_out (struct recovery *rec, uint64_t *written)
{
  size_t from = 0;

  rec->phase = "writing";
  rec->done = 0;
  while (from < rec->nparts) {
    size_t to = from;
    uint64_t bytes = 0;

    do
      bytes += rec->parts[to++].blocks * JOURNAL_BLOCK + 2 * JOURNAL_CHUNK;
    while (to < rec->nparts &&
           bytes + rec->parts[to].blocks * JOURNAL_BLOCK + 2 * JOURNAL_CHUNK +
           MIN_CACHE / 2 <= rec->cache);
    if (write_window (rec, from, to, written) == -1)
      return -1;
    from = to;
  }
  rec->done = rec->total;
  tell (rec, true);
  return 0;
}

static void
fill_result (struct recovery *rec, struct recover_result *result)
{
  const struct journal_config *config = journal_get_config (rec->j);

  journal_get_state (rec->j, &rec->state);
  for (unsigned i = 0; i < config->ndisks; i++)
    if (config->disks[i].joined > rec->chosen.id)
      memcpy (result->without[result->nwithout++], config->disks[i].name,
              sizeof result->without[0]);
  result->checkpoint = rec->chosen;
  result->discarded_bytes = rec->state.discarded_bytes;
  result->discarded_epochs = rec->state.discarded_epochs;
  result->generation = rec->state.generation;
  result->state = replica_state_word (rec->state.state);
}

static int
run (struct recovery *rec, struct recover_result *result)
{
  enum journal_took took;
  struct mcerror ignored;

  if (open_images (rec) == -1 || plan (rec) == -1 || verify (rec) == -1)
    return -1;
  rec->cache = cache_size (rec);
  /* Shared, to find (and in the end remove) what a server that died left; without
   * room for that, private memory does.
   */
  if (journal_start (rec->j, STAGING, true, &took, &ignored) == -1 &&
      journal_start (rec->j, STAGING, false, &took, rec->err) == -1)
    return -1;
  rec->whole = took == JOURNAL_TOOK_SHARED || took == JOURNAL_TOOK_SAVED ||
    (took == JOURNAL_TOOK_NOTHING && rec->state.clean);
  journal_set_load_room (rec->j, rec->cache / JOURNAL_CHUNK);
  if (rec->state.state != JOURNAL_PROMOTED) {
    if (promote (rec) == -1)
      return -1;
  }
  else if (journal_discard (rec->j) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  if (write_out (rec, &result->written_bytes) == -1)
    return -1;
  if (!rec->state.drained &&
      journal_record (rec->j, JOURNAL_REC_STATE, change_drained, NULL) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  journal_stop (rec->j, true);
  return 0;
}

int
recover_run (const struct recover_params *params,
             struct recover_result *result, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct recovery rec = { .nparts = 0 };
  int r = begin (&rec, params, err);

  memset (result, 0, sizeof *result);
  if (r == 0)
    r = run (&rec, result);
  if (r == 0)
    fill_result (&rec, result);
  end (&rec);
  result->seconds = (host_monotonic_ns () - since) / 1e9;
  return r;
}

int
recover_dry_run (const struct recover_params *params,
                 struct recover_result *result, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct recovery rec = { .nparts = 0 };
  int r = begin (&rec, params, err);

  memset (result, 0, sizeof *result);
  if (r == 0)
    r = plan (&rec);
  if (r == 0) {
    fill_result (&rec, result);
    if (rec.state.state != JOURNAL_PROMOTED) {
      result->generation++;
      result->discarded_bytes = result->discarded_epochs = 0;
    }
    result->state = replica_state_word (JOURNAL_PROMOTED);
    result->written_bytes = rec.total;
  }
  end (&rec);
  result->seconds = (host_monotonic_ns () - since) / 1e9;
  return r;
}

int
recover_list (const struct recover_params *params,
              struct journal_checkpoint **list, size_t *n,
              struct mcerror *err)
{
  struct recover_params any = *params;
  struct recovery rec = { .params = &any, .err = err };
  int r = journal_open (params->fs, params->dir, &rec.j, err);

  if (r == 0)
    r = load_list (&rec);
  if (r == 0) {
    *list = rec.list;
    *n = rec.nlist;
    rec.list = NULL;
  }
  end (&rec);
  return r;
}

int
recover_verify (const struct recover_params *params,
                struct recover_result *result, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct recovery rec = { .nparts = 0 };
  int r = begin (&rec, params, err);

  memset (result, 0, sizeof *result);
  if (r == 0)
    r = verify (&rec);
  if (r == 0) {
    fill_result (&rec, result);
    result->written_bytes = 0;
  }
  end (&rec);
  result->seconds = (host_monotonic_ns () - since) / 1e9;
  return r;
}
