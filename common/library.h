/* SPDX-License-Identifier: BSD-3-Clause */
/* A shared library that is loaded when it is needed, not when the program starts. */
#ifndef MCBUF_COMMON_LIBRARY_H
#define MCBUF_COMMON_LIBRARY_H

#include <stddef.h>

/* A function that is wanted, and where its address goes. */
struct library_function {
  const char *name;
  void *address;                /* of a pointer to function */
};

/* Load FILE and look up FN[0..N).  It stays loaded for good: threads that have used it may have
 * destructors in it.  0; -1 with *WHY: what is missing, in words that are valid until the next call
 * of this thread.
 */
extern int library_load (const char *file, const struct library_function *fn,
                         size_t n, const char **why);

#endif /* MCBUF_COMMON_LIBRARY_H */
