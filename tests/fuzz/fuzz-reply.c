/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tools make of a server's answers: any bytes that come through the control socket.
 *
 * What must hold: no crash, no hang; what is printed for a person has no control characters in it;
 * what is printed for Prometheus keeps to its format.
 */
#include "config.h"

#include "fuzz/fuzz.h"

#include "../tools/client.c"
#include "../tools/client-unix.c"

#include "tools/render.h"

#define MAX_INPUT 65536u        /* a socket takes that much at once */

const struct client_ops client_nbd_ops;         /* not reached */

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  (void) argc;
  (void) argv;
  return 0;
}

/* Lines of text, no control characters, C1 ones neither. */
static void
check_text (const char *text, size_t len)
{
  for (size_t i = 0; i < len; i++) {
    unsigned char c = text[i], next = i + 1 < len ? text[i + 1] : 0;

    HOLDS ((c >= 0x20 && c != 0x7f) || c == '\n', "control character %#x", c);
    HOLDS (c != 0xc2 || next < 0x80 || next > 0x9f, "control character U+%04X", next);
  }
  HOLDS (len == 0 || text[len - 1] == '\n', "the last line has no end");
}

/* "# …" or "mcbuf_NAME{…} NUMBER". */
static void
check_metrics (char *text)
{
  char *line, *rest;

  for (line = text; *line; line = rest) {
    const char *at = line + strlen ("mcbuf_");
    bool quoted = false;

    rest = strchr (line, '\n');
    HOLDS (rest, "the last line has no end");
    *rest++ = '\0';
    if (strncmp (line, "# ", 2) == 0)
      continue;
    HOLDS (strncmp (line, "mcbuf_", 6) == 0, "%s", line);
    at += strspn (at, "abcdefghijklmnopqrstuvwxyz_");
    HOLDS (*at == '{', "%s", line);
    for (; *at && (quoted || *at != '}'); at++) {
      if (quoted && *at == '\\' && at[1])
        at++;
      else if (*at == '"')
        quoted = !quoted;
    }
    HOLDS (at[0] == '}' && at[1] == ' ' && at[2], "%s", line);
    HOLDS (strspn (at + 2, "0123456789.e+-") == strlen (at + 2), "%s", line);
  }
}

static void
render (const json_t *object)
{
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  HOLDS (fp, "out of memory");
  render_any (fp, object);
  render_commit (fp, object);
  render_list (fp, object);
  render_status (fp, object, "/target");
  render_recovered (fp, object, true);
  render_recovered (fp, object, false);
  render_verified (fp, object);
  HOLDS (fclose (fp) == 0, "out of memory");
  check_text (text, len);
  free (text);

  fp = open_memstream (&text, &len);
  HOLDS (fp, "out of memory");
  render_prometheus (fp, object);
  HOLDS (fclose (fp) == 0, "out of memory");
  check_metrics (text);
  free (text);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct unix_client *u = calloc (1, sizeof *u);
  struct client *c = calloc (1, sizeof *c);
  struct mcerror err;
  int fd[2];

  if (size > MAX_INPUT)
    size = MAX_INPUT;
  HOLDS (c && u && (u->buf = malloc (16)) && (u->dir = strdup ("/target")),
         "out of memory");
  u->cap = 16;
  HOLDS (socketpair (AF_UNIX, SOCK_STREAM, 0, fd) == 0, "socketpair");
  u->fd = fd[0];
  *c = (struct client) { .ops = &client_unix_ops, .target = "/target", .handle = u };
  HOLDS (send (fd[1], data, size, 0) == (ssize_t) size || size == 0, "send");
  HOLDS (shutdown (fd[1], SHUT_WR) == 0, "shutdown");

  while (!client_is_broken (c)) {
    struct answer answer;
    int r = client_call (c, "status", 6, &answer, &err);

    HOLDS (r == 0 || (err.code >= MCEXIT_USAGE && err.code <= MCEXIT_PARTIAL &&
                      err.text[0] && strchr (err.text, '\n') == NULL),
           "code %d: %s", (int) err.code, err.text);
    HOLDS ((answer.line != NULL) == json_is_object (answer.object), "an answer without a line");
    if (answer.object)
      render (answer.object);
  }
  client_close (c);
  (void) close (fd[1]);
  return 0;
}
