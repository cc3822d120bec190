/* SPDX-License-Identifier: BSD-3-Clause */
/* One life of a replica: random requests, each of which first notes what it may make of the
 * replica and afterwards, if it was acknowledged, what it has.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "unit/torture.h"

#define JOURNAL_SIZE (UINT64_C (16) << 20)
#define FAULT_LASTS 60          /* operations: for ever */

struct blob {
  struct blob *next;
  uint8_t data[];
};

const struct life *torture_now;
const char *torture_doing = "", *torture_test = "";

static uint64_t
rnd (struct life *l, uint64_t n)
{
  uint64_t z = l->rng += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return (z ^ z >> 31) % n;
}

void
torture_fill (void *buf, size_t len, uint64_t stamp)
{
  for (size_t i = 0; i < len; i += 8) {
    uint64_t v = stamp + i * UINT64_C (0x100000001b3);

    memcpy ((char *) buf + i, &v, MIN ((size_t) 8, len - i));
  }
}

/* --- versions, expectations --- */

static struct version *
version_copy (struct life *l, const struct version *from)
{
  struct version *v = calloc (1, sizeof *v);

  assert (v);
  for (unsigned d = 0; d < l->ndisks; d++) {
    v->disk[d] = calloc (1, l->size[d]);
    assert (v->disk[d]);
    if (from)
      memcpy (v->disk[d], from->disk[d], l->size[d]);
  }
  v->next = l->versions;
  l->versions = v;
  return v;
}

static void
now_is (struct life *l, const struct version *v)
{
  for (unsigned d = 0; d < l->ndisks; d++)
    memcpy (l->now->disk[d], v->disk[d], l->size[d]);
}

/* Nothing is in flight. */
static void
settle (struct life *l, enum clean clean)
{
  SCOPED_LOCK (&l->lock);

  l->expect.out[0] = l->cur;
  l->expect.n = 1;
  l->expect.late = l->late;
  l->expect.nlate = l->nlate;
  l->expect.clean = clean;
}

/* A request begins. */
static void
begin (struct life *l, const char *doing)
{
  SCOPED_LOCK (&l->lock);

  torture_doing = doing;
  if (getenv ("TORTURE_LOG"))
    fprintf (stderr, "%s: kind %d id %" PRIu64 ", %u late, %s\n", doing, l->cur.kind,
             l->cur.id, l->nlate, replica_state_word (l->r->state));
  if (l->expect.clean == CLEAN_YES)
    l->expect.clean = CLEAN_MAYBE;
}

/* It may have this outcome. */
static void
perhaps (struct life *l, struct outcome o)
{
  SCOPED_LOCK (&l->lock);

  /* Failures may pile up: then the one before the last is no more than the one before it. */
  if (l->expect.n == 4)
    l->expect.n = 3;
  l->expect.out[l->expect.n++] = o;
}

/* Is a request allowed to fail? */
static bool
faulty (const struct life *l)
{
  return l->p.fail_at != 0;
}

static enum journal_replica_state
state_of (struct life *l)
{
  SCOPED_LOCK (&l->r->lock);

  return l->r->state;
}

/* It failed. */
static void
failed (struct life *l)
{
  enum journal_replica_state state = state_of (l);
  struct journal_usage usage;

  if (faulty (l))
    return;
  journal_get_usage (l->r->journal, &usage);
  MUST (errno == ENOSPC && usage.available < 4 * JOURNAL_CHUNK, "failed: %m (%s: %s)",
        replica_state_word (state), l->r->reason);
}

static uint64_t
open_number (struct life *l)
{
  SCOPED_LOCK (&l->r->lock);

  return speculation_open_number (l->r->spec);
}

/* --- crashes --- */

static void
on_op (void *opaque, enum simdisk_op op)
{
  static __thread bool seeded;
  struct life *l = opaque;
  unsigned n = op == SIMDISK_SYNC ? 2 : 1;
  struct simdisk *after[2];
  enum simdisk_crash how[2];
  struct expect e;
  int saved = errno;
  unsigned boot;

  if (!seeded && l->p.threads) {
    static _Atomic uint64_t threads;

    host_seed (l->p.seed + ++threads);
  }
  seeded = true;
  {
    SCOPED_LOCK (&l->lock);
    e = l->expect;
    for (unsigned i = 0; i < n; i++) {
      how[i] = host_below (SIMDISK_HOWS);
      after[i] = simdisk_crash (l->disk, how[i], host_bits);
    }
  }
  for (unsigned i = 0; i < n; i++) {
    boot = host_boot (how[i] == SIMDISK_KILL ? l->boot : host_new_boot ());
    torture_check (l, after[i], &e, how[i]);
    host_boot (boot);
    simdisk_free (after[i]);
  }
  errno = saved;
}

/* For ever is long enough. */
static void
on_fault_op (void *opaque, enum simdisk_op op)
{
  struct life *l = opaque;

  (void) op;
  if (simdisk_ops (l->disk) > l->p.fail_at + FAULT_LASTS)
    simdisk_fail (l->disk, 0, 0, false);
}

static void
hook (struct life *l)
{
  simdisk_hook (l->disk, l->p.crash ? on_op : l->p.fail_sticky ? on_fault_op : NULL, l);
}

/* --- requests --- */

static struct replica_export
inlet (struct life *l, unsigned disk)
{
  SCOPED_LOCK (&l->r->lock);

  return (struct replica_export) {
    .disk = disk, .fence = l->r->fence,
    .view = l->cur.kind == OUTCOME_PROMOTED ? REPLICA_PROMOTED : REPLICA_INLET };
}

static void
pick (struct life *l, unsigned *disk, uint64_t *off, uint32_t *len)
{
  static const uint32_t grain[] = { 1, 512, 4096, 4096 };
  uint32_t g = grain[rnd (l, 4)];
  uint64_t size = l->size[*disk = rnd (l, l->ndisks)];

  *off = ROUND_DOWN (rnd (l, size), (uint64_t) g);
  *len = 1 + rnd (l, MIN (size - *off, rnd (l, 8) ? UINT64_C (12000) : UINT64_C (70000)));
  if (*len > g)
    *len = ROUND_DOWN (*len, g);
  if (rnd (l, 20) == 0) {
    *len = 1 + rnd (l, MIN (size, UINT64_C (3000)));
    *off = size - *len;
  }
}

/* Flushed: what was written to DISK is there to stay. */
static void
flushed (struct life *l, unsigned disk)
{
  struct version *base = version_copy (l, l->cur.base);
  struct late *rest = calloc (TORTURE_LATE, sizeof *rest);
  struct blob *b = malloc (sizeof *b);
  unsigned n = 0;

  assert (rest && b);
  memcpy (base->disk[disk], l->now->disk[disk], l->size[disk]);
  for (unsigned i = 0; i < l->nlate; i++)
    if (l->late[i].disk != disk || l->late[i].failed)
      rest[n++] = l->late[i];
  /* Others may look at the old list: it stays until the end. */
  b->next = l->blobs;
  l->blobs = b;
  l->late = rest;
  l->nlate = n;
  l->cur.base = base;
  settle (l, CLEAN_NO);
}

static void
add_late (struct life *l, unsigned disk, uint64_t off, uint32_t len,
          const uint8_t *data)
{
  struct blob *b = malloc (sizeof *b + len);

  assert (b && l->nlate < TORTURE_LATE);
  if (data)
    memcpy (b->data, data, len);
  b->next = l->blobs;
  l->blobs = b;
  SCOPED_LOCK (&l->lock);
  l->late[l->nlate++] = (struct late) { disk, off, len, data ? b->data : NULL, false };
  l->expect.late = l->late;
  l->expect.nlate = l->nlate;
}

static void
step_flush (struct life *l, unsigned disk)
{
  struct replica_export x = inlet (l, disk);

  begin (l, "flushing");
  if (replica_flush (l->r, &x) == -1)
    failed (l);
  else if (l->cur.kind == OUTCOME_PROMOTED)
    flushed (l, disk);
}

static void
refused_write (struct life *l)
{
  enum journal_replica_state state;

  if (!l->hole)
    failed (l);
  if (l->cur.kind == OUTCOME_PROMOTED)
    return;
  l->hole = true;
  state = state_of (l);
  MUST (state == JOURNAL_STALE || state == JOURNAL_FAILED,
        "a write was refused, and the replica is %s", replica_state_word (state));
}

static void
step_write_at (struct life *l, unsigned disk, uint64_t off, uint32_t len,
               unsigned kind)
{
  static uint8_t buf[256 << 10];
  struct replica_export x = inlet (l, disk);
  bool promoted = l->cur.kind == OUTCOME_PROMOTED;
  unsigned flags = rnd (l, 10) == 0 ? REPLICA_FUA : 0;
  int result;

  if (promoted && l->nlate == TORTURE_LATE)
    step_flush (l, disk);
  if (promoted && l->nlate == TORTURE_LATE)
    return;
  begin (l, kind ? "zeroing" : "writing");
  if (kind == 0)
    torture_fill (buf, len, rnd (l, UINT64_MAX));
  if (promoted)
    add_late (l, disk, off, len, kind ? NULL : buf);
  if (kind == 0)
    result = replica_pwrite (l->r, &x, buf, len, off, flags);
  else
    result = replica_zero (l->r, &x, len, off, flags |
                           (kind == 2 ? REPLICA_MAY_TRIM : 0));
  if (promoted && result == -1) {
    SCOPED_LOCK (&l->lock);
    l->late[l->nlate - 1].failed = true;
    l->hole = true;             /* NOW is not what is read */
  }
  if (result == -1) {
    refused_write (l);
    return;
  }
  if (kind == 0)
    memcpy (l->now->disk[disk] + off, buf, len);
  else
    memset (l->now->disk[disk] + off, 0, len);
  if (promoted && flags && !l->hole)
    flushed (l, disk);
  else {
    SCOPED_LOCK (&l->lock);
    l->expect.clean = CLEAN_NO;
  }
}

static void
step_write (struct life *l)
{
  unsigned disk, kind = rnd (l, 8);
  uint64_t off;
  uint32_t len;

  pick (l, &disk, &off, &len);
  step_write_at (l, disk, off, len, kind > 2 ? 0 : kind);
}

static void
step_read (struct life *l)
{
  static uint8_t buf[70000];
  struct replica_export x;
  unsigned disk;
  uint64_t off;
  uint32_t len;

  pick (l, &disk, &off, &len);
  if (l->hole)
    return;
  torture_doing = "reading";
  x = inlet (l, disk);
  MUST (replica_pread (l->r, &x, buf, len, off) == 0, "read: %m");
  MUST (memcmp (buf, l->now->disk[disk] + off, len) == 0,
        "disk %u, %" PRIu64 "+%u does not read as it was written", disk, off, len);
}

/* A verb; KEY's number of its answer goes to *NUMBER. */
static int
control (struct life *l, const char *line, const char *key, uint64_t *number)
{
  char *reply;
  int result = replica_control (l->r, true, line, strlen (line), &reply);
  json_t *json = json_loads (reply, 0, NULL), *v;
  int saved = errno;

  MUST (json, "%s: %s", line, reply);
  v = json_object_get (json, result == 0 ? key : "code");
  MUST (json_is_integer (v), "%s: %s", line, reply);
  *number = json_integer_value (v);
  json_decref (json);
  free (reply);
  errno = saved;
  return result;
}

static void
step_seal (struct life *l)
{
  uint64_t sealed;

  if (l->nsealed == 8)
    return;
  begin (l, "sealing");
  if (control (l, "seal", "sealed", &sealed) == -1) {
    failed (l);
    /* As if it had been: no number is given out again. */
    l->hole = true;
    return;
  }
  MUST (sealed > l->newest_epoch, "epoch %" PRIu64 " again", sealed);
  l->newest_epoch = sealed;
  l->sealed[l->nsealed].epoch = sealed;
  l->sealed[l->nsealed++].v = version_copy (l, l->now);
  SCOPED_LOCK (&l->lock);
  l->expect.clean = CLEAN_NO;
}

static void
drop_sealed (struct life *l, uint64_t upto)
{
  unsigned n = 0;

  for (unsigned i = 0; i < l->nsealed; i++)
    if (l->sealed[i].epoch > upto)
      l->sealed[n++] = l->sealed[i];
  l->nsealed = n;
}

static void
step_commit (struct life *l)
{
  unsigned i = rnd (l, l->nsealed + 1);
  struct outcome o = { .kind = OUTCOME_CHECKPOINT };
  char line[100] = "commit label=a checkpoint";
  uint64_t number;

  begin (l, "committing");
  if (i < l->nsealed) {
    o.id = l->sealed[i].epoch;
    o.base = l->sealed[i].v;
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, o.id);
  }
  else {
    o.id = open_number (l);
    o.base = version_copy (l, l->now);
  }
  MUST (o.id < TORTURE_CHECKPOINTS, "too many epochs for the test");
  if (!l->hole) {
    l->known[o.id] = o.base;
    perhaps (l, o);
  }
  if (control (l, line, "checkpoint", &number) == -1) {
    MUST (number == MCEXIT_REFUSED, "%s: code %" PRIu64, line, number);
    if (!l->hole)
      failed (l);
    l->hole = true;
    return;
  }
  MUST (!l->hole, "checkpoint %" PRIu64 " of a stream with a hole was acknowledged", number);
  MUST (number == o.id, "%s: checkpoint %" PRIu64 ", not %" PRIu64, line, number, o.id);
  l->newest_epoch = MAX (l->newest_epoch, o.id);
  drop_sealed (l, o.id);
  l->cur = o;
  settle (l, CLEAN_NO);
}

/* What must be refused, or changes nothing. */
static void
step_nonsense (struct life *l)
{
  char line[100];
  uint64_t number;

  torture_doing = "asking for nonsense";
  switch (rnd (l, 3)) {
  case 0:
    if (state_of (l) != JOURNAL_PROTECTED)
      return;
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, l->cur.id);
    MUST (control (l, line, "checkpoint", &number) == 0 && number == l->cur.id,
          "%s again: %" PRIu64, line, number);
    break;
  case 1:
    MUST (control (l, "commit generation=77", "checkpoint", &number) == -1 &&
          number == MCEXIT_REFUSED, "commit of another generation");
    break;
  default:
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, open_number (l));
    MUST (control (l, line, "checkpoint", &number) == -1 && number == MCEXIT_REFUSED,
          "%s, which is open", line);
  }
}

static void
new_stream (struct life *l, const struct version *v)
{
  l->newest_epoch = MAX (l->newest_epoch, open_number (l) - 1);
  l->nsealed = 0;
  l->hole = false;
  if (v)
    now_is (l, v);
}

static void
step_promote (struct life *l)
{
  struct journal_checkpoint list[16];
  size_t n = MIN (journal_checkpoints (l->r->journal, list, 16), (size_t) 16);
  struct outcome o = { OUTCOME_PROMOTED, l->cur.id, l->cur.base };
  char line[64] = "promote";
  uint64_t number;

  begin (l, "promoting");
  if (n > 0 && rnd (l, 2)) {
    o.id = list[rnd (l, n)].id;
    o.base = l->known[o.id];
    MUST (o.base, "checkpoint %" PRIu64 " is listed, which never was one", o.id);
    snprintf (line, sizeof line, "promote to=%" PRIu64, o.id);
  }
  perhaps (l, o);
  if (control (l, line, "checkpoint", &number) == -1) {
    /* Write-out may have passed what was chosen. */
    if (!l->p.threads || strcmp (line, "promote") == 0)
      failed (l);
    return;
  }
  MUST (number == o.id, "%s: checkpoint %" PRIu64, line, number);
  new_stream (l, o.base);
  l->late = calloc (TORTURE_LATE, sizeof *l->late);
  assert (l->late);
  l->nlate = 0;
  l->cur = o;
  settle (l, CLEAN_NO);
}

static void
step_resync (struct life *l)
{
  uint64_t number;

  begin (l, "resyncing");
  if (control (l, "resync", "generation", &number) == -1) {
    failed (l);
    return;
  }
  new_stream (l, l->cur.base);
  settle (l, CLEAN_NO);
}

/* A new first copy: all of it. */
static void
step_overwrite (struct life *l)
{
  uint64_t number;

  begin (l, "resyncing in place");
  perhaps (l, (struct outcome) { .kind = OUTCOME_NONE });
  if (control (l, "resync overwrite", "generation", &number) == -1) {
    failed (l);
    return;
  }
  l->cur = (struct outcome) { .kind = OUTCOME_NONE };
  l->late = NULL;
  l->nlate = 0;
  memset (l->known, 0, sizeof l->known);
  new_stream (l, NULL);
  settle (l, CLEAN_NO);
  for (unsigned d = 0; d < l->ndisks; d++)
    for (uint64_t off = 0; off < l->size[d] && !l->hole; ) {
      uint32_t len = MIN (l->size[d] - off, 1 + rnd (l, 150000));

      step_write_at (l, d, off, len, rnd (l, 3));
      off += len;
    }
}

static void
step_writeout (struct life *l)
{
  struct replica *r = l->r;

  torture_doing = "writing out";
  if (l->p.threads)
    return;
  MUST (writeout_step (r) == 0 || faulty (l), "write-out: %m (%s)", r->wo_error);
}

static void
step_chores (struct life *l)
{
  struct io_file *file;

  torture_doing = "doing chores";
  if (rnd (l, 2)) {
    enum journal_replica_state state = state_of (l);

    if (!l->r->clean && (state == JOURNAL_SYNCING || state == JOURNAL_PROTECTED ||
                         state == JOURNAL_RESYNCING))
      MUST (replica_prepare_seal (l->r) == 0 || faulty (l), "prepare: %m");
  }
  else if (io_open (simdisk_fs (l->disk), TORTURE_DIR "/acked", O_RDWR, 0, &file) == 0) {
    (void) io_fdatasync (file);
    io_close (file);
  }
}

static void
step (struct life *l)
{
  enum journal_replica_state state = state_of (l);
  struct journal_usage usage;
  unsigned dice = rnd (l, 1000);

  if (state == JOURNAL_FAILED) {
    MUST (faulty (l), "failed: %s", l->r->reason);
    dice < 500 ? step_write (l) : step_commit (l);
    return;
  }
  if (state == JOURNAL_PROMOTED) {
    if (dice < 550)
      step_write (l);
    else if (dice < 700)
      step_read (l);
    else if (dice < 800)
      step_flush (l, rnd (l, l->ndisks));
    else if (dice < 950)
      step_writeout (l);
    else if (dice < 965)
      step_overwrite (l);
    else
      step_chores (l);
    return;
  }
  if (state == JOURNAL_STALE) {
    l->hole = true;
    if (dice < 150)
      step_write (l);
    else if (dice < 250)
      step_commit (l);
    else if (l->cur.kind == OUTCOME_NONE || dice < 350)
      step_overwrite (l);
    else if (dice < 450)
      step_promote (l);
    else
      step_resync (l);
    return;
  }
  if (l->hole) {                /* a fault left something undone, but no hole */
    step_overwrite (l);
    return;
  }
  journal_get_usage (l->r->journal, &usage);
  if (usage.available < 5 * JOURNAL_CHUNK && rnd (l, 60)) {
    if (l->p.threads || writeout_is_empty (l->r->wo))
      step_commit (l);
    step_writeout (l);
  }
  if (dice < 480)
    step_write (l);
  else if (dice < 560)
    step_read (l);
  else if (dice < 650)
    step_seal (l);
  else if (dice < 830)
    step_commit (l);
  else if (dice < 930)
    step_writeout (l);
  else if (dice < 960)
    step_chores (l);
  else if (dice < 975)
    step_nonsense (l);
  else if (dice < 980 && l->cur.kind != OUTCOME_NONE)
    step_promote (l);
  else if (dice < 990 && l->cur.kind != OUTCOME_NONE)
    step_resync (l);
  else if (dice < 993)
    step_overwrite (l);
  else
    step_flush (l, rnd (l, l->ndisks));
}

/* --- life --- */

static void
on_log (void *opaque, enum replica_log_level level, const char *line)
{
  struct life *l = opaque;

  if (level == REPLICA_LOG_ERROR)
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

  if (disk == l->disk) {
    p.log = on_log;
    p.log_opaque = (void *) (uintptr_t) l;
  }
  for (unsigned i = 0; i < l->ndisks; i++)
    d[i] = (struct replica_disk_params) { .name = name[i], .path = l->path[i],
                                          .create = true, .size = l->size[i] };
  if (replica_open (&p, &r, &err) == -1) {
    MUST (faulty (l) && disk == l->disk, "cannot open: %s", err.text);
    return NULL;
  }
  if (threads)
    MUST (replica_run (r) == 0, "cannot run: %m");
  else
    r->by_hand = true;
  return r;
}

/* The server came up: whatever was in flight is decided now. */
static bool
come_up (struct life *l, enum simdisk_crash how)
{
  const struct expect e = l->expect;
  const struct outcome *o;
  struct version got;

  torture_doing = "opening";
  l->log_error = false;
  l->r = torture_open (l, l->disk, l->p.threads);
  if (l->r == NULL)
    return false;
  o = torture_match (l, l->r, &e);
  l->cur = *o;
  if (o->kind == OUTCOME_ABSENT)
    l->cur.kind = OUTCOME_NONE;
  MUST (open_number (l) > l->newest_epoch, "epoch %" PRIu64 " is open, %" PRIu64 " was given out before",
        open_number (l), l->newest_epoch);
  switch (state_of (l)) {
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
    MUST (e.clean != CLEAN_YES, "stopped cleanly, and then stale: %s", l->r->reason);
    l->hole = true;
    l->nsealed = 0;
    break;
  case JOURNAL_PROMOTED:
    for (unsigned d = 0; d < l->ndisks; d++) {
      struct replica_export x = inlet (l, d);

      got.disk[d] = l->now->disk[d];
      if (replica_pread (l->r, &x, got.disk[d], l->size[d], 0) == -1) {
        MUST (faulty (l), "reading the promoted disk: %m");
        return true;
      }
    }
    MUST (torture_contents (l, &got, &e, o, l->garbled),
          "the promoted disk is not what it was");
    if (l->late == NULL)
      l->late = calloc (TORTURE_LATE, sizeof *l->late);
    for (unsigned d = 0; d < l->ndisks; d++) {
      if (faulty (l))
        ;                       /* a cache that a failed sync left may promise too much */
      else if (e.nlate > 0)
        step_flush (l, d);
      else
        l->cur.base = version_copy (l, l->now);
    }
    break;
  case JOURNAL_FAILED:
    MUST (faulty (l), "failed: %s", l->r->reason);
    return true;
  }
  l->garbled = false;
  /* Whether the mark was to be there or only might have been: now it is known. */
  settle (l, e.clean != CLEAN_NO && l->r->clean ? CLEAN_YES : CLEAN_NO);
  return true;
}

static void
stop (struct life *l)
{
  enum journal_replica_state state = state_of (l);
  bool worth = state != JOURNAL_STALE && state != JOURNAL_FAILED && !l->hole;

  torture_doing = "stopping";
  if (worth) {
    const struct version *saved = version_copy (l, l->now);
    SCOPED_LOCK (&l->lock);
    l->expect.saved = saved;
    l->expect.open_epoch = open_number (l);
    if (l->expect.clean != CLEAN_YES)
      l->expect.clean = CLEAN_MAYBE;
  }
  replica_close (l->r);
  l->r = NULL;
  if (worth && !l->log_error) {
    if (l->cur.kind == OUTCOME_PROMOTED)
      for (unsigned d = 0; d < l->ndisks; d++)
        flushed (l, d);
    SCOPED_LOCK (&l->lock);
    l->expect.clean = CLEAN_YES;
  }
}

/* The power is lost.  The disk of before, and its server, are left behind. */
static enum simdisk_crash
crash (struct life *l)
{
  enum simdisk_crash how = rnd (l, SIMDISK_HOWS);
  struct simdisk *after;

  after = simdisk_crash (l->disk, how, host_bits);

  simdisk_hook (l->disk, NULL, NULL);
  simdisk_fail (l->disk, 0, 0, false);
  replica_close (l->r);
  l->r = NULL;
  simdisk_free (l->disk);
  l->disk = after;
  l->garbled = how == SIMDISK_GARBLE;
  simdisk_short (l->disk, l->p.short_len);
  if (how != SIMDISK_KILL) {
    l->boot = host_new_boot ();
    host_boot (l->boot);
  }
  return how;
}

static void
life_begin (struct life *l, const struct life_params *p)
{
  *l = (struct life) { .p = *p, .rng = p->seed };
  pthread_mutex_init (&l->lock, NULL);
  host_seed (p->seed * 77);
  host_reset (p->seed, !p->threads);
  l->ndisks = 1 + rnd (l, TORTURE_DISKS);
  for (unsigned d = 0; d < l->ndisks; d++) {
    l->size[d] = rnd (l, 4) ? 30000 + rnd (l, 100000) : 4096 * (1 + rnd (l, 60));
    snprintf (l->path[d], sizeof l->path[d], "/sim/%u.img", d);
  }
  l->now = version_copy (l, NULL);
  l->disk = simdisk_new ();
  simdisk_short (l->disk, p->short_len);
  simdisk_no_zero (l->disk, rnd (l, 2));
  if (p->fail_at)
    simdisk_fail (l->disk, p->fail_at, p->fail_error, p->fail_sticky);
  simdisk_torn (l->disk, rnd (l, 2));
  l->cur = (struct outcome) { .kind = OUTCOME_ABSENT };
  l->expect.saved = version_copy (l, NULL);
  l->expect.open_epoch = 1;
  settle (l, CLEAN_YES);
  perhaps (l, (struct outcome) { .kind = OUTCOME_NONE });
  torture_now = l;
  hook (l);
}

static void
life_end (struct life *l)
{
  enum simdisk_crash how;

  torture_doing = "ending";
  if (l->r && rnd (l, 3) == 0)
    stop (l);
  how = crash (l);
  torture_check (l, l->disk, &l->expect, how);
  simdisk_free (l->disk);
  l->disk = NULL;
  torture_now = NULL;
  while (l->versions) {
    struct version *v = l->versions;

    l->versions = v->next;
    for (unsigned d = 0; d < l->ndisks; d++)
      free (v->disk[d]);
    free (v);
  }
  while (l->blobs) {
    struct blob *b = l->blobs;

    l->blobs = b->next;
    free (b);
  }
  free (l->late);
  pthread_mutex_destroy (&l->lock);
}

uint64_t
torture_life (const struct life_params *p)
{
  static struct life life;
  struct life *l = &life;
  enum simdisk_crash how = SIMDISK_KILL;
  uint64_t ops;

  life_begin (l, p);
  for (unsigned lap = 0; lap < p->laps; lap++) {
    if (lap > 0) {
      unsigned dice = rnd (l, 4);

      if (dice < 2 || faulty (l))
        stop (l);
      if (dice > 0 && !faulty (l))
        how = crash (l);
      hook (l);
    }
    if (!come_up (l, how))
      break;
    for (unsigned i = 0; i < p->steps; i++)
      step (l);
  }
  ops = simdisk_ops (l->disk);
  life_end (l);
  return ops;
}
