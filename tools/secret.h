/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the tools get a server's control-secret from: --secret=+FILE, or the file that the
 * environment variable MCBUF_SECRET_FILE names.  Never from the command line itself, which
 * everybody on the host can read.
 */
#ifndef MCBUF_TOOLS_SECRET_H
#define MCBUF_TOOLS_SECRET_H

#include "common/mcerror.h"

#define SECRET_ENV "MCBUF_SECRET_FILE"

/* Is OPTION, the value of --secret=, a "+FILE"?  -1 with ERR. */
extern int secret_check (const char *option, struct mcerror *err);

/* The first line of the file that OPTION (NULL: not given) or else the environment names,
 * malloced, in *SECRET; NULL when neither does.  -1 with ERR.
 */
extern int secret_get (const char *option, char **secret, struct mcerror *err);

#endif /* MCBUF_TOOLS_SECRET_H */
