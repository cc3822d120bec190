/* SPDX-License-Identifier: BSD-3-Clause */
/* crc32c without any instruction for it: "slicing by 8".
 *
 * M. E. Kounavis and F. L. Berry, "A Systematic Approach to Building High
 * Performance, Software-based, CRC Generators", ISCC 2005.  Eight bytes at a
 * time: table K says what a byte does to the checksum with K more bytes behind it,
 * so the eight look-ups do not wait for each other.
 */
#include "config.h"

#include <pthread.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc.h"

#define CASTAGNOLI UINT32_C (0x82f63b78)        /* the lowest bit first */
#define SLICES 8

static uint32_t table[SLICES][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void
make_tables (void)
{
  for (unsigned i = 0; i < 256; i++) {
    uint32_t crc = i;

    for (unsigned bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? CASTAGNOLI : 0);
    table[0][i] = crc;
  }
  for (unsigned k = 1; k < SLICES; k++)
    for (unsigned i = 0; i < 256; i++) {
      uint32_t crc = table[k - 1][i];

      table[k][i] = crc >> 8 ^ table[0][crc & 0xff];
    }
}

static inline uint32_t
load32 (const uint8_t *p)
{
  le32 v;

  memcpy (&v, p, sizeof v);
  return get32 (v);
}

uint32_t
crc32c_tables (const void *buf, size_t len, uint32_t seed)
{
  const uint8_t *p = buf;
  uint32_t crc = ~seed;

  /* It cannot fail: the control is initialised, and make_tables returns. */
  (void) pthread_once (&table_once, make_tables);
  for (; len >= SLICES; len -= SLICES, p += SLICES) {
    uint32_t a = crc ^ load32 (p), b = load32 (p + 4);

    crc = table[7][a & 0xff] ^ table[6][a >> 8 & 0xff] ^
          table[5][a >> 16 & 0xff] ^ table[4][a >> 24] ^
          table[3][b & 0xff] ^ table[2][b >> 8 & 0xff] ^
          table[1][b >> 16 & 0xff] ^ table[0][b >> 24];
  }
  for (; len > 0; len--)
    crc = crc >> 8 ^ table[0][(crc ^ *p++) & 0xff];
  return ~crc;
}
