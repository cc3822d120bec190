/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>

#include "common/bytes.h"
#include "common/crc.h"
#include "fuzz/damage.h"
#include "fuzz/fuzz.h"
#include "journal/internal.h"
#include "unit/format-fields.h"

#define SUPER_MAX                                                       \
  (JOURNAL_BLOCK + JOURNAL_MAX_DISKS * sizeof (struct format_disk))

struct command {
  uint8_t op, place;
  uint16_t index;
  uint64_t value;
};

/* --- places --- */

static uint32_t
block_of (const struct damage *d, uint8_t place, uint16_t index)
{
  const struct world *w = d->w;

  if (place % 8 < PLACES && w->nblocks[place % 8] > 0)
    return w->block[place % 8][index % w->nblocks[place % 8]];
  return index % (simdisk_size (w->disk, WORLD_JOURNAL) / JOURNAL_BLOCK);
}

static void
get_block (struct damage *d, uint32_t b, void *block)
{
  world_read (d->disk, WORLD_JOURNAL, block, JOURNAL_BLOCK, block_offset (b));
}

static void
put_block (struct damage *d, uint32_t b, const void *block)
{
  /* What was cut off stays off. */
  if (simdisk_size (d->disk, WORLD_JOURNAL) < block_offset (b + 1))
    return;
  world_write (d->disk, WORLD_JOURNAL, block, JOURNAL_BLOCK, block_offset (b));
  d->journal = true;
}

static const struct format_fields *
fields_named (const char *name)
{
  const struct format_fields *f = format_fields;

  while (f->name && strcmp (f->name, name) != 0)
    f++;
  HOLDS (f->name, "no structure of the format is called %s", name);
  return f;
}

static const struct format_fields *
fields_of (const uint8_t *block)
{
  if (memcmp (block, FORMAT_RECORD_MAGIC, FORMAT_MAGIC_LEN) == 0)
    return fields_named ("record");
  if (memcmp (block, FORMAT_ANCHOR_MAGIC, FORMAT_MAGIC_LEN) == 0)
    return fields_named ("anchor");
  if (memcmp (block, FORMAT_SUPER_MAGIC, FORMAT_MAGIC_LEN) == 0)
    return fields_named ("super");
  return fields_named ("desc");
}

/* Change a field of the structure at P: bits 0-7 of VALUE say which, 8-11 how, the rest to what. */
static const struct format_field *
set_field (uint8_t *p, const struct format_fields *f, uint64_t value)
{
  const struct format_field *field = &f->field[value % 256 % f->n];
  unsigned size = MIN (field->size, 8u);
  int64_t with = (int64_t) value >> 12;
  uint64_t v = 0;

  memcpy (&v, p + field->offset, size);
  v = le64toh (v);
  switch (value >> 8 & 15) {
  case 0: case 1: case 2: v += with; break;
  case 3: v = UINT64_C (1) << (with & 63); break;
  case 4: v = ~(uint64_t) with; break;
  case 5: v ^= with; break;
  default: v = with;
  }
  v = htole64 (v);
  memcpy (p + field->offset, &v, size);
  return field;
}

static bool
is_crc (const struct format_field *field)
{
  return strstr (field->name, "crc") != NULL;
}

/* --- checksums --- */

static void
seal_super (struct damage *d, uint32_t b)
{
  static uint8_t all[SUPER_MAX];
  struct format_super *super = (struct format_super *) all;
  uint32_t len;

  world_read (d->disk, WORLD_JOURNAL, all, sizeof all, block_offset (b));
  len = get32 (super->length);
  if (len < sizeof *super || len > sizeof all)
    return;
  super->crc = put32 (0);
  super->crc = put32 (crc32c (all, len, 0));
  put_block (d, b, all);
}

static void
seal_block (struct damage *d, uint32_t b)
{
  struct format_record rec;
  struct format_anchor anchor;

  get_block (d, b, &rec);
  if (memcmp (rec.magic, FORMAT_SUPER_MAGIC, FORMAT_MAGIC_LEN) == 0)
    seal_super (d, b);
  else if (memcmp (rec.magic, FORMAT_RECORD_MAGIC, FORMAT_MAGIC_LEN) == 0) {
    record_seal (&rec);
    put_block (d, b, &rec);
  }
  else if (memcmp (rec.magic, FORMAT_ANCHOR_MAGIC, FORMAT_MAGIC_LEN) == 0) {
    memcpy (&anchor, &rec, sizeof anchor);
    anchor.crc = put32 (0);
    anchor.crc = put32 (crc32c (&anchor, sizeof anchor, 0));
    put_block (d, b, &anchor);
  }
}

static void
seal_acked (struct damage *d)
{
  struct format_acked a;

  world_read (d->disk, WORLD_ACKED, &a, sizeof a, 0);
  a.crc = put32 (0);
  a.crc = put32 (crc32c (&a, sizeof a, 0));
  world_write (d->disk, WORLD_ACKED, &a, sizeof a, 0);
}

/* The crc of the table that REC and the PARTs before it refer to. */
static uint32_t
table_crc (struct damage *d, const struct format_record *const *part,
           unsigned nparts, const struct format_record *rec)
{
  static uint8_t mem[JOURNAL_CHUNK];
  uint32_t crc = 0;

  for (unsigned i = 0; i <= nparts; i++) {
    const struct format_record *r = i < nparts ? part[i] : rec;
    const struct format_run *run = (const struct format_run *) r->payload;

    for (uint32_t k = 0; k < get32 (r->nruns) && k < FORMAT_RUNS; k++) {
      uint32_t n = MIN (get32 (run[k].bytes), JOURNAL_CHUNK);

      world_read (d->disk, WORLD_JOURNAL, mem, n,
                  block_offset (get32 (run[k].block)));
      crc = crc32c (mem, n, crc);
    }
  }
  return crc;
}

static int
by_seq (const void *a, const void *b)
{
  uint64_t x = get64 ((*(struct format_record *const *) a)->seq);
  uint64_t y = get64 ((*(struct format_record *const *) b)->seq);

  return x < y ? -1 : x > y;
}

/* Set everything right that follows from the rest. */
static void
mend (struct damage *d)
{
  const struct world *w = d->w;
  unsigned n = w->nblocks[PLACE_RECORD];
  struct format_record *mem = calloc (n, sizeof *mem);
  struct format_record **rec = calloc (n, sizeof *rec);
  unsigned nparts = 0;

  HOLDS (mem && rec, "out of memory");
  for (unsigned i = 0; i < n; i++) {
    get_block (d, w->block[PLACE_RECORD][i], &mem[i]);
    rec[i] = &mem[i];
  }
  qsort (rec, n, sizeof *rec, by_seq);
  for (unsigned i = 0; i < n; i++) {
    struct format_record *r = rec[i];
    unsigned want = MIN (get32 (r->nparts), nparts);

    if (get32 (r->nruns) > 0 && get16 (r->kind) != JOURNAL_REC_PART)
      r->table_crc = put32 (table_crc (d, (const struct format_record *const *)
                                       &rec[i - want], want, r));
    nparts = get16 (r->kind) == JOURNAL_REC_PART ? nparts + 1 : 0;
    if (i > 0 && get64 (rec[i - 1]->seq) + 1 == get64 (r->seq))
      r->prev_crc = rec[i - 1]->crc;
    record_seal (r);
  }
  for (unsigned i = 0; i < n; i++)
    put_block (d, w->block[PLACE_RECORD][i], &mem[i]);
  for (unsigned i = 0; i < w->nblocks[PLACE_ANCHOR]; i++)
    seal_block (d, w->block[PLACE_ANCHOR][i]);
  seal_super (d, FORMAT_SUPER_A);
  seal_super (d, FORMAT_SUPER_B);
  free (mem);
  free (rec);
}

/* A field of a descriptor, in a table block or within a record. */
static void
set_desc (struct damage *d, uint32_t b, uint64_t value)
{
  struct format_record block;
  uint8_t *p = (uint8_t *) &block;
  struct format_desc *desc;
  unsigned slots = FORMAT_BLOCK_SLOTS, more = 0;
  struct journal_config config = { .size = 0 };
  struct format_super super;
  uint32_t k, crc;

  get_block (d, b, &block);
  if (fields_of (p) == fields_named ("record")) {
    p = block.payload;
    slots = FORMAT_INLINE_SLOTS;
  }
  desc = (struct format_desc *) (p + value % slots * FORMAT_SLOT);
  (void) set_field ((uint8_t *) desc, fields_named ("desc"), value >> 8);
  if (get16 (desc->flags) & JOURNAL_DATA) {
    k = (get64 (desc->sector) % 8 + get32 (desc->nsectors) + 7) / 8;
    more = k > 1 ? DIV_UP (k - 1, FORMAT_CRCS_PER_SLOT) : 0;
  }
  more = MIN (more, (unsigned) ((p + slots * FORMAT_SLOT - (uint8_t *) (desc + 1)) / FORMAT_SLOT));
  get_block (d, FORMAT_SUPER_A, &super);
  memcpy (config.id, super.id, HOST_ID_LEN);
  crc = crc32c (desc, offsetof (struct format_desc, self_crc),
                desc_seed (&config, get32 (desc->epoch_low)));
  crc = crc32c (desc + 1, more * FORMAT_SLOT, crc);
  desc->self_crc = put32 (crc);
  put_block (d, b, &block);
}

/* --- commands --- */

static void
do_xor (struct damage *d, uint32_t b, uint64_t value)
{
  uint8_t block[JOURNAL_BLOCK];
  uint8_t mask = value >> 16;

  get_block (d, b, block);
  for (unsigned n = value >> 24 & 7, i = 0; i <= n; i++)
    block[(value + i) % JOURNAL_BLOCK] ^= mask ? mask : 0xff;
  put_block (d, b, block);
}

static void
do_set (struct damage *d, uint32_t b, uint64_t value)
{
  const struct format_fields *f;
  uint8_t block[JOURNAL_BLOCK];

  get_block (d, b, block);
  f = fields_of (block);
  if (is_crc (set_field (block, f, value)))
    d->forged = true;
  put_block (d, b, block);
}

static void
cut_file (struct damage *d, const char *path, uint64_t size)
{
  struct io_file *f;

  if (io_open (simdisk_fs (d->disk), path, O_RDWR, 0, &f) == 0) {
    HOLDS (io_truncate (f, size) == 0 && io_fdatasync (f) == 0, "%s", path);
    io_close (f);
  }
}

static void
do_acked (struct damage *d, enum damage_op op, uint64_t value)
{
  struct format_acked a;

  if (simdisk_size (d->disk, WORLD_ACKED) == 0)
    return;
  d->acked = true;
  world_read (d->disk, WORLD_ACKED, &a, sizeof a, 0);
  switch (op) {
  case DAMAGE_ACKED_XOR:
    ((uint8_t *) &a)[value % sizeof a] ^= value >> 8 & 0xff ? value >> 8 : 1;
    break;
  case DAMAGE_ACKED_SET:
    if (is_crc (set_field ((uint8_t *) &a, fields_named ("acked"), value)))
      d->forged = true;
    break;
  case DAMAGE_ACKED_LOST:
    (void) io_unlink (simdisk_fs (d->disk), WORLD_ACKED);
    return;
  case DAMAGE_ACKED_CUT:
    cut_file (d, WORLD_ACKED, value % sizeof a);
    return;
  default:
    seal_acked (d);
    d->forged = true;
    return;
  }
  world_write (d->disk, WORLD_ACKED, &a, sizeof a, 0);
}

static void
do_to (struct damage *d, const struct command *c)
{
  d->has_to = true;
  switch (c->place % 4) {
  case 0:
    snprintf (d->to, sizeof d->to, "%" PRIu64, c->value);
    break;
  case 1:
    snprintf (d->to, sizeof d->to, "%" PRIu64, d->w->nknown > 0 ?
              d->w->known[c->index % d->w->nknown].id : 0);
    break;
  case 2:
    snprintf (d->to, sizeof d->to, "%s", (const char *const[]) {
        "gr\303\274n", "12:00", "2023-11-14T22:13:21Z", "first copy",
        "2023-11-14 22:13:20.5" }[c->index % 5]);
    break;
  default:
    memset (d->to, 0, sizeof d->to);
    memcpy (d->to, &c->value, sizeof c->value);
    if (d->to[0] == '\0')
      d->to[0] = 'x';
  }
}

static void
carry_out (struct damage *d, const struct command *c)
{
  uint32_t b = block_of (d, c->place, c->index);
  uint8_t block[JOURNAL_BLOCK];

  switch ((enum damage_op) (c->op % DAMAGE_OPS)) {
  case DAMAGE_XOR:
    do_xor (d, b, c->value);
    break;
  case DAMAGE_SET:
    do_set (d, b, c->value);
    break;
  case DAMAGE_COPY:
    get_block (d, block_of (d, c->value, c->value >> 8), block);
    put_block (d, b, block);
    break;
  case DAMAGE_ZERO:
    memset (block, 0, sizeof block);
    put_block (d, b, block);
    break;
  case DAMAGE_OLDER:
    world_read (d->w->older, WORLD_JOURNAL, block, sizeof block, block_offset (b));
    put_block (d, b, block);
    break;
  case DAMAGE_CUT:
    d->journal = true;
    cut_file (d, WORLD_JOURNAL,
              MIN (block_offset (b) + c->value % JOURNAL_BLOCK,
                   simdisk_size (d->disk, WORLD_JOURNAL)));
    break;
  case DAMAGE_BAD:
    d->journal = true;
    d->bad_off = block_offset (b) + c->value % 8 * 512;
    d->bad_len = 512 * (1 + (c->value >> 8) % 16);
    break;
  case DAMAGE_ACKED_XOR: case DAMAGE_ACKED_SET: case DAMAGE_ACKED_LOST:
  case DAMAGE_ACKED_CUT: case DAMAGE_ACKED_MEND:
    do_acked (d, c->op % DAMAGE_OPS, c->value);
    break;
  case DAMAGE_IMAGE_CUT:
    d->image = true;
    cut_file (d, world_path[c->index % WORLD_DISKS],
              c->value % (world_size[c->index % WORLD_DISKS] + 4096));
    break;
  case DAMAGE_DESC:
    d->forged = true;
    set_desc (d, b, c->value);
    break;
  case DAMAGE_SEAL:
    d->forged = true;
    seal_block (d, b);
    break;
  case DAMAGE_MEND:
    d->forged = true;
    mend (d);
    break;
  case DAMAGE_TO:
    do_to (d, c);
    break;
  case DAMAGE_BOOT:
    d->boot = 1;
    break;
  case DAMAGE_OPS:
    break;
  }
}

void
damage_apply (struct damage *d, const uint8_t *data, size_t size)
{
  for (unsigned n = 0; size >= DAMAGE_COMMAND && n < DAMAGE_MAX; n++) {
    struct command c = { .op = data[0], .place = data[1] };

    c.index = data[2] | data[3] << 8;
    for (unsigned i = 0; i < 8; i++)
      c.value |= (uint64_t) data[4 + i] << 8 * i;
    carry_out (d, &c);
    data += DAMAGE_COMMAND;
    size -= DAMAGE_COMMAND;
  }
}

struct simdisk *
damage_copy (const struct damage *d)
{
  struct simdisk *disk = world_copy (d->disk);

  simdisk_bad (disk, WORLD_JOURNAL, d->bad_off, d->bad_len);
  return disk;
}
