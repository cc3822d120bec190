/* SPDX-License-Identifier: BSD-3-Clause */
/* What is on the disk after a crash: recovery, once and again, itself crashing, to any
 * checkpoint it offers; or a server that goes on.
 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/torture.h"

#define MAX_NESTED 32
#define MAX_DEPTH 3             /* crashes of recovery from a crash of recovery ... */

uint64_t torture_states, torture_faults;

void
torture_fail (const char *fmt, ...)
{
  const struct life *l = torture_now;
  va_list args;

  fflush (stdout);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  if (l)
    fprintf (stderr, "\n%s: while %s, operation %llu; replay with MCBUF_TEST_SEED=%llu MCBUF_TORTURE_ONLY=",
             torture_test, torture_doing,
             (unsigned long long) (l->disk ? simdisk_ops (l->disk) : 0),
             (unsigned long long) l->p.seed);
  if (l && l->p.refault)
    fprintf (stderr, "recovery; call or allocation %llu, error %d\n", (unsigned long long) l->fault.at, l->fault.error);
  else if (l && l->p.fault.memory)
    fprintf (stderr, "memory,%llu,%d\n", (unsigned long long) l->p.fault.at, l->p.fault.sticky);
  else if (l && l->p.fault.at)
    fprintf (stderr, "%llu,%d,%d\n", (unsigned long long) l->p.fault.at,
             l->p.fault.error, l->p.fault.sticky);
  else if (l)
    fprintf (stderr, "%s\n", !l->p.crash ? "looks" : l->p.script ? "scratch" : l->p.threads ? "threads" : "crash");
  abort ();
}

/* --- contents --- */

static void
apply (const struct late *w, uint8_t *to)
{
  if (w->data)
    memcpy (to + w->off, w->data, w->len);
  else
    memset (to + w->off, 0, w->len);
}

bool
torture_contents (const struct life *life, const struct version *got,
                  const struct expect *e, const struct outcome *o, bool garble)
{
  for (unsigned d = 0; d < life->ndisks; d++) {
    uint64_t size = life->size[d], sectors = DIV_UP (size, (uint64_t) 512);
    CLEANUP_FREE uint8_t *cur = NULL;
    CLEANUP_FREE bool *ok = NULL;

    if (memcmp (got->disk[d], o->base->disk[d], size) == 0)
      continue;
    if (o->kind != OUTCOME_PROMOTED || e->nlate == 0)
      return false;
    cur = malloc (size);
    ok = calloc (sectors, sizeof *ok);
    memcpy (cur, o->base->disk[d], size);
    for (unsigned i = 0; i <= e->nlate; i++) {
      uint64_t from = 0, to = sectors;

      if (i > 0) {
        const struct late *w = &e->late[i - 1];

        if (w->disk != d)
          continue;
        apply (w, cur);
        from = w->off / 512;
        to = DIV_UP (w->off + w->len, (uint64_t) 512);
      }
      for (uint64_t s = from; s < to; s++)
        if ((i > 0 && (garble || e->late[i - 1].failed)) ||
            memcmp (cur + s * 512, got->disk[d] + s * 512,
                    MIN (UINT64_C (512), size - s * 512)) == 0)
          ok[s] = true;
    }
    for (uint64_t s = 0; s < sectors; s++)
      if (!ok[s])
        return false;
  }
  return true;
}

/* For the message: where do the images differ from what is allowed first? */
static void
show_difference (const struct life *life, struct simdisk *disk,
                 const struct outcome *o)
{
  for (unsigned d = 0; d < life->ndisks; d++) {
    CLEANUP_FREE uint8_t *got = malloc (life->size[d]);
    uint64_t first = UINT64_MAX, last = 0, n = 0;

    simdisk_read (disk, life->path[d], got, life->size[d]);
    for (uint64_t i = 0; i < life->size[d]; i++)
      if (got[i] != o->base->disk[d][i]) {
        first = MIN (first, i);
        last = i;
        n++;
      }
    if (n > 0)
      fprintf (stderr, "disk %u of %llu bytes: %llu differ, in [%llu, %llu]\n", d,
               (unsigned long long) life->size[d], (unsigned long long) n,
               (unsigned long long) first, (unsigned long long) last);
  }
}

static void
version_free (struct version *v, unsigned n)
{
  for (unsigned d = 0; d < n; d++)
    free (v->disk[d]);
}

bool
torture_images (const struct life *life, struct simdisk *disk,
                const struct expect *e, const struct outcome *o, bool garble)
{
  struct version got = { { NULL }, NULL };
  bool same = true;

  for (unsigned d = 0; d < life->ndisks && same; d++)
    same = simdisk_equals (disk, life->path[d], o->base->disk[d],
                           life->size[d]);
  if (same || o->kind != OUTCOME_PROMOTED || e->nlate == 0)
    return same;
  for (unsigned d = 0; d < life->ndisks; d++) {
    got.disk[d] = malloc (life->size[d]);
    simdisk_read (disk, life->path[d], got.disk[d], life->size[d]);
  }
  same = torture_contents (life, &got, e, o, garble);
  version_free (&got, life->ndisks);
  return same;
}

/* --- recovery --- */

struct answer
torture_recover (struct simdisk *disk, const char *to)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR,
                              .to = to };
  struct recover_result result;
  struct mcerror err = { 0 };
  struct answer a = { .code = MCEXIT_DONE };

  __atomic_add_fetch (&torture_states, 1, __ATOMIC_RELAXED);
  if (recover_run (&p, &result, &err) == -1) {
    a.code = err.code;
    snprintf (a.text, sizeof a.text, "%s", err.text);
  }
  else {
    a.id = result.checkpoint.id;
    a.generation = result.generation;
  }
  return a;
}

/* Of what may be, which is it? */
const struct outcome *
torture_match_answer (const struct life *life, struct simdisk *disk, const struct expect *e,
       const struct answer *a, bool garble)
{
  const struct outcome *id = NULL;

  for (unsigned i = 0; i < e->n; i++) {
    const struct outcome *o = &e->out[i];

    switch (o->kind) {
    case OUTCOME_ABSENT:
      if (a->code == MCEXIT_USAGE && journal_exists (simdisk_fs (disk), TORTURE_DIR) == 0)
        return o;
      break;
    case OUTCOME_NONE:
      if (a->code == MCEXIT_NO_CHECKPOINT)
        return o;
      break;
    case OUTCOME_CHECKPOINT:
    case OUTCOME_PROMOTED:
      if (a->code == MCEXIT_DONE && a->id == o->id) {
        id = o;
        if (torture_images (life, disk, e, o, garble))
          return o;
      }
    }
  }
  if (id) {
    show_difference (life, disk, id);
    torture_fail ("recovered to checkpoint %llu, but the images are not it (outcome %d of kind %d, %u late writes)",
                  (unsigned long long) a->id, (int) (id - e->out), id->kind, e->nlate);
  }
  torture_fail ("recovery: code %d, checkpoint %llu %s; outcome 1 of %u would be kind %d, checkpoint %llu",
                a->code, (unsigned long long) a->id, a->text, e->n,
                e->out[0].kind, (unsigned long long) e->out[0].id);
}

/* Crashes of recovery, or of a server that starts. */
struct nested {
  const struct life *life;
  struct simdisk *disk;
  const struct expect *e;
  bool garble;
  unsigned depth;
  unsigned syncs;
  /* Answers; how many come from before its first record was durable: until then what was in flight
   * may turn up or vanish, even by a sector of that record in the place of an old one.
   */
  unsigned n, undecided;
  struct answer answer[MAX_NESTED];
};

static struct answer recover_crashing (const struct nested *from,
                                       struct simdisk *disk,
                                       struct nested *x);

static void
on_nested_op (void *opaque, enum simdisk_op op)
{
  struct nested *x = opaque;
  enum simdisk_crash how = host_below (SIMDISK_HOWS);
  struct nested again;
  struct simdisk *after;
  bool undecided;
  unsigned boot;

  undecided = x->syncs < 4;     /* the journal, its directory, its parent; then the record */
  x->syncs += op == SIMDISK_SYNC;
  if (x->n == MAX_NESTED || host_below (x->depth > 0 ? 8 : x->life->p.subsets ? 1 : 3) != 0)
    return;
  after = simdisk_crash (x->disk, how, host_bits);
  boot = host_boot (host_new_boot ());
  again = *x;
  again.garble = x->garble || how == SIMDISK_GARBLE;
  again.depth++;
  if (again.depth < MAX_DEPTH)
    x->answer[x->n] = recover_crashing (&again, after, &again);
  else
    x->answer[x->n] = torture_recover (after, NULL);
  (void) torture_match_answer (x->life, after, x->e, &x->answer[x->n], again.garble);
  x->n++;
  x->undecided += undecided;
  host_boot (boot);
  simdisk_free (after);
}

void
torture_same_answer (const struct answer *a, const struct answer *b, const char *what)
{
  MUST (a->code == b->code && a->id == b->id &&
        (a->code != MCEXIT_DONE || a->generation == b->generation),
        "%s: code %d, checkpoint %llu, generation %llu %s; then code %d, checkpoint %llu, generation %llu %s",
        what, a->code, (unsigned long long) a->id,
        (unsigned long long) a->generation, a->text, b->code,
        (unsigned long long) b->id, (unsigned long long) b->generation,
        b->text);
}

/* Recover DISK, and what crashes of that leave. */
static struct answer
recover_crashing (const struct nested *from, struct simdisk *disk,
                  struct nested *x)
{
  struct answer a;

  if (x != from)
    *x = *from;
  x->disk = disk;
  x->n = x->undecided = x->syncs = 0;
  simdisk_hook (disk, on_nested_op, x);
  a = torture_recover (disk, NULL);
  simdisk_hook (disk, NULL, NULL);
  (void) torture_match_answer (x->life, disk, x->e, &a, x->garble);
  for (unsigned i = x->undecided; i < x->n; i++)
    torture_same_answer (&x->answer[i], &a, "recovery that crashed");
  return a;
}

/* Once more, and after another power loss: nothing changes. */
static void
again (const struct life *life, struct simdisk *disk, const struct expect *e,
       const struct outcome *o, const struct answer *first, bool garble)
{
  struct simdisk *after = host_below (2) ? disk :
    simdisk_crash (disk, SIMDISK_NONE, host_bits);
  struct answer second;

  host_boot (host_new_boot ());
  second = torture_recover (after, host_below (8) ? NULL : "1999-01-01 12:00");
  if (second.code == MCEXIT_REFUSED && first->code == MCEXIT_DONE)
    second = torture_recover (after, NULL);
  torture_same_answer (first, &second, "recovered again");
  if (o->base)
    MUST (torture_images (life, after, e, o, garble),
          "recovered to checkpoint %llu again: the images have changed",
          (unsigned long long) o->id);
  if (after != disk)
    simdisk_free (after);
}

/* To any checkpoint that is offered. */
static void
choose (const struct life *life, struct simdisk *disk, const struct expect *e,
        bool garble)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR };
  struct journal_checkpoint *list;
  struct outcome o = { .kind = OUTCOME_CHECKPOINT };
  struct answer a;
  char text[32];
  size_t n;

  MUST (recover_list (&p, &list, &n, NULL) == 0, "recover_list: %m");
  if (n > 0) {
    o.id = list[host_below (n)].id;
    o.base = o.id < TORTURE_CHECKPOINTS ? life->known[o.id] : NULL;
    MUST (o.base, "checkpoint %llu is offered, which never was one",
          (unsigned long long) o.id);
    snprintf (text, sizeof text, "%llu", (unsigned long long) o.id);
    a = torture_recover (disk, text);
    MUST (a.code == MCEXIT_DONE && a.id == o.id, "recover --to=%s: code %d: %s",
          text, a.code, a.text);
    MUST (torture_images (life, disk, e, &o, garble),
          "recovered to chosen checkpoint %s, but the images are not it", text);
    again (life, disk, e, &o, &a, garble);
  }
  free (list);
}

/* --- a server that goes on --- */

static void
read_all (const struct life *life, struct replica *r, enum replica_view view,
          struct version *v)
{
  for (unsigned d = 0; d < life->ndisks; d++) {
    struct replica_export x = { .disk = d, .view = view, .fence = r->fence };

    v->disk[d] = malloc (life->size[d]);
    MUST (replica_pread (r, &x, v->disk[d], life->size[d], 0) == 0,
          "reading disk %u after a crash: %m", d);
  }
}

static bool
same_version (const struct life *life, const struct version *a,
              const struct version *b)
{
  for (unsigned d = 0; d < life->ndisks; d++)
    if (memcmp (a->disk[d], b->disk[d], life->size[d]) != 0)
      return false;
  return true;
}

const struct outcome *
torture_find (struct replica *r, const struct expect *e)
{
  for (unsigned i = 0; i < e->n; i++) {
    const struct outcome *o = &e->out[i];

    /* Whether it may have failed is for the caller to say. */
    if (o->kind == OUTCOME_PROMOTED ?
        (r->state == JOURNAL_PROMOTED || r->state == JOURNAL_FAILED) && r->checkpoint.id == o->id :
        r->state != JOURNAL_PROMOTED && (o->kind == OUTCOME_CHECKPOINT ?
                                         r->has_checkpoint && r->checkpoint.id == o->id :
                                         !r->has_checkpoint))
      return o;
  }
  return NULL;
}

const struct outcome *
torture_match (const struct life *life, struct replica *r,
               const struct expect *e)
{
  const struct outcome *o = torture_find (r, e);

  (void) life;
  if (o)
    return o;
  torture_fail ("after a crash the server is %s, checkpoint %llu (%d): %s; outcome 1 of %u would be kind %d, checkpoint %llu",
                replica_state_word (r->state), (unsigned long long) r->checkpoint.id,
                r->has_checkpoint, r->reason, e->n, e->out[0].kind,
                (unsigned long long) e->out[0].id);
}

const struct outcome *
torture_promoted (const struct life *life, const struct version *got, const struct expect *e,
                  const struct outcome *o, bool garble)
{
  for (unsigned i = 0; i < e->n; i++)
    if (e->out[i].kind == OUTCOME_PROMOTED && e->out[i].id == o->id &&
        torture_contents (life, got, e, &e->out[i], garble))
      return &e->out[i];
  return NULL;
}

static void
go_on (const struct life *life, struct simdisk *disk, const struct expect *e,
       enum simdisk_crash how)
{
  bool garble = e->garbled || how == SIMDISK_GARBLE;
  struct nested x = { .life = life, .disk = disk, .e = e, .garble = garble };
  const struct outcome *o;
  struct outcome end;
  struct replica *r;
  struct expect then = { .n = 1 };
  struct version got = { { NULL }, NULL };
  struct replica_export inlet = { .view = REPLICA_INLET };
  struct commit_answer committed;
  struct journal_usage usage;
  struct answer a;
  uint8_t block[1000];
  bool refused = false;

  if (host_below (2))
    catalog_look (life, disk);
  if (host_below (4) == 0)
    simdisk_hook (disk, on_nested_op, &x);
  r = torture_open (life, disk, false);
  simdisk_hook (disk, NULL, NULL);
  o = torture_match (life, r, e);
  end = *o;

  MUST (r->state != JOURNAL_FAILED, "after a crash the server has failed: %s", r->reason);
  switch (r->state) {
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    MUST (e->clean != CLEAN_NO, "speculation was lost, and the server goes on");
    read_all (life, r, REPLICA_INLET, &got);
    MUST (same_version (life, &got, e->saved), "what a clean stop saved is not what is read");
    MUST (speculation_open_number (r->spec) == e->open_epoch,
          "epoch %llu is open, and was %llu at the clean stop",
          (unsigned long long) speculation_open_number (r->spec),
          (unsigned long long) e->open_epoch);
    break;
  case JOURNAL_STALE:
    MUST (e->clean != CLEAN_YES, "stopped cleanly, and then stale: %s", r->reason);
    if (!r->has_checkpoint)
      break;
    MUST (replica_resync (r, false, NULL) == 0, "resync: %m");
    break;
  case JOURNAL_PROMOTED:
    read_all (life, r, REPLICA_PROMOTED, &got);
    o = torture_promoted (life, &got, e, o, garble);
    MUST (o, "the promoted disk is not what it was");
    end = *o;
    break;
  case JOURNAL_SYNCING:
    MUST (e->clean != CLEAN_NO || how == SIMDISK_KILL,
          "parts of the first copy may be lost, and the server goes on");
    break;
  case JOURNAL_FAILED:
    break;
  }
  if (host_below (2) && r->has_checkpoint && r->state != JOURNAL_PROMOTED) {
    /* One more checkpoint, on top of what is there. */
    inlet.fence = r->fence;
    if (got.disk[0] == NULL)
      read_all (life, r, REPLICA_INLET, &got);
    for (unsigned i = host_below (4); i > 0; i--) {
      uint32_t len = MIN (1 + host_below (sizeof block), life->size[0]);
      uint64_t off = host_below (life->size[0] - len + 1);

      torture_fill (block, len, host_bits ());
      if (replica_pwrite (r, &inlet, block, len, off, 0) == -1) {
        refused = true;
        break;
      }
      memcpy (got.disk[0] + off, block, len);
    }
    if (refused) {              /* a journal that was full when the host died still is */
      journal_get_usage (r->journal, &usage);
      MUST (errno == ENOSPC && usage.available < 4 * JOURNAL_CHUNK && r->state == JOURNAL_STALE,
            "write: %m, %llu bytes available, %s", (unsigned long long) usage.available,
            replica_state_word (r->state));
    }
    else {
      MUST (replica_commit (r, &(struct commit_request) { 0 }, &committed, NULL)
            == 0, "commit: %m");
      end = (struct outcome) { OUTCOME_CHECKPOINT, committed.checkpoint, &got };
    }
  }
  while (host_below (3) && !writeout_is_empty (r->wo))
    MUST (writeout_step (r) == 0, "write-out: %m");
  if (host_below (2)) {
    house_step (r);
    catalog_match (life, disk, r);
  }
  replica_close (r);

  host_boot (host_new_boot ());
  then.out[0] = end;
  if (end.kind == OUTCOME_ABSENT)
    then.out[0].kind = OUTCOME_NONE;
  if (end.kind == OUTCOME_PROMOTED) {
    then.late = e->late;
    then.nlate = e->nlate;
  }
  a = torture_recover (disk, NULL);
  (void) torture_match_answer (life, disk, &then, &a, garble);
  for (unsigned d = 0; d < TORTURE_DISKS; d++)
    free (got.disk[d]);
}

/* The catalog alone: it opens, or is made anew, and a server fills it. */
static void
catalog_only (const struct life *life, struct simdisk *disk,
              const struct expect *e, enum simdisk_crash how)
{
  struct replica *r;

  if (host_below (4) == 0)
    catalog_look (life, disk);
  r = torture_open (life, disk, false);
  (void) torture_match (life, r, e);
  house_step (r);
  catalog_match (life, disk, r);
  r->by_hand = false;           /* killed */
  replica_close (r);
  (void) how;
}

void
torture_check (const struct life *life, struct simdisk *disk,
               const struct expect *e, enum simdisk_crash how,
               const char *path)
{
  unsigned dice = host_below (64);
  bool garble = e->garbled || how == SIMDISK_GARBLE;
  struct nested x = { .life = life, .e = e, .garble = garble };
  const struct outcome *o;
  struct answer a;

  if (strstr (path, "/catalog") && dice < 48) {
    __atomic_add_fetch (&torture_states, 1, __ATOMIC_RELAXED);
    catalog_only (life, disk, e, how);
    return;
  }
  if (dice < 4) {
    __atomic_add_fetch (&torture_states, 1, __ATOMIC_RELAXED);
    go_on (life, disk, e, how);
    return;
  }
  if (dice < 8 && e->n == 1 && e->out[0].kind == OUTCOME_CHECKPOINT) {
    choose (life, disk, e, garble);
    return;
  }
  a = dice < 12 ? recover_crashing (&x, disk, &x) : torture_recover (disk, NULL);
  o = torture_match_answer (life, disk, e, &a, garble);
  if (dice < 32)
    again (life, disk, e, o, &a, garble);
}
