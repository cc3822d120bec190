/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/progress.h"
#include "tools/render.h"

#define BAR 30

static bool shown;

void
progress_show (const char *phase, uint64_t done, uint64_t total)
{
  char a[RENDER_SIZE_STRLEN], b[RENDER_SIZE_STRLEN], bar[BAR + 1];
  double part;
  unsigned full;

  if (!isatty (STDERR_FILENO))
    return;
  if (done > total)
    total = done;
  part = total > 0 ? (double) done / total : 1;
  full = part * BAR;
  memset (bar, '#', full);
  memset (bar + full, '.', BAR - full);
  bar[BAR] = '\0';

  /* Nobody is left to tell when standard error does not work. */
  (void) fprintf (stderr, "\r%-12s [%s] %3u %%  %s of %s\033[K", phase, bar,
                  (unsigned) (part * 100), render_size (done, a),
                  render_size (total, b));
  shown = true;
}

void
progress_end (void)
{
  if (shown)
    (void) fputs ("\r\033[K", stderr);
  shown = false;
}
