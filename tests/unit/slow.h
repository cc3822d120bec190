/* SPDX-License-Identifier: BSD-3-Clause */
/* Long tests: how far they go, and where they begin. */
#ifndef MCBUF_TESTS_UNIT_SLOW_H
#define MCBUF_TESTS_UNIT_SLOW_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* N, or, when each instruction costs dozens, a thirtieth of it under valgrind. */
static inline uint64_t
unless_slow (uint64_t n)
{
  const char *preload = getenv ("LD_PRELOAD");

  return preload && strstr (preload, "vgpreload") ? n / 30 + 1 : n;
}

/* MCBUF_TEST_SEED, or the first of series MCBUF_TEST_SERIES, which is 1: the same in every run. */
static inline uint64_t
first_seed (void)
{
  const char *text = getenv ("MCBUF_TEST_SEED"), *series = getenv ("MCBUF_TEST_SERIES");

  if (text && *text)
    return strtoull (text, NULL, 0);
  return UINT64_C (1000000) * (series && *series ? strtoull (series, NULL, 0) : 1);
}

#endif /* MCBUF_TESTS_UNIT_SLOW_H */
