/* SPDX-License-Identifier: BSD-3-Clause */
/* Faults for a real server: LD_PRELOADed into nbdkit or a tool, this makes
 * the host look as if it had been booted again, and makes disks fail.
 *
 * MCBUF_FAULTS names a directory in which the test creates and removes files
 * while the server runs:
 *
 *   boot_id     what /proc/sys/kernel/random/boot_id contains
 *   fdatasync   what becomes of fdatasync, a rule a line:
 *     ERRNO TEXT [FROM TO]   of a file whose path ends in TEXT, and touching that range of
 *                            bytes, fails with ERRNO
 *     hold TEXT [FROM TO]    waits as long as the rule is there
 *     count TEXT [FROM TO]   is counted, and nothing else
 *   pwrite      the same for pwrite and pwritev
 *   pread       the same for pread
 *   fallocate   the same for fallocate (zeroes and trims)
 *   count       appended to: one byte for each call that a rule applied to
 *
 * MCBUF_PLAIN_EXIT, for servers under a preloaded AddressSanitizer: exit ends
 * the process without the destructors of libraries.  nbdkit with libasan preloaded, also
 * with nbdkit's own plugins, starts with an underflow in libc's lock for locales (one
 * unlock too many before main); strerror on any thread then makes the destructor of
 * libp11-kit wait for that lock for ever.
 */
#define _GNU_SOURCE 1

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__ ((visibility ("default")))
#define BOOT_ID "/proc/sys/kernel/random/boot_id"

static int (*real_open) (const char *, int, ...);
static int (*real_fdatasync) (int);
static int (*real_fallocate) (int, int, off_t, off_t);
static ssize_t (*real_pread) (int, void *, size_t, off_t);
static ssize_t (*real_pwrite) (int, const void *, size_t, off_t);
static ssize_t (*real_pwritev) (int, const struct iovec *, int, off_t);

__attribute__ ((constructor))
static void
load (void)
{
  *(void **) &real_open = dlsym (RTLD_NEXT, "open");
  *(void **) &real_fdatasync = dlsym (RTLD_NEXT, "fdatasync");
  *(void **) &real_fallocate = dlsym (RTLD_NEXT, "fallocate");
  *(void **) &real_pread = dlsym (RTLD_NEXT, "pread");
  *(void **) &real_pwrite = dlsym (RTLD_NEXT, "pwrite");
  *(void **) &real_pwritev = dlsym (RTLD_NEXT, "pwritev");
}

static void
plain_exit (int status, void *opaque)
{
  (void) opaque;
  fflush (NULL);
  _exit (status);
}

/* Handlers that are set after main has begun come before the destructors. */
static void
set_plain_exit (void)
{
  static bool is_set;

  if (!is_set && getenv ("MCBUF_PLAIN_EXIT") != NULL) {
    is_set = true;
    on_exit (plain_exit, NULL);
  }
}

/* The file NAME of the faults directory -> PATH; is it there? */
static bool
fault_file (const char *name, char *path, size_t len)
{
  const char *dir = getenv ("MCBUF_FAULTS");

  if (dir == NULL)
    return false;
  snprintf (path, len, "%s/%s", dir, name);
  return access (path, R_OK) == 0;
}

static void
count (void)
{
  char path[4096];
  int f;

  snprintf (path, sizeof path, "%s/count", getenv ("MCBUF_FAULTS"));
  f = real_open (path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (f >= 0) {
    if (write (f, "x", 1) == -1)
      perror (path);
    close (f);
  }
}

#define HOLD (-1)
#define COUNT (-2)

/* Does the rule LINE apply to LEN bytes at OFF of the file TARGET?  Then its errno, HOLD or COUNT; else 0. */
static int
apply (char *line, const char *target, off_t off, size_t len)
{
  char *rest, *what, *range;
  long long from = 0, to = LLONG_MAX;
  long err;

  if (strncmp (line, "hold ", 5) == 0) {
    err = HOLD;
    rest = line + 5;
  }
  else if (strncmp (line, "count ", 6) == 0) {
    err = COUNT;
    rest = line + 6;
  }
  else
    err = strtol (line, &rest, 10);
  what = strtok_r (rest, " ", &range);
  if (what == NULL)
    return 0;
  if (range && *range && sscanf (range, "%lld %lld", &from, &to) != 2)
    return 0;
  if (strlen (what) > strlen (target) ||
      strcmp (target + strlen (target) - strlen (what), what) != 0)
    return 0;
  return off < to && off + (off_t) len > from ? err : 0;
}

/* What the file of rules for CALL says: 0, an errno, HOLD or COUNT. */
static int
rule (const char *call, int fd, off_t off, size_t len)
{
  char path[4096], text[4096], link[64], target[4096], *line, *next;
  int found = 0;

  if (!fault_file (call, path, sizeof path))
    return 0;

  int f = real_open (path, O_RDONLY | O_CLOEXEC);
  if (f == -1)
    return 0;
  ssize_t n = read (f, text, sizeof text - 1);
  close (f);
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t m = readlink (link, target, sizeof target - 1);
  if (n <= 0 || m <= 0)
    return 0;
  text[n] = target[m] = '\0';
  for (line = strtok_r (text, "\n", &next); line && !found;
       line = strtok_r (NULL, "\n", &next))
    found = apply (line, target, off, len);
  return found;
}

/* Shall this CALL on LEN bytes at OFF of FD fail?  Then errno is set. */
static bool
fails (const char *call, int fd, off_t off, size_t len)
{
  int save_errno = errno, err;
  bool held = false;

  while ((err = rule (call, fd, off, len)) == HOLD) {
    if (!held)
      count ();
    held = true;
    usleep (5000);
  }
  if (err != 0)
    count ();
  errno = err > 0 ? err : save_errno;
  return err > 0;
}

EXPORT int
open (const char *path, int flags, ...)
{
  char instead[4096];
  mode_t mode = 0;

  if (flags & (O_CREAT | __O_TMPFILE)) {
    va_list args;

    va_start (args, flags);
    mode = va_arg (args, mode_t);
    va_end (args);
  }
  if (real_open == NULL)
    load ();
  if (strcmp (path, BOOT_ID) == 0)      /* a server reads it when it starts */
    set_plain_exit ();
  if (strcmp (path, BOOT_ID) == 0
      && fault_file ("boot_id", instead, sizeof instead))
    path = instead;
  return real_open (path, flags, mode);
}

EXPORT int
open64 (const char *path, int flags, ...)
{
  mode_t mode = 0;

  if (flags & (O_CREAT | __O_TMPFILE)) {
    va_list args;

    va_start (args, flags);
    mode = va_arg (args, mode_t);
    va_end (args);
  }
  return open (path, flags, mode);
}

EXPORT int
fdatasync (int fd)
{
  return fails ("fdatasync", fd, 0, 1) ? -1 : real_fdatasync (fd);
}

EXPORT int
fallocate (int fd, int mode, off_t off, off_t len)
{
  return fails ("fallocate", fd, off, len) ? -1 : real_fallocate (fd, mode, off, len);
}

EXPORT int
fallocate64 (int fd, int mode, off_t off, off_t len)
{
  return fallocate (fd, mode, off, len);
}

EXPORT ssize_t
pread (int fd, void *buf, size_t len, off_t off)
{
  return fails ("pread", fd, off, len) ? -1 : real_pread (fd, buf, len, off);
}

EXPORT ssize_t
pread64 (int fd, void *buf, size_t len, off_t off)
{
  return pread (fd, buf, len, off);
}

EXPORT ssize_t
pwrite (int fd, const void *buf, size_t len, off_t off)
{
  return fails ("pwrite", fd, off, len) ? -1 : real_pwrite (fd, buf, len, off);
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
  return fails ("pwrite", fd, off, len) ? -1 : real_pwritev (fd, iov, n, off);
}

EXPORT ssize_t
pwritev64 (int fd, const struct iovec *iov, int n, off_t off)
{
  return pwritev (fd, iov, n, off);
}
