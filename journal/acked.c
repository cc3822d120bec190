/* SPDX-License-Identifier: BSD-3-Clause */
/* The acknowledged mark: which record was last reported to be durable.
 *
 * A plain write, so that it costs next to nothing and survives the death of
 * the process; a thread syncs it now and then.  It can only ever be behind the
 * log, never ahead: it is written after the log was synced.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "common/crc.h"
#include "journal/internal.h"

#define SYNC_EVERY_NS 200000000L

static uint32_t
acked_crc (struct format_acked *a)
{
  le32 kept = a->crc;
  uint32_t crc;

  a->crc = put32 (0);
  crc = crc32c (a, sizeof *a, 0);
  a->crc = kept;
  return crc;
}

int
acked_open (struct journal *j, bool create)
{
  CLEANUP_FREE char *path = path_join (j->dir, "acked");

  if (path == NULL)
    return -1;
  return io_open (j->fs, path, j->look ? O_RDONLY : O_RDWR | (create ? O_CREAT : 0),
                  0600, &j->acked_file);
}

int
acked_write (struct journal *j, uint64_t checkpoint, uint64_t generation,
             uint64_t seq, uint32_t flags)
{
  struct format_acked a;

  if (j->acked_file == NULL && acked_open (j, true) == -1)
    return -1;
  memset (&a, 0, sizeof a);
  memcpy (a.magic, FORMAT_ACKED_MAGIC, FORMAT_MAGIC_LEN);
  memcpy (a.id, j->config.id, HOST_ID_LEN);
  memcpy (a.boot_id, j->boot_id, HOST_ID_LEN);
  a.checkpoint = put64 (checkpoint);
  a.generation = put64 (generation);
  a.seq = put64 (seq);
  a.flags = put32 (flags);
  a.crc = put32 (acked_crc (&a));
  return io_pwrite (j->acked_file, &a, sizeof a, 0);
}

/* What is read of the log and what is written are one step: whoever comes second knows more. */
static int
write_failed (struct journal *j)
{
  uint64_t checkpoint, generation, seq;
  SCOPED_LOCK (&j->acked_lock);

  {
    SCOPED_LOCK (&j->lock);
    j->mark_failed = j->noted_failed = true;
    checkpoint = j->state.has_checkpoint ? j->state.checkpoint.id : 0;
    generation = j->state.generation;
    /* Durable, and refused all the same: the mark that was to say so could not be written. */
    seq = j->log.refused ? j->log.refused - 1 : j->log.durable;
  }
  return acked_write (j, checkpoint, generation, seq, FORMAT_ACKED_FAILED);
}

int
journal_note_failed (struct journal *j, bool durable)
{
  /* Synced, for what was to take a clean mark off may not have got to the disk.  An error leaves what
   * there is without the flag: that much is known to be good.
   */
  if (write_failed (j) == -1)
    return -1;
  return io_fdatasync (j->acked_file) == 0 || !durable ? 0 : -1;
}

int
acked_read (struct journal *j, struct format_acked *a)
{
  ssize_t n;

  if (j->acked_file == NULL && acked_open (j, false) == -1)
    return errno == ENOENT ? 0 : -1;
  n = io_pread_some (j->acked_file, a, sizeof *a, 0);
  if (n == -1)
    return errno == EIO ? 0 : -1;
  return n == sizeof *a &&
         memcmp (a->magic, FORMAT_ACKED_MAGIC, FORMAT_MAGIC_LEN) == 0 &&
         acked_crc (a) == get32 (a->crc);
}

/* What was written in this boot cannot be synced, and may be gone though it is still read: the mark,
 * which lives as long as the boot does, knows what was durable before.  One of an
 * earlier boot may be behind, but then nothing was acknowledged in this one.
 */
void
acked_distrust (struct journal *j)
{
  int saved = errno;
  struct format_acked a;

  if (acked_read (j, &a) == 1 &&
      memcmp (a.boot_id, j->boot_id, HOST_ID_LEN) == 0) {
    a.flags = put32 (get32 (a.flags) | FORMAT_ACKED_FAILED);
    a.crc = put32 (acked_crc (&a));
    if (io_pwrite (j->acked_file, &a, sizeof a, 0) == 0)
      (void) io_fdatasync (j->acked_file);
  }
  errno = saved;
}

bool
acked_is_lost (struct journal *j)
{
  struct io_stat st;

  if (j->acked_file == NULL && acked_open (j, false) == -1)
    return errno == ENOENT;
  return io_stat (j->acked_file, &st) == 0 &&
         st.size < sizeof (struct format_acked);
}

/* Sync the mark off the path.  An error is no harm: the mark is an aid. */
void *
acked_thread_main (void *arg)
{
  struct journal *j = arg;
  SCOPED_LOCK (&j->lock);

  while (!j->stopping) {
    struct timespec until;

    if (!j->acked_dirty) {
      pthread_cond_wait (&j->acked_cond, &j->lock);
      continue;
    }
    j->acked_dirty = false;
    pthread_mutex_unlock (&j->lock);
    (void) io_fdatasync (j->acked_file);
    pthread_mutex_lock (&j->lock);
    if (j->stopping)
      break;
    if (clock_gettime (CLOCK_MONOTONIC, &until) == -1)
      continue;
    until.tv_nsec += SYNC_EVERY_NS;
    if (until.tv_nsec >= 1000000000L) {
      until.tv_sec++;
      until.tv_nsec -= 1000000000L;
    }
    while (!j->stopping &&
           pthread_cond_timedwait (&j->acked_cond, &j->lock, &until) == 0)
      ;
  }
  return NULL;
}
