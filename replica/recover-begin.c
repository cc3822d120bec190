/* SPDX-License-Identifier: BSD-3-Clause */
/* The beginning of a recovery: the journal, what is to be the disk, the images, and whether all
 * that will be needed is whole.  Nothing is changed here.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/recover-impl.h"
#include "replica/samples.h"

#define THREADS 4u              /* some wait for the disk while one computes */
#define PROGRESS_NS UINT64_C (100000000)

/* --- progress -------------------------------------------------------------------- */

void
recover_tell (struct recovery *rec, bool now)
{
  uint64_t ns = host_monotonic_ns ();

  if (rec->params->progress && (now || ns - rec->told >= PROGRESS_NS)) {
    rec->told = ns;
    rec->params->progress (rec->params->opaque, rec->phase, rec->done,
                           rec->total);
  }
}

void
recover_tell_verify (void *recovery, uint64_t done, uint64_t total)
{
  struct recovery *rec = recovery;

  rec->done = done;
  rec->total = total;
  recover_tell (rec, done == total);
}

/* --- damage ---------------------------------------------------------------------- */

/* The newest listed checkpoint before BEFORE with every byte of it there; NULL: none. */
static const struct journal_checkpoint *
newest_whole (struct recovery *rec, uint64_t before)
{
  struct journal_damage d;
  size_t n = rec->nlist;

  if (rec->state.state == JOURNAL_PROMOTED)
    return NULL;                /* that one, or none */
  while (n > 0 && rec->list[n - 1].id >= before)
    n--;
  if (n > 0 &&
      journal_verify (rec->j, rec->state.watermark.id, rec->list[n - 1].id,
                      recover_tell_verify, rec, &d) == -1) {
    if (errno != EBADMSG)
      return NULL;
    while (n > 0 && rec->list[n - 1].id >= d.checkpoint)
      n--;
  }
  return n > 0 ? &rec->list[n - 1] : NULL;
}

int
recover_damage_error (struct recovery *rec, const char *file,
                      const struct journal_damage *d,
                      const struct journal_checkpoint *whole)
{
  char which[96] = "no checkpoint is provably whole", way[128];

  if (d->checkpoint > rec->state.checkpoint.id)
    snprintf (which, sizeof which, "checkpoints after %" PRIu64 ", if there were any, are lost",
              rec->state.checkpoint.id);
  else if (d->checkpoint != 0)
    snprintf (which, sizeof which, "checkpoint %" PRIu64 " and later ones cannot be recovered",
              d->checkpoint);
  if (whole)
    snprintf (way, sizeof way, "checkpoint %" PRIu64 " is whole: recover to it with --to=%" PRIu64,
              whole->id, whole->id);
  else
    snprintf (way, sizeof way, "the image must not be used");
  errno = EBADMSG;
  return mcerror_set (rec->err, MCEXIT_DAMAGE,
                      "%s: damage at offset %" PRIu64 ": %s: %s; %s", file,
                      d->offset, d->what, which, way);
}

int
recover_damage (struct recovery *rec, const struct journal_damage *d)
{
  char file[sizeof d->file + JOURNAL_PATH_MAX];

  snprintf (file, sizeof file, "%s/%s", rec->params->dir, d->file);
  rec->phase = "verifying";
  return recover_damage_error (rec, file, d, newest_whole (rec, d->checkpoint));
}

/* --- the journal ------------------------------------------------------------------ */

static int
check_names (struct recovery *rec)
{
  const struct journal_config *config = journal_get_config (rec->j);
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

int
recover_open (struct recovery *rec, const struct recover_params *params,
              bool look, struct journal_damage *damage, struct mcerror *err)
{
  size_t n;

  rec->params = params;
  rec->look = look;
  rec->wrong = -1;
  rec->err = err;
  if ((look ? journal_look (params->fs, params->dir, &rec->j, damage, err) :
       journal_open_keep (params->fs, params->dir, recover_cache (params) / JOURNAL_CHUNK,
                          /* A simulated disk counts operations: there they have to come in one order. */
                          params->fs == &io_posix ? THREADS : 1, &rec->j, err)) == -1)
    return -1;
  journal_get_state (rec->j, &rec->state);
  n = journal_checkpoints (rec->j, NULL, 0);
  rec->list = calloc (n + 1, sizeof *rec->list);
  if (rec->list == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot list checkpoints: %m");
  rec->nlist = MIN (n, journal_checkpoints (rec->j, rec->list, n));
  return check_names (rec);
}

int
recover_aim (struct recovery *rec)
{
  const struct recover_params *params = rec->params;
  struct journal_damage damage;
  bool damaged = journal_get_damage (rec->j, &damage) == 1;
  struct journal_checkpoint same;

  if (!rec->state.has_checkpoint) {
    if (damaged)
      return recover_damage (rec, &damage);
    errno = ENOENT;
    return mcerror_set (rec->err, MCEXIT_NO_CHECKPOINT,
                        "%s: replica is %s and no checkpoint exists: the image must not be used",
                        params->dir, replica_state_word (rec->state.state));
  }
  rec->chosen = rec->state.checkpoint;
  if (rec->state.state == JOURNAL_PROMOTED) {
    if (damaged)
      return recover_damage (rec, &damage);
    if (params->to &&
        recover_choose (&rec->chosen, 1, params->to, &same, NULL) == -1) {
      errno = EPERM;
      return mcerror_set (rec->err, MCEXIT_REFUSED,
                          "%s: already promoted to checkpoint %" PRIu64 " in generation %" PRIu64
                          ": it cannot be recovered to %s any more",
                          params->dir, rec->chosen.id, rec->state.generation,
                          params->to);
    }
    return 0;
  }
  /* Damage above what was asked for by name does no harm to that; but nobody is
   * given an older checkpoint than the last who did not ask for one.
   */
  if (params->to == NULL)
    return damaged ? recover_damage (rec, &damage) : 0;
  if (recover_choose (rec->list, rec->nlist, params->to, &rec->chosen,
                      rec->err) == 0 &&
      (!damaged || (damage.checkpoint != 0 && damage.checkpoint > rec->chosen.id)))
    return 0;
  return damaged ? recover_damage (rec, &damage) : -1;
}

void
recover_end (struct recovery *rec)
{
  int saved = errno;

  for (unsigned i = 0; i < rec->ndisks; i++)
    backing_close (rec->disks[i].backing);
  free (rec->disks);
  free (rec->moved);
  free (rec->list);
  free (rec->parts);
  sums_close (rec->sums);
  journal_close (rec->j);
  errno = saved;
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

/* Note the absolute path REAL of disk I, if that is news. */
static int
note_moved (struct recovery *rec, unsigned i, const char *real)
{
  const struct journal_config *config = journal_get_config (rec->j);

  if (strlen (real) > JOURNAL_PATH_MAX) {
    errno = ENAMETOOLONG;
    return mcerror_set (rec->err, MCEXIT_USAGE, "%s: %m", real);
  }
  if (strcmp (real, config->disks[i].path) == 0)
    return 0;
  if (rec->moved == NULL) {
    rec->moved = calloc (config->ndisks, sizeof *rec->moved);
    if (rec->moved == NULL)
      return mcerror_set (rec->err, MCEXIT_USAGE, "cannot open the images: %m");
    memcpy (rec->moved, config->disks, config->ndisks * sizeof *rec->moved);
  }
  snprintf (rec->moved[i].path, sizeof rec->moved[i].path, "%s", real);
  return 0;
}

/* The image of disk I is not what it should be. */
static int
image_damage (struct recovery *rec, unsigned i, enum mcexit code,
              uint64_t offset, const char *what)
{
  const char *name = journal_get_config (rec->j)->disks[i].name;

  rec->wrong = (int) i;
  rec->miss = (struct journal_damage) { .offset = offset,
                                        .checkpoint = rec->state.watermark.id };
  snprintf (rec->miss.what, sizeof rec->miss.what, "%s", what);
  errno = EBADMSG;
  return mcerror_set (rec->err, code,
                      "%s: damage at offset %" PRIu64 ": %s: checkpoint %" PRIu64
                      " cannot be made of it; if the image of disk %s has moved, use --disk=%s:PATH",
                      backing_path (rec->disks[i].backing), offset, what,
                      rec->chosen.id, name, name);
}

int
recover_open_image (struct recovery *rec, unsigned i)
{
  const struct journal_disk *was = &journal_get_config (rec->j)->disks[i];
  const char *other = moved_to (rec->params, was->name);
  CLEANUP_FREE char *real = real_path (rec->params->fs, other ? other : was->path);
  struct disk *d = &rec->disks[i];
  char what[128];

  rec->ndisks = i + 1;
  d->size = was->size;
  if (was->joined > rec->chosen.id)
    return 0;                   /* it joined later */
  if (real == NULL)
    return mcerror_set (rec->err, MCEXIT_USAGE,
                        "%s: %m: if the image of disk %s has moved, use --disk=%s:PATH",
                        other ? other : was->path, was->name, was->name);
  /* First without a lock: an image that is none of this disk's is nobody's business. */
  if (backing_look (rec->params->fs, real, &d->backing, rec->err) == -1)
    return -1;
  backing_fit (d->backing, was->size);
  d->size = backing_size (d->backing);
  if (d->size == was->size) {
    if (rec->look)
      return note_moved (rec, i, real);
    backing_close (d->backing);
    d->backing = NULL;
    if (backing_open (rec->params->fs, real, false, 0, &d->backing, rec->err) == -1)
      return -1;
    backing_fit (d->backing, was->size);
    d->size = backing_size (d->backing);
  }
  if (d->size == was->size)
    return note_moved (rec, i, real);
  snprintf (what, sizeof what, "it has %" PRIu64 " bytes, but the disk has %" PRIu64
            ": another image, or it was resized", d->size, was->size);
  /* Named by hand it is a slip; where it always was, it is damage. */
  return image_damage (rec, i, other ? MCEXIT_USAGE : MCEXIT_DAMAGE,
                       MIN (d->size, was->size), what);
}

int
recover_check_images (struct recovery *rec, enum sums_depth depth)
{
  struct samples_miss miss;
  int r = samples_check (rec->j, rec->disks, rec->ndisks, &miss);

  if (r == 1) {
    rec->sums = sums_open (rec->params->fs, rec->params->dir, rec->j, rec->look);
    r = sums_check (rec->sums, rec->disks, rec->ndisks, depth, &miss);
  }
  switch (r) {
  case 1:
    return 0;
  case 0:
    return image_damage (rec, miss.disk, MCEXIT_DAMAGE, miss.offset, samples_miss_text (&miss));
  }
  return mcerror_set (rec->err, MCEXIT_USAGE, "%s: cannot read: %m",
                      backing_path (rec->disks[miss.disk].backing));
}

int
recover_open_images (struct recovery *rec)
{
  const struct journal_config *config = journal_get_config (rec->j);

  rec->disks = calloc (config->ndisks, sizeof *rec->disks);
  if (rec->disks == NULL)
    return mcerror_set (rec->err, MCEXIT_USAGE, "cannot open the images: %m");
  for (unsigned i = 0; i < config->ndisks; i++)
    if (recover_open_image (rec, i) == -1)
      return -1;
  return recover_check_images (rec, SUMS_CHANGED);
}

/* --- what there is to do -------------------------------------------------------------- */

static int
note_part (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  struct recovery *rec = opaque;

  if (rec->nparts == 0 || rec->parts[rec->nparts - 1].epoch != epoch) {
    if ((rec->nparts & (rec->nparts - 1)) == 0) {       /* room doubles */
      struct recover_part *more = realloc (rec->parts, (rec->nparts ? 2 * rec->nparts : 1) *
                                           sizeof *more);

      if (more == NULL)
        return -1;
      rec->parts = more;
    }
    rec->parts[rec->nparts++] = (struct recover_part) { .epoch = epoch };
  }
  if (ext->flags & JOURNAL_DATA) {
    rec->parts[rec->nparts - 1].blocks += journal_extent_blocks (ext);
    rec->total += (uint64_t) ext->nsectors * JOURNAL_SECTOR;
  }
  return 0;
}

int
recover_plan (struct recovery *rec)
{
  struct journal_damage damage;

  rec->total = 0;
  if (journal_replay (rec->j, rec->state.watermark.id, recover_upto (rec),
                      note_part, rec, &damage) == 0)
    return 0;
  if (errno == EBADMSG)
    return recover_damage (rec, &damage);
  return mcerror_set (rec->err, MCEXIT_USAGE, "%s/journal: cannot read: %m",
                      rec->params->dir);
}

int
recover_check_data (struct recovery *rec)
{
  uint64_t total = rec->total;  /* what is to be written out */
  struct journal_damage damage;
  int r;

  rec->phase = "verifying";
  rec->done = 0;
  r = journal_verify (rec->j, rec->state.watermark.id, recover_upto (rec),
                      recover_tell_verify, rec, &damage);
  rec->total = total;
  if (r == 0)
    return 0;
  if (errno == EBADMSG)
    return recover_damage (rec, &damage);
  return mcerror_set (rec->err, MCEXIT_USAGE, "%s/journal: cannot read: %m",
                      rec->params->dir);
}

/* --- what there is to discard --------------------------------------------------------- */

static int
count_discarded (void *opaque, uint64_t epoch,
                 const struct journal_extent *ext)
{
  struct recover_tally *t = opaque;

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

int
recover_count_discarded (struct recovery *rec, struct recover_tally *t)
{
  struct journal_damage damage;
  uint64_t open;

  if (journal_replay_uncommitted (rec->j, count_discarded, t, &open, &damage) == 0)
    return 0;
  epoch_free (t->ranges);
  *t = (struct recover_tally) { .bytes = 0 };
  return -1;
}
