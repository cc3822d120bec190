/* SPDX-License-Identifier: BSD-3-Clause */
/* Long tests do less when each instruction costs dozens. */
#ifndef MCBUF_TESTS_UNIT_SLOW_H
#define MCBUF_TESTS_UNIT_SLOW_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* N, or a thirtieth of it under valgrind. */
static inline uint64_t
unless_slow (uint64_t n)
{
  const char *preload = getenv ("LD_PRELOAD");

  return preload && strstr (preload, "vgpreload") ? n / 30 + 1 : n;
}

#endif /* MCBUF_TESTS_UNIT_SLOW_H */
