/* SPDX-License-Identifier: BSD-3-Clause */
/* mcbuf-recover without a server: replica/recover.h does it. */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/progress.h"
#include "tools/recover.h"
#include "tools/tool.h"

static void
show_progress (void *opaque, const char *phase, uint64_t done, uint64_t total)
{
  (void) opaque;
  progress_show (phase, done, total);
}

/* {"id":…,"label":…,"time":…,"extents":…,"bytes":…}, as the verb "list" has
 * it.  NULL: no memory.
 */
static json_t *
checkpoint_json (const struct journal_checkpoint *checkpoint)
{
  char time[HOST_TIME_STRLEN];

  host_time_text (checkpoint->time, time);
  return json_pack ("{s:I,s:s?,s:s,s:I,s:I}",
                    "id", (json_int_t) checkpoint->id,
                    "label", checkpoint->label[0] ? checkpoint->label : NULL,
                    "time", time,
                    "extents", (json_int_t) checkpoint->extents,
                    "bytes", (json_int_t) checkpoint->bytes);
}

static int
list (const struct options *o, const struct recover_params *params)
{
  CLEANUP_FREE struct journal_checkpoint *checkpoints = NULL;
  struct mcerror err;
  json_t *array, *object;
  size_t n = 0;

  if (recover_list (params, &checkpoints, &n, &err) == -1)
    return tool_fail (&err);
  array = json_array ();
  for (size_t i = 0; array && i < n; i++)
    if (json_array_append_new (array, checkpoint_json (&checkpoints[i])) == -1) {
      json_decref (array);
      array = NULL;
    }
  object = array ? json_pack ("{s:o}", "checkpoints", array) : NULL;
  return recover_put_list (object, o);
}

static json_t *
result_json (const struct recover_result *result)
{
  json_t *object = json_pack ("{s:I,s:s?,s:I,s:I,s:I,s:I,s:s,s:f}",
                    "checkpoint", (json_int_t) result->checkpoint.id,
                    "label", result->checkpoint.label[0]
                             ? result->checkpoint.label : NULL,
                    "discarded_bytes", (json_int_t) result->discarded_bytes,
                    "discarded_epochs", (json_int_t) result->discarded_epochs,
                    "written_bytes", (json_int_t) result->written_bytes,
                    "generation", (json_int_t) result->generation,
                    "state", result->state,
                    "seconds", result->seconds);
  json_t *without = result->nwithout > 0 ? json_array () : NULL;

  for (unsigned i = 0; without && i < result->nwithout; i++)
    if (json_array_append_new (without, json_string (result->without[i])) == -1) {
      json_decref (without);
      without = NULL;
    }
  if (result->nwithout > 0 &&
      (object == NULL || without == NULL ||
       json_object_set (object, "without", without) == -1)) {
    json_decref (object);
    object = NULL;
  }
  json_decref (without);
  return object;
}

/* What was found, added to OBJECT.  -1: no memory. */
static int
add_findings (json_t *object, const struct recover_findings *f)
{
  json_t *damage = json_array (), *notes = json_array ();
  bool ok = damage && notes;

  for (unsigned i = 0; ok && i < f->ndamage; i++) {
    const struct recover_damage *d = &f->damage[i];

    ok = json_array_append_new (damage, json_pack (
           "{s:s?,s:I,s:o,s:s}", "file", d->file,
           "offset", (json_int_t) d->offset,
           "checkpoint", d->checkpoint ? json_integer (d->checkpoint) : json_null (),
           "what", d->what)) == 0;
  }
  for (unsigned i = 0; ok && i < f->nnotes; i++)
    ok = json_array_append_new (notes, json_string (f->note[i])) == 0;
  if (ok)
    ok = json_object_set_new (object, "verified_bytes", json_integer (f->bytes)) == 0 &&
         json_object_set_new (object, "recoverable", f->has_whole ?
                              json_integer (f->whole.id) : json_null ()) == 0 &&
         json_object_set_new (object, "damages", json_integer (f->total)) == 0 &&
         json_object_set (object, "damage", damage) == 0 &&
         json_object_set (object, "notes", notes) == 0;
  json_decref (damage);
  json_decref (notes);
  return ok ? 0 : -1;
}

static int
verify (const struct options *o, const struct recover_params *params)
{
  struct recover_findings *f = calloc (1, sizeof *f);
  struct recover_result result = { .state = "" };
  struct mcerror err;
  json_t *object;
  int r, status;

  if (f == NULL)
    return tool_error (MCEXIT_USAGE, "%m");
  r = recover_verify (params, &result, f, &err);
  progress_end ();
  if (r == -1 && f->ndamage == 0) {
    free (f);
    return tool_fail (&err);
  }
  if (result.state == NULL)
    result.state = "unknown";
  object = result_json (&result);
  if (object && add_findings (object, f) == -1) {
    json_decref (object);
    object = NULL;
  }
  status = recover_put_result (object, o, NULL);
  if (r == -1)
    status = tool_fail (&err);
  recover_findings_free (f);
  free (f);
  return status;
}

/* Root recovers another user's replica: what was made in the journal's directory is to be that user's, or his
 * server cannot open it.  Only plain files of root that have no other name.
 */
static void
give_back (const char *dir)
{
  static const char *const names[] = { "acked", "divergence", "lock", "sums" };
  CLEANUP_CLOSE int dirfd = -1;
  struct stat owner, st;

  if (geteuid () != 0)
    return;
  dirfd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dirfd == -1 || fstat (dirfd, &owner) == -1 || owner.st_uid == 0)
    return;
  for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
    CLEANUP_CLOSE int fd = openat (dirfd, names[i], O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd == -1 || fstat (fd, &st) == -1 || !S_ISREG (st.st_mode) || st.st_uid != 0 || st.st_nlink != 1)
      continue;
    if (fchown (fd, owner.st_uid, owner.st_gid) == -1)
      (void) tool_error (MCEXIT_USAGE, "%s/%s: cannot give it to the directory's owner: %m: use chown before "
                         "that user starts a server", dir, names[i]);
  }
}

int
recover_offline (const struct options *o)
{
  const struct recover_params params = {
    .fs = &io_posix, .dir = o->journal, .to = o->to, .disks = o->disks,
    .ndisks = o->ndisks, .progress = show_progress,
  };
  struct recover_result result = { .state = "" };
  struct mcerror err;
  int r = -1;

  switch (o->action) {
  case LIST:
    return list (o, &params);
  case RECOVER:
    r = recover_run (&params, &result, &err);
    give_back (o->journal);
    break;
  case DRY_RUN:
    r = recover_dry_run (&params, &result, &err);
    break;
  case VERIFY:
    return verify (o, &params);
  }
  progress_end ();
  if (r == -1)
    return tool_fail (&err);
  return recover_put_result (result_json (&result), o, o->action == RECOVER ?
                             "next: start the VM on its backing image, "
                             "which is complete" : NULL);
}
