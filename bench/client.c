/* SPDX-License-Identifier: BSD-3-Clause */
/* The load of "make bench": epochs of requests at a full queue, each ended by a
 * checkpoint.  One line of JSON with what it took.
 *
 * client KEY=VALUE ...
 *
 *   uri=URI           given several times: several exports, written in parallel
 *   connections=N     to each of them (1)
 *   op=write|read     (write)
 *   pattern=random|sequential|hot|sparse
 *                     hot: nine in ten go to a hundredth of the region; sparse: a quarter each is
 *                     a zero and a trim request of 16 SIZE (random)
 *   epochs=N          (1)
 *   period=US         from the beginning of an epoch to that of the next one, if it is done by then (0)
 *   requests=N        in an epoch, all connections together
 *   size=N            of a request (4096)
 *   depth=N           requests in flight on a connection (16)
 *   offset=N length=N the region that is used (the whole export)
 *   seed=N
 *   checkpoint=HOW    what ends an epoch (none):
 *      flush          NBD flush
 *      commit         of the replica whose journal is control=JOURNAL, connection kept
 *      seal           the same in two steps, each with its latency
 *      ask            the line "checkpoint" on standard output; "ok" on standard input when it is made
 *      ask-flush      the same, then a flush
 *   hold=URI          keep a connection to this export (a view holds write-out back)
 *   extents=FILE      write down offset and length of each write, 64 bit words of this host
 *
 * Every connection has a thread of its own, so that four of them are not one client's work.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

#include "bench/bench.h"
#include "bench/checkpoint.h"

#define MAX_CONNECTIONS 256
#define SLACK 65536             /* where in the random bytes a request begins */

enum pattern { PATTERN_RANDOM, PATTERN_SEQUENTIAL, PATTERN_HOT, PATTERN_SPARSE };

static struct {
  const char *uris[MAX_CONNECTIONS];
  unsigned nuris, connections;
  bool reads;
  enum pattern pattern;
  uint64_t epochs, period, requests, size, depth, offset, length, seed;
  enum checkpoint_how how;
  const char *control, *extents, *hold;
} opt = {
  .connections = 1, .epochs = 1, .requests = 1, .size = 4096, .depth = 16,
  .seed = 1
};

struct slot {
  struct conn *conn;
  uint64_t began;
  char *buf;                    /* reads only */
};

/* A connection.  Its own thread alone uses it, except between epochs. */
struct conn {
  struct nbd_handle *nbd;
  pthread_t thread;
  uint64_t rng, at, low, high;  /* the region, and where a stream is in it */
  uint64_t share;               /* of an epoch's requests */
  struct slot *slots, **idle;
  unsigned nidle;
  struct latencies requests;
  struct latencies offsets;     /* with extents=: where in place of how long */
};

static struct conn conns[MAX_CONNECTIONS];
static unsigned nconns;
static const char *data;        /* what is written */
static pthread_barrier_t begin, end;

void
die (const char *what)
{
  int err = errno;

  fprintf (stderr, "client: %s: %s\n", what,
           nbd_get_errno () ? nbd_get_error () : strerror (err));
  exit (EXIT_FAILURE);
}

/* --- Requests --- */

static int
completed (void *opaque, int *error)
{
  struct slot *slot = opaque;
  struct conn *c = slot->conn;

  if (*error) {
    fprintf (stderr, "client: a request failed: %s\n", strerror (*error));
    exit (EXIT_FAILURE);
  }
  latencies_add (&c->requests, now_ns () - slot->began);
  c->idle[c->nidle++] = slot;
  return 1;                     /* retire the command */
}

static uint64_t
next_offset (struct conn *c)
{
  uint64_t places = (c->high - c->low) / opt.size;

  if (opt.pattern == PATTERN_SEQUENTIAL) {
    uint64_t at = c->at;

    c->at = at + 2 * opt.size > c->high ? c->low : at + opt.size;
    return at;
  }
  if (opt.pattern == PATTERN_HOT && rnd (&c->rng) % 10 != 0 && places > 100)
    places /= 100;
  return c->low + rnd (&c->rng) % places * opt.size;
}

static void
submit (struct conn *c)
{
  struct slot *slot = c->idle[--c->nidle];
  nbd_completion_callback done = { .callback = completed, .user_data = slot };
  uint64_t offset = next_offset (c);
  unsigned kind = opt.pattern == PATTERN_SPARSE ? rnd (&c->rng) % 4 : 2;
  uint64_t large = c->high - offset < 16 * opt.size ? c->high - offset :
    16 * opt.size;
  int64_t r;

  slot->began = now_ns ();
  if (opt.reads)
    r = nbd_aio_pread (c->nbd, slot->buf, opt.size, offset, done, 0);
  else if (kind == 0)
    r = nbd_aio_zero (c->nbd, large, offset, done, 0);
  else if (kind == 1)
    r = nbd_aio_trim (c->nbd, large, offset, done, 0);
  else {
    /* Never the same bytes twice in a row, so that nothing can be clever. */
    r = nbd_aio_pwrite (c->nbd, data + rnd (&c->rng) % SLACK, opt.size, offset,
                        done, 0);
    if (opt.extents)
      latencies_add (&c->offsets, offset);
  }
  if (r == -1)
    die ("request");
}

static void
wait_idle (struct conn *c, unsigned wanted)
{
  while (c->nidle < wanted)
    if (nbd_poll (c->nbd, -1) == -1)
      die ("poll");
}

static void
run_epoch (struct conn *c)
{
  for (uint64_t i = 0; i < c->share; i++) {
    wait_idle (c, 1);
    submit (c);
  }
  wait_idle (c, opt.depth);
}

/* The clock of the primary's checkpoints. */
static void
wait_until (uint64_t ns)
{
  const struct timespec ts = {
    .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000
  };

  while ((errno = clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL)))
    if (errno != EINTR)
      die ("clock_nanosleep");
}

static void *
thread_main (void *opaque)
{
  for (uint64_t e = 0; e < opt.epochs; e++) {
    pthread_barrier_wait (&begin);
    run_epoch (opaque);
    pthread_barrier_wait (&end);
  }
  return NULL;
}

/* --- Connections --- */

static void
connect_one (unsigned i)
{
  struct conn *c = &conns[i];
  const char *uri = opt.uris[i / opt.connections];
  unsigned stream = i % opt.connections;
  int64_t size;
  uint64_t part;

  c->nbd = nbd_create ();
  if (c->nbd == NULL || nbd_connect_uri (c->nbd, uri) == -1)
    die (uri);
  size = nbd_get_size (c->nbd);
  if (size == -1)
    die (uri);
  c->low = opt.offset;
  c->high = opt.length ? opt.offset + opt.length : (uint64_t) size;
  if (c->high > (uint64_t) size || c->low + opt.size > c->high)
    usage ("the region is not in the export");
  part = (c->high - c->low) / opt.connections / opt.size * opt.size;
  c->at = c->low + stream * part;
  c->rng = (opt.seed + 1) * UINT64_C (0x9e3779b97f4a7c15) + i;
  c->rng |= 1;
  c->share = opt.requests / nconns + (i < opt.requests % nconns);
  c->slots = calloc (opt.depth, sizeof *c->slots);
  c->idle = calloc (opt.depth, sizeof (struct slot *));
  if (c->slots == NULL || c->idle == NULL)
    die ("memory");
  for (unsigned k = 0; k < opt.depth; k++) {
    c->slots[k].conn = c;
    if (opt.reads)
      c->slots[k].buf = random_bytes (opt.size, opt.seed + k);
    c->idle[c->nidle++] = &c->slots[k];
  }
}

static void
disconnect_one (struct conn *c)
{
  if (nbd_shutdown (c->nbd, 0) == -1)
    die ("shutdown");
  nbd_close (c->nbd);
  for (unsigned k = 0; k < opt.depth; k++)
    free (c->slots[k].buf);
  free (c->slots);
  free (c->idle);
  free (c->requests.ns);
  free (c->offsets.ns);
}

void
flush_all (void)
{
  int64_t cookie[MAX_CONNECTIONS];

  for (unsigned i = 0; i < nconns; i++) {
    cookie[i] = nbd_aio_flush (conns[i].nbd, NBD_NULL_COMPLETION, 0);
    if (cookie[i] == -1)
      die ("flush");
  }
  for (unsigned i = 0; i < nconns; i++) {
    int r;

    while ((r = nbd_aio_command_completed (conns[i].nbd, cookie[i])) == 0)
      if (nbd_poll (conns[i].nbd, -1) == -1)
        die ("poll");
    if (r == -1)
      die ("flush");
  }
}

/* --- The main program --- */

static enum pattern
parse_pattern (const char *text)
{
  static const char *const words[] = { "random", "sequential", "hot", "sparse" };

  for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
    if (strcmp (text, words[i]) == 0)
      return i;
  usage ("no such pattern");
}

static void
parse (char *arg)
{
  char *value = strchr (arg, '=');

  if (value == NULL)
    usage ("KEY=VALUE is wanted");
  *value++ = '\0';
  if (strcmp (arg, "uri") == 0) {
    if (opt.nuris == MAX_CONNECTIONS)
      usage ("too many exports");
    opt.uris[opt.nuris++] = value;
  }
  else if (strcmp (arg, "op") == 0)
    opt.reads = strcmp (value, "read") == 0;
  else if (strcmp (arg, "pattern") == 0)
    opt.pattern = parse_pattern (value);
  else if (strcmp (arg, "checkpoint") == 0)
    opt.how = checkpoint_parse (value);
  else if (strcmp (arg, "control") == 0)
    opt.control = value;
  else if (strcmp (arg, "extents") == 0)
    opt.extents = value;
  else if (strcmp (arg, "hold") == 0)
    opt.hold = value;
  else if (strcmp (arg, "connections") == 0)
    opt.connections = number (value);
  else if (strcmp (arg, "epochs") == 0)
    opt.epochs = number (value);
  else if (strcmp (arg, "period") == 0)
    opt.period = number (value);
  else if (strcmp (arg, "requests") == 0)
    opt.requests = number (value);
  else if (strcmp (arg, "size") == 0)
    opt.size = number (value);
  else if (strcmp (arg, "depth") == 0)
    opt.depth = number (value);
  else if (strcmp (arg, "offset") == 0)
    opt.offset = number (value);
  else if (strcmp (arg, "length") == 0)
    opt.length = number (value);
  else if (strcmp (arg, "seed") == 0)
    opt.seed = number (value);
  else
    usage ("no such key");
}

static void
write_extents (void)
{
  FILE *f = fopen (opt.extents, "we");

  if (f == NULL)
    die (opt.extents);
  for (unsigned i = 0; i < nconns; i++)
    for (size_t k = 0; k < conns[i].offsets.n; k++) {
      uint64_t extent[2] = { conns[i].offsets.ns[k], opt.size };

      if (fwrite (extent, sizeof extent, 1, f) != 1)
        die (opt.extents);
    }
  if (fclose (f) == EOF)
    die (opt.extents);
}

int
main (int argc, char *argv[])
{
  struct latencies epochs = { .n = 0 }, requests = { .n = 0 };
  struct nbd_handle *hold = NULL;
  uint64_t writing = 0, began, due = 0;

  for (int i = 1; i < argc; i++)
    parse (argv[i]);
  nconns = opt.nuris * opt.connections;
  if (opt.nuris == 0 || opt.connections == 0 || nconns > MAX_CONNECTIONS ||
      opt.epochs == 0 || opt.size == 0 || opt.depth == 0)
    usage ("uri= is missing, or a number does not fit");
  data = random_bytes (opt.size + SLACK, opt.seed);
  for (unsigned i = 0; i < nconns; i++)
    connect_one (i);
  if (opt.hold) {
    hold = nbd_create ();
    if (hold == NULL || nbd_connect_uri (hold, opt.hold) == -1)
      die (opt.hold);
  }
  checkpoint_open (opt.how, opt.control);
  if (pthread_barrier_init (&begin, NULL, nconns) != 0 ||
      pthread_barrier_init (&end, NULL, nconns) != 0)
    die ("barrier");
  for (unsigned i = 1; i < nconns; i++) {
    errno = pthread_create (&conns[i].thread, NULL, thread_main, &conns[i]);
    if (errno)
      die ("thread");
  }

  began = now_ns ();
  for (uint64_t e = 0; e < opt.epochs; e++) {
    if (opt.period)
      wait_until (due);
    uint64_t t = now_ns ();

    due = t + opt.period * 1000;
    pthread_barrier_wait (&begin);
    run_epoch (&conns[0]);
    pthread_barrier_wait (&end);
    writing += now_ns () - t;
    checkpoint_make ();
    latencies_add (&epochs, now_ns () - t);
  }
  uint64_t took = now_ns () - began;

  for (unsigned i = 0; i < nconns; i++) {
    if (i > 0)
      pthread_join (conns[i].thread, NULL);
    latencies_append (&requests, &conns[i].requests);
  }
  if (opt.extents)
    write_extents ();
  double n = (double) opt.epochs * opt.requests;

  printf ("{\"requests\":%.0f,\"bytes\":%.0f,\"seconds\":%.6f,\"iops\":%.0f,\"mb_s\":%.1f,"
          "\"epochs_s\":%.1f", n, n * opt.size, took / 1e9,
          writing ? n / (writing / 1e9) : 0,
          writing ? n * opt.size / (writing / 1e3) : 0,
          opt.epochs / (took / 1e9));
  latencies_print ("request_us", &requests);
  latencies_print ("epoch_us", &epochs);
  checkpoint_print ();
  printf ("}\n");
  for (unsigned i = 0; i < nconns; i++)
    disconnect_one (&conns[i]);
  if (hold)
    nbd_close (hold);
  return EXIT_SUCCESS;
}
