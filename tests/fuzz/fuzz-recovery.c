/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery of a damaged journal.
 *
 * Byte 0 of an input chooses one of the worlds, byte 1 what else is done beside recovery; the rest is
 * damage (damage.h).  Then what people do: list, dry run, verify; recover, recover again; or start a
 * server on it, go on, and recover.
 *
 * What must hold whatever the damage: no crash, no hang; what only looks changes nothing; an
 * error has a code and one line; images keep their size, and are untouched unless the error says that
 * recovery has begun; the second answer is the first one's.  And unless checksums were forged: exit 0 means
 * the images are a checkpoint that there was, the newest one where the acknowledged mark was left alone.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include <jansson.h>

#include "common/bytes.h"
#include "fuzz/damage.h"
#include "fuzz/fuzz.h"
#include "unit/torture.h"

#define STEPS 64                /* of write-out */

enum { LOOK = 1, SERVE = 2, TWICE = 4, PROMOTE = 8, RESYNC = 16 };

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  (void) argc;
  (void) argv;
  for (unsigned i = 0; i < WORLDS; i++)
    (void) world_get (i);
  return 0;
}

static const struct images *
find_known (const struct world *w, uint64_t id)
{
  for (unsigned i = 0; i < w->nknown; i++)
    if (w->known[i].id == id)
      return &w->known[i];
  return NULL;
}

static struct recover_params
params (const struct damage *d, struct simdisk *disk)
{
  return (struct recover_params) {
    .fs = simdisk_fs (disk), .dir = WORLD_DIR, .to = d->has_to ? d->to : NULL };
}

static void
check_error (const struct mcerror *err)
{
  HOLDS (err->code >= MCEXIT_USAGE && err->code <= MCEXIT_PARTIAL,
        "code %d", (int) err->code);
  HOLDS (err->text[0] && strchr (err->text, '\n') == NULL, "\"%s\" is no line",
        err->text);
}

static bool
same_images (struct simdisk *a, struct simdisk *b)
{
  for (unsigned d = 0; d < WORLD_DISKS; d++)
    if (!simdisk_same (a, b, world_path[d]))
      return false;
  return true;
}

/* What only looks.  Damage is in DISK, and is to stay as it is. */
static void
look (const struct damage *d)
{
  struct simdisk *disk = damage_copy (d);
  struct recover_params p = params (d, disk);
  struct recover_result result;
  struct recover_findings findings = { .ndamage = 0 };
  struct journal_checkpoint *list = NULL;
  struct mcerror err = { 0 };
  size_t n = 0;

  if (recover_list (&p, &list, &n, &err) == -1)
    check_error (&err);
  else if (!d->forged)
    for (size_t i = 0; i < n; i++)
      HOLDS (find_known (d->w, list[i].id), "checkpoint %" PRIu64 " never was",
            list[i].id);
  free (list);
  if (recover_dry_run (&p, &result, &err) == -1)
    check_error (&err);
  if (recover_verify (&p, &result, &findings, &err) == -1)
    check_error (&err);
  recover_findings_free (&findings);
  HOLDS (simdisk_same (disk, d->disk, WORLD_JOURNAL), "a look has changed the journal");
  HOLDS (same_images (disk, d->disk), "a look has changed an image");
  simdisk_free (disk);
}

/* DISK was recovered to checkpoint ID with exit 0. */
static void
check_recovered (const struct damage *d, struct simdisk *disk, uint64_t id)
{
  const struct world *w = d->w;
  const struct images *v;

  for (unsigned i = 0; i < WORLD_DISKS; i++) {
    uint64_t size = simdisk_size (d->disk, world_path[i]);

    HOLDS (size == world_size[i] || d->forged, "an image of another size was taken");
    HOLDS (simdisk_size (disk, world_path[i]) == size, "an image has another size now");
  }
  if (d->forged || (d->journal && d->acked))
    return;
  /* The samples go with a record that is lost: then an image's content is not looked at. */
  if (d->journal && d->image)
    return;
  /* A disk that is promoted and drained is its user's, who may write to the image. */
  if (w->promoted && d->image)
    return;
  v = w->promoted || !d->has_to ? &w->final : find_known (w, id);
  HOLDS (w->code == MCEXIT_DONE && v, "checkpoint %" PRIu64 " never was", id);
  HOLDS (v->id == id, "checkpoint %" PRIu64 ", and not %" PRIu64, id, v->id);
  HOLDS (world_images_are (disk, v), "the images are not checkpoint %" PRIu64, id);
}

static void
recover (const struct damage *d, struct simdisk *disk, bool twice)
{
  struct recover_params p = params (d, disk);
  struct recover_result first, second;
  struct simdisk *before = world_copy (disk), *after;
  struct mcerror err = { 0 };

  if (recover_run (&p, &first, &err) == -1) {
    check_error (&err);
    HOLDS (err.code == MCEXIT_PARTIAL || same_images (disk, before),
          "code %d, and the images have changed: %s", (int) err.code, err.text);
    HOLDS (d->journal || d->acked || d->image || d->has_to || d->forged ||
          err.code == d->w->code, "no damage, and code %d: %s", (int) err.code,
          err.text);
    simdisk_free (before);
    return;
  }
  check_recovered (d, disk, first.checkpoint.id);
  if (twice) {
    after = world_copy (disk);
    HOLDS (recover_run (&p, &second, &err) == 0,
          "recovered, and then code %d: %s", (int) err.code, err.text);
    HOLDS (second.checkpoint.id == first.checkpoint.id &&
          second.generation == first.generation &&
          strcmp (first.state, second.state) == 0, "another answer");
    HOLDS (same_images (disk, after), "recovered again, and changed");
    simdisk_free (after);
  }
  simdisk_free (before);
}

/* A verb's answer: an object, or a refusal with its code. */
static void
ask (struct replica *r, const char *line)
{
  json_t *json, *error;
  char *reply;
  int result = replica_control (r, true, line, strlen (line), &reply);

  HOLDS (reply, "%s: no answer", line);
  json = json_loads (reply, JSON_REJECT_DUPLICATES, NULL);
  HOLDS (json_is_object (json), "%s: %s", line, reply);
  error = json_object_get (json, "error");
  HOLDS ((result == -1) == (error != NULL), "%s: %s", line, reply);
  json_decref (json);
  free (reply);
}

/* A server on it. */
static void
serve (const struct damage *d, uint8_t what)
{
  struct simdisk *disk = damage_copy (d);
  struct replica *r;
  struct mcerror err = { 0 };
  struct damage then = *d;
  static uint8_t buf[20000];

  r = world_open (disk, &err);
  if (r == NULL) {
    check_error (&err);
    simdisk_free (disk);
    return;
  }
  if (!d->forged && !d->acked && r->state != JOURNAL_FAILED && r->has_checkpoint)
    HOLDS (r->checkpoint.id == d->w->final.id,
          "a server at checkpoint %" PRIu64, r->checkpoint.id);
  ask (r, "status");
  ask (r, "list");
  for (unsigned i = 0; i < WORLD_DISKS; i++) {
    struct replica_export x = { .disk = i, .fence = r->fence,
      .view = r->state == JOURNAL_PROMOTED ? REPLICA_PROMOTED : REPLICA_INLET };

    (void) replica_pread (r, &x, buf, sizeof buf, 3);
    (void) replica_pwrite (r, &x, buf, sizeof buf / 2, 1000, 0);
    (void) replica_zero (r, &x, 9000, 2000, 0);
  }
  ask (r, "seal");
  if (what & PROMOTE)
    ask (r, "promote");
  if (what & RESYNC)
    ask (r, "resync");
  ask (r, "commit label=gr\303\274n");
  for (unsigned i = 0; i < STEPS && !writeout_is_empty (r->wo); i++)
    if (writeout_step (r) == -1)
      break;
  ask (r, "status");
  replica_close (r);

  then.forged = true;           /* it is another content now */
  recover (&then, disk, false);
  simdisk_free (disk);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct damage d = { .boot = 0 };
  uint8_t what;

  if (size < 2)
    return 0;
  what = data[1];
  d.w = world_get (data[0] % WORLDS);
  host_seed (data[0]);
  host_reset (77, true);
  d.disk = world_copy (d.w->disk);
  damage_apply (&d, data + 2, size - 2);
  host_boot (d.boot);
  if (what & LOOK)
    look (&d);
  if (what & SERVE)
    serve (&d, what);
  else {
    struct simdisk *disk = damage_copy (&d);

    recover (&d, disk, what & TWICE);
    simdisk_free (disk);
  }
  simdisk_free (d.disk);
  return 0;
}

#ifdef MCBUF_LIBFUZZER

/* Whole commands are put in, taken out, doubled and changed. */
size_t
LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max, unsigned seed)
{
  size_t n = size > 2 ? (size - 2) / DAMAGE_COMMAND : 0, at;
  uint8_t *c;

  if (size < 2 || max < 2 + DAMAGE_COMMAND)
    return LLVMFuzzerMutate (data, size, max);
  srand (seed);
  at = n > 0 ? rand () % n : 0;
  c = data + 2 + at * DAMAGE_COMMAND;
  switch (rand () % 8) {
  case 0:                       /* another world, another way to look at it */
    (void) LLVMFuzzerMutate (data, 2, 2);
    return size;
  case 1: case 2:               /* one more */
    if (n < DAMAGE_MAX && 2 + (n + 1) * DAMAGE_COMMAND <= max) {
      memmove (c + DAMAGE_COMMAND, c, (n - at) * DAMAGE_COMMAND);
      c[0] = rand () % DAMAGE_OPS;
      c[1] = rand () % 8;
      for (unsigned i = 2; i < DAMAGE_COMMAND; i++)
        c[i] = rand () % 3 ? 0 : rand ();
      return 2 + (n + 1) * DAMAGE_COMMAND;
    }
    return size;
  case 3:                       /* one less */
    if (n > 0) {
      memmove (c, c + DAMAGE_COMMAND, (n - at - 1) * DAMAGE_COMMAND);
      return 2 + (n - 1) * DAMAGE_COMMAND;
    }
    return size;
  case 4:                       /* all is consistent again */
    if (n < DAMAGE_MAX && 2 + (n + 1) * DAMAGE_COMMAND <= max) {
      memset (data + 2 + n * DAMAGE_COMMAND, 0, DAMAGE_COMMAND);
      data[2 + n * DAMAGE_COMMAND] = DAMAGE_MEND;
      return 2 + (n + 1) * DAMAGE_COMMAND;
    }
    return size;
  default:
    if (n > 0)
      (void) LLVMFuzzerMutate (c, DAMAGE_COMMAND, DAMAGE_COMMAND);
    return size;
  }
}

#endif
