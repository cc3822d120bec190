/* SPDX-License-Identifier: BSD-3-Clause */
/* What the unit tests share: a seeded random stream, allocations that fail
 * on demand, and a main.
 */
#ifndef MCBUF_TESTS_UNIT_H
#define MCBUF_TESTS_UNIT_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <check.h>

/* As ck_assert, without the system call that makes that one slow in a loop. */
#define EXPECT(cond)                                                    \
  do {                                                                  \
    if (!(cond))                                                        \
      ck_abort_msg ("%s", #cond);                                       \
  } while (0)

/* Begin the random stream anew: from MCBUF_TEST_SEED, else from MCBUF_TEST_SERIES (1) and the program's name.
 * The seed is printed, so that a failure can be replayed.
 */
extern void unit_seed (void);
extern uint64_t unit_random (uint64_t below);   /* 0 .. BELOW - 1 */
extern bool unit_chance (unsigned percent);

/* From the Nth allocation (malloc, calloc, realloc, aligned_alloc, mmap) from now on, counting from
 * 1, all fail with ENOMEM; 0 ends it.  Only in programs that are linked with $(UNIT_WRAP).
 */
extern void unit_fail_alloc (unsigned nth);
/* Allocations that were failed since then. */
extern unsigned unit_failed (void);

/* Run SUITE: the status for main to return. */
extern int unit_run (Suite *suite);

#endif /* MCBUF_TESTS_UNIT_H */
