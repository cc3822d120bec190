/* SPDX-License-Identifier: BSD-3-Clause */
/* Clocks, random bytes, latencies and the control socket for the programs of "make bench". */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"

void
usage (const char *what)
{
  fprintf (stderr, "%s: %s; the head of its source says what it takes\n",
           program_invocation_short_name, what);
  exit (EXIT_FAILURE);
}

uint64_t
now_ns (void)
{
  struct timespec ts;

  if (clock_gettime (CLOCK_MONOTONIC, &ts) == -1)
    die ("clock_gettime");
  return ts.tv_sec * UINT64_C (1000000000) + ts.tv_nsec;
}

uint64_t
number (const char *text)
{
  char *end;

  errno = 0;
  uint64_t n = strtoull (text, &end, 10);

  if (*text < '0' || *text > '9' || *end || errno) {
    fprintf (stderr, "%s: %s: not a number\n", program_invocation_short_name,
             text);
    exit (EXIT_FAILURE);
  }
  return n;
}

uint64_t
rnd (uint64_t *state)
{
  uint64_t x = *state;

  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  *state = x;
  return x * UINT64_C (2685821657736338717);
}

void *
random_bytes (size_t n, uint64_t seed)
{
  uint64_t state = seed | 1;
  void *p;

  if (posix_memalign (&p, 4096, n) != 0)
    die ("memory");
  for (size_t i = 0; i < n; i += 8) {
    uint64_t v = rnd (&state);

    memcpy ((char *) p + i, &v, n - i < 8 ? n - i : 8);
  }
  return p;
}

/* --- Latencies --- */

void
latencies_add (struct latencies *l, uint64_t ns)
{
  if (l->n == l->room) {
    size_t room = l->room ? 2 * l->room : 1024;
    uint64_t *p = realloc (l->ns, room * sizeof *p);

    if (p == NULL)
      die ("memory");
    l->ns = p;
    l->room = room;
  }
  l->ns[l->n++] = ns;
}

void
latencies_append (struct latencies *to, const struct latencies *from)
{
  for (size_t i = 0; i < from->n; i++)
    latencies_add (to, from->ns[i]);
}

static int
compare (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static double
rank_us (const struct latencies *l, unsigned percent)
{
  size_t k = (l->n * percent + 99) / 100;

  return l->ns[k > 0 ? k - 1 : 0] / 1e3;
}

void
latencies_print (const char *name, struct latencies *l)
{
  if (l->n == 0)
    return;
  qsort (l->ns, l->n, sizeof *l->ns, compare);
  printf (",\"%s\":{\"n\":%zu,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name,
          l->n, rank_us (l, 50), rank_us (l, 99), rank_us (l, 100));
}

/* --- The control socket --- */

int
control_connect (const char *journal)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd;

  if (snprintf (addr.sun_path, sizeof addr.sun_path, "%s/control", journal) >=
      (int) sizeof addr.sun_path) {
    errno = ENAMETOOLONG;
    die (journal);
  }
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd == -1 || connect (fd, (struct sockaddr *) &addr, sizeof addr) == -1)
    die (journal);
  return fd;
}

const char *
control_ask (int control, const char *request)
{
  static char reply[65536];
  char line[256];
  int len = snprintf (line, sizeof line, "%s\n", request);
  size_t n = 0;

  if (len >= (int) sizeof line) {
    errno = EMSGSIZE;
    die (request);
  }
  if (send (control, line, len, MSG_NOSIGNAL) != len)
    die ("send to the control socket");
  do {
    ssize_t r = recv (control, reply + n, sizeof reply - 1 - n, 0);

    if (r == 0)
      errno = ECONNRESET;
    if (r <= 0)
      die ("receive from the control socket");
    n += r;
  } while (reply[n - 1] != '\n' && n < sizeof reply - 1);
  reply[n] = '\0';
  if (strncmp (reply, "{\"error\"", 8) == 0) {
    fprintf (stderr, "%s: %s: %s", program_invocation_short_name, request,
             reply);
    exit (EXIT_FAILURE);
  }
  return reply;
}

uint64_t
control_number (const char *reply, const char *key)
{
  char quoted[64];
  const char *p;

  snprintf (quoted, sizeof quoted, "\"%s\":", key);
  p = strstr (reply, quoted);
  if (p == NULL) {
    fprintf (stderr, "%s: no %s in the reply %s", program_invocation_short_name,
             key, reply);
    exit (EXIT_FAILURE);
  }
  p += strlen (quoted);
  while (*p == ' ')
    p++;
  return strtoull (p, NULL, 10);
}
