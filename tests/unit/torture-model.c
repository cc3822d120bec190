/* SPDX-License-Identifier: BSD-3-Clause */
/* What the outside world knows of a replica. */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit/torture.h"

struct blob {
  struct blob *next;
  uint8_t data[];
};

uint64_t torture_count[COUNTS];
const char *const torture_count_name[COUNTS] = {
  [COUNT_COMMIT] = "commits", [COUNT_OLDER] = "commits of an older epoch", [COUNT_PROMOTE] = "promotes",
  [COUNT_PROMOTE_OLDER] = "promotes to an older checkpoint", [COUNT_FLUSH] = "flushes of a promoted disk",
  [COUNT_RESYNC] = "resyncs", [COUNT_OVERWRITE] = "resyncs in place", [COUNT_WRITEOUT] = "write-outs",
  [COUNT_CATALOG] = "looks at the catalog", [COUNT_STOP] = "clean stops", [COUNT_CRASH] = "crashes survived",
  [COUNT_FULL] = "writes that a full journal refused", [COUNT_OVERTAKEN] = "requests overtaken by others",
  [COUNT_MIB] = "MiB written", [COUNT_VIEW] = "reads of views", [COUNT_REVOKED] = "views revoked",
  [COUNT_SCRATCH] = "writes to scratch", [COUNT_RESET] = "resets of a scratch",
  [COUNT_PROMOTE_SCRATCH] = "promotes of scratch",
};

uint64_t
life_random (struct life *l, uint64_t n)
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

struct version *
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

void
now_is (struct life *l, const struct version *v)
{
  for (unsigned d = 0; d < l->ndisks; d++)
    memcpy (l->now->disk[d], v->disk[d], l->size[d]);
}

void
model_settle (struct life *l, enum clean clean)
{
  SCOPED_LOCK (&l->lock);

  l->expect.out[0] = l->cur;
  l->expect.n = 1;
  l->expect.late = l->late;
  l->expect.nlate = l->nlate;
  l->expect.clean = clean;
}

void
model_begin (struct life *l, const char *doing)
{
  SCOPED_LOCK (&l->lock);

  torture_doing = doing;
  if (getenv ("TORTURE_LOG"))
    fprintf (stderr, "%*s%s: kind %d id %" PRIu64 ", %u late, %s\n", l->nested ? 2 : 0, "",
             doing, l->cur.kind, l->cur.id, l->nlate, replica_state_word (l->r->state));
  if (l->expect.clean == CLEAN_YES)
    l->expect.clean = CLEAN_MAYBE;
}

void
model_perhaps (struct life *l, struct outcome o)
{
  SCOPED_LOCK (&l->lock);

  if (o.kind == OUTCOME_CHECKPOINT)
    l->ever[o.id] = true;
  /* Failures may pile up: then the one before the last is no more than the one before it. */
  if (l->expect.n == 4)
    l->expect.n = 3;
  l->expect.out[l->expect.n++] = o;
}

void
model_dirty (struct life *l)
{
  SCOPED_LOCK (&l->lock);

  l->expect.clean = CLEAN_NO;
}

static struct blob *
blob (struct life *l, size_t len)
{
  struct blob *b = malloc (sizeof *b + len);

  assert (b);
  b->next = l->blobs;
  l->blobs = b;
  return b;
}

void
model_no_late (struct life *l)
{
  l->late = (struct late *) (void *)
    blob (l, TORTURE_LATE * sizeof *l->late)->data;
  l->nlate = 0;
}

void
model_late (struct life *l, unsigned disk, uint64_t off, uint32_t len,
            const uint8_t *data)
{
  struct blob *b = blob (l, len);

  assert (l->nlate < TORTURE_LATE);
  if (data)
    memcpy (b->data, data, len);
  SCOPED_LOCK (&l->lock);
  l->late[l->nlate++] = (struct late) { disk, off, len, data ? b->data : NULL, false };
  l->expect.late = l->late;
  l->expect.nlate = l->nlate;
}

struct mark
model_mark (struct life *l)
{
  return (struct mark) { version_copy (l, l->now), l->nlate };
}

/* What was written to DISK before MARK is there to stay. */
void
model_flushed (struct life *l, unsigned disk, struct mark mark)
{
  struct version *base = version_copy (l, l->cur.base);
  /* Others may look at the old list: it stays until the end. */
  struct late *rest = (struct late *) (void *)
    blob (l, TORTURE_LATE * sizeof *rest)->data;
  unsigned n = 0;

  memcpy (base->disk[disk], mark.v->disk[disk], l->size[disk]);
  for (unsigned i = 0; i < l->nlate; i++)
    if (l->late[i].disk != disk || l->late[i].failed || i >= mark.nlate)
      rest[n++] = l->late[i];
  {
    SCOPED_LOCK (&l->lock);
    l->late = rest;
    l->nlate = n;
    l->cur.base = base;
  }
  model_settle (l, CLEAN_NO);
}

void
model_sealed (struct life *l, uint64_t epoch, const struct version *v)
{
  MUST (epoch > l->newest_epoch, "epoch %" PRIu64 " again", epoch);
  l->newest_epoch = epoch;
  l->sealed[l->nsealed++] = (struct sealed) { epoch, v };
}

void
model_committed (struct life *l, struct outcome o)
{
  unsigned n = 0;

  l->newest_epoch = MAX (l->newest_epoch, o.id);
  for (unsigned i = 0; i < l->nsealed; i++)
    if (l->sealed[i].epoch > o.id)
      l->sealed[n++] = l->sealed[i];
  l->nsealed = n;
  l->cur = o;
  model_settle (l, CLEAN_NO);
}

void
model_new_stream (struct life *l, const struct version *v)
{
  l->newest_epoch = MAX (l->newest_epoch, life_open_epoch (l) - 1);
  l->nsealed = 0;
  l->hole = false;
  if (v)
    now_is (l, v);
}

void
model_free (struct life *l)
{
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
}
