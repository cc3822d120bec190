/* SPDX-License-Identifier: BSD-3-Clause */
/* What a replica makes of a file system that lacks something: O_DIRECT, fallocate, holes. */
#include "config.h"

#include <fcntl.h>

#include <check.h>

#include "fuzz/fuzz.h"
#include "fuzz/world.h"
#include "unit/torture.h"
#include "unit/unit.h"

static struct simdisk *disk;
static struct replica *r;
static struct mcerror err;

static void
setup (void)
{
  host_reset (81, false);
  host_boot (0);
  disk = simdisk_new ();
}

static void
teardown (void)
{
  simdisk_free (disk);
}

static struct io_ops poor;
static struct io_fs poor_fs;
static int seek_error, fallocate_error, direct_error, transfer_error;
static struct io_file *direct_file;
static unsigned buffered_opens;

static int
poor_open (const struct io_fs *fs, const char *path, int flags, mode_t mode,
           struct io_file **file)
{
  if (flags & O_DIRECT && direct_error) {
    errno = direct_error;
    return -1;
  }
  if (simdisk_fs (disk)->ops->open (fs, path, flags, mode, file) == -1)
    return -1;
  if (flags & O_DIRECT) {
    direct_file = *file;
    return 0;
  }
  if (direct_file == *file)
    direct_file = NULL;
  if ((flags & O_ACCMODE) == O_RDWR && strcmp (path, "/sim/poor/journal") == 0)
    buffered_opens++;
  return 0;
}

static ssize_t
poor_pread (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  if (transfer_error && file == direct_file) {
    errno = transfer_error;
    return -1;
  }
  return simdisk_fs (disk)->ops->pread (file, buf, len, off);
}

static int
poor_fallocate (struct io_file *file, int mode, uint64_t off, uint64_t len)
{
  if (fallocate_error) {
    errno = fallocate_error;
    return -1;
  }
  return simdisk_fs (disk)->ops->fallocate (file, mode, off, len);
}

static off_t
poor_seek (struct io_file *file, uint64_t off, int whence)
{
  if (seek_error) {
    errno = seek_error;
    return -1;
  }
  return simdisk_fs (disk)->ops->seek (file, off, whence);
}

static struct replica_params
on_poor_host (struct replica_disk_params *d)
{
  poor = *simdisk_fs (disk)->ops;
  poor.open = poor_open;
  poor.pread = poor_pread;
  poor.fallocate = poor_fallocate;
  poor.seek = poor_seek;
  poor_fs = (struct io_fs) { .ops = &poor, .opaque = simdisk_fs (disk)->opaque };
  *d = (struct replica_disk_params) { .name = "vda", .path = "/sim/poor.img",
                                      .create = true, .size = 1 << 20 };
  return (struct replica_params) { .fs = &poor_fs, .dir = "/sim/poor", .disks = d,
                                   .ndisks = 1, .journal_size = JOURNAL_MIN_SIZE,
                                   .buffer = 8 << 20 };
}

static int
count_extents (void *opaque, uint64_t offset, uint64_t length, bool hole,
               bool zero)
{
  (void) offset;
  (void) hole;
  (void) zero;
  *(uint64_t *) opaque += length;
  return 0;
}

/* No O_DIRECT, no fallocate, no SEEK_HOLE: slower, and right. */
START_TEST (poor_host)
{
  struct replica_disk_params d;
  struct replica_params p = on_poor_host (&d);
  struct replica_export x = { .disk = 0 };
  uint64_t length = 0;
  uint8_t block[8192];

  direct_error = EINVAL;
  fallocate_error = EOPNOTSUPP;
  seek_error = EINVAL;
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  r->by_hand = true;
  memset (block, 9, sizeof block);
  EXPECT (replica_pwrite (r, &x, block, sizeof block, 4096, REPLICA_FUA) == 0);
  ck_assert_int_eq (replica_zero (r, &x, 4096, 8192, REPLICA_FAST_ZERO), -1);
  ck_assert_int_eq (errno, ENOTSUP);
  EXPECT (replica_zero (r, &x, 4096, 8192, REPLICA_MAY_TRIM) == 0);
  EXPECT (replica_extents (r, &x, 1 << 20, 0, count_extents, &length) == 0);
  ck_assert_uint_eq (length, 1 << 20);
  EXPECT (replica_pread (r, &x, block, sizeof block, 4096) == 0);
  ck_assert_int_eq (block[4095], 9);
  ck_assert_int_eq (block[4096], 0);
  replica_close (r);
  /* And from there on. */
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  replica_close (r);
}
END_TEST

/* Some file systems take O_DIRECT, and then no transfer, or none of our alignment. */
START_TEST (direct_in_name_only)
{
  struct replica_disk_params d;
  struct replica_params p = on_poor_host (&d);
  struct replica_export x = { .disk = 0 };
  struct commit_answer a;
  uint8_t block[4096], got[4096];

  p.baseline_trusted = true;
  transfer_error = EINVAL;
  for (unsigned i = 1; i < 4; i++) {
    ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
    r->by_hand = true;
    ck_assert_uint_eq (buffered_opens, i);
    if (i > 1) {
      EXPECT (replica_pread (r, &x, got, sizeof got, 8192) == 0);
      EXPECT (memcmp (got, block, sizeof got) == 0);
    }
    memset (block, i, sizeof block);
    EXPECT (replica_pwrite (r, &x, block, sizeof block, 8192, 0) == 0);
    EXPECT (replica_commit (r, &(struct commit_request) { 0 }, &a, NULL) == 0);
    replica_close (r);
  }
  /* That it cannot be read at all is another matter. */
  transfer_error = EIO;
  ck_assert_int_eq (replica_open (&p, &r, &err), -1);
  ck_assert_uint_eq (buffered_opens, 3);
}
END_TEST

/* What is worse than poor is an error that says so. */
START_TEST (broken_host)
{
  struct replica_disk_params d;
  struct replica_params p = on_poor_host (&d);
  struct replica_export x = { .disk = 0 };
  uint64_t length = 0;

  fallocate_error = ENOSPC;
  ck_assert_int_eq (replica_open (&p, &r, &err), -1);
  ck_assert_msg (err.text[0] != '\0', "%s", err.text);
  fallocate_error = 0;
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  r->by_hand = true;
  seek_error = EIO;
  ck_assert_int_eq (replica_extents (r, &x, 1 << 20, 0, count_extents, &length), -1);
  ck_assert_int_eq (errno, EIO);
  replica_close (r);
  seek_error = 0;
  direct_error = EIO;
  ck_assert_int_eq (replica_open (&p, &r, &err), -1);
  ck_assert (strstr (err.text, "/sim/poor/journal") != NULL);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("host");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, poor_host);
  tcase_add_test (t, direct_in_name_only);
  tcase_add_test (t, broken_host);
  suite_add_tcase (s, t);
  return unit_run (s);
}
