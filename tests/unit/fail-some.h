/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocations that fail on demand beside the simulated host of torture-host.c, which has calloc and
 * mmap.  Link with -Wl,--wrap of malloc, posix_memalign and realloc.
 */
#ifndef MCBUF_TESTS_UNIT_FAIL_SOME_H
#define MCBUF_TESTS_UNIT_FAIL_SOME_H

#include <stdbool.h>

/* The Nth allocation from now on fails (1: the next), with STICKY all that follow, too.  0: none. */
extern void fail_alloc (unsigned n, bool sticky);
/* Until then: as fail_alloc's N.  1 and 0: it was reached. */
extern unsigned fail_alloc_left (void);
/* torture-host.c asks. */
extern bool unit_alloc_fails (void);

#endif /* MCBUF_TESTS_UNIT_FAIL_SOME_H */
