/* SPDX-License-Identifier: BSD-3-Clause */
/* What the catalog says.  It may lag behind, after a crash it may have to be made anew; it never lists
 * what never was a checkpoint, and once its keeper has had its turn it lists what the journal does.
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "unit/simvfs.h"
#include "unit/torture.h"

#define CATALOG TORTURE_DIR "/catalog.sqlite"

void
catalog_step (struct simdisk *disk, struct replica *r)
{
  struct simdisk *was = simvfs_use (disk);

  torture_library (true);
  house_step (r);
  torture_library (false);
  (void) simvfs_use (was);
}

/* The checkpoints that are recoverable, oldest first; -1: it cannot be read. */
static int
read_list (struct simdisk *disk, struct journal_checkpoint **list)
{
  struct simdisk *was = simvfs_use (disk);
  sqlite3_stmt *stmt = NULL;
  sqlite3 *db = NULL;
  int n = 0, rc = sqlite3_open_v2 (CATALOG, &db, SQLITE_OPEN_READWRITE, NULL);

  *list = NULL;
  if (rc == SQLITE_OK)
    rc = sqlite3_prepare_v2 (db, "SELECT id, label, time_ns FROM checkpoints"
                             " WHERE recoverable ORDER BY id", -1, &stmt, NULL);
  if (rc == SQLITE_OK)
    while ((rc = sqlite3_step (stmt)) == SQLITE_ROW) {
      struct journal_checkpoint *cp;
      const unsigned char *label = sqlite3_column_text (stmt, 1);

      *list = realloc (*list, (n + 1) * sizeof **list);
      assert (*list);
      cp = &(*list)[n++];
      memset (cp, 0, sizeof *cp);
      cp->id = sqlite3_column_int64 (stmt, 0);
      snprintf (cp->label, sizeof cp->label, "%s", label ? (const char *) label : "?");
      cp->time = sqlite3_column_int64 (stmt, 2);
    }
  if (rc != SQLITE_DONE && getenv ("TORTURE_LOG"))
    fprintf (stderr, "catalog: %d, %s\n", rc, sqlite3_errmsg (db));
  (void) sqlite3_finalize (stmt);
  (void) sqlite3_close (db);
  (void) simvfs_use (was);
  if (rc == SQLITE_DONE)
    return n;
  free (*list);
  *list = NULL;
  return -1;
}

void
catalog_look (const struct life *life, struct simdisk *disk)
{
  struct journal_checkpoint *list;
  int n = read_list (disk, &list);

  for (int i = 0; i < n; i++)
    MUST (list[i].id < TORTURE_CHECKPOINTS && life->ever[list[i].id],
          "the catalog lists checkpoint %" PRIu64 ", which never was one", list[i].id);
  free (list);
}

void
catalog_match (const struct life *life, struct simdisk *disk, struct replica *r)
{
  size_t have = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *want = calloc (have + 1, sizeof *want);
  CLEANUP_FREE struct journal_checkpoint *list = NULL;
  int n = read_list (disk, &list);

  (void) life;
  assert (want);
  have = journal_checkpoints (r->journal, want, have);
  MUST (n >= 0, "the catalog cannot be read");
  MUST ((size_t) n == have, "the catalog lists %d checkpoints, the journal %zu, from %" PRIu64
        " on, %s", n, have, have ? want[0].id : 0, replica_state_word (r->state));
  for (size_t i = 0; i < have; i++)
    MUST (list[i].id == want[i].id && list[i].time == want[i].time &&
          strcmp (list[i].label, want[i].label) == 0,
          "the catalog lists checkpoint %" PRIu64 " \"%s\", the journal %" PRIu64 " \"%s\"",
          list[i].id, list[i].label, want[i].id, want[i].label);
}
