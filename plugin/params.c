/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "common/bytes.h"
#include "common/uri.h"
#include "plugin/params.h"

#define NAME_CHARS \
  "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
#define CHUNK (UINT64_C (1) << 20)
#define MIN_BUFFER (8 * CHUNK)

static struct disk_param {
  char *name, *path;
} disks[JOURNAL_MAX_DISKS];
static struct replica_disk_params disk_params[JOURNAL_MAX_DISKS];
static unsigned ndisks;
static char *join[JOURNAL_MAX_DISKS], *leave[JOURNAL_MAX_DISKS];
static unsigned njoin, nleave;
static char *journal;
static int64_t journal_size = -1, buffer = -1, size = -1;
static bool baseline_trusted;
static struct replica_history history;
static bool history_given;
static struct secret secret;
static bool has_secret;

static int
add_disk (const char *value)
{
  size_t n = strspn (value, NAME_CHARS);
  bool named = n > 0 && value[n] == ':' && !uri_is_nbd (value);
  const char *path = named ? value + n + 1 : value;
  bool uri = uri_is_nbd (path);
  struct disk_param *d;

  if (ndisks == JOURNAL_MAX_DISKS) {
    nbdkit_error ("disk=%s: a replica has at most %u disks", value,
                  JOURNAL_MAX_DISKS);
    return -1;
  }
  if (named && n > JOURNAL_NAME_MAX) {
    nbdkit_error ("disk=%s: a disk's name has at most %u characters", value,
                  JOURNAL_NAME_MAX);
    return -1;
  }
  if (named && n == strlen ("mcbuf-control") &&
      strncmp (value, "mcbuf-control", n) == 0) {
    nbdkit_error ("disk=%s: mcbuf-control is the name of the control export: choose another",
                  value);
    return -1;
  }
  if (path[0] == '\0') {
    nbdkit_error ("disk=%s: the path of the backing image is missing", value);
    return -1;
  }
  if (uri && uri_relative_path (path)) {
    nbdkit_error ("disk=%s: %s= must be an absolute path: a server changes its working directory",
                  value, uri_relative_path (path));
    return -1;
  }
  d = &disks[ndisks];
  d->name = named ? strndup (value, n) : strdup ("");
  d->path = uri ? strdup (path) : nbdkit_absolute_path (path);
  if (d->name == NULL || d->path == NULL) {
    nbdkit_error ("disk=%s: %m", value);
    free (d->name);
    free (d->path);
    return -1;
  }
  for (unsigned i = 0; i < ndisks; i++) {
    const char *what = strcmp (disks[i].name, d->name) == 0 ? "name" :
      strcmp (disks[i].path, d->path) == 0 ? "image" : NULL;

    if (what) {
      nbdkit_error ("disk=%s: this %s is given twice: each disk needs a NAME and an image of its own, disk=NAME:PATH",
                    value, what);
      free (d->name);
      free (d->path);
      return -1;
    }
  }
  ndisks++;
  return 0;
}

/* A name of add-disk= or remove-disk=; "" is the disk without one. */
static int
add_name (const char *key, const char *value, char **list, unsigned *n)
{
  if (value[strspn (value, NAME_CHARS)] != '\0' ||
      strlen (value) > JOURNAL_NAME_MAX) {
    nbdkit_error ("%s=%s: the NAME of a disk is needed, without a path", key, value);
    return -1;
  }
  if (*n == JOURNAL_MAX_DISKS) {
    nbdkit_error ("%s=%s: a replica has at most %u disks", key, value,
                  JOURNAL_MAX_DISKS);
    return -1;
  }
  list[*n] = strdup (value);
  if (list[*n] == NULL) {
    nbdkit_error ("%s=%s: %m", key, value);
    return -1;
  }
  (*n)++;
  return 0;
}

static int
set_size (const char *key, const char *value, int64_t min, int64_t *result)
{
  size_t digits;
  int64_t n;

  if (*result != -1) {
    nbdkit_error ("%s= is given twice", key);
    return -1;
  }
  /* nbdkit's own message does not name the parameter. */
  digits = strspn (value, "0123456789");
  if (digits == 0 || (value[digits] && (value[digits + 1] ||
                                        !strchr ("bBkKmMgGtTpPeEsS", value[digits])))) {
    nbdkit_error ("%s=%s: not a size: a number is needed, with K, M, G or T behind it if you like",
                  key, value);
    return -1;
  }
  errno = 0;
  (void) strtoimax (value, NULL, 10);
  if (errno == ERANGE) {
    nbdkit_error ("%s=%s: far too large", key, value);
    return -1;
  }
  n = nbdkit_parse_size (value);
  if (n == -1)
    return -1;
  if (n < min) {
    nbdkit_error ("%s=%s is too small: at least %" PRIi64 " bytes are needed",
                  key, value, min);
    return -1;
  }
  *result = n;
  return 0;
}

/* A number of checkpoints, or a time: a number with s, m, h or d behind it. */
static int
set_history (const char *value)
{
  static const struct { char unit; uint64_t seconds; } units[] = {
    { 's', 1 }, { 'm', 60 }, { 'h', 3600 }, { 'd', 86400 },
  };
  size_t digits = strspn (value, "0123456789");
  uint64_t n;

  if (history_given) {
    nbdkit_error ("history= is given twice");
    return -1;
  }
  history_given = true;
  errno = 0;
  n = strtoull (value, NULL, 10);
  if (digits == 0 || errno == ERANGE || n > UINT32_MAX)
    goto bad;
  if (value[digits] == '\0') {
    history.checkpoints = n;
    return 0;
  }
  for (unsigned i = 0; i < sizeof units / sizeof units[0]; i++)
    if (value[digits] == units[i].unit && value[digits + 1] == '\0' &&
        n <= UINT32_MAX / units[i].seconds) {
      history.ns = n * units[i].seconds * UINT64_C (1000000000);
      return 0;
    }

 bad:
  nbdkit_error ("history=%s: a number of checkpoints is needed, or a time such as 90s, 30m, 2h or 1d",
                value);
  return -1;
}

static int
set_secret (const char *value)
{
  char *text;
  int r;

  if (has_secret) {
    nbdkit_error ("control-secret= is given twice");
    return -1;
  }
  if (nbdkit_read_password (value, &text) == -1)
    return -1;
  r = secret_set (&secret, text);
  explicit_bzero (text, strlen (text));
  free (text);
  if (r == -1) {
    nbdkit_error ("control-secret: a secret is one line of 1 to %u bytes without control characters",
                  SECRET_MAX - 1);
    return -1;
  }
  has_secret = true;
  return 0;
}

int
params_config (const char *key, const char *value)
{
  if (strcmp (key, "disk") == 0)
    return add_disk (value);
  if (strcmp (key, "add-disk") == 0)
    return add_name (key, value, join, &njoin);
  if (strcmp (key, "remove-disk") == 0)
    return add_name (key, value, leave, &nleave);
  if (strcmp (key, "journal") == 0) {
    if (journal) {
      nbdkit_error ("journal= is given twice");
      return -1;
    }
    if (value[0] == '\0') {
      nbdkit_error ("journal= needs the name of a directory");
      return -1;
    }
    journal = nbdkit_absolute_path (value);
    return journal ? 0 : -1;
  }
  if (strcmp (key, "journal-size") == 0) {
    if (set_size (key, value, JOURNAL_MIN_SIZE, &journal_size) == -1)
      return -1;
    if ((uint64_t) journal_size > JOURNAL_MAX_SIZE) {
      nbdkit_error ("journal-size=%s is too large: at most 16T", value);
      return -1;
    }
    journal_size = ROUND_UP ((uint64_t) journal_size, CHUNK);
    return 0;
  }
  if (strcmp (key, "buffer") == 0)
    return set_size (key, value, MIN_BUFFER, &buffer);
  if (strcmp (key, "size") == 0)
    return set_size (key, value, 1, &size);
  if (strcmp (key, "history") == 0)
    return set_history (value);
  if (strcmp (key, "baseline") == 0) {
    if (strcmp (value, "trusted") != 0) {
      nbdkit_error ("baseline=%s: only baseline=trusted is known", value);
      return -1;
    }
    if (baseline_trusted) {
      nbdkit_error ("baseline= is given twice");
      return -1;
    }
    baseline_trusted = true;
    return 0;
  }
  if (strcmp (key, "control-secret") == 0)
    return set_secret (value);
  nbdkit_error ("unknown parameter \"%s\": see nbdkit mcbuf --help", key);
  return -1;
}

static bool
is_block_device (const char *path)
{
  struct stat st;

  return stat (path, &st) == 0 && S_ISBLK (st.st_mode);
}

int
params_complete (void)
{
  if (ndisks == 0) {
    nbdkit_error ("a backing image is needed: nbdkit mcbuf [disk=][NAME:]PATH");
    return -1;
  }
  if (journal == NULL) {
    /* Beside a block device is /dev: in memory. */
    if (ndisks > 1 || uri_is_nbd (disks[0].path) ||
        is_block_device (disks[0].path)) {
      nbdkit_error (ndisks > 1 ? "journal=DIR is needed with more than one disk" :
                    "journal=DIR is needed with a backing image that is no file");
      return -1;
    }
    if (asprintf (&journal, "%s.mcbuf", disks[0].path) == -1) {
      journal = NULL;
      nbdkit_error ("asprintf: %m");
      return -1;
    }
  }
  for (unsigned i = 0; i < ndisks; i++)
    disk_params[i] = (struct replica_disk_params) {
      .name = disks[i].name, .path = disks[i].path,
      .create = size != -1, .size = size != -1 ? (uint64_t) size : 0,
    };
  return 0;
}

struct replica_params
params_replica (void)
{
  return (struct replica_params) {
    .fs = &io_posix,
    .dir = journal,
    .disks = disk_params,
    .ndisks = ndisks,
    .add = (const char *const *) join,
    .nadd = njoin,
    .remove = (const char *const *) leave,
    .nremove = nleave,
    .journal_size = journal_size == -1 ? 0 : (uint64_t) journal_size,
    .buffer = buffer == -1 ? 0 : (uint64_t) buffer,
    .history = history,
    .baseline_trusted = baseline_trusted,
    .shared = true,
    .control = true,
  };
}

const struct secret *
params_secret (void)
{
  return has_secret ? &secret : NULL;
}

void
params_free (void)
{
  for (unsigned i = 0; i < ndisks; i++) {
    free (disks[i].name);
    free (disks[i].path);
  }
  ndisks = 0;
  while (njoin > 0)
    free (join[--njoin]);
  while (nleave > 0)
    free (leave[--nleave]);
  free (journal);
  journal = NULL;
  secret_wipe (&secret);
}
