/* SPDX-License-Identifier: BSD-3-Clause */
/* Chunk 0: two superblocks and two anchors.
 *
 * Both copies of either are written with the same content, one after the
 * other with a sync between them.  So whichever is lost to a torn write, or later
 * to a bad sector, the other one is the last that anybody was told of.  The one that
 * was found bad is written first: the good one is touched only when it is no longer alone.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

static const uint32_t super_block[2] = { FORMAT_SUPER_A, FORMAT_SUPER_B };
static const uint32_t anchor_block[2] = { FORMAT_ANCHOR_A, FORMAT_ANCHOR_B };

#define SUPER_MAX                                                       \
  (JOURNAL_BLOCK + JOURNAL_MAX_DISKS * sizeof (struct format_disk))

int
config_copy (struct journal_config *to, const struct journal_config *from)
{
  *to = *from;
  to->disks = calloc (MAX (from->ndisks, 1u), sizeof *to->disks);
  if (to->disks == NULL)
    return -1;
  memcpy (to->disks, from->disks, from->ndisks * sizeof *to->disks);
  return 0;
}

void
config_free (struct journal_config *config)
{
  free (config->disks);
  config->disks = NULL;
  config->ndisks = 0;
}

static uint32_t
super_crc (struct format_super *super, size_t len)
{
  le32 kept = super->crc;
  uint32_t crc;

  super->crc = put32 (0);
  crc = crc32c (super, len, 0);
  super->crc = kept;
  return crc;
}

int
super_write (struct journal *j, const struct journal_config *config,
             uint64_t seq)
{
  size_t len = sizeof (struct format_super) +
               config->ndisks * sizeof (struct format_disk);
  CLEANUP_FREE struct format_super *super = aligned_blocks (len);
  struct format_disk *disks;
  uint32_t incompat = 0;

  if (super == NULL)
    return -1;
  disks = (struct format_disk *) (super + 1);
  memset (super, 0, ROUND_UP (len, JOURNAL_BLOCK));
  memcpy (super->magic, FORMAT_SUPER_MAGIC, FORMAT_MAGIC_LEN);
  super->version = put32 (FORMAT_VERSION);
  super->compat = put32 (FORMAT_COMPAT | j->super_compat);
  super->length = put32 (len);
  super->ndisks = put32 (config->ndisks);
  memcpy (super->id, config->id, HOST_ID_LEN);
  super->seq = put64 (seq);
  super->size = put64 (config->size);
  super->chunk_size = put32 (JOURNAL_CHUNK);
  super->block_size = put32 (JOURNAL_BLOCK);
  super->disk_size = put32 (sizeof (struct format_disk));
  for (unsigned i = 0; i < config->ndisks; i++) {
    memcpy (disks[i].name, config->disks[i].name, sizeof disks[i].name);
    memcpy (disks[i].path, config->disks[i].path, sizeof disks[i].path);
    disks[i].size = put64 (config->disks[i].size);
    disks[i].joined = put64 (config->disks[i].joined);
    if (config->disks[i].joined)
      incompat |= FORMAT_JOINED;
  }
  super->incompat = put32 (incompat);
  super->crc = put32 (super_crc (super, len));
  for (unsigned i = 0; i < 2; i++) {
    unsigned copy = i ^ j->super_bad[1];

    if (file_write (j, super, ROUND_UP (len, JOURNAL_BLOCK),
                    block_offset (super_block[copy])) == -1 ||
        file_sync (j) == -1)
      return -1;
  }
  j->super_bad[0] = j->super_bad[1] = false;
  return 0;
}

enum super_verdict { SUPER_GOOD, SUPER_NONE, SUPER_BAD, SUPER_NEWER };

static enum super_verdict
super_judge (struct format_super *super)
{
  uint32_t len = get32 (super->length);

  if (memcmp (super->magic, FORMAT_SUPER_MAGIC, FORMAT_MAGIC_LEN) != 0)
    return SUPER_NONE;
  if (len < sizeof *super || len > SUPER_MAX ||
      super_crc (super, len) != get32 (super->crc))
    return SUPER_BAD;
  if (get32 (super->version) > FORMAT_VERSION ||
      (get32 (super->incompat) & ~FORMAT_INCOMPAT) != 0)
    return SUPER_NEWER;
  if (get32 (super->chunk_size) != JOURNAL_CHUNK ||
      get32 (super->block_size) != JOURNAL_BLOCK ||
      get32 (super->disk_size) != sizeof (struct format_disk) ||
      get32 (super->ndisks) > JOURNAL_MAX_DISKS ||
      len != sizeof *super +
      get32 (super->ndisks) * sizeof (struct format_disk) ||
      get64 (super->size) < JOURNAL_MIN_SIZE ||
      get64 (super->size) > JOURNAL_MAX_SIZE)
    return SUPER_BAD;
  return SUPER_GOOD;
}

static int
super_decode (struct journal *j, const struct format_super *super)
{
  const struct format_disk *disks = (const struct format_disk *) (super + 1);
  struct journal_config config = { .size = get64 (super->size),
                                   .ndisks = get32 (super->ndisks) };

  memcpy (config.id, super->id, HOST_ID_LEN);
  config.disks = calloc (MAX (config.ndisks, 1u), sizeof *config.disks);
  if (config.disks == NULL)
    return -1;
  for (unsigned i = 0; i < config.ndisks; i++) {
    memcpy (config.disks[i].name, disks[i].name, sizeof disks[i].name);
    memcpy (config.disks[i].path, disks[i].path, sizeof disks[i].path);
    config.disks[i].name[JOURNAL_NAME_MAX] = '\0';
    config.disks[i].path[JOURNAL_PATH_MAX] = '\0';
    config.disks[i].size = get64 (disks[i].size);
    config.disks[i].joined = get64 (disks[i].joined);
  }
  j->config = config;
  j->super_seq = get64 (super->seq);
  j->super_compat = get32 (super->compat);
  return 0;
}

/* Neither superblock has even the magic.  Is this a journal all the same? */
static bool
was_ours (struct journal *j)
{
  CLEANUP_FREE struct format_anchor *a = aligned_blocks (sizeof *a);
  struct format_acked acked;

  if (acked_read (j, &acked) == 1)
    return true;
  for (unsigned i = 0; a && i < 2; i++)
    if (file_read (j, a, sizeof *a, block_offset (anchor_block[i])) == 0 &&
        memcmp (a->magic, FORMAT_ANCHOR_MAGIC, FORMAT_MAGIC_LEN) == 0)
      return true;
  return false;
}

static int
no_super (struct journal *j, bool none, struct mcerror *err)
{
  struct journal_damage d;

  if (none && !was_ours (j)) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s/journal is not a journal of mcbuf", j->dir);
  }
  if (j->file_size <= block_offset (FORMAT_SUPER_B))
    damage_set (&d, "journal", j->file_size, 0, "the file ends here");
  else
    damage_set (&d, "journal", 0, 0,
                "neither superblock verifies, nor the copy at offset %llu",
                (unsigned long long) block_offset (FORMAT_SUPER_B));
  return damage_fatal (j, &d, err);
}

int
super_read (struct journal *j, struct mcerror *err)
{
  const size_t max = ROUND_UP (SUPER_MAX, JOURNAL_BLOCK);
  CLEANUP_FREE uint8_t *mem = aligned_blocks (2 * max);
  struct format_super *super[2], *best = NULL;
  enum super_verdict verdict[2];
  struct io_stat st;

  if (mem == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open the journal %s: %m",
                        j->dir);
  if (io_stat (j->file, &st) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot look at %s/journal: %m",
                        j->dir);
  j->file_size = st.size;
  memset (mem, 0, 2 * max);
  for (unsigned i = 0; i < 2; i++) {
    super[i] = (struct format_super *) (mem + i * max);
    if (io_pread_some (j->file, super[i], max,
                       block_offset (super_block[i])) == -1) {
      /* The other copy may be readable. */
      memset (super[i], 0, max);
    }
    verdict[i] = super_judge (super[i]);
    if (verdict[i] == SUPER_NEWER) {
      errno = ENOTSUP;
      return mcerror_set (err, MCEXIT_USAGE,
                          "the journal %s has format version %u (features %#x), "
                          "this mcbuf reads version %u (features %#x): use the "
                          "mcbuf that made it",
                          j->dir, get32 (super[i]->version),
                          get32 (super[i]->incompat), FORMAT_VERSION,
                          FORMAT_INCOMPAT);
    }
    if (verdict[i] == SUPER_GOOD &&
        (best == NULL || get64 (super[i]->seq) > get64 (best->seq)))
      best = super[i];
  }
  if (best == NULL)
    return no_super (j, verdict[0] == SUPER_NONE && verdict[1] == SUPER_NONE,
                     err);
  /* A superblock that was not written any more when the power went is as good as bad. */
  for (unsigned i = 0; i < 2; i++)
    j->super_bad[i] = verdict[i] != SUPER_GOOD ||
                      get64 (super[i]->seq) != get64 (best->seq);
  j->heal = j->super_bad[0] || j->super_bad[1] ||
            j->file_size < get64 (best->size);
  if (super_decode (j, best) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open the journal %s: %m",
                        j->dir);
  return 0;
}

int
journal_set_config (struct journal *j, const struct journal_config *config,
                    struct mcerror *err)
{
  struct journal_config copy;

  if (config->size != j->config.size || config->ndisks > JOURNAL_MAX_DISKS ||
      memcmp (config->id, j->config.id, HOST_ID_LEN) != 0) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "neither size nor identity of the journal %s can be "
                        "changed", j->dir);
  }
  if (config_copy (&copy, config) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot change the journal %s: %m",
                        j->dir);
  if (super_write (j, config, j->super_seq + 1) == -1) {
    config_free (&copy);
    return mcerror_set (err, MCEXIT_USAGE,
                        "cannot write the superblock of %s/journal: %m",
                        j->dir);
  }
  j->super_seq++;
  config_free (&j->config);
  j->config = copy;
  return 0;
}

static uint32_t
anchor_crc (struct format_anchor *a)
{
  le32 kept = a->crc;
  uint32_t crc;

  a->crc = put32 (0);
  crc = crc32c (a, sizeof *a, 0);
  a->crc = kept;
  return crc;
}

/* Point both anchors at C.  Durable; a crash half way leaves the old or the
 * new one, and both lead to the newest record.
 */
int
anchor_write (struct journal *j, const struct chain_chunk *c, uint64_t seq)
{
  CLEANUP_FREE struct format_anchor *a = aligned_blocks (sizeof *a);

  if (a == NULL)
    return -1;
  memset (a, 0, sizeof *a);
  memcpy (a->magic, FORMAT_ANCHOR_MAGIC, FORMAT_MAGIC_LEN);
  a->chunk = put32 (c->chunk);
  memcpy (a->id, j->config.id, HOST_ID_LEN);
  a->seq = put64 (seq);
  a->salt = put64 (c->salt);
  a->first = put64 (c->first);
  a->ncommits = put64 (c->ncommits);
  a->prev_crc = put32 (c->prev_crc);
  a->crc = put32 (anchor_crc (a));
  for (unsigned i = 0; i < 2; i++) {
    unsigned copy = i ^ j->anchor_bad[1];

    if (file_write (j, a, sizeof *a, block_offset (anchor_block[copy])) == -1 ||
        file_sync (j) == -1)
      return -1;
  }
  j->anchor_bad[0] = j->anchor_bad[1] = false;
  return 0;
}

int
anchor_read (struct journal *j, struct chain_chunk *c, struct mcerror *err)
{
  CLEANUP_FREE struct format_anchor *a = aligned_blocks (2 * sizeof *a);
  struct format_anchor *best = NULL;
  struct journal_damage d;
  unsigned good = 0;

  if (a == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot open the journal %s: %m",
                        j->dir);
  memset (a, 0, 2 * sizeof *a);
  for (unsigned i = 0; i < 2; i++) {
    j->anchor_bad[i] = true;
    if (file_read (j, &a[i], sizeof *a, block_offset (anchor_block[i])) == -1)
      continue;
    if (memcmp (a[i].magic, FORMAT_ANCHOR_MAGIC, FORMAT_MAGIC_LEN) != 0 ||
        anchor_crc (&a[i]) != get32 (a[i].crc) ||
        memcmp (a[i].id, j->config.id, HOST_ID_LEN) != 0 ||
        get32 (a[i].chunk) == 0 || get32 (a[i].chunk) >= j->nchunks)
      continue;
    good++;
    j->anchor_bad[i] = false;
    if (best == NULL || get64 (a[i].seq) > get64 (best->seq))
      best = &a[i];
  }
  if (best == NULL) {
    damage_set (&d, "journal", block_offset (FORMAT_ANCHOR_A), 0,
                "neither anchor verifies, so the records cannot be found");
    return damage_fatal (j, &d, err);
  }
  for (unsigned i = 0; i < 2; i++)
    j->anchor_bad[i] |= get64 (a[i].seq) != get64 (best->seq);
  c->chunk = get32 (best->chunk);
  c->salt = get64 (best->salt);
  c->first = get64 (best->first);
  c->ncommits = get64 (best->ncommits);
  c->prev_crc = get32 (best->prev_crc);
  j->log.anchor_seq = get64 (best->seq);
  j->log.anchor_differs = good < 2 || memcmp (&a[0], &a[1], sizeof *a) != 0;
  return 0;
}
