/* SPDX-License-Identifier: BSD-3-Clause */
/* Divergence: where the promoted disk may differ from that of the primary that was failed
 * over from.  That is what the promote discarded and what was written since, in regions of 64 KiB.
 *
 * JOURNAL/divergence has a header and a byte for each region, the disks one after the other.  A region is
 * marked there before the first write to it is acknowledged, by a plain write, which outlives the server;
 * a boot is outlived only if the server stopped cleanly before.  When anything is missing the
 * answer is "not known", and then only a full copy will do.
 *
 * A clean stop, and recovery, note when the images were last written to.  Is that different at the next
 * start then somebody wrote to them past us, and nothing is known.  (Only files tell.)
 *
 * What was discarded is marked by the house thread, behind the promote's reply.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "replica/internal.h"

#define MAGIC "mcbufDIV"
#define HEADER 4096u

enum { REGION_SAME, REGION_MARKING, REGION_DIFFERS };

/* Little-endian. */
struct header {
  char magic[8];
  uint8_t id[HOST_ID_LEN];
  uint8_t boot_id[HOST_ID_LEN];
  le64 generation;
  le32 known, clean;
  le32 layout;                  /* crc of the sizes of the disks, 64 bits each */
  le32 mtimes;                  /* if clean: the images' as get_mtimes has them; 0: not noted */
  le32 crc;                     /* of what is before */
};

struct divergence {
  struct io_file *file;
  uint64_t generation;
  uint32_t layout;
  struct divergence *older;     /* of an earlier promote; somebody may still look at it */
  bool known;                   /* under the replica's lock, as is why */
  char why[160];                /* it is not known */
  unsigned ndisks;
  struct {
    _Atomic uint8_t *region;
    uint64_t n, at;             /* regions, and where they are in the file */
  } disk[JOURNAL_MAX_DISKS];
};

void
divergence_free (struct divergence *d)
{
  int saved = errno;

  while (d) {
    struct divergence *older = d->older;

    for (unsigned i = 0; i < d->ndisks; i++)
      free ((void *) d->disk[i].region);
    io_close (d->file);
    free (d);
    d = older;
  }
  errno = saved;
}

static struct divergence *
divergence_new (struct replica *r, uint64_t generation)
{
  struct divergence *d = calloc (1, sizeof *d);
  uint64_t at = HEADER;

  if (d == NULL)
    return NULL;
  d->generation = generation;
  for (unsigned i = 0; i < r->ndisks; i++) {
    le64 size = put64 (r->disks[i].size);

    d->layout = crc32c (&size, sizeof size, d->layout);
    d->ndisks = i + 1;
    d->disk[i].n = DIV_UP (r->disks[i].size, (uint64_t) DIVERGENCE_REGION);
    d->disk[i].at = at;
    d->disk[i].region = d->disk[i].n > SIZE_MAX ? NULL : calloc (d->disk[i].n, 1);
    if (d->disk[i].region == NULL) {
      divergence_free (d);
      errno = ENOMEM;
      return NULL;
    }
    at += d->disk[i].n;
  }
  return d;
}

static char *
file_name (const char *dir)
{
  char *path;

  return asprintf (&path, "%s/divergence", dir) == -1 ? NULL : path;
}

/* When the images were last written to, in one number that is not 0.  A disk that the checkpoint does not have is
 * nobody's business, and recovery does not open it.
 */
static uint32_t
get_mtimes (struct replica *r)
{
  uint32_t crc = 0;
  uint64_t without = 0;

  static_assert (JOURNAL_MAX_DISKS <= 64, "a bit for each disk");
  {
    SCOPED_LOCK (&r->lock);
    for (unsigned i = 0; i < r->ndisks; i++)
      if (disk_is_fresh_locked (r, i))
        without |= UINT64_C (1) << i;
  }

  for (unsigned i = 0; i < r->ndisks; i++) {
    struct backing *b = r->disks[i].backing;
    le64 mtime;

    if (b == NULL || without >> i & 1)
      continue;
    mtime = put64 (backing_mtime (b));
    crc = crc32c (&mtime, sizeof mtime, crc);
  }
  return crc | 1;
}

static int
put_header (struct replica *r, struct divergence *d, bool known, bool clean, uint32_t mtimes)
{
  struct header h = { .generation = put64 (d->generation),
                      .known = put32 (known), .clean = put32 (clean),
                      .layout = put32 (d->layout), .mtimes = put32 (mtimes) };

  memcpy (h.magic, MAGIC, sizeof h.magic);
  memcpy (h.id, journal_get_config (r->journal)->id, sizeof h.id);
  if (host_boot_id (h.boot_id) == -1)
    return -1;
  h.crc = put32 (crc32c (&h, offsetof (struct header, crc), 0));
  return io_pwrite (d->file, &h, sizeof h, 0);
}

static int
write_header (struct replica *r, struct divergence *d, bool known, bool clean)
{
  return put_header (r, d, known, clean, 0);
}

static void
not_known_locked (struct divergence *d, const char *why)
{
  d->known = false;
  snprintf (d->why, sizeof d->why, "%s", why);
}

/* --- marking ---------------------------------------------------------------------------- */

static int
mark (struct divergence *d, unsigned disk, uint64_t offset, uint64_t length)
{
  uint64_t last = (offset + length - 1) / DIVERGENCE_REGION;
  uint8_t differs = REGION_DIFFERS;

  for (uint64_t i = offset / DIVERGENCE_REGION; i <= last; i++) {
    _Atomic uint8_t *region = &d->disk[disk].region[i];

    if (*region == REGION_DIFFERS)
      continue;
    /* Whoever finds it being marked marks it, too, and waits for nobody. */
    *region = REGION_MARKING;
    if (io_pwrite (d->file, &differs, 1, d->disk[disk].at + i) == -1)
      return -1;
    *region = REGION_DIFFERS;
  }
  return 0;
}

/* Nor may the next server rely on it. */
static void
disown (struct replica *r, struct divergence *d)
{
  if (write_header (r, d, false, false) == -1) {
    CLEANUP_FREE char *path = file_name (r->dir);

    if (path == NULL || io_unlink (r->fs, path) == -1)
      replica_log (r, REPLICA_LOG_ERROR, "%s/divergence: cannot be written or removed: do not use it: %m", r->dir);
  }
}

static bool
is_given_up (struct replica *r, const struct divergence *d)
{
  SCOPED_LOCK (&r->lock);

  return d->why[0] != '\0';
}

/* From now on nobody may rely on it. */
static void
give_up (struct replica *r, struct divergence *d, const char *why)
{
  {
    SCOPED_LOCK (&r->lock);
    if (d->why[0])
      return;
    not_known_locked (d, why);
  }
  disown (r, d);
}

void
divergence_mark (struct replica *r, unsigned disk, uint64_t offset,
                 uint64_t length)
{
  struct divergence *d;

  {
    SCOPED_LOCK (&r->lock);
    d = r->divergence;
  }
  if (d && length > 0 && mark (d, disk, offset, length) == -1)
    give_up (r, d, "the file divergence could not be written");
}

void
divergence_refused (struct replica *r)
{
  struct divergence *d;

  {
    SCOPED_LOCK (&r->lock);
    d = r->state == JOURNAL_PROMOTED ? r->divergence : NULL;
  }
  if (d)
    give_up (r, d, "the old primary had writes under way at the promote, or went on writing");
}

static int
mark_map (struct divergence *d, const struct map *map)
{
  CLEANUP_FREE struct map_run *runs = NULL;
  size_t n;

  if (map_sorted (map, &runs, &n) == -1)
    return -1;
  for (size_t i = 0; i < n; i++) {
    uint64_t offset = runs[i].sector * JOURNAL_SECTOR;
    uint64_t end = MIN ((runs[i].sector + runs[i].nsectors) * JOURNAL_SECTOR,
                        d->disk[runs[i].disk].n * DIVERGENCE_REGION);

    if (mark (d, runs[i].disk, offset, end - offset) == -1)
      return -1;
  }
  return 0;
}

void
divergence_finish (struct replica *r, struct divergence *d,
                   struct epoch *discarded)
{
  int result = 0;

  while (discarded) {
    struct epoch *older = discarded->older;

    if (d && result == 0)
      result = mark_map (d, discarded->map);
    epoch_free (discarded);
    discarded = older;
  }
  if (d == NULL)
    return;
  if (result == -1) {
    give_up (r, d, "what was discarded could not be noted");
    return;
  }
  {
    SCOPED_LOCK (&r->lock);
    if (d->why[0])
      return;
    d->known = true;
  }
  if (write_header (r, d, true, false) == -1)
    give_up (r, d, "the file divergence could not be written");
  else if (is_given_up (r, d))
    disown (r, d);              /* meanwhile, and it may have written before us */
}

/* --- beginning and end ------------------------------------------------------------------- */

void
divergence_install_locked (struct replica *r, struct divergence *d, bool whole)
{
  assert_locked (r);
  if (d) {
    d->older = r->divergence;
    r->divergence = d;
    if (r->state != JOURNAL_PROTECTED)
      not_known_locked (d, "the stream of writes was not whole before the promote");
    else if (!whole)
      not_known_locked (d, "what was committed after the checkpoint could not be read");
  }
  else if (r->divergence)       /* that of an earlier promote says nothing of this one */
    not_known_locked (r->divergence, "the file divergence could not be made");
}

struct divergence *
divergence_begin (struct replica *r, uint64_t generation)
{
  CLEANUP_FREE char *path = file_name (r->dir);
  struct divergence *d = divergence_new (r, generation);

  if (path == NULL || d == NULL)
    goto error;
  if (io_open (r->fs, path, O_RDWR | O_CREAT | O_TRUNC, 0600, &d->file) == -1 ||
      io_truncate (d->file, d->disk[d->ndisks - 1].at + d->disk[d->ndisks - 1].n) == -1 ||
      write_header (r, d, false, false) == -1)
    goto error;
  return d;

 error:
  replica_log (r, REPLICA_LOG_ERROR, "%s/divergence: %m: where the old primary's disk differs will not be known",
               r->dir);
  divergence_free (d);
  return NULL;
}

/* Regions as a server before us left them. */
static int
load_regions (struct divergence *d)
{
  for (unsigned i = 0; i < d->ndisks; i++) {
    uint8_t *region = (uint8_t *) d->disk[i].region;

    if (io_pread (d->file, region, d->disk[i].n, d->disk[i].at) == -1)
      return -1;
    for (uint64_t k = 0; k < d->disk[i].n; k++)
      region[k] = region[k] ? REGION_DIFFERS : REGION_SAME;
  }
  return 0;
}

static bool
is_ours (struct replica *r, const struct divergence *d, const struct header *h)
{
  return memcmp (h->magic, MAGIC, sizeof h->magic) == 0 &&
    get32 (h->crc) == crc32c (h, offsetof (struct header, crc), 0) &&
    memcmp (h->id, journal_get_config (r->journal)->id, sizeof h->id) == 0 &&
    get64 (h->generation) == r->generation && get32 (h->known) &&
    get32 (h->layout) == d->layout;
}

/* Open what there is for this generation, with its header; NULL: nothing that is good. */
static struct divergence *
open_ours (struct replica *r, struct header *h)
{
  CLEANUP_FREE char *path = file_name (r->dir);
  struct divergence *d = divergence_new (r, r->generation);
  uint8_t boot_id[HOST_ID_LEN];

  if (path && d && io_open (r->fs, path, O_RDWR, 0, &d->file) == 0 &&
      io_pread (d->file, h, sizeof *h, 0) == 0 && is_ours (r, d, h) &&
      host_boot_id (boot_id) == 0 &&
      (get32 (h->clean) || memcmp (boot_id, h->boot_id, sizeof boot_id) == 0))
    return d;
  divergence_free (d);
  return NULL;
}

struct divergence *
divergence_load (struct replica *r)
{
  struct header h;
  struct divergence *d = open_ours (r, &h);

  if (d == NULL || load_regions (d) == -1)
    goto error;
  if (get32 (h.clean) && get32 (h.mtimes) && get32 (h.mtimes) != get_mtimes (r)) {
    give_up (r, d, "an image was written to past the server, or was replaced");
    return d;
  }
  /* The word "clean" is taken back, durably, before anything more is marked. */
  if (write_header (r, d, true, false) == -1 || io_fdatasync (d->file) == -1)
    goto error;
  d->known = true;
  return d;

 error:
  divergence_free (d);
  return NULL;
}

void
divergence_save (struct replica *r)
{
  struct divergence *d = r->divergence;

  if (d && d->known &&
      (io_fdatasync (d->file) == -1 || put_header (r, d, true, true, get_mtimes (r)) == -1 ||
       io_fdatasync (d->file) == -1))
    replica_log (r, REPLICA_LOG_ERROR, "%s/divergence: %m: after a reboot it will not be known", r->dir);
}

int
divergence_settle (struct replica *r)
{
  struct header h;
  struct divergence *d = open_ours (r, &h);
  int result = 0;

  /* One that is not clean is a dead server's: nothing says what wrote to the images since. */
  if (d && get32 (h.clean) && (put_header (r, d, true, true, get_mtimes (r)) == -1 ||
                               io_fdatasync (d->file) == -1))
    result = -1;
  divergence_free (d);
  return result;
}

/* --- asking ---------------------------------------------------------------------------------- */

bool
divergence_known (struct replica *r, char *why, size_t size)
{
  SCOPED_LOCK (&r->lock);
  struct divergence *d = r->divergence;

  if (r->state != JOURNAL_PROMOTED)
    snprintf (why, size, "the replica is not promoted");
  else if (d && d->known)
    return true;
  else if (d && d->why[0])
    snprintf (why, size, "%s: only a full copy is safe", d->why);
  else if (d)
    snprintf (why, size, "it is being put together: ask again");
  else
    snprintf (why, size, "the server before this one did not leave it whole, or the promote was made without a server that lives: only a full copy is safe");
  return false;
}

uint64_t
divergence_run (struct replica *r, unsigned disk, uint64_t offset, uint64_t end,
                bool *differs)
{
  struct divergence *d;
  uint64_t i = offset / DIVERGENCE_REGION, last;

  {
    SCOPED_LOCK (&r->lock);
    d = r->divergence;
  }
  if (d == NULL) {
    *differs = true;
    return end - offset;
  }
  last = (end - 1) / DIVERGENCE_REGION;
  *differs = d->disk[disk].region[i] != REGION_SAME;
  while (i < last && (d->disk[disk].region[i + 1] != REGION_SAME) == *differs)
    i++;
  return MIN ((i + 1) * DIVERGENCE_REGION, end) - offset;
}
