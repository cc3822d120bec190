/* SPDX-License-Identifier: BSD-3-Clause */
/* The load of "make bench": epochs of writes at a full queue, each ended by a
 * checkpoint.  One line of JSON with what it took.
 *
 * client URI CHECKPOINT EPOCHS WRITES SIZE PATTERN DEPTH SEED
 *
 *   CHECKPOINT  none, flush, or the journal directory of a mcbuf replica
 *   WRITES      per epoch, of SIZE bytes
 *   PATTERN     random or sequential
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

static struct nbd_handle *nbd;
static unsigned in_flight;

static void
die (const char *what)
{
  fprintf (stderr, "bench client: %s: %s\n", what,
           nbd_get_errno () ? nbd_get_error () : strerror (errno));
  exit (EXIT_FAILURE);
}

static uint64_t
now_ns (void)
{
  struct timespec ts;

  if (clock_gettime (CLOCK_MONOTONIC, &ts) == -1)
    die ("clock_gettime");
  return ts.tv_sec * UINT64_C (1000000000) + ts.tv_nsec;
}

static uint64_t rng;

static uint64_t
rnd (void)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng;
}

static int
written (void *opaque, int *error)
{
  (void) opaque;
  if (*error) {
    errno = *error;
    fprintf (stderr, "bench client: write: %s\n", strerror (*error));
    exit (EXIT_FAILURE);
  }
  in_flight--;
  return 1;                     /* retire the command */
}

static void
wait_below (unsigned depth)
{
  while (in_flight >= depth)
    if (nbd_poll (nbd, -1) == -1)
      die ("poll");
}

/* --- the checkpoint -------------------------------------------------------- */

static int control = -1;

static void
control_connect (const char *dir)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (snprintf (addr.sun_path, sizeof addr.sun_path, "%s/control", dir) >=
      (int) sizeof addr.sun_path) {
    errno = ENAMETOOLONG;
    die (dir);
  }
  control = socket (AF_UNIX, SOCK_STREAM, 0);
  if (control == -1 ||
      connect (control, (struct sockaddr *) &addr, sizeof addr) == -1)
    die (dir);
}

static void
checkpoint (const char *how)
{
  if (strcmp (how, "none") == 0)
    return;
  if (strcmp (how, "flush") == 0) {
    if (nbd_flush (nbd, 0) == -1)
      die ("flush");
    return;
  }
  char reply[4096];
  if (send (control, "commit\n", 7, 0) != 7)
    die ("send");
  ssize_t n = recv (control, reply, sizeof reply - 1, 0);
  if (n <= 0)
    die ("recv");
  reply[n] = '\0';
  if (strstr (reply, "\"checkpoint\"") == NULL) {
    fprintf (stderr, "bench client: commit: %s", reply);
    exit (EXIT_FAILURE);
  }
}

static int
compare (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static uint64_t
number (const char *text)
{
  char *end;
  uint64_t n = strtoull (text, &end, 10);

  if (*text == '\0' || *end) {
    fprintf (stderr, "bench client: %s: not a number\n", text);
    exit (EXIT_FAILURE);
  }
  return n;
}

int
main (int argc, char *argv[])
{
  if (argc != 9) {
    fprintf (stderr, "usage: client URI CHECKPOINT EPOCHS WRITES SIZE PATTERN DEPTH SEED\n");
    return EXIT_FAILURE;
  }
  const char *how = argv[2], *pattern = argv[6];
  uint64_t epochs = number (argv[3]), writes = number (argv[4]);
  uint64_t size = number (argv[5]), depth = number (argv[7]);
  uint64_t *latency = calloc (epochs + 1, sizeof *latency);
  uint64_t *whole = calloc (epochs + 1, sizeof *whole);
  char *buf = malloc (size + 65536);
  uint64_t writing = 0, at = 0;

  rng = number (argv[8]) | 1;
  if (epochs == 0 || latency == NULL || whole == NULL || buf == NULL)
    die ("memory");
  for (uint64_t i = 0; i < size + 65536; i += 8) {
    uint64_t v = rnd ();

    memcpy (buf + i, &v, size + 65536 - i < 8 ? size + 65536 - i : 8);
  }
  nbd = nbd_create ();
  if (nbd == NULL || nbd_connect_uri (nbd, argv[1]) == -1)
    die (argv[1]);
  int64_t disk = nbd_get_size (nbd);
  if (disk < (int64_t) size)
    die ("disk too small");
  if (how[0] == '/')
    control_connect (how);

  for (uint64_t e = 0; e < epochs; e++) {
    uint64_t t0 = now_ns (), t1;

    for (uint64_t i = 0; i < writes; i++) {
      uint64_t off = strcmp (pattern, "random") == 0 ?
        rnd () % (disk / size) * size : at;

      at = at + 2 * size > (uint64_t) disk ? 0 : at + size;
      wait_below (depth);
      /* Never the same bytes twice in a row, so that nothing can be clever. */
      if (nbd_aio_pwrite (nbd, buf + rnd () % 65536, size, off,
                          (nbd_completion_callback) { .callback = written },
                          0) == -1)
        die ("pwrite");
      in_flight++;
    }
    wait_below (1);
    t1 = now_ns ();
    writing += t1 - t0;
    checkpoint (how);
    latency[e] = now_ns () - t1;
    whole[e] = now_ns () - t0;
  }
  qsort (latency, epochs, sizeof *latency, compare);
  qsort (whole, epochs, sizeof *whole, compare);
  double bytes = (double) epochs * writes * size;
  printf ("{\"iops\":%.0f,\"mb_s\":%.1f,\"checkpoint_us\":{\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f},"
          "\"epoch_us\":{\"p50\":%.1f,\"p99\":%.1f}}\n",
          writing ? epochs * writes / (writing / 1e9) : 0,
          writing ? bytes / (writing / 1e3) : 0,
          latency[epochs / 2] / 1e3, latency[epochs * 99 / 100] / 1e3,
          latency[epochs - 1] / 1e3, whole[epochs / 2] / 1e3,
          whole[epochs * 99 / 100] / 1e3);
  if (nbd_shutdown (nbd, 0) == -1)
    die ("shutdown");
  nbd_close (nbd);
  free (latency);
  free (whole);
  free (buf);
  return EXIT_SUCCESS;
}
