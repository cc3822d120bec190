/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/secret.h"
#include "tools/secret.h"

int
secret_check (const char *option, struct mcerror *err)
{
  /* Whatever it was, it is not shown again. */
  if (option[0] != '+' || option[1] == '\0')
    return mcerror_set (err, MCEXIT_USAGE, "--secret: only +FILE is taken, the "
                        "name of a file: everybody can read a command line");
  return 0;
}

/* The first line of PATH as nbdkit reads it: without its newline. */
static int
read_line (const char *path, char **line, struct mcerror *err)
{
  FILE *fp = fopen (path, "re");
  struct secret probe;
  size_t cap = 0;
  ssize_t len;
  int saved;

  *line = NULL;
  if (fp == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "%s: cannot read the secret: %m",
                        path);
  errno = 0;
  len = getline (line, &cap, fp);
  saved = errno;
  (void) fclose (fp);
  errno = saved;
  if (len == -1 && errno != 0)
    return mcerror_set (err, MCEXIT_USAGE, "%s: cannot read the secret: %m",
                        path);
  if (len > 0 && (*line)[len - 1] == '\n')
    (*line)[--len] = '\0';
  if (len < 0 || strlen (*line) != (size_t) len ||
      secret_set (&probe, *line) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s: its first line is no secret: "
                        "1 to %u bytes without control characters are needed",
                        path, SECRET_MAX - 1);
  secret_wipe (&probe);
  return 0;
}

int
secret_get (const char *option, char **secret, struct mcerror *err)
{
  const char *path = option ? option + 1 : getenv (SECRET_ENV);

  *secret = NULL;
  if (path == NULL || *path == '\0')
    return 0;
  if (read_line (path, secret, err) == -1) {
    cleanup_free (secret);
    *secret = NULL;
    return -1;
  }
  return 0;
}
