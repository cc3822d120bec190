/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-ctl: any control verb. */
#include "config.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tools/client.h"
#include "tools/ending.h"
#include "tools/render.h"
#include "tools/secret.h"
#include "tools/tool.h"

static void
usage (void)
{
  fputs ("Ask a replica to carry out a control verb.\n"
         "\n"
         "Usage: mcbuf-ctl [OPTION …] TARGET VERB [ARGUMENT …]\n"
         "\n"
         "TARGET is the journal directory of a replica on this host, or the NBD URI of\n"
         "its server.  Verbs:\n"
         "\n"
         "  seal                              close the open epoch\n"
         "  commit [epoch=N] [generation=G] [label=TEXT]\n"
         "                                    make a checkpoint\n"
         "  status                            how the replica is\n"
         "  list                              the checkpoints that can be recovered to\n"
         "  promote [to=N|LABEL|TIME]         fail over (local only)\n"
         "  promote scratch                   fail over to what NAME@scratch holds\n"
         "  reset NAME@scratch                discard what was written to it (local)\n"
         "  divergence [disk=NAME] [from=OFFSET]\n"
         "                                    where the old primary's disk may differ\n"
         "  resync [overwrite]                take a new full copy\n"
         "  shutdown                          stop the server, wait for its end (local)\n"
         "\n"
         "Options:\n"
         "\n"
         "  --json            print the answer as one line of JSON\n"
         "  --secret=+FILE    by URI: the server's control-secret is in FILE\n"
         "  --help            print this and exit\n"
         "  -V, --version     print the version and exit\n"
         "\n"
         "Exit codes: 0 done, 1 usage or cannot reach, 2 refused by the replica's state,\n"
         "3 no checkpoint exists, 4 damage found, 5 run it again to go on.\n"
         "See mcbuf-ctl(1).\n",
         stdout);
}

enum { OPT_JSON = 256, OPT_SECRET, OPT_HELP };

static const struct option long_options[] = {
  { "json", no_argument, NULL, OPT_JSON },
  { "secret", required_argument, NULL, OPT_SECRET },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, 'V' },
  { NULL, 0, NULL, 0 },
};

/* VERB and its arguments with a space between, malloced.  NULL with ERR. */
static char *
make_request (char *const words[], int n, struct mcerror *err)
{
  size_t len = 0, max = CLIENT_REQUEST_MAX;
  char *request, *p;

  for (int i = 0; i < n; i++) {
    if (tool_check_text ("the request", words[i], max, err) == -1)
      return NULL;
    len += strlen (words[i]) + 1;
  }
  request = malloc (len);
  if (request == NULL) {
    (void) mcerror_set (err, MCEXIT_USAGE, "%m");
    return NULL;
  }
  p = request;
  for (int i = 0; i < n; i++) {
    p = stpcpy (p, words[i]);
    *p++ = ' ';
  }
  p[-1] = '\0';
  return request;
}

static bool
is_verb (const char *request, const char *verb)
{
  size_t n = strcspn (request, " ");

  return n == strlen (verb) && strncmp (request, verb, n) == 0;
}

static void
render (const char *request, const json_t *object, const char *target)
{
  if (is_verb (request, "status"))
    render_status (stdout, object, target);
  else if (is_verb (request, "list"))
    render_list (stdout, object);
  else if (is_verb (request, "commit") || is_verb (request, "seal"))
    render_commit (stdout, object);
  else if (is_verb (request, "promote"))
    render_recovered (stdout, object, false);
  else if (json_object_size (object) == 0)
    puts ("done");
  else
    render_any (stdout, object);
}

/* Ask for REQUEST, see to what it begins, print the answer.  Returns the exit code. */
static int
carry_out (const char *target, const char *secret, const char *request, bool json)
{
  struct ending ending = { .lock = -1, .process = -1 };
  int status = MCEXIT_DONE, r;
  struct answer answer;
  struct mcerror err;
  struct client *c;

  c = client_open (target, secret, &err);
  if (c == NULL)
    return tool_fail (&err);
  if (is_verb (request, "shutdown") && !client_is_uri (target))
    ending_watch (&ending, target);
  r = client_call (c, request, strlen (request), &answer, &err);
  if (r == 0)
    r = ending_wait (&ending, &err);
  if (json && answer.line)
    (void) puts (answer.line);  /* tool_finish reports an error */
  if (r == -1)
    status = tool_fail (&err);
  else if (!json)
    render (request, answer.object, target);
  ending_forget (&ending);
  client_close (c);
  return status;
}

int
main (int argc, char *argv[])
{
  CLEANUP_FREE char *request = NULL;
  const char *target, *secret = NULL;
  struct mcerror err;
  bool json = false;
  int opt;

  tool_init ("mcbuf-ctl");
  while ((opt = getopt_long (argc, argv, ":V", long_options, NULL)) != -1) {
    switch (opt) {
    case OPT_JSON:
      json = true;
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
  if (argc - optind < 1 || *argv[optind] == '\0')
    return tool_usage_error ("no TARGET");
  if (argc - optind < 2 || *argv[optind + 1] == '\0')
    return tool_usage_error ("no VERB");
  target = argv[optind];

  request = make_request (argv + optind + 1, argc - optind - 1, &err);
  if (request == NULL)
    return tool_fail (&err);
  return tool_finish (carry_out (target, secret, request, json));
}
