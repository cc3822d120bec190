/* SPDX-License-Identifier: BSD-3-Clause */
/* The way in for this host: the Unix socket DIR/control, a request a line,
 * an answer a line.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/client.h"

#define SOCKET_NAME "control"

struct unix_client {
  int fd;
  char *dir;
  char *buf;                    /* the last answer; CAP bytes */
  size_t cap;
  bool answered;                /* at least once */
};

static void
unix_close (void *handle)
{
  struct unix_client *u = handle;

  if (u->fd >= 0)
    (void) close (u->fd);
  free (u->dir);
  free (u->buf);
  free (u);
}

/* Why there is nothing to connect to in DIR.  errno says what connect, or the
 * open of DIR, met; it becomes ECONNREFUSED if DIR is a directory.
 */
static void
explain (const char *dir, struct mcerror *err)
{
  int saved = errno;
  struct stat st;

  if (saved != ENOENT && saved != ECONNREFUSED && saved != ENOTDIR)
    (void) mcerror_set (err, MCEXIT_USAGE, "%s/%s: cannot connect: %m: run "
                        "this as the server's user or as root",
                        dir, SOCKET_NAME);
  else if (stat (dir, &st) == -1) {
    saved = errno;
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: %m: give the journal "
                        "directory of a replica, or an NBD URI", dir);
  }
  else if (!S_ISDIR (st.st_mode)) {
    saved = ENOTDIR;
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: not a directory: give the "
                        "journal directory (of an image it is IMAGE.mcbuf "
                        "by default), or an NBD URI", dir);
  }
  else {
    saved = ECONNREFUSED;
    (void) mcerror_set (err, MCEXIT_USAGE, "%s/%s: no server listens: start "
                        "nbdkit mcbuf on this journal; mcbuf-recover --list "
                        "%s shows what can be recovered without one",
                        dir, SOCKET_NAME, dir);
  }
  errno = saved;
}

static int
connect_to (int fd, const char *dir)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  CLEANUP_CLOSE int dirfd = -1;
  int n, r;

  n = snprintf (addr.sun_path, sizeof addr.sun_path, "%s/%s",
                dir, SOCKET_NAME);
  if (n < 0)
    return -1;
  if ((size_t) n >= sizeof addr.sun_path) {
    /* A longer path than an address holds, by way of a descriptor. */
    dirfd = open (dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dirfd == -1)
      return -1;
    snprintf (addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d/%s",
              dirfd, SOCKET_NAME);
  }
  do
    r = connect (fd, (struct sockaddr *) &addr, sizeof addr);
  while (r == -1 && errno == EINTR);
  return r;
}

/* Is it the server that owns DIR, and not somebody in its place?  -1 with ERR. */
static int
check_server (int fd, const char *dir, struct mcerror *err)
{
  CLEANUP_FREE char *path = NULL;
  struct stat at, owner;
  struct ucred peer;
  socklen_t len = sizeof peer;

  if (asprintf (&path, "%s/" SOCKET_NAME, dir) == -1)
    path = NULL;
  if (path == NULL || lstat (path, &at) == -1 || stat (dir, &owner) == -1 ||
      getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s/%s: cannot see whose socket "
                        "it is: %m", dir, SOCKET_NAME);
  errno = EPERM;
  if (!S_ISSOCK (at.st_mode))
    return mcerror_set (err, MCEXIT_USAGE, "%s/%s: not a socket but a link to "
                        "one: mcbuf makes none: give the directory of the "
                        "replica that is meant", dir, SOCKET_NAME);
  if ((at.st_mode & 022) != 0)
    return mcerror_set (err, MCEXIT_USAGE, "%s/%s: has mode %04o, the server's "
                        "has 0600: see who changed it, and restart the server",
                        dir, SOCKET_NAME, (unsigned) at.st_mode & 07777);
  if (peer.uid != 0 && peer.uid != geteuid () &&
      !(geteuid () == 0 && peer.uid == owner.st_uid))
    return mcerror_set (err, MCEXIT_USAGE, "%s/%s: user %ld listens there, who "
                        "is neither root, nor you, nor the directory's owner",
                        dir, SOCKET_NAME, (long) peer.uid);
  return 0;
}

static void *
unix_open (const char *dir, struct mcerror *err)
{
  struct unix_client *u = calloc (1, sizeof *u);

  if (u == NULL) {
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: %m", dir);
    return NULL;
  }
  u->cap = 4096;
  u->buf = malloc (u->cap);
  u->dir = strdup (dir);
  u->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (u->buf == NULL || u->dir == NULL || u->fd == -1) {
    (void) mcerror_set (err, MCEXIT_USAGE, "%s: %m", dir);
    goto error;
  }
  if (connect_to (u->fd, dir) == -1) {
    explain (dir, err);
    goto error;
  }
  if (check_server (u->fd, dir, err) == -1)
    goto error;
  return u;

 error:
  {
    int saved = errno;

    unix_close (u);
    errno = saved;
  }
  return NULL;
}

/* The whole request and its newline.  0 also when the peer has hung up: what
 * it said before it did is worth reading.
 */
static int
send_request (int fd, const char *request, size_t len)
{
  struct iovec iov[2] = {
    { .iov_base = (char *) (uintptr_t) request, .iov_len = len },
    { .iov_base = (char *) (uintptr_t) "\n", .iov_len = 1 },
  };
  struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

  while (iov[1].iov_len > 0) {
    ssize_t n = sendmsg (fd, &msg, MSG_NOSIGNAL);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return errno == EPIPE || errno == ECONNRESET ? 0 : -1;
    for (int i = 0; i < 2; i++) {
      size_t took = (size_t) n < iov[i].iov_len ? (size_t) n : iov[i].iov_len;

      iov[i].iov_base = (char *) iov[i].iov_base + took;
      iov[i].iov_len -= took;
      n -= took;
    }
  }
  return 0;
}

static int
lost (const struct unix_client *u, const char *why, struct mcerror *err)
{
  errno = ECONNRESET;
  return mcerror_set (err, MCEXIT_USAGE, "%s/%s: %s before the answer was "
                      "complete: whether the request was carried out is not "
                      "known; mcbuf-status %s tells",
                      u->dir, SOCKET_NAME, why, u->dir);
}

static int
unix_call (void *handle, const char *request, size_t len,
           const char **line, bool *failed, struct mcerror *err)
{
  struct unix_client *u = handle;
  size_t used = 0;

  *failed = false;
  errno = 0;                    /* ECONNRESET means something */
  /* A line that nobody asked for would be taken for the answer to this
   * request.  (Before the first one it may be the reason for hanging up.)
   */
  if (u->answered && recv (u->fd, u->buf, 1, MSG_PEEK | MSG_DONTWAIT) == 1)
    return mcerror_set (err, MCEXIT_USAGE, "%s/%s: more than one line came "
                        "as an answer: is an mcbuf server behind it?",
                        u->dir, SOCKET_NAME);
  if (send_request (u->fd, request, len) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s/%s: cannot send the request: "
                        "%m", u->dir, SOCKET_NAME);

  for (;;) {
    ssize_t n;
    char *end;

    if (used == u->cap) {
      char *bigger;

      if (u->cap >= CLIENT_REPLY_MAX)
        return mcerror_set (err, MCEXIT_USAGE, "%s/%s: the answer is over %u "
                            "bytes: is an mcbuf server behind it?",
                            u->dir, SOCKET_NAME, CLIENT_REPLY_MAX);
      bigger = realloc (u->buf, 2 * u->cap);
      if (bigger == NULL)
        return mcerror_set (err, MCEXIT_USAGE, "%s/%s: answer of over %zu "
                            "bytes: %m", u->dir, SOCKET_NAME, u->cap);
      u->buf = bigger;
      u->cap *= 2;
    }
    do
      n = recv (u->fd, u->buf + used, u->cap - used, 0);
    while (n == -1 && errno == EINTR);
    if (n == -1 && errno != ECONNRESET)
      return mcerror_set (err, MCEXIT_USAGE, "%s/%s: cannot receive the "
                          "answer: %m", u->dir, SOCKET_NAME);
    if (n <= 0)
      return lost (u, "the server closed the connection", err);
    end = memchr (u->buf + used, '\n', n);
    used += n;
    if (end == NULL)
      continue;
    /* More than was asked for would be taken for the next answer. */
    if (end + 1 != u->buf + used)
      return mcerror_set (err, MCEXIT_USAGE, "%s/%s: more than one line came "
                          "as an answer: is an mcbuf server behind it?",
                          u->dir, SOCKET_NAME);
    *end = '\0';
    *line = u->buf;
    u->answered = true;
    return 0;
  }
}

const struct client_ops client_unix_ops = {
  .open = unix_open,
  .close = unix_close,
  .call = unix_call,
};
