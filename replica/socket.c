/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket: JOURNAL/control, a request a line, an answer a line.
 *
 * A thread a client, so that a slow or silent one costs nobody else anything; a
 * client of another user than ours or root is turned away.  There are at most MAX_CLIENTS: for
 * one more, that which has been silent the longest has to go, so that those who
 * never leave do not keep out who wants to fail over.  The socket
 * is bound before nbdkit forks and served after.
 *
 * Whoever may change the directory could put a socket of his own there, so it has to be
 * ours, and nobody else's business.  The tools look at the socket in the same way (client-unix.c).
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "replica/internal.h"

#define MAX_CLIENTS 256
#define MAX_REQUEST 65536
#define STACK (512 * 1024)
#define SEND_TIMEOUT_S 10       /* a client that does not read its answer is dropped */
#define END_TIMEOUT_NS UINT64_C (2000000000)    /* … at the end sooner than that */
#define SILENT_NS UINT64_C (1000000000) /* who has been silent that long may be sent away for another */
#define LOOK_NS UINT64_C (100000000)

struct client {
  struct control *control;
  int fd;
  struct client *next;
  /* Since when (monotonic ns), 0: it is not.  Guarded by control.lock. */
  uint64_t sending;             /* an answer is on its way */
  uint64_t silent;              /* waiting for (more of) a request */
  bool evicted;
};

struct control {
  struct replica *replica;
  char *path;
  int fd;
  bool bound;                   /* the socket at PATH is ours to remove */
  int wake[2];                  /* a byte here ends the accepting thread */
  pthread_t thread;
  bool running;

  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t gone;          /* nclients fell */
  struct client *clients;
  unsigned nclients;
  bool ending;                  /* no request is begun any more */
};

/* --- one client --------------------------------------------------------------- */

static int
send_all (int fd, const char *buf, size_t len)
{
  while (len > 0) {
    ssize_t n = send (fd, buf, len, MSG_NOSIGNAL);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    buf += n;
    len -= n;
  }
  return 0;
}

static int
reply_to (struct client *c, const char *line, size_t len)
{
  int result;

  {
    SCOPED_LOCK (&c->control->lock);
    c->sending = host_monotonic_ns ();
  }
  result = send_all (c->fd, line, len);
  SCOPED_LOCK (&c->control->lock);
  c->sending = 0;
  return result;
}

static int
answer (struct client *c, const char *request, size_t len)
{
  static const char no_memory[] = "{\"error\":\"out of memory\",\"code\":1}\n";
  CLEANUP_FREE char *reply = NULL;
  size_t n;

  {
    SCOPED_LOCK (&c->control->lock);
    if (c->control->ending)
      return -1;
  }
  /* A refusal is an answer too; only a lack of memory is none. */
  (void) replica_control (c->control->replica, true, request, len, &reply);
  if (reply == NULL)
    return reply_to (c, no_memory, sizeof no_memory - 1);
  n = strlen (reply);
  reply[n] = '\n';              /* in place of the NUL: one send a reply */
  return reply_to (c, reply, n + 1);
}

/* Answer every whole line in BUF[0..*USED); what is left moves to the front. */
static int
answer_lines (struct client *c, char *buf, size_t *used, bool *skipping)
{
  char *line = buf, *end;

  while ((end = memchr (line, '\n', buf + *used - line)) != NULL) {
    if (*skipping)
      *skipping = false;
    else if (answer (c, line, end - line) == -1)
      return -1;
    line = end + 1;
  }
  *used -= line - buf;
  memmove (buf, line, *used);
  if (*used == MAX_REQUEST) {
    static const char too_long[] =
      "{\"error\":\"request longer than 65536 bytes\",\"code\":1}\n";

    if (!*skipping && reply_to (c, too_long, sizeof too_long - 1) == -1)
      return -1;
    *skipping = true;           /* up to its newline */
    *used = 0;
  }
  return 0;
}

static void
set_silent (struct client *c, uint64_t since)
{
  SCOPED_LOCK (&c->control->lock);

  c->silent = since;
}

static void
serve (struct client *c)
{
  CLEANUP_FREE char *buf = malloc (MAX_REQUEST);
  size_t used = 0;
  bool skipping = false;

  if (buf == NULL)
    return;
  for (;;) {
    ssize_t n;

    set_silent (c, host_monotonic_ns ());
    n = recv (c->fd, buf + used, MAX_REQUEST - used, 0);
    set_silent (c, 0);
    if (n == -1 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    used += n;
    if (answer_lines (c, buf, &used, &skipping) == -1)
      return;
  }
  /* A last line without its newline may be half a request: "commit epoch=12" is not "commit epoch=1". */
}

static void *
client_main (void *arg)
{
  struct client *c = arg, **p;
  struct control *control = c->control;

  serve (c);
  SCOPED_LOCK (&control->lock);
  for (p = &control->clients; *p != c; p = &(*p)->next)
    ;
  *p = c->next;
  (void) close (c->fd);
  free (c);
  control->nclients--;
  pthread_cond_broadcast (&control->gone);
  return NULL;
}

static bool
is_allowed (int fd)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  return getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
    (cred.uid == 0 || cred.uid == geteuid ());
}

static void
turn_away (int fd, const char *why)
{
  char line[128];
  int n = snprintf (line, sizeof line, "{\"error\":\"%s\",\"code\":1}\n", why);

  (void) send (fd, line, n, MSG_NOSIGNAL | MSG_DONTWAIT);
  (void) close (fd);
}

/* Room for one more: with MAX_CLIENTS the one that has been silent the longest goes. */
static bool
make_room_locked (struct control *control)
{
  uint64_t now = host_monotonic_ns ();
  struct client *longest = NULL;
  unsigned n = control->nclients;

  for (struct client *c = control->clients; c; c = c->next) {
    if (c->evicted)
      n--;                      /* as good as gone */
    else if (c->silent != 0 && now - c->silent >= SILENT_NS &&
             (longest == NULL || c->silent < longest->silent))
      longest = c;
  }
  if (n < MAX_CLIENTS)
    return true;
  if (longest == NULL)
    return false;
  longest->evicted = true;
  (void) shutdown (longest->fd, SHUT_RDWR);
  return true;
}

static void
take_client (struct control *control, int fd)
{
  const struct timeval timeout = { .tv_sec = SEND_TIMEOUT_S };
  struct client *c;
  pthread_attr_t attr;
  pthread_t thread;
  int e;

  if (!is_allowed (fd)) {
    turn_away (fd, "only root and the server's own user may use this socket");
    return;
  }
  if (setsockopt (fd, SOL_SOCKET, SO_SNDTIMEO, &timeout,
                  sizeof timeout) == -1) {
    turn_away (fd, "cannot set a time limit");
    return;
  }
  c = calloc (1, sizeof *c);
  {
    SCOPED_LOCK (&control->lock);

    if (c == NULL || (control->nclients >= MAX_CLIENTS &&
                      !make_room_locked (control))) {
      turn_away (fd, "too many control clients, and none is silent: try again later");
      free (c);
      return;
    }
    c->control = control;
    c->fd = fd;
    c->next = control->clients;
    control->clients = c;
    control->nclients++;
  }
  e = pthread_attr_init (&attr);
  if (e == 0) {
    e = pthread_attr_setstacksize (&attr, STACK);
    if (e == 0)
      e = pthread_attr_setdetachstate (&attr, PTHREAD_CREATE_DETACHED);
    if (e == 0)
      e = pthread_create (&thread, &attr, client_main, c);
    (void) pthread_attr_destroy (&attr);
  }
  if (e != 0) {
    SCOPED_LOCK (&control->lock);

    control->clients = c->next; /* nobody else puts one in front */
    control->nclients--;
    turn_away (fd, "cannot start a thread");
    free (c);
  }
}

/* --- the listener --------------------------------------------------------------- */

static void *
accept_main (void *arg)
{
  struct control *control = arg;

  for (;;) {
    struct pollfd fds[2] = { { .fd = control->fd, .events = POLLIN },
                             { .fd = control->wake[0], .events = POLLIN } };
    int fd;

    if (poll (fds, 2, -1) == -1 && errno != EINTR)
      break;
    if (fds[1].revents)
      break;
    if (!(fds[0].revents & POLLIN))
      continue;
    fd = accept4 (control->fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd == -1) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
          errno == ENOBUFS)
        (void) poll (&fds[1], 1, 100);  /* no descriptor: do not spin on it */
      continue;
    }
    take_client (control, fd);
  }
  return NULL;
}

/* The directory of the socket, made private.  -1 with ERR. */
static int
open_private (const char *dir, struct mcerror *err)
{
  CLEANUP_CLOSE int fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct stat st;
  int result;

  if (fd == -1 || fstat (fd, &st) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "%s: %m", dir);
  if (st.st_uid != geteuid () && st.st_uid != 0) {
    errno = EPERM;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: belongs to user %ld, who could put a control socket of his own there: "
                        "start nbdkit as that user, or change the owner",
                        dir, (long) st.st_uid);
  }
  if ((st.st_mode & 077) != 0 && fchmod (fd, 0700) == -1)
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: others may use this directory, and its mode cannot be made 0700: %m",
                        dir);
  result = fd;
  fd = -1;
  return result;
}

/* Is what DIRFD has as "control" a socket of ours with mode 0600? */
static bool
is_ours (int dirfd)
{
  struct stat st;

  return fstatat (dirfd, "control", &st, AT_SYMLINK_NOFOLLOW) == 0 &&
    S_ISSOCK (st.st_mode) && st.st_uid == geteuid () &&
    (st.st_mode & 07777) == 0600;
}

/* Bind to DIR/control through the directory's descriptor, so that a path
 * longer than sun_path is none.
 */
static int
bind_in (int fd, const char *dir, struct mcerror *err)
{
  CLEANUP_CLOSE int dirfd = open_private (dir, err);
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat st;

  if (dirfd == -1)
    return -1;
  snprintf (addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d/control",
            dirfd);
  if (fstatat (dirfd, "control", &st, AT_SYMLINK_NOFOLLOW) == 0) {
    if (!S_ISSOCK (st.st_mode)) {
      errno = EEXIST;
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s/control: is no socket, and in the place of the control socket: remove it",
                          dir);
    }
    /* The journal's lock is ours, so a socket that is there is a dead server's. */
    if (unlinkat (dirfd, "control", 0) == -1)
      goto error;
  }
  else if (errno != ENOENT)
    goto error;
  /* The mode that it is born with. */
  if (fchmod (fd, 0600) == -1 ||
      bind (fd, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      fchmodat (dirfd, "control", 0600, 0) == -1)
    goto error;
  if (is_ours (dirfd))
    return 0;
  errno = EPERM;

 error:
  return mcerror_set (err, MCEXIT_USAGE,
                      "%s/control: cannot make the control socket: %m", dir);
}

static int
init_gone (pthread_cond_t *gone)
{
  pthread_condattr_t attr;
  int e = pthread_condattr_init (&attr);

  if (e == 0)
    e = pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  if (e == 0)
    e = pthread_cond_init (gone, &attr);
  (void) pthread_condattr_destroy (&attr);
  return e;
}

struct control *
control_listen (struct replica *r, const char *dir, struct mcerror *err)
{
  struct control *c = calloc (1, sizeof *c);

  if (c == NULL) {
    mcerror_set (err, MCEXIT_USAGE, "%s/control: %m", dir);
    return NULL;
  }
  c->replica = r;
  c->fd = c->wake[0] = c->wake[1] = -1;
  if (pthread_mutex_init (&c->lock, NULL) != 0 ||
      init_gone (&c->gone) != 0) {
    free (c);
    errno = ENOMEM;
    mcerror_set (err, MCEXIT_USAGE, "%s/control: %m", dir);
    return NULL;
  }
  if (asprintf (&c->path, "%s/control", dir) == -1)
    c->path = NULL;
  c->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (c->path == NULL || c->fd == -1 || pipe2 (c->wake, O_CLOEXEC) == -1) {
    mcerror_set (err, MCEXIT_USAGE,
                 "%s/control: cannot make the control socket: %m", dir);
    goto error;
  }
  if (bind_in (c->fd, dir, err) == -1)
    goto error;
  c->bound = true;
  if (listen (c->fd, SOMAXCONN) == -1) {
    mcerror_set (err, MCEXIT_USAGE,
                 "%s/control: cannot listen on the control socket: %m", dir);
    goto error;
  }
  return c;

 error:
  control_close (c);
  return NULL;
}

int
control_run (struct control *c)
{
  int e = pthread_create (&c->thread, NULL, accept_main, c);

  if (e != 0) {
    errno = e;
    return -1;
  }
  c->running = true;
  return 0;
}

/* Wait until all have gone.  What is being carried out ends, and its answer goes out
 * to whoever takes it in time.
 */
static void
end_clients (struct control *c)
{
  SCOPED_LOCK (&c->lock);

  c->ending = true;
  for (struct client *p = c->clients; p; p = p->next)
    (void) shutdown (p->fd, SHUT_RD);
  while (c->nclients > 0) {
    uint64_t now = host_monotonic_ns ();
    struct timespec soon = { .tv_sec = (now + LOOK_NS) / 1000000000,
                             .tv_nsec = (now + LOOK_NS) % 1000000000 };

    for (struct client *p = c->clients; p; p = p->next)
      if (p->sending != 0 && now - p->sending > END_TIMEOUT_NS)
        (void) shutdown (p->fd, SHUT_RDWR);
    (void) pthread_cond_timedwait (&c->gone, &c->lock, &soon);
  }
}

void
control_close (struct control *c)
{
  int saved = errno;

  if (c == NULL)
    return;
  if (c->running) {
    while (write (c->wake[1], "", 1) == -1 && errno == EINTR)
      ;
    (void) pthread_join (c->thread, NULL);
  }
  end_clients (c);
  if (c->bound && unlink (c->path) == -1 && errno != ENOENT)
    replica_log (c->replica, REPLICA_LOG_DEBUG, "%s: %m", c->path);
  if (c->fd != -1)
    (void) close (c->fd);
  for (int i = 0; i < 2; i++)
    if (c->wake[i] != -1)
      (void) close (c->wake[i]);
  (void) pthread_mutex_destroy (&c->lock);
  (void) pthread_cond_destroy (&c->gone);
  free (c->path);
  free (c);
  errno = saved;
}
