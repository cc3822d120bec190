/* SPDX-License-Identifier: BSD-3-Clause */
/* What is asked of an NBD URI before libnbd sees it. */
#ifndef MCBUF_COMMON_URI_H
#define MCBUF_COMMON_URI_H

#include <stdbool.h>

/* Is TEXT an NBD URI (and not a path): nbd[s][+TRANSPORT]://... */
extern bool uri_is_nbd (const char *text);

/* The name of a parameter of URI that is a file's path and not an absolute one, static;
 * NULL when there is none.  A server changes its working directory.
 */
extern const char *uri_relative_path (const char *uri);

#endif /* MCBUF_COMMON_URI_H */
