/* SPDX-License-Identifier: BSD-3-Clause */
/* Looking at what recovery would find: nothing is changed, not even a time stamp. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/recover-impl.h"
#include "replica/samples.h"

/* --- list, dry run ------------------------------------------------------------------ */

int
recover_list (const struct recover_params *params,
              struct journal_checkpoint **list, size_t *n,
              struct mcerror *err)
{
  struct recovery rec = { .nparts = 0 };
  int r = recover_open (&rec, params, true, NULL, err);

  if (r == 0) {
    *list = rec.list;
    *n = rec.nlist;
    rec.list = NULL;
  }
  recover_end (&rec);
  return r;
}

int
recover_dry_run (const struct recover_params *params,
                 struct recover_result *result, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct recovery rec = { .nparts = 0 };
  int r = recover_open (&rec, params, true, NULL, err);

  memset (result, 0, sizeof *result);
  if (r == 0 &&
      (recover_aim (&rec) == -1 || recover_open_images (&rec) == -1 ||
       recover_plan (&rec) == -1 || recover_check_data (&rec) == -1))
    r = -1;
  if (r == 0) {
    recover_fill_result (&rec, result);
    if (rec.state.state != JOURNAL_PROMOTED) {
      struct recover_tally t = { .bytes = 0 };

      /* What cannot be read is not counted when it is done either. */
      if (journal_look_uncommitted (rec.j) == 0)
        (void) recover_count_discarded (&rec, &t);
      result->generation++;
      result->discarded_bytes = t.bytes;
      result->discarded_epochs = t.epochs;
    }
    result->state = replica_state_word (JOURNAL_PROMOTED);
    result->written_bytes = rec.total;
  }
  recover_end (&rec);
  result->seconds = (host_monotonic_ns () - since) / 1e9;
  return r;
}

/* --- verify ------------------------------------------------------------------------- */

struct verify {
  struct recovery rec;
  struct recover_findings *found;
  uint64_t first;               /* the oldest checkpoint that is hurt */
  bool lost;                    /* none is provably whole */
};

static void
add_damage (struct verify *v, const char *dir, const char *file,
            const struct journal_damage *d)
{
  struct recover_findings *f = v->found;
  struct recover_damage *to = &f->damage[f->ndamage];

  f->total++;
  if (d->checkpoint != 0)
    v->first = MIN (v->first, d->checkpoint);
  if (f->ndamage == RECOVER_DAMAGES)
    return;
  if (asprintf (&to->file, "%s%s%s", dir ? dir : "", dir ? "/" : "", file) == -1)
    to->file = NULL;
  to->offset = d->offset;
  to->checkpoint = d->checkpoint;
  memcpy (to->what, d->what, sizeof to->what);
  f->ndamage++;
}

/* A journal_damage_fn. */
static void
on_damage (void *opaque, const struct journal_damage *d)
{
  struct verify *v = opaque;

  add_damage (v, v->rec.params->dir, d->file, d);
}

static void
add_note (struct verify *v, const char *text)
{
  struct recover_findings *f = v->found;

  if (f->nnotes < RECOVER_NOTES)
    snprintf (f->note[f->nnotes++], sizeof f->note[0], "%s", text);
}

/* R is what looking at an image gave. */
static void
add_image (struct verify *v, int r, const struct mcerror *err)
{
  struct recovery *rec = &v->rec;

  if (r == 0)
    return;
  if (rec->wrong == -1)
    add_note (v, err->text);    /* not there, or not to be read: it may be elsewhere */
  else {
    v->lost = true;
    add_damage (v, NULL, backing_path (rec->disks[rec->wrong].backing),
                &rec->miss);
    backing_close (rec->disks[rec->wrong].backing);
    rec->disks[rec->wrong].backing = NULL;
    rec->wrong = -1;
  }
}

/* Is what the journal says of the images so? */
static void
verify_images (struct verify *v)
{
  struct recovery *rec = &v->rec;
  unsigned n = journal_get_config (rec->j)->ndisks;
  struct mcerror *kept = rec->err, err = { 0 };

  rec->disks = calloc (n, sizeof *rec->disks);
  if (rec->disks == NULL) {
    add_note (v, "no memory to look at the backing images");
    return;
  }
  rec->err = &err;
  for (unsigned i = 0; i < n; i++)
    add_image (v, recover_open_image (rec, i), &err);
  add_image (v, recover_check_images (rec, SUMS_ALL), &err);
  rec->err = kept;
}

static void
verify_catalog (struct verify *v)
{
  char text[256];

  if (v->rec.params->fs == &io_posix &&
      catalog_check (v->rec.params->dir, journal_get_config (v->rec.j)->id,
                     text, sizeof text) == -1)
    add_note (v, text);
}

/* What --to would take, the newest first; NULL: nothing. */
static const struct journal_checkpoint *
find_whole (const struct verify *v)
{
  const struct recovery *rec = &v->rec;
  size_t n = rec->nlist;

  if (v->lost || !rec->state.has_checkpoint)
    return NULL;
  if (rec->state.state == JOURNAL_PROMOTED)
    return v->first == UINT64_MAX ? &rec->state.checkpoint : NULL;
  while (n > 0 && rec->list[n - 1].id >= v->first)
    n--;
  return n > 0 ? &rec->list[n - 1] : NULL;
}

static int
verdict (struct verify *v, struct mcerror *err)
{
  const struct recover_findings *f = v->found;
  const struct recover_damage *worst = &f->damage[0];
  struct journal_damage d;

  for (unsigned i = 1; i < f->ndamage; i++)
    if (f->damage[i].checkpoint != 0 &&
        (worst->checkpoint == 0 || f->damage[i].checkpoint < worst->checkpoint))
      worst = &f->damage[i];
  if (worst->checkpoint == 0 && f->has_whole) {
    errno = EBADMSG;
    return mcerror_set (err, MCEXIT_DAMAGE,
                        "%s: damage at offset %" PRIu64 ": %s: no checkpoint needs it: checkpoint %" PRIu64
                        " can be recovered", worst->file ? worst->file : "", worst->offset,
                        worst->what, f->whole.id);
  }
  d = (struct journal_damage) { .offset = worst->offset,
                                .checkpoint = worst->checkpoint };
  memcpy (d.what, worst->what, sizeof d.what);
  return recover_damage_error (&v->rec, worst->file ? worst->file : "", &d,
                               f->has_whole ? &f->whole : NULL);
}

/* The journal is open. */
static int
verify_open (struct verify *v, struct mcerror *err)
{
  struct recovery *rec = &v->rec;
  struct recover_findings *f = v->found;
  const struct journal_checkpoint *whole;
  struct journal_damage damage;

  v->first = UINT64_MAX;
  v->lost = journal_get_damage (rec->j, &damage) == 1 && damage.checkpoint == 0;
  rec->chosen = rec->state.checkpoint;
  rec->phase = "verifying";
  if (journal_check (rec->j, recover_tell_verify, rec, on_damage, v,
                     &f->bytes) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s/journal: cannot read: %m",
                        rec->params->dir);
  if (rec->state.has_checkpoint)
    verify_images (v);
  verify_catalog (v);
  whole = find_whole (v);
  if (whole) {
    f->has_whole = true;
    f->whole = *whole;
  }
  if (f->ndamage > 0)
    return verdict (v, err);
  return recover_aim (rec);     /* is there a checkpoint, and the one that was asked for? */
}

int
recover_verify (const struct recover_params *params,
                struct recover_result *result,
                struct recover_findings *findings, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct verify v = { .found = findings };
  struct journal_damage damage = { .file = "" };
  int r;

  memset (result, 0, sizeof *result);
  memset (findings, 0, sizeof *findings);
  r = recover_open (&v.rec, params, true, &damage, err);
  if (r == -1 && damage.file[0])
    on_damage (&v, &damage);
  if (r == 0) {
    r = verify_open (&v, err);
    recover_fill_result (&v.rec, result);
    result->written_bytes = 0;
  }
  recover_end (&v.rec);
  result->seconds = (host_monotonic_ns () - since) / 1e9;
  return r;
}

void
recover_findings_free (struct recover_findings *findings)
{
  for (unsigned i = 0; i < findings->ndamage; i++)
    free (findings->damage[i].file);
  findings->ndamage = 0;
}
