/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-status for people.  The first line alone must do for somebody who was
 * woken by a page: state, checkpoint and its age, what is wrong, what to type.
 */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "tools/client.h"
#include "tools/render.h"
#include "tools/tool.h"

/* What the lines of advice are made from. */
struct view {
  FILE *fp;
  const json_t *status;
  const char *target;           /* for mcbuf-commit and mcbuf-ctl */
  const char *journal;          /* for mcbuf-recover, which takes a directory only */
};

static void
put_checkpoint (const struct view *v)
{
  const json_t *checkpoint = render_find (v->status, "checkpoint");
  const char *time = render_text (checkpoint, "time");
  char age[RENDER_AGE_STRLEN];

  render_checkpoint (v->fp, checkpoint);
  if (time && render_age (time, age))
    fprintf (v->fp, ", %s ago", age);
}

static bool
has_checkpoint (const struct view *v)
{
  return json_is_object (render_find (v->status, "checkpoint"));
}

/* "; REASON" or nothing.  The other states' reasons are what the headline says
 * anyway; they are on a line of their own.
 */
static void
put_reason (const struct view *v)
{
  const char *reason = render_text (v->status, "reason");

  if (reason) {
    fputs ("; ", v->fp);
    tool_put_safe (v->fp, reason);
  }
}

static void
put_paused (const struct view *v, const char *error)
{
  fputs ("; write-out is paused: ", v->fp);
  tool_put_safe (v->fp, error);
  fputs (": mend the backing image, it goes on by itself", v->fp);
}

static bool
no_connection (const struct view *v)
{
  uint64_t n;

  return render_number (v->status, "connections", &n) && n == 0;
}

static void
syncing (const struct view *v)
{
  fputs ("no checkpoint yet, the first copy is not complete", v->fp);
  if (no_connection (v))
    fputs ("; no primary is connected: start its mirror job", v->fp);
  else
    fprintf (v->fp, "; when the mirror job is ready: mcbuf-commit %s",
             v->target);
}

static void
protected (const struct view *v)
{
  const char *error = render_text (v->status, "writeout.error");

  put_checkpoint (v);
  if (error)
    put_paused (v, error);
  else
    put_reason (v);
  if (no_connection (v))
    fprintf (v->fp, "; no primary is connected: restart its mirror job, or "
             "fail over: mcbuf-recover %s", v->journal);
  else if (!error && !render_text (v->status, "reason"))
    fputs ("; nothing to do", v->fp);
}

static void
stale (const struct view *v)
{
  if (has_checkpoint (v)) {
    put_checkpoint (v);
    put_reason (v);
    fprintf (v->fp, "; newer writes are lost: for a new copy mcbuf-ctl %s "
             "resync, to fail over mcbuf-recover %s", v->target, v->journal);
  }
  else {
    fputs ("no checkpoint, the image must not be used", v->fp);
    put_reason (v);
    fprintf (v->fp, "; for a new copy: mcbuf-ctl %s resync overwrite",
             v->target);
  }
}

static void
resyncing (const struct view *v)
{
  put_checkpoint (v);
  fprintf (v->fp, "; it stays recoverable while a new copy runs; when the "
           "mirror job is ready: mcbuf-commit %s", v->target);
}

/* The export to start the VM on; of several disks no particular one. */
static void
put_promoted (const struct view *v)
{
  const json_t *disks = render_find (v->status, "disks");
  const char *name = render_text (json_array_get (disks, 0), "name");

  if (json_array_size (disks) != 1)
    fputs ("NAME", v->fp);
  else if (name)
    tool_put_safe (v->fp, name);
  fputs ("@promoted", v->fp);
}

static void
promoted (const struct view *v)
{
  char left[RENDER_SIZE_STRLEN];
  const char *error = render_text (v->status, "writeout.error");
  bool complete = json_is_true (render_find (v->status, "drained"));
  uint64_t bytes = 0;

  put_checkpoint (v);
  if (error)
    put_paused (v, error);
  (void) render_number (v->status, "writeout.bytes", &bytes);
  if (complete)
    fputs ("; this copy is the disk now: ", v->fp);
  else
    fprintf (v->fp, "; this copy is the disk now, %s still to write out: ",
             render_size (bytes, left));
  fputs ("start the VM on the export ", v->fp);
  put_promoted (v);
  if (complete)
    fprintf (v->fp, ", or stop the server (mcbuf-ctl %s shutdown) and start "
             "it on the backing image", v->target);
  else
    fprintf (v->fp, ", or wait for the backing image: mcbuf-recover --wait %s",
             v->journal);
}

static void
failed (const struct view *v)
{
  if (has_checkpoint (v))
    put_checkpoint (v);
  else
    fputs ("no checkpoint", v->fp);
  put_reason (v);
  fprintf (v->fp, "; the journal cannot be trusted: to see what is whole "
           "mcbuf-ctl %s shutdown and mcbuf-recover --verify %s, for a new "
           "copy mcbuf-ctl %s resync overwrite",
           v->target, v->journal, v->target);
}

void
render_headline (FILE *fp, const json_t *status, const char *target)
{
  static const struct {
    const char *state;
    void (*rest) (const struct view *v);
  } states[] = {
    { "syncing", syncing },
    { "protected", protected },
    { "stale", stale },
    { "resyncing", resyncing },
    { "promoted", promoted },
    { "failed", failed },
  };
  const char *state = render_text (status, "state");
  const struct view v = {
    .fp = fp, .status = status, .target = target,
    .journal = client_is_uri (target) ? "JOURNAL" : target,
  };

  tool_put_safe (fp, state ? state : "unknown");
  fputs (": ", fp);
  for (size_t i = 0; state && i < sizeof states / sizeof states[0]; i++)
    if (strcmp (state, states[i].state) == 0) {
      states[i].rest (&v);
      putc ('\n', fp);
      return;
    }
  fputs ("this mcbuf-status does not know that state: use the server's", fp);
  putc ('\n', fp);
}

/* "KEY  used of size (n %)" */
static void
put_usage (FILE *fp, const json_t *status, const char *key)
{
  char a[RENDER_SIZE_STRLEN], b[RENDER_SIZE_STRLEN];
  const json_t *object = render_find (status, key);
  uint64_t size, used;

  if (!render_number (object, "size", &size) ||
      !render_number (object, "used", &used))
    return;
  fprintf (fp, "%-12s %s of %s", key, render_size (used, a),
           render_size (size, b));
  if (size > 0)
    fprintf (fp, " (%.0f %%)", 100.0 * used / size);
  putc ('\n', fp);
}

/* Which of the two is it that writers wait for? */
static void
put_limit (FILE *fp, const json_t *status)
{
  const char *limit = render_text (status, "limit");
  bool journal = limit && strcmp (limit, "journal") == 0;
  double share = json_number_value (
    render_find (status, journal ? "held_back.journal" : "held_back.writeout"));

  if (limit == NULL)
    return;
  fprintf (fp, "%-12s ", "limit");
  tool_put_safe (fp, limit);
  fprintf (fp, ": writers waited for %s for %.0f %% of the last second\n",
           journal ? "the journal's device" : "room in the journal", 100 * share);
}

void
render_status (FILE *fp, const json_t *status, const char *target)
{
  char size[RENDER_SIZE_STRLEN];
  const char *text;
  const json_t *disk;
  uint64_t n, m;
  size_t i;

  render_headline (fp, status, target);

  text = render_text (status, "reason");
  if (text) {
    fprintf (fp, "%-12s ", "reason");
    tool_put_safe (fp, text);
    putc ('\n', fp);
  }
  text = render_text (status, "replica");
  if (text) {
    fprintf (fp, "%-12s ", "replica");
    tool_put_safe (fp, text);
    if (render_number (status, "generation", &n))
      fprintf (fp, ", generation %" PRIu64, n);
    if (render_number (status, "connections", &n))
      fprintf (fp, ", %" PRIu64 " connection%s", n, n == 1 ? "" : "s");
    putc ('\n', fp);
  }
  if (render_number (status, "open_epoch", &n)) {
    fprintf (fp, "%-12s %" PRIu64 " is open", "epoch", n);
    if (render_number (status, "sealed_epochs", &m))
      fprintf (fp, ", %" PRIu64 " sealed and not committed", m);
    if (render_number (status, "written_out", &m))
      fprintf (fp, ", written out up to checkpoint %" PRIu64, m);
    putc ('\n', fp);
  }
  if (render_number (status, "speculation.bytes", &n) &&
      render_number (status, "speculation.extents", &m))
    fprintf (fp, "%-12s %s in %" PRIu64 " extents\n", "speculation",
             render_size (n, size), m);
  if (render_number (status, "writeout.bytes", &n) &&
      render_number (status, "writeout.checkpoints", &m)) {
    fprintf (fp, "%-12s %s of %" PRIu64 " checkpoint%s to go", "write-out",
             render_size (n, size), m, m == 1 ? "" : "s");
    text = render_text (status, "writeout.error");
    if (text) {
      fputs (", paused: ", fp);
      tool_put_safe (fp, text);
    }
    putc ('\n', fp);
  }
  put_usage (fp, status, "journal");
  put_usage (fp, status, "buffer");
  put_limit (fp, status);
  if (render_number (status, "commit_latency_us.p50", &n) && n > 0 &&
      render_number (status, "commit_latency_us.p99", &m)) {
    fprintf (fp, "%-12s p50 %" PRIu64 " us, p99 %" PRIu64 " us",
             "commit", n, m);
    if (render_number (status, "commit_latency_us.max", &n))
      fprintf (fp, ", max %" PRIu64 " us", n);
    putc ('\n', fp);
  }
  json_array_foreach (render_find (status, "disks"), i, disk) {
    const char *name = render_text (disk, "name");
    const char *backing = render_text (disk, "backing");

    fprintf (fp, "%-12s ", "disk");
    tool_put_safe (fp, name ? name : "(default)");
    if (render_number (disk, "size", &n))
      fprintf (fp, ", %s", render_size (n, size));
    if (backing) {
      fputs (", ", fp);
      tool_put_safe (fp, backing);
    }
    if (json_is_false (json_object_get (disk, "covered")) &&
        !json_is_null (render_find (status, "checkpoint")))
      fputs (", not in the last checkpoint", fp);
    putc ('\n', fp);
  }
}
