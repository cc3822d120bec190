/* SPDX-License-Identifier: BSD-3-Clause */
/* The structures of journal/format.h as tables that a test can go through: what
 * they are called, and where their fields are.  format-fields.awk makes them.
 */
#ifndef MCBUF_TESTS_UNIT_FORMAT_FIELDS_H
#define MCBUF_TESTS_UNIT_FORMAT_FIELDS_H

#include "journal/format.h"

struct format_field {
  const char *name;
  unsigned offset, size;
};

struct format_fields {
  const char *name;             /* of the structure, without "format_" */
  unsigned size;
  const struct format_field *field;     /* by offset */
  unsigned n;
};

extern const struct format_fields format_fields[];      /* up to one without a name */

#endif /* MCBUF_TESTS_UNIT_FORMAT_FIELDS_H */
