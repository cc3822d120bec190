/* SPDX-License-Identifier: BSD-3-Clause */
/* See catalog.h.
 *
 * WAL, so that a reader and the server do not wait for each other, and
 * synchronous=NORMAL, so that a power loss costs the last rows, which the
 * journal has, but not the file.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "common/cleanup.h"
#include "journal/catalog.h"

#define FILE_NAME "catalog.sqlite"
#define APPLICATION_ID 0x6d636266       /* "mcbf": file(1) shows it */
#define SCHEMA_VERSION 1
#define BUSY_MS 1000
#define KEEP 10000
#define PRUNE_EVERY 256                 /* changes */

static const char schema[] =
  "CREATE TABLE replica ("
  "  id TEXT NOT NULL,"
  "  filled INTEGER NOT NULL);"         /* the journal's checkpoints are all here */
  "CREATE TABLE checkpoints ("
  "  id INTEGER PRIMARY KEY,"
  "  generation INTEGER NOT NULL,"
  "  label TEXT NOT NULL,"
  "  time TEXT NOT NULL,"
  "  time_ns INTEGER NOT NULL,"
  "  extents INTEGER NOT NULL,"
  "  bytes INTEGER NOT NULL,"
  "  recoverable INTEGER NOT NULL);"
  "CREATE INDEX checkpoints_recoverable ON checkpoints (id)"
  "  WHERE recoverable;"
  "CREATE TABLE events ("
  "  id INTEGER PRIMARY KEY,"
  "  time TEXT NOT NULL,"
  "  time_ns INTEGER NOT NULL,"
  "  generation INTEGER NOT NULL,"
  "  kind TEXT NOT NULL,"
  "  text TEXT NOT NULL);";

/* Statements that are prepared once. */
enum statement {
  BEGIN, COMMIT, ROLLBACK, ADD_CHECKPOINT, NOT_RECOVERABLE, DAMAGED, NEVER_WERE,
  FILLED, ADD_EVENT, PRUNE_CHECKPOINTS, PRUNE_EVENTS, NSTATEMENTS
};

static const char *const sql[NSTATEMENTS] = {
  [BEGIN] = "BEGIN IMMEDIATE",
  [COMMIT] = "COMMIT",
  [ROLLBACK] = "ROLLBACK",
  [ADD_CHECKPOINT] =
    "INSERT OR REPLACE INTO checkpoints"
    " (id, generation, label, time, time_ns, extents, bytes, recoverable)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1)",
  [NOT_RECOVERABLE] =
    "UPDATE checkpoints SET recoverable = 0 WHERE recoverable AND id < ?1",
  [DAMAGED] =
    "UPDATE checkpoints SET recoverable = 0 WHERE recoverable AND id > ?1",
  [NEVER_WERE] = "DELETE FROM checkpoints WHERE id > ?1",
  [FILLED] = "UPDATE replica SET filled = 1 WHERE NOT filled",
  [ADD_EVENT] =
    "INSERT INTO events (time, time_ns, generation, kind, text)"
    " VALUES (?1, ?2, ?3, ?4, ?5)",
  [PRUNE_CHECKPOINTS] =
    "DELETE FROM checkpoints WHERE NOT recoverable AND id <"
    " (SELECT id FROM checkpoints WHERE NOT recoverable"
    "  ORDER BY id DESC LIMIT 1 OFFSET ?1)",
  [PRUNE_EVENTS] =
    "DELETE FROM events WHERE id <= (SELECT max (id) FROM events) - ?1",
};

struct catalog {
  sqlite3 *db;
  sqlite3_stmt *stmt[NSTATEMENTS];
  unsigned changes;                     /* since the last pruning */
};

/* errno for the SQLite result RC.  Returns -1. */
static int
fail (int rc)
{
  switch (rc & 0xff) {
  case SQLITE_BUSY:
  case SQLITE_LOCKED:
    errno = EBUSY;
    break;
  case SQLITE_CORRUPT:
  case SQLITE_NOTADB:
  case SQLITE_SCHEMA:
    errno = EBADMSG;
    break;
  case SQLITE_NOMEM:
    errno = ENOMEM;
    break;
  case SQLITE_FULL:
    errno = ENOSPC;
    break;
  case SQLITE_READONLY:
    errno = EROFS;
    break;
  default:
    errno = EIO;
  }
  return -1;
}

static int
exec (sqlite3 *db, const char *text)
{
  int rc = sqlite3_exec (db, text, NULL, NULL, NULL);

  return rc == SQLITE_OK ? 0 : fail (rc);
}

/* The first column of the first row that QUERY gives, as text; "" for none. */
static int
query (sqlite3 *db, const char *text, char *answer, size_t size)
{
  sqlite3_stmt *stmt;
  int rc = sqlite3_prepare_v2 (db, text, -1, &stmt, NULL);

  answer[0] = '\0';
  if (rc != SQLITE_OK)
    /* Of a table that is not as we made it SQLite says no more than ERROR. */
    return fail (rc == SQLITE_ERROR ? SQLITE_CORRUPT : rc);
  rc = sqlite3_step (stmt);
  if (rc == SQLITE_ROW) {
    const unsigned char *column = sqlite3_column_text (stmt, 0);

    snprintf (answer, size, "%s", column ? (const char *) column : "");
  }
  (void) sqlite3_finalize (stmt);       /* says again what the step said */
  return rc == SQLITE_ROW || rc == SQLITE_DONE ? 0 : fail (rc);
}

static int
query_int (sqlite3 *db, const char *text, long long *answer)
{
  char digits[32];

  if (query (db, text, digits, sizeof digits) == -1)
    return -1;
  *answer = strtoll (digits, NULL, 10);
  return 0;
}

/* Run a prepared statement whose parameters are bound. */
static int
step (struct catalog *c, enum statement which)
{
  sqlite3_stmt *stmt = c->stmt[which];
  int rc = sqlite3_step (stmt);

  (void) sqlite3_reset (stmt);          /* says again what the step said */
  return rc == SQLITE_DONE ? 0 : fail (rc);
}

static int
bind_u64 (struct catalog *c, enum statement which, int column, uint64_t value)
{
  int rc = sqlite3_bind_int64 (c->stmt[which], column,
                               value > INT64_MAX ? INT64_MAX : (int64_t) value);

  return rc == SQLITE_OK ? 0 : fail (rc);
}

/* VALUE is to live until the statement is stepped. */
static int
bind_text (struct catalog *c, enum statement which, int column,
           const char *value)
{
  int rc = sqlite3_bind_text (c->stmt[which], column, value, -1,
                              SQLITE_STATIC);

  return rc == SQLITE_OK ? 0 : fail (rc);
}

/* End the transaction, with a rollback where R is -1.  Returns R, or -1. */
static int
end (struct catalog *c, int r)
{
  int saved;

  if (r == 0 && step (c, COMMIT) == 0)
    return 0;
  saved = errno;
  /* SQLite has rolled back by itself after some errors. */
  if (!sqlite3_get_autocommit (c->db))
    (void) step (c, ROLLBACK);
  errno = saved;
  return -1;
}

static int
prune (struct catalog *c, unsigned changes)
{
  c->changes += changes;
  if (c->changes < PRUNE_EVERY)
    return 0;
  c->changes = 0;
  if (bind_u64 (c, PRUNE_CHECKPOINTS, 1, KEEP - 1) == -1 ||
      step (c, PRUNE_CHECKPOINTS) == -1 ||
      bind_u64 (c, PRUNE_EVENTS, 1, KEEP) == -1)
    return -1;
  return step (c, PRUNE_EVENTS);
}

static int
set_up (sqlite3 *db)
{
  int rc = sqlite3_extended_result_codes (db, 1);

  if (rc == SQLITE_OK)
    rc = sqlite3_busy_timeout (db, BUSY_MS);
  if (rc != SQLITE_OK)
    return fail (rc);
  /* Where WAL is not to be had (some network file systems), SQLite keeps
   * its rollback journal, and all works as well.
   */
  return exec (db,
               "PRAGMA journal_mode = WAL;"
               "PRAGMA synchronous = NORMAL;"
               "PRAGMA journal_size_limit = 4194304;"
               "PRAGMA trusted_schema = OFF;");
}

static int
make (sqlite3 *db, const char *id)
{
  char text[sizeof schema + 256];

  snprintf (text, sizeof text,
            "BEGIN IMMEDIATE;"
            "%s"
            "INSERT INTO replica (id, filled) VALUES ('%s', 0);"
            "PRAGMA application_id = %d;"
            "PRAGMA user_version = %d;"
            "COMMIT;", schema, id, APPLICATION_ID, SCHEMA_VERSION);
  return exec (db, text);
}

/* Is it a whole catalog of replica ID?  EBADMSG when it is not.  *EMPTY: there is
 * nothing in it at all.
 */
static int
check (sqlite3 *db, const char *id, bool *empty, bool *filled)
{
  long long application, version, tables, value;
  char text[64];

  if (query_int (db, "PRAGMA application_id", &application) == -1 ||
      query_int (db, "PRAGMA user_version", &version) == -1 ||
      query_int (db, "SELECT count (*) FROM sqlite_schema", &tables) == -1)
    return -1;
  *empty = application == 0 && version == 0 && tables == 0;
  if (*empty)
    return 0;
  if (application != APPLICATION_ID || version != SCHEMA_VERSION)
    return fail (SQLITE_NOTADB);
  if (query (db, "PRAGMA quick_check(1)", text, sizeof text) == -1)
    return -1;
  if (strcmp (text, "ok") != 0)
    return fail (SQLITE_CORRUPT);
  if (query (db, "SELECT id FROM replica", text, sizeof text) == -1)
    return -1;
  if (strcmp (text, id) != 0)
    return fail (SQLITE_NOTADB);
  if (query_int (db, "SELECT filled FROM replica", &value) == -1)
    return -1;
  *filled = value != 0;
  return 0;
}

static int
prepare (struct catalog *c)
{
  for (unsigned i = 0; i < NSTATEMENTS; i++) {
    int rc = sqlite3_prepare_v3 (c->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                 &c->stmt[i], NULL);

    if (rc != SQLITE_OK)
      return fail (rc == SQLITE_ERROR ? SQLITE_CORRUPT : rc);
  }
  return 0;
}

/* Make the file, for SQLite would give it mode 0644. */
static int
touch (const struct io_fs *fs, const char *path)
{
  struct io_file *file;

  if (io_open (fs, path, O_CREAT | O_RDWR | O_NOFOLLOW, 0600, &file) == -1)
    return -1;
  io_close (file);
  return 0;
}

static int
open_file (const struct io_fs *fs, const char *path, const char *id,
           struct catalog **catalog, bool *rebuilt)
{
  struct catalog *c;
  bool empty = false, filled = false;
  int rc;

  if (touch (fs, path) == -1)
    return -1;
  c = calloc (1, sizeof *c);
  if (c == NULL)
    return -1;
  rc = sqlite3_open_v2 (path, &c->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
                        SQLITE_OPEN_NOFOLLOW, NULL);
  if (rc != SQLITE_OK) {
    (void) fail (rc);
    goto error;
  }
  if (set_up (c->db) == -1 || check (c->db, id, &empty, &filled) == -1 ||
      (empty && make (c->db, id) == -1) || prepare (c) == -1)
    goto error;
  *rebuilt = !filled;
  *catalog = c;
  return 0;

 error:
  catalog_close (c);
  return -1;
}

/* Move a damaged file out of the way, and what belongs to it with it. */
static int
set_aside (const struct io_fs *fs, const char *path)
{
  static const char *const suffix[] = { "-wal", "-shm", "" };
  char from[JOURNAL_PATH_MAX + 16], to[JOURNAL_PATH_MAX + 16];

  for (unsigned i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
    snprintf (from, sizeof from, "%s%s", path, suffix[i]);
    snprintf (to, sizeof to, "%s.bad%s", path, suffix[i]);
    if (io_unlink (fs, to) == -1 && errno != ENOENT)
      return -1;
    if (io_rename (fs, from, to) == -1 && errno != ENOENT)
      return -1;
  }
  return 0;
}

static int
catalog_path (const char *dir, char path[JOURNAL_PATH_MAX + 1])
{
  int n = snprintf (path, JOURNAL_PATH_MAX + 1, "%s/%s", dir, FILE_NAME);

  if (n >= 0 && n <= (int) JOURNAL_PATH_MAX)
    return 0;
  errno = ENAMETOOLONG;
  return -1;
}

int
catalog_set_aside (const struct io_fs *fs, const char *dir)
{
  char path[JOURNAL_PATH_MAX + 1];

  return catalog_path (dir, path) == -1 ? -1 : set_aside (fs, path);
}

int
catalog_open (const struct io_fs *fs, const char *dir,
              const uint8_t id[HOST_ID_LEN], struct catalog **catalog,
              bool *rebuilt)
{
  char path[JOURNAL_PATH_MAX + 1];
  char text[HOST_ID_STRLEN + 1];

  *catalog = NULL;
  *rebuilt = false;
  if (catalog_path (dir, path) == -1)
    return -1;
  host_id_text (id, text);
  if (open_file (fs, path, text, catalog, rebuilt) == 0)
    return 0;
  if (errno != EBADMSG || set_aside (fs, path) == -1)
    return -1;
  return open_file (fs, path, text, catalog, rebuilt);
}

void
catalog_close (struct catalog *c)
{
  int saved = errno;

  if (c == NULL)
    return;
  for (unsigned i = 0; i < NSTATEMENTS; i++)
    (void) sqlite3_finalize (c->stmt[i]);       /* its last error is known */
  if (sqlite3_close (c->db) != SQLITE_OK)
    abort ();                   /* a statement is left, which cannot be.  LCOV_EXCL_LINE */
  free (c);
  errno = saved;
}

static int
add_checkpoint (struct catalog *c, uint64_t generation,
                const struct journal_checkpoint *cp)
{
  char time[HOST_TIME_STRLEN];

  host_time_text (cp->time, time);
  if (bind_u64 (c, ADD_CHECKPOINT, 1, cp->id) == -1 ||
      bind_u64 (c, ADD_CHECKPOINT, 2, generation) == -1 ||
      bind_text (c, ADD_CHECKPOINT, 3, cp->label) == -1 ||
      bind_text (c, ADD_CHECKPOINT, 4, time) == -1 ||
      bind_u64 (c, ADD_CHECKPOINT, 5, cp->time) == -1 ||
      bind_u64 (c, ADD_CHECKPOINT, 6, cp->extents) == -1 ||
      bind_u64 (c, ADD_CHECKPOINT, 7, cp->bytes) == -1)
    return -1;
  return step (c, ADD_CHECKPOINT);
}

int
catalog_checkpoints (struct catalog *c, uint64_t generation,
                     const struct journal_checkpoint *cp, size_t n)
{
  int r = 0;

  if (n == 0)
    return 0;
  if (step (c, BEGIN) == -1)
    return -1;
  for (size_t i = 0; r == 0 && i < n; i++)
    r = add_checkpoint (c, generation, &cp[i]);
  if (r == 0)
    r = prune (c, n < PRUNE_EVERY ? n : PRUNE_EVERY);
  return end (c, r);
}

static int
step_from (struct catalog *c, unsigned which, uint64_t id)
{
  return bind_u64 (c, which, 1, id) == -1 ? -1 : step (c, which);
}

int
catalog_window (struct catalog *c, uint64_t oldest, uint64_t last, uint64_t newest)
{
  int r = 0;

  if (step (c, BEGIN) == -1)
    return -1;
  if (step_from (c, NOT_RECOVERABLE, oldest) == -1 ||
      step_from (c, DAMAGED, last) == -1 ||
      step_from (c, NEVER_WERE, newest) == -1)
    r = -1;
  if (r == 0)
    r = step (c, FILLED);
  if (r == 0)
    r = prune (c, 1);
  return end (c, r);
}

int
catalog_event (struct catalog *c, uint64_t time_ns, uint64_t generation,
               const char *kind, const char *text)
{
  char time[HOST_TIME_STRLEN];
  int r = 0;

  host_time_text (time_ns, time);
  if (step (c, BEGIN) == -1)
    return -1;
  if (bind_text (c, ADD_EVENT, 1, time) == -1 ||
      bind_u64 (c, ADD_EVENT, 2, time_ns) == -1 ||
      bind_u64 (c, ADD_EVENT, 3, generation) == -1 ||
      bind_text (c, ADD_EVENT, 4, kind) == -1 ||
      bind_text (c, ADD_EVENT, 5, text) == -1 ||
      step (c, ADD_EVENT) == -1 || prune (c, 1) == -1)
    r = -1;
  return end (c, r);
}

/* --- Looking at it --- */

/* SQLite cannot look at a database in WAL mode without changing what lies beside it. */
static int
copy_file (const char *from, const char *to)
{
  CLEANUP_CLOSE int in = open (from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  CLEANUP_CLOSE int out = -1;
  char buf[65536];
  ssize_t n;

  if (in == -1)
    return -1;
  out = open (to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (out == -1)
    return -1;
  while ((n = read (in, buf, sizeof buf)) > 0)
    for (ssize_t at = 0; at < n; ) {
      ssize_t w = write (out, buf + at, n - at);

      if (w == -1)
        return -1;
      at += w;
    }
  return n == 0 ? 0 : -1;
}

static int
check_copy (const char *dir, const char *id, const char *tmp)
{
  char from[JOURNAL_PATH_MAX + 16], to[64];
  struct catalog *c;
  bool rebuilt;

  snprintf (from, sizeof from, "%s/%s", dir, FILE_NAME);
  snprintf (to, sizeof to, "%s/c", tmp);
  if (copy_file (from, to) == -1)
    return -1;
  snprintf (from, sizeof from, "%s/%s-wal", dir, FILE_NAME);
  snprintf (to, sizeof to, "%s/c-wal", tmp);
  if (copy_file (from, to) == -1 && errno != ENOENT)
    return -1;
  snprintf (to, sizeof to, "%s/c", tmp);
  if (open_file (&io_posix, to, id, &c, &rebuilt) == -1)
    return -1;
  catalog_close (c);
  return 0;
}

int
catalog_check (const char *dir, const uint8_t id[HOST_ID_LEN], char *text,
               size_t size)
{
  static const char *const left[] = { "c", "c-wal", "c-shm", "c-journal" };
  char tmp[] = "/tmp/mcbuf-catalog-XXXXXX", path[64], name[HOST_ID_STRLEN + 1];
  int r, saved;

  if (mkdtemp (tmp) == NULL) {
    snprintf (text, size, "%s: cannot be looked at: %s: %s", FILE_NAME, tmp, strerror (errno));
    return -1;
  }
  host_id_text (id, name);
  r = check_copy (dir, name, tmp);
  saved = errno;
  for (unsigned i = 0; i < sizeof left / sizeof left[0]; i++) {
    snprintf (path, sizeof path, "%s/%s", tmp, left[i]);
    (void) unlink (path);
  }
  (void) rmdir (tmp);
  errno = saved;
  if (r == -1)
    snprintf (text, size, "%s: %s: nothing depends on it, the next server makes it anew",
              FILE_NAME, errno == ENOENT ? "is not there" : errno == EBADMSG ?
              "is damaged, or of another replica" : strerror (errno));
  return r;
}
