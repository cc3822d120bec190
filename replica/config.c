/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal of a replica and its disks: making one, and holding the disks that were named
 * against those that the journal knows.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "replica/internal.h"

const char *
show_name (const char *name)
{
  return name[0] ? name : "(unnamed)";
}

static int
fill_config (struct replica *r, struct journal_config *config,
             struct journal_disk *disks)
{
  config->ndisks = r->ndisks;
  config->disks = disks;
  for (unsigned i = 0; i < r->ndisks; i++) {
    snprintf (disks[i].name, sizeof disks[i].name, "%s", r->disks[i].name);
    snprintf (disks[i].path, sizeof disks[i].path, "%s",
              backing_path (r->disks[i].backing));
    disks[i].size = r->disks[i].size;
    disks[i].joined = r->disks[i].joined;
  }
  return 0;
}

/* --- a new replica ------------------------------------------------------------------ */

/* Is DIR missing, or without anything that a journal would not have? */
static int
check_directory (const struct io_fs *fs, const char *dir, struct mcerror *err)
{
  static const char *const ours[] = { ".", "..", "journal", "journal.new",
                                      "acked", "lock", "control" };
  const struct dirent *e;
  int result = 0;
  DIR *d;

  if (fs != &io_posix)
    return 0;
  d = opendir (dir);
  if (d == NULL)
    return errno == ENOENT ? 0 :
      mcerror_set (err, MCEXIT_USAGE, "%s: cannot make a journal there: %m", dir);
  while ((errno = 0, e = readdir (d)) != NULL && result == 0) {
    bool known = strncmp (e->d_name, "catalog.sqlite", 14) == 0;

    for (size_t i = 0; i < sizeof ours / sizeof ours[0] && !known; i++)
      known = strcmp (e->d_name, ours[i]) == 0;
    if (!known) {
      errno = ENOTEMPTY;
      result = mcerror_set (err, MCEXIT_USAGE,
                            "%s: holds \"%s\" and no journal: name a new or empty directory with journal=",
                            dir, e->d_name);
    }
  }
  int saved = errno;
  (void) closedir (d);
  errno = saved;
  return result;
}

/* Is there room for SIZE bytes in DIR, which may not exist yet?  Allocating what does not fit would
 * fill the file system for as long as that takes.
 */
static int
check_room (const struct io_fs *fs, const char *dir, uint64_t size,
            struct mcerror *err)
{
  CLEANUP_FREE char *parent = strdup (dir);
  char *slash = parent ? strrchr (parent, '/') : NULL;
  struct statvfs st;
  uint64_t room;

  if (fs != &io_posix || parent == NULL)
    return 0;
  if (slash)
    slash[slash == parent] = '\0';
  if (statvfs (dir, &st) == -1 &&
      statvfs (slash ? parent : ".", &st) == -1)
    return 0;                   /* whatever is wrong, making it says so */
  if (st.f_blocks == 0)
    return 0;                   /* it does not count: ramfs, some in user space */
  room = (uint64_t) st.f_bfree * st.f_frsize;
  if (size <= room)
    return 0;
  errno = ENOSPC;
  return mcerror_set (err, MCEXIT_USAGE,
                      "cannot make a journal of %" PRIu64 " bytes in %s: %m: its file system has %" PRIu64
                      " bytes free: make journal-size= smaller, or room", size, dir, room);
}

int
replica_create (struct replica *r, const struct replica_params *params,
        struct mcerror *err)
{
  CLEANUP_FREE struct journal_disk *disks = calloc (r->ndisks, sizeof *disks);
  struct journal_config config = {
    .size = params->journal_size ? params->journal_size :
      REPLICA_DEFAULT_JOURNAL_SIZE };
  struct journal_state state = { .state = JOURNAL_SYNCING, .generation = 1,
                                 .clean = true, .epoch = 1 };

  if (check_directory (params->fs, params->dir, err) == -1 ||
      check_room (params->fs, params->dir, config.size, err) == -1)
    return -1;
  if (disks == NULL || host_random (config.id, sizeof config.id) == -1)
    return mcerror_set (err, MCEXIT_USAGE, "cannot make a new journal: %m");
  if (fill_config (r, &config, disks) == -1)
    return -1;
  if (params->baseline_trusted) {
    /* The image is checkpoint 0 from here on: it must outlive the power. */
    for (unsigned i = 0; i < r->ndisks; i++)
      if (backing_flush (r->disks[i].backing) == -1)
        return mcerror_set (err, MCEXIT_USAGE,
                            "%s: cannot make the baseline durable: %m",
                            backing_path (r->disks[i].backing));
    state.state = JOURNAL_PROTECTED;
    state.has_checkpoint = true;
    state.checkpoint.time = host_time_ns ();
    state.watermark = state.checkpoint;
  }
  state_epoch (&state, 1);
  return journal_create (params->fs, params->dir, &config, &state, err);
}

/* --- one that lived before ------------------------------------------------------------ */

/* Two names of one block device? */
static bool
same_device (const char *a, const char *b)
{
  struct stat s, t;

  return stat (a, &s) == 0 && S_ISBLK (s.st_mode) &&
         stat (b, &t) == 0 && S_ISBLK (t.st_mode) && s.st_rdev == t.st_rdev;
}

/* A disk's path may have changed only if nothing else is left at the old one. */
static int
check_path (struct replica *r, const struct journal_disk *was,
            const struct disk *is, bool *moved, struct mcerror *err)
{
  int exists;

  if (strcmp (was->path, backing_path (is->backing)) == 0)
    return 0;
  if (r->fs == &io_posix &&
      same_device (was->path, backing_path (is->backing))) {
    *moved = true;
    return 0;
  }
  exists = backing_exists (r->fs, was->path);
  if (exists == 1) {
    errno = EINVAL;
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: this journal belongs to another image: disk %s is %s, not %s: "
                        "use that image, or another journal=",
                        r->dir, show_name (was->name), was->path,
                        backing_path (is->backing));
  }
  if (exists == -1)
    return mcerror_set (err, MCEXIT_USAGE,
                        "%s: cannot see whether the image of disk %s has moved from there: %m",
                        was->path, show_name (was->name));
  *moved = true;
  return 0;
}

static void
add_name (char *text, size_t size, const char *name)
{
  size_t n = strlen (text);

  snprintf (text + n, size - n, "%s%s", n ? ", " : "", show_name (name));
}

/* The names of both sides, each missing on the other. */
int
check_disk_names (const struct replica_params *params,
             const struct journal_config *config, struct mcerror *err)
{
  char missing[256] = "", surplus[256] = "", way[256] = "";

  for (unsigned i = 0; i < config->ndisks; i++) {
    bool named = false;

    for (unsigned k = 0; k < params->ndisks && !named; k++)
      named = strcmp (params->disks[k].name, config->disks[i].name) == 0;
    if (!named) {
      size_t n = strlen (way);

      add_name (missing, sizeof missing, config->disks[i].name);
      snprintf (way + n, sizeof way - n, " remove-disk=%s", config->disks[i].name);
    }
  }
  for (unsigned k = 0; k < params->ndisks; k++) {
    bool known = false;

    for (unsigned i = 0; i < config->ndisks && !known; i++)
      known = strcmp (params->disks[k].name, config->disks[i].name) == 0;
    if (!known) {
      size_t n = strlen (way);

      add_name (surplus, sizeof surplus, params->disks[k].name);
      snprintf (way + n, sizeof way - n, " add-disk=%s", params->disks[k].name);
    }
  }
  if (!missing[0] && !surplus[0])
    return 0;
  errno = EINVAL;
  return mcerror_set (err, MCEXIT_USAGE,
                      "%s: %s%s%s%s%s%s: name the disks as before, or change the set with%s",
                      params->dir,
                      missing[0] ? "this journal has disk " : "", missing,
                      missing[0] ? ", which is not named" : "",
                      missing[0] && surplus[0] ? "; " : "",
                      surplus[0] ? "it has no disk " : "", surplus, way);
}

/* R's disks in the order of the journal, whose extents name them by number. */
static void
put_in_order (struct replica *r, const struct journal_config *config)
{
  for (unsigned i = 0; i < config->ndisks; i++)
    for (unsigned k = i + 1; k < r->ndisks; k++)
      if (strcmp (r->disks[k].name, config->disks[i].name) == 0) {
        struct disk other = r->disks[i];

        r->disks[i] = r->disks[k];
        r->disks[k] = other;
      }
}

int
check_config (struct replica *r, struct mcerror *err)
{
  const struct journal_config *config = journal_get_config (r->journal);
  bool moved = false;

  put_in_order (r, config);
  for (unsigned i = 0; i < config->ndisks; i++) {
    const struct journal_disk *was = &config->disks[i];
    struct disk *is = &r->disks[i];

    is->joined = was->joined;
    backing_fit (is->backing, was->size);
    is->size = backing_size (is->backing);
    errno = EINVAL;
    if (is->size != was->size)
      return mcerror_set (err, MCEXIT_USAGE,
                          "%s: disk %s has %" PRIu64 " bytes, but had %" PRIu64 " when it joined the replica: "
                          "restore its size, or let it leave with remove-disk=%s and join again",
                          backing_path (is->backing), show_name (was->name), is->size, was->size,
                          was->name);
    if (check_path (r, was, is, &moved, err) == -1)
      return -1;
  }
  if (moved) {
    CLEANUP_FREE struct journal_disk *disks = calloc (r->ndisks, sizeof *disks);
    struct journal_config next = *config;

    if (disks == NULL)
      return mcerror_set (err, MCEXIT_USAGE, "cannot note where the images are: %m");
    if (fill_config (r, &next, disks) == -1)
      return -1;
    return journal_set_config (r->journal, &next, err);
  }
  return 0;
}
