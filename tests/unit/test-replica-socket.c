/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket: long, half and many requests, too many clients, clients of other users, no
 * descriptors left, and a socket that cannot be made.
 */
#include "config.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <check.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "unit/unit.h"

#define CLIENTS 256             /* that are served at once */
#define NOBODY 65534

static char top[256], dir[300], image[300];
static struct replica *r;

static void
setup (void)
{
  const char *tmp = getenv ("TMPDIR");
  struct replica_disk_params d = { .name = "vda", .path = image, .create = true,
                                   .size = 1 << 20 };
  struct replica_params p = { .fs = &io_posix, .disks = &d, .ndisks = 1,
                              .journal_size = JOURNAL_MIN_SIZE,
                              .buffer = 8 << 20, .control = true };
  struct mcerror err;

  snprintf (top, sizeof top, "%s/mcbuf-socket-XXXXXX", tmp ? tmp : "/var/tmp");
  EXPECT (mkdtemp (top) != NULL);
  snprintf (dir, sizeof dir, "%s/j", top);
  snprintf (image, sizeof image, "%s/a.img", top);
  p.dir = dir;
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  EXPECT (replica_run (r) == 0);
}

static void
remove_all (const char *path)
{
  DIR *d = opendir (path);
  const struct dirent *e;
  char name[1024];

  while (d && (e = readdir (d)) != NULL)
    if (e->d_name[0] != '.') {
      snprintf (name, sizeof name, "%s/%s", path, e->d_name);
      if (unlink (name) == -1)
        remove_all (name);
    }
  if (d)
    (void) closedir (d);
  (void) rmdir (path);
}

static void
teardown (void)
{
  replica_close (r);
  remove_all (top);
}

static int
dial (void)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  EXPECT (fd != -1);
  EXPECT ((size_t) snprintf (addr.sun_path, sizeof addr.sun_path, "%s/control",
                             dir) < sizeof addr.sun_path);
  EXPECT (connect (fd, (struct sockaddr *) &addr, sizeof addr) == 0);
  return fd;
}

static void
say (int fd, const char *text, size_t len)
{
  while (len > 0) {
    ssize_t n = send (fd, text, len, MSG_NOSIGNAL);

    EXPECT (n > 0);
    text += n;
    len -= n;
  }
}

/* The next line; "" when the server has hung up. */
static const char *
hear (int fd)
{
  static char line[70000];
  size_t n = 0;

  while (n < sizeof line - 1) {
    ssize_t got = recv (fd, line + n, 1, 0);

    if (got <= 0)
      break;
    if (line[n] == '\n')
      break;
    n++;
  }
  line[n] = '\0';
  return line;
}

static void
answers (int fd)
{
  say (fd, "status\n", 7);
  ck_assert_msg (strstr (hear (fd), "\"state\":\"syncing\"") != NULL, "status");
}

START_TEST (lines)
{
  static char much[200000];
  int fd = dial ();

  /* Pieces of lines, and several at once. */
  say (fd, "sta", 3);
  say (fd, "tus\nlist\nsta", 12);
  ck_assert (strstr (hear (fd), "\"state\"") != NULL);
  ck_assert (strstr (hear (fd), "\"checkpoints\"") != NULL);
  say (fd, "tus\r\n", 5);
  ck_assert (strstr (hear (fd), "\"state\"") != NULL);

  /* A line that is too long is refused once, up to its end. */
  memset (much, 'x', sizeof much);
  say (fd, much, sizeof much);
  say (fd, "\n", 1);
  ck_assert (strstr (hear (fd), "longer than 65536") != NULL);
  answers (fd);

  /* A last line without its end is no request: "commit epoch=12" is not "commit epoch=1". */
  say (fd, "promote", 7);
  EXPECT (shutdown (fd, SHUT_WR) == 0);
  ck_assert_str_eq (hear (fd), "");
  (void) close (fd);
  fd = dial ();
  answers (fd);
  (void) close (fd);
}
END_TEST

START_TEST (gone)
{
  /* Who hangs up before the answer is no harm. */
  for (unsigned i = 0; i < 50; i++) {
    const struct linger hard = { .l_onoff = 1 };
    int fd = dial ();

    say (fd, "status\nstatus\nstatus\n", 21);
    EXPECT (setsockopt (fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0);
    (void) close (fd);
  }
  {
    int fd = dial ();

    answers (fd);
    (void) close (fd);
  }
}
END_TEST

START_TEST (too_many)
{
  int fd[CLIENTS], more;
  const char *line;

  for (unsigned i = 0; i < CLIENTS; i++) {
    fd[i] = dial ();
    answers (fd[i]);
  }
  /* On a busy machine one of them has been silent for long enough to have to go. */
  more = dial ();
  (void) send (more, "status\n", 7, MSG_NOSIGNAL);
  line = hear (more);
  ck_assert (strstr (line, "too many") || strstr (line, "\"state\""));
  (void) close (more);
  (void) close (fd[7]);
  /* There is room again, as soon as the server has seen it. */
  do {
    fd[7] = dial ();
    (void) send (fd[7], "status\n", 7, MSG_NOSIGNAL);
    line = hear (fd[7]);
    if (strstr (line, "too many"))
      (void) close (fd[7]);
  } while (strstr (line, "too many"));
  for (unsigned i = 0; i < CLIENTS; i++)
    (void) close (fd[i]);
}
END_TEST

/* Only root and the server's user, even where the modes would let others in. */
START_TEST (others)
{
  char path[400];
  int status;
  pid_t child;

  if (geteuid () != 0) {
    printf ("not root: cannot be somebody else\n");
    return;
  }
  snprintf (path, sizeof path, "%s/control", dir);
  EXPECT (chmod (top, 0711) == 0 && chmod (dir, 0711) == 0 &&
          chmod (path, 0666) == 0);
  child = fork ();
  EXPECT (child != -1);
  if (child == 0) {
    int fd;

    if (setuid (NOBODY) == -1)
      _exit (2);
    fd = dial ();
    _exit (strstr (hear (fd), "only root") ? 0 : 1);
  }
  EXPECT (waitpid (child, &status, 0) == child);
  ck_assert_int_eq (status, 0);
}
END_TEST

/* No descriptor for one more client: it is served when there is one. */
START_TEST (no_descriptors)
{
  struct rlimit limit, low;
  int fd = socket (AF_UNIX, SOCK_STREAM, 0), top_fd;
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  EXPECT (fd != -1 && getrlimit (RLIMIT_NOFILE, &limit) == 0);
  EXPECT ((size_t) snprintf (addr.sun_path, sizeof addr.sun_path, "%s/control",
                             dir) < sizeof addr.sun_path);
  top_fd = dup (fd);            /* the lowest one that is free */
  EXPECT (top_fd != -1);
  (void) close (top_fd);
  low = limit;
  low.rlim_cur = top_fd;
  EXPECT (setrlimit (RLIMIT_NOFILE, &low) == 0);
  EXPECT (connect (fd, (struct sockaddr *) &addr, sizeof addr) == 0);
  say (fd, "status\n", 7);
  (void) usleep (300000);       /* it has tried by now, more than once */
  EXPECT (setrlimit (RLIMIT_NOFILE, &limit) == 0);
  ck_assert (strstr (hear (fd), "\"state\"") != NULL);
  (void) close (fd);
}
END_TEST

/* Where the socket cannot be. */
START_TEST (cannot_listen)
{
  struct mcerror err = { 0 };
  char path[500];
  struct control *c;

  snprintf (path, sizeof path, "%s/nowhere", top);
  ck_assert_ptr_null (control_listen (r, path, &err));
  ck_assert_msg (strstr (err.text, "No such file") != NULL, "%s", err.text);
  /* Something is in its place. */
  EXPECT (mkdir (path, 0700) == 0);
  snprintf (path, sizeof path, "%s/nowhere/control", top);
  EXPECT (mkdir (path, 0700) == 0);
  snprintf (path, sizeof path, "%s/nowhere", top);
  ck_assert_ptr_null (control_listen (r, path, &err));
  ck_assert_msg (strstr (err.text, "is no socket") != NULL, "%s", err.text);
  /* A socket that a dead server left is none. */
  snprintf (path, sizeof path, "%s/nowhere/control", top);
  EXPECT (rmdir (path) == 0);
  {
    struct sockaddr_un left = { .sun_family = AF_UNIX };
    int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    EXPECT (fd != -1 && strlen (path) < sizeof left.sun_path);
    strcpy (left.sun_path, path);
    EXPECT (bind (fd, (struct sockaddr *) &left, sizeof left) == 0);
    (void) close (fd);
  }
  snprintf (path, sizeof path, "%s/nowhere", top);
  c = control_listen (r, path, &err);
  ck_assert_ptr_nonnull (c);
  EXPECT (control_run (c) == 0);
  /* Whoever took the socket away: the end is an end. */
  snprintf (path, sizeof path, "%s/nowhere/control", top);
  EXPECT (unlink (path) == 0 && mkdir (path, 0700) == 0);
  control_close (c);
  control_close (NULL);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("socket");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, lines);
  tcase_add_test (t, gone);
  tcase_add_test (t, too_many);
  tcase_add_test (t, others);
  tcase_add_test (t, no_descriptors);
  tcase_add_test (t, cannot_listen);
  suite_add_tcase (s, t);
  return unit_run (s);
}
