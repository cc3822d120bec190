/* SPDX-License-Identifier: BSD-3-Clause */
/* Recovery whose writes, syncs and allocations fail, one after the other: run again, it comes to
 * the same end.  The worlds are the fuzzers'.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>

#include <check.h>

#include "common/bytes.h"
#include "fuzz/fuzz.h"
#include "fuzz/world.h"
#include "unit/fail-some.h"
#include "unit/torture.h"
#include "unit/unit.h"

enum { BACKLOG = 0, WRITTEN = 2, CLEAN = 3 };   /* of world.c */

static struct simdisk *empty;   /* for its operations */
static struct mcerror err;

static void
setup (void)
{
  (void) world_get (BACKLOG);
  (void) world_get (WRITTEN);
  (void) world_get (CLEAN);
  host_boot (0);
  empty = simdisk_new ();
}

static void
teardown (void)
{
  simdisk_free (empty);
}

/* Each write and sync of it fails once; then it goes on, to the same end. */
START_TEST (recovery_faults)
{
  static const unsigned which[] = { BACKLOG, WRITTEN, CLEAN };
  static const int error[] = { EIO, ENOSPC };
  const struct world *w = world_get (which[_i / 2]);
  unsigned tried = 0;

  host_reset (82, true);
  for (unsigned n = 1; ; n++) {
    struct simdisk *d = world_copy (w->disk);
    struct recover_params p = { .fs = simdisk_fs (d), .dir = WORLD_DIR };
    struct recover_result result;
    uint64_t before = simdisk_ops (d);
    bool reached;
    int first;

    simdisk_fail (d, n, error[_i % 2], false);
    first = recover_run (&p, &result, &err);
    reached = simdisk_ops (d) - before >= n;
    if (first == -1)
      ck_assert_msg (err.code == MCEXIT_USAGE || err.code == MCEXIT_DAMAGE ||
                     err.code == MCEXIT_PARTIAL, "%u: code %d: %s", n,
                     (int) err.code, err.text);
    simdisk_fail (d, 0, 0, false);
    ck_assert_msg (recover_run (&p, &result, &err) == 0, "%u: %s", n, err.text);
    ck_assert_uint_eq (result.checkpoint.id, w->final.id);
    ck_assert_msg (world_images_are (d, &w->final), "operation %u failed: the images", n);
    simdisk_free (d);
    if (!reached)
      break;
    tried++;
  }
  ck_assert_uint_gt (tried, 10);
  printf ("TRIED invariant=6,7 test=unit/test-recovery-faults what=\"operations of a recovery that failed\" n=%u\n",
          tried);
}
END_TEST

/* The files of the simulated disk are no memory of recovery's. */
static struct io_ops spared;
static bool sticky;

#define SPARED(type, name, decl, args)                            \
  static type                                                           \
  spared_##name decl                                                    \
  {                                                                     \
    unsigned kept = fail_alloc_left ();                                 \
    type result;                                                        \
                                                                        \
    fail_alloc (0, sticky);                                             \
    result = simdisk_fs (empty)->ops->name args;                        \
    fail_alloc (kept, sticky);                                          \
    return result;                                                      \
  }

SPARED (int, open, (const struct io_fs *fs, const char *path, int flags, mode_t mode,
                        struct io_file **file), (fs, path, flags, mode, file))
SPARED (ssize_t, pwritev, (struct io_file *file, const struct iovec *iov, int n,
                               uint64_t off), (file, iov, n, off))
SPARED (int, fdatasync, (struct io_file *file), (file))
SPARED (int, fallocate, (struct io_file *file, int mode, uint64_t off, uint64_t len),
        (file, mode, off, len))
SPARED (int, truncate, (struct io_file *file, uint64_t size), (file, size))
SPARED (int, sync_dir, (const struct io_fs *fs, const char *path), (fs, path))

/* Each allocation of a recovery fails: once, or it and all that come after it. */
START_TEST (recovery_memory)
{
  static const unsigned which[] = { BACKLOG, WRITTEN, CLEAN };
  const struct world *w = world_get (which[_i / 2]);
  unsigned n;

  host_reset (82, true);
  for (n = 1; ; n++) {
    struct simdisk *d = world_copy (w->disk);
    struct io_fs fs = { .ops = &spared, .opaque = simdisk_fs (d)->opaque };
    struct recover_params p = { .fs = &fs, .dir = WORLD_DIR };
    struct recover_result result;
    bool reached;
    int first;

    spared = *simdisk_fs (d)->ops;
    spared.open = spared_open;
    spared.pwritev = spared_pwritev;
    spared.fdatasync = spared_fdatasync;
    spared.fallocate = spared_fallocate;
    spared.truncate = spared_truncate;
    spared.sync_dir = spared_sync_dir;
    sticky = _i % 2;
    fail_alloc (n, sticky);
    first = recover_run (&p, &result, &err);
    reached = fail_alloc_left () < 2;
    fail_alloc (0, false);
    if (first == -1)
      ck_assert_msg (err.code == MCEXIT_USAGE || err.code == MCEXIT_PARTIAL,
                     "%u: code %d: %s", n, (int) err.code, err.text);
    ck_assert_msg (recover_run (&p, &result, &err) == 0, "%u: %s", n, err.text);
    ck_assert_uint_eq (result.checkpoint.id, w->final.id);
    ck_assert_msg (world_images_are (d, &w->final), "allocation %u failed: the images", n);
    simdisk_free (d);
    if (!reached)
      break;
  }
  ck_assert_uint_gt (n, 20);
  printf ("TRIED invariant=6 test=unit/test-recovery-faults what=\"allocations of a recovery that failed\" n=%u\n",
          n - 1);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("recovery");
  TCase *t = tcase_create ("faults");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_loop_test (t, recovery_faults, 0, 6);
  tcase_add_loop_test (t, recovery_memory, 0, 6);
  suite_add_tcase (s, t);
  return unit_run (s);
}
