/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery without a server.
 *
 * In this order, so that it can be killed anywhere and run again: check every byte that will be
 * needed, and the images; PROMOTE record (from here on the answer is fixed); write out what is committed and not
 * in the images; sync them; WATERMARK record; note that the images are the disk.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/recover-impl.h"

#define STAGING (UINT64_C (8) << 20)    /* for a few records */
#define MIN_CACHE (UINT64_C (16) << 20)
#define MAX_CACHE (sizeof (size_t) == 8 ? UINT64_C (4) << 30 : UINT64_C (512) << 20)
#define LEAST_CACHE (UINT64_C (2) << 20)

uint64_t
recover_cache (const struct recover_params *p)
{
  uint64_t most = p->cache ? p->cache : MIN (host_memory_available () / 4, MAX_CACHE);

  return MAX (most, p->cache ? LEAST_CACHE : MIN_CACHE);
}

/* How much of it is needed. */
static uint64_t
cache_size (const struct recovery *rec)
{
  uint64_t need = MIN_CACHE;

  /* A commit's blocks can be spread thin over chunks that it shares with others. */
  for (size_t i = 0; i < rec->nparts; i++)
    need += rec->parts[i].blocks * JOURNAL_BLOCK + 2 * JOURNAL_CHUNK;
  return MIN (need, recover_cache (rec->params));
}

static int
tell_drain (void *opaque, uint64_t bytes)
{
  struct recovery *rec = opaque;

  rec->done += bytes;
  recover_tell (rec, false);
  return 0;
}

struct change {
  const struct recovery *rec;
  uint64_t epochs, bytes;
  struct journal_checkpoint watermark;
};

static void
change_promote (struct journal_state *state, void *opaque)
{
  const struct change *c = opaque;

  state_epoch (state, state->epoch + 1);
  state->state = JOURNAL_PROMOTED;
  state->generation++;
  state->checkpoint = c->rec->chosen;
  state->discarded_epochs = c->epochs;
  state->discarded_bytes = c->bytes;
  state->drained = false;
  state->clean = true;          /* promoted, and nothing is in flight */
  state->pending = state->scratch = false;
  state_discard (state, state->epoch_limit);
  state_epoch (state, state->epoch_limit + 1);
}

static void
change_watermark (struct journal_state *state, void *opaque)
{
  const struct change *c = opaque;

  state->watermark = c->watermark;
  state->target = MAX (state->target, c->watermark.id);
}

static void
change_drained (struct journal_state *state, void *opaque)
{
  (void) opaque;
  state->drained = true;
  state->clean = true;
}

static int
journal_error (struct recovery *rec, enum mcexit code)
{
  return mcerror_set (rec->err, code, "%s/journal: %m%s", rec->params->dir,
                      code == MCEXIT_PARTIAL ?
                      ": recovery has begun; mend the cause and run it again" : "");
}

/* Ranges of what was discarded, with those of what was committed after the checkpoint: T has them then, or
 * NULL.
 */
static void
add_later (struct recovery *rec, struct recover_tally *t)
{
  struct journal_damage damage;
  uint64_t newest = 0;

  if (t->ranges && replay_map (rec->j, rec->chosen.id, UINT64_MAX, t->ranges,
                               &newest, &damage) == -1) {
    epoch_free (t->ranges);
    t->ranges = NULL;
  }
}

/* As much of one as divergence.c looks at. */
static struct replica
replica_of (const struct recovery *rec)
{
  return (struct replica) { .fs = rec->params->fs, .dir = (char *) (uintptr_t) rec->params->dir,
                            .journal = rec->j, .disks = rec->disks, .ndisks = rec->ndisks,
                            .state = JOURNAL_PROTECTED,
                            .generation = rec->state.generation,
                            .has_checkpoint = true, .checkpoint = rec->chosen };
}

/* For a server that is started later: where the old primary's disk differs from what is recovered.
 * RANGES (NULL: not known) is taken.  After the PROMOTE record: if there is none the replica goes on, and
 * what is noted must not be found by a later recovery that could note nothing.
 */
static void
note_divergence (struct recovery *rec, struct epoch *ranges)
{
  struct replica r = replica_of (rec);

  if (ranges == NULL || pthread_mutex_init (&r.lock, NULL) != 0)
    goto out;
  r.divergence = divergence_begin (&r, rec->state.generation + 1);
  if (r.divergence) {
    divergence_finish (&r, r.divergence, ranges);
    ranges = NULL;
    divergence_save (&r);
    divergence_free (r.divergence);
  }
  (void) pthread_mutex_destroy (&r.lock);
 out:
  epoch_free (ranges);
}

/* What is written to the images from now on is none of recovery's.  (Not when this was so before: somebody may
 * have begun to use them.)
 */
static void
settle_divergence (struct recovery *rec)
{
  struct replica r = replica_of (rec);

  if (pthread_mutex_init (&r.lock, NULL) != 0)
    return;
  /* Nothing noted is nothing compared: the list is as good as it was. */
  (void) divergence_settle (&r);
  (void) pthread_mutex_destroy (&r.lock);
}

static int
promote (struct recovery *rec)
{
  struct recover_tally t = { .bytes = 0 };
  struct change c = { .rec = rec };

  if (rec->state.state == JOURNAL_PROTECTED && rec->whole)
    t.ranges = epoch_new ();

  /* How much goes is for the user to know, and no reason to fail. */
  if (recover_count_discarded (rec, &t) == 0) {
    c.epochs = t.epochs;
    c.bytes = t.bytes;
  }
  add_later (rec, &t);
  if (journal_record (rec->j, JOURNAL_REC_PROMOTE, change_promote, &c) == -1) {
    epoch_free (t.ranges);
    return journal_error (rec, MCEXIT_USAGE);
  }
  note_divergence (rec, t.ranges);
  if (journal_discard (rec->j) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  return 0;
}

static void
change_target (struct journal_state *state, void *opaque)
{
  const struct change *c = opaque;

  state->target = MAX (state->target, c->watermark.id);
}

/* E is what parts up to C->watermark hold together: bring it into the images. */
static int
write_map (struct recovery *rec, struct drain *d, const struct epoch *e,
           struct change *c)
{
  struct journal_state state;
  bool news;

  if (drain_prepare (d, e->map, &news) == -1)
    return -1;
  /* If this is killed, the next one is to know what it may find in the images. */
  journal_get_state (rec->j, &state);
  if ((state.target < c->watermark.id || news) &&
      journal_record (rec->j, JOURNAL_REC_TARGET, change_target, c) == -1)
    return -1;
  return drain_map (d, e->map);
}

/* Write out parts [FROM, TO). */
static int
write_window (struct recovery *rec, size_t from, size_t to, uint64_t *written)
{
  struct drain d = { .fs = rec->params->fs, .journal = rec->j,
                     .disks = rec->disks, .ndisks = rec->ndisks,
                     .sums = rec->sums, .verified = true,
                     .hurry = rec->params->fs == &io_posix, .progress = tell_drain, .opaque = rec };
  uint64_t begin = from == 0 ? rec->state.watermark.id : rec->parts[from - 1].epoch;
  uint64_t newest = 0;
  struct change c = { .rec = rec, .watermark = rec->chosen };
  struct epoch *e = epoch_new ();
  int result = -1;

  if (e == NULL)
    return mcerror_set (rec->err, MCEXIT_PARTIAL, "cannot go on: %m");
  c.watermark.id = rec->parts[to - 1].epoch;
  d.upto = c.watermark.id;
  if (replay_map (rec->j, begin, c.watermark.id, e, &newest, &d.damage) == 0 &&
      write_map (rec, &d, e, &c) == 0)
    result = 0;
  else if (errno == EBADMSG) {
    /* It verified a moment ago. */
    if (d.damage.checkpoint == 0)
      d.damage.checkpoint = rec->parts[from].epoch;
    recover_damage (rec, &d.damage);
  }
  else
    mcerror_set (rec->err, MCEXIT_PARTIAL,
                 "%s: %m: recovery has begun; mend the cause and run it again",
                 d.failed_path ? d.failed_path : rec->params->dir);
  *written += d.written;
  epoch_free (e);
  if (result == -1)
    return -1;
  if (journal_record (rec->j, JOURNAL_REC_WATERMARK, change_watermark,
                      &c) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  return 0;
}

static int
write_out (struct recovery *rec, uint64_t *written)
{
  size_t from = 0;

  rec->phase = "writing";
  rec->done = 0;
  while (from < rec->nparts) {
    size_t to = from;
    uint64_t bytes = 0;

    do
      bytes += rec->parts[to++].blocks * JOURNAL_BLOCK + 2 * JOURNAL_CHUNK;
    while (to < rec->nparts &&
           bytes + rec->parts[to].blocks * JOURNAL_BLOCK + 2 * JOURNAL_CHUNK +
           MIN_CACHE / 2 <= rec->cache);
    if (write_window (rec, from, to, written) == -1)
      return -1;
    from = to;
  }
  rec->done = rec->total;
  recover_tell (rec, true);
  return 0;
}

void
recover_fill_result (struct recovery *rec, struct recover_result *result)
{
  const struct journal_config *config = journal_get_config (rec->j);

  journal_get_state (rec->j, &rec->state);
  for (unsigned i = 0; i < config->ndisks; i++)
    if (config->disks[i].joined > rec->chosen.id)
      memcpy (result->without[result->nwithout++], config->disks[i].name,
              sizeof result->without[0]);
  result->checkpoint = rec->chosen;
  result->discarded_bytes = rec->state.discarded_bytes;
  result->discarded_epochs = rec->state.discarded_epochs;
  result->generation = rec->state.generation;
  result->state = replica_state_word (rec->state.state);
}

/* The journal is to know where the images are from now on. */
static int
note_paths (struct recovery *rec)
{
  struct journal_config next = *journal_get_config (rec->j);

  if (rec->moved == NULL)
    return 0;
  next.disks = rec->moved;
  return journal_set_config (rec->j, &next, rec->err);
}

static int
run (struct recovery *rec, struct recover_result *result)
{
  enum journal_took took;
  struct mcerror ignored;

  if (recover_aim (rec) == -1 || recover_open_images (rec) == -1 ||
      recover_plan (rec) == -1)
    return -1;
  rec->cache = cache_size (rec);
  journal_set_load_room (rec->j, rec->cache / JOURNAL_CHUNK);
  if (recover_check_data (rec) == -1 || note_paths (rec) == -1)
    return -1;
  /* Shared, to find (and in the end remove) what a server that died left; without
   * room for that, private memory does.
   */
  if (journal_start (rec->j, STAGING, true, &took, &ignored) == -1 &&
      journal_start (rec->j, STAGING, false, &took, rec->err) == -1)
    return -1;
  rec->whole = took == JOURNAL_TOOK_SHARED || took == JOURNAL_TOOK_SAVED ||
    (took == JOURNAL_TOOK_NOTHING && rec->state.clean);
  if (rec->state.state != JOURNAL_PROMOTED) {
    if (promote (rec) == -1)
      return -1;
  }
  else if (journal_discard (rec->j) == -1)
    return journal_error (rec, MCEXIT_PARTIAL);
  if (write_out (rec, &result->written_bytes) == -1)
    return -1;
  journal_get_state (rec->j, &rec->state);
  if (!rec->state.drained) {
    settle_divergence (rec);
    if (journal_record (rec->j, JOURNAL_REC_STATE, change_drained, NULL) == -1)
      return journal_error (rec, MCEXIT_PARTIAL);
  }
  journal_stop (rec->j, true);
  return 0;
}

int
recover_run (const struct recover_params *params,
             struct recover_result *result, struct mcerror *err)
{
  uint64_t since = host_monotonic_ns ();
  struct recovery rec = { .nparts = 0 };
  int r = recover_open (&rec, params, false, NULL, err);

  memset (result, 0, sizeof *result);
  if (r == 0)
    r = run (&rec, result);
  if (r == 0)
    recover_fill_result (&rec, result);
  recover_end (&rec);
  result->seconds = (host_monotonic_ns () - since) / 1e9;
  return r;
}
