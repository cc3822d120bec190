/* SPDX-License-Identifier: BSD-3-Clause */
/* A server of one disk on a simulated disk, for stories that are told step by step. */
#ifndef MCBUF_TESTS_UNIT_STORY_H
#define MCBUF_TESTS_UNIT_STORY_H

#include <check.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

#define STORY_IMAGE "/sim/0.img"
#define STORY_BLOCK 4096u

extern struct simdisk *disk;
extern struct replica *r;       /* NULL: none is up */
extern uint64_t newest;         /* acknowledged */

/* An empty disk; and what is left at the end. */
extern void story_setup (void);
extern void story_teardown (void);
/* A server of a disk of SIZE bytes, stepped by hand; the rest of MORE is as it shall be. */
extern int story_open (uint64_t size, struct replica_params more);
extern void story_close (void);
/* Block AT is full of WHAT. */
extern int story_put (enum replica_view view, unsigned at, uint8_t what);
extern int story_commit (void);
/* Run the stories of T: the status for main to return. */
extern int story_run (TCase *t, enum fork_status how);

#endif /* MCBUF_TESTS_UNIT_STORY_H */
