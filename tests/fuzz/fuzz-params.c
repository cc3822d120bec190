/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin's parameters: each line of an input is one, KEY=VALUE; a line without "=" is the
 * magic parameter, as nbdkit would pass it.
 *
 * What must hold: no crash; what is refused is refused with one message; what is taken is within
 * the limits that the manual names.
 */
#include "config.h"

#include <inttypes.h>

#include "fuzz/fuzz.h"
#include "fuzz/nbdkit-stubs.h"

/* For what params_free leaves as it is: a process has one set of parameters. */
#include "../plugin/params.c"

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  (void) argc;
  (void) argv;
  return 0;
}

static void
check_params (void)
{
  struct replica_params p = params_replica ();

  HOLDS (p.ndisks >= 1 && p.ndisks <= JOURNAL_MAX_DISKS, "%u disks", p.ndisks);
  HOLDS (p.dir && p.dir[0] == '/', "journal %s", p.dir);
  HOLDS (p.journal_size == 0 || (p.journal_size >= JOURNAL_MIN_SIZE &&
                                 p.journal_size <= JOURNAL_MAX_SIZE &&
                                 p.journal_size % JOURNAL_CHUNK == 0),
         "journal-size %" PRIu64, p.journal_size);
  HOLDS (p.buffer == 0 || (p.buffer >= MIN_BUFFER && p.buffer <= INT64_MAX),
         "buffer %" PRIu64, p.buffer);
  HOLDS (p.history.checkpoints == 0 || p.history.ns == 0, "history of two kinds");
  HOLDS (p.nadd <= JOURNAL_MAX_DISKS && p.nremove <= JOURNAL_MAX_DISKS,
         "%u to add, %u to remove", p.nadd, p.nremove);
  for (unsigned i = 0; i < p.nadd; i++)
    HOLDS (p.add[i][strspn (p.add[i], NAME_CHARS)] == '\0', "add-disk %s", p.add[i]);
  for (unsigned i = 0; i < p.nremove; i++)
    HOLDS (p.remove[i][strspn (p.remove[i], NAME_CHARS)] == '\0', "remove-disk %s", p.remove[i]);
  for (unsigned i = 0; i < p.ndisks; i++) {
    const struct replica_disk_params *d = &p.disks[i];

    HOLDS (strlen (d->name) <= JOURNAL_NAME_MAX &&
           d->name[strspn (d->name, NAME_CHARS)] == '\0', "name %s", d->name);
    HOLDS (d->path[0] == '/' || uri_is_nbd (d->path), "path %s", d->path);
    HOLDS (!d->create || (d->size >= 1 && d->size <= INT64_MAX), "size %" PRIu64,
           d->size);
    for (unsigned k = 0; k < i; k++)
      HOLDS (strcmp (p.disks[k].name, d->name) != 0 &&
             strcmp (p.disks[k].path, d->path) != 0, "twice: %s %s", d->name,
             d->path);
  }
}

static void
forget (void)
{
  journal_size = buffer = size = -1;
  history = (struct replica_history) { 0 };
  baseline_trusted = history_given = has_secret = false;
  stub_errors = 0;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  char *text = malloc (len + 1), *line, *rest;
  int r = 0;

  HOLDS (text, "out of memory");
  memcpy (text, data, len);
  text[len] = '\0';
  forget ();
  for (line = text; line && r == 0; line = rest) {
    char *value;

    rest = strchr (line, '\n');
    if (rest)
      *rest++ = '\0';
    value = strchr (line, '=');
    if (value)
      *value++ = '\0';
    r = value ? params_config (line, value) : params_config ("disk", line);
  }
  if (r == 0)
    r = params_complete ();
  HOLDS ((r == -1) == (stub_errors == 1) && (r == 0) == (stub_errors == 0),
         "result %d, %u messages", r, stub_errors);
  if (r == 0)
    check_params ();
  params_free ();
  free (text);
  return 0;
}
