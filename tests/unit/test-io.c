/* SPDX-License-Identifier: BSD-3-Clause */
/* The I/O seam: whole transfers over a file in RAM that gives short counts,
 * EINTR and errors, and the host's file system under the same functions.
 */
#include "config.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "unit/unit.h"

#define SIZE 100000u

struct fake {
  struct io_file base;
  uint8_t data[SIZE];
  uint64_t size;
  bool odd;                     /* short counts and EINTR */
  int error;                    /* errno of the next call … */
  unsigned after;               /* … after so many good ones */
  unsigned calls;
  bool stuck;                   /* writes return 0 */
};

/* Should this attempt fail? */
static bool
attempt_fails (struct fake *f)
{
  f->calls++;
  if (f->error && f->after-- == 0) {
    errno = f->error;
    return true;
  }
  if (f->odd && unit_chance (30)) {
    errno = EINTR;
    return true;
  }
  return false;
}

static size_t
shorten (const struct fake *f, size_t n)
{
  return f->odd && n > 0 && unit_chance (60) ? 1 + unit_random (n) : n;
}

static ssize_t
fake_pread (struct io_file *file, void *buf, size_t len, uint64_t off)
{
  struct fake *f = (struct fake *) file;

  if (attempt_fails (f))
    return -1;
  if (off >= f->size)
    return 0;
  if (len > f->size - off)
    len = f->size - off;
  len = shorten (f, len);
  memcpy (buf, f->data + off, len);
  return len;
}

static ssize_t
fake_pwritev (struct io_file *file, const struct iovec *iov, int n,
              uint64_t off)
{
  struct fake *f = (struct fake *) file;
  size_t len = 0, done = 0;

  EXPECT (n > 0 && n <= IOV_MAX);
  if (attempt_fails (f))
    return -1;
  if (f->stuck)
    return 0;
  for (int i = 0; i < n; i++)
    len += iov[i].iov_len;
  len = shorten (f, len);
  EXPECT (off + len <= SIZE);
  for (int i = 0; i < n && done < len; i++) {
    size_t k = iov[i].iov_len < len - done ? iov[i].iov_len : len - done;

    memcpy (f->data + off + done, iov[i].iov_base, k);
    done += k;
  }
  if (off + len > f->size)
    f->size = off + len;
  return len;
}

static int
fake_fdatasync (struct io_file *file)
{
  return attempt_fails ((struct fake *) file) ? -1 : 0;
}

static int
fake_fallocate (struct io_file *file, int mode, uint64_t off, uint64_t len)
{
  (void) mode, (void) off, (void) len;
  return attempt_fails ((struct fake *) file) ? -1 : 0;
}

static int
fake_truncate (struct io_file *file, uint64_t size)
{
  if (attempt_fails ((struct fake *) file))
    return -1;
  ((struct fake *) file)->size = size;
  return 0;
}

static void
fake_close (struct io_file *file)
{
  ((struct fake *) file)->calls = 12345;
  errno = EBADF;
}

static const struct io_ops fake_ops = {
  .close = fake_close,
  .pread = fake_pread,
  .pwritev = fake_pwritev,
  .fdatasync = fake_fdatasync,
  .fallocate = fake_fallocate,
  .truncate = fake_truncate,
};
static const struct io_fs fake_fs = { .ops = &fake_ops };

static struct fake *f;
static struct io_file *file;
static uint8_t want[SIZE], buf[SIZE];

static void
setup (void)
{
  unit_seed ();
  f = calloc (1, sizeof *f);
  EXPECT (f != NULL);
  f->base.fs = &fake_fs;
  file = &f->base;
  for (unsigned i = 0; i < SIZE; i++)
    want[i] = unit_random (256);
}

static void
teardown (void)
{
  free (f);
}

START_TEST (test_read)
{
  memcpy (f->data, want, SIZE);
  f->size = SIZE;
  f->odd = true;
  for (unsigned i = 0; i < 2000; i++) {
    uint64_t off = unit_random (SIZE + 100);
    size_t len = unit_random (unit_chance (50) ? 100 : SIZE);
    size_t there = off >= SIZE ? 0 : len < SIZE - off ? len : SIZE - off;
    int r;

    memset (buf, 0x55, sizeof buf);
    EXPECT (io_pread_some (file, buf, len, off) == (ssize_t) there);
    EXPECT (memcmp (buf, want + (there ? off : 0), there) == 0);
    EXPECT (there == SIZE || buf[there] == 0x55);
    memset (buf, 0x55, sizeof buf);
    errno = 0;
    r = io_pread (file, buf, len, off);
    EXPECT (r == (there == len ? 0 : -1));
    EXPECT (r == 0 || errno == ENODATA);
    EXPECT (memcmp (buf, want + (there ? off : 0), there) == 0);
  }
}
END_TEST

START_TEST (test_write)
{
  f->odd = true;
  for (uint64_t off = 0; off < SIZE; ) {
    size_t len = unit_random (unit_chance (80) ? 200 : 8000);

    if (len > SIZE - off)
      len = SIZE - off;
    EXPECT (io_pwrite (file, want + off, len, off) == 0);
    off += len;
  }
  EXPECT (f->size == SIZE && memcmp (f->data, want, SIZE) == 0);
}
END_TEST

/* Vectors with empty parts, and more parts than one call takes. */
START_TEST (test_writev)
{
  static struct iovec iov[3 * IOV_MAX];

  for (unsigned round = 0; round < 50; round++) {
    int n = 1 + unit_random (unit_chance (50) ? 10 : 3 * IOV_MAX);
    uint64_t off = unit_random (100);
    size_t total = 0;

    for (int i = 0; i < n; i++) {
      iov[i].iov_base = want + total;
      iov[i].iov_len = unit_chance (30) ? 0 : unit_random (30);
      total += iov[i].iov_len;
    }
    memset (f->data, 0, SIZE);
    f->odd = unit_chance (70);
    f->calls = 0;
    EXPECT (io_pwritev (file, iov, n, off) == 0);
    EXPECT (memcmp (f->data + off, want, total) == 0);
    EXPECT (f->data[off + total] == 0);
    EXPECT (f->odd || f->calls <= 3);
  }
  iov[0].iov_len = iov[1].iov_len = 0;
  EXPECT (io_pwritev (file, iov, 2, 0) == 0);
  EXPECT (io_pwritev (file, iov, 0, 0) == 0);
}
END_TEST

START_TEST (test_errors)
{
  f->size = SIZE;
  f->odd = true;
  for (unsigned i = 0; i < 200; i++) {
    f->error = EIO;
    f->after = unit_random (3);
    errno = 0;
    if (io_pread (file, buf, SIZE, 0) == -1)
      EXPECT (errno == EIO);
    else
      EXPECT (f->after < 3);            /* it was over before */
    f->error = ENOSPC;
    f->after = 0;
    EXPECT (io_pwrite (file, want, 10, 0) == -1 && errno == ENOSPC);
    f->after = 0;
    EXPECT (io_truncate (file, 10) == -1 && errno == ENOSPC);
    f->after = 0;
    EXPECT (io_fallocate (file, 0, 0, 10) == -1 && errno == ENOSPC);
    f->error = 0;
    EXPECT (io_truncate (file, SIZE) == 0);     /* EINTR is tried again */
    EXPECT (io_fallocate (file, 0, 0, 10) == 0);
  }
  /* A sync is never tried again: the second might say what is not so. */
  f->odd = false;
  f->error = EINTR;
  f->after = 0;
  f->calls = 0;
  EXPECT (io_fdatasync (file) == -1 && errno == EINTR && f->calls == 1);

  /* No progress is an error, not a loop. */
  f->error = 0;
  f->stuck = true;
  EXPECT (io_pwrite (file, want, 10, 0) == -1 && errno == EIO);
  EXPECT (io_pwrite (file, want, 0, 0) == 0);

  errno = EXDEV;
  io_close (file);
  EXPECT (f->calls == 12345 && errno == EXDEV);
  io_close (NULL);
}
END_TEST

/* --- The host's ------------------------------------------------------------ */

static char dir[200], path[300];

static void
posix_setup (void)
{
  const char *tmp = getenv ("TMPDIR");

  unit_seed ();
  snprintf (dir, sizeof dir, "%s/test-io-XXXXXX", tmp ? tmp : "/tmp");
  EXPECT (mkdtemp (dir) != NULL);
  snprintf (path, sizeof path, "%s/file", dir);
  EXPECT (io_open (&io_posix, path, O_RDWR | O_CREAT, 0600, &file) == 0);
  for (unsigned i = 0; i < SIZE; i++)
    want[i] = unit_random (256);
}

static void
posix_teardown (void)
{
  io_close (file);
  EXPECT (io_unlink (&io_posix, path) == 0);
  EXPECT (rmdir (dir) == 0);
}

START_TEST (test_posix_file)
{
  struct iovec iov[2] = { { want, 1000 }, { want + 1000, SIZE - 1000 } };
  struct io_stat st;
  struct io_file *other;

  EXPECT (io_pwritev (file, iov, 2, 4096) == 0);
  EXPECT (io_pread (file, buf, SIZE, 4096) == 0);
  EXPECT (memcmp (buf, want, SIZE) == 0);
  EXPECT (io_pread (file, buf, SIZE, 4097) == -1 && errno == ENODATA);
  EXPECT (io_pread_some (file, buf, SIZE, 4097) == SIZE - 1);
  EXPECT (io_fdatasync (file) == 0);
  EXPECT (io_stat (file, &st) == 0);
  EXPECT (st.kind == IO_KIND_REGULAR && st.size == SIZE + 4096);
  EXPECT (io_truncate (file, 8192) == 0);
  EXPECT (io_stat (file, &st) == 0 && st.size == 8192);
  EXPECT (io_fallocate (file, 0, 0, 65536) == 0);
  EXPECT (io_stat (file, &st) == 0 && st.size == 65536);
  EXPECT (io_seek (file, 0, SEEK_DATA) >= 0);
  EXPECT (io_seek (file, 100000, SEEK_DATA) == -1 && errno == ENXIO);
  EXPECT (io_advise (file, 0, 4096, POSIX_FADV_WILLNEED) == 0);
  errno = 0;
  EXPECT (io_advise (file, 0, 4096, 12345) == -1 && errno == EINVAL);

  EXPECT (io_open (&io_posix, "/nonexistent/x", O_RDONLY, 0, &other) == -1);
  EXPECT (errno == ENOENT);
  EXPECT (io_open (&io_posix, "/dev/null", O_RDONLY, 0, &other) == 0);
  EXPECT (io_stat (other, &st) == 0 && st.kind == IO_KIND_OTHER);
  io_close (other);
}
END_TEST

START_TEST (test_posix_names)
{
  char a[300], b[300];
  struct stat st;

  snprintf (a, sizeof a, "%s/a", dir);
  snprintf (b, sizeof b, "%s/b", dir);
  EXPECT (io_mkdir (&io_posix, a, 0700) == 0);
  EXPECT (stat (a, &st) == 0 && (st.st_mode & 0777) == 0700);
  EXPECT (io_mkdir (&io_posix, a, 0700) == -1 && errno == EEXIST);
  EXPECT (io_rename (&io_posix, a, b) == 0);
  EXPECT (io_sync_dir (&io_posix, dir) == 0);
  EXPECT (io_sync_dir (&io_posix, path) == -1 && errno == ENOTDIR);
  EXPECT (stat (a, &st) == -1 && errno == ENOENT);
  EXPECT (io_unlink (&io_posix, a) == -1 && errno == ENOENT);
  EXPECT (rmdir (b) == 0);
}
END_TEST

/* Could another process have the lock?  0, or its errno. */
static int
other_process (enum io_lock how, uint64_t off)
{
  int status;
  pid_t pid = fork ();

  EXPECT (pid != -1);
  if (pid == 0) {
    struct io_file *mine;

    if (io_open (&io_posix, path, O_RDWR, 0, &mine) == -1)
      _exit (255);
    int r = io_lock_test (mine, how, off, 1) == 0 ? 0 : errno;
    int r2 = io_lock (mine, how, off, 1) == 0 ? 0 : errno;
    _exit (r == r2 ? r : 254);
  }
  EXPECT (waitpid (pid, &status, 0) == pid && WIFEXITED (status));
  return WEXITSTATUS (status);
}

/* Locks belong to the open file: they hold against others, survive a fork,
 * and closing another descriptor of the same file does not drop them.
 */
START_TEST (test_posix_locks)
{
  struct io_file *second;

  EXPECT (io_lock (file, IO_LOCK_SHARED, 100, 1) == 0);
  EXPECT (io_lock (file, IO_LOCK_EXCLUSIVE, 200, 1) == 0);
  EXPECT (other_process (IO_LOCK_SHARED, 100) == 0);
  EXPECT (other_process (IO_LOCK_EXCLUSIVE, 100) == EAGAIN);
  EXPECT (other_process (IO_LOCK_SHARED, 200) == EAGAIN);
  EXPECT (other_process (IO_LOCK_EXCLUSIVE, 300) == 0);
  EXPECT (io_lock_test (file, IO_LOCK_EXCLUSIVE, 200, 1) == 0);

  EXPECT (io_open (&io_posix, path, O_RDWR, 0, &second) == 0);
  EXPECT (io_lock (second, IO_LOCK_SHARED, 200, 1) == -1 && errno == EAGAIN);
  io_close (second);
  EXPECT (other_process (IO_LOCK_SHARED, 200) == EAGAIN);
  EXPECT (io_lock (file, IO_UNLOCK, 200, 1) == 0);
  EXPECT (other_process (IO_LOCK_EXCLUSIVE, 200) == 0);
}
END_TEST

/* Who has a file open for writing is found, without any lock; readers are not; nobody is kept from opening it. */
START_TEST (test_posix_writers)
{
  struct io_file *look, *again;
  char who[64], name[64];
  int ready[2], status;
  pid_t pid;
  char c;

  EXPECT (io_open (&io_posix, path, O_RDONLY, 0, &look) == 0);
  if (io_check_writers (look, who, sizeof who) == 0) {
    io_close (look);            /* no leases on this file system */
    return;
  }
  /* It is this process itself, which needs no name. */
  EXPECT (errno == EBUSY && who[0] == '\0');
  io_close (file);
  file = NULL;
  EXPECT (io_open (&io_posix, path, O_RDONLY, 0, &again) == 0);
  EXPECT (io_check_writers (look, who, sizeof who) == 0);
  io_close (again);

  EXPECT (pipe (ready) == 0);
  pid = fork ();
  EXPECT (pid != -1);
  if (pid == 0) {
    /* Would fail if the lease were still there. */
    bool good = io_open (&io_posix, path, O_RDWR | O_NONBLOCK, 0, &again) == 0;

    if (write (ready[1], good ? "y" : "n", 1) == 1)
      pause ();
    _exit (1);
  }
  EXPECT (read (ready[0], &c, 1) == 1 && c == 'y');
  EXPECT (io_check_writers (look, who, sizeof who) == -1 && errno == EBUSY);
  snprintf (name, sizeof name, "process %d", (int) pid);
  EXPECT (strncmp (who, name, strlen (name)) == 0);
  EXPECT (kill (pid, SIGKILL) == 0 && waitpid (pid, &status, 0) == pid);
  EXPECT (io_check_writers (look, who, sizeof who) == 0);
  EXPECT (close (ready[0]) == 0 && close (ready[1]) == 0);
  io_close (look);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("io");
  TCase *tc = tcase_create ("io");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, test_read);
  tcase_add_test (tc, test_write);
  tcase_add_test (tc, test_writev);
  tcase_add_test (tc, test_errors);
  suite_add_tcase (s, tc);
  tc = tcase_create ("posix");
  tcase_add_checked_fixture (tc, posix_setup, posix_teardown);
  tcase_add_test (tc, test_posix_file);
  tcase_add_test (tc, test_posix_names);
  tcase_add_test (tc, test_posix_locks);
  tcase_add_test (tc, test_posix_writers);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
