/* SPDX-License-Identifier: BSD-3-Clause */
/* Records to and from bytes. */
#include "config.h"

#include <string.h>

#include "common/crc.h"
#include "journal/internal.h"

static void
checkpoint_encode (struct format_checkpoint *to,
                   const struct journal_checkpoint *from)
{
  to->id = put64 (from->id);
  to->time = put64 (from->time);
  to->extents = put64 (from->extents);
  to->bytes = put64 (from->bytes);
  memset (to->label, 0, sizeof to->label);
  memcpy (to->label, from->label, strnlen (from->label, JOURNAL_LABEL_MAX));
}

static void
checkpoint_decode (struct journal_checkpoint *to,
                   const struct format_checkpoint *from)
{
  to->id = get64 (from->id);
  to->time = get64 (from->time);
  to->extents = get64 (from->extents);
  to->bytes = get64 (from->bytes);
  memcpy (to->label, from->label, sizeof to->label);
  to->label[JOURNAL_LABEL_MAX] = '\0';
}

/* Everything but the record's place in the chain, which log_append knows. */
void
record_encode (const struct journal *j, struct format_record *rec,
               enum journal_kind kind, const struct journal_state *state)
{
  memset (rec, 0, sizeof *rec);
  memcpy (rec->magic, FORMAT_RECORD_MAGIC, FORMAT_MAGIC_LEN);
  rec->kind = put16 (kind);
  memcpy (rec->id, j->config.id, HOST_ID_LEN);
  rec->state = state->state;
  rec->state_flags = (state->has_checkpoint ? FORMAT_HAS_CHECKPOINT : 0) |
                     (state->clean ? FORMAT_CLEAN : 0) |
                     (state->closed ? FORMAT_CLOSED : 0) |
                     (state->drained ? FORMAT_DRAINED : 0) |
                     (state->pending ? FORMAT_PENDING : 0) |
                     (state->scratch ? FORMAT_SCRATCH : 0);
  rec->generation = put64 (state->generation);
  memcpy (rec->boot_id, state->boot_id, HOST_ID_LEN);
  rec->instance = put64 (state->instance);
  rec->open_epoch = put64 (state->epoch);
  rec->epoch_limit = put64 (state->epoch_limit);
  rec->target = put64 (state->target);
  rec->discarded_epochs = put64 (state->discarded_epochs);
  rec->discarded_bytes = put64 (state->discarded_bytes);
  rec->void_epoch = put64 (state->void_epoch);
  rec->void_from = put64 (state->void_from);
  rec->void_floor = put64 (state->void_floor);
  rec->zero_filled = put64 (state->zero_filled);
  checkpoint_encode (&rec->checkpoint, &state->checkpoint);
  checkpoint_encode (&rec->watermark, &state->watermark);
}

void
record_decode_state (const struct format_record *rec,
                     struct journal_state *state)
{
  memset (state, 0, sizeof *state);
  state->state = rec->state;
  state->has_checkpoint = rec->state_flags & FORMAT_HAS_CHECKPOINT;
  state->clean = rec->state_flags & FORMAT_CLEAN;
  state->closed = rec->state_flags & FORMAT_CLOSED;
  state->drained = rec->state_flags & FORMAT_DRAINED;
  state->pending = rec->state_flags & FORMAT_PENDING;
  state->scratch = rec->state_flags & FORMAT_SCRATCH;
  state->generation = get64 (rec->generation);
  memcpy (state->boot_id, rec->boot_id, HOST_ID_LEN);
  state->instance = get64 (rec->instance);
  state->epoch = get64 (rec->open_epoch);
  state->epoch_limit = get64 (rec->epoch_limit);
  state->target = get64 (rec->target);
  state->discarded_epochs = get64 (rec->discarded_epochs);
  state->discarded_bytes = get64 (rec->discarded_bytes);
  state->void_epoch = get64 (rec->void_epoch);
  state->void_from = get64 (rec->void_from);
  state->void_floor = get64 (rec->void_floor);
  state->zero_filled = get64 (rec->zero_filled);
  checkpoint_decode (&state->checkpoint, &rec->checkpoint);
  checkpoint_decode (&state->watermark, &rec->watermark);
}

static uint32_t
record_crc (const struct format_record *rec)
{
  static const le32 zero;
  const uint8_t *p = (const uint8_t *) rec;
  const size_t at = offsetof (struct format_record, crc);
  uint32_t crc = crc32c (p, at, 0);

  crc = crc32c (&zero, sizeof zero, crc);
  return crc32c (p + at + sizeof zero, sizeof *rec - at - sizeof zero, crc);
}

void
record_seal (struct format_record *rec)
{
  rec->crc = put32 (record_crc (rec));
}

bool
record_is_whole (const struct journal_config *config,
                 const struct format_record *rec)
{
  return memcmp (rec->magic, FORMAT_RECORD_MAGIC, FORMAT_MAGIC_LEN) == 0 &&
         memcmp (rec->id, config->id, HOST_ID_LEN) == 0 &&
         get32 (rec->crc) == record_crc (rec);
}

bool
record_has_table (const struct format_record *rec)
{
  return record_is_commit (rec) || get16 (rec->kind) == JOURNAL_REC_CLEAN ||
         get16 (rec->kind) == JOURNAL_REC_PART;
}

void
record_put_samples (struct format_record *rec,
                    const struct journal_sample *samples, unsigned n)
{
  struct format_sample *to = (struct format_sample *) rec->payload;

  for (unsigned i = 0; i < n; i++) {
    to[i].where = put64 ((uint64_t) samples[i].disk << 48 | samples[i].sector);
    to[i].nsectors = put32 (samples[i].nsectors);
    to[i].crc = put32 (samples[i].crc);
  }
}

unsigned
record_get_samples (const struct format_record *rec,
                    struct journal_sample samples[JOURNAL_SAMPLES])
{
  const struct format_sample *from = (const struct format_sample *) rec->payload;
  unsigned n = 0;

  while (n < JOURNAL_SAMPLES && get32 (from[n].nsectors) != 0) {
    uint64_t where = get64 (from[n].where);

    samples[n] = (struct journal_sample) {
      .disk = where >> 48, .sector = where & ((UINT64_C (1) << 48) - 1),
      .nsectors = get32 (from[n].nsectors), .crc = get32 (from[n].crc),
    };
    n++;
  }
  return n;
}

bool
record_is_commit (const struct format_record *rec)
{
  return get16 (rec->kind) == JOURNAL_REC_COMMIT ||
         get16 (rec->kind) == JOURNAL_REC_PROMOTED_COMMIT;
}
