/* SPDX-License-Identifier: BSD-3-Clause */
/* One bit for each block of a chunk. */
#ifndef MCBUF_JOURNAL_BITS_H
#define MCBUF_JOURNAL_BITS_H

#include <stdbool.h>
#include <stdint.h>

#include "journal/journal.h"

#define BITS_WORDS (JOURNAL_CHUNK_BLOCKS / 64)

struct bits {
  uint64_t w[BITS_WORDS];
};

static inline bool
bits_test (const struct bits *b, unsigned i)
{
  return b->w[i / 64] >> (i % 64) & 1;
}

/* The bits [FROM, FROM + N) of word W. */
static inline uint64_t
bits_mask (unsigned w, unsigned from, unsigned n)
{
  unsigned lo = w * 64, hi = lo + 64, end = from + n;

  if (from > lo)
    lo = from;
  if (end < hi)
    hi = end;
  if (lo >= hi)
    return 0;
  return (hi - lo == 64 ? ~UINT64_C (0) : (UINT64_C (1) << (hi - lo)) - 1)
         << (lo % 64);
}

static inline void
bits_set (struct bits *b, unsigned from, unsigned n)
{
  for (unsigned w = from / 64; w < BITS_WORDS && w * 64 < from + n; w++)
    b->w[w] |= bits_mask (w, from, n);
}

static inline void
bits_clear (struct bits *b, unsigned from, unsigned n)
{
  for (unsigned w = from / 64; w < BITS_WORDS && w * 64 < from + n; w++)
    b->w[w] &= ~bits_mask (w, from, n);
}

static inline bool
bits_empty (const struct bits *b)
{
  return (b->w[0] | b->w[1] | b->w[2] | b->w[3]) == 0;
}

/* Is every bit of A set in B? */
static inline bool
bits_within (const struct bits *a, const struct bits *b)
{
  for (unsigned w = 0; w < BITS_WORDS; w++)
    if (a->w[w] & ~b->w[w])
      return false;
  return true;
}

static inline bool
bits_meet (const struct bits *a, const struct bits *b)
{
  for (unsigned w = 0; w < BITS_WORDS; w++)
    if (a->w[w] & b->w[w])
      return true;
  return false;
}

static inline struct bits
bits_minus (const struct bits *a, const struct bits *b)
{
  struct bits r;

  for (unsigned w = 0; w < BITS_WORDS; w++)
    r.w[w] = a->w[w] & ~b->w[w];
  return r;
}

static inline struct bits
bits_and (const struct bits *a, const struct bits *b)
{
  struct bits r;

  for (unsigned w = 0; w < BITS_WORDS; w++)
    r.w[w] = a->w[w] & b->w[w];
  return r;
}

static inline struct bits
bits_or (const struct bits *a, const struct bits *b)
{
  struct bits r;

  for (unsigned w = 0; w < BITS_WORDS; w++)
    r.w[w] = a->w[w] | b->w[w];
  return r;
}

static inline unsigned
bits_count (const struct bits *a)
{
  unsigned n = 0;

  for (unsigned w = 0; w < BITS_WORDS; w++)
    n += __builtin_popcountll (a->w[w]);
  return n;
}

/* The next run of set bits at or after *FROM: its length, and *FROM becomes
 * where it begins; 0 when there is none.
 */
static inline unsigned
bits_run (const struct bits *b, unsigned *from)
{
  unsigned i = *from, n;

  while (i < JOURNAL_CHUNK_BLOCKS) {
    uint64_t w = b->w[i / 64] >> (i % 64);

    if (w != 0) {
      i += __builtin_ctzll (w);
      break;
    }
    i = (i / 64 + 1) * 64;
  }
  if (i >= JOURNAL_CHUNK_BLOCKS)
    return 0;
  *from = i;
  for (n = 0; i + n < JOURNAL_CHUNK_BLOCKS; ) {
    uint64_t w = ~b->w[(i + n) / 64] >> ((i + n) % 64);

    if (w != 0 && (unsigned) __builtin_ctzll (w) < 64 - (i + n) % 64) {
      n += __builtin_ctzll (w);
      break;
    }
    n = ((i + n) / 64 + 1) * 64 - i;
  }
  return n;
}

#endif /* MCBUF_JOURNAL_BITS_H */
