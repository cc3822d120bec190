/* SPDX-License-Identifier: BSD-3-Clause */
/* A progress bar on standard error, when that is a terminal; else nothing. */
#ifndef MCBUF_TOOLS_PROGRESS_H
#define MCBUF_TOOLS_PROGRESS_H

#include <stdint.h>

/* Show DONE of TOTAL bytes of PHASE.  The line is drawn over the last one. */
extern void progress_show (const char *phase, uint64_t done, uint64_t total);

/* Wipe the bar, if there is one, before anything else is printed. */
extern void progress_end (void);

#endif /* MCBUF_TOOLS_PROGRESS_H */
