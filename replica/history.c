/* SPDX-License-Identifier: BSD-3-Clause */
/* History: write-out is held back so that older checkpoints can be recovered to and
 * looked at.
 *
 * The write-out buffer is cut into about PARTS segments over the length of the
 * history.  The oldest is due once enough checkpoints, or time, lie behind it; so there is
 * always as much history as was asked for, and up to one part more.  When the journal runs
 * short, history yields: segments go out one by one until there is room again.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define PARTS 8                 /* segments in a full history */
#define BYTES_PARTS 16          /* a segment takes no more than this part of the journal */

struct writeout *
history_writeout_new (struct replica *r)
{
  struct writeout *w = writeout_new ();
  struct writeout_limits limits = {
    .checkpoints = r->history.checkpoints ?
      MAX (r->history.checkpoints / PARTS, UINT64_C (1)) : 0,
    .ns = r->history.ns ? MAX (r->history.ns / PARTS, UINT64_C (1)) : 0,
    .bytes = journal_get_config (r->journal)->size / BYTES_PARTS,
  };

  if (w && history_is_on (r))
    writeout_set_limits (w, &limits);
  return w;
}

bool
history_is_on (const struct replica *r)
{
  return r->history.checkpoints > 0 || r->history.ns > 0;
}

bool
history_runs_short_locked (struct replica *r)
{
  struct journal_usage usage;

  assert_locked (r);
  journal_get_usage (r->journal, &usage);
  return r->waiting > 0 || usage.available < usage.size / 4;
}

/* Is everything in the segment older than the history reaches? */
static bool
is_past (const struct replica *r, const struct writeout_oldest *oldest)
{
  uint64_t now = host_time_ns ();

  return (r->history.checkpoints == 0 ||
          oldest->newer >= r->history.checkpoints) &&
    (r->history.ns == 0 ||
     (now > oldest->time && now - oldest->time >= r->history.ns));
}

bool
history_holds_locked (struct replica *r, const struct writeout_oldest *oldest)
{
  assert_locked (r);
  if (!history_is_on (r) || r->state == JOURNAL_PROMOTED ||
      is_past (r, oldest)) {
    r->history_yields = false;
    return false;
  }
  if (!history_runs_short_locked (r))
    return true;
  if (!r->history_yields) {
    r->history_yields = true;
    replica_log (r, REPLICA_LOG_ERROR, "the journal runs short: history yields, checkpoints before %" PRIu64
                 " can no longer be recovered: raise journal-size, or ask for less history",
                 oldest->last);
    house_event_locked (r, "history", "yields: up to checkpoint %" PRIu64,
                        oldest->last);
  }
  return false;
}

/* Does a segment end with the checkpoint that was added last, as it would have without a restart?  N more came
 * with it since the segment that began at FIRST, and BYTES.  After so many as a read may look through the
 * rest is one.
 */
static bool
part_is_full (const struct replica *r, uint64_t n, uint64_t bytes,
              uint64_t first, uint64_t time)
{
  if (writeout_segments (r->wo) + r->restored >= WRITEOUT_SEGMENTS)
    return false;
  return (r->history.checkpoints &&
          n >= MAX (r->history.checkpoints / PARTS, UINT64_C (1))) ||
    (r->history.ns && time > first && time - first >= r->history.ns / PARTS) ||
    bytes >= journal_get_config (r->journal)->size / BYTES_PARTS;
}

int
history_restore (struct replica *r, const struct journal_state *state,
                 uint64_t *newest, struct journal_damage *damage)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0), held = 0;
  CLEANUP_FREE struct journal_checkpoint *list = calloc (n + 1, sizeof *list);
  uint64_t from = state->watermark.id, first = 0, bytes = 0;

  if (list == NULL)
    return -1;
  n = history_is_on (r) && state->state != JOURNAL_PROMOTED ?
    MIN (n, journal_checkpoints (r->journal, list, n)) : 0;
  for (size_t i = 0; i <= n; i++) {
    /* The last part takes what is left, also what is no checkpoint. */
    bool rest = i == n;
    uint64_t upto = rest ? UINT64_MAX : list[i].id;
    struct epoch *e;

    if (!rest) {
      if (list[i].id <= from)
        continue;
      first = held++ == 0 ? list[i].time : first;
      bytes += list[i].bytes;
      if (i + 1 == n || !part_is_full (r, held, bytes, first, list[i].time))
        continue;
    }
    e = epoch_new ();
    if (e == NULL)
      return -1;
    if (replay_map (r->journal, from, upto, e, newest, damage) == -1) {
      epoch_free (e);
      return -1;
    }
    if (rest && *newest == from && map_is_empty (e->map)) {
      epoch_free (e);
      break;
    }
    upto = rest ? *newest : upto;
    writeout_add (r->wo, upto, n == 0 ? host_time_ns () :
                  list[rest ? n - 1 : i].time, MAX (held, (size_t) 1), e);
    from = upto;
    held = 0;
    bytes = 0;
    r->restored++;
  }
  if (!writeout_is_empty (r->wo))
    r->backlog_since = host_monotonic_ns ();
  return 0;
}
