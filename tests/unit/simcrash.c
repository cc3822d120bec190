/* SPDX-License-Identifier: BSD-3-Clause */
/* The test's side of a simulated disk: crashes, faults to come, and looking at what is there. */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "unit/simdisk-impl.h"

/* Apply to C what of the pending writes of I persists. */
static void
persist (struct content *c, const struct inode *i, enum simdisk_crash how,
         uint64_t (*random) (void))
{
  unsigned n = 0, keep;
  /* Few, half or most of them. */
  unsigned odds = 1 + random () % 15;

  if (i->now.size != c->size && random () % 2)
    content_resize (c, i->now.size);
  for (const struct pending *p = i->pending; p; p = p->next)
    n++;
  keep = n ? random () % (n + 1) : 0;
  for (const struct pending *p = i->pending; p; p = p->next) {
    switch (how) {
    case SIMDISK_WRITES:
      if (random () % 16 < odds)
        content_write (c, p->data, p->len, p->off);
      break;
    case SIMDISK_PREFIX:
      if (keep > 0) {
        content_write (c, p->data, p->len, p->off);
        keep--;
      }
      break;
    default:
      for (size_t at = 0; at < p->len; ) {
        size_t len = MIN (p->len - at, SIMDISK_SECTOR -
                          (p->off + at) % SIMDISK_SECTOR);

        if (random () % 16 < odds) {
          uint8_t junk[SIMDISK_SECTOR];

          if (how == SIMDISK_GARBLE && random () % 8 == 0) {
            for (unsigned b = 0; b < sizeof junk; b++)
              junk[b] = random ();
            content_write (c, junk, len, p->off + at);
          }
          else
            content_write (c, p->data + at, len, p->off + at);
        }
        at += len;
      }
    }
  }
}

struct simdisk *
simdisk_crash (struct simdisk *s, enum simdisk_crash how,
               uint64_t (*random) (void))
{
  struct simdisk *t = simdisk_new ();
  SCOPED_LOCK (&s->lock);

  for (unsigned k = 0; k < s->ninodes; k++) {
    const struct inode *i = &s->inodes[k];
    const char *name = i->name;
    struct inode *n;

    /* A name that was not synced is there or not. */
    if (how != SIMDISK_KILL &&
        (name == NULL || i->durable_name == NULL ||
         strcmp (name, i->durable_name) != 0) &&
        (how == SIMDISK_NONE || random () % 2))
      name = i->durable_name;
    if (name == NULL)
      continue;
    n = simdisk_inode (t, name);
    n->durable_name = strdup (name);
    content_free (&n->now);
    content_free (&n->durable);
    n->now = content_share (how == SIMDISK_KILL ? &i->now : &i->durable);
    if (how != SIMDISK_KILL && how != SIMDISK_NONE)
      persist (&n->now, i, how, random);
    n->durable = content_share (how == SIMDISK_KILL ? &i->durable : &n->now);
    n->lost = how == SIMDISK_KILL && i->lost;
    if (how == SIMDISK_KILL) {
      /* What was not synced may still be lost later. */
      for (const struct pending *p = i->pending; p; p = p->next) {
        struct pending *copy = calloc (1, sizeof *copy);

        assert (copy);
        *copy = *p;
        copy->next = NULL;
        copy->data = malloc (MAX (p->len, (size_t) 1));
        assert (copy->data);
        memcpy (copy->data, p->data, p->len);
        *n->last = copy;
        n->last = &copy->next;
      }
    }
  }
  return t;
}

void
simdisk_calls (struct simdisk *s, simdisk_call_fn call, void *opaque)
{
  s->call = call;
  s->call_opaque = opaque;
}

void
simdisk_fail (struct simdisk *s, uint64_t count, int error, bool sticky)
{
  s->fail_at = count ? s->ops + count : 0;
  s->fail_error = error;
  s->fail_sticky = sticky;
}

void
simdisk_short (struct simdisk *s, size_t len)
{
  s->short_len = len;
}

void
simdisk_torn (struct simdisk *s, bool torn)
{
  s->torn = torn;
}

void
simdisk_no_zero (struct simdisk *s, bool none)
{
  s->no_zero = none;
}

void
simdisk_no_direct (struct simdisk *s, bool none)
{
  s->no_direct = none;
}

uint64_t
simdisk_ops (struct simdisk *s)
{
  SCOPED_LOCK (&s->lock);

  return s->ops;
}

uint64_t
simdisk_size (struct simdisk *s, const char *path)
{
  const struct inode *i = simdisk_find (s, path);

  return i ? i->now.size : 0;
}

bool
simdisk_equals (struct simdisk *s, const char *path, const uint8_t *data,
                uint64_t len)
{
  SCOPED_LOCK (&s->lock);
  const struct inode *i = simdisk_find (s, path);

  return i && content_equals (&i->now, data, len);
}

bool
simdisk_same (struct simdisk *a, struct simdisk *b, const char *path)
{
  const struct inode *i, *k;
  SCOPED_LOCK (&a->lock);

  if (a == b)
    return true;
  pthread_mutex_lock (&b->lock);
  i = simdisk_find (a, path);
  k = simdisk_find (b, path);
  bool same = i == NULL || k == NULL ? i == k : content_same (&i->now, &k->now);
  pthread_mutex_unlock (&b->lock);
  return same;
}

void
simdisk_read (struct simdisk *s, const char *path, uint8_t *data, uint64_t len)
{
  SCOPED_LOCK (&s->lock);
  const struct inode *i = simdisk_find (s, path);

  assert (i && len <= i->now.size);
  content_read (&i->now, data, len, 0);
}

void
simdisk_flip (struct simdisk *s, const char *path, uint64_t off, uint8_t mask)
{
  struct inode *i = simdisk_find (s, path);
  uint8_t byte;

  assert (i && off < i->now.size);
  content_read (&i->now, &byte, 1, off);
  byte ^= mask;
  content_write (&i->now, &byte, 1, off);
  content_free (&i->durable);
  i->durable = content_share (&i->now);
}

void
simdisk_bad (struct simdisk *s, const char *path, uint64_t off, uint64_t len)
{
  struct inode *i = simdisk_find (s, path);

  assert (i);
  i->bad_off = off;
  i->bad_len = len;
}

void
simdisk_copy (struct simdisk *to, const char *name, struct simdisk *from,
              const char *path)
{
  const struct inode *i = simdisk_find (from, path);
  struct content now = content_share (&i->now);
  struct inode *n = simdisk_find (to, name);

  assert (from != to || strcmp (name, path) != 0);
  if (n == NULL)
    n = simdisk_inode (to, name);
  assert (n->pending == NULL);
  free (n->durable_name);
  n->durable_name = strdup (name);
  content_free (&n->now);
  content_free (&n->durable);
  n->now = now;
  n->durable = content_share (&now);
}
