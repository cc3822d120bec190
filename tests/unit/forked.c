/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <check.h>

#include "unit/forked.h"

struct request { enum forked_op op; uint32_t disk, count; uint64_t offset; };
struct reply { int32_t result, errnum; uint32_t len; };

static pid_t child;
static int sock = -1;

static void
get (int fd, void *buf, size_t len)
{
  for (char *p = buf; len > 0;) {
    ssize_t n = read (fd, p, len);

    if (n <= 0)
      _exit (99);
    p += n;
    len -= n;
  }
}

static void
put (int fd, const void *buf, size_t len)
{
  for (const char *p = buf; len > 0;) {
    ssize_t n = write (fd, p, len);

    if (n <= 0)
      _exit (98);
    p += n;
    len -= n;
  }
}

static void
child_log (void *opaque, enum replica_log_level level, const char *line)
{
  (void) opaque;
  if (level == REPLICA_LOG_ERROR)
    fprintf (stderr, "replica: %s\n", line);
}

static void
child_main (const struct forked *f, int fd)
{
  static uint8_t buf[1 << 21];
  struct replica_disk_params d[FORKED_DISKS];
  struct replica_params p = { .fs = &io_posix, .dir = f->journal, .disks = d,
                              .ndisks = f->ndisks, .journal_size = 24 << 20,
                              .buffer = 8 << 20, .shared = true, .history = f->history,
                              .log = child_log };
  struct replica *r;
  struct mcerror err;
  struct reply ready = { 0, 0, 0 };
  char names[FORKED_DISKS][8];

  for (unsigned i = 0; i < f->ndisks; i++) {
    snprintf (names[i], sizeof names[i], "d%u", i);
    d[i] = (struct replica_disk_params) { .name = names[i], .path = f->image[i],
                                          .create = true, .size = f->size[i] };
  }
  if (replica_open (&p, &r, &err) == -1) {
    fprintf (stderr, "replica_open: %s\n", err.text);
    _exit (97);
  }
  if (replica_run (r) == -1)
    _exit (96);
  put (fd, &ready, sizeof ready);
  for (;;) {
    struct request q;
    struct reply a = { 0, 0, 0 };
    struct replica_export e = { .view = REPLICA_INLET };
    char *line = NULL;

    get (fd, &q, sizeof q);
    e.disk = q.disk;
    if (q.op == OP_WRITE || q.op == OP_CONTROL)
      get (fd, buf, q.count);
    switch (q.op) {
    case OP_READ:
      a.result = replica_pread (r, &e, buf, q.count, q.offset);
      a.len = q.count;
      break;
    case OP_WRITE:
      a.result = replica_pwrite (r, &e, buf, q.count, q.offset, 0);
      break;
    case OP_ZERO:
      a.result = replica_zero (r, &e, q.count, q.offset, 0);
      break;
    case OP_TRIM:
      a.result = replica_zero (r, &e, q.count, q.offset, REPLICA_MAY_TRIM);
      break;
    case OP_CONTROL:
      a.result = replica_control (r, true, (char *) buf, q.count, &line);
      a.len = line ? strlen (line) + 1 : 0;
      break;
    case OP_CLOSE:
      replica_close (r);
      put (fd, &a, sizeof a);
      _exit (0);
    }
    a.errnum = errno;
    put (fd, &a, sizeof a);
    put (fd, line ? (void *) line : (void *) buf, a.len);
    free (line);
  }
}

void
forked_start (const struct forked *f)
{
  int fds[2];
  struct reply ready;

  ck_assert_int_eq (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  child = fork ();
  ck_assert_int_ne (child, -1);
  if (child == 0) {
    close (fds[0]);
    child_main (f, fds[1]);
  }
  close (fds[1]);
  sock = fds[0];
  ck_assert_int_eq (read (sock, &ready, sizeof ready), sizeof ready);
}

static void
reap (void)
{
  int status;

  ck_assert_int_eq (waitpid (child, &status, 0), child);
  close (sock);
  child = 0;
}

int
forked_ask (enum forked_op op, unsigned disk, uint64_t offset, uint32_t count,
            const void *in, void *out, size_t room)
{
  struct request q = { .op = op, .disk = disk, .count = count, .offset = offset };
  struct reply a;

  put (sock, &q, sizeof q);
  if (in)
    put (sock, in, count);
  get (sock, &a, sizeof a);
  ck_assert_uint_le (a.len, room);
  get (sock, out, a.len);
  errno = a.errnum;
  return a.result;
}

void
forked_close (void)
{
  ck_assert_int_eq (forked_ask (OP_CLOSE, 0, 0, 0, NULL, NULL, 0), 0);
  reap ();
}

void
forked_kill (void)
{
  ck_assert_int_eq (kill (child, SIGKILL), 0);
  reap ();
}

void
forked_end (void)
{
  if (child > 0)
    (void) kill (child, SIGKILL);
}
