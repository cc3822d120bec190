/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-status: how a replica is. */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/client.h"
#include "tools/render.h"
#include "tools/secret.h"
#include "tools/tool.h"

#define WATCH_SECONDS 1

static void
usage (void)
{
  fputs ("Show how a replica is.\n"
         "\n"
         "Usage: mcbuf-status [OPTION] TARGET\n"
         "\n"
         "TARGET is the journal directory of a replica on this host, or the NBD URI of\n"
         "its server.\n"
         "\n"
         "  --json            print the status as one line of JSON\n"
         "  --watch           show it again every second, until interrupted\n"
         "  --prometheus      print it as metrics for Prometheus\n"
         "  --divergence      after a fail-over: the ranges, in bytes, in which the old\n"
         "                    primary's disks may differ, if QEMU there was stopped or\n"
         "                    quit; one that was killed needs a full copy (local only)\n"
         "  --secret=+FILE    by URI: the server's control-secret is in FILE\n"
         "  --help            print this and exit\n"
         "  -V, --version     print the version and exit\n"
         "\n"
         "Exit codes: 0 done, 1 usage or cannot reach, 2 refused by the replica's state.\n"
         "See mcbuf-status(1).\n",
         stdout);
}

enum {
  OPT_JSON = 256, OPT_WATCH, OPT_PROMETHEUS, OPT_DIVERGENCE, OPT_SECRET, OPT_HELP
};

static const struct option long_options[] = {
  { "json", no_argument, NULL, OPT_JSON },
  { "watch", no_argument, NULL, OPT_WATCH },
  { "prometheus", no_argument, NULL, OPT_PROMETHEUS },
  { "divergence", no_argument, NULL, OPT_DIVERGENCE },
  { "secret", required_argument, NULL, OPT_SECRET },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, 'V' },
  { NULL, 0, NULL, 0 },
};

enum format { TEXT, JSON, WATCH, PROMETHEUS };

static const char request[] = "status";

static int
show (struct client *c, enum format format, const char *target)
{
  struct answer answer;
  struct mcerror err;
  int r = client_call (c, request, strlen (request), &answer, &err);

  if (format == JSON && answer.line && puts (answer.line) == EOF)
    return MCEXIT_DONE;         /* tool_finish reports it */
  if (r == -1)
    return tool_fail (&err);
  if (format == TEXT)
    render_status (stdout, answer.object, target);
  else if (format == PROMETHEUS)
    render_prometheus (stdout, answer.object);
  return MCEXIT_DONE;
}

/* One disk's ranges, a reply at a time.  *CONDITION, if not NULL already: on which they are all. */
static int
show_disk (struct client *c, const char *name, bool json, char **condition)
{
  json_int_t from = 0;

  for (;;) {
    CLEANUP_FREE char *line = NULL;
    struct answer answer;
    struct mcerror err;
    json_t *range, *next;
    size_t i;

    if (asprintf (&line, "divergence disk=%s from=%" JSON_INTEGER_FORMAT, name, from) == -1) {
      line = NULL;
      return tool_error (MCEXIT_USAGE, "out of memory");
    }
    if (client_call (c, line, strlen (line), &answer, &err) == -1)
      return tool_fail (&err);
    if (json && puts (answer.line) == EOF)
      return MCEXIT_DONE;       /* tool_finish reports it */
    if (!json_is_true (json_object_get (answer.object, "known")))
      return tool_error (MCEXIT_REFUSED, "the divergence is not known: %s",
                         json_string_value (json_object_get (answer.object, "reason")));
    if (*condition == NULL) {
      const char *text = json_string_value (json_object_get (answer.object, "complete_if"));

      if (text && (*condition = strdup (text)) == NULL)
        return tool_error (MCEXIT_USAGE, "out of memory");
    }
    if (!json)
      json_array_foreach (json_object_get (answer.object, "ranges"), i, range)
        printf ("%s %" JSON_INTEGER_FORMAT " %" JSON_INTEGER_FORMAT "\n",
                *name ? name : "\"\"",
                json_integer_value (json_array_get (range, 0)),
                json_integer_value (json_array_get (range, 1)));
    next = json_object_get (answer.object, "next");
    if (!json_is_integer (next))
      return MCEXIT_DONE;
    from = json_integer_value (next);
  }
}

static int
divergence (struct client *c, bool json)
{
  CLEANUP_FREE char *condition = NULL;
  int status = MCEXIT_DONE;
  struct answer answer;
  struct mcerror err;
  json_t *disks, *disk;
  size_t i;

  if (client_call (c, request, strlen (request), &answer, &err) == -1)
    return tool_fail (&err);
  disks = json_incref (json_object_get (answer.object, "disks"));
  json_array_foreach (disks, i, disk)
    if (status == MCEXIT_DONE)
      status = show_disk (c, json_string_value (json_object_get (disk, "name")), json, &condition);
  json_decref (disks);
  /* The list is no better than what is known of the old primary's end: nobody shall miss that,
   * whatever reads the ranges.
   */
  if (condition && status == MCEXIT_DONE)
    (void) tool_error (MCEXIT_DONE, "warning: these ranges are all only if %s", condition);
  return status;
}

/* Whatever the tool waits for, a signal ends it at once: every picture is
 * flushed when it is complete, so nothing is lost.
 */
static void
interrupted (int sig)
{
  (void) sig;
  _exit (MCEXIT_DONE);
}

static int
watch (struct client *c, const char *target)
{
  const struct sigaction action = { .sa_handler = interrupted };
  const struct timespec second = { .tv_sec = WATCH_SECONDS };
  bool terminal = isatty (STDOUT_FILENO);

  if (sigaction (SIGINT, &action, NULL) == -1 ||
      sigaction (SIGTERM, &action, NULL) == -1)
    return tool_error (MCEXIT_USAGE, "cannot catch signals: %m");

  for (;;) {
    struct answer answer;
    struct mcerror err;

    if (client_call (c, request, strlen (request), &answer, &err) == -1)
      return tool_fail (&err);
    if (terminal) {
      /* Home and clear: the picture is short and comes in one write. */
      fputs ("\033[H\033[2J", stdout);
      render_status (stdout, answer.object, target);
    }
    else
      render_headline (stdout, answer.object, target);
    if (tool_flush () == -1)
      return MCEXIT_DONE;       /* tool_finish reports it */
    if (nanosleep (&second, NULL) == -1 && errno != EINTR)
      return tool_error (MCEXIT_USAGE, "cannot sleep: %m");
  }
}

int
main (int argc, char *argv[])
{
  enum format format = TEXT;
  struct mcerror err;
  struct client *c;
  const char *target, *secret = NULL;
  unsigned formats = 0;
  bool ranges = false;
  int opt, status;

  tool_init ("mcbuf-status");
  while ((opt = getopt_long (argc, argv, ":V", long_options, NULL)) != -1) {
    switch (opt) {
    case OPT_JSON:
    case OPT_WATCH:
    case OPT_PROMETHEUS:
      formats |= 1u << (opt - OPT_JSON);
      format = opt == OPT_JSON ? JSON : opt == OPT_WATCH ? WATCH : PROMETHEUS;
      break;
    case OPT_DIVERGENCE:
      ranges = true;
      break;
    case OPT_SECRET:
      secret = optarg;
      if (secret_check (optarg, &err) == -1)
        return tool_fail (&err);
      break;
    case OPT_HELP:
      usage ();
      return tool_finish (MCEXIT_DONE);
    case 'V':
      return tool_finish (tool_version ());
    default:
      return tool_bad_option (opt, argv);
    }
  }
  if (formats & (formats - 1))
    return tool_usage_error ("--json, --watch and --prometheus exclude each "
                             "other");
  if (ranges && format != TEXT && format != JSON)
    return tool_usage_error ("--divergence goes with --json only");
  if (argc - optind != 1 || *argv[optind] == '\0')
    return tool_usage_error (argc - optind > 1 ? "more than one TARGET"
                                               : "no TARGET");
  target = argv[optind];

  c = client_open (target, secret, &err);
  if (c == NULL)
    return tool_fail (&err);
  status = ranges ? divergence (c, format == JSON) : format == WATCH ? watch (c, target) : show (c, format, target);
  client_close (c);
  return tool_finish (status);
}
