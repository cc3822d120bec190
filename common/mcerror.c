/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/mcerror.h"

int
mcerror_set (struct mcerror *err, enum mcexit code, const char *fmt, ...)
{
  int saved = errno;

  if (err) {
    va_list args;

    err->code = code;
    va_start (args, fmt);
    if (vsnprintf (err->text, sizeof err->text, fmt, args) < 0)
      err->text[0] = '\0';
    va_end (args);
    for (char *p = err->text; *p; p++)
      if ((unsigned char) *p < 0x20 || *p == 0x7f)
        *p = '?';
  }
  errno = saved;
  return -1;
}
