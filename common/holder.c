/* SPDX-License-Identifier: BSD-3-Clause */
/* Who has a file open to write.  See holder.h.
 *
 * A read lease (fcntl(2), F_SETLEASE) is given only while nobody has the file open for writing, locks or not, and
 * loop devices included.  It is given back at once: what it answers is all that is wanted.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/holder.h"

/* The first line of a small file. */
static bool
first_line (const char *path, char *line, size_t size)
{
  FILE *fp = fopen (path, "re");
  bool got;

  if (fp == NULL)
    return false;
  got = fgets (line, (int) size, fp) != NULL;
  (void) fclose (fp);
  if (got)
    line[strcspn (line, "\n")] = '\0';
  return got;
}

static bool
is_file (const char *path, const struct stat *st)
{
  struct stat other;

  return stat (path, &other) == 0 && other.st_dev == st->st_dev &&
    other.st_ino == st->st_ino;
}

/* May the descriptor behind PATH (/proc/PID/fd/N) write?  The owner may write to the link then. */
static bool
writes (const char *path)
{
  struct stat st;

  return lstat (path, &st) == 0 && (st.st_mode & S_IWUSR);
}

static bool
find_process (const struct stat *st, char *who, size_t size)
{
  glob_t fds;
  bool found = false;

  /* Processes of others are left out where we may not look. */
  if (glob ("/proc/[0-9]*/fd/*", GLOB_NOSORT, NULL, &fds) != 0)
    return false;
  for (size_t i = 0; i < fds.gl_pathc && !found; i++) {
    const char *path = fds.gl_pathv[i];
    long pid = strtol (path + strlen ("/proc/"), NULL, 10);
    char name[32] = "", comm[64];

    if (pid == getpid () || !is_file (path, st) || !writes (path))
      continue;
    snprintf (comm, sizeof comm, "/proc/%ld/comm", pid);
    (void) first_line (comm, name, sizeof name);
    snprintf (who, size, "process %ld%s%s", pid, name[0] ? ", " : "", name);
    found = true;
  }
  globfree (&fds);
  return found;
}

static bool
find_loop (const struct stat *st, char *who, size_t size)
{
  glob_t loops;
  bool found = false;

  if (glob ("/sys/block/loop*/loop/backing_file", 0, NULL, &loops) != 0)
    return false;
  for (size_t i = 0; i < loops.gl_pathc && !found; i++) {
    char path[4096];
    const char *name = loops.gl_pathv[i] + strlen ("/sys/block/");

    if (!first_line (loops.gl_pathv[i], path, sizeof path) || !is_file (path, st))
      continue;
    snprintf (who, size, "/dev/%.*s", (int) strcspn (name, "/"), name);
    found = true;
  }
  globfree (&loops);
  return found;
}

int
holder_check (int fd, char *who, size_t size)
{
  struct stat st;

  who[0] = '\0';
  /* Who opens the file in between has to wait an instant, and we get a signal: not one that kills. */
  if (fcntl (fd, F_SETSIG, SIGURG) == 0 && fcntl (fd, F_SETLEASE, F_RDLCK) == 0) {
    (void) fcntl (fd, F_SETLEASE, F_UNLCK);
    return 0;
  }
  if (errno != EAGAIN)
    return 0;                   /* no leases here, or not for us */
  if (fstat (fd, &st) == 0 && !find_process (&st, who, size))
    (void) find_loop (&st, who, size);
  errno = EBUSY;
  return -1;
}
