/* SPDX-License-Identifier: BSD-3-Clause */
/* The structures of journal/format.h as tables that a test can go through: what
 * they are called, and where their fields are.
 */
#ifndef MCBUF_TESTS_UNIT_FORMAT_FIELDS_H
#define MCBUF_TESTS_UNIT_FORMAT_FIELDS_H

#include "journal/format.h"

struct format_field {
  const char *name;
  unsigned offset, size;
};

struct format_fields {
  const char *name;             /* of the structure */
  unsigned size;
  const struct format_field *field;     /* by offset */
  unsigned n;
};

enum format_struct {
  FIELDS_SUPER, FIELDS_DISK, FIELDS_ANCHOR, FIELDS_RECORD, FIELDS_CHECKPOINT,
  FIELDS_RUN, FIELDS_DESC, FIELDS_TABLE, FIELDS_ACKED, FIELDS_STRUCTS
};

extern const struct format_fields format_fields[FIELDS_STRUCTS];

#endif /* MCBUF_TESTS_UNIT_FORMAT_FIELDS_H */
