/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-commit: seal and commit.  Run once for each checkpoint, so it starts
 * fast: no locale, and libnbd only for a URI (client-nbd.c).
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "journal/journal.h"
#include "tools/client.h"
#include "tools/render.h"
#include "tools/secret.h"
#include "tools/tool.h"

static void
usage (void)
{
  fputs ("Make a checkpoint of a replica: seal the open epoch and commit.\n"
         "\n"
         "Usage: mcbuf-commit [OPTION …] TARGET\n"
         "       mcbuf-commit --stdin TARGET\n"
         "\n"
         "TARGET is the journal directory of a replica on this host, or the NBD URI of\n"
         "its server.\n"
         "\n"
         "  --seal            only seal: later writes belong to the next epoch\n"
         "  --epoch=N         commit every epoch up to N, which must be sealed\n"
         "  --label=TEXT      give the checkpoint a label\n"
         "  --generation=G    refuse in any other generation than G\n"
         "  --json            print the answer as one line of JSON\n"
         "  --stdin           carry out verbs from standard input, one a line\n"
         "  --secret=+FILE    by URI: the server's control-secret is in FILE\n"
         "  --help            print this and exit\n"
         "  -V, --version     print the version and exit\n"
         "\n"
         "Exit codes: 0 done, 1 usage or cannot reach, 2 refused by the replica's state,\n"
         "4 damage found.  See mcbuf-commit(1).\n",
         stdout);
}

enum { OPT_SEAL = 256, OPT_EPOCH, OPT_LABEL, OPT_GENERATION, OPT_JSON,
       OPT_SECRET, OPT_STDIN, OPT_HELP };

static const struct option long_options[] = {
  { "seal", no_argument, NULL, OPT_SEAL },
  { "epoch", required_argument, NULL, OPT_EPOCH },
  { "label", required_argument, NULL, OPT_LABEL },
  { "generation", required_argument, NULL, OPT_GENERATION },
  { "json", no_argument, NULL, OPT_JSON },
  { "secret", required_argument, NULL, OPT_SECRET },
  { "stdin", no_argument, NULL, OPT_STDIN },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, 'V' },
  { NULL, 0, NULL, 0 },
};

struct options {
  bool seal, json, from_stdin;
  bool have_epoch, have_generation;
  uint64_t epoch, generation;
  const char *label;
  const char *secret;
  const char *target;
};

/* The request that the options ask for, malloced.  NULL with errno. */
static char *
make_request (const struct options *o)
{
  char epoch[32] = "", generation[32] = "";
  char *request;

  if (o->have_epoch)
    snprintf (epoch, sizeof epoch, " epoch=%" PRIu64, o->epoch);
  if (o->have_generation)
    snprintf (generation, sizeof generation, " generation=%" PRIu64,
              o->generation);
  /* The label goes last: it takes the rest of the line. */
  if (asprintf (&request, "%s%s%s%s%s", o->seal ? "seal" : "commit", epoch, generation,
                o->label ? " label=" : "", o->label ? o->label : "") == -1)
    return NULL;
  return request;
}

static int
run_once (struct client *c, const struct options *o)
{
  CLEANUP_FREE char *request = make_request (o);
  struct answer answer;
  struct mcerror err;
  int r;

  if (request == NULL)
    return tool_error (MCEXIT_USAGE, "%m");
  r = client_call (c, request, strlen (request), &answer, &err);
  if (o->json && answer.line && puts (answer.line) == EOF)
    return MCEXIT_DONE;         /* tool_finish reports it */
  if (r == -1)
    return tool_fail (&err);
  if (!o->json)
    render_commit (stdout, answer.object);
  return MCEXIT_DONE;
}

/* {"error":…,"code":…} for what failed on this side, so that each line in has
 * a line out.  -1 when standard output fails.
 */
static int
put_failure (const struct mcerror *err)
{
  json_t *line = json_pack ("{s:s%,s:i}", "error", err->text,
                            strnlen (err->text, sizeof err->text),
                            "code", (int) err->code);
  int r = -1;

  /* The text of a message may hold a path that is not UTF-8. */
  if (line == NULL)
    line = json_pack ("{s:s,s:i}", "error", "request failed", "code",
                      (int) err->code);
  if (line && json_dumpf (line, stdout, JSON_COMPACT) == 0 &&
      putchar ('\n') != EOF)
    r = 0;
  json_decref (line);
  return r;
}

/* Verbs from standard input until it ends. */
static int
run_stdin (struct client *c)
{
  struct mcerror err, first = { .code = MCEXIT_DONE };
  CLEANUP_FREE char *line = NULL;
  uint64_t requests = 0, refused = 0;
  struct answer answer;
  size_t cap = 0;
  ssize_t len;

  while (errno = 0, (len = getline (&line, &cap, stdin)) != -1) {
    int r;

    if (len > 0 && line[len - 1] == '\n')
      len--;
    if (len > 0 && line[len - 1] == '\r')
      len--;
    requests++;
    r = client_call (c, line, len, &answer, &err);
    if (answer.line ? puts (answer.line) == EOF : put_failure (&err) == -1)
      return MCEXIT_DONE;       /* tool_finish reports it */
    if (tool_flush () == -1)
      return MCEXIT_DONE;
    if (r == 0)
      continue;
    if (client_is_broken (c))
      return tool_fail (&err);
    if (refused++ == 0)
      first = err;
  }
  if (ferror (stdin) || errno != 0)
    return tool_error (MCEXIT_USAGE, "standard input: %m: "
                       "the verbs read so far were carried out");
  if (refused > 0)
    return tool_error (first.code, "%" PRIu64 " of %" PRIu64 " requests were "
                       "refused, the first: %s", refused, requests, first.text);
  return MCEXIT_DONE;
}

/* Fill *O.  -1: go on; otherwise the exit code. */
static int
parse (int argc, char *argv[], struct options *o)
{
  struct mcerror err;
  int c;

  while ((c = getopt_long (argc, argv, ":V", long_options, NULL)) != -1) {
    switch (c) {
    case OPT_SEAL:
      o->seal = true;
      break;
    case OPT_EPOCH:
      o->have_epoch = true;
      if (!tool_parse_number (optarg, &o->epoch))
        return tool_usage_error ("--epoch=%s: not a number of an epoch",
                                 optarg);
      break;
    case OPT_LABEL:
      o->label = optarg;
      if (tool_check_text ("--label", optarg, JOURNAL_LABEL_MAX, &err) == -1)
        return tool_fail (&err);
      break;
    case OPT_GENERATION:
      o->have_generation = true;
      if (!tool_parse_number (optarg, &o->generation))
        return tool_usage_error ("--generation=%s: not a number of a "
                                 "generation", optarg);
      break;
    case OPT_JSON:
      o->json = true;
      break;
    case OPT_SECRET:
      o->secret = optarg;
      if (secret_check (optarg, &err) == -1)
        return tool_fail (&err);
      break;
    case OPT_STDIN:
      o->from_stdin = true;
      break;
    case OPT_HELP:
      usage ();
      return MCEXIT_DONE;
    case 'V':
      return tool_version ();
    default:
      return tool_bad_option (c, argv);
    }
  }
  if (o->seal && (o->have_epoch || o->label))
    return tool_usage_error ("--seal closes the open epoch and nothing else: "
                             "it goes with no --epoch and no --label");
  if (o->from_stdin &&
      (o->seal || o->have_epoch || o->label || o->have_generation))
    return tool_usage_error ("--stdin takes whole verbs from its input: it "
                             "goes with no --seal, --epoch, --label or "
                             "--generation");
  if (argc - optind != 1 || *argv[optind] == '\0')
    return tool_usage_error (argc - optind > 1 ? "more than one TARGET"
                                               : "no TARGET");
  o->target = argv[optind];
  return -1;
}

int
main (int argc, char *argv[])
{
  struct options o = { .seal = false };
  struct mcerror err;
  struct client *c;
  int status;

  tool_init ("mcbuf-commit");
  status = parse (argc, argv, &o);
  if (status != -1)
    return tool_finish (status);

  c = client_open (o.target, o.secret, &err);
  if (c == NULL)
    return tool_fail (&err);
  status = o.from_stdin ? run_stdin (c) : run_once (c, &o);
  client_close (c);
  return tool_finish (status);
}
