/* SPDX-License-Identifier: BSD-3-Clause */
/* A short life of a replica, stepped by hand, and a map of what it left. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"
#include "replica/internal.h"
#include "unit/damage.h"

#define BUFFER (UINT64_C (8) << 20)

/* The one that is lived. */
struct living {
  struct damage_life *l;
  struct simdisk *disk;
  struct replica *r;
  uint8_t *now[DAMAGE_DISKS];
  uint64_t stamp;
};

static void
say (void *opaque, enum replica_log_level level, const char *line)
{
  (void) opaque;
  if (getenv ("DAMAGE_LOG"))
    fprintf (stderr, "  log %d: %s\n", (int) level, line);
}

struct replica *
damage_open (const struct damage_life *l, struct simdisk *disk,
             struct mcerror *err)
{
  struct replica_disk_params d[DAMAGE_DISKS];
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = DAMAGE_DIR,
                              .disks = d, .ndisks = l->ndisks, .log = say,
                              .journal_size = DAMAGE_JOURNAL_SIZE,
                              .buffer = BUFFER };
  struct replica *r;

  for (unsigned i = 0; i < l->ndisks; i++)
    d[i] = (struct replica_disk_params) { .name = l->name[i],
                                          .path = l->path[i] };
  if (replica_open (&p, &r, err) == -1)
    return NULL;
  r->by_hand = true;
  return r;
}

void
damage_fill (void *buf, size_t len, uint64_t stamp)
{
  for (size_t i = 0; i < len; i += 8) {
    uint64_t v = stamp + i * UINT64_C (0x100000001b3);

    memcpy ((char *) buf + i, &v, MIN ((size_t) 8, len - i));
  }
}

static void
keep (const struct damage_life *l, uint8_t *to[DAMAGE_DISKS],
      uint8_t *const from[DAMAGE_DISKS])
{
  for (unsigned d = 0; d < l->ndisks; d++) {
    if (to[d] == NULL)
      to[d] = malloc (l->size[d]);
    memcpy (to[d], from[d], l->size[d]);
  }
}

static void
put (struct living *v, unsigned d, uint64_t off, uint32_t len, bool zero)
{
  struct replica_export x = { .disk = d, .fence = v->r->fence,
                              .view = v->r->state == JOURNAL_PROMOTED ?
                              REPLICA_PROMOTED : REPLICA_INLET };

  if (zero) {
    memset (v->now[d] + off, 0, len);
    MUST (replica_zero (v->r, &x, len, off, REPLICA_MAY_TRIM) == 0, "zero: %m");
    return;
  }
  damage_fill (v->now[d] + off, len, host_bits () | 1);
  MUST (replica_pwrite (v->r, &x, v->now[d] + off, len, off, 0) == 0,
        "write: %m");
}

/* N writes of up to MOST bytes. */
static void
write_some (struct living *v, unsigned n, uint32_t most)
{
  for (; n > 0; n--) {
    unsigned d = host_below (v->l->ndisks);
    uint64_t size = v->l->size[d];
    uint32_t len = 1 + host_below (MIN (most, size));
    uint64_t off = host_below (size - len + 1);

    if (host_below (3)) {       /* as clients do */
      off = ROUND_DOWN (off, UINT64_C (4096));
      len = MIN (ROUND_UP (len, 4096u), (uint32_t) (size - off));
    }
    put (v, d, off, len, host_below (12) == 0);
  }
}

static uint64_t
commit (struct living *v)
{
  struct commit_answer a = { 0 };
  struct mcerror err = { 0 };
  char label[16];

  snprintf (label, sizeof label, "l%u", (unsigned) host_below (100));
  MUST (replica_commit (v->r, &(struct commit_request) { .label = label },
                        &a, &err) == 0, "commit: %s", err.text);
  MUST (a.checkpoint < DAMAGE_KNOWN, "too many checkpoints");
  keep (v->l, v->l->known[a.checkpoint], v->now);
  return a.checkpoint;
}

static void
drain (struct living *v)
{
  while (!writeout_is_empty (v->r->wo))
    MUST (writeout_step (v->r) == 0, "write-out: %m");
}

/* --- a moment to be killed at --- */

struct moment {
  struct simdisk *disk, *kept;
  uint64_t left;
  enum simdisk_crash how;
};

static void
on_op (void *opaque, enum simdisk_op op)
{
  struct moment *m = opaque;

  (void) op;
  if (m->left > 0 && --m->left == 0)
    m->kept = simdisk_crash (m->disk, m->how, host_bits);
}

/* --- where things are --- */

static void
add_place (struct damage_life *l, enum damage_area area, uint64_t off,
           uint32_t len, uint64_t checkpoint)
{
  if (l->nplaces < DAMAGE_PLACES)
    l->place[l->nplaces++] = (struct damage_place) {
      .area = area, .off = off, .len = len, .checkpoint = checkpoint };
}

struct placing {
  struct damage_life *l;
  enum damage_area area;
  uint64_t checkpoint;
};

static int
place_item (void *opaque, const struct table_item *item)
{
  const struct placing *p = opaque;

  if (item->nblocks > 0)
    add_place (p->l, p->area, block_offset (item->ext.block),
               item->nblocks * JOURNAL_BLOCK, p->checkpoint);
  return 0;
}

static void
place_table (struct damage_life *l, struct journal *j, uint64_t seq,
             uint32_t nparts, uint64_t checkpoint)
{
  struct placing p = { l, checkpoint ? AREA_DATA : AREA_SAVED, checkpoint };
  struct journal_damage d;
  struct table_runs runs;

  MUST (table_runs_read (j, seq, nparts, checkpoint, &runs, &d) == 0 &&
        table_runs_walk (j, &runs, checkpoint, place_item, &p, &d) == 0,
        "a table cannot be read: %s", d.what);
  for (size_t i = 0; i < runs.nruns; i++)
    add_place (l, checkpoint ? AREA_TABLE : AREA_SAVED,
               block_offset (get32 (runs.runs[i].block)),
               get32 (runs.runs[i].bytes), checkpoint);
  free (runs.runs);
}

static void
find_places (struct damage_life *l)
{
  struct simdisk *copy = simdisk_crash (l->disk, SIMDISK_KILL, host_bits);
  uint32_t super = sizeof (struct format_super) +
    l->ndisks * sizeof (struct format_disk);
  struct journal *j;
  struct mcerror err;

  MUST (journal_open (simdisk_fs (copy), DAMAGE_DIR, &j, &err) == 0,
        "cannot open what was left: %s", err.text);
  add_place (l, AREA_SUPER_A, 0, super, 0);
  add_place (l, AREA_SUPER_B, block_offset (FORMAT_SUPER_B), super, 0);
  add_place (l, AREA_ANCHOR_A, block_offset (FORMAT_ANCHOR_A), JOURNAL_BLOCK, 0);
  add_place (l, AREA_ANCHOR_B, block_offset (FORMAT_ANCHOR_B), JOURNAL_BLOCK, 0);
  for (size_t i = 0; i < j->log.nchain; i++)
    for (unsigned s = 0; s < JOURNAL_CHUNK_BLOCKS &&
           j->log.chain[i].first + s <= j->log.seq; s++)
      add_place (l, AREA_RECORD, (uint64_t) j->log.chain[i].chunk *
                 JOURNAL_CHUNK + block_offset (s), JOURNAL_BLOCK, 0);
  for (size_t i = 0; i < j->log.ncommits; i++) {
    const struct commit *c = commits_at (j, i);

    place_table (l, j, c->seq, c->nparts, c->epoch);
  }
  if (j->log.saved_seq != 0)
    place_table (l, j, j->log.saved_seq, j->log.saved_nparts, 0);
  l->used = (uint64_t) j->virgin * JOURNAL_CHUNK;
  journal_close (j);
  simdisk_free (copy);
}

/* --- the life --- */

/* Images with something in them. */
static void
make_images (struct living *v)
{
  for (unsigned d = 0; d < v->l->ndisks; d++) {
    struct io_file *file;

    for (uint64_t at = 0; at < v->l->size[d]; at += 8192)
      if (host_below (2))
        damage_fill (v->now[d] + at, MIN (UINT64_C (4096), v->l->size[d] - at),
                      host_bits ());
    MUST (io_open (simdisk_fs (v->disk), v->l->path[d], 0102, 0600, &file) == 0 &&
          io_pwrite (file, v->now[d], v->l->size[d], 0) == 0 &&
          io_fdatasync (file) == 0 &&
          io_sync_dir (simdisk_fs (v->disk), "/sim") == 0, "image: %m");
    io_close (file);
  }
}

static void
begin_life (struct living *v, bool trusted)
{
  struct damage_life *l = v->l;
  struct replica_disk_params d[DAMAGE_DISKS];
  struct replica_params p = { .fs = simdisk_fs (v->disk), .dir = DAMAGE_DIR,
                              .disks = d, .ndisks = l->ndisks, .log = say,
                              .journal_size = DAMAGE_JOURNAL_SIZE,
                              .buffer = BUFFER, .baseline_trusted = trusted };
  struct mcerror err = { 0 };

  for (unsigned i = 0; i < l->ndisks; i++)
    d[i] = (struct replica_disk_params) { .name = l->name[i],
                                          .path = l->path[i] };
  MUST (replica_open (&p, &v->r, &err) == 0, "cannot begin: %s", err.text);
  v->r->by_hand = true;
  if (trusted)
    keep (l, l->known[0], v->now);
}

static void
checkpoint_is (struct damage_life *l, uint64_t id)
{
  l->has_checkpoint = true;
  l->newest = id;
  keep (l, l->want, l->known[id]);
}

/* Some checkpoints; those before the last drain are written out. */
static void
checkpoints (struct living *v)
{
  unsigned n = 2 + host_below (6), drained = host_below (n);
  uint64_t id = 0;

  if (v->l->ending == END_LONG)
    for (unsigned i = 0; i < 230 + host_below (80); i++)
      id = commit (v);
  for (unsigned i = 0; i < n; i++) {
    switch (host_below (4)) {
    case 0: write_some (v, 110 + host_below (40), 3000); break;
    case 1: write_some (v, 2, 200000); break;
    default: write_some (v, 1 + host_below (12), 30000); break;
    }
    id = commit (v);
    if (i < drained && host_below (2))
      drain (v);
    if (i + 1 == n / 2 && v->l->older == NULL)
      v->l->older = simdisk_crash (v->disk, SIMDISK_KILL, host_bits);
  }
  checkpoint_is (v->l, id);
}

/* A power loss in the middle of what ACT does; NULL: it was done before that. */
static struct simdisk *
interrupted (struct living *v, void (*act) (struct living *))
{
  struct moment m = { .disk = v->disk, .how = host_below (SIMDISK_GARBLE),
                      .left = 1 + host_below (5) };

  simdisk_hook (v->disk, on_op, &m);
  act (v);
  simdisk_hook (v->disk, NULL, NULL);
  return m.kept;
}

static void
act_commit (struct living *v)
{
  uint64_t id = commit (v);

  v->l->torn = true;
  keep (v->l, v->l->torn_want, v->l->known[id]);
}

static void
promoted (struct living *v)
{
  struct damage_life *l = v->l;
  struct replica_export x = { .view = REPLICA_PROMOTED };
  struct promote_answer a;
  struct mcerror err = { 0 };

  MUST (replica_promote (v->r, NULL, false, &a, &err) == 0, "promote: %s", err.text);
  l->promoted = true;
  keep (l, v->now, l->known[l->newest]);
  x.fence = v->r->fence;
  for (unsigned i = host_below (3); i > 0; i--) {
    write_some (v, 1 + host_below (6), 20000);
    for (x.disk = 0; x.disk < l->ndisks; x.disk++)
      MUST (replica_flush (v->r, &x) == 0, "flush: %m");
  }
  if (l->ending == END_DRAINED) {
    for (unsigned i = 0; i < 100 && !v->r->direct; i++)
      (void) writeout_step (v->r);
    MUST (v->r->direct, "the backlog does not drain");
    write_some (v, 3, 20000);
    for (x.disk = 0; x.disk < l->ndisks; x.disk++)
      MUST (replica_flush (v->r, &x) == 0, "flush: %m");
  }
  l->drained = writeout_is_empty (v->r->wo);
  keep (l, l->want, v->now);
}

/* A thread of the journal does this five times a second. */
static void
sync_acked (struct living *v)
{
  struct io_file *file;

  MUST (io_open (simdisk_fs (v->disk), DAMAGE_ACKED, 2, 0, &file) == 0 &&
        io_fdatasync (file) == 0, "acked: %m");
  io_close (file);
}

static void
live (struct living *v)
{
  struct damage_life *l = v->l;
  bool copied = l->ending == END_COPIED || l->ending == END_COPYING ||
    host_below (3) == 0;

  begin_life (v, !copied);
  if (copied) {
    write_some (v, 30, 30000);
    l->older = simdisk_crash (v->disk, SIMDISK_KILL, host_bits);
    if (l->ending == END_COPYING)
      goto kill;
    checkpoint_is (l, commit (v));
    simdisk_free (l->older);
    l->older = NULL;
  }
  if (l->ending != END_COPIED)
    checkpoints (v);
  else
    l->older = simdisk_crash (v->disk, SIMDISK_KILL, host_bits);
  sync_acked (v);
  switch (l->ending) {
  case END_TORN:
    write_some (v, 1 + host_below (30), 10000);
    l->disk = interrupted (v, act_commit);
    if (l->disk == NULL) {
      l->torn = false;
      checkpoint_is (l, v->r->checkpoint.id);
    }
    break;
  case END_WRITING:
    l->disk = interrupted (v, drain);
    break;
  case END_PROMOTED:
  case END_DRAINED:
    promoted (v);
    break;
  case END_COPIED:
    if (host_below (2))
      break;
    /* fall through */
  case END_STOPPED:
    if (l->ending == END_STOPPED)
      write_some (v, 1 + host_below (130), 10000);
    keep (l, l->inlet, v->now);
    replica_close (v->r);
    v->r = NULL;
    break;
  default:
    write_some (v, host_below (10), 10000);
  }
 kill:
  if (l->disk == NULL)
    l->disk = simdisk_crash (v->disk, SIMDISK_KILL, host_bits);
}

struct damage_life *
damage_life_new (uint64_t seed, uint64_t sizes, enum damage_ending ending)
{
  struct damage_life *l = calloc (1, sizeof *l);
  struct living v = { .l = l, .disk = simdisk_new () };

  l->seed = seed;
  l->ending = ending;
  host_seed (sizes);
  l->ndisks = 1 + host_below (DAMAGE_DISKS);
  for (unsigned d = 0; d < l->ndisks; d++) {
    static const char *const name[] = { "vda", "vdb", "vdc" };

    snprintf (l->name[d], sizeof l->name[d], "%s", name[d]);
    snprintf (l->path[d], sizeof l->path[d], "/sim/%s.img", name[d]);
    /* Two of the same size, so that they can be swapped. */
    l->size[d] = d == 1 ? l->size[0] :
      65536 + host_below (400000) / 512 * 512 + (host_below (4) == 0);
    v.now[d] = calloc (1, l->size[d]);
  }
  host_seed (seed);
  make_images (&v);
  live (&v);
  replica_close (v.r);
  simdisk_free (v.disk);
  for (unsigned d = 0; d < l->ndisks; d++)
    free (v.now[d]);
  find_places (l);
  return l;
}

void
damage_life_free (struct damage_life *l)
{
  for (unsigned d = 0; d < l->ndisks; d++) {
    free (l->want[d]);
    free (l->torn_want[d]);
    free (l->inlet[d]);
    for (unsigned c = 0; c < DAMAGE_KNOWN; c++)
      free (l->known[c][d]);
  }
  simdisk_free (l->disk);
  simdisk_free (l->older);
  free (l);
}
