/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <check.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "unit/journal-help.h"

static uint64_t random_state;

void
help_seed (void)
{
  const char *text = getenv ("MCBUF_TEST_SEED");

  random_state = text ? strtoull (text, NULL, 0) : host_time_ns ();
  printf ("MCBUF_TEST_SEED=%llu\n", (unsigned long long) random_state);
  fflush (stdout);
  if (random_state == 0)
    random_state = 1;
}

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift
 * generators, scrambled" (2016).
 */
uint64_t
help_random (void)
{
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * UINT64_C (2685821657736338717);
}

unsigned
help_below (unsigned n)
{
  return help_random () % n;
}

void
help_init (struct help *h, const struct io_fs *fs, uint64_t size)
{
  const char *tmp = getenv ("TMPDIR");

  memset (h, 0, sizeof *h);
  h->fs = fs;
  if (fs == &io_posix) {
    snprintf (h->dir, sizeof h->dir, "%s/mcbuf-test-XXXXXX",
              tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull (mkdtemp (h->dir));
    strcat (h->dir, "/j");
  }
  else
    strcpy (h->dir, "/sim/j");
  ck_assert_int_eq (host_random (h->config.id, HOST_ID_LEN), 0);
  h->config.size = size;
  h->config.ndisks = 2;
  h->config.disks = h->disk;
  strcpy (h->disk[0].name, "vda");
  strcpy (h->disk[0].path, "/vm/a.img");
  strcpy (h->disk[1].name, "vdb");
  strcpy (h->disk[1].path, "/vm/b.img");
  h->disk[0].size = h->disk[1].size = UINT64_C (1) << 40;
  h->epoch = 1;
}

void
help_create (struct help *h)
{
  struct journal_state state = {
    .state = JOURNAL_PROTECTED, .generation = 1, .has_checkpoint = true,
    .epoch = 1, .epoch_limit = 1000,
  };
  struct mcerror err = { 0 };

  ck_assert_msg (journal_create (h->fs, h->dir, &h->config, &state, &err) == 0,
                 "%s", err.text);
}

static void
open_change (struct journal_state *state, void *opaque)
{
  struct help *h = opaque;

  state->instance++;
  state->epoch = h->epoch;
}

void
help_open (struct help *h, uint64_t buffer, bool shared)
{
  struct mcerror err = { 0 };
  struct journal_state state;

  ck_assert_msg (journal_open (h->fs, h->dir, &h->j, &err) == 0, "%s",
                 err.text);
  journal_get_state (h->j, &state);
  h->checkpoint = state.checkpoint.id;
  h->epoch = state.epoch;
  if (buffer == 0)
    return;
  ck_assert_msg (journal_start (h->j, buffer, shared, &h->took, &err) == 0,
                 "%s", err.text);
  if (h->took == JOURNAL_TOOK_SAVED || h->took == JOURNAL_TOOK_SHARED) {
    uint64_t disk[HELP_DISK_BLOCKS];

    ck_assert_int_eq (help_replay_uncommitted (h, disk, &h->epoch), 0);
  }
  ck_assert_int_eq (journal_record (h->j, JOURNAL_REC_OPEN, open_change, h), 0);
}

void
help_close (struct help *h, bool end)
{
  journal_stop (h->j, end);
  journal_close (h->j);
  h->j = NULL;
}

void
help_remove (struct help *h)
{
  static const char *const names[] = { "journal", "journal.new", "acked", "lock" };
  char path[512];

  if (h->fs != &io_posix)
    return;
  for (unsigned i = 0; i < 4; i++) {
    snprintf (path, sizeof path, "%s/%s", h->dir, names[i]);
    unlink (path);
  }
  rmdir (h->dir);
  *strrchr (h->dir, '/') = '\0';
  rmdir (h->dir);
}

void
help_fill (void *mem, uint64_t stamp)
{
  uint64_t *p = mem;

  for (unsigned i = 0; i < JOURNAL_BLOCK / 8; i++)
    p[i] = stamp + i * UINT64_C (0x9e3779b97f4a7c15);
}

int
help_write (struct help *h, unsigned block, unsigned n)
{
  while (n > 0) {
    struct journal_span span;
    struct journal_extent ext;
    uint32_t crc[JOURNAL_CHUNK_BLOCKS];

    if (journal_reserve (h->j, MIN (n, JOURNAL_CHUNK_BLOCKS), &span) == -1)
      return -1;
    for (unsigned i = 0; i < span.nblocks; i++) {
      char *p = (char *) span.mem + i * JOURNAL_BLOCK;

      help_fill (p, ++h->stamp);
      crc[i] = crc32c (p, JOURNAL_BLOCK, 0);
    }
    journal_filled (h->j, &span, crc);
    if (journal_credit (h->j, 1, span.nblocks) == -1) {
      int saved = errno;

      h->stamp -= span.nblocks;
      journal_abandon (h->j, &span);
      errno = saved;
      return -1;
    }
    for (unsigned i = 0; i < span.nblocks; i++) {
      h->now[block + i] = h->stamp - span.nblocks + 1 + i;
      h->where[block + i] = span.block + i;
    }
    ext = (struct journal_extent) {
      .disk = 0, .flags = JOURNAL_DATA, .nsectors = span.nblocks * 8,
      .sector = block * UINT64_C (8), .block = span.block,
    };
    journal_publish (h->j, h->epoch, &ext, 1);
    block += span.nblocks;
    n -= span.nblocks;
  }
  return 0;
}

int
help_zero (struct help *h, unsigned block, unsigned n)
{
  struct journal_extent ext = {
    .disk = 0, .flags = JOURNAL_ZERO, .nsectors = n * 8,
    .sector = block * UINT64_C (8),
  };

  if (journal_credit (h->j, 1, 0) == -1)
    return -1;
  journal_publish (h->j, h->epoch, &ext, 1);
  for (unsigned i = 0; i < n; i++)
    h->now[block + i] = h->where[block + i] = 0;
  return 0;
}

uint64_t
help_seal (struct help *h)
{
  journal_seal (h->j, h->epoch);
  return h->epoch++;
}

struct commit_args {
  struct help *h;
  struct journal_commit *commit;
  const char *label;
};

static void
commit_change (struct journal_state *state, void *opaque)
{
  struct commit_args *a = opaque;

  if (a->commit->kind != JOURNAL_REC_COMMIT)
    return;
  state->has_checkpoint = true;
  state->epoch = a->h->epoch;
  state->checkpoint = (struct journal_checkpoint) {
    .id = a->commit->epoch, .time = a->commit->epoch * 1000,
    .extents = a->commit->extents, .bytes = a->commit->bytes,
  };
  if (a->label)
    snprintf (state->checkpoint.label, sizeof state->checkpoint.label, "%s",
              a->label);
}

int
help_commit (struct help *h, uint64_t epoch, const char *label)
{
  struct journal_commit commit = { .kind = JOURNAL_REC_COMMIT, .epoch = epoch,
                                   .change = commit_change };
  struct commit_args args = { h, &commit, label };

  commit.opaque = &args;
  if (journal_do_commit (h->j, &commit) == -1)
    return -1;
  h->checkpoint = epoch;
  return 0;
}

static void
record_change (struct journal_state *state, void *opaque)
{
  void (**change) (struct journal_state *) = opaque;

  if (*change)
    (*change) (state);
}

int
help_record (struct help *h, enum journal_kind kind,
             void (*change) (struct journal_state *))
{
  return journal_record (h->j, kind, record_change, &change);
}

static void
target_change (struct journal_state *state, void *opaque)
{
  state->target = *(uint64_t *) opaque;
}

static void
watermark_change (struct journal_state *state, void *opaque)
{
  uint64_t epoch = *(uint64_t *) opaque;

  state->target = epoch;
  state->watermark.id = epoch;
}

int
help_watermark (struct help *h, uint64_t epoch)
{
  if (journal_record (h->j, JOURNAL_REC_TARGET, target_change, &epoch) == -1 ||
      journal_record (h->j, JOURNAL_REC_WATERMARK, watermark_change, &epoch)
      == -1)
    return -1;
  return journal_forget (h->j, epoch);
}

/* --- Replay --- */

struct replay {
  struct help *h;
  uint64_t *disk;
  struct journal_damage *damage;
  uint64_t last;
};

static int
replay_extent (void *opaque, uint64_t epoch, const struct journal_extent *ext)
{
  struct replay *r = opaque;
  uint64_t expect[JOURNAL_BLOCK / 8], got[JOURNAL_BLOCK / 8];
  unsigned first = ext->sector / 8;

  ck_assert (epoch >= r->last);
  r->last = epoch;
  for (unsigned i = 0; i < ext->nsectors / 8; i++) {
    if (first + i >= HELP_DISK_BLOCKS)
      continue;
    if (ext->flags & JOURNAL_ZERO) {
      r->disk[first + i] = 0;
      continue;
    }
    if (journal_read (r->h->j, ext->block + i, 0, JOURNAL_BLOCK, got,
                      r->damage) == -1)
      return -1;
    help_fill (expect, got[0]);
    ck_assert_mem_eq (got, expect, JOURNAL_BLOCK);
    r->disk[first + i] = got[0];
  }
  return 0;
}

int
help_replay (struct help *h, uint64_t from, uint64_t upto,
             uint64_t disk[HELP_DISK_BLOCKS], struct journal_damage *damage)
{
  struct replay r = { h, disk, damage, 0 };

  return journal_replay (h->j, from, upto, replay_extent, &r, damage);
}

int
help_replay_uncommitted (struct help *h, uint64_t disk[HELP_DISK_BLOCKS],
                         uint64_t *open_epoch)
{
  struct replay r = { h, disk, NULL, 0 };

  return journal_replay_uncommitted (h->j, replay_extent, &r, open_epoch, NULL);
}
