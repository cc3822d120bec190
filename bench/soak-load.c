/* SPDX-License-Identifier: BSD-3-Clause */
/* The load of "make soak": writes spread evenly over time, a commit at a fixed rate beside them, as
 * a guest that does not stand still makes them.  A line of JSON after each interval.
 *
 * soak-load URI JOURNAL SECONDS INTERVAL RATE WRITES BLOCKS SEED
 *
 *   RATE     commits a second, WRITES of 4 KiB for each
 *   BLOCKS   of 4 KiB that are written to, again and again, spread over the disk
 *
 * A latency counts from when its request was due, not from when it could be sent: a server
 * that stalls is charged with all that it held up.  How late the writes were sent is told too: as long
 * as the queue is not full, that is the machine, which did not let this process run.  They are counted in buckets of 1.6 %,
 * so that memory and time do not grow with the run.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#define BLOCK 4096u
#define DEPTH 64u               /* requests in flight; those that are due later wait */
#define BUFFER 65536u
#define SECOND UINT64_C (1000000000)

/* --- Latencies: 64 buckets for each power of two, after HdrHistogram --- */

#define SUB_BITS 6
#define BUCKETS ((64 - SUB_BITS + 1) << SUB_BITS)

struct histogram {
  uint64_t n, max, max_at;
  uint64_t count[BUCKETS];
};

static unsigned
bucket_of (uint64_t ns)
{
  unsigned shift;

  if (ns < (UINT64_C (1) << SUB_BITS))
    return ns;
  shift = 63 - SUB_BITS - __builtin_clzll (ns);
  return ((shift + 1) << SUB_BITS) + ((ns >> shift) & ((1u << SUB_BITS) - 1));
}

/* The middle of what falls into bucket B. */
static uint64_t
value_of (unsigned b)
{
  unsigned shift = (b >> SUB_BITS) - 1;

  if (b < (1u << SUB_BITS))
    return b;
  return (((UINT64_C (1) << SUB_BITS) + (b & ((1u << SUB_BITS) - 1))) << shift) +
    (UINT64_C (1) << shift) / 2;
}

static void
count (struct histogram *h, uint64_t ns, uint64_t at)
{
  h->n++;
  h->count[bucket_of (ns)]++;
  if (ns > h->max) {
    h->max = ns;
    h->max_at = at;
  }
}

static double
percentile_us (const struct histogram *h, double part)
{
  uint64_t left = h->n * part;

  for (unsigned b = 0; b < BUCKETS; b++) {
    if (left < h->count[b])
      return value_of (b) / 1e3;
    left -= h->count[b];
  }
  return h->max / 1e3;
}

static void
print_histogram (const char *name, const struct histogram *h, uint64_t began)
{
  printf (",\"%s\":{\"n\":%" PRIu64 ",\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f,\"max_at\":%.3f}",
          name, h->n, percentile_us (h, 0.5), percentile_us (h, 0.99),
          percentile_us (h, 0.999), h->max / 1e3,
          h->max_at ? (h->max_at - began) / 1e9 : 0);
}

/* --- The two connections --- */

static struct nbd_handle *nbd;
static int control = -1;
static unsigned in_flight;
static struct histogram writes, commits, late;
static uint64_t committing;     /* when the commit under way was due; 0: none */
static char reply[65536];
static size_t reply_len;

static void
die (const char *what)
{
  fprintf (stderr, "soak-load: %s: %s\n", what,
           nbd_get_errno () ? nbd_get_error () : strerror (errno));
  exit (EXIT_FAILURE);
}

static uint64_t
now_ns (void)
{
  struct timespec ts;

  if (clock_gettime (CLOCK_MONOTONIC, &ts) == -1)
    die ("clock_gettime");
  return ts.tv_sec * SECOND + ts.tv_nsec;
}

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
control_read (void)
{
  ssize_t n = recv (control, reply + reply_len, sizeof reply - 1 - reply_len, 0);
  uint64_t now;

  if (n <= 0)
    die ("the control socket");
  reply_len += n;
  reply[reply_len] = '\0';
  if (strchr (reply, '\n') == NULL)
    return;
  if (strstr (reply, "\"checkpoint\"") == NULL) {
    fprintf (stderr, "soak-load: commit: %s", reply);
    exit (EXIT_FAILURE);
  }
  now = now_ns ();
  count (&commits, now - committing, now);
  committing = 0;
  reply_len = 0;
}

/* OPAQUE is the time when the write was due. */
static int
written (void *opaque, int *error)
{
  uint64_t now = now_ns ();

  if (*error) {
    fprintf (stderr, "soak-load: write: %s\n", strerror (*error));
    exit (EXIT_FAILURE);
  }
  count (&writes, now - (uintptr_t) opaque, now);
  in_flight--;
  return 1;                     /* retire the command */
}

/* Let both go on until something happens or UNTIL. */
static void
turn (uint64_t until)
{
  unsigned dir = nbd_aio_get_direction (nbd);
  struct pollfd fds[2] = {
    { .fd = nbd_aio_get_fd (nbd),
      .events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0) },
    { .fd = control, .events = POLLIN },
  };
  uint64_t now = now_ns ();
  uint64_t left = until > now ? until - now : 0;
  struct timespec ts = { .tv_sec = left / SECOND, .tv_nsec = left % SECOND };

  if (ppoll (fds, 2, &ts, NULL) == -1)
    die ("ppoll");
  if (fds[0].revents & (POLLIN | POLLHUP | POLLERR) &&
      dir & LIBNBD_AIO_DIRECTION_READ) {
    if (nbd_aio_notify_read (nbd) == -1)
      die ("read");
  }
  else if (fds[0].revents & POLLOUT && dir & LIBNBD_AIO_DIRECTION_WRITE)
    if (nbd_aio_notify_write (nbd) == -1)
      die ("write");
  if (fds[1].revents)
    control_read ();
}

/* --- What is written --- */

static uint64_t rng;

static uint64_t
rnd (void)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng;
}

static uint64_t blocks, disk_blocks;

/* One of BLOCKS places, each somewhere in its own part of the disk. */
static uint64_t
place (void)
{
  uint64_t part = disk_blocks / blocks, i = rnd () % blocks;
  uint64_t mixed = i * UINT64_C (0x9e3779b97f4a7c15);

  return i * part + (mixed ^ mixed >> 29) % part;
}

static void
submit (const char *data, uint64_t due)
{
  if (nbd_aio_pwrite (nbd, data + rnd () % BUFFER / 8 * 8, BLOCK, place () * BLOCK,
                      (nbd_completion_callback) { .callback = written,
                        .user_data = (void *) (uintptr_t) due }, 0) == -1)
    die ("write");
  in_flight++;
}

static void
report (uint64_t began, uint64_t now)
{
  printf ("{\"t\":%.3f", (now - began) / 1e9);
  print_histogram ("commit_us", &commits, began);
  print_histogram ("write_us", &writes, began);
  print_histogram ("late_us", &late, began);
  printf ("}\n");
  if (fflush (stdout) != 0)
    die ("stdout");
  memset (&commits, 0, sizeof commits);
  memset (&writes, 0, sizeof writes);
  memset (&late, 0, sizeof late);
}

static uint64_t
number (const char *text)
{
  char *end;
  uint64_t n = strtoull (text, &end, 10);

  if (*text == '\0' || *end || n == 0) {
    fprintf (stderr, "soak-load: %s: not a number above 0\n", text);
    exit (EXIT_FAILURE);
  }
  return n;
}

int
main (int argc, char *argv[])
{
  static char data[BUFFER + BLOCK];
  uint64_t seconds, interval, rate, each, began, end, next_report;
  uint64_t next_write, next_commit, write_ns, commit_ns;

  if (argc != 9) {
    fprintf (stderr, "usage: soak-load URI JOURNAL SECONDS INTERVAL RATE WRITES BLOCKS SEED\n");
    return EXIT_FAILURE;
  }
  seconds = number (argv[3]);
  interval = number (argv[4]);
  rate = number (argv[5]);
  each = number (argv[6]);
  blocks = number (argv[7]);
  rng = number (argv[8]);
  for (unsigned i = 0; i < sizeof data; i++)
    data[i] = rnd () >> 24;
  nbd = nbd_create ();
  if (nbd == NULL || nbd_connect_uri (nbd, argv[1]) == -1)
    die (argv[1]);
  disk_blocks = nbd_get_size (nbd) / BLOCK;
  if (blocks > disk_blocks)
    blocks = disk_blocks;
  control_connect (argv[2]);

  commit_ns = SECOND / rate;
  write_ns = commit_ns / each;
  began = next_write = next_commit = now_ns ();
  end = began + seconds * SECOND;
  next_report = began + interval * SECOND;
  for (;;) {
    uint64_t now = now_ns (), until;

    if (now >= next_report) {
      report (began, now);
      next_report += interval * SECOND;
    }
    if (now >= end)
      break;
    if (now >= next_commit && committing == 0) {
      if (send (control, "commit\n", 7, 0) != 7)
        die ("send");
      committing = next_commit;
      next_commit += commit_ns;
    }
    while (now >= next_write && in_flight < DEPTH) {
      count (&late, now - next_write, now);
      submit (data, next_write);
      next_write += write_ns;
    }
    until = committing ? next_report : next_commit < next_report ? next_commit : next_report;
    if (in_flight < DEPTH && next_write < until)
      until = next_write;
    turn (until);
  }
  while (in_flight > 0 || committing)
    turn (now_ns () + SECOND);
  if (nbd_shutdown (nbd, 0) == -1)
    die ("shutdown");
  nbd_close (nbd);
  return EXIT_SUCCESS;
}
