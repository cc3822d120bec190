/* SPDX-License-Identifier: BSD-3-Clause */
/* crc32c (Castagnoli), as iSCSI and ext4 use it: by ISA-L, which finds out what the CPU
 * has, or by tables where mcbuf is built without it.
 */
#ifndef MCBUF_COMMON_CRC_H
#define MCBUF_COMMON_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Checksum of LEN bytes at BUF, going on from SEED: the result of an earlier
 * call, or 0.  crc32c ("123456789", 9, 0) is 0xe3069283.  Any thread.
 */
extern uint32_t crc32c (const void *buf, size_t len, uint32_t seed);

/* The same on any CPU, slower. */
extern uint32_t crc32c_tables (const void *buf, size_t len, uint32_t seed);

/* What crc32c is done by, for people. */
extern const char crc32c_by[];

#endif /* MCBUF_COMMON_CRC_H */
