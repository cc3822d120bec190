/* SPDX-License-Identifier: BSD-3-Clause */
/* A slow disk, and a look at what a server does to its files: LD_PRELOADed
 * into nbdkit, beside nbd/faults.c if need be.
 *
 * MCBUF_SLOW names a directory in which the test creates, changes and removes
 * files while the server runs:
 *
 *   slow        "MS TEXT": a pwrite or pwritev of a file whose path ends in TEXT takes MS
 *               milliseconds longer, or until this file says less
 *   watch       "TEXT": each call on such a file, when it begins, adds to "calls" a line
 *   calls       "r BYTES", "w BYTES", "b BYTES" or "s 0" (pread, pwrite or pwritev, sync_file_range, fdatasync)
 */
#define _GNU_SOURCE 1

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__ ((visibility ("default")))
#define STEP_MS 5

static int (*real_fdatasync) (int);
static int (*real_sync_file_range) (int, off_t, off_t, unsigned);
static ssize_t (*real_pread) (int, void *, size_t, off_t);
static ssize_t (*real_pwrite) (int, const void *, size_t, off_t);
static ssize_t (*real_pwritev) (int, const struct iovec *, int, off_t);

__attribute__ ((constructor))
static void
load (void)
{
  *(void **) &real_fdatasync = dlsym (RTLD_NEXT, "fdatasync");
  *(void **) &real_sync_file_range = dlsym (RTLD_NEXT, "sync_file_range");
  *(void **) &real_pread = dlsym (RTLD_NEXT, "pread");
  *(void **) &real_pwrite = dlsym (RTLD_NEXT, "pwrite");
  *(void **) &real_pwritev = dlsym (RTLD_NEXT, "pwritev");
}

/* What the file NAME says: its first line, "" without one. */
static void
read_rule (const char *name, char *text, size_t size)
{
  const char *dir = getenv ("MCBUF_SLOW");
  char path[4096];
  ssize_t n = -1;
  int fd = -1;

  text[0] = '\0';
  if (dir == NULL)
    return;
  snprintf (path, sizeof path, "%s/%s", dir, name);
  fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd == -1)
    return;
  n = read (fd, text, size - 1);
  close (fd);
  text[n > 0 ? n : 0] = '\0';
  text[strcspn (text, "\n")] = '\0';
}

static bool
is_file (int fd, const char *end)
{
  char link[64], target[4096];
  ssize_t n;

  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  n = readlink (link, target, sizeof target - 1);
  if (n <= 0 || end[0] == '\0' || (size_t) n < strlen (end))
    return false;
  target[n] = '\0';
  return strcmp (target + n - strlen (end), end) == 0;
}

static void
note (int fd, char call, size_t bytes)
{
  char text[1024], path[4096], line[64];
  int out, n;

  read_rule ("watch", text, sizeof text);
  if (!is_file (fd, text))
    return;
  snprintf (path, sizeof path, "%s/calls", getenv ("MCBUF_SLOW"));
  out = open (path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (out == -1)
    return;
  n = snprintf (line, sizeof line, "%c %zu\n", call, bytes);
  if (write (out, line, n) != n)
    perror (path);
  close (out);
}

static void
wait_slowly (int fd)
{
  const struct timespec step = { .tv_nsec = STEP_MS * 1000000 };
  char text[1024], *end;

  for (long waited = 0; ; waited += STEP_MS) {
    read_rule ("slow", text, sizeof text);
    if (strtol (text, &end, 10) <= waited || !is_file (fd, end + strspn (end, " ")))
      return;
    nanosleep (&step, NULL);
  }
}

static void
before (int fd, char call, size_t bytes)
{
  int save_errno = errno;

  if (getenv ("MCBUF_SLOW") != NULL) {
    note (fd, call, bytes);
    if (call == 'w')
      wait_slowly (fd);
  }
  errno = save_errno;
}

EXPORT int
fdatasync (int fd)
{
  before (fd, 's', 0);
  return real_fdatasync (fd);
}

EXPORT int
sync_file_range (int fd, off_t off, off_t len, unsigned flags)
{
  before (fd, 'b', (size_t) len);
  return real_sync_file_range (fd, off, len, flags);
}

EXPORT ssize_t
pread (int fd, void *buf, size_t len, off_t off)
{
  before (fd, 'r', len);
  return real_pread (fd, buf, len, off);
}

EXPORT ssize_t
pread64 (int fd, void *buf, size_t len, off_t off)
{
  return pread (fd, buf, len, off);
}

EXPORT ssize_t
pwrite (int fd, const void *buf, size_t len, off_t off)
{
  before (fd, 'w', len);
  return real_pwrite (fd, buf, len, off);
}

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t len, off_t off)
{
  return pwrite (fd, buf, len, off);
}

EXPORT ssize_t
pwritev (int fd, const struct iovec *iov, int n, off_t off)
{
  size_t len = 0;

  for (int i = 0; i < n; i++)
    len += iov[i].iov_len;
  before (fd, 'w', len);
  return real_pwritev (fd, iov, n, off);
}

EXPORT ssize_t
pwritev64 (int fd, const struct iovec *iov, int n, off_t off)
{
  return pwritev (fd, iov, n, off);
}
