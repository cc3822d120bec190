/* SPDX-License-Identifier: BSD-3-Clause */
/* The bytes of a simulated file: pages that are shared until one side writes,
 * so that a copy costs little whatever the file's size.  Each content belongs
 * to one thread, or is guarded by a lock; what they share needs none.
 */
#ifndef MCBUF_TESTS_UNIT_SIMPAGES_H
#define MCBUF_TESTS_UNIT_SIMPAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct page;

struct content {
  struct page **pages;          /* NULL pages are zeroes */
  uint64_t size;
};

extern void content_resize (struct content *c, uint64_t size);
extern struct content content_share (const struct content *c);
extern void content_free (struct content *c);
/* Makes the content longer where it has to. */
extern void content_write (struct content *c, const uint8_t *data, size_t len,
                           uint64_t off);
/* [OFF, OFF + LEN) lies within. */
extern void content_read (const struct content *c, uint8_t *data, size_t len,
                          uint64_t off);
extern bool content_equals (const struct content *c, const uint8_t *data,
                            uint64_t len);
/* Do A and B hold the same?  Quick where they still share their pages. */
extern bool content_same (const struct content *a, const struct content *b);
/* Where the pages like the one at OFF (< size) end; is it a *HOLE? */
extern uint64_t content_extent (const struct content *c, uint64_t off,
                                bool *hole);

#endif
