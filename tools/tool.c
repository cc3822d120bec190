/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "tools/tool.h"

static const char *tool_name = "mcbuf";

void
tool_init (const char *name)
{
  tool_name = name;

  /* The wrong direction on purpose: use of what was closed stays an error. */
  for (int fd = 0; fd <= 2; fd++)
    if (fcntl (fd, F_GETFD) == -1 && errno == EBADF &&
        open ("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) == -1)
      _exit (MCEXIT_USAGE);

  if (signal (SIGPIPE, SIG_IGN) == SIG_ERR)
    _exit (MCEXIT_USAGE);
  opterr = 0;
}

/* One write, so that lines of several processes do not mix. */
static void
put_line (const char *text, const char *hint)
{
  /* There is nobody left to tell when standard error does not work. */
  (void) fprintf (stderr, "%s: %s%s\n", tool_name, text, hint);
}

int
tool_error (enum mcexit code, const char *fmt, ...)
{
  char text[sizeof ((struct mcerror *) NULL)->text];
  struct mcerror err;
  va_list args;

  va_start (args, fmt);
  if (vsnprintf (text, sizeof text, fmt, args) < 0)
    text[0] = '\0';
  va_end (args);
  (void) mcerror_set (&err, code, "%s", text);
  return tool_fail (&err);
}

int
tool_usage_error (const char *fmt, ...)
{
  char text[sizeof ((struct mcerror *) NULL)->text];
  struct mcerror err;
  char hint[64];
  va_list args;

  va_start (args, fmt);
  if (vsnprintf (text, sizeof text, fmt, args) < 0)
    text[0] = '\0';
  va_end (args);
  (void) mcerror_set (&err, MCEXIT_USAGE, "%s", text);
  snprintf (hint, sizeof hint, ": see %s --help", tool_name);
  put_line (err.text, hint);
  return MCEXIT_USAGE;
}

int
tool_fail (const struct mcerror *err)
{
  put_line (err->text, "");
  return err->code;
}

int
tool_bad_option (int opt, char *const argv[])
{
  const char *arg = argv[optind - 1];

  if (opt == ':')
    return tool_usage_error ("option %s needs a value", arg);
  /* A long option that takes no value leaves its code in optopt, an unknown
   * short one its letter; an unknown long one leaves 0.
   */
  if (strncmp (arg, "--", 2) == 0 && optopt != 0)
    return tool_usage_error ("option %.*s takes no value",
                             (int) strcspn (arg, "="), arg);
  if (strncmp (arg, "--", 2) != 0 && isprint (optopt))
    return tool_usage_error ("unknown option -%c", optopt);
  return tool_usage_error ("unknown or ambiguous option %s", arg);
}

int
tool_version (void)
{
  return printf ("%s %s\n", tool_name, PACKAGE_VERSION) < 0 ? MCEXIT_USAGE
                                                            : MCEXIT_DONE;
}

int
tool_flush (void)
{
  if (fflush (stdout) == EOF)
    return -1;
  if (ferror (stdout)) {
    errno = EIO;
    return -1;
  }
  return 0;
}

int
tool_finish (int status)
{
  if (tool_flush () == -1) {
    int r = tool_error (MCEXIT_USAGE, "standard output: %m: "
                        "what was printed is not complete");

    if (status == MCEXIT_DONE)
      status = r;
  }
  return status;
}

bool
tool_parse_number (const char *text, uint64_t *n)
{
  uint64_t value = 0;

  if (*text == '\0')
    return false;
  for (; *text; text++) {
    if (*text < '0' || *text > '9')
      return false;
    if (value > (INT64_MAX - (uint64_t) (*text - '0')) / 10)
      return false;
    value = value * 10 + (*text - '0');
  }
  *n = value;
  return true;
}

/* Length of the control character at P, 0 for any other: C0 and DEL are one
 * byte, C1 (U+0080 to U+009F) two.
 */
static unsigned
control_length (const char *p)
{
  unsigned char c = p[0], d = c ? p[1] : 0;

  if ((c > 0 && c < 0x20) || c == 0x7f)
    return 1;
  if (c == 0xc2 && d >= 0x80 && d <= 0x9f)
    return 2;
  return 0;
}

int
tool_check_text (const char *what, const char *text, size_t max,
                 struct mcerror *err)
{
  size_t len = strlen (text);
  json_t *utf8;

  if (len > max)
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s is %zu bytes long: give at most %zu",
                        what, len, max);
  for (const char *p = text; *p; p++)
    if (control_length (p))
      return mcerror_set (err, MCEXIT_USAGE, "%s holds a control character: "
                          "give printable text", what);
  /* jansson makes no string of what is not UTF-8. */
  utf8 = json_string (text);
  if (utf8 == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "%s is not UTF-8: "
                        "give UTF-8 text", what);
  json_decref (utf8);
  return 0;
}

void
tool_put_safe (FILE *fp, const char *text)
{
  while (*text) {
    unsigned n = control_length (text);

    /* Errors are sticky in FP: tool_finish sees them. */
    (void) putc (n ? '?' : *text, fp);
    text += n ? n : 1;
  }
}
