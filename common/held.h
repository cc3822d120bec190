/* SPDX-License-Identifier: BSD-3-Clause */
/* For how much of the last second somebody was held back: what tells a limit that is reached
 * from one that was touched once.
 *
 * Time is given out in whole windows of a second: of the last one the part is taken that the
 * second before now still covers, as if what happened in it were spread evenly.
 *
 * Threads: none; the caller's lock guards it.  All times are host_monotonic_ns.
 */
#ifndef MCBUF_COMMON_HELD_H
#define MCBUF_COMMON_HELD_H

#include <stdint.h>

struct held {                   /* all zero: nobody ever was */
  unsigned n;                   /* how many are, now */
  uint64_t since;               /* ... and that is not in NOW yet from here on */
  uint64_t window;              /* when the current window began */
  uint64_t now, last;           /* nanoseconds in it, and in the one before */
};

extern void held_begin (struct held *h, uint64_t ns);
extern void held_end (struct held *h, uint64_t ns);

/* In thousandths of the second before NS. */
extern unsigned held_share (const struct held *h, uint64_t ns);

#endif /* MCBUF_COMMON_HELD_H */
