/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal file itself: opening it in one mode for all, transfers, and
 * the small helpers that every other file here uses.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/lock.h"
#include "journal/internal.h"

char *
path_join (const char *dir, const char *name)
{
  char *path;

  if (asprintf (&path, "%s/%s", dir, name) == -1)
    return NULL;
  return path;
}

void *
aligned_blocks (size_t bytes)
{
  void *p;
  int r = posix_memalign (&p, JOURNAL_BLOCK, ROUND_UP (bytes, JOURNAL_BLOCK));

  if (r != 0) {
    errno = r;
    return NULL;
  }
  return p;
}

/* O_DIRECT where the file system has it, for reads as for writes: some say
 * EINVAL at open, some at the first transfer.
 */
int
journal_file_open (struct journal *j, const char *name)
{
  CLEANUP_FREE char *path = path_join (j->dir, name);
  CLEANUP_FREE void *probe = aligned_blocks (JOURNAL_BLOCK);
  int mode = j->look ? O_RDONLY : O_RDWR;

  if (path == NULL || probe == NULL)
    return -1;
  if (io_open (j->fs, path, mode | O_DIRECT, 0, &j->file) == 0) {
    if (io_pread_some (j->file, probe, JOURNAL_BLOCK, 0) != -1 ||
        errno != EINVAL) {
      j->direct = true;
      return 0;
    }
    io_close (j->file);
    j->file = NULL;
  }
  else if (errno != EINVAL)
    return -1;
  j->direct = false;
  return io_open (j->fs, path, mode, 0, &j->file);
}

int
file_read (struct journal *j, void *buf, size_t len, uint64_t off)
{
  int r = io_pread (j->file, buf, len, off);

  /* What the device cannot give is not what a power loss leaves behind. */
  if (r == -1 && errno != ENODATA)
    __atomic_store_n (&j->unreadable, true, __ATOMIC_RELAXED);
  return r;
}

int
file_write (struct journal *j, const void *buf, size_t len, uint64_t off)
{
  return io_pwrite (j->file, buf, len, off);
}

int
file_sync (struct journal *j)
{
  return io_fdatasync (j->file);
}

void
damage_set (struct journal_damage *damage, const char *file, uint64_t offset,
            uint64_t checkpoint, const char *fmt, ...)
{
  int saved = errno;
  va_list args;

  if (damage == NULL)
    return;
  memset (damage, 0, sizeof *damage);
  snprintf (damage->file, sizeof damage->file, "%s", file);
  damage->offset = offset;
  damage->checkpoint = checkpoint;
  va_start (args, fmt);
  vsnprintf (damage->what, sizeof damage->what, fmt, args);
  va_end (args);
  errno = saved;
}

/* While opening: keep the first that was found. */
void
damage_note (struct journal *j, const struct journal_damage *d)
{
  if (!j->damaged) {
    j->damaged = true;
    j->damage = *d;
  }
}

int
damage_fatal (struct journal *j, const struct journal_damage *d,
              struct mcerror *err)
{
  j->damage = *d;
  errno = EBADMSG;
  return mcerror_set (err, MCEXIT_DAMAGE,
                      "%s/%s: damage at offset %llu: %s: no checkpoint can be recovered: "
                      "the image must not be used", j->dir, d->file,
                      (unsigned long long) d->offset, d->what);
}

/* Waits are timed by a clock that nobody sets. */
static int
timed_cond_init (pthread_cond_t *cond)
{
  pthread_condattr_t attr;
  int r = pthread_condattr_init (&attr);

  if (r != 0)
    return r;
  r = pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  if (r == 0)
    r = pthread_cond_init (cond, &attr);
  (void) pthread_condattr_destroy (&attr);
  return r;
}

struct journal *
journal_new (const struct io_fs *fs, const char *dir)
{
  struct journal *j = calloc (1, sizeof *j);

  if (j == NULL)
    return NULL;
  j->fs = fs;
  j->part_runs = FORMAT_RUNS;
  j->ready_head = j->ready_tail = NO_BUFFER;
  j->region_fd = -1;
  if (lock_init (&j->lock) != 0 || pthread_mutex_init (&j->acked_lock, NULL) != 0 ||
      pthread_cond_init (&j->turn_cond, NULL) != 0 ||
      pthread_cond_init (&j->buffer_cond, NULL) != 0 ||
      pthread_cond_init (&j->work_cond, NULL) != 0 ||
      timed_cond_init (&j->zero_cond) != 0 ||
      timed_cond_init (&j->acked_cond) != 0) {
    free (j);
    errno = ENOMEM;
    return NULL;
  }
  j->dir = strdup (dir);
  if (j->dir == NULL) {
    journal_destroy (j);
    return NULL;
  }
  return j;
}

void
journal_destroy (struct journal *j)
{
  int saved = errno;

  if (j == NULL)
    return;
  tables_free (j);
  space_free (j);
  while (j->log.ncommits > 0)
    commits_drop_oldest (j);
  free (j->log.commits);
  free (j->log.chain);
  free (j->log.buf);
  while (j->loaded) {
    struct loaded *l = j->loaded;

    j->loaded = l->next;
    free (l->mem);
    free (l);
  }
  config_free (&j->config);
  io_close (j->file);
  io_close (j->acked_file);
  io_close (j->lock_file);      /* last: the lock goes with it */
  pthread_cond_destroy (&j->acked_cond);
  pthread_cond_destroy (&j->zero_cond);
  pthread_cond_destroy (&j->work_cond);
  pthread_cond_destroy (&j->buffer_cond);
  pthread_cond_destroy (&j->turn_cond);
  pthread_mutex_destroy (&j->acked_lock);
  pthread_mutex_destroy (&j->lock);
  free (j->dir);
  free (j);
  errno = saved;
}

const char *
journal_dir (struct journal *j)
{
  return j->dir;
}

const struct journal_config *
journal_get_config (struct journal *j)
{
  return &j->config;
}

void
journal_get_state (struct journal *j, struct journal_state *state)
{
  SCOPED_LOCK (&j->lock);
  *state = j->state;
}

int
journal_get_damage (struct journal *j, struct journal_damage *damage)
{
  SCOPED_LOCK (&j->lock);
  if (!j->damaged)
    return 0;
  *damage = j->damage;
  return 1;
}

bool
journal_was_failed (struct journal *j)
{
  SCOPED_LOCK (&j->lock);
  return j->was_failed;
}

int
journal_failed (struct journal *j)
{
  SCOPED_LOCK (&j->lock);
  return j->failed;
}
