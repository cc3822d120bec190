/* SPDX-License-Identifier: BSD-3-Clause */
/* An SQLite VFS whose files are those of a simulated disk, so that a power loss hits a
 * database in the same instant as everything else.
 *
 * The wal-index is plain memory, which is gone when the last connection is (or the disk, in a crash).
 */
#ifndef MCBUF_TESTS_UNIT_SIMVFS_H
#define MCBUF_TESTS_UNIT_SIMVFS_H

#include "unit/simdisk.h"

/* Make it SQLite's default. */
extern void simvfs_register (void);

/* Paths that this thread opens from now on are of S.  Returns what they were of. */
extern struct simdisk *simvfs_use (struct simdisk *s);
/* The same for threads that never said so. */
extern void simvfs_default (struct simdisk *s);

#endif
