/* SPDX-License-Identifier: BSD-3-Clause */
/* One life of a replica: servers start, work, stop or lose their power. */
#include "config.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

#define JOURNAL_SIZE (UINT64_C (16) << 20)
#define DEADLINE 240            /* seconds that one life may take, on a busy machine */

const struct life *torture_now;
const char *torture_doing = "", *torture_test = "";

/* --- hangs --- */

static void
on_alarm (int sig)
{
  (void) sig;
  torture_fail ("it hangs");
}

void
torture_alarm (void)
{
  struct sigaction sa = { .sa_handler = on_alarm };

  if (sigaction (SIGALRM, &sa, NULL) == -1)
    abort ();
  alarm (DEADLINE);
}

/* --- crashes --- */

static void
on_op (void *opaque, enum simdisk_op op)
{
  static __thread bool seeded;
  struct life *l = opaque;
  unsigned n = l->p.subsets ? l->p.subsets : op == SIMDISK_SYNC ? 2 : 1;
  char path[64];
  int saved = errno;

  if (!seeded && l->p.threads) {
    static _Atomic uint64_t threads;

    host_seed (l->p.seed + ++threads);
  }
  seeded = true;
  snprintf (path, sizeof path, "%s", simdisk_op_path ());
  if (l->p.every > 1 && host_below (l->p.every) != 0)
    n = 0;
  /* Nothing of a scratch is there after a crash. */
  if (torture_is_scratch (path) && host_below (8) != 0)
    n = 0;
  for (unsigned i = 0; i < n; i++) {
    enum simdisk_crash how = host_below (SIMDISK_HOWS);
    struct simdisk *after, *was;
    struct expect e;
    unsigned boot;

    {
      SCOPED_LOCK (&l->lock);
      e = l->expect;
      after = simdisk_crash (l->disk, how, host_bits);
    }
    boot = host_boot (how == SIMDISK_KILL ? l->boot : host_new_boot ());
    was = simvfs_use (after);
    torture_check (l, after, &e, how, path);
    (void) simvfs_use (was);
    host_boot (boot);
    simdisk_free (after);
  }
  if (l->p.meanwhile && life_random (l, l->p.meanwhile) == 0)
    step_meanwhile (l, op);
  errno = saved;
}

static void
hook (struct life *l)
{
  simdisk_hook (l->disk, l->p.crash ? on_op : NULL, l);
}

/* --- servers --- */

static void
on_log (void *opaque, enum replica_log_level level, const char *line)
{
  struct life *l = opaque;

  if (level == REPLICA_LOG_ERROR && strstr (line, "/catalog.sqlite") == NULL)
    l->log_error = true;
  if (getenv ("TORTURE_LOG"))
    fprintf (stderr, "%s\n", line);
}

struct replica *
torture_open (const struct life *l, struct simdisk *disk, bool threads)
{
  static const char *const name[TORTURE_DISKS] = { "vda", "vdb", "vdc" };
  struct replica_disk_params d[TORTURE_DISKS];
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = TORTURE_DIR,
                              .disks = d, .ndisks = l->ndisks,
                              .journal_size = JOURNAL_SIZE,
                              .buffer = UINT64_C (8) << 20 };
  struct mcerror err = { 0 };
  struct replica *r;
  int result;

  /* Some lives keep older checkpoints. */
  if (l->p.seed % 3 == 0)
    p.history.checkpoints = 1 + l->p.seed / 3 % 9;
  if (disk == l->disk) {
    p.log = on_log;
    p.log_opaque = (void *) (uintptr_t) l;
  }
  for (unsigned i = 0; i < l->ndisks; i++)
    d[i] = (struct replica_disk_params) { .name = name[i], .path = l->path[i],
                                          .create = true, .size = l->size[i] };
  result = disk == l->disk ? LIBRARY (replica_open (&p, &r, &err)) :
    replica_open (&p, &r, &err);
  if (result == -1) {
    MUST (fault_excuses (l) && disk == l->disk, "cannot open: %s", err.text);
    MUST (strlen (err.text) > 10 && strchr (err.text, '\n') == NULL && err.code != MCEXIT_DONE,
          "a server that cannot start says \"%s\"", err.text);
    return NULL;
  }
  if (threads)
    MUST (replica_run (r) == 0, "cannot run: %m");
  else
    r->by_hand = true;
  return r;
}

/* A promoted disk is read, and flushed: then it is known what it holds. */
static void
read_promoted (struct life *l, const struct expect *e, const struct outcome *o)
{
  struct version got;

  for (unsigned d = 0; d < l->ndisks; d++) {
    struct replica_export x = life_export (l, d);

    got.disk[d] = l->now->disk[d];
    if (LIBRARY (replica_pread (l->r, &x, got.disk[d], l->size[d], 0)) == -1) {
      MUST (fault_excuses (l), "reading the promoted disk: %m");
      l->hole = true;
      return;
    }
  }
  o = torture_promoted (l, &got, e, o, e->garbled);
  MUST (o, "the promoted disk is not what it was");
  l->cur = *o;
  if (e->n > 1)
    l->scratch_is_disk = CLEAN_MAYBE;
  if (l->late == NULL)
    model_no_late (l);
  for (unsigned d = 0; d < l->ndisks; d++)
    if (l->fault.hit)
      ;                         /* a cache that a failed sync left may promise too much */
    else if (e->nlate > 0)
      step_flush (l, d);
    else
      l->cur.base = version_copy (l, l->now);
}

static bool
is_clean (struct life *l)
{
  SCOPED_LOCK (&l->r->lock);

  return l->r->clean;
}

/* The server came up: whatever was in flight is decided now. */
static bool
come_up (struct life *l, enum simdisk_crash how)
{
  const struct expect e = l->expect;
  const struct outcome *o;

  torture_doing = "opening";
  l->log_error = false;
  l->r = torture_open (l, l->disk, l->p.threads);
  if (l->r == NULL)
    return false;
  l->servers++;
  o = torture_find (l->r, &e);
  /* What cannot be read just now is not shown, but is there for the next server. */
  if (o == NULL && life_state (l) == JOURNAL_FAILED && fault_excuses (l) && e.n == 1)
    o = &e.out[0];
  if (o == NULL)
    o = torture_match (l, l->r, &e);
  l->cur = *o;
  if (o->kind == OUTCOME_ABSENT)
    l->cur.kind = OUTCOME_NONE;
  MUST (life_open_epoch (l) > l->newest_epoch, "epoch %" PRIu64 " is open, %" PRIu64 " was given out before",
        life_open_epoch (l), l->newest_epoch);
  switch (life_state (l)) {
  case JOURNAL_SYNCING:
    MUST (e.clean != CLEAN_NO || how == SIMDISK_KILL,
          "parts of the first copy may be lost, and the server goes on");
    if (e.clean == CLEAN_NO)
      l->nsealed = 0;
    break;
  case JOURNAL_PROTECTED:
  case JOURNAL_RESYNCING:
    MUST (e.clean != CLEAN_NO, "speculation was lost, and the server goes on");
    now_is (l, e.saved);
    break;
  case JOURNAL_STALE:
    MUST (e.clean != CLEAN_YES || fault_excuses (l), "stopped cleanly, and then stale: %s", l->r->reason);
    l->hole = true;
    l->nsealed = 0;
    break;
  case JOURNAL_PROMOTED:
    read_promoted (l, &e, o);
    break;
  case JOURNAL_FAILED:
    MUST (fault_excuses (l), "failed: %s", l->r->reason);
    return true;
  }
  {
    SCOPED_LOCK (&l->lock);
    l->expect.garbled = false;
  }
  /* Whether the mark was to be there or only might have been: now it is known. */
  model_settle (l, e.clean != CLEAN_NO && is_clean (l) ? CLEAN_YES : CLEAN_NO);
  return true;
}

static void
stop (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  bool worth = state != JOURNAL_STALE && state != JOURNAL_FAILED && !l->hole;
  struct mark mark = { NULL, 0 };

  torture_doing = "stopping";
  views_end (l);
  torture_count[COUNT_STOP]++;
  l->nsteps++;
  if (worth) {
    mark = model_mark (l);
    SCOPED_LOCK (&l->lock);
    l->expect.saved = mark.v;
    l->expect.open_epoch = speculation_open_number (l->r->spec);
    if (l->expect.clean != CLEAN_YES)
      l->expect.clean = CLEAN_MAYBE;
  }
  torture_library (true);
  replica_close (l->r);
  torture_library (false);
  l->r = NULL;
  if (worth && !l->log_error) {
    if (l->cur.kind == OUTCOME_PROMOTED)
      for (unsigned d = 0; d < l->ndisks; d++)
        model_flushed (l, d, mark);
    SCOPED_LOCK (&l->lock);
    l->expect.clean = CLEAN_YES;
  }
}

/* The power is lost.  The disk of before, and its server, are left behind. */
static enum simdisk_crash
crash (struct life *l)
{
  enum simdisk_crash how = life_random (l, SIMDISK_HOWS);
  struct simdisk *after = simdisk_crash (l->disk, how, host_bits);

  simdisk_hook (l->disk, NULL, NULL);
  simdisk_fail (l->disk, 0, 0, false);
  simdisk_calls (l->disk, NULL, NULL);
  torture_count[COUNT_CRASH]++;
  l->fault.over = true;
  if (l->r)
    views_end (l);
  replica_close (l->r);
  l->r = NULL;
  simdisk_free (l->disk);
  l->disk = after;
  simvfs_default (after);
  l->expect.garbled = how == SIMDISK_GARBLE;
  simdisk_short (l->disk, l->p.short_len);
  if (how != SIMDISK_KILL) {
    l->boot = host_new_boot ();
    host_boot (l->boot);
  }
  return how;
}

/* --- life --- */

static void
life_begin (struct life *l, const struct life_params *p)
{
  *l = (struct life) { .p = *p, .rng = p->seed };
  torture_alarm ();
  pthread_mutex_init (&l->lock, NULL);
  host_seed (p->seed * 77);
  host_reset (p->seed, !p->threads);
  sqlite3_randomness (0, NULL); /* its stream begins anew, too */
  l->ndisks = 1 + life_random (l, TORTURE_DISKS);
  for (unsigned d = 0; d < l->ndisks; d++) {
    l->size[d] = p->large ? 200000 + life_random (l, 60000) :
      life_random (l, 4) ? 30000 + life_random (l, 100000) : 4096 * (1 + life_random (l, 60));
    snprintf (l->path[d], sizeof l->path[d], "/sim/%u.img", d);
  }
  l->now = version_copy (l, NULL);
  l->disk = simdisk_new ();
  simvfs_default (l->disk);
  simdisk_short (l->disk, p->short_len);
  simdisk_no_zero (l->disk, life_random (l, 2));
  simdisk_no_direct (l->disk, life_random (l, 2));
  simdisk_torn (l->disk, life_random (l, 2));
  l->cur = (struct outcome) { .kind = OUTCOME_ABSENT };
  l->expect.saved = version_copy (l, NULL);
  l->expect.open_epoch = 1;
  model_settle (l, CLEAN_YES);
  model_perhaps (l, (struct outcome) { .kind = OUTCOME_NONE });
  torture_now = l;
  hook (l);
  fault_watch (l);
}

static void
life_end (struct life *l)
{
  enum simdisk_crash how;

  torture_doing = "ending";
  if (l->r && life_random (l, 3) == 0)
    stop (l);
  how = crash (l);
  if (l->p.refault)
    torture_refault (l);
  torture_check (l, l->disk, &l->expect, how, "");
  simdisk_free (l->disk);
  l->disk = NULL;
  simvfs_default (NULL);
  fault_end (l);
  torture_now = NULL;
  model_free (l);
  pthread_mutex_destroy (&l->lock);
}

/* A server that could not start has done no harm: the next one can, once the fault is over. */
static void
start (struct life *l, enum simdisk_crash how)
{
  unsigned tries = 0;

  l->nsteps++;
  while (!come_up (l, tries == 0 ? how : SIMDISK_KILL))
    MUST (++tries < 100, "the server does not start again");
  /* One that hit when it was up already is this server's own. */
  if (l->fault.hit && life_state (l) != JOURNAL_FAILED &&
      (l->fault.over || !l->fault.sticky) &&
      !(l->fault.step == l->nsteps && l->fault.state != 0)) {
    l->fault.state = 0;
    l->fault.past = true;
  }
  l->nsteps++;
}

/* Between two servers; true: there was a next one. */
static enum simdisk_crash
next_server (struct life *l, char how)
{
  enum simdisk_crash crashed = SIMDISK_KILL;

  if (how != 'K')
    stop (l);
  if (how != 'R') {
    crashed = crash (l);
    l->fault.over = l->fault.hit;
    hook (l);
    fault_move (l);
  }
  return crashed;
}

static void
live_script (struct life *l)
{
  start (l, SIMDISK_KILL);
  for (const char *p = l->p.script; *p; p++)
    if (*p == 'R' || *p == 'K' || *p == 'B')
      start (l, next_server (l, *p));
    else
      step_letter (l, *p);
}

static void
live_random (struct life *l)
{
  for (unsigned lap = 0; lap < l->p.laps; lap++) {
    start (l, lap == 0 ? SIMDISK_KILL : next_server (l, "RRBK"[life_random (l, 4)]));
    for (unsigned i = 0; i < l->p.steps; i++)
      step_random (l);
  }
}

static uint64_t
live (struct life *l, const struct life_params *p)
{
  uint64_t ops;

  life_begin (l, p);
  if (p->script)
    live_script (l);
  else
    live_random (l);
  ops = simdisk_ops (l->disk);
  life_end (l);
  return ops;
}

static struct life life;

uint64_t
torture_life (const struct life_params *p)
{
  return live (&life, p);
}

void
torture_trace (const struct life_params *p, struct fault *fault)
{
  struct life_params q = *p;

  q.fault.room = 256;
  q.fault.trace = calloc (q.fault.room, sizeof *q.fault.trace);
  assert (q.fault.trace);
  (void) live (&life, &q);
  *fault = life.fault;
}
