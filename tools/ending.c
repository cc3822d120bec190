/* SPDX-License-Identifier: BSD-3-Clause */
/* Two things are waited for, because neither tells of everything: the lock on JOURNAL/lock, which a
 * process that was forked has too (the parent in nbdkit --run), and the process, whose end comes after all of
 * its descriptors, those of the images too, are closed.
 *
 * The number that the process wrote into JOURNAL/lock is that of its own PID namespace: here it may be
 * nobody's, or somebody else's.  Who has that file open is it; if nobody with that number has, the lock has to do, and a
 * moment for the rest of its descriptors.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/host.h"
#include "tools/ending.h"

#define MS UINT64_C (1000000)
#define POLL_MS 10
#define END_MS 60000            /* a stop may have much to save */
#define FORKED_MS 1000          /* the lock, when the process is gone */
#define CLOSED_MS 200           /* a process closes what it has open, when it has closed the lock */

/* Does another process hold the lock? */
static bool
is_locked (const struct ending *e)
{
  struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

  return fcntl (e->lock, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
}

/* The number of the process that PIDFD is, as whoever mounted /proc sees it; -1. */
static long
number_in_proc (int pidfd)
{
  char path[64], line[128];
  long pid = -1;
  FILE *f;

  (void) snprintf (path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
  f = fopen (path, "re");
  if (f == NULL)
    return -1;
  while (fgets (line, sizeof line, f) && sscanf (line, "Pid: %ld", &pid) != 1)
    ;
  (void) fclose (f);            /* it was read only */
  return pid;
}

/* Has the process PIDFD the file open that we have as FD?  Not, as far as cannot be told. */
static bool
has_open (int pidfd, int fd)
{
  long pid = number_in_proc (pidfd);
  struct stat want, st;
  const struct dirent *entry;
  bool found = false;
  char path[64];
  DIR *dir;

  if (pid <= 0 || fstat (fd, &want) == -1)
    return false;
  (void) snprintf (path, sizeof path, "/proc/%ld/fd", pid);
  dir = opendir (path);
  if (dir == NULL)
    return false;
  while (!found && (entry = readdir (dir)))
    found = fstatat (dirfd (dir), entry->d_name, &st, 0) == 0 &&
      st.st_dev == want.st_dev && st.st_ino == want.st_ino;
  (void) closedir (dir);
  return found;
}

/* Who has signed JOURNAL/lock? */
static void
find_process (struct ending *e)
{
  char text[32];
  ssize_t n = pread (e->lock, text, sizeof text - 1, 0);
  long pid;

  if (n <= 0)
    return;
  text[n] = '\0';
  pid = strtol (text, NULL, 10);
  if (pid <= 0 || pid == e->signed_by)
    return;
  e->signed_by = pid;
  if (e->process != -1)
    (void) close (e->process);
  e->process = (int) syscall (SYS_pidfd_open, (pid_t) pid, 0);
  if (e->process != -1 && !has_open (e->process, e->lock)) {
    (void) close (e->process);
    e->process = -1;
  }
}

void
ending_watch (struct ending *e, const char *dir)
{
  CLEANUP_FREE char *path = NULL;

  *e = (struct ending) { .dir = dir, .lock = -1, .process = -1 };
  if (asprintf (&path, "%s/lock", dir) == -1) {
    path = NULL;
    return;
  }
  e->lock = open (path, O_RDONLY | O_CLOEXEC);
  if (e->lock == -1)
    return;
  if (!is_locked (e)) {         /* whoever answers, it is no server of this journal */
    ending_forget (e);
    return;
  }
  find_process (e);
}

static void
pause_ms (long ms)
{
  const struct timespec pause = { .tv_nsec = ms * (long) MS };

  (void) nanosleep (&pause, NULL);      /* cut short, it is asked sooner */
}

int
ending_wait (struct ending *e, struct mcerror *err)
{
  uint64_t until = host_monotonic_ns () + END_MS * MS;
  bool gone = false;

  if (e->lock == -1)
    return 0;
  /* One that has only just started had not signed yet: it was its parent's name.  Now it has answered. */
  if (is_locked (e))
    find_process (e);
  for (;;) {
    struct pollfd p = { .fd = e->process, .events = POLLIN };
    uint64_t now = host_monotonic_ns ();

    if (!gone && e->process != -1 && poll (&p, 1, 0) == 1) {
      gone = true;
      until = now + FORKED_MS * MS;
    }
    if ((gone || e->process == -1) && !is_locked (e)) {
      if (!gone)
        pause_ms (CLOSED_MS);
      return 0;
    }
    if (now > until)
      break;
    pause_ms (POLL_MS);
  }
  errno = EBUSY;
  if (gone)
    return mcerror_set (err, MCEXIT_PARTIAL, "the server has ended, but another process holds %s/lock: a server "
                        "that was started meanwhile, or nbdkit --run, which keeps the locks until its command "
                        "ends", e->dir);
  return mcerror_set (err, MCEXIT_PARTIAL, "the server ends, but did not in %u seconds: a write to the journal or "
                      "to a backing image does not return: see that the disks work; it ends by itself then",
                      END_MS / 1000);
}

void
ending_forget (struct ending *e)
{
  if (e->lock >= 0)
    (void) close (e->lock);
  if (e->process >= 0)
    (void) close (e->process);
  e->lock = e->process = -1;
}
