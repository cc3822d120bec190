/* SPDX-License-Identifier: BSD-3-Clause */
/* Two things are waited for, because neither tells of everything: the lock on JOURNAL/lock, which a
 * process that was forked has too (the parent in nbdkit --run), and the process, whose end comes after all of
 * its descriptors, those of the images too, are closed.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
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

/* Does another process hold the lock? */
static bool
is_locked (const struct ending *e)
{
  struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

  return fcntl (e->lock, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
}

void
ending_watch (struct ending *e, const char *dir)
{
  CLEANUP_FREE char *path = NULL;
  char text[32];
  ssize_t n;
  long pid;

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
  n = pread (e->lock, text, sizeof text - 1, 0);
  if (n <= 0)
    return;
  text[n] = '\0';
  pid = strtol (text, NULL, 10);
  if (pid > 0)
    e->process = (int) syscall (SYS_pidfd_open, (pid_t) pid, 0);
}

static void
pause_a_little (void)
{
  const struct timespec pause = { .tv_nsec = POLL_MS * (long) MS };

  (void) nanosleep (&pause, NULL);      /* cut short, it is asked sooner */
}

int
ending_wait (struct ending *e, struct mcerror *err)
{
  uint64_t until = host_monotonic_ns () + END_MS * MS;
  bool gone = false;

  if (e->lock == -1)
    return 0;
  for (;;) {
    struct pollfd p = { .fd = e->process, .events = POLLIN };
    uint64_t now = host_monotonic_ns ();

    if (!gone && e->process != -1 && poll (&p, 1, 0) == 1) {
      gone = true;
      until = now + FORKED_MS * MS;
    }
    if ((gone || e->process == -1) && !is_locked (e))
      return 0;
    if (now > until)
      break;
    pause_a_little ();
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
