/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include "common/crc.h"

#ifdef HAVE_ISAL

#include <limits.h>

#include <isa-l/crc.h>

const char crc32c_by[] = "ISA-L";

uint32_t
crc32c (const void *buf, size_t len, uint32_t seed)
{
  unsigned char *p = (unsigned char *) (uintptr_t) buf;
  uint32_t crc = ~seed;

  /* ISA-L counts in int. */
  while (len > 0) {
    int n = len > INT_MAX / 2 ? INT_MAX / 2 : (int) len;

    crc = crc32_iscsi (p, n, crc);
    p += n;
    len -= n;
  }
  return ~crc;
}

#else /* !HAVE_ISAL */

const char crc32c_by[] = "tables";

uint32_t
crc32c (const void *buf, size_t len, uint32_t seed)
{
  return crc32c_tables (buf, len, seed);
}

#endif /* !HAVE_ISAL */
