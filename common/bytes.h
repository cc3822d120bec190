/* SPDX-License-Identifier: BSD-3-Clause */
/* Byte order and alignment.
 *
 * Everything mcbuf puts on disk is little-endian.  On-disk structures are
 * declared with these wrapper types, so that a plain assignment to or from
 * one does not compile and every access names its conversion.
 */
#ifndef MCBUF_COMMON_BYTES_H
#define MCBUF_COMMON_BYTES_H

#include <endian.h>
#include <stdint.h>

typedef struct { uint16_t raw; } le16;
typedef struct { uint32_t raw; } le32;
typedef struct { uint64_t raw; } le64;

static inline uint16_t get16 (le16 v) { return le16toh (v.raw); }
static inline uint32_t get32 (le32 v) { return le32toh (v.raw); }
static inline uint64_t get64 (le64 v) { return le64toh (v.raw); }
static inline le16 put16 (uint16_t v) { return (le16) { htole16 (v) }; }
static inline le32 put32 (uint32_t v) { return (le32) { htole32 (v) }; }
static inline le64 put64 (uint64_t v) { return (le64) { htole64 (v) }; }

#define IS_ALIGNED(n, a) (((n) & ((a) - 1)) == 0)
#define ROUND_DOWN(n, a) ((n) & ~((__typeof__ (n)) (a) - 1))
#define ROUND_UP(n, a) ROUND_DOWN ((n) + (a) - 1, a)
#define DIV_UP(n, a) (((n) + (a) - 1) / (a))

/* Each argument is evaluated once; the names are unique so that they nest. */
#define MINMAX_CAT2(a, b) a##b
#define MINMAX_CAT(a, b) MINMAX_CAT2 (a, b)
#define MINMAX(op, x, y, a, b)                                          \
  ({ __typeof__ (a) x = (a); __typeof__ (b) y = (b); x op y ? x : y; })
#define MIN(a, b) MINMAX (<, MINMAX_CAT (x_, __COUNTER__),              \
                          MINMAX_CAT (y_, __COUNTER__), (a), (b))
#define MAX(a, b) MINMAX (>, MINMAX_CAT (x_, __COUNTER__),              \
                          MINMAX_CAT (y_, __COUNTER__), (a), (b))

#endif /* MCBUF_COMMON_BYTES_H */
