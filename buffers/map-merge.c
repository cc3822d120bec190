/* SPDX-License-Identifier: BSD-3-Clause */
/* Putting one map over another, in slices.
 *
 * Three phases, for within NEWER the zero ranges lie under the slots: OLDER
 * gets the zero ranges; OLDER's slots that lie in them die; OLDER gets the
 * slots.  Whatever is half done shows only to a reader that looks past NEWER.
 *
 * The cursor holds the phase, whether the second one is needed, and the place
 * in the phase's walk.  Each step can be repeated without harm, so that ENOMEM leaves it at the step
 * that failed.
 */
#include "config.h"

#include "buffers/map-impl.h"
#include "common/bytes.h"

#define PHASE_SHIFT 60
#define WALK (UINT64_C (1) << 59)
#define PLACE(cursor) ((cursor) & (WALK - 1))

enum phase { ZEROES, DYING, SLOTS, DONE };

/* Slots that are killed at once for a zero range.  When there may be more, the second
 * phase does it, for all such ranges in one walk.
 */
#define KILL_AT_ONCE 1024

/* How many steps killing OLDER's slots in R may take, at most. */
static uint64_t
kill_steps (const struct map *older, const struct zero_range *r)
{
  unsigned disk = r->start >> ZEROSET_DISK_SHIFT;
  uint64_t first, last;

  if (older->live == 0)
    return 0;
  first = (r->start - zero_pos (disk, 0)) / MAP_BLOCK_SECTORS;
  last = (r->end - 1 - zero_pos (disk, 0)) / MAP_BLOCK_SECTORS;
  first = MAX (first, older->bounds[disk].first);
  last = MIN (last, older->bounds[disk].last);
  if (first > last)
    return 0;
  return MIN (last - first + 1, (uint64_t) map_walk_end (older));
}

/* Each phase does up to about MAX steps from *PLACE on; 1 when it is done. */
static int
merge_zeroes (struct map *older, const struct map *newer, size_t max,
              size_t *place, bool *walk)
{
  struct zeroset_at at = { *place / (ZEROSET_FAN + 1),
                           *place % (ZEROSET_FAN + 1) };
  const struct zero_range *r;
  size_t steps = 0;

  while ((r = zeroset_get (&newer->zeroes, at)) != NULL) {
    uint64_t kill = kill_steps (older, r);

    if (steps >= max)
      return 0;
    if (zeroset_add (&older->zeroes, r->start, r->end, r->may_trim) == -1)
      return -1;
    if (kill > KILL_AT_ONCE)
      *walk = true;
    else {
      map_kill_range (older, r->start, r->end);
      steps += kill / 8;
    }
    steps++;
    at = zeroset_next (&newer->zeroes, at);
    *place = at.chunk * (ZEROSET_FAN + 1) + at.i;
  }
  return 1;
}

static int
merge_dying (struct map *older, const struct map *newer, size_t max,
             size_t *place)
{
  /* Free slots cost less to pass than the others. */
  size_t end = map_walk_end (older), steps = 0;

  for (; *place < end; (*place)++, steps++) {
    struct slot *s = map_walk_slot (older, *place);
    unsigned dying = 0;
    uint64_t start;
    struct zeroset_at at;
    const struct zero_range *r;

    if (steps / 8 >= max)
      return 0;
    if (slot_mask (s) == 0)
      continue;
    steps += 7;
    start = zero_pos (key_disk (s->key),
                      key_block (s->key) * MAP_BLOCK_SECTORS);
    for (at = zeroset_seek (&newer->zeroes, start);
         (r = zeroset_get (&newer->zeroes, at)) != NULL &&
           r->start < start + MAP_BLOCK_SECTORS;
         at = zeroset_next (&newer->zeroes, at))
      dying |= mask_of (start, r->start, r->end);
    map_trim_slot (older, s, dying);
  }
  return 1;
}

static int
merge_slots (struct map *older, const struct map *newer, size_t max,
             size_t *place)
{
  const uint64_t value_bits = UINT32_MAX | MAP_ZERO | MAP_TRIM;
  size_t end = map_walk_end (newer), steps = 0;

  /* The walk meets the slots in the order of their homes, which is that of
   * their homes in OLDER, too: fast, when there is room for all of them.  A smaller
   * table would be filled up at its front first, to one long run of used slots.
   */
  if (*place == 0 && map_reserve (older, newer->live) == -1)
    return -1;
  for (; *place < end; (*place)++, steps++) {
    const struct slot *s = map_walk_slot (newer, *place);
    unsigned mask = slot_mask (s);

    if (steps / 8 >= max)
      return 0;
    if (*place + 8 < end) {
      const struct slot *ahead = map_walk_slot (newer, *place + 8);

      __builtin_prefetch (&older->table.slots[table_home (&older->table,
                                                          ahead->key)], 1);
    }
    if (mask == 0)
      continue;
    steps += 7;
    if (map_reserve (older, 1) == -1)
      return -1;
    map_put_block (older, s->key, mask, s->value & value_bits);
  }
  return 1;
}

int
map_merge (struct map *older, const struct map *newer, size_t max,
           uint64_t *cursor)
{
  enum phase phase = *cursor >> PHASE_SHIFT;
  bool walk = (*cursor & WALK) != 0;
  size_t place = PLACE (*cursor);
  int r = 0;

  max = MAX (max, (size_t) 1);
  switch (phase) {
  case ZEROES:
    r = merge_zeroes (older, newer, max, &place, &walk);
    break;
  case DYING:
    r = walk ? merge_dying (older, newer, max, &place) : 1;
    break;
  case SLOTS:
    r = merge_slots (older, newer, max, &place);
    break;
  case DONE:
    return 0;
  }
  if (r == 1) {
    phase++;
    place = 0;
  }
  *cursor = (uint64_t) phase << PHASE_SHIFT | (walk ? WALK : 0) | place;
  if (r == -1)
    return -1;
  return phase != DONE;
}
