/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include "unit/format-fields.h"

#define F(type, name)                                                   \
  { #name, offsetof (struct format_##type, name),                       \
    sizeof (((struct format_##type *) NULL)->name) }
#define S(type)                                                         \
  { #type, sizeof (struct format_##type), type##_fields,                \
    sizeof type##_fields / sizeof type##_fields[0] }

static const struct format_field super_fields[] = {
  F (super, magic), F (super, crc), F (super, version), F (super, compat),
  F (super, incompat), F (super, length), F (super, ndisks), F (super, id),
  F (super, seq), F (super, size), F (super, chunk_size),
  F (super, block_size), F (super, disk_size), F (super, reserved),
};

static const struct format_field disk_fields[] = {
  F (disk, name), F (disk, size), F (disk, reserved), F (disk, path),
};

static const struct format_field anchor_fields[] = {
  F (anchor, magic), F (anchor, crc), F (anchor, chunk), F (anchor, id),
  F (anchor, seq), F (anchor, salt), F (anchor, first), F (anchor, ncommits),
  F (anchor, prev_crc), F (anchor, reserved),
};

static const struct format_field record_fields[] = {
  F (record, magic), F (record, crc), F (record, kind), F (record, flags),
  F (record, id), F (record, seq), F (record, durable), F (record, salt),
  F (record, prev_crc), F (record, next_chunk), F (record, next_salt),
  F (record, chunk), F (record, slot), F (record, epoch),
  F (record, first_epoch), F (record, extents), F (record, bytes),
  F (record, nparts), F (record, nruns), F (record, table_bytes),
  F (record, table_crc), F (record, state), F (record, state_flags),
  F (record, reserved1), F (record, generation), F (record, boot_id),
  F (record, instance), F (record, open_epoch), F (record, epoch_limit),
  F (record, target), F (record, discarded_epochs),
  F (record, discarded_bytes), F (record, zero_filled),
  F (record, void_epoch), F (record, ncommits), F (record, reserved2),
  F (record, checkpoint), F (record, watermark), F (record, reserved3),
  F (record, payload),
};

static const struct format_field checkpoint_fields[] = {
  F (checkpoint, id), F (checkpoint, time), F (checkpoint, extents),
  F (checkpoint, bytes), F (checkpoint, label),
};

static const struct format_field run_fields[] = {
  F (run, block), F (run, bytes),
};

static const struct format_field desc_fields[] = {
  F (desc, sector), F (desc, nsectors), F (desc, block), F (desc, disk),
  F (desc, flags), F (desc, crc_first), F (desc, epoch_low),
  F (desc, self_crc),
};

static const struct format_field table_fields[] = {
  F (table, magic), F (table, crc), F (table, chunk), F (table, id),
  F (table, serial), F (table, prev), F (table, reserved),
};

static const struct format_field acked_fields[] = {
  F (acked, magic), F (acked, crc), F (acked, flags), F (acked, id),
  F (acked, boot_id), F (acked, checkpoint), F (acked, generation),
  F (acked, seq), F (acked, reserved2),
};

const struct format_fields format_fields[FIELDS_STRUCTS] = {
  [FIELDS_SUPER] = S (super), [FIELDS_DISK] = S (disk),
  [FIELDS_ANCHOR] = S (anchor), [FIELDS_RECORD] = S (record),
  [FIELDS_CHECKPOINT] = S (checkpoint), [FIELDS_RUN] = S (run),
  [FIELDS_DESC] = S (desc), [FIELDS_TABLE] = S (table),
  [FIELDS_ACKED] = S (acked),
};
