/* SPDX-License-Identifier: BSD-3-Clause */
/* How much memory may be used: what the host has left, and what limits leave of that. */
#include "config.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/host.h"

/* The number behind NAME (which may be "") in file PATH; UINT64_MAX: there is none. */
static uint64_t
number_in (const char *path, const char *name)
{
  FILE *f = fopen (path, "re");
  uint64_t number = UINT64_MAX;
  char line[256];

  if (f == NULL)
    return UINT64_MAX;
  while (fgets (line, sizeof line, f))
    if (strncmp (line, name, strlen (name)) == 0) {
      if (sscanf (line + strlen (name), "%" SCNu64, &number) != 1)
        number = UINT64_MAX;
      break;
    }
  (void) fclose (f);
  return number;
}

/* The lowest limit of the control group GROUP below ROOT and of those that it is in. */
static uint64_t
group_limit (const char *root, char *group, const char *file)
{
  uint64_t limit = UINT64_MAX;

  for (;;) {
    char *slash = strrchr (group, '/');
    char path[2 * PATH_MAX];

    if (snprintf (path, sizeof path, "%s%s/%s", root, group, file) < (int) sizeof path)
      limit = MIN (limit, number_in (path, ""));
    if (slash == NULL)
      return limit;
    *slash = '\0';
  }
}

static uint64_t
groups_limit (void)
{
  FILE *f = fopen ("/proc/self/cgroup", "re");
  uint64_t limit = UINT64_MAX;
  char line[PATH_MAX];

  if (f == NULL)
    return limit;
  while (fgets (line, sizeof line, f)) {
    char *controllers = strchr (line, ':'), *group = controllers ? strchr (controllers + 1, ':') : NULL;

    if (group == NULL)
      continue;
    line[strcspn (line, "\n")] = '\0';
    *group++ = '\0';
    if (controllers[1] == '\0')
      limit = MIN (limit, group_limit ("/sys/fs/cgroup", group, "memory.max"));
    else if (strcmp (controllers + 1, "memory") == 0)
      limit = MIN (limit, group_limit ("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
  }
  (void) fclose (f);
  return limit;
}

uint64_t
host_memory_available (void)
{
  uint64_t kib = number_in ("/proc/meminfo", "MemAvailable:"), bytes = 0;
  struct rlimit rl;

  if (kib <= UINT64_MAX / 1024)
    bytes = kib * 1024;
  bytes = MIN (bytes, groups_limit ());
  if (getrlimit (RLIMIT_AS, &rl) == 0 && rl.rlim_cur != RLIM_INFINITY)
    bytes = MIN (bytes, (uint64_t) rl.rlim_cur);
  return bytes;
}
