/* SPDX-License-Identifier: BSD-3-Clause */
/* The catalog, seen through a connection of our own as a person would. */
#include "config.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "journal/catalog.h"
#include "unit/unit.h"

static const uint8_t id[HOST_ID_LEN] = { 1, 2, 3, 0xab };
static const uint8_t other_id[HOST_ID_LEN] = { 4 };
static char dir[200], path[256], bad[sizeof path + 8];
static struct catalog *catalog;

static void
setup (void)
{
  const char *tmp = getenv ("TMPDIR");

  unit_seed ();
  snprintf (dir, sizeof dir, "%s/test-catalog-XXXXXX", tmp ? tmp : "/tmp");
  EXPECT (mkdtemp (dir) != NULL);
  snprintf (path, sizeof path, "%s/catalog.sqlite", dir);
  snprintf (bad, sizeof bad, "%s.bad", path);
  catalog = NULL;
}

static void
teardown (void)
{
  static const char *const suffix[] = {
    "", "-wal", "-shm", ".bad", ".bad-wal", ".bad-shm", "-journal",
  };
  char name[300];

  catalog_close (catalog);
  for (unsigned i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
    snprintf (name, sizeof name, "%s%s", path, suffix[i]);
    (void) unlink (name);
  }
  EXPECT (rmdir (dir) == 0);
}

/* Open it; says whether it was (re)built. */
static bool
reopen (void)
{
  bool rebuilt = false;

  catalog_close (catalog);
  EXPECT (catalog_open (&io_posix, dir, id, &catalog, &rebuilt) == 0);
  EXPECT (catalog != NULL);
  return rebuilt;
}

static sqlite3 *
person (void)
{
  sqlite3 *db;

  EXPECT (sqlite3_open (path, &db) == SQLITE_OK);
  EXPECT (sqlite3_busy_timeout (db, 5000) == SQLITE_OK);
  return db;
}

static void
run (const char *text)
{
  sqlite3 *db = person ();

  ck_assert_int_eq (sqlite3_exec (db, text, NULL, NULL, NULL), SQLITE_OK);
  EXPECT (sqlite3_close (db) == SQLITE_OK);
}

/* All columns of all rows, "|" and ";" between them. */
static const char *
ask (const char *query)
{
  static char answer[4096];
  sqlite3 *db = person ();
  sqlite3_stmt *stmt;
  size_t n = 0;

  answer[0] = '\0';
  ck_assert_int_eq (sqlite3_prepare_v2 (db, query, -1, &stmt, NULL),
                    SQLITE_OK);
  while (sqlite3_step (stmt) == SQLITE_ROW)
    for (int i = 0; i < sqlite3_column_count (stmt); i++)
      n += snprintf (answer + n, sizeof answer - n, "%s%s",
                     (const char *) sqlite3_column_text (stmt, i),
                     i + 1 < sqlite3_column_count (stmt) ? "|" : ";");
  EXPECT (sqlite3_finalize (stmt) == SQLITE_OK);
  EXPECT (sqlite3_close (db) == SQLITE_OK);
  return answer;
}

static void
add (uint64_t first, uint64_t n)
{
  struct journal_checkpoint *cp = calloc (n, sizeof *cp);

  EXPECT (cp != NULL);
  for (uint64_t i = 0; i < n; i++) {
    cp[i].id = first + i;
    cp[i].time = UINT64_C (1000000000000) * (first + i);
    cp[i].extents = 3;
    cp[i].bytes = 4096;
    snprintf (cp[i].label, sizeof cp[i].label, "no %u's \"name\"",
              (unsigned) (first + i));
  }
  EXPECT (catalog_checkpoints (catalog, 2, cp, n) == 0);
  free (cp);
}

START_TEST (test_make)
{
  struct stat st;
  mode_t mask = umask (0);

  EXPECT (reopen ());
  (void) umask (mask);
  EXPECT (stat (path, &st) == 0);
  EXPECT ((st.st_mode & 07777) == 0600);
  EXPECT (access (bad, F_OK) == -1);
  ck_assert_str_eq (ask ("PRAGMA user_version"), "1;");
  ck_assert_str_eq (ask ("SELECT id FROM replica"),
                    "010203ab000000000000000000000000;");

  /* Until it is filled, it asks to be. */
  EXPECT (reopen ());
  add (1, 1);
  EXPECT (reopen ());
  EXPECT (catalog_window (catalog, 0, 1, 1) == 0);
  EXPECT (!reopen ());
  catalog_close (NULL);
}
END_TEST

START_TEST (test_checkpoints)
{
  (void) reopen ();
  EXPECT (catalog_checkpoints (catalog, 1, NULL, 0) == 0);
  add (0, 5);
  ck_assert_str_eq (
    ask ("SELECT * FROM checkpoints WHERE id = 3"),
    "3|2|no 3's \"name\"|1970-01-01T00:50:00.000Z|3000000000000|3|4096|1;");
  EXPECT (catalog_window (catalog, 2, 3, 3) == 0);
  ck_assert_str_eq (ask ("SELECT id, recoverable FROM checkpoints"),
                    "0|0;1|0;2|1;3|1;");

  /* Behind damage: not to be had now, but they were. */
  add (4, 2);
  EXPECT (catalog_window (catalog, 2, 3, 5) == 0);
  ck_assert_str_eq (ask ("SELECT id, recoverable FROM checkpoints"),
                    "0|0;1|0;2|1;3|1;4|0;5|0;");
  EXPECT (catalog_window (catalog, 2, 3, 3) == 0);

  /* One that is there already is replaced. */
  struct journal_checkpoint cp = { .id = 1, .time = 5, .label = "again" };
  EXPECT (catalog_checkpoints (catalog, 9, &cp, 1) == 0);
  ck_assert_str_eq (ask ("SELECT generation, label, time_ns, recoverable"
                         " FROM checkpoints WHERE id = 1"), "9|again|5|1;");
  EXPECT (!reopen ());
  ck_assert_str_eq (ask ("SELECT count (*) FROM checkpoints"), "4;");
}
END_TEST

START_TEST (test_events)
{
  (void) reopen ();
  EXPECT (catalog_event (catalog, UINT64_C (1769903999123456789), 4, "promote",
                         "fenced '; DROP TABLE events; --") == 0);
  ck_assert_str_eq (ask ("SELECT time, time_ns, generation, kind, text"
                         " FROM events"),
                    "2026-01-31T23:59:59.123Z|1769903999123456789|4|promote|"
                    "fenced '; DROP TABLE events; --;");
}
END_TEST

/* It does not grow for ever. */
START_TEST (test_prune)
{
  (void) reopen ();
  for (unsigned i = 0; i < 12000; i++)
    EXPECT (catalog_event (catalog, i, 1, "tick", "") == 0);
  ck_assert_str_eq (ask ("SELECT max (time_ns), count (*) BETWEEN 10000"
                         " AND 10300 FROM events"), "11999|1;");
  for (unsigned i = 0; i < 30; i++) {
    add (i * 1000, 1000);
    EXPECT (catalog_window (catalog, i * 1000, UINT32_MAX, UINT32_MAX) == 0);
  }
  ck_assert_str_eq (ask ("SELECT max (id), min (id) = 29000"
                         " FROM checkpoints WHERE recoverable"), "29999|1;");
  ck_assert_str_eq (ask ("SELECT count (*) BETWEEN 10000 AND 12000, max (id)"
                         " FROM checkpoints WHERE NOT recoverable"),
                    "1|28999;");
}
END_TEST

static void
fill (void)
{
  EXPECT (reopen ());
  add (1, 2000);
  EXPECT (catalog_window (catalog, 1, 2000, 2000) == 0);
  catalog_close (catalog);
  catalog = NULL;
}

/* What is not a whole catalog of this replica is set aside. */
static void
expect_bad (void)
{
  EXPECT (reopen ());
  EXPECT (access (bad, F_OK) == 0);
  ck_assert_str_eq (ask ("SELECT count (*) FROM checkpoints"), "0;");
  ck_assert_str_eq (ask ("SELECT count (*) FROM replica"), "1;");
  add (7, 1);
  EXPECT (catalog_window (catalog, 7, 7, 7) == 0);
  EXPECT (!reopen ());
  ck_assert_str_eq (ask ("SELECT id FROM checkpoints"), "7;");
}

static void
scribble (long from, long n)
{
  FILE *f = fopen (path, "r+");

  EXPECT (f != NULL);
  EXPECT (fseek (f, from, SEEK_SET) == 0);
  for (long i = 0; i < n; i++)
    EXPECT (fputc ((int) unit_random (256), f) != EOF);
  EXPECT (fclose (f) == 0);
}

START_TEST (test_damage)
{
  struct stat st;

  fill ();
  switch (_i) {
  case 0:                               /* not SQLite's at all */
    scribble (0, 10000);
    break;
  case 1:                               /* cut short */
    EXPECT (stat (path, &st) == 0);
    EXPECT (truncate (path, st.st_size / 2) == 0);
    break;
  case 2:                               /* a page inside */
    scribble (5 * 4096, 4096);
    break;
  case 3:                               /* a newer mcbuf's */
    run ("PRAGMA user_version = 2");
    break;
  case 4:                               /* another program's */
    run ("PRAGMA application_id = 1");
    break;
  case 5:
    run ("DROP TABLE events");
    break;
  case 6:
    run ("DROP TABLE replica");
    break;
  case 7:
    run ("DELETE FROM replica");
    break;
  case 8: {                             /* another replica's */
    bool rebuilt;

    EXPECT (catalog_open (&io_posix, dir, other_id, &catalog, &rebuilt) == 0);
    EXPECT (rebuilt);
    EXPECT (access (bad, F_OK) == 0);
    break;
  }
  case 9:                               /* one that was bad before is no obstacle */
    run ("DROP TABLE events");
    EXPECT (reopen ());
    catalog_close (catalog);
    catalog = NULL;
    run ("DROP TABLE events");
    break;
  }
  expect_bad ();
}
END_TEST

/* Damage that comes while it is open is told apart from other errors. */
START_TEST (test_damage_while_open)
{
  fill ();
  EXPECT (!reopen ());
  run ("INSERT INTO events VALUES (1, '', 0, 0, '', '')");     /* empties its cache */
  scribble (3 * 4096, 20 * 4096);
  EXPECT (catalog_window (catalog, 1500, 2000, 2000) == -1 && errno == EBADMSG);
  expect_bad ();
}
END_TEST

/* A person who keeps it locked costs a wait and a retry. */
START_TEST (test_locked)
{
  struct journal_checkpoint cp = { .id = 5 };
  struct catalog *second = NULL;
  bool rebuilt;
  sqlite3 *db;

  fill ();
  EXPECT (!reopen ());
  db = person ();
  EXPECT (sqlite3_exec (db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK);
  errno = 0;
  EXPECT (catalog_checkpoints (catalog, 7, &cp, 1) == -1 && errno == EBUSY);
  EXPECT (catalog_event (catalog, 1, 1, "a", "b") == -1 && errno == EBUSY);
  EXPECT (catalog_open (&io_posix, dir, id, &second, &rebuilt) == 0);
  EXPECT (!rebuilt);
  catalog_close (second);
  EXPECT (sqlite3_exec (db, "ROLLBACK", NULL, NULL, NULL) == SQLITE_OK);
  EXPECT (catalog_event (catalog, 1, 1, "a", "b") == 0);

  /* Who only reads is in nobody's way. */
  EXPECT (sqlite3_exec (db, "BEGIN; SELECT count (*) FROM events", NULL, NULL,
                        NULL) == SQLITE_OK);
  EXPECT (catalog_event (catalog, 2, 1, "a", "b") == 0);
  EXPECT (sqlite3_exec (db, "COMMIT", NULL, NULL, NULL) == SQLITE_OK);

  /* A lock is no damage. */
  catalog_close (catalog);
  catalog = NULL;
  EXPECT (sqlite3_exec (db, "PRAGMA locking_mode = EXCLUSIVE;"
                        "BEGIN EXCLUSIVE", NULL, NULL, NULL) == SQLITE_OK);
  EXPECT (catalog_open (&io_posix, dir, id, &catalog, &rebuilt) == -1);
  EXPECT (errno == EBUSY);
  EXPECT (sqlite3_close (db) == SQLITE_OK);
  EXPECT (access (bad, F_OK) == -1);
  EXPECT (!reopen ());
  ck_assert_str_eq (ask ("SELECT count (*) FROM events"), "2;");
}
END_TEST

START_TEST (test_cannot_open)
{
  char link[300];
  bool rebuilt;

  EXPECT (catalog_open (&io_posix, "/nonexistent/dir", id, &catalog, &rebuilt) == -1);
  EXPECT (errno == ENOENT && catalog == NULL);
  snprintf (link, sizeof link, "%s/elsewhere", dir);
  EXPECT (symlink (link, path) == 0);
  EXPECT (catalog_open (&io_posix, dir, id, &catalog, &rebuilt) == -1);
  EXPECT (errno == ELOOP && catalog == NULL);
  EXPECT (unlink (path) == 0);
  EXPECT (mkdir (path, 0700) == 0);
  EXPECT (catalog_open (&io_posix, dir, id, &catalog, &rebuilt) == -1);
  EXPECT (errno == EISDIR && catalog == NULL);
  EXPECT (rmdir (path) == 0);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("catalog");
  TCase *tc = tcase_create ("catalog");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, test_make);
  tcase_add_test (tc, test_checkpoints);
  tcase_add_test (tc, test_events);
  tcase_add_test (tc, test_prune);
  tcase_add_loop_test (tc, test_damage, 0, 10);
  tcase_add_test (tc, test_damage_while_open);
  tcase_add_test (tc, test_locked);
  tcase_add_test (tc, test_cannot_open);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
