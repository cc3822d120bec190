/* SPDX-License-Identifier: BSD-3-Clause */
/* Status in Prometheus' text exposition format, version 0.0.4: for each
 * metric "# HELP" and "# TYPE", then its samples.  Times are in seconds and
 * sizes in bytes, as its naming rules ask.
 */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "common/host.h"
#include "tools/render.h"

/* Every sample carries the label replica; metrics of a disk carry disk too. */
static const struct metric {
  const char *path;             /* in the status */
  const char *name;
  const char *help;
} metrics[] = {
  { "generation", "generation", "Generation of the replica, raised by each promote" },
  { "open_epoch", "open_epoch", "Number of the epoch that is open" },
  { "sealed_epochs", "sealed_epochs", "Epochs that are sealed and not committed" },
  { "checkpoint.id", "checkpoint", "Newest checkpoint" },
  { "written_out", "written_out_checkpoint", "Newest checkpoint wholly in the backing images" },
  { "speculation.bytes", "speculation_bytes", "Bytes written since the newest checkpoint" },
  { "speculation.extents", "speculation_extents", "Extents written since the newest checkpoint" },
  { "writeout.bytes", "writeout_bytes", "Committed bytes that are not in the backing images yet" },
  { "writeout.checkpoints", "writeout_checkpoints", "Checkpoints that are not in the backing images yet" },
  { "journal.size", "journal_size_bytes", "Size of the journal" },
  { "journal.used", "journal_used_bytes", "Bytes of the journal in use" },
  { "buffer.size", "buffer_size_bytes", "Size of the staging buffer" },
  { "buffer.asked", "buffer_asked_bytes", "Size of the staging buffer that was asked for" },
  { "buffer.used", "buffer_used_bytes", "Bytes of the staging buffer in use" },
  { "connections", "connections", "NBD connections" },
};

static void
put_head (FILE *fp, const char *name, const char *help)
{
  fprintf (fp, "# HELP mcbuf_%s %s.\n# TYPE mcbuf_%s gauge\n",
           name, help, name);
}

/* A label's value: backslash, quote and newline are escaped. */
static void
put_label (FILE *fp, const char *name, const char *value)
{
  fprintf (fp, "%s=\"", name);
  for (; *value; value++) {
    if (*value == '\n') {
      fputs ("\\n", fp);
      continue;
    }
    if (*value == '"' || *value == '\\')
      putc ('\\', fp);
    putc (*value, fp);
  }
  putc ('"', fp);
}

/* "mcbuf_NAME{replica="…",LABEL="VALUE"} " */
static void
put_sample (FILE *fp, const char *name, const char *replica,
            const char *label, const char *value)
{
  fprintf (fp, "mcbuf_%s{", name);
  put_label (fp, "replica", replica);
  if (label) {
    putc (',', fp);
    put_label (fp, label, value);
  }
  fputs ("} ", fp);
}

static void
put_state (FILE *fp, const json_t *status, const char *replica)
{
  static const char *const states[] = {
    "syncing", "protected", "stale", "resyncing", "promoted", "failed",
  };
  const char *state = render_text (status, "state");

  put_head (fp, "state", "1 for the state the replica is in, 0 for the others");
  for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
    put_sample (fp, "state", replica, "state", states[i]);
    fprintf (fp, "%d\n", state && strcmp (state, states[i]) == 0);
  }
}

/* Two gauges of a kind, and the same thing as a word with 1 and 0, for who wants to alert. */
static void
put_limit (FILE *fp, const json_t *status, const char *replica)
{
  static const struct { const char *limit, *path; } limits[] = {
    { "journal", "held_back.journal" },
    { "write-out", "held_back.writeout" },
  };
  const char *limit = render_text (status, "limit");

  if (render_find (status, "held_back") == NULL)
    return;
  put_head (fp, "held_back_ratio", "Part of the last second for which writers waited, by what they waited for");
  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
    put_sample (fp, "held_back_ratio", replica, "limit", limits[i].limit);
    fprintf (fp, "%.3f\n", json_number_value (render_find (status, limits[i].path)));
  }
  put_head (fp, "limit", "1 for what limits the writers now, 0 for what does not");
  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
    put_sample (fp, "limit", replica, "limit", limits[i].limit);
    fprintf (fp, "%d\n", limit && strcmp (limit, limits[i].limit) == 0);
  }
}

static void
put_flag (FILE *fp, const char *name, const char *help, const char *replica,
          bool value)
{
  put_head (fp, name, help);
  put_sample (fp, name, replica, NULL, NULL);
  fprintf (fp, "%d\n", value);
}

static void
put_latency (FILE *fp, const json_t *status, const char *replica)
{
  static const char *const figures[] = { "p50", "p99", "max" };
  const json_t *latency = render_find (status, "commit_latency_us");
  uint64_t us;

  if (!render_number (latency, "p50", &us))
    return;
  put_head (fp, "commit_latency_seconds", "Time a commit takes");
  for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++)
    if (render_number (latency, figures[i], &us)) {
      put_sample (fp, "commit_latency_seconds", replica, "figure", figures[i]);
      fprintf (fp, "%.6f\n", us / 1e6);
    }
}

static void
put_disks (FILE *fp, const json_t *status, const char *replica)
{
  const json_t *disk;
  uint64_t size;
  size_t i;

  put_head (fp, "disk_size_bytes", "Size of a disk");
  json_array_foreach (render_find (status, "disks"), i, disk) {
    const char *name = render_text (disk, "name");

    if (!render_number (disk, "size", &size))
      continue;
    put_sample (fp, "disk_size_bytes", replica, "disk", name ? name : "");
    fprintf (fp, "%" PRIu64 "\n", size);
  }
}

void
render_prometheus (FILE *fp, const json_t *status)
{
  const char *replica = render_text (status, "replica");
  const char *time = render_text (status, "checkpoint.time");
  const json_t *drained = render_find (status, "drained");
  uint64_t n;

  if (replica == NULL)
    replica = "";
  put_state (fp, status, replica);
  for (size_t i = 0; i < sizeof metrics / sizeof metrics[0]; i++) {
    const struct metric *m = &metrics[i];

    if (!render_number (status, m->path, &n))
      continue;
    put_head (fp, m->name, m->help);
    put_sample (fp, m->name, replica, NULL, NULL);
    fprintf (fp, "%" PRIu64 "\n", n);
  }
  if (time && host_time_parse (time, &n) == 0) {
    put_head (fp, "checkpoint_timestamp_seconds",
              "When the newest checkpoint was made, since 1970");
    put_sample (fp, "checkpoint_timestamp_seconds", replica, NULL, NULL);
    fprintf (fp, "%" PRIu64 ".%03u\n", n / 1000000000,
             (unsigned) (n / 1000000 % 1000));
  }
  put_flag (fp, "writeout_paused", "1 while write-out is paused by an error",
            replica, render_text (status, "writeout.error") != NULL);
  if (json_is_boolean (drained))
    put_flag (fp, "drained", "1 when a promoted replica is wholly written out",
              replica, json_is_true (drained));
  put_limit (fp, status, replica);
  put_latency (fp, status, replica);
  put_disks (fp, status, replica);
}
