/* SPDX-License-Identifier: BSD-3-Clause */
/* Speculation, write-out and the overlay over both, against a list of epochs, each a plain array of sectors. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffers/overlay.h"
#include "common/bytes.h"
#include "unit/model.h"
#include "unit/unit.h"

/* What an epoch should hold. */
struct past {
  uint64_t number, bytes, extents;
  uint64_t checkpoint;                  /* that it came with; 0: uncommitted */
  struct model model;
  struct past *older;
};

static struct speculation *spec;
static struct writeout *wo;
static struct past *newest;             /* uncommitted; the first is the open one */
static struct past *committed;          /* and not in the backing image */
static uint64_t *pending;               /* numbers of the checkpoints in WO */
static size_t npending;
static uint64_t draining;               /* target, 0: none */
static bool limited;                    /* segments may end anywhere */
static struct overlay_pieces pieces;
static uint32_t next_loc;

static void
new_past (uint64_t number)
{
  struct past *p = calloc (1, sizeof *p);

  EXPECT (p != NULL);
  p->number = number;
  p->older = newest;
  newest = p;
}

static void
free_past (struct past *p)
{
  while (p) {
    struct past *older = p->older;

    free (p);
    p = older;
  }
}

static void
setup (void)
{
  unit_seed ();
  spec = speculation_new (7);
  wo = writeout_new ();
  EXPECT (spec != NULL);
  EXPECT (wo != NULL);
  newest = committed = NULL;
  pending = calloc (100000, sizeof *pending);
  EXPECT (pending != NULL);
  npending = 0;
  draining = 0;
  next_loc = 0;
  new_past (7);
}

static void
teardown (void)
{
  unit_fail_alloc (0);
  speculation_free (spec);
  writeout_free (wo);
  free_past (newest);
  free_past (committed);
  free (pending);
  overlay_pieces_free (&pieces);
}

static void
do_write (void)
{
  bool zero = unit_chance (20), may_trim = unit_chance (50);
  struct model_range r = model_random_range (zero);

  if (zero) {
    EXPECT (speculation_zero (spec, r.disk, r.sector, r.n, may_trim) == 0);
    model_zero (&newest->model, r.disk, r.sector, r.n, may_trim);
  }
  else {
    /* At times what follows a write on disk follows it in the journal too. */
    if (unit_chance (70))
      next_loc += 1 + unit_random (9);
    EXPECT (speculation_put (spec, r.disk, r.sector, r.n, next_loc) == 0);
    model_put (&newest->model, r.disk, r.sector, r.n, next_loc);
    next_loc += (r.sector % MAP_BLOCK_SECTORS + r.n + MAP_BLOCK_SECTORS - 1)
      / MAP_BLOCK_SECTORS;
  }
  if (r.n > 0) {
    newest->bytes += r.n * MAP_SECTOR;
    newest->extents++;
  }
}

static void
do_seal (void)
{
  EXPECT (speculation_seal (spec) == 0);
  new_past (newest->number + 1);
}

static void
do_restock (void)
{
  unsigned wanted = speculation_spares_wanted (spec);

  for (unsigned i = 0; i < wanted; i++) {
    struct epoch *e = epoch_new ();

    EXPECT (e != NULL);
    speculation_restock (spec, e);
  }
  EXPECT (speculation_spares_wanted (spec) == 0);
}

/* EPOCHS as taken are those of the model from P on. */
static void
check_taken (const struct epoch *e, const struct past *p)
{
  for (; e && p; e = e->older, p = p->older) {
    EXPECT (e->number == p->number);
    EXPECT (e->bytes == p->bytes);
    EXPECT (e->extents == p->extents);
    model_check_window (&p->model, e->map, unit_random (MODEL_WINDOWS));
  }
  EXPECT (e == NULL && p == NULL);
}

/* Commit up to a random sealed epoch. */
static void
do_commit (void)
{
  struct past *above = newest, *taken, *p;
  uint64_t upto;
  struct epoch *epochs;

  while (above->older && unit_chance (30))
    above = above->older;
  taken = above->older;
  if (taken == NULL) {
    /* As when nothing was written since: here always a new number. */
    EXPECT (speculation_take (spec, 0) == NULL);
    return;
  }
  upto = taken->number;
  epochs = speculation_take (spec, upto);
  check_taken (epochs, taken);
  writeout_add (wo, upto, upto * 10, 1, epochs);
  pending[npending++] = upto;
  above->older = NULL;
  for (p = taken; ; p = p->older) {
    p->checkpoint = upto;
    if (p->older == NULL)
      break;
  }
  p->older = committed;
  committed = taken;
  EXPECT (speculation_take (spec, upto) == NULL);
}

/* A checkpoint without an epoch of its own. */
static void
do_commit_nothing (void)
{
  uint64_t number = newest->number;

  if (newest->older || newest->extents > 0)
    return;
  writeout_add (wo, number, number * 10, 1, NULL);
  pending[npending++] = number;
  newest->number++;
  struct epoch *e = speculation_take_all (spec, newest->number);
  EXPECT (e != NULL && e->older == NULL);
  epoch_free (e);
}

static void
do_merge (void)
{
  size_t max = unit_chance (20) ? SIZE_MAX : 1 + unit_random (30);
  unsigned calls = 1 + unit_random (20);
  struct epoch *done;

  while (calls-- > 0) {
    bool failing = unit_chance (5);

    unit_fail_alloc (failing ? 1 + unit_random (3) : 0);
    int r = writeout_merge (wo, max, &done);
    unit_fail_alloc (0);
    EXPECT (r != -1 || failing);
    if (done) {
      EXPECT (r != -1);
      if (unit_chance (50) && speculation_spares_room (spec)) {
        epoch_clear (done);
        speculation_restock (spec, done);
      }
      else
        epoch_free (done);
    }
    EXPECT (writeout_merged (wo) <= writeout_newest (wo));
    if (r == 0) {
      EXPECT (writeout_merged (wo) == writeout_newest (wo));
      break;
    }
  }
}

static bool
is_pending (uint64_t number)
{
  for (size_t i = 0; i < npending; i++)
    if (pending[i] == number)
      return true;
  return false;
}

static void
do_cut (void)
{
  int r;

  unit_fail_alloc (unit_chance (10) ? 1 : 0);
  r = writeout_cut (wo);
  unit_fail_alloc (0);
  EXPECT (r == 0 || errno == ENOMEM ||
          (errno == EAGAIN && writeout_merged (wo) < writeout_newest (wo)));
  limited = true;
}

static void
do_begin (void)
{
  uint64_t target;
  struct writeout_oldest oldest;
  bool any = writeout_get_oldest (wo, &oldest);
  const struct map *map = writeout_begin (wo, &target);
  struct model *want;

  if (draining) {
    EXPECT (map == NULL && errno == EBUSY && target == 0);
    EXPECT (writeout_resume (wo, &target) != NULL && target == draining);
    return;
  }
  if (map == NULL) {
    EXPECT (target == 0 && (errno == EAGAIN || errno == ENOENT));
    if (errno == EAGAIN)
      EXPECT (writeout_merged (wo) < writeout_newest (wo));
    else
      EXPECT (npending == 0 || writeout_merged (wo) < pending[0]);
    return;
  }
  EXPECT (any && target == oldest.last && oldest.time == target * 10);
  EXPECT (limited || target == writeout_merged (wo));
  EXPECT (target <= writeout_merged (wo) && is_pending (target));
  EXPECT (pending[npending - 1 - oldest.newer] == target);
  draining = target;

  /* It is exactly all epochs up to the target. */
  want = calloc (1, sizeof *want);
  EXPECT (want != NULL);
  for (const struct past *p = committed; p; p = p->older)
    if (p->checkpoint <= target) {
      struct model *both = malloc (sizeof *both);

      EXPECT (both != NULL);
      *both = p->model;
      model_merge (both, want);
      free (want);
      want = both;
    }
  model_check (want, map);
  free (want);
}

static void
do_end (void)
{
  struct past **p = &committed;
  size_t n = 0;

  if (draining == 0)
    return;
  map_free (writeout_end (wo));
  while (*p && (*p)->checkpoint > draining)
    p = &(*p)->older;
  free_past (*p);
  *p = NULL;
  while (n < npending && pending[n] <= draining)
    n++;
  EXPECT (n > 0);
  npending -= n;
  memmove (pending, pending + n, npending * sizeof *pending);
  draining = 0;
}

/* Everything uncommitted is void: a promote. */
static void
do_discard (void)
{
  uint64_t number = newest->number + 1 + unit_random (5);
  struct epoch *e = speculation_take_all (spec, number), *older;

  EXPECT (e != NULL);
  check_taken (e, newest);
  for (; e; e = older) {
    older = e->older;
    epoch_free (e);
  }
  free_past (newest);
  newest = NULL;
  new_past (number);
}

static struct model_cell
expected (const struct past *from, const struct past *then, unsigned w,
          unsigned s)
{
  for (const struct past *p = from; p; p = p->older)
    if (p->model.cell[w][s].kind != CELL_NONE)
      return p->model.cell[w][s];
  for (const struct past *p = then; p; p = p->older)
    if (p->model.cell[w][s].kind != CELL_NONE)
      return p->model.cell[w][s];
  return (struct model_cell) { .kind = CELL_NONE };
}

static void
check_piece (const struct overlay_piece *piece, const struct past *from,
             const struct past *then, unsigned w)
{
  uint64_t first = model_window[w].sector * MAP_SECTOR, at = piece->offset;

  while (at < piece->offset + piece->length) {
    unsigned s = (at - first) / MAP_SECTOR;
    struct model_cell want = expected (from, then, w, s);
    uint64_t in = piece->skip + (at - piece->offset);

    switch (piece->source) {
    case OVERLAY_BACKING:
      EXPECT (want.kind == CELL_NONE);
      break;
    case OVERLAY_ZERO:
      EXPECT (want.kind == CELL_ZERO && want.may_trim == piece->may_trim);
      break;
    case OVERLAY_DATA:
      EXPECT (want.kind == CELL_DATA);
      EXPECT (want.loc == piece->loc + in / MAP_BLOCK);
      EXPECT (in % MAP_BLOCK == at % MAP_BLOCK);
      break;
    }
    at = first + (uint64_t) (s + 1) * MAP_SECTOR;
  }
}

/* Would one piece have done for both? */
static bool
could_join (const struct overlay_piece *a, const struct overlay_piece *b)
{
  if (a->source != b->source)
    return false;
  if (a->source == OVERLAY_ZERO)
    return a->may_trim == b->may_trim;
  return a->source == OVERLAY_BACKING ||
    a->loc * UINT64_C (4096) + a->skip + a->length ==
    b->loc * UINT64_C (4096) + b->skip;
}

static void
check_range (unsigned w, uint64_t offset, uint64_t length, unsigned which)
{
  uint64_t at = model_window[w].sector * MAP_SECTOR + offset;
  uint64_t end = at + length;
  const struct past *from = which & 1 ? newest : NULL;
  const struct past *then = which & 2 ? committed : NULL;

  EXPECT (overlay_resolve (which & 1 ? spec : NULL, which & 2 ? wo : NULL,
                           model_window[w].disk, at, length, &pieces) == 0);
  for (size_t i = 0; i < pieces.n; i++) {
    EXPECT (pieces.piece[i].offset == at);
    EXPECT (pieces.piece[i].length > 0);
    check_piece (&pieces.piece[i], from, then, w);
    EXPECT (i == 0 || !could_join (&pieces.piece[i - 1], &pieces.piece[i]));
    at += pieces.piece[i].length;
  }
  EXPECT (at == end);
}

/* A view of an older checkpoint: what closed segments hold up to it. */
static void
check_view (void)
{
  uint64_t upto, boundary;
  const struct past *then = committed;
  unsigned w = unit_random (MODEL_WINDOWS);
  uint64_t offset = unit_random (MODEL_SECTORS * MAP_SECTOR);
  uint64_t length = unit_random (MODEL_SECTORS * MAP_SECTOR - offset) + 1;

  if (npending == 0)
    return;
  upto = pending[unit_random (npending)];
  boundary = writeout_boundary (wo, upto);
  EXPECT (boundary == 0 || (is_pending (boundary) && boundary <= upto));
  if (boundary == 0)
    return;
  while (then && then->checkpoint > boundary)
    then = then->older;
  EXPECT (overlay_resolve_at (NULL, wo, boundary, model_window[w].disk,
                              model_window[w].sector * MAP_SECTOR + offset,
                              length, &pieces) == 0);
  for (size_t i = 0; i < pieces.n; i++)
    check_piece (&pieces.piece[i], NULL, then, w);

  /* Above it, a map that leads on: the epochs up to UPTO. */
  struct map *first = map_new (16);
  EXPECT (first != NULL);
  EXPECT (map_put (first, model_window[w].disk, model_window[w].sector, 8, 77) == 0);
  EXPECT (overlay_resolve_at (first, wo, boundary, model_window[w].disk,
                              model_window[w].sector * MAP_SECTOR, 4096,
                              &pieces) == 0);
  EXPECT (pieces.n == 1 && pieces.piece[0].loc == 77);
  map_free (first);
}

static void
check_all (void)
{
  struct speculation_stat st, want = { 0, 0, 0, 0 };
  struct writeout_stat ws;
  uint64_t bytes = 0;

  for (const struct past *p = newest; p; p = p->older) {
    want.bytes += p->bytes;
    want.extents += p->extents;
    want.sealed += p != newest;
    want.epochs += p->extents > 0;
  }
  speculation_get_stat (spec, &st);
  EXPECT (st.bytes == want.bytes);
  EXPECT (st.extents == want.extents);
  EXPECT (st.sealed == want.sealed);
  EXPECT (st.epochs == want.epochs);
  EXPECT (speculation_open_number (spec) == newest->number);

  for (const struct past *p = committed; p; p = p->older)
    bytes += p->bytes;
  writeout_get_stat (wo, &ws);
  EXPECT (ws.bytes == bytes);
  EXPECT (ws.checkpoints == npending);
  EXPECT (writeout_is_empty (wo) == (npending == 0));
  check_view ();

  for (unsigned i = 0; i < 10; i++) {
    uint64_t offset = unit_random (MODEL_SECTORS * MAP_SECTOR);
    uint64_t most = unit_chance (50) ? 10000 : 1u << 30;
    uint64_t length = unit_random (MIN (MODEL_SECTORS * MAP_SECTOR - offset, most) + 1);

    if (unit_chance (30)) {
      offset = ROUND_DOWN (offset, (uint64_t) MAP_SECTOR);
      length = ROUND_DOWN (length, (uint64_t) MAP_SECTOR);
    }
    check_range (unit_random (MODEL_WINDOWS), offset, length,
                 unit_chance (70) ? 3 : unit_random (4));
  }
}

START_TEST (test_random)
{
  limited = _i % 2;
  if (limited) {
    struct writeout_limits l = { 0, 0, 0 };

    if (unit_chance (50))
      l.checkpoints = 1 + unit_random (5);
    if (unit_chance (50))
      l.ns = 1 + unit_random (500);
    if (unit_chance (50))
      l.bytes = 1 + unit_random (1 << 20);
    writeout_set_limits (wo, &l);
  }
  for (unsigned i = 0; i < 6000; i++) {
    switch (unit_random (40)) {
    case 0: case 1: case 2:
      do_seal ();
      break;
    case 3:
      do_commit ();
      break;
    case 4:
      do_commit_nothing ();
      break;
    case 5: case 6: case 7:
      do_merge ();
      break;
    case 8:
      do_begin ();
      break;
    case 9:
      do_end ();
      break;
    case 10:
      if (unit_chance (10))
        do_discard ();
      break;
    case 11: case 12:
      do_restock ();
      break;
    case 13:
      if (limited)
        do_cut ();
      break;
    default:
      do_write ();
    }
    check_all ();
  }
  for (unsigned w = 0; w < MODEL_WINDOWS; w++)
    check_range (w, 0, MODEL_SECTORS * MAP_SECTOR, 3);
  printf ("TRIED invariant=5 test=test-overlay what=\"random changes of the maps, all looked up after each\" n=6000\n");
}
END_TEST

/* More epochs than the overlay has room for without allocating. */
START_TEST (test_many_epochs)
{
  for (unsigned i = 0; i < 60; i++) {
    EXPECT (speculation_put (spec, 0, i * 3, 3 + i % 8, next_loc) == 0);
    model_put (&newest->model, 0, i * 3, 3 + i % 8, next_loc);
    next_loc += 10;
    do_seal ();
  }
  check_range (0, 0, MODEL_SECTORS * MAP_SECTOR, 3);
  for (unsigned nth = 1; ; nth++) {
    overlay_pieces_free (&pieces);
    unit_fail_alloc (nth);
    int r = overlay_resolve (spec, wo, 0, 0, 1 << 20, &pieces);
    unsigned failed = unit_failed ();
    unit_fail_alloc (0);

    EXPECT (r == (failed ? -1 : 0));
    if (failed == 0)
      break;
  }
  check_range (0, 0, MODEL_SECTORS * MAP_SECTOR, 3);
}
END_TEST

/* The first and last bytes that a disk can have. */
START_TEST (test_edges)
{
  const uint64_t last = INT64_MAX - 1;

  EXPECT (speculation_put (spec, 9, 0, 1, 100) == 0);
  EXPECT (speculation_put (spec, 9, MODEL_END - 1, 1, 200) == 0);
  EXPECT (overlay_resolve (spec, wo, 9, 0, 1, &pieces) == 0);
  EXPECT (pieces.n == 1 && pieces.piece[0].source == OVERLAY_DATA);
  EXPECT (pieces.piece[0].loc == 100 && pieces.piece[0].skip == 0);
  EXPECT (overlay_resolve (spec, wo, 9, last, 1, &pieces) == 0);
  EXPECT (pieces.n == 1 && pieces.piece[0].source == OVERLAY_DATA);
  EXPECT (pieces.piece[0].loc == 200 && pieces.piece[0].skip == 4094);
  EXPECT (overlay_resolve (spec, wo, 9, last, 0, &pieces) == 0);
  EXPECT (pieces.n == 0);

  /* Nothing there: one piece, however long. */
  EXPECT (overlay_resolve (spec, wo, 8, 1, last, &pieces) == 0);
  EXPECT (pieces.n == 1 && pieces.piece[0].source == OVERLAY_BACKING);
  EXPECT (pieces.piece[0].offset == 1 && pieces.piece[0].length == last);
  EXPECT (overlay_resolve (NULL, NULL, 9, 0, last, &pieces) == 0);
  EXPECT (pieces.n == 1 && pieces.piece[0].source == OVERLAY_BACKING);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlay");
  TCase *tc = tcase_create ("overlay");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, test_random, 0, 4);
  tcase_add_test (tc, test_many_epochs);
  tcase_add_test (tc, test_edges);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
