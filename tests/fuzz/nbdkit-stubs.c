/* SPDX-License-Identifier: BSD-3-Clause */
/* What plugin/ needs of nbdkit, for programs that have none around them. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "fuzz/fuzz.h"
#include "fuzz/nbdkit-stubs.h"

const char *stub_export_name = "";
unsigned stub_errors;
int stub_errno;

void
nbdkit_error (const char *msg, ...)
{
  char text[8192];
  va_list args;

  stub_errors++;
  va_start (args, msg);
  (void) vsnprintf (text, sizeof text, msg, args);
  va_end (args);
}

void
nbdkit_debug (const char *msg, ...)
{
  char text[8192];
  va_list args;

  va_start (args, msg);
  (void) vsnprintf (text, sizeof text, msg, args);
  va_end (args);
}

void
nbdkit_set_error (int err)
{
  stub_errno = err;
}

const char *
nbdkit_export_name (void)
{
  return stub_export_name;
}

void
nbdkit_shutdown (void)
{
}

/* The secret is what was given: no file and no terminal is asked. */
int
nbdkit_read_password (const char *value, char **password)
{
  *password = strdup (value);
  return *password ? 0 : -1;
}

char *
nbdkit_absolute_path (const char *path)
{
  char *copy;

  if (path[0] == '/')
    return strdup (path);
  return asprintf (&copy, "/cwd/%s", path) == -1 ? NULL : copy;
}

/* Digits and a suffix, as nbdkit(1) has them. */
int64_t
nbdkit_parse_size (const char *text)
{
  static const char units[] = "bkmgtpe";
  char *end;
  int64_t n;
  const char *unit;

  errno = 0;
  n = strtoimax (text, &end, 10);
  if (errno || end == text || n < 0)
    goto bad;
  if (*end == 's' || *end == 'S') {
    if (end[1] || __builtin_mul_overflow (n, 512, &n))
      goto bad;
    return n;
  }
  if (*end == '\0')
    return n;
  unit = strchr (units, *end | 0x20);
  if (end[1] || unit == NULL || *unit == '\0')
    goto bad;
  for (const char *u = units; u < unit; u++)
    if (__builtin_mul_overflow (n, 1024, &n))
      goto bad;
  return n;

 bad:
  nbdkit_error ("could not parse size string (%s)", text);
  return -1;
}

int
nbdkit_add_extent (struct nbdkit_extents *extents, uint64_t offset,
                   uint64_t length, uint32_t type)
{
  uint64_t *next = (uint64_t *) extents;

  HOLDS (offset == *next && length > 0, "extents that do not join");
  HOLDS (type <= (NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO), "type %" PRIu32, type);
  *next += length;
  return 0;
}

int
nbdkit_add_export (struct nbdkit_exports *exports, const char *name,
                   const char *description)
{
  (void) exports;
  HOLDS (strlen (name) < 4096 && description, "an export's name");
  return 0;
}
