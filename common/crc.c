/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <limits.h>

#include <isa-l/crc.h>

#include "common/crc.h"

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
