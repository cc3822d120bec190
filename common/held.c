/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <assert.h>

#include "common/bytes.h"
#include "common/held.h"

#define WINDOW UINT64_C (1000000000)

/* Bring the windows up to NS. */
static void
account (struct held *h, uint64_t ns)
{
  uint64_t windows = (ns - h->window) / WINDOW;

  if (windows > 2) {            /* what was before does not count any more */
    h->window += (windows - 2) * WINDOW;
    h->since = MAX (h->since, h->window);
    h->now = 0;
  }
  while (ns - h->window >= WINDOW) {
    h->window += WINDOW;
    h->last = h->now;
    if (h->n > 0) {
      h->last += h->window - h->since;
      h->since = h->window;
    }
    h->now = 0;
  }
  if (h->n > 0) {
    h->now += ns - h->since;
    h->since = ns;
  }
}

void
held_begin (struct held *h, uint64_t ns)
{
  account (h, ns);
  if (h->n++ == 0)
    h->since = ns;
}

void
held_end (struct held *h, uint64_t ns)
{
  assert (h->n > 0);
  account (h, ns);
  h->n--;
}

unsigned
held_share (const struct held *h, uint64_t ns)
{
  struct held upto = *h;

  account (&upto, ns);
  /* In microseconds, that the product fits. */
  return (upto.now / 1000 +
          upto.last / 1000 * ((WINDOW - (ns - upto.window)) / 1000) / (WINDOW / 1000)) * 1000 /
    (WINDOW / 1000);
}
