/* SPDX-License-Identifier: BSD-3-Clause */
/* Journals, marks and images that were harmed.  Recovery makes the right checkpoint the
 * disk, or it says what is damaged and touches nothing; what it offers instead
 * works.  A server shows the right content, or none, and touches nothing that is damaged.
 *
 * MCBUF_TEST_SEED replays; MCBUF_DAMAGE_STATES is how many harmed replicas to look at.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "replica/internal.h"
#include "unit/damage.h"
#include "unit/slow.h"

#define STATES 6000             /* of "make check" */
#define PER_LIFE 60             /* states */

/* Seeds that found something, in all runs.  1795473162: the power is lost, so that the mark is old; the newest commit
 * that it knows goes, and write-out had gone further: an older checkpoint was offered that the images were past.
 */
static const uint64_t pinned[] = { UINT64_C (1795473162) };

static uint64_t seed, states, right, refused, offered, served;
static uint64_t harms[HARMS][2];        /* of each: right, refused */
static struct damage_life *life;
static const struct harmed *harm;
static const char *doing;

/* torture.h's, for the messages of its helpers. */
const struct life *torture_now;
const char *torture_doing = "", *torture_test = "";

void
torture_fail (const char *fmt, ...)
{
  va_list args;

  fflush (stdout);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fprintf (stderr, "\n%s; %s; ending %d, %u disks; replay with MCBUF_TEST_SEED=%" PRIu64 " MCBUF_DAMAGE_STATES=1\n",
           doing ? doing : "", harm ? harm->what : "no harm yet",
           life ? (int) life->ending : -1, life ? life->ndisks : 0, seed);
  abort ();
}

/* --- what is allowed --- */

static bool
images_are (struct simdisk *disk, uint8_t *const want[DAMAGE_DISKS])
{
  for (unsigned d = 0; d < life->ndisks; d++)
    if (!simdisk_equals (disk, life->path[d], want[d], life->size[d]))
      return false;
  return true;
}

/* Nothing has changed that matters. */
static void
must_be_untouched (struct simdisk *before, struct simdisk *after)
{
  MUST (simdisk_same (before, after, DAMAGE_JOURNAL), "refused, and the journal was changed");
  MUST (simdisk_same (before, after, DAMAGE_ACKED), "refused, and acked was changed");
  for (unsigned d = 0; d < life->ndisks; d++)
    MUST (simdisk_same (before, after, life->path[d]), "refused, and %s was changed",
          life->path[d]);
}

/* A refusal that a person can act on. */
static void
must_be_clear (const struct mcerror *err)
{
  MUST (err->text[0] && strchr (err->text, '\n') == NULL, "not one line: %s", err->text);
  switch (err->code) {
  case MCEXIT_DAMAGE:
    MUST (strstr (err->text, "/sim/") && strstr (err->text, "offset") &&
          strstr (err->text, "checkpoint"),
          "damage without file, offset and checkpoint: %s", err->text);
    break;
  case MCEXIT_USAGE:
    MUST (harm->harm == HARM_LOST || harm->harm == HARM_IMAGE_LOST ||
          harm->harm == HARM_IMAGE_SIZE, "exit 1: %s", err->text);
    break;
  case MCEXIT_NO_CHECKPOINT:
    MUST (!life->has_checkpoint, "exit 3: %s", err->text);
    break;
  default:
    torture_fail ("code %d: %s", err->code, err->text);
  }
}

static int
recover (struct simdisk *disk, const char *to, struct recover_result *result,
         struct mcerror *err)
{
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = DAMAGE_DIR,
                              .to = to };

  memset (err, 0, sizeof *err);
  return recover_run (&p, result, err);
}

/* Recovered to ID: is that what the images are? */
static void
must_be_right (struct simdisk *disk, const struct recover_result *result)
{
  uint64_t id = result->checkpoint.id;

  MUST (life->has_checkpoint, "recovered to checkpoint %" PRIu64 ", and there was none", id);
  if (life->torn && id == life->newest + 1) {
    MUST (images_are (disk, life->torn_want), "the images are not checkpoint %" PRIu64, id);
    return;
  }
  MUST (id == life->newest, "recovered to checkpoint %" PRIu64 ", the newest is %" PRIu64, id, life->newest);
  MUST (images_are (disk, life->want), "the images are not checkpoint %" PRIu64, id);
}

/* --- recovery --- */

/* The message may name a checkpoint to recover to. */
static void
take_offer (struct simdisk *disk, const char *text)
{
  const char *to = strstr (text, "--to=");
  struct recover_result result;
  struct mcerror err;
  char number[32];
  uint64_t id;

  if (to == NULL || to[5] < '0' || to[5] > '9')
    return;
  doing = "taking the offer";
  id = strtoull (to + 5, NULL, 10);
  MUST (id < DAMAGE_KNOWN && life->known[id][0], "%s: never was one", text);
  snprintf (number, sizeof number, "%" PRIu64, id);
  MUST (recover (disk, number, &result, &err) == 0, "%s: offered, but: %s", text, err.text);
  MUST (result.checkpoint.id == id && images_are (disk, life->known[id]),
        "--to=%s gives checkpoint %" PRIu64 ", and not as it was", number, result.checkpoint.id);
  MUST (recover (disk, NULL, &result, &err) == 0 && result.checkpoint.id == id &&
        images_are (disk, life->known[id]), "after --to=%s once more: %s", number, err.text);
  offered++;
}

/* To any that is listed: right, or refused. */
static void
choose (struct simdisk *harmed)
{
  struct simdisk *disk = simdisk_crash (harmed, SIMDISK_KILL, host_bits);
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = DAMAGE_DIR };
  struct journal_checkpoint *list;
  struct recover_result result;
  struct mcerror err = { 0 };
  char number[32];
  uint64_t id;
  size_t n;

  doing = "choosing from the list";
  if (recover_list (&p, &list, &n, &err) == -1)
    must_be_clear (&err);
  else {
    if (n > 0 && !life->promoted) {
      id = list[host_below (n)].id;
      MUST (id < DAMAGE_KNOWN && life->known[id][0], "checkpoint %" PRIu64 " is listed, which never was one", id);
      snprintf (number, sizeof number, "%" PRIu64, id);
      if (recover (disk, number, &result, &err) == 0)
        MUST (images_are (disk, life->known[id]), "--to=%s does not give what it was", number);
      else {
        MUST (err.code != MCEXIT_REFUSED, "listed, and refused: %s", err.text);
        must_be_clear (&err);
        must_be_untouched (harmed, disk);
      }
    }
    free (list);
  }
  simdisk_free (disk);
}

/* Returns the code. */
static int
try_recovery (struct simdisk *harmed)
{
  struct simdisk *disk = simdisk_crash (harmed, SIMDISK_KILL, host_bits);
  struct recover_result result;
  struct mcerror err;

  doing = "recovering";
  if (recover (disk, NULL, &result, &err) == 0) {
    must_be_right (disk, &result);
    right++;
  }
  else {
    must_be_clear (&err);
    must_be_untouched (harmed, disk);
    take_offer (disk, err.text);
    refused++;
  }
  simdisk_free (disk);
  return err.code;
}

/* Is PLACE data or a table of the commit that the power loss was in the middle of? */
static bool
is_torn (const struct damage_place *place)
{
  return life->torn && place->checkpoint > life->newest;
}

/* --verify finds what recovery finds, and more; it changes nothing. */
static void
try_verify (struct simdisk *harmed, int code)
{
  struct simdisk *disk = simdisk_crash (harmed, SIMDISK_KILL, host_bits);
  struct recover_params p = { .fs = simdisk_fs (disk), .dir = DAMAGE_DIR };
  static struct recover_findings found;
  struct recover_result result;
  struct mcerror err = { 0 };
  int r;

  doing = "verifying";
  r = recover_verify (&p, &result, &found, &err);
  must_be_untouched (harmed, disk);
  if (r == -1)
    must_be_clear (&err);
  /* An image that is not there may be elsewhere; that is a note. */
  MUST (r == -1 || code == MCEXIT_DONE || (harm->harm == HARM_IMAGE_LOST && found.nnotes > 0),
        "verified, but recovery says %d", code);
  /* What was under way when the power went, a record, or data and table of a commit that nothing
   * acknowledged, cannot be told from what was torn: it is dropped.
   */
  if (harm->harm == HARM_BIT &&
      !((life->ending == END_TORN || life->ending == END_WRITING) &&
        (harm->second || harm->place.area == AREA_RECORD || is_torn (&harm->place))))
    MUST (r == -1 && err.code == MCEXIT_DAMAGE && found.ndamage > 0, "verified, though it is not whole");
  if (harm->harm == HARM_BIT && is_torn (&harm->place) && r == 0)
    MUST (result.checkpoint.id == life->newest, "verified as checkpoint %" PRIu64 ", which is not whole",
          result.checkpoint.id);
  if (harm->harm == HARM_NONE)
    MUST (r == 0 || !life->has_checkpoint, "not verified: %s", err.text);
  recover_findings_free (&found);
  doing = "a dry run";
  err = (struct mcerror) { 0 };
  r = recover_dry_run (&p, &result, &err);
  must_be_untouched (harmed, disk);
  MUST (err.code == (enum mcexit) code, "a dry run says %d (%s), recovery %d", err.code, err.text, code);
  if (r == 0)
    MUST (result.checkpoint.id == life->newest || life->torn, "a dry run says checkpoint %" PRIu64, result.checkpoint.id);
  simdisk_free (disk);
}

/* --- a server --- */

/* What disk D reads as must be WANT, or not be read. */
static void
read_disk (struct replica *r, unsigned d, enum replica_view view,
           const uint8_t *want)
{
  CLEANUP_FREE uint8_t *got = malloc (life->size[d]);
  struct replica_export x = { .disk = d, .view = view, .fence = r->fence };

  for (uint64_t at = 0; at < life->size[d]; at += 4096) {
    uint32_t len = MIN (life->size[d] - at, UINT64_C (4096));

    if (replica_pread (r, &x, got + at, len, at) == 0)
      MUST (memcmp (got + at, want + at, len) == 0, "wrong data of disk %u at %" PRIu64, d, at);
  }
}

static void
use_server (struct replica *r)
{
  struct promote_answer a;
  struct mcerror err = { 0 };
  uint8_t *const *want = life->want;

  switch (r->state) {
  case JOURNAL_SYNCING:
    MUST (!life->has_checkpoint, "the server is syncing, and there was a checkpoint");
    return;
  case JOURNAL_PROMOTED:
    MUST (life->promoted, "the server is promoted");
    break;
  case JOURNAL_PROTECTED:
    MUST (life->inlet[0], "the server goes on without its speculation");
    for (unsigned d = 0; d < life->ndisks; d++)
      read_disk (r, d, REPLICA_INLET, life->inlet[d]);
    break;
  default:
    break;
  }
  if (!r->has_checkpoint) {
    MUST (!life->has_checkpoint, "the server knows of no checkpoint");
    return;
  }
  MUST (life->has_checkpoint, "the server has checkpoint %" PRIu64, r->checkpoint.id);
  if (life->torn && r->checkpoint.id == life->newest + 1)
    want = life->torn_want;
  else
    MUST (r->checkpoint.id == life->newest, "the server has checkpoint %" PRIu64 ", the newest is %" PRIu64,
          r->checkpoint.id, life->newest);
  if (r->state != JOURNAL_PROMOTED && replica_promote (r, NULL, false, &a, &err) == -1)
    return;
  for (unsigned d = 0; d < life->ndisks; d++)
    read_disk (r, d, REPLICA_PROMOTED, want[d]);
  served++;
}

/* The way out of "failed": a new first copy, over whatever is there. */
static void
overwrite (struct replica *r, struct simdisk *disk)
{
  uint8_t *copy[DAMAGE_DISKS] = { NULL };
  struct commit_answer a = { 0 };
  struct recover_result result;
  struct mcerror err = { 0 };
  struct replica_export x = { .view = REPLICA_INLET };

  doing = "overwriting";
  MUST (replica_resync (r, true, &err) == 0, "resync overwrite: %s", err.text);
  x.fence = r->fence;
  for (x.disk = 0; x.disk < life->ndisks; x.disk++) {
    uint64_t size = life->size[x.disk];

    copy[x.disk] = malloc (size);
    damage_fill (copy[x.disk], size, host_bits ());
    MUST (replica_pwrite (r, &x, copy[x.disk], size, 0, 0) == 0, "the new copy: %m");
  }
  for (unsigned i = 0; i < 3; i++) {
    MUST (replica_commit (r, &(struct commit_request) { 0 }, &a, &err) == 0,
          "committing the new copy: %s", err.text);
    x.disk = host_below (life->ndisks);
    if (i < 2) {
      memset (copy[x.disk], i, 4000);
      MUST (replica_pwrite (r, &x, copy[x.disk], 4000, 0, 0) == 0, "write: %m");
    }
  }
  replica_close (r);
  MUST (recover (disk, NULL, &result, &err) == 0, "after an overwrite: %s", err.text);
  MUST (result.checkpoint.id == a.checkpoint && images_are (disk, copy),
        "after an overwrite checkpoint %" PRIu64 " is not %" PRIu64 ", or not the copy",
        result.checkpoint.id, a.checkpoint);
  for (unsigned d = 0; d < life->ndisks; d++)
    free (copy[d]);
}

static void
try_server (struct simdisk *harmed)
{
  struct simdisk *disk = simdisk_crash (harmed, SIMDISK_KILL, host_bits);
  struct mcerror err = { 0 };
  struct replica *r;
  bool bad;

  doing = "starting a server";
  r = damage_open (life, disk, &err);
  bad = r == NULL || r->state == JOURNAL_FAILED;
  if (r == NULL)
    MUST (err.text[0] && strchr (err.text, '\n') == NULL, "not one line: %s", err.text);
  else if (bad)
    MUST (r->reason[0], "failed, and does not say why");
  else {
    doing = "using a server";
    use_server (r);
  }
  if (bad)
    must_be_untouched (harmed, disk);
  if (r && bad && host_below (2)) {
    overwrite (r, disk);
    simdisk_free (disk);
    return;
  }
  doing = "stopping a server";
  replica_close (r);
  if (bad)
    must_be_untouched (harmed, disk);
  simdisk_free (disk);
}

/* Its write-out meets the damage: what was whole before stays so. */
static void
try_writeout (struct simdisk *harmed, int code)
{
  struct simdisk *disk = simdisk_crash (harmed, SIMDISK_KILL, host_bits);
  struct recover_result result;
  struct mcerror err = { 0 };
  struct replica *r;

  doing = "writing out";
  r = damage_open (life, disk, &err);
  if (r) {
    for (unsigned i = 0; i < 100 && !writeout_is_empty (r->wo); i++)
      if (writeout_step (r) == -1)
        break;
    replica_close (r);
    doing = "recovering after a write-out";
    host_boot (host_new_boot ());
    if (recover (disk, NULL, &result, &err) == 0)
      must_be_right (disk, &result);
    else {
      MUST (code != MCEXIT_DONE, "recovery alone would have done it; now: %s", err.text);
      must_be_clear (&err);
      take_offer (disk, err.text);
    }
  }
  simdisk_free (disk);
}

/* --- all of it --- */

static void
one_state (const struct damage_life *other, enum harm which)
{
  struct simdisk *disk = simdisk_crash (life->disk, SIMDISK_KILL, host_bits);
  struct harmed h = { .harm = HARM_NONE };
  int code;

  harm = &h;
  doing = "harming";
  h = damage_harm (life, other, disk, which);
  if (host_below (4) == 0 && (which == HARM_BIT || which == HARM_BITS || which == HARM_ACKED_LOST)) {
    struct harmed second = damage_harm (life, other, disk, HARM_BIT);

    h.second = true;
    snprintf (h.what + strlen (h.what), sizeof h.what - strlen (h.what), " and %s", second.what);
  }
  if (getenv ("DAMAGE_LOG"))
    fprintf (stderr, "%" PRIu64 ": ending %d: %s\n", states, life->ending, h.what);
  /* A drained promoted disk, and a first copy, are not the journal's business. */
  if (h.none || (h.images && (life->drained || !life->has_checkpoint))) {
    simdisk_free (disk);
    return;
  }
  states++;
  if (states % 2)               /* else in the boot of the harm */
    host_boot (host_new_boot ());
  code = try_recovery (disk);
  harms[which][code != MCEXIT_DONE]++;
  if (which == HARM_NONE)
    MUST (code == (life->has_checkpoint ? MCEXIT_DONE : MCEXIT_NO_CHECKPOINT),
          "no harm, and code %d", code);
  switch (host_below (4)) {
  case 0:
    try_verify (disk, code);
    break;
  case 1:
    choose (disk);
    break;
  case 2:
    try_server (disk);
    break;
  default:
    if (!life->promoted)
      try_writeout (disk, code);
  }
  harm = NULL;
  simdisk_free (disk);
}

static void
one_life (uint64_t s)
{
  enum damage_ending ending;
  struct damage_life *other;

  alarm (300);
  host_reset (s, true);
  host_seed (s);
  ending = host_below (ENDINGS);
  doing = "living";
  other = damage_life_new (s + 1000000007, s, END_KILLED);
  life = damage_life_new (s, s, ending);
  if (getenv ("DAMAGE_LOG"))
    fprintf (stderr, "life %" PRIu64 ": ending %d, newest %" PRIu64 ", %u places\n", s, ending, life->newest, life->nplaces);
  host_seed (s + 1);
  for (unsigned i = 0; i < PER_LIFE; i++)
    one_state (other, i % HARMS);
  damage_life_free (life);
  damage_life_free (other);
  life = NULL;
}

int
main (void)
{
  uint64_t wanted = getenv ("MCBUF_DAMAGE_STATES") ?
    strtoull (getenv ("MCBUF_DAMAGE_STATES"), NULL, 0) : unless_slow (STATES);

  seed = first_seed ();
  printf ("damage: replay with MCBUF_TEST_SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  (void) mallopt (M_MMAP_THRESHOLD, 64 << 20);
  (void) mallopt (M_TRIM_THRESHOLD, 512 << 20);
  if (!getenv ("MCBUF_TEST_SEED"))
    for (size_t i = 0; i < sizeof pinned / sizeof pinned[0]; i++)
      one_life (seed = pinned[i]);
  for (seed = first_seed (); states < wanted; seed++)
    one_life (seed);
  printf ("%" PRIu64 " harmed replicas: %" PRIu64 " recovered right, %" PRIu64 " refused (%" PRIu64
          " of them recovered to the older checkpoint that was offered), %" PRIu64 " served\n",
          states, right, refused, offered, served);
  for (unsigned h = 0; h < HARMS; h++)
    printf ("harm %2u: %5" PRIu64 " right %5" PRIu64 " refused\n", h, harms[h][0], harms[h][1]);
  return 0;
}
