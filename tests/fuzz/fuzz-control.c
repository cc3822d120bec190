/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests of any bytes to a live replica: control verbs by the way of the Unix socket and by
 * that of the NBD export, export names, and data requests around them.
 *
 * Byte 0 of an input chooses the world; then come requests: a byte that says which sort, two of
 * length, and so much payload.
 *
 * What must hold: no crash, no hang; every answer is one line of JSON; a refusal has a text and a code,
 * and what else is answered is none; the state is one of those that there are; and in the end recovery
 * finds the checkpoint that was acknowledged last.
 */
#include "config.h"

#include <inttypes.h>
#include <sys/socket.h>

#include <jansson.h>

#include "fuzz/fuzz.h"
#include "fuzz/nbdkit-stubs.h"
#include "fuzz/world.h"

/* For what is static there: the callbacks, and what serves a client of the socket. */
#include "../plugin/mcbuf.c"
#include "../replica/socket.c"

#include "unit/torture.h"

#define REQUESTS 400u
#define FAULT_LASTS 60          /* operations: for ever */
#define STREAM_MAX 2000u        /* answers to more might fill the socket */

enum sort {
  SORT_LOCAL, SORT_REMOTE, SORT_REMOTE_READ, SORT_REMOTE_AT, SORT_STREAM,
  SORT_WRITE, SORT_ZERO, SORT_READ, SORT_FLUSH, SORT_WRITEOUT, SORT_RESTART,
  SORT_KILL, SORT_EXTENTS, SORT_EXPORT, SORT_SPARES, SORT_FAULT, SORTS
};

static struct simdisk *disk;
static uint64_t fault_ends;
static bool faults;             /* some operation was to fail */
static bool unknown;            /* what recovery will find is not known */
static bool has_checkpoint;
static uint64_t checkpoint;

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  (void) argc;
  (void) argv;
  for (unsigned i = 0; i < WORLDS; i++)
    (void) world_get (i);
  return 0;
}

/* --- answers --- */

static const char *const states[] = {
  "syncing", "protected", "stale", "resyncing", "promoted", "failed",
};

static void
know (void)
{
  has_checkpoint = replica->has_checkpoint;
  checkpoint = replica->checkpoint.id;
}

/* TEXT answers a request.  RESULT 0, -1; 1: it is not known which. */
static void
check_answer (const char *text, int result)
{
  json_error_t where;
  json_t *json = json_loads (text, JSON_REJECT_DUPLICATES, &where), *error;
  const char *state;

  HOLDS (json_is_object (json), "not an object: %s", text);
  HOLDS (strchr (text, '\n') == NULL, "more than a line: %s", text);
  error = json_object_get (json, "error");
  HOLDS (result == 1 || (result == -1) == (error != NULL),
         "result %d: %s", result, text);
  if (error) {
    json_int_t code = json_integer_value (json_object_get (json, "code"));

    HOLDS (json_string_length (error) > 0 && code >= MCEXIT_USAGE &&
           code <= MCEXIT_PARTIAL, "a refusal: %s", text);
  }
  state = json_string_value (json_object_get (json, "state"));
  for (unsigned i = 0; state && strcmp (state, states[i]) != 0; i++)
    HOLDS (i + 1 < sizeof states / sizeof states[0], "state %s", state);
  json_decref (json);
}

static void
control_local (const uint8_t *p, size_t len)
{
  char *reply;
  int result = replica_control (replica, true, (const char *) p, len, &reply);

  HOLDS (reply, "no answer");
  check_answer (reply, result);
  free (reply);
}

static void
control_remote (void *handle, const uint8_t *p, size_t len)
{
  static char reply[REPLICA_CONTROL_SIZE + 1];
  unsigned errors = stub_errors;
  int result;

  if (len == 0)
    return;
  stub_errno = 0;
  result = plugin.pwrite (handle, p, len, 0, 0);
  HOLDS (result == 0 || (stub_errors > errors && stub_errno != 0),
         "a refusal without a word");
  HOLDS (plugin.pread (handle, reply, REPLICA_CONTROL_SIZE, 0, 0) == 0,
         "the reply cannot be read");
  HOLDS (strlen (reply) < REPLICA_CONTROL_SIZE, "the reply does not fit");
  check_answer (reply, result);
}

static void
control_at (void *handle, const uint8_t *p, size_t len)
{
  if (len > 2)
    HOLDS (plugin.pwrite (handle, p + 2, len - 2, 1 + p[0] + (p[1] << 8), 0) == -1,
           "a request at another offset than 0");
}

static void
control_read (void *handle, const uint8_t *p, size_t len)
{
  static uint8_t buf[REPLICA_CONTROL_SIZE];
  uint32_t off, count;

  if (len < 4)
    return;
  off = p[0] | p[1] << 8;
  count = p[2] | p[3] << 8;
  count = MIN (count, REPLICA_CONTROL_SIZE - off);
  if (count > 0)
    HOLDS (plugin.pread (handle, buf, count, off, 0) == 0, "read");
}

/* What a client of the Unix socket says, and then hangs up. */
static void
control_stream (const uint8_t *p, size_t len)
{
  struct control c = { .replica = replica };
  struct client client = { .control = &c };
  const struct timeval never = { .tv_sec = 5 };
  char *answers = malloc (1 << 20), *line, *rest;
  size_t used = 0;
  ssize_t n;
  int fd[2];

  len = MIN (len, (size_t) STREAM_MAX);
  HOLDS (answers && socketpair (AF_UNIX, SOCK_STREAM, 0, fd) == 0, "socketpair");
  HOLDS (setsockopt (fd[0], SOL_SOCKET, SO_SNDBUF, &(int) { 1 << 20 }, sizeof (int)) == 0 &&
         setsockopt (fd[0], SOL_SOCKET, SO_SNDTIMEO, &never, sizeof never) == 0,
         "setsockopt");
  HOLDS (len == 0 || send (fd[1], p, len, 0) == (ssize_t) len, "send");
  HOLDS (shutdown (fd[1], SHUT_WR) == 0, "shutdown");
  client.fd = fd[0];
  serve (&client);
  (void) close (fd[0]);
  while ((n = recv (fd[1], answers + used, (1 << 20) - 1 - used, 0)) > 0)
    used += n;
  answers[used] = '\0';
  (void) close (fd[1]);
  HOLDS (memchr (answers, '\0', used) == NULL, "a NUL in an answer");
  for (line = answers; *line; line = rest) {
    rest = strchr (line, '\n');
    if (rest == NULL)
      break;                    /* the socket was full */
    *rest++ = '\0';
    check_answer (line, 1);
  }
  free (answers);
}

/* --- other requests --- */

static bool
is_full (void)
{
  struct journal_usage usage;

  journal_get_usage (replica->journal, &usage);
  return usage.available < 5 * JOURNAL_CHUNK;
}

/* Disk, offset and length from the payload. */
static bool
get_range (const uint8_t *p, size_t len, struct replica_export *x,
           uint64_t *off, uint32_t *count)
{
  if (len < 6)
    return false;
  *x = (struct replica_export) {
    .disk = p[0] % WORLD_DISKS, .fence = replica->fence,
    .view = p[0] & 0x80 ? REPLICA_PROMOTED : REPLICA_INLET };
  *off = (p[1] | p[2] << 8 | p[3] << 16) % world_size[x->disk];
  *count = 1 + (p[4] | p[5] << 8) % 40000;
  *count = MIN (*count, world_size[x->disk] - *off);
  return true;
}

static void
data (enum sort sort, const uint8_t *p, size_t len)
{
  static uint8_t buf[40000];
  struct replica_export x;
  struct handle h = { .control = false };
  uint64_t off, next;
  uint32_t count;
  int r = 0;

  if (!get_range (p, len, &x, &off, &count))
    return;
  h.export = x;
  switch (sort) {
  case SORT_WRITE:
    memset (buf, p[5], count);
    if (!is_full ())
      r = plugin.pwrite (&h, buf, count, off,
                         p[0] & 0x40 ? NBDKIT_FLAG_FUA : 0);
    break;
  case SORT_ZERO:
    if (!is_full ())
      r = p[0] & 0x40 ? plugin.trim (&h, count, off, 0) :
        plugin.zero (&h, count, off,
                     (p[0] & 0x20 ? NBDKIT_FLAG_MAY_TRIM : 0) |
                     (p[0] & 0x10 ? NBDKIT_FLAG_FAST_ZERO : 0));
    break;
  case SORT_READ:
    r = p[0] & 0x40 ? plugin.cache (&h, count, off, 0) :
      plugin.pread (&h, buf, count, off, 0);
    break;
  default:
    next = off;
    r = plugin.extents (&h, count, off, 0, (struct nbdkit_extents *) &next);
    HOLDS (r == -1 || next >= off + count, "extents that end early");
  }
  HOLDS (r == 0 || r == -1, "result %d", r);
}

static void
export (const uint8_t *p, size_t len)
{
  char *name = strndup ((const char *) p, MIN (len, (size_t) 4095));
  uint32_t minimum, preferred, maximum;
  unsigned errors = stub_errors;
  void *handle;

  HOLDS (name, "out of memory");
  stub_export_name = name;
  handle = plugin.open (0);
  HOLDS (handle || stub_errors > errors, "refused without a word");
  if (handle) {
    HOLDS (plugin.get_size (handle) > 0, "size");
    HOLDS (plugin.export_description (handle) != NULL, "description");
    HOLDS (plugin.block_size (handle, &minimum, &preferred, &maximum) == 0,
           "block size");
    plugin.close (handle);
  }
  HOLDS (plugin.list_exports (0, 0, NULL) == 0 &&
         plugin.default_export (0, 0) != NULL, "list");
  stub_export_name = "";
  free (name);
}

static void *
open_control (void)
{
  void *handle;

  stub_export_name = CONTROL_EXPORT;
  handle = plugin.open (0);
  HOLDS (handle, "the control export cannot be opened");
  stub_export_name = "";
  return handle;
}

/* For ever is long enough: write-out goes on trying. */
static void
on_op (void *opaque, enum simdisk_op op)
{
  (void) opaque;
  (void) op;
  if (simdisk_ops (disk) > fault_ends)
    simdisk_fail (disk, 0, 0, false);
}

static bool
start (void)
{
  struct mcerror err = { 0 };

  replica = world_open (disk, &err);
  HOLDS (replica || faults, "cannot open: %s", err.text);
  simdisk_hook (disk, on_op, NULL);
  if (replica == NULL)
    return false;
  replica_set_shutdown (replica, nbdkit_shutdown);
  return true;
}

/* A clean stop, or SIGKILL, perhaps of the host; and a new server. */
static bool
restart (bool killed, const uint8_t *p, size_t len)
{
  simdisk_hook (disk, NULL, NULL);
  simdisk_fail (disk, 0, 0, false);
  if (killed) {
    struct simdisk *after = world_copy (disk);

    know ();
    replica_close (replica);
    simdisk_free (disk);
    disk = after;
    if (len > 0 && p[0] & 1)
      host_boot (1);
  }
  else {
    replica_close (replica);
    replica = NULL;
  }
  return start ();
}

/* --- an input --- */

static void
request (void *control, enum sort sort, const uint8_t *p, size_t len)
{
  struct handle h = { .control = false };

  switch (sort) {
  case SORT_LOCAL: control_local (p, len); break;
  case SORT_REMOTE: control_remote (control, p, len); break;
  case SORT_REMOTE_READ: control_read (control, p, len); break;
  case SORT_REMOTE_AT: control_at (control, p, len); break;
  case SORT_STREAM: control_stream (p, len); break;
  case SORT_WRITE: case SORT_ZERO: case SORT_READ: case SORT_EXTENTS:
    data (sort, p, len);
    break;
  case SORT_FLUSH:
    h.export = (struct replica_export) { .fence = replica->fence };
    (void) plugin.flush (&h, 0);
    break;
  case SORT_WRITEOUT: (void) writeout_step (replica); break;
  case SORT_EXPORT: export (p, len); break;
  case SORT_SPARES: (void) replica_prepare_seal (replica); break;
  case SORT_FAULT:
    if (len > 1) {
      simdisk_fail (disk, 1 + p[0] % 16, p[1] & 1 ? EIO : ENOSPC, p[1] & 2);
      fault_ends = simdisk_ops (disk) + FAULT_LASTS;
      faults = true;
    }
    break;
  default:
    break;
  }
}

/* What was acknowledged last is what is recovered. */
static void
finish (void)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = WORLD_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };
  bool done = recover_run (&p, &result, &err) == 0;

  HOLDS (done || (err.code >= MCEXIT_USAGE && err.code <= MCEXIT_PARTIAL),
         "code %d", (int) err.code);
  if (unknown || faults)
    return;
  if (has_checkpoint)
    HOLDS (done && result.checkpoint.id == checkpoint,
           "checkpoint %" PRIu64 " was acknowledged, and recovery says: %" PRIu64 " %s",
           checkpoint, done ? result.checkpoint.id : 0, err.text);
  else
    HOLDS (!done && err.code == MCEXIT_NO_CHECKPOINT, "no checkpoint, and then: %s",
           err.text);
}

int
LLVMFuzzerTestOneInput (const uint8_t *input, size_t size)
{
  void *control = NULL;
  bool up;

  if (size < 1)
    return 0;
  host_seed (input[0]);
  host_reset (78, true);
  host_boot (0);
  faults = unknown = false;
  disk = world_copy (world_get (input[0] % WORLDS)->disk);
  up = start ();
  size--;
  input++;
  for (unsigned n = 0; n < REQUESTS && size >= 3 && up; n++) {
    enum sort sort = input[0] % SORTS;
    size_t len = MIN ((size_t) (input[1] | input[2] << 8), size - 3);
    /* In memory of exactly its size, so that a look beyond is seen. */
    uint8_t *p = malloc (MAX (len, (size_t) 1));

    HOLDS (p, "out of memory");
    memcpy (p, input + 3, len);
    if (control == NULL)
      control = open_control ();
    if (sort == SORT_RESTART || sort == SORT_KILL) {
      plugin.close (control);
      control = NULL;
      up = restart (sort == SORT_KILL, p, len);
    }
    else
      request (control, sort, p, len);
    free (p);
    input += 3 + len;
    size -= 3 + len;
  }
  if (up) {
    control_local ((const uint8_t *) "status", 6);
    if (control)
      plugin.close (control);
    know ();
    simdisk_hook (disk, NULL, NULL);
    simdisk_fail (disk, 0, 0, false);
    replica_close (replica);
  }
  replica = NULL;
  finish ();
  simdisk_free (disk);
  return 0;
}
