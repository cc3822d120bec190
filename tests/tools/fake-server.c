/* SPDX-License-Identifier: BSD-3-Clause */
/* A control server that follows a script, to hold the tools against answers
 * that a real one gives seldom or never.
 *
 *   fake-server DIR SCRIPT COMMAND [ARGUMENT …]
 *
 * listens on DIR/control, runs COMMAND and carries out SCRIPT, a step a line:
 *
 *   accept          take the next connection
 *   expect TEXT     receive a line; it must be TEXT
 *   any             receive a line, whatever it is
 *   eof             the peer must hang up without another byte
 *   reply TEXT      send TEXT and a newline
 *   send TEXT       send TEXT; "\n" in it is a newline
 *   fill N          send N letters
 *   taken           wait until the peer has received all that was sent
 *   close           hang up
 *   touch PATH      make a file, for COMMAND to see how far this is
 *   interrupt       send COMMAND a SIGINT
 *   end             let COMMAND end, then leave; the end of SCRIPT does the same
 *   again           go on with the line after the last accept
 *
 * Exits as COMMAND did (128 + n after signal n), or with 99 and a message when
 * the script was not followed.  Nothing outlives it.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/sockios.h>

#define DEADLINE 60             /* seconds for all of it */
#define LINE_MAX_LEN (1 << 20)

static pid_t child = -1;

static void __attribute__ ((format (printf, 1, 2), noreturn))
fail (const char *fmt, ...)
{
  va_list args;

  fputs ("fake-server: ", stderr);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fputc ('\n', stderr);
  if (child > 0) {
    kill (child, SIGKILL);
    waitpid (child, NULL, 0);
  }
  exit (99);
}

static int
listen_on (const char *dir)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd, here;

  /* The path may be longer than an address. */
  here = open (".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (here == -1 || chdir (dir) == -1)
    fail ("%s: %s", dir, strerror (errno));
  strcpy (addr.sun_path, "control");
  if (unlink (addr.sun_path) == -1 && errno != ENOENT)
    fail ("%s/control: %s", dir, strerror (errno));
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd == -1 || bind (fd, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      listen (fd, 5) == -1)
    fail ("%s/control: %s", dir, strerror (errno));
  if (fchdir (here) == -1)
    fail ("cannot go back: %s", strerror (errno));
  close (here);
  return fd;
}

/* A connection, or the message that COMMAND ended without one. */
static int
take_connection (int listener)
{
  struct pollfd pfd = { .fd = listener, .events = POLLIN };
  siginfo_t info = { .si_pid = 0 };
  int fd;

  while (poll (&pfd, 1, 10) == 0) {
    if (waitid (P_PID, child, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        info.si_pid == child && poll (&pfd, 1, 0) == 0)
      fail ("the command ended without a connection");
  }
  fd = accept4 (listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd == -1)
    fail ("accept: %s", strerror (errno));
  return fd;
}

/* The line behind the next newline, without it.  False: the peer hung up. */
static bool
receive_line (int fd, char *line)
{
  size_t n = 0;

  for (;;) {
    char c;
    ssize_t r = read (fd, &c, 1);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      if (n > 0)
        fail ("the peer hung up within a line");
      return false;
    }
    if (c == '\n') {
      line[n] = '\0';
      return true;
    }
    if (n + 1 >= LINE_MAX_LEN)
      fail ("the peer sent over %d bytes without a newline", LINE_MAX_LEN);
    line[n++] = c;
  }
}

static void
send_bytes (int fd, const char *p, size_t len)
{
  while (len > 0) {
    ssize_t r = send (fd, p, len, MSG_NOSIGNAL);

    if (r == -1)
      fail ("send: %s", strerror (errno));
    p += r;
    len -= r;
  }
}

/* In one go, so that the peer can receive it in one. */
static void
send_text (int fd, const char *text)
{
  char *copy = malloc (strlen (text) + 1);
  size_t n = 0;

  if (copy == NULL)
    fail ("no memory");
  for (; *text; text++)
    if (text[0] == '\\' && text[1] == 'n') {
      copy[n++] = '\n';
      text++;
    }
    else
      copy[n++] = *text;
  send_bytes (fd, copy, n);
  free (copy);
}

static void
wait_taken (int fd)
{
  const struct timespec pause = { .tv_nsec = 1000 * 1000 };
  int left;

  do {
    if (ioctl (fd, SIOCOUTQ, &left) == -1)
      fail ("SIOCOUTQ: %s", strerror (errno));
    if (left > 0)
      nanosleep (&pause, NULL);
  } while (left > 0);
}

/* One step on connection *FD. */
static void
step (int listener, int *fd, const char *word, const char *rest)
{
  static char line[LINE_MAX_LEN];

  if (strcmp (word, "accept") == 0) {
    if (*fd != -1)
      close (*fd);
    *fd = take_connection (listener);
  }
  else if (strcmp (word, "expect") == 0) {
    if (!receive_line (*fd, line))
      fail ("expected \"%s\", but the peer hung up", rest);
    if (strcmp (line, rest) != 0)
      fail ("expected \"%s\", received \"%s\"", rest, line);
  }
  else if (strcmp (word, "any") == 0) {
    if (!receive_line (*fd, line))
      fail ("expected a line, but the peer hung up");
  }
  else if (strcmp (word, "eof") == 0) {
    if (receive_line (*fd, line))
      fail ("expected the peer to hang up, received \"%s\"", line);
  }
  else if (strcmp (word, "reply") == 0) {
    send_bytes (*fd, rest, strlen (rest));
    send_bytes (*fd, "\n", 1);
  }
  else if (strcmp (word, "send") == 0)
    send_text (*fd, rest);
  else if (strcmp (word, "fill") == 0) {
    for (long n = atol (rest); n > 0; n--)
      send_bytes (*fd, "x", 1);
  }
  else if (strcmp (word, "taken") == 0)
    wait_taken (*fd);
  else if (strcmp (word, "close") == 0) {
    close (*fd);
    *fd = -1;
  }
  else if (strcmp (word, "touch") == 0) {
    int file = open (rest, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    if (file == -1)
      fail ("%s: %s", rest, strerror (errno));
    close (file);
  }
  else if (strcmp (word, "interrupt") == 0)
    kill (child, SIGINT);
  else
    fail ("unknown step \"%s\"", word);
}

static void
follow (int listener, FILE *script)
{
  char *line = NULL;
  size_t cap = 0;
  ssize_t len;
  long after_accept = 0;
  int fd = -1;

  while ((len = getline (&line, &cap, script)) != -1) {
    char *rest;

    if (len > 0 && line[len - 1] == '\n')
      line[len - 1] = '\0';
    if (line[0] == '\0')
      continue;
    rest = strchr (line, ' ');
    if (rest)
      *rest++ = '\0';
    if (strcmp (line, "end") == 0)
      break;
    if (strcmp (line, "again") == 0) {
      if (fseek (script, after_accept, SEEK_SET) == -1)
        fail ("seek: %s", strerror (errno));
      continue;
    }
    step (listener, &fd, line, rest ? rest : "");
    if (strcmp (line, "accept") == 0)
      after_accept = ftell (script);
  }
  free (line);
  /* FD stays open: only COMMAND's own end hangs up. */
}

int
main (int argc, char *argv[])
{
  FILE *script;
  int listener, status;

  if (argc < 4)
    fail ("usage: fake-server DIR SCRIPT COMMAND [ARGUMENT …]");
  alarm (DEADLINE);
  script = fopen (argv[2], "re");
  if (script == NULL)
    fail ("%s: %s", argv[2], strerror (errno));
  listener = listen_on (argv[1]);

  child = fork ();
  if (child == -1)
    fail ("fork: %s", strerror (errno));
  if (child == 0) {
    /* Shells start background jobs with SIGINT ignored. */
    signal (SIGINT, SIG_DFL);
    prctl (PR_SET_PDEATHSIG, SIGKILL);
    execvp (argv[3], argv + 3);
    fprintf (stderr, "fake-server: %s: %s\n", argv[3], strerror (errno));
    _exit (127);
  }
  follow (listener, script);
  if (waitpid (child, &status, 0) == -1)
    fail ("wait: %s", strerror (errno));
  return WIFSIGNALED (status) ? 128 + WTERMSIG (status) : WEXITSTATUS (status);
}
