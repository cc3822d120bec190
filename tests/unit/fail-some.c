/* SPDX-License-Identifier: BSD-3-Clause */
/* See fail-some.h. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "unit/fail-some.h"

extern void *__real_malloc (size_t size);
extern void *__wrap_malloc (size_t size);
extern void *__real_realloc (void *p, size_t size);
extern void *__wrap_realloc (void *p, size_t size);
extern int __real_posix_memalign (void **p, size_t align, size_t size);
extern int __wrap_posix_memalign (void **p, size_t align, size_t size);

static unsigned alloc_fails_in;
static bool alloc_sticky;

void
fail_alloc (unsigned n, bool sticky)
{
  alloc_fails_in = n;
  alloc_sticky = sticky;
}

unsigned
fail_alloc_left (void)
{
  return alloc_fails_in;
}

bool
unit_alloc_fails (void)
{
  if (alloc_fails_in == 0)
    return false;
  if (alloc_fails_in > 1) {
    alloc_fails_in--;
    return false;
  }
  if (!alloc_sticky)
    alloc_fails_in = 0;
  errno = ENOMEM;
  return true;
}

void *
__wrap_malloc (size_t size)
{
  return unit_alloc_fails () ? NULL : __real_malloc (size);
}

void *
__wrap_realloc (void *p, size_t size)
{
  return unit_alloc_fails () ? NULL : __real_realloc (p, size);
}

int
__wrap_posix_memalign (void **p, size_t align, size_t size)
{
  return unit_alloc_fails () ? ENOMEM : __real_posix_memalign (p, align, size);
}
