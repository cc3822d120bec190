/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-recover with a server running: the server holds the journal, so it is
 * asked.  The promote is durable when it answers, and NAME@promoted is served
 * from that moment; the backing images are complete when it has drained.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/host.h"
#include "tools/progress.h"
#include "tools/recover.h"
#include "tools/render.h"
#include "tools/tool.h"

#define POLL_NS (100 * 1000 * 1000)

/* REQUEST's answer, a new reference.  NULL with ERR. */
static json_t *
ask (struct client *c, const char *request, struct mcerror *err)
{
  struct answer answer;

  if (client_call (c, request, strlen (request), &answer, err) == -1)
    return NULL;
  return json_incref (answer.object);
}

/* ASK failed. */
static int
fail (const struct client *c, const struct mcerror *err)
{
  return client_is_lost (c) ? -1 : tool_fail (err);
}

static bool
has_drained (const json_t *object)
{
  return json_is_true (json_object_get (object, "drained"));
}

/* STATUS: is it still promoted, in GENERATION?  -1: yes; otherwise the exit code. */
static int
check_promoted (const json_t *status, const struct options *o, uint64_t generation)
{
  const char *state = render_text (status, "state"), *reason = render_text (status, "reason");
  uint64_t now = generation;

  (void) render_number (status, "generation", &now);
  if (state == NULL || (strcmp (state, "promoted") == 0 && now == generation))
    return -1;
  progress_end ();
  if (strcmp (state, "failed") == 0)
    return tool_error (MCEXIT_DAMAGE, "%s: promoted, but the backing images cannot be completed: replica has "
                       "failed: %s: stop the server (mcbuf-ctl %s shutdown), mcbuf-recover --verify %s shows "
                       "what is damaged", o->journal, reason ? reason : "no reason given", o->journal,
                       o->journal);
  return tool_error (MCEXIT_REFUSED, "%s: replica is %s in generation %llu meanwhile: somebody gave up the "
                     "promoted disk (resync overwrite): see mcbuf-status %s", o->journal, state,
                     (unsigned long long) now, o->journal);
}

/* Until the backing images are complete.  Returns the exit code; *WRITTEN is
 * what there was to write out.
 */
static int
wait_drained (struct client *c, const struct options *o, uint64_t generation,
              uint64_t *written)
{
  const struct timespec pause = { .tv_nsec = POLL_NS };
  uint64_t left;
  bool told = false;
  int code;

  for (;;) {
    struct mcerror err;
    json_t *status = ask (c, "status", &err);
    const char *error;

    if (status == NULL) {
      progress_end ();
      return tool_error (MCEXIT_PARTIAL, "promoted, but the write-out was not "
                         "seen to end: %s: run mcbuf-recover %s again",
                         err.text, o->journal);
    }
    code = check_promoted (status, o, generation);
    if (code == -1 && has_drained (status)) {
      progress_end ();
      code = MCEXIT_DONE;
    }
    if (code != -1) {
      json_decref (status);
      return code;
    }
    error = render_text (status, "writeout.error");
    if (error && !told) {
      progress_end ();
      (void) tool_error (MCEXIT_PARTIAL, "write-out is paused: %s: mend the "
                         "backing image, it goes on by itself; waiting",
                         error);
    }
    told = error != NULL;
    if (render_number (status, "writeout.bytes", &left)) {
      *written = left > *written ? left : *written;
      progress_show ("write-out", *written - left, *written);
    }
    json_decref (status);
    if (nanosleep (&pause, NULL) == -1 && errno != EINTR)
      return tool_error (MCEXIT_PARTIAL, "promoted; cannot wait: %m");
  }
}

static int
promote (struct client *c, const struct options *o, struct mcerror *err)
{
  CLEANUP_FREE char *request = NULL;
  uint64_t start = host_monotonic_ns ();
  json_t *result;

  if (asprintf (&request, "promote%s%s", o->to ? " to=" : "",
                o->to ? o->to : "") == -1)
    return tool_error (MCEXIT_USAGE, "%m");
  result = ask (c, request, err);
  if (result == NULL)
    return fail (c, err);

  if (o->wait && !has_drained (result)) {
    uint64_t written = 0, generation = 0;
    int status;

    (void) render_number (result, "written_bytes", &written);
    (void) render_number (result, "generation", &generation);
    status = wait_drained (c, o, generation, &written);

    if (status != MCEXIT_DONE) {
      json_decref (result);
      return status;
    }
    /* The caller asked for all of it, so tell of all of it. */
    if (json_object_set_new (result, "drained", json_true ()) == -1 ||
        json_object_set_new (result, "written_bytes",
                             json_integer (written)) == -1 ||
        json_object_set_new (result, "seconds",
                             json_real ((host_monotonic_ns () - start)
                                        / 1e9)) == -1) {
      json_decref (result);
      result = NULL;
    }
  }
  return recover_put_result (result, o, has_drained (result) ?
                             "next: start the VM on the export NAME@promoted; "
                             "or, when the server is stopped, on the backing "
                             "image, which is complete" :
                             "next: start the VM on the export NAME@promoted; "
                             "the backing image is complete when "
                             "mcbuf-recover --wait returns");
}

/* CHECKPOINTS of the verb "list" as recover_choose takes them, malloced. */
static struct journal_checkpoint *
parse_list (const json_t *reply, size_t *n)
{
  const json_t *array = json_object_get (reply, "checkpoints"), *object;
  struct journal_checkpoint *list;
  size_t i;

  *n = json_array_size (array);
  list = calloc (*n + 1, sizeof *list);
  if (list == NULL)
    return NULL;
  json_array_foreach (array, i, object) {
    const char *label = render_text (object, "label");
    const char *time = render_text (object, "time");

    (void) render_number (object, "id", &list[i].id);
    (void) render_number (object, "bytes", &list[i].bytes);
    if (time == NULL || host_time_parse (time, &list[i].time) == -1)
      list[i].time = 0;
    if (label)
      snprintf (list[i].label, sizeof list[i].label, "%s", label);
  }
  return list;
}

/* What a promote would answer, worked out from STATUS and LIST: the server
 * goes on meanwhile, so the figures of what is discarded are of this moment.
 */
static int
dry_run_from (const json_t *status, const json_t *list,
              const struct options *o)
{
  CLEANUP_FREE struct journal_checkpoint *checkpoints = NULL;
  struct journal_checkpoint chosen;
  const char *state = render_text (status, "state");
  uint64_t generation = 0, epochs = 0, discarded = 0, write_out = 0;
  uint64_t later = 0;
  struct mcerror err;
  bool promoted;
  size_t n;

  if (state == NULL)
    state = "unknown";
  if (strcmp (state, "failed") == 0)
    return tool_error (MCEXIT_REFUSED, "%s: state failed: the journal cannot "
                       "be trusted: stop the server (mcbuf-ctl %s shutdown) "
                       "and run this again", o->journal, o->journal);
  checkpoints = parse_list (list, &n);
  if (checkpoints == NULL)
    return tool_error (MCEXIT_USAGE, "%m");
  if (n == 0)
    return tool_error (MCEXIT_NO_CHECKPOINT, "%s: state %s: no checkpoint "
                       "exists: the image must not be used", o->journal, state);
  chosen = checkpoints[n - 1];
  promoted = strcmp (state, "promoted") == 0;
  if (o->to) {
    if (recover_choose (checkpoints, n, o->to, &chosen, &err) == -1)
      return tool_fail (&err);
    if (promoted && chosen.id != checkpoints[n - 1].id)
      return tool_error (MCEXIT_REFUSED, "%s: state promoted: checkpoint "
                         "%llu is the disk since then: leave out --to",
                         o->journal,
                         (unsigned long long) checkpoints[n - 1].id);
  }
  for (size_t i = 0; i < n; i++)
    if (checkpoints[i].id > chosen.id)
      later += checkpoints[i].bytes;
  (void) render_number (status, "generation", &generation);
  (void) render_number (status, "speculation.bytes", &discarded);
  (void) render_number (status, "speculation.epochs", &epochs);
  (void) render_number (status, "writeout.bytes", &write_out);

  return recover_put_result (
    json_pack ("{s:I,s:s?,s:I,s:I,s:I,s:I,s:s,s:f}",
               "checkpoint", (json_int_t) chosen.id,
               "label", chosen.label[0] ? chosen.label : NULL,
               "discarded_bytes", (json_int_t) (promoted ? 0 : discarded),
               "discarded_epochs", (json_int_t) (promoted ? 0 : epochs),
               "written_bytes",
               (json_int_t) (write_out > later ? write_out - later : 0),
               "generation", (json_int_t) (generation + !promoted),
               "state", "promoted",
               "seconds", 0.0), o, NULL);
}

static int
dry_run (struct client *c, const struct options *o, struct mcerror *err)
{
  json_t *status, *list = NULL;
  int r;

  status = ask (c, "status", err);
  if (status)
    list = ask (c, "list", err);
  r = list ? dry_run_from (status, list, o) : fail (c, err);
  json_decref (list);
  json_decref (status);
  return r;
}

int
recover_online (struct client *c, const struct options *o, struct mcerror *err)
{
  json_t *list;

  if (o->ndisks > 0)
    return tool_usage_error ("--disk: a server runs on %s and knows where its "
                             "images are: leave --disk out, or stop it first "
                             "(mcbuf-ctl %s shutdown)", o->journal, o->journal);

  switch (o->action) {
  case RECOVER:
    return promote (c, o, err);
  case DRY_RUN:
    return dry_run (c, o, err);
  case LIST:
    list = ask (c, "list", err);
    return list ? recover_put_list (list, o) : fail (c, err);
  case VERIFY:
    break;
  }
  return tool_usage_error ("--verify: a server runs on %s and writes to the "
                           "journal: stop it first (mcbuf-ctl %s shutdown)",
                           o->journal, o->journal);
}
