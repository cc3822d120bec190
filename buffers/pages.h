/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroed memory whose pages are all there before it is used: a first touch
 * costs more than the map operation that would meet it.
 *
 * Threads: any.
 */
#ifndef MCBUF_BUFFERS_PAGES_H
#define MCBUF_BUFFERS_PAGES_H

#include <stddef.h>

/* BYTES (> 0) of zeroed, prefaulted memory, aligned to a page; big areas are
 * aligned for, and advised to use, huge pages.  NULL with ENOMEM.
 */
extern void *pages_alloc (size_t bytes);

/* The same without the prefaulting: takes microseconds whatever the size. */
extern void *pages_alloc_lazy (size_t bytes);

/* BYTES as they were asked for.  NULL is allowed.  Keeps errno. */
extern void pages_free (void *area, size_t bytes);

/* Keep the first TO of FROM bytes, and give the rest back.  Returns how many
 * bytes the area has now: FROM if the kernel would not.
 */
extern size_t pages_shrink (void *area, size_t from, size_t to);

#endif /* MCBUF_BUFFERS_PAGES_H */
