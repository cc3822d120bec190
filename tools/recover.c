/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-recover: fail over.  Options, the choice between the server and the
 * journal alone, and the output that both have in common.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/host.h"
#include "common/uri.h"
#include "tools/recover.h"
#include "tools/render.h"
#include "tools/tool.h"

#define TO_MAX 1024             /* bytes; labels have 255, times 35 */

static void
usage (void)
{
  fputs ("Fail over: discard speculation and make the last checkpoint the disk.\n"
         "\n"
         "Usage: mcbuf-recover [OPTION …] JOURNAL\n"
         "\n"
         "JOURNAL is the journal directory of a replica.  If its server runs, the server\n"
         "promotes; if not, the backing images are brought to the checkpoint here.\n"
         "\n"
         "  --list            show the checkpoints that can be recovered to\n"
         "  --to=N|LABEL|TIME recover to that checkpoint, not to the last one\n"
         "  --dry-run         say what would be done, change nothing\n"
         "  --verify          check every retained byte, change nothing\n"
         "  --wait            with a server: wait until the backing images are complete\n"
         "  --disk=NAME:PATH  the backing image of disk NAME is now PATH (repeatable)\n"
         "  --json            print the result as one line of JSON\n"
         "  --help            print this and exit\n"
         "  -V, --version     print the version and exit\n"
         "\n"
         "Exit codes: 0 done, 1 usage or cannot open, 2 refused by the replica's state,\n"
         "3 no checkpoint exists: the image must not be used, 4 damage found,\n"
         "5 run it again to go on.  See mcbuf-recover(1).\n",
         stdout);
}

enum { OPT_LIST = 256, OPT_TO, OPT_DRY_RUN, OPT_VERIFY, OPT_WAIT, OPT_DISK,
       OPT_JSON, OPT_HELP };

static const struct option long_options[] = {
  { "list", no_argument, NULL, OPT_LIST },
  { "to", required_argument, NULL, OPT_TO },
  { "dry-run", no_argument, NULL, OPT_DRY_RUN },
  { "verify", no_argument, NULL, OPT_VERIFY },
  { "wait", no_argument, NULL, OPT_WAIT },
  { "disk", required_argument, NULL, OPT_DISK },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, OPT_HELP },
  { "version", no_argument, NULL, 'V' },
  { NULL, 0, NULL, 0 },
};

/* Print OBJECT as the line of JSON that it is.  Returns the exit code. */
static int
put_json (const json_t *object)
{
  CLEANUP_FREE char *line = json_dumps (object, JSON_COMPACT |
                                        JSON_REAL_PRECISION (6));

  if (line == NULL)
    return tool_error (MCEXIT_USAGE, "no memory for the result");
  (void) puts (line);           /* tool_finish reports an error */
  return MCEXIT_DONE;
}

int
recover_put_list (json_t *list, const struct options *o)
{
  int status = MCEXIT_DONE;

  if (list == NULL)
    return tool_error (MCEXIT_USAGE, "no memory for the list of checkpoints");
  if (o->json)
    status = put_json (list);
  else if (json_array_size (json_object_get (list, "checkpoints")) > 0)
    render_list (stdout, list);
  if (status == MCEXIT_DONE &&
      json_array_size (json_object_get (list, "checkpoints")) == 0)
    status = tool_error (MCEXIT_NO_CHECKPOINT, "%s: no checkpoint exists: "
                         "the image must not be used: start a new mirror of "
                         "the primary", o->journal);
  json_decref (list);
  return status;
}

int
recover_put_result (json_t *result, const struct options *o, const char *next)
{
  int status = MCEXIT_DONE;

  if (result == NULL)
    return tool_error (MCEXIT_USAGE, "no memory for the result");
  if (o->json)
    status = put_json (result);
  else if (o->action == VERIFY)
    render_verified (stdout, result);
  else {
    render_recovered (stdout, result, o->action != RECOVER);
    if (next)
      puts (next);
  }
  json_decref (result);
  return status;
}

/* --disk=[NAME:]PATH or URI, as the plugin reads disk=: without a NAME it is the
 * unnamed disk.  Returns -1 to go on, otherwise the exit code.
 */
static int
parse_disk (char *arg, struct options *o)
{
  static const char name_chars[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "abcdefghijklmnopqrstuvwxyz"
                                   "0123456789_.-";
  size_t n = strspn (arg, name_chars);
  struct recover_disk *disks;
  const char *name = "", *path = arg;

  if (arg[n] == ':' && !uri_is_nbd (arg)) {
    arg[n] = '\0';
    name = arg;
    path = arg + n + 1;
  }
  if (*path == '\0')
    return tool_usage_error ("--disk=%s:%s gives no path", name, path);
  if (uri_is_nbd (path) && uri_relative_path (path))
    return tool_usage_error ("--disk=%s:%s: %s= must be an absolute path", name,
                             path, uri_relative_path (path));
  for (unsigned i = 0; i < o->ndisks; i++)
    if (strcmp (o->disks[i].name, name) == 0)
      return tool_usage_error ("--disk names disk \"%s\" twice", name);
  disks = reallocarray (o->disks, o->ndisks + 1, sizeof *disks);
  if (disks == NULL)
    return tool_error (MCEXIT_USAGE, "--disk: %m");
  o->disks = disks;
  o->disks[o->ndisks++] = (struct recover_disk) { .name = name, .path = path };
  return -1;
}

/* -1: go on; otherwise the exit code. */
static int
set_action (struct options *o, enum action action)
{
  if (o->action != RECOVER && o->action != action)
    return tool_usage_error ("--list, --dry-run and --verify exclude each "
                             "other");
  o->action = action;
  return -1;
}

/* Fill *O.  -1: go on; otherwise the exit code. */
static int
parse (int argc, char *argv[], struct options *o)
{
  struct mcerror err;
  int c, r = -1;

  while ((c = getopt_long (argc, argv, ":V", long_options, NULL)) != -1) {
    switch (c) {
    case OPT_LIST:
      r = set_action (o, LIST);
      break;
    case OPT_TO:
      o->to = optarg;
      if (*optarg == '\0')
        return tool_usage_error ("--to= needs a number, a label or a time");
      if (tool_check_text ("--to", optarg, TO_MAX, &err) == -1)
        return tool_fail (&err);
      break;
    case OPT_DRY_RUN:
      r = set_action (o, DRY_RUN);
      break;
    case OPT_VERIFY:
      r = set_action (o, VERIFY);
      break;
    case OPT_WAIT:
      o->wait = true;
      break;
    case OPT_DISK:
      r = parse_disk (optarg, o);
      break;
    case OPT_JSON:
      o->json = true;
      break;
    case OPT_HELP:
      usage ();
      return MCEXIT_DONE;
    case 'V':
      return tool_version ();
    default:
      return tool_bad_option (c, argv);
    }
    if (r != -1)
      return r;
  }
  if (o->to && o->action == LIST)
    return tool_usage_error ("--list shows every checkpoint: it goes with no "
                             "--to");
  if (o->wait && o->action != RECOVER)
    return tool_usage_error ("--wait goes with no --list, --dry-run or "
                             "--verify");
  if (argc - optind != 1 || *argv[optind] == '\0')
    return tool_usage_error (argc - optind > 1 ? "more than one JOURNAL"
                                               : "no JOURNAL");
  o->journal = argv[optind];
  if (client_is_uri (o->journal))
    return tool_usage_error ("%s: a URI: fail-over is asked for on the "
                             "replica's own host, with its journal directory",
                             o->journal);
  return -1;
}

/* A server that got SIGKILL takes connections until it is gone, and then nobody does. */
static int
run (const struct options *o)
{
  struct mcerror err;
  uint64_t since = 0;

  do {
    struct client *c = client_open (o->journal, NULL, &err);
    int status;

    if (c == NULL && errno == ECONNREFUSED)
      return recover_offline (o);
    if (c == NULL)
      break;
    status = recover_online (c, o, &err);
    client_close (c);
    if (status != -1)
      return status;
  } while (host_wait_busy (&since));
  return tool_fail (&err);
}

int
main (int argc, char *argv[])
{
  struct options o = { .action = RECOVER };
  int status;

  tool_init ("mcbuf-recover");
  status = parse (argc, argv, &o);
  if (status == -1)
    status = run (&o);
  free (o.disks);
  return tool_finish (status);
}
