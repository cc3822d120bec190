/* SPDX-License-Identifier: BSD-3-Clause */
/* Making a journal: under another name, until it is whole and durable. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "journal/internal.h"

#define NEW_NAME "journal.new"

int
journal_exists (const struct io_fs *fs, const char *dir)
{
  CLEANUP_FREE char *path = path_join (dir, "journal");
  struct io_file *file;

  if (path == NULL)
    return -1;
  if (io_open (fs, path, O_RDONLY, 0, &file) == -1)
    return errno == ENOENT || errno == ENOTDIR ? 0 : -1;
  io_close (file);
  return 1;
}

/* All of the space, so that no later write lacks it. */
static int
allocate (struct journal *j, uint64_t size)
{
  static const size_t piece = JOURNAL_CHUNK;
  CLEANUP_FREE void *zeroes = NULL;

  if (io_fallocate (j->file, 0, 0, size) == 0)
    return 0;
  if (errno != EOPNOTSUPP && errno != ENOSYS)
    return -1;
  zeroes = aligned_blocks (piece);
  if (zeroes == NULL)
    return -1;
  memset (zeroes, 0, piece);
  for (uint64_t off = 0; off < size; off += piece)
    if (file_write (j, zeroes, piece, off) == -1)
      return -1;
  return 0;
}

static int
write_first_record (struct journal *j, const struct journal_state *state)
{
  struct journal_state s = *state;
  struct chain_chunk c = { .first = 1 };
  int r;

  if (host_random (&c.salt, sizeof c.salt) == -1)
    return -1;
  pthread_mutex_lock (&j->lock);
  c.chunk = chunk_alloc_locked (j, CHUNK_RECORD, 0);
  r = chain_add (j, &c);
  pthread_mutex_unlock (&j->lock);
  if (r == -1 || anchor_write (j, &c, 1) == -1 || log_reserve (j, 1) == -1)
    return -1;
  j->log.anchor_seq = 1;
  s.zero_filled = j->virgin;
  memcpy (s.boot_id, j->boot_id, HOST_ID_LEN);
  record_encode (j, &j->log.buf[0], JOURNAL_REC_CREATE, &s);
  return log_write (j, 1, 0) == -1 ? -1 : log_sync (j, 1);
}

static int
create_in_dir (struct journal *j, const struct journal_config *config,
               const struct journal_state *state)
{
  CLEANUP_FREE char *fresh = path_join (j->dir, NEW_NAME);
  CLEANUP_FREE char *final = path_join (j->dir, "journal");
  CLEANUP_FREE char *acked = path_join (j->dir, "acked");
  struct io_file *file;

  if (fresh == NULL || final == NULL || acked == NULL ||
      host_boot_id (j->boot_id) == -1)
    return -1;
  /* Left by one that was killed half way, or by another journal.  no_journal has looked at
   * the mark, and a mark without a name is none.
   */
  io_close (j->acked_file);
  j->acked_file = NULL;
  if ((io_unlink (j->fs, fresh) == -1 && errno != ENOENT) ||
      (io_unlink (j->fs, acked) == -1 && errno != ENOENT))
    return -1;
  if (io_open (j->fs, fresh, O_RDWR | O_CREAT | O_EXCL, 0600, &file) == -1)
    return -1;
  io_in_place (file);
  io_close (file);
  if (journal_file_open (j, NEW_NAME) == -1 ||
      config_copy (&j->config, config) == -1)
    return -1;
  j->config.size = ROUND_DOWN (j->config.size, (uint64_t) JOURNAL_CHUNK);
  if (allocate (j, j->config.size) == -1 || space_init (j) == -1)
    return -1;
  j->virgin = 1;
  if (super_write (j, &j->config, 1) == -1 ||
      write_first_record (j, state) == -1)
    return -1;
  if (acked_write (j, 0, state->generation, j->log.seq, 0) == -1 ||
      io_fdatasync (j->acked_file) == -1)
    return -1;
  /* Its name first: one that was left must not come back beside the new journal. */
  if (io_sync_dir (j->fs, j->dir) == -1 ||
      io_rename (j->fs, fresh, final) == -1 ||
      io_sync_dir (j->fs, j->dir) == -1)
    return -1;
  return 0;
}

/* What could not be made shall not fill the file system. */
static void
clean_up (struct journal *j)
{
  int saved = errno;
  CLEANUP_FREE char *fresh = path_join (j->dir, NEW_NAME);

  /* If it cannot be removed, the next journal_create does it. */
  if (fresh)
    (void) io_unlink (j->fs, fresh);
  errno = saved;
}

int
sync_parent (const struct io_fs *fs, const char *dir)
{
  CLEANUP_FREE char *path = strdup (dir);
  char *slash;

  if (path == NULL)
    return -1;
  for (size_t n = strlen (path); n > 1 && path[n - 1] == '/'; n--)
    path[n - 1] = '\0';
  slash = strrchr (path, '/');
  if (slash == NULL)
    return io_sync_dir (fs, ".");
  *(slash == path ? slash + 1 : slash) = '\0';
  return io_sync_dir (fs, path);
}

int
journal_create (const struct io_fs *fs, const char *dir,
                const struct journal_config *config,
                const struct journal_state *state, struct mcerror *err)
{
  struct journal *j;
  int r;

  if (config->size < JOURNAL_MIN_SIZE || config->size > JOURNAL_MAX_SIZE ||
      config->ndisks == 0 || config->ndisks > JOURNAL_MAX_DISKS) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "a journal has 16 MiB to 16 TiB and 1 to %u disks; "
                        "%llu bytes and %u disks were asked for",
                        JOURNAL_MAX_DISKS, (unsigned long long) config->size,
                        config->ndisks);
  }
  if (io_mkdir (fs, dir, 0700) == -1 && errno != EEXIST)
    return mcerror_set (err, MCEXIT_USAGE,
                        "cannot make the journal directory %s: %m", dir);
  j = journal_new (fs, dir);
  if (j == NULL)
    return mcerror_set (err, MCEXIT_USAGE, "cannot make the journal %s: %m",
                        dir);
  if (lock_take (j, err) == -1) {
    journal_destroy (j);
    return -1;
  }
  r = journal_exists (fs, dir);
  if (r == 0 && no_journal (j, err) == -1 && errno == EBADMSG) {
    /* A new one would pass for the one that is lost. */
    journal_destroy (j);
    return -1;
  }
  if (r == 1) {
    errno = EEXIST;
    r = -1;
  }
  if (r == 0 && (r = create_in_dir (j, config, state)) == -1)
    clean_up (j);
  if (r == 0)
    r = sync_parent (fs, dir);
  if (r == -1)
    mcerror_set (err, MCEXIT_USAGE,
                 "cannot make a journal of %llu bytes in %s: %m%s",
                 (unsigned long long) config->size, dir,
                 errno == ENOSPC ? ": make journal-size= smaller, or room" : "");
  journal_destroy (j);
  return r;
}
