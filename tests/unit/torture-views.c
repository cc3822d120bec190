/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks at checkpoints while replication goes on: views, scratches, and "promote scratch".
 *
 * A view reads as its checkpoint was, until it is revoked.  A scratch reads as its checkpoint with what was written
 * to it, and none of that is ever on the disk: for a crash nothing of it is in the model, but between the promote that
 * takes it and its answer.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit/torture.h"

#define rnd life_random

static const char *
name_of (char *buf, size_t size, unsigned disk, const char *what)
{
  snprintf (buf, size, "vd%c@%s", 'a' + disk, what);
  return buf;
}

static bool
can_look (struct life *l)
{
  enum journal_replica_state state = life_state (l);

  return l->cur.kind == OUTCOME_CHECKPOINT && state != JOURNAL_PROMOTED && state != JOURNAL_FAILED;
}

static bool
is_revoked (struct life *l, const struct replica_export *x)
{
  SCOPED_LOCK (&l->r->lock);

  return x->look ? x->look->revoked : x->scratch && x->scratch->look->revoked;
}

/* A request on X failed: only one that was revoked, or a fault, may do that. */
static void
excuse_look (struct life *l, const struct replica_export *x, const char *what)
{
  int error = errno;

  if ((error == EIO && (is_revoked (l, x) || life_state (l) == JOURNAL_FAILED)) || fault_excuses (l))
    return;
  torture_fail ("%s: %s, and it was not revoked (%s)", what, strerror (error), replica_state_word (life_state (l)));
}

/* --- views ------------------------------------------------------------------------- */

static void
view_close_at (struct life *l, struct torture_view *v)
{
  replica_close_export (l->r, &v->x);
  v->base = NULL;
}

/* A checkpoint that is listed, or "latest"; else one that is not there must not be. */
static void
view_open_at (struct life *l, struct torture_view *v)
{
  struct journal_checkpoint list[16];
  size_t n = MIN (journal_checkpoints (l->r->journal, list, 16), (size_t) 16);
  char name[40], what[24] = "latest";
  unsigned disk = rnd (l, l->ndisks);
  uint64_t id = l->cur.id, kind = rnd (l, 8);
  bool there = can_look (l);

  if (kind == 0) {
    id = life_open_epoch (l) + rnd (l, 3);
    there = false;
  }
  else if (kind < 5 && n > 0)
    id = list[rnd (l, n)].id;
  if (kind < 5)
    snprintf (what, sizeof what, "%" PRIu64, id);
  name_of (name, sizeof name, disk, what);
  if (LIBRARY (replica_open_export (l->r, name, &v->x)) == -1) {
    /* Write-out may have passed it. */
    MUST (!there || fault_excuses (l) || (l->p.threads && errno == ENOENT), "%s: %m (%s)", name,
          replica_state_word (life_state (l)));
    v->x.look = NULL;
    return;
  }
  MUST (there, "%s is served, %s", name, replica_state_word (life_state (l)));
  MUST (v->x.checkpoint == id && l->known[id], "%s: it is checkpoint %" PRIu64, name, v->x.checkpoint);
  v->base = l->known[id];
}

static void
view_read_at (struct life *l, struct torture_view *v)
{
  static uint8_t buf[TORTURE_REQUEST];
  unsigned disk = v->x.disk;
  uint64_t off;
  uint32_t len;

  step_pick (l, disk, &off, &len);
  if (LIBRARY (replica_pread (l->r, &v->x, buf, len, off)) == -1) {
    excuse_look (l, &v->x, "reading a view");
    torture_count[COUNT_REVOKED] += is_revoked (l, &v->x);
    view_close_at (l, v);
    return;
  }
  MUST (memcmp (buf, v->base->disk[disk] + off, len) == 0,
        "the view of checkpoint %" PRIu64 ", disk %u, %" PRIu64 "+%u is not what it was", v->x.checkpoint,
        disk, off, len);
  torture_count[COUNT_VIEW]++;
}

void
step_view (struct life *l)
{
  struct torture_view *v = &l->views[rnd (l, TORTURE_VIEWS)];

  torture_doing = "looking at a checkpoint";
  if (v->base == NULL)
    view_open_at (l, v);
  if (v->base && rnd (l, 8) == 0)
    view_close_at (l, v);
  else if (v->base)
    view_read_at (l, v);
}

/* --- scratches ----------------------------------------------------------------------- */

bool
torture_is_scratch (const char *path)
{
  return *path == '\0' || strstr (path, "/scratch-");
}

/* What one holds is known by its set and its disk for as long as it is kept. */
static struct torture_scratch *
scratch_find (struct life *l, uint64_t set, unsigned disk)
{
  for (unsigned i = 0; i < l->nscratches; i++)
    if (l->scratches[i].set == set && l->scratches[i].disk == disk)
      return &l->scratches[i];
  return NULL;
}

static unsigned
scratch_users (const struct life *l, uint64_t set, unsigned disk)
{
  unsigned n = 0;

  for (unsigned i = 0; i < TORTURE_VIEWS; i++)
    n += l->scratch_of[i].x.scratch && l->scratch_of[i].set == set && l->scratch_of[i].x.disk == disk;
  return n;
}

static void
scratch_begins (struct life *l, struct torture_scratch *s, uint64_t id)
{
  MUST (l->known[id], "a scratch of checkpoint %" PRIu64 ", which is none", id);
  s->id = id;
  s->unsure = false;
  memcpy (s->data, l->known[id]->disk[s->disk], l->size[s->disk]);
}

static struct torture_scratch *
scratch_add (struct life *l, uint64_t set, unsigned disk, uint64_t id)
{
  struct torture_scratch *s;

  if (l->nscratches == TORTURE_SCRATCHES) {
    /* One that nobody has open, of another set: it is not opened any more. */
    for (unsigned i = 0; i < l->nscratches; i++)
      if (l->scratches[i].set != set && scratch_users (l, l->scratches[i].set, l->scratches[i].disk) == 0) {
        free (l->scratches[i].data);
        l->scratches[i] = l->scratches[--l->nscratches];
        break;
      }
    assert (l->nscratches < TORTURE_SCRATCHES);
  }
  s = &l->scratches[l->nscratches++];
  *s = (struct torture_scratch) { .set = set, .disk = disk, .data = malloc (l->size[disk]) };
  assert (s->data);
  scratch_begins (l, s, id);
  return s;
}

/* What was written is kept for whoever opens the disk again before there is a commit, or a newer set.  Which set
 * that is, if there is one; 0.
 */
static uint64_t
scratch_kept (struct life *l, unsigned disk)
{
  uint64_t set = 0;
  bool there = false;

  for (unsigned i = 0; i < l->nscratches; i++)
    set = MAX (set, l->scratches[i].set);
  for (unsigned i = 0; i < l->nscratches; i++)
    if (l->scratches[i].set == set) {
      if (l->scratches[i].id != l->cur.id)
        return 0;
      there = there || l->scratches[i].disk == disk;
    }
  SCOPED_LOCK (&l->r->lock);
  for (const struct scratch *s = l->r->scratches; s; s = s->next)
    if (s->look && s->look->revoked)
      return 0;
  return there ? set : 0;
}

/* Over the newest checkpoint; but the disks of one machine are all over the same. */
static void
scratch_opened (struct life *l, struct torture_opened *o, uint64_t kept)
{
  struct torture_scratch *s;
  uint64_t id;
  unsigned users = 0;

  {
    SCOPED_LOCK (&l->r->lock);

    o->set = o->x.scratch->set;
    id = o->x.scratch->checkpoint;
  }
  MUST (kept == 0 || o->set == kept, "what was written to a scratch is not kept");
  s = scratch_find (l, o->set, o->x.disk);
  for (unsigned d = 0; d < l->ndisks; d++)
    users += scratch_users (l, o->set, d);
  MUST (id == l->cur.id || users > 1, "a scratch of checkpoint %" PRIu64 ", and the newest is %" PRIu64, id, l->cur.id);
  if (s == NULL)
    (void) scratch_add (l, o->set, o->x.disk, id);
  else
    MUST (s->id == id, "a scratch of checkpoint %" PRIu64 " has become one of %" PRIu64, s->id, id);
}

static void
scratch_open_at (struct life *l, struct torture_opened *o)
{
  unsigned disk = rnd (l, l->ndisks);
  enum journal_replica_state state = life_state (l);
  bool there = can_look (l);
  uint64_t kept = scratch_kept (l, disk);
  char name[40];

  name_of (name, sizeof name, disk, "scratch");
  if (LIBRARY (replica_open_export (l->r, name, &o->x)) == -1) {
    o->x.scratch = NULL;
    MUST (fault_excuses (l) || (!there && !(state == JOURNAL_PROMOTED && l->scratch_is_disk == CLEAN_YES)),
          "%s: %m (%s)", name, replica_state_word (state));
    return;
  }
  if (o->x.scratch == NULL) {
    MUST (state == JOURNAL_PROMOTED && l->scratch_is_disk != CLEAN_NO, "%s serves the disk (%s)", name,
          replica_state_word (state));
    step_read_export (l, &o->x);
    return;
  }
  MUST (there, "%s is served, %s", name, replica_state_word (state));
  scratch_opened (l, o, kept);
}

static void
scratch_close_at (struct life *l, struct torture_opened *o)
{
  replica_close_export (l->r, &o->x);
}

static void
scratch_use (struct life *l, struct torture_opened *o)
{
  static uint8_t buf[TORTURE_REQUEST];
  struct torture_scratch *s = scratch_find (l, o->set, o->x.disk);
  unsigned disk = s->disk, kind = rnd (l, 6);
  uint64_t off;
  uint32_t len;
  int result;

  step_pick (l, disk, &off, &len);
  if (kind < 2) {
    if (LIBRARY (replica_pread (l->r, &o->x, buf, len, off)) == -1) {
      excuse_look (l, &o->x, "reading a scratch");
      scratch_close_at (l, o);
    }
    else
      MUST (s->unsure || memcmp (buf, s->data + off, len) == 0,
            "a scratch of checkpoint %" PRIu64 ", disk %u, %" PRIu64 "+%u does not read as it was written", s->id,
            disk, off, len);
    return;
  }
  if (kind == 2) {
    memset (buf, 0, len);
    result = LIBRARY (replica_zero (l->r, &o->x, len, off, rnd (l, 2) ? REPLICA_MAY_TRIM : 0));
  }
  else {
    torture_fill (buf, len, rnd (l, UINT64_MAX));
    result = LIBRARY (replica_pwrite (l->r, &o->x, buf, len, off, rnd (l, 4) ? 0 : REPLICA_FUA));
  }
  if (result == -1) {
    s->unsure = true;
    excuse_look (l, &o->x, "writing to a scratch");
    scratch_close_at (l, o);
    return;
  }
  memcpy (s->data + off, buf, len);
  torture_count[COUNT_SCRATCH]++;
}

/* Of a disk the newest: one that is open begins anew, one that is not goes. */
static void
scratch_reset_any (struct life *l)
{
  unsigned disk = rnd (l, l->ndisks);
  struct torture_scratch *s = NULL;
  char name[40], line[64];
  uint64_t number;
  bool there = can_look (l);

  snprintf (line, sizeof line, "reset %s", name_of (name, sizeof name, disk, "scratch"));
  {
    SCOPED_LOCK (&l->r->lock);

    for (const struct scratch *i = l->r->scratches; i && s == NULL; i = i->next)
      if (i->disk == disk)
        s = scratch_find (l, i->set, disk);
  }
  if (torture_control (l, line, "checkpoint", &number) == -1) {
    MUST (!there || fault_excuses (l), "%s: %m", line);
    if (s)
      s->unsure = true;
    return;
  }
  MUST (there && number == l->cur.id, "%s: checkpoint %" PRIu64, line, number);
  torture_count[COUNT_RESET]++;
  if (s && scratch_users (l, s->set, disk) > 0)
    scratch_begins (l, s, number);
  else if (s) {
    free (s->data);
    *s = l->scratches[--l->nscratches];
  }
}

void
step_scratch (struct life *l)
{
  struct torture_opened *o = &l->scratch_of[rnd (l, TORTURE_VIEWS)];

  torture_doing = "using a scratch";
  if (rnd (l, 12) == 0) {
    scratch_reset_any (l);
    return;
  }
  if (o->x.scratch == NULL)
    scratch_open_at (l, o);
  if (o->x.scratch && rnd (l, 10) == 0)
    scratch_close_at (l, o);
  else if (o->x.scratch)
    scratch_use (l, o);
}

/* --- promote scratch --------------------------------------------------------------------- */

/* What the promote would make of the disks; NULL: it is to be refused, or (*UNSURE) may be. */
static struct version *
scratch_whole (struct life *l, bool *unsure)
{
  struct version *v = version_copy (l, l->cur.base);
  struct journal_usage usage;
  uint64_t set = 0, need = 0;

  {
    SCOPED_LOCK (&l->r->lock);

    if (l->r->scratches)
      set = l->r->scratches->set;
    for (const struct scratch *s = l->r->scratches; s; s = s->next) {
      if (s->set == set)
        need += map_blocks (s->map) * 2 * JOURNAL_BLOCK + 3 * JOURNAL_CHUNK;
      *unsure = *unsure || (s->look && s->look->revoked);
    }
  }
  if (set == 0)
    return NULL;
  for (unsigned i = 0; i < TORTURE_VIEWS; i++)
    if (l->scratch_of[i].x.scratch && l->scratch_of[i].set != set)
      return NULL;
  journal_get_usage (l->r->journal, &usage);
  *unsure = *unsure || usage.available < need;
  for (unsigned d = 0; d < l->ndisks; d++) {
    const struct torture_scratch *s = scratch_find (l, set, d);

    if (s && s->id != l->cur.id)
      return NULL;
    if (s && s->unsure)
      *unsure = true;
    if (s)
      memcpy (v->disk[d], s->data, l->size[d]);
  }
  return v;
}

/* Who had a scratch open has the disk now. */
static void
scratch_became_disk (struct life *l)
{
  for (unsigned i = 0; i < TORTURE_VIEWS; i++)
    if (l->scratch_of[i].x.scratch) {
      step_read_export (l, &l->scratch_of[i].x);
      scratch_close_at (l, &l->scratch_of[i]);
    }
  torture_count[COUNT_PROMOTE_SCRATCH]++;
}

void
step_promote_scratch (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  struct outcome alone = { OUTCOME_PROMOTED, l->cur.id, l->cur.base }, with = alone;
  bool can = can_look (l), unsure = false, promoted;
  struct version *v;
  uint64_t number;

  if (state == JOURNAL_PROMOTED || l->nested)
    return;
  v = can ? scratch_whole (l, &unsure) : NULL;
  /* One that was written in part is for the faults' sake only: nobody knows what it would make of the disk. */
  for (unsigned i = 0; i < l->nscratches; i++)
    if (l->scratches[i].unsure)
      return;
  model_begin (l, "promoting scratch");
  if (v) {
    with.base = v;
    model_perhaps (l, alone);
    model_perhaps (l, with);
  }
  if (torture_control (l, "promote scratch", "checkpoint", &number) == -1) {
    promoted = life_state (l) == JOURNAL_PROMOTED;
    if (!promoted && life_state (l) != JOURNAL_FAILED)
      MUST (v == NULL || unsure || fault_excuses (l), "promote scratch: code %" PRIu64 " (%s)", number,
            replica_state_word (state));
    if (!promoted)
      return;
    MUST (fault_excuses (l), "promote scratch: promoted, and code %" PRIu64, number);
    /* Promoted without it, or only the answer is missing: then the server knows. */
    {
      SCOPED_LOCK (&l->r->lock);

      MUST (number != MCEXIT_PARTIAL || !l->r->scratch_is_disk, "promote scratch: without it, and it is the disk");
      if (!l->r->scratch_is_disk)
        with = alone;
    }
    number = with.id;
  }
  MUST (v, "promoted a scratch that it should not have been (%s)", replica_state_word (state));
  MUST (number == l->cur.id, "promote scratch: checkpoint %" PRIu64, number);
  model_new_stream (l, with.base);
  model_no_late (l);
  l->cur = with;
  l->scratch_is_disk = with.base == v ? CLEAN_YES : CLEAN_NO;
  model_settle (l, CLEAN_NO);
  if (with.base == v)
    scratch_became_disk (l);
}

/* --- the end of a server -------------------------------------------------------------------- */

void
views_end (struct life *l)
{
  for (unsigned i = 0; i < TORTURE_VIEWS; i++) {
    if (l->views[i].base)
      view_close_at (l, &l->views[i]);
    scratch_close_at (l, &l->scratch_of[i]);
  }
  for (unsigned i = 0; i < l->nscratches; i++)
    free (l->scratches[i].data);
  l->nscratches = 0;
}
