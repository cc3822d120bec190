/* SPDX-License-Identifier: BSD-3-Clause */
/* Status and list as one line of JSON each. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include <jansson.h>

#include "common/bytes.h"
#include "replica/internal.h"
#include "replica/json.h"

static json_t *
label_json (const char *label)
{
  return label[0] ? json_text (label) : json_null ();
}

static json_t *
time_json (uint64_t ns)
{
  char text[HOST_TIME_STRLEN];

  if (ns == 0)
    return json_null ();
  host_time_text (ns, text);
  return json_string (text);
}

json_t *
checkpoint_json (const struct journal_checkpoint *cp)
{
  return json_pack ("{s:I, s:o, s:o, s:I, s:I}", "id", (json_int_t) cp->id,
                    "label", label_json (cp->label), "time",
                    time_json (cp->time), "extents", (json_int_t) cp->extents,
                    "bytes", (json_int_t) cp->bytes);
}

/* A line in the making. */
struct line {
  char *text;
  size_t len, room;
  bool failed;
};

static int
add_to_line (const char *text, size_t len, void *opaque)
{
  struct line *line = opaque;

  if (line->len + len + 1 > line->room) {
    size_t room = 2 * line->room + len + 256;
    char *more = realloc (line->text, room);

    if (more == NULL) {
      line->failed = true;
      return -1;
    }
    line->text = more;
    line->room = room;
  }
  memcpy (line->text + line->len, text, len);
  line->len += len;
  line->text[line->len] = '\0';
  return 0;
}

/* Not json_dumps: where memory runs out, that one may leave a key out and say that all is well. */
char *
json_line (json_t *json)
{
  struct line line = { NULL, 0, 0, false };
  int r = json ? json_dump_callback (json, add_to_line, &line, JSON_COMPACT) : -1;

  json_decref (json);
  if (r == 0 && !line.failed)
    return line.text;
  free (line.text);
  errno = ENOMEM;
  return NULL;
}

static int
compare_u64 (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static json_t *
latency_json (uint64_t *latency, unsigned n)
{
  uint64_t p50 = 0, p99 = 0, max = 0;

  if (n > 0) {
    qsort (latency, n, sizeof latency[0], compare_u64);
    p50 = latency[n / 2];
    p99 = latency[(size_t) n * 99 / 100];
    max = latency[n - 1];
  }
  return json_pack ("{s:I, s:I, s:I}", "p50", (json_int_t) p50, "p99",
                    (json_int_t) p99, "max", (json_int_t) max);
}

/* What is read under the lock in one go. */
struct snapshot {
  enum journal_replica_state state;
  char reason[512], wo_error[256];
  uint64_t generation, open, written_out;
  bool has_checkpoint, drained, yields;
  unsigned views;
  uint64_t fresh;               /* a bit for each disk that no checkpoint has */
  struct journal_checkpoint checkpoint;
  struct speculation_stat spec;
  struct writeout_stat wo;
  unsigned connections, nlatency;
  unsigned held;                /* writers, by write-out */
  uint64_t latency[LATENCIES];
};

static void
take_snapshot (struct replica *r, struct snapshot *s)
{
  SCOPED_LOCK (&r->lock);

  s->state = r->state;
  memcpy (s->reason, r->reason, sizeof s->reason);
  memcpy (s->wo_error, r->wo_error, sizeof s->wo_error);
  s->generation = r->generation;
  s->open = speculation_open_number (r->spec);
  s->written_out = r->written_out;
  s->has_checkpoint = r->has_checkpoint;
  s->checkpoint = r->checkpoint;
  s->drained = r->drained;
  s->yields = r->history_yields;
  s->views = 0;
  for (const struct view *v = r->views; v; v = v->next)
    s->views += v->users;
  for (unsigned i = 0; i < r->ndisks; i++)
    s->fresh |= (uint64_t) disk_is_fresh_locked (r, i) << i;
  speculation_get_stat (r->spec, &s->spec);
  writeout_get_stat (r->wo, &s->wo);
  s->connections = r->connections;
  s->held = held_share (&r->held, host_monotonic_ns ());
  s->nlatency = MIN (r->nlatency, (unsigned) LATENCIES);
  memcpy (s->latency, r->latency, s->nlatency * sizeof s->latency[0]);
}

static json_t *
disks_json (struct replica *r, const struct snapshot *s)
{
  json_t *list = json_array ();

  for (unsigned i = 0; list && i < r->ndisks; i++) {
    json_t *d = json_pack ("{s:s, s:I, s:o, s:b}", "name", r->disks[i].name, "size",
                           (json_int_t) r->disks[i].size, "backing",
                           json_text (backing_path (r->disks[i].backing)), "covered",
                           (int) !(s->fresh >> i & 1));

    if (d == NULL || json_array_append_new (list, d) == -1) {
      json_decref (list);
      return NULL;
    }
  }
  return list;
}

/* What the operator should know first. */
static const char *
advice (const struct snapshot *s, const struct journal_usage *usage)
{
  if (s->reason[0] && (s->state == JOURNAL_STALE || s->state == JOURNAL_FAILED))
    return s->reason;
  if (s->wo_error[0])
    return "write-out is paused by an error of a backing image: mend it; commits go on until the journal is full";
  if (s->yields)
    return "the journal runs short: history yields: raise journal-size, or ask for less history";
  if (usage->available < usage->size / 4)
    return "the journal runs short: write-out is behind, or commits come too seldom; writers will be held back: "
      "raise journal-size";
  return s->reason;
}

/* What can be recovered to. */
static json_t *
history_json (struct replica *r, const struct snapshot *s)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  struct journal_checkpoint oldest = { .id = 0 };

  if (n > 0)
    n = MAX (journal_checkpoints (r->journal, &oldest, 1), (size_t) 1);
  return json_pack ("{s:I, s:o, s:b, s:I, s:f}", "checkpoints", (json_int_t) n,
                    "oldest", n > 0 ? json_integer (oldest.id) : json_null (),
                    "yields", (int) s->yields,
                    "wanted_checkpoints", (json_int_t) r->history.checkpoints,
                    "wanted_seconds", r->history.ns / 1e9);
}

#define LIMIT_SHARE 100         /* thousandths of a second: less is no limit */

/* What do writers wait for? */
static json_t *
limit_json (const struct snapshot *s, const struct journal_usage *usage)
{
  if (MAX (s->held, usage->held) < LIMIT_SHARE)
    return json_null ();
  return json_string (usage->held >= s->held ? "journal" : "write-out");
}

char *
status_json (struct replica *r)
{
  CLEANUP_FREE struct snapshot *s = calloc (1, sizeof *s);
  const struct journal_config *config = journal_get_config (r->journal);
  char id[HOST_ID_STRLEN + 1];
  struct journal_usage usage;
  json_t *json;

  if (s == NULL)
    return NULL;
  take_snapshot (r, s);
  journal_get_usage (r->journal, &usage);
  host_id_text (config->id, id);
  json = json_pack (
    "{s:s, s:s, s:o, s:I, s:I, s:I, s:o, s:o, s:o,"
    " s:{s:I, s:I, s:I}, s:{s:I, s:I, s:o}, s:{s:I, s:I}, s:{s:I, s:I, s:I}, s:o, s:I, s:o, s:I, s:s, s:o, s:{s:f, s:f}}",
    "replica", id,
    "state", replica_state_word (s->state),
    "reason", json_text (advice (s, &usage)),
    "generation", (json_int_t) s->generation,
    "open_epoch", (json_int_t) s->open,
    "sealed_epochs", (json_int_t) s->spec.sealed,
    "checkpoint", s->has_checkpoint ? checkpoint_json (&s->checkpoint) : json_null (),
    "written_out", s->has_checkpoint ? json_integer (s->written_out) : json_null (),
    "disks", disks_json (r, s),
    "speculation", "bytes", (json_int_t) s->spec.bytes,
                   "extents", (json_int_t) s->spec.extents,
                   "epochs", (json_int_t) s->spec.epochs,
    "writeout", "bytes", (json_int_t) s->wo.bytes,
                "checkpoints", (json_int_t) s->wo.checkpoints,
                "error", s->wo_error[0] ? json_text (s->wo_error) : json_null (),
    "journal", "size", (json_int_t) usage.size,
               "used", (json_int_t) usage.used,
    "buffer", "size", (json_int_t) usage.buffer_size,
              "used", (json_int_t) usage.buffer_used,
              "asked", (json_int_t) usage.buffer_asked,
    "commit_latency_us", latency_json (s->latency, s->nlatency),
    "connections", (json_int_t) s->connections,
    "history", history_json (r, s),
    "views", (json_int_t) s->views,
    "version", PACKAGE_VERSION,
    "limit", limit_json (s, &usage),
    "held_back", "journal", usage.held / 1e3,
                 "writeout", s->held / 1e3);
  if (json && s->state == JOURNAL_PROMOTED &&
      json_object_set_new (json, "drained", json_boolean (s->drained)) == -1) {
    json_decref (json);
    json = NULL;
  }
  return json_line (json);
}

#define RANGES_MAX 4096         /* in one reply */

static bool
is_promoted_disk (struct replica *r, unsigned disk, char *why, size_t size)
{
  SCOPED_LOCK (&r->lock);

  if (!disk_is_fresh_locked (r, disk))
    return true;
  snprintf (why, size, "the checkpoint that was promoted to does not have disk %s: only a full copy is safe",
            r->disks[disk].name);
  return false;
}

/* No server can see what the old primary did on its own disk: its mirror writes there first. */
static const char complete_if[] =
  "the old primary's QEMU was stopped with its mirror waited for, or told to quit, before the fail-over, the "
  "mirror had no error, and this server lived until then; if QEMU, its host or this server was "
  "killed or crashed before that, only a full copy is safe";

char *
divergence_json (struct replica *r, unsigned disk, uint64_t from)
{
  uint64_t size = r->disks[disk].size, at = from;
  json_t *ranges = json_array ();
  char why[256] = "";
  bool known;

  if (ranges == NULL)
    return NULL;
  while (at < size && json_array_size (ranges) < RANGES_MAX) {
    bool differs;
    uint64_t n = divergence_run (r, disk, at, size, &differs);

    if (differs &&
        json_array_append_new (ranges, json_pack ("[I, I]", (json_int_t) at,
                                                  (json_int_t) n)) == -1) {
      json_decref (ranges);
      errno = ENOMEM;
      return NULL;
    }
    at += n;
  }
  /* Asked last, so that it holds for all of it. */
  known = divergence_known (r, why, sizeof why) &&
    is_promoted_disk (r, disk, why, sizeof why);
  if (!known)
    json_array_clear (ranges);
  return json_line (json_pack ("{s:b, s:s, s:s?, s:I, s:s, s:I, s:o, s:o}",
                               "known", (int) known, "reason", why,
                               "complete_if", known ? complete_if : NULL,
                               "generation", (json_int_t) replica_generation (r),
                               "disk", r->disks[disk].name,
                               "granularity", (json_int_t) DIVERGENCE_REGION,
                               "ranges", ranges,
                               "next", known && at < size ?
                                 json_integer (at) : json_null ()));
}

json_t *
without_json (struct replica *r)
{
  json_t *list = NULL;
  SCOPED_LOCK (&r->lock);

  for (unsigned i = 0; i < r->ndisks; i++)
    if (r->has_checkpoint && disk_is_fresh_locked (r, i) &&
        ((list == NULL && (list = json_array ()) == NULL) ||
         json_array_append_new (list, json_string (r->disks[i].name)) == -1)) {
      json_decref (list);
      return NULL;
    }
  return list;
}

/* MAX (0: none) bytes at most: what does not fit is left out, oldest first, and said. */
char *
list_json (struct replica *r, size_t max)
{
  size_t room = max, left_out = 0;
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *list = calloc (n + 1, sizeof *list);
  json_t *array = json_array ();

  if (list == NULL || array == NULL) {
    json_decref (array);
    errno = ENOMEM;
    return NULL;
  }
  n = MIN (n, journal_checkpoints (r->journal, list, n));
  for (size_t i = 0; max != 0 && i < n; i++) {
    /* Newest first: how far back does the room go?  A label may double by escaping. */
    size_t len = 192 + 6 * strlen (list[n - 1 - i].label);

    if (len > room) {
      left_out = n - i;
      break;
    }
    room -= len;
  }
  for (size_t i = left_out; i < n; i++)
    if (json_array_append_new (array, checkpoint_json (&list[i])) == -1) {
      json_decref (array);
      errno = ENOMEM;
      return NULL;
    }
  if (left_out > 0)
    return json_line (json_pack ("{s:o, s:I}", "checkpoints", array,
                                 "left_out", (json_int_t) left_out));
  return json_line (json_pack ("{s:o}", "checkpoints", array));
}
