/* SPDX-License-Identifier: BSD-3-Clause */
/* What the machine itself can do, to hold mcbuf's figures against.  A line of JSON.
 *
 * bare sync FILE COUNT           overwrites of 4 KiB, an fdatasync after each
 * bare spawn FILE|- COUNT COMMAND [ARGUMENT ...]
 *                                starts of a command; with FILE, one overwrite and fdatasync after each
 * bare replay FILE EXTENTS SEED  the extents that "client extents=" wrote down: sorted, coalesced,
 *                                pwritev, one fdatasync
 *
 * FILE has to exist and to be written once, so that no block of it has to be allocated.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"

extern char **environ;

void
die (const char *what)
{
  fprintf (stderr, "bare: %s: %s\n", what, strerror (errno));
  exit (EXIT_FAILURE);
}

static int
open_file (const char *path, off_t *size)
{
  struct stat st;
  int fd = open (path, O_RDWR | O_CLOEXEC);

  if (fd == -1 || fstat (fd, &st) == -1)
    die (path);
  if (st.st_size < 8192)
    usage ("the file is too small");
  *size = st.st_size;
  return fd;
}

static void
overwrite (int fd, off_t size, uint64_t *rng, const char *data)
{
  off_t at = rnd (rng) % (size / 4096) * 4096;

  if (pwrite (fd, data + rnd (rng) % 4096, 4096, at) != 4096)
    die ("pwrite");
  if (fdatasync (fd) == -1)
    die ("fdatasync");
}

static void
print_latencies (const char *name, struct latencies *l)
{
  printf ("{\"count\":%zu", l->n);
  latencies_print (name, l);
  printf ("}\n");
  free (l->ns);
}

static void
run_sync (char *argv[])
{
  struct latencies l = { .n = 0 };
  char *data = random_bytes (8192, 1);
  uint64_t rng = 88172645463325252, count = number (argv[1]);
  off_t size;
  int fd = open_file (argv[0], &size);

  overwrite (fd, size, &rng, data);     /* warm */
  for (uint64_t i = 0; i < count; i++) {
    uint64_t t = now_ns ();

    overwrite (fd, size, &rng, data);
    latencies_add (&l, now_ns () - t);
  }
  close (fd);
  free (data);
  print_latencies ("sync_us", &l);
}

static void
spawn_one (char *argv[], const posix_spawn_file_actions_t *actions)
{
  pid_t pid;
  int status;

  errno = posix_spawn (&pid, argv[0], actions, NULL, argv, environ);
  if (errno || waitpid (pid, &status, 0) == -1)
    die (argv[0]);
  if (!WIFEXITED (status) || WEXITSTATUS (status) != 0) {
    fprintf (stderr, "bare: %s failed\n", argv[0]);
    exit (EXIT_FAILURE);
  }
}

static void
run_spawn (char *argv[])
{
  struct latencies l = { .n = 0 };
  char *data = random_bytes (8192, 1);
  uint64_t rng = 88172645463325252, count = number (argv[1]);
  posix_spawn_file_actions_t actions;
  off_t size = 0;
  int fd = strcmp (argv[0], "-") == 0 ? -1 : open_file (argv[0], &size);

  errno = posix_spawn_file_actions_init (&actions);
  if (errno == 0)
    errno = posix_spawn_file_actions_addopen (&actions, 1, "/dev/null",
                                              O_WRONLY, 0);
  if (errno)
    die ("posix_spawn");
  spawn_one (argv + 2, &actions);       /* warm */
  for (uint64_t i = 0; i < count; i++) {
    uint64_t t = now_ns ();

    spawn_one (argv + 2, &actions);
    if (fd >= 0)
      overwrite (fd, size, &rng, data);
    latencies_add (&l, now_ns () - t);
  }
  if (fd >= 0)
    close (fd);
  posix_spawn_file_actions_destroy (&actions);
  free (data);
  print_latencies ("spawn_us", &l);
}

/* --- replay --- */

struct extent {
  uint64_t offset, length;
};

static int
by_offset (const void *a, const void *b)
{
  const struct extent *x = a, *y = b;

  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static struct extent *
read_extents (const char *path, size_t *n)
{
  FILE *f = fopen (path, "re");
  struct extent *extents;
  struct stat st;

  if (f == NULL || fstat (fileno (f), &st) == -1)
    die (path);
  *n = st.st_size / sizeof *extents;
  extents = malloc (*n * sizeof *extents + 1);
  if (extents == NULL)
    die ("memory");
  if (*n == 0 || fread (extents, sizeof *extents, *n, f) != *n)
    usage ("no extents in the file");
  fclose (f);
  return extents;
}

/* Sort; drop what is there twice.  All are of one size and aligned to it. */
static size_t
sort_extents (struct extent *e, size_t n)
{
  size_t kept = 0;

  qsort (e, n, sizeof *e, by_offset);
  for (size_t i = 0; i < n; i++)
    if (kept == 0 || e[kept - 1].offset != e[i].offset)
      e[kept++] = e[i];
  return kept;
}

static void
write_run (int fd, const struct iovec *iov, int n, uint64_t at)
{
  size_t want = 0;
  ssize_t r = pwritev (fd, iov, n, at);

  for (int i = 0; i < n; i++)
    want += iov[i].iov_len;
  if (r == -1)
    die ("pwritev");
  if ((size_t) r != want) {
    errno = ENOSPC;
    die ("pwritev");
  }
}

static void
run_replay (char *argv[])
{
  struct iovec iov[256];
  size_t n, given, runs = 0;
  struct extent *e = read_extents (argv[1], &given);
  uint64_t t, bytes = 0;
  off_t size;
  int fd = open_file (argv[0], &size);
  char *data;

  n = sort_extents (e, given);
  data = random_bytes (e[0].length + 65536, number (argv[2]));
  t = now_ns ();
  for (size_t i = 0; i < n; runs++) {
    uint64_t at = e[i].offset, next = at;
    int k = 0;

    while (i < n && k < 256 && e[i].offset == next) {
      iov[k].iov_base = data + (i % 16) * 4096;
      iov[k++].iov_len = e[i].length;
      bytes += e[i].length;
      next += e[i++].length;
    }
    write_run (fd, iov, k, at);
  }
  if (fdatasync (fd) == -1)
    die ("fdatasync");
  t = now_ns () - t;
  printf ("{\"bytes\":%" PRIu64 ",\"extents\":%zu,\"runs\":%zu,\"seconds\":%.6f,\"mb_s\":%.1f}\n",
          bytes, n, runs, t / 1e9, bytes / (t / 1e3));
  close (fd);
  free (e);
  free (data);
}

int
main (int argc, char *argv[])
{
  if (argc == 4 && strcmp (argv[1], "sync") == 0)
    run_sync (argv + 2);
  else if (argc >= 5 && strcmp (argv[1], "spawn") == 0)
    run_spawn (argv + 2);
  else if (argc == 5 && strcmp (argv[1], "replay") == 0)
    run_replay (argv + 2);
  else
    usage ("sync, spawn or replay is wanted");
  return EXIT_SUCCESS;
}
