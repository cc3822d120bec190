/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "fuzz/fuzz.h"
#include "fuzz/world.h"
#include "journal/internal.h"
#include "unit/torture.h"

#define JOURNAL_SIZE (UINT64_C (16) << 20)
#define BUFFER (UINT64_C (8) << 20)

const uint64_t world_size[WORLD_DISKS] = { 70001, 24576 };
const char *const world_name[WORLD_DISKS] = { "vda", "vdb" };
const char *const world_path[WORLD_DISKS] = { "/sim/a.img", "/sim/b.img" };

/* A world in the making. */
struct maker {
  struct world *w;
  struct simdisk *disk;
  struct replica *r;
  uint8_t *now[WORLD_DISKS];
  uint64_t stamp;
  uint64_t ops_left;            /* until the power goes */
  struct simdisk *lost;         /* what is there then */
};

static uint64_t
any (void)
{
  return host_bits ();
}

static void
fill (void *buf, size_t len, uint64_t stamp)
{
  for (size_t i = 0; i < len; i += 8) {
    uint64_t v = stamp + i * UINT64_C (0x100000001b3);

    memcpy ((char *) buf + i, &v, MIN ((size_t) 8, len - i));
  }
}

/* --- files --- */

struct simdisk *
world_copy (struct simdisk *disk)
{
  return simdisk_crash (disk, SIMDISK_KILL, any);
}

static struct io_file *
open_file (struct simdisk *disk, const char *path)
{
  struct io_file *f;

  HOLDS (io_open (simdisk_fs (disk), path, O_RDWR, 0, &f) == 0, "%s: %s", path,
        strerror (errno));
  return f;
}

void
world_read (struct simdisk *disk, const char *path, void *buf, size_t len,
            uint64_t off)
{
  struct io_file *f = open_file (disk, path);
  ssize_t n = io_pread_some (f, buf, len, off);

  if (n < 0)
    n = 0;
  memset ((char *) buf + n, 0, len - n);
  io_close (f);
}

void
world_write (struct simdisk *disk, const char *path, const void *buf,
             size_t len, uint64_t off)
{
  struct io_file *f = open_file (disk, path);

  HOLDS (io_pwrite (f, buf, len, off) == 0, "%s: %s", path, strerror (errno));
  io_close (f);
}

static void
images_take (struct images *v, uint64_t id, uint8_t *const disk[WORLD_DISKS])
{
  v->id = id;
  for (unsigned d = 0; d < WORLD_DISKS; d++) {
    v->disk[d] = malloc (world_size[d]);
    HOLDS (v->disk[d], "out of memory");
    memcpy (v->disk[d], disk[d], world_size[d]);
  }
}

bool
world_images_are (struct simdisk *disk, const struct images *v)
{
  for (unsigned d = 0; d < WORLD_DISKS; d++)
    if (simdisk_size (disk, world_path[d]) != world_size[d] ||
        !simdisk_equals (disk, world_path[d], v->disk[d], world_size[d]))
      return false;
  return true;
}

/* --- a server --- */

struct replica *
world_open (struct simdisk *disk, struct mcerror *err)
{
  struct replica_disk_params d[WORLD_DISKS];
  struct replica_params p = { .fs = simdisk_fs (disk), .dir = WORLD_DIR,
                              .disks = d, .ndisks = WORLD_DISKS,
                              .journal_size = JOURNAL_SIZE, .buffer = BUFFER };
  struct replica *r;

  for (unsigned i = 0; i < WORLD_DISKS; i++)
    d[i] = (struct replica_disk_params) {
      .name = world_name[i], .path = world_path[i], .create = true,
      .size = world_size[i] };
  if (replica_open (&p, &r, err) == -1)
    return NULL;
  r->by_hand = true;
  return r;
}

static void
start (struct maker *m)
{
  struct mcerror err = { 0 };

  m->r = world_open (m->disk, &err);
  HOLDS (m->r, "%s: %s", m->w->name, err.text);
}

static struct replica_export
export (struct maker *m, unsigned disk)
{
  return (struct replica_export) {
    .disk = disk, .fence = m->r->fence,
    .view = m->r->state == JOURNAL_PROMOTED ? REPLICA_PROMOTED : REPLICA_INLET };
}

static void
put (struct maker *m, unsigned disk, uint64_t off, uint32_t len)
{
  struct replica_export x = export (m, disk);

  fill (m->now[disk] + off, len, ++m->stamp * UINT64_C (0x9e3779b97f4a7c15));
  HOLDS (replica_pwrite (m->r, &x, m->now[disk] + off, len, off, 0) == 0,
        "%s: write: %s", m->w->name, strerror (errno));
}

static void
zero (struct maker *m, unsigned disk, uint64_t off, uint32_t len, bool trim)
{
  struct replica_export x = export (m, disk);

  memset (m->now[disk] + off, 0, len);
  HOLDS (replica_zero (m->r, &x, len, off, trim ? REPLICA_MAY_TRIM : 0) == 0,
        "%s: zero: %s", m->w->name, strerror (errno));
}

static void
seal (struct maker *m)
{
  uint64_t sealed;

  HOLDS (replica_seal (m->r, 0, &sealed, NULL) == 0, "%s: seal: %s", m->w->name,
        strerror (errno));
}

static void
commit (struct maker *m, const char *label)
{
  struct commit_request req = { .label = label };
  struct commit_answer a;

  HOLDS (replica_commit (m->r, &req, &a, NULL) == 0, "%s: commit: %s",
        m->w->name, strerror (errno));
  HOLDS (m->w->nknown < WORLD_KNOWN, "too many checkpoints");
  images_take (&m->w->known[m->w->nknown++], a.checkpoint, m->now);
}

static void
write_out (struct maker *m)
{
  HOLDS (writeout_step (m->r) == 0, "%s: write-out: %s", m->w->name, m->r->wo_error);
}

/* Back to checkpoint NUMBER of those that there were. */
static void
promote (struct maker *m, unsigned number)
{
  struct promote_answer a;
  char to[32];

  snprintf (to, sizeof to, "%" PRIu64, m->w->known[number].id);
  HOLDS (replica_promote (m->r, to, false, &a, NULL) == 0, "%s: promote: %s",
        m->w->name, strerror (errno));
  for (unsigned d = 0; d < WORLD_DISKS; d++)
    memcpy (m->now[d], m->w->known[number].disk[d], world_size[d]);
  m->w->promoted = true;
}

/* The first copy, and what most worlds go on from. */
static void
first_copy (struct maker *m)
{
  start (m);
  put (m, 0, 0, 40000);
  zero (m, 0, 40000, 30001, true);
  put (m, 1, 0, 24576);
  commit (m, "first copy");
}

static void
epochs (struct maker *m)
{
  put (m, 0, 4096, 4096);
  put (m, 1, 512, 1024);
  seal (m);
  put (m, 0, 100, 17);
  zero (m, 1, 8192, 8192, false);
  commit (m, "gr\303\274n");
  put (m, 0, 8192, 40000);
  commit (m, NULL);
  zero (m, 0, 0, 30000, true);
  put (m, 0, 70000 - 511, 512);
  put (m, 1, 4096, 16384);
  commit (m, "12:00");
}

static void
older_is_now (struct maker *m)
{
  m->w->older = world_copy (m->disk);
}

/* SIGKILL, and what is there then has reached the disk. */
static void
killed (struct maker *m)
{
  static const char *const files[] = { WORLD_JOURNAL, WORLD_ACKED,
                                       "/sim/a.img", "/sim/b.img" };

  m->w->disk = m->lost ? m->lost : world_copy (m->disk);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    struct io_file *f = open_file (m->w->disk, files[i]);

    HOLDS (io_fdatasync (f) == 0, "%s", strerror (errno));
    io_close (f);
  }
  replica_close (m->r);
}

static void
stopped (struct maker *m)
{
  replica_close (m->r);
  m->w->disk = world_copy (m->disk);
}

/* --- the worlds --- */

static void
make_backlog (struct maker *m)
{
  first_copy (m);
  epochs (m);
  older_is_now (m);
  put (m, 1, 0, 5000);
  commit (m, "last");
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  put (m, 0, 0, 9000);
  seal (m);
  put (m, 0, 5000, 9000);
  killed (m);
}

static void
on_op (void *opaque, enum simdisk_op op)
{
  struct maker *m = opaque;

  (void) op;
  if (m->ops_left > 0 && --m->ops_left == 0)
    m->lost = world_copy (m->disk);
}

/* Killed in the middle of a write-out. */
static void
make_half (struct maker *m)
{
  first_copy (m);
  epochs (m);
  older_is_now (m);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  simdisk_hook (m->disk, on_op, m);
  m->ops_left = 5;              /* TARGET, its sync, some of the images */
  write_out (m);
  simdisk_hook (m->disk, NULL, NULL);
  HOLDS (m->lost, "write-out took fewer operations");
  killed (m);
}

static void
make_written (struct maker *m)
{
  first_copy (m);
  epochs (m);
  older_is_now (m);
  write_out (m);
  put (m, 1, 0, 600);
  commit (m, NULL);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  killed (m);
}

/* A clean stop that saves speculation. */
static void
make_clean (struct maker *m)
{
  first_copy (m);
  epochs (m);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  older_is_now (m);
  put (m, 0, 0, 9000);
  seal (m);
  zero (m, 0, 5000, 9000, false);
  for (unsigned i = 0; i < 120; i++)
    put (m, 1, 100 * i, 50);
  stopped (m);
}

/* A table of several chunks, and so of several records. */
static void
make_parts (struct maker *m)
{
  first_copy (m);
  m->r->journal->part_runs = 1;
  older_is_now (m);
  put (m, 0, 0, 20000);
  for (unsigned i = 0; i < 33000; i++)
    zero (m, 0, 512 * (60 + i % 64), 512, false);
  put (m, 1, 0, 20000);
  commit (m, NULL);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  killed (m);
}

/* A chain of several record chunks, whose first are used again. */
static void
make_long (struct maker *m)
{
  first_copy (m);
  for (unsigned i = 0; i < 290; i++) {
    put (m, i % 2, i % 37 * 512, 700);
    commit (m, NULL);
    if (i % 23 == 0)
      write_out (m);
    if (i == 270)
      older_is_now (m);
  }
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  killed (m);
}

/* Promoted to an older checkpoint; its backlog is not drained, and writes came since. */
static void
make_promoted (struct maker *m)
{
  first_copy (m);
  epochs (m);
  older_is_now (m);
  put (m, 1, 0, 600);
  promote (m, 2);
  put (m, 0, 300, 20000);
  zero (m, 1, 0, 4096, true);
  for (unsigned d = 0; d < WORLD_DISKS; d++) {
    struct replica_export x = export (m, d);

    HOLDS (replica_flush (m->r, &x) == 0, "flush: %s", strerror (errno));
  }
  images_take (&m->w->final, m->w->known[2].id, m->now);
  killed (m);
}

static void
make_recovered (struct maker *m)
{
  struct recover_params p = { .fs = NULL, .dir = WORLD_DIR };
  struct recover_result result;
  struct mcerror err = { 0 };

  first_copy (m);
  epochs (m);
  older_is_now (m);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  put (m, 1, 0, 600);
  killed (m);
  p.fs = simdisk_fs (m->w->disk);
  HOLDS (recover_run (&p, &result, &err) == 0, "%s", err.text);
  m->w->promoted = true;
}

static void
make_resyncing (struct maker *m)
{
  first_copy (m);
  epochs (m);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  older_is_now (m);
  HOLDS (replica_resync (m->r, false, NULL) == 0, "resync: %s", strerror (errno));
  put (m, 0, 0, 50000);
  put (m, 1, 0, 20000);
  stopped (m);
}

static void
make_syncing (struct maker *m)
{
  start (m);
  put (m, 0, 0, 40000);
  older_is_now (m);
  put (m, 1, 0, 24576);
  seal (m);
  put (m, 0, 0, 600);
  m->w->code = MCEXIT_NO_CHECKPOINT;
  stopped (m);
}

static void
fail_sync (struct maker *m)
{
  struct replica_export x = export (m, 0);
  uint8_t block[512] = { 1 };

  simdisk_fail (m->disk, 1, EIO, true);
  HOLDS (replica_commit (m->r, &(struct commit_request) { 0 },
                        &(struct commit_answer) { 0 }, NULL) == -1,
        "a commit on a disk that fails");
  simdisk_fail (m->disk, 0, 0, false);
  HOLDS (replica_pwrite (m->r, &x, block, sizeof block, 0, 0) == -1,
        "a write to a journal that has failed");
}

/* The journal failed; the mark beside it says so. */
static void
make_failed (struct maker *m)
{
  first_copy (m);
  epochs (m);
  older_is_now (m);
  images_take (&m->w->final, m->w->known[m->w->nknown - 1].id, m->now);
  put (m, 0, 0, 600);
  fail_sync (m);
  killed (m);
}

static const struct {
  const char *name;
  void (*make) (struct maker *m);
} makers[WORLDS] = {
  { "backlog", make_backlog }, { "half", make_half },
  { "written", make_written }, { "clean", make_clean },
  { "parts", make_parts }, { "long", make_long },
  { "promoted", make_promoted }, { "recovered", make_recovered },
  { "resyncing", make_resyncing }, { "syncing", make_syncing },
  { "failed", make_failed },
};

/* --- what is where --- */

static enum place
classify (const uint8_t *block, uint32_t number)
{
  if (memcmp (block, FORMAT_ANCHOR_MAGIC, FORMAT_MAGIC_LEN) == 0)
    return PLACE_ANCHOR;
  if (memcmp (block, FORMAT_RECORD_MAGIC, FORMAT_MAGIC_LEN) == 0)
    return PLACE_RECORD;
  return number < JOURNAL_CHUNK_BLOCKS ? PLACE_SUPER : PLACE_OTHER;
}

static void
survey (struct world *w)
{
  static const uint8_t zeroes[JOURNAL_BLOCK];
  uint32_t total = JOURNAL_SIZE / JOURNAL_BLOCK;
  uint8_t block[JOURNAL_BLOCK];

  for (unsigned k = 0; k < PLACES; k++) {
    w->block[k] = calloc (total, sizeof *w->block[k]);
    HOLDS (w->block[k], "out of memory");
  }
  for (uint32_t b = 0; b < total; b++) {
    enum place k;

    world_read (w->disk, WORLD_JOURNAL, block, sizeof block,
                (uint64_t) b * JOURNAL_BLOCK);
    if (memcmp (block, zeroes, sizeof block) == 0)
      continue;
    k = classify (block, b);
    w->block[k][w->nblocks[k]++] = b;
  }
  for (unsigned k = 0; k < PLACES; k++)
    HOLDS (w->nblocks[k] > 0 || k == PLACE_OTHER, "%s: no block of sort %u",
          w->name, k);
}

const struct world *
world_get (unsigned i)
{
  static struct world worlds[WORLDS];
  struct world *w = &worlds[i];
  struct maker m = { .w = w };

  if (w->disk)
    return w;
  host_seed (i);
  host_reset (1000 + i, true);
  host_boot (0);
  w->name = makers[i].name;
  m.disk = simdisk_new ();
  for (unsigned d = 0; d < WORLD_DISKS; d++) {
    m.now[d] = calloc (1, world_size[d]);
    HOLDS (m.now[d], "out of memory");
  }
  makers[i].make (&m);
  for (unsigned d = 0; d < WORLD_DISKS; d++)
    free (m.now[d]);
  simdisk_free (m.disk);
  survey (w);
  return w;
}
