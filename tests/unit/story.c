/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "unit/story.h"

struct simdisk *disk;
struct replica *r;
uint64_t newest;

void
story_setup (void)
{
  host_seed (1);
  host_reset (1, true);
  disk = simdisk_new ();
  simvfs_default (disk);
  newest = 0;
}

void
story_teardown (void)
{
  simdisk_hook (disk, NULL, NULL);
  simdisk_calls (disk, NULL, NULL);
  story_close ();
  simdisk_free (disk);
}

int
story_open (uint64_t size, struct replica_params more)
{
  struct replica_disk_params d = { .name = "vda", .path = STORY_IMAGE,
                                   .create = true, .size = size };
  struct mcerror err = { 0 };

  more.fs = simdisk_fs (disk);
  more.dir = TORTURE_DIR;
  more.disks = &d;
  more.ndisks = 1;
  more.buffer = UINT64_C (8) << 20;
  if (replica_open (&more, &r, &err) == -1)
    return -1;
  r->by_hand = true;
  return 0;
}

void
story_close (void)
{
  replica_close (r);
  r = NULL;
}

int
story_put (enum replica_view view, unsigned at, uint8_t what)
{
  struct replica_export x = { .view = view, .fence = r->fence };
  uint8_t block[STORY_BLOCK];

  memset (block, what, sizeof block);
  return replica_pwrite (r, &x, block, sizeof block, (uint64_t) at * sizeof block, 0);
}

int
story_commit (void)
{
  struct commit_answer a;
  int result = replica_commit (r, &(struct commit_request) { 0 }, &a, NULL);

  if (result == 0)
    newest = a.checkpoint;
  return result;
}

int
story_run (TCase *t, enum fork_status how)
{
  Suite *s = suite_create ("replica");
  SRunner *sr = srunner_create (s);
  int failed;

  simvfs_register ();
  suite_add_tcase (s, t);
  srunner_set_fork_status (sr, how);
  srunner_run_all (sr, CK_NORMAL);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
