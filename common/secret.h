/* SPDX-License-Identifier: BSD-3-Clause */
/* A secret that two sides know, and a comparison that tells nothing about it.
 *
 * The secret is kept padded to SECRET_MAX bytes, and every comparison looks at
 * all of them: how long it takes depends neither on the secret nor on its length.
 */
#ifndef MCBUF_COMMON_SECRET_H
#define MCBUF_COMMON_SECRET_H

#include <stdbool.h>
#include <stddef.h>

#define SECRET_MAX 1024u        /* bytes */

struct secret {
  char bytes[SECRET_MAX];       /* padded with NULs */
};

/* -1 with EINVAL: TEXT is empty, has control characters, or is longer than SECRET_MAX - 1. */
extern int secret_set (struct secret *s, const char *text);

/* Is it the LEN bytes at TEXT? */
extern bool secret_is (const struct secret *s, const char *text, size_t len);

extern void secret_wipe (struct secret *s);

#endif /* MCBUF_COMMON_SECRET_H */
