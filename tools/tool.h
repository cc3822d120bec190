/* SPDX-License-Identifier: BSD-3-Clause */
/* What every mcbuf tool does the same way: its name in messages, exit codes,
 * the check that what was printed arrived.
 *
 * Threads: the tools have one.
 */
#ifndef MCBUF_TOOLS_TOOL_H
#define MCBUF_TOOLS_TOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/mcerror.h"

/* First thing in main.  NAME is a literal, "mcbuf-commit".  Sees to it that
 * descriptors 0 to 2 are taken, so that no socket becomes standard output,
 * and ignores SIGPIPE: a closed pipe is an error like any other.
 */
extern void tool_init (const char *name);

/* One line on standard error, "NAME: text".  Control characters are shown as
 * '?'.  Returns CODE.
 */
extern int tool_error (enum mcexit code, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

/* The same with the hint to --help; returns MCEXIT_USAGE. */
extern int tool_usage_error (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

/* Report ERR; returns its code. */
extern int tool_fail (const struct mcerror *err);

/* getopt_long returned '?' or ':' (its option string begins with ':' and
 * opterr is 0): say what is wrong with the option.  Returns MCEXIT_USAGE.
 */
extern int tool_bad_option (int opt, char *const argv[]);

/* For --version. */
extern int tool_version (void);

/* Last thing in main: STATUS, or MCEXIT_USAGE and a message when standard
 * output did not take everything.
 */
extern int tool_finish (int status);

/* Flush standard output.  -1 with errno. */
extern int tool_flush (void);

/* Digits only, no sign, up to 2^63 - 1 (JSON's integers here are signed).
 * False: TEXT is not that.
 */
extern bool tool_parse_number (const char *text, uint64_t *n);

/* May TEXT stand in a request line: UTF-8 without control characters, at
 * most MAX bytes?  -1 with ERR, which calls it WHAT.
 */
extern int tool_check_text (const char *what, const char *text, size_t max,
                            struct mcerror *err);

/* Write TEXT with every control character, C1 ones too, shown as '?'. */
extern void tool_put_safe (FILE *fp, const char *text);

#endif /* MCBUF_TOOLS_TOOL_H */
