/* SPDX-License-Identifier: BSD-3-Clause */
/* Readers of journal blocks, and waiting for them.
 *
 * Two counters, one in use by new readers.  Whoever recycles blocks has made
 * them unreachable before it calls quiesce, which turns new readers to the
 * other counter and waits for the first to run dry: the grace period of
 * read-copy-update with a lock in place of its tricks.
 */
#include "config.h"

#include "replica/internal.h"

unsigned
reader_begin_locked (struct replica *r)
{
  assert_locked (r);
  r->readers[r->phase]++;
  return r->phase;
}

void
reader_end (struct replica *r, unsigned phase)
{
  SCOPED_LOCK (&r->lock);

  assert (r->readers[phase] > 0);
  if (--r->readers[phase] == 0 && r->quiescing)
    pthread_cond_broadcast (&r->changed);
}

void
quiesce (struct replica *r)
{
  SCOPED_LOCK (&r->lock);
  unsigned phase;

  while (r->quiescing)
    pthread_cond_wait (&r->changed, &r->lock);
  r->quiescing = true;
  phase = r->phase;
  r->phase = !phase;
  while (r->readers[phase] > 0)
    pthread_cond_wait (&r->changed, &r->lock);
  r->quiescing = false;
  pthread_cond_broadcast (&r->changed);
}
