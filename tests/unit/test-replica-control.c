/* SPDX-License-Identifier: BSD-3-Clause */
/* Control verbs and the status line, without a server around them: what is refused and how, and that an
 * answer is JSON whatever paths and labels there are.  The worlds are the fuzzers'.
 */
#include "config.h"

#include <inttypes.h>

#include <jansson.h>

#include "common/bytes.h"
#include "fuzz/fuzz.h"
#include "fuzz/world.h"
#include "replica/json.h"
#include "unit/torture.h"
#include "unit/unit.h"

enum { BACKLOG = 0, CLEAN = 3, RECOVERED = 7, SYNCING = 9 };    /* of world.c */

static struct simdisk *disk;
static struct replica *r;

static void
setup (void)
{
  host_reset (79, true);
  host_boot (0);
}

static void
teardown (void)
{
  replica_close (r);
  if (disk)
    simdisk_free (disk);
}

static void
open_world (unsigned which)
{
  struct mcerror err;

  host_boot (0);
  disk = world_copy (world_get (which)->disk);
  host_reset (79, true);
  r = world_open (disk, &err);
  ck_assert_msg (r != NULL, "%s", err.text);
}

/* The answer, parsed; *RESULT and *ERRNUM as the verb gave them. */
static json_t *
ask_raw (bool local, const char *line, size_t len, int *result, int *errnum)
{
  char *reply;
  json_t *json;

  *result = replica_control (r, local, line, len, &reply);
  *errnum = errno;
  ck_assert_ptr_nonnull (reply);
  ck_assert_ptr_null (strchr (reply, '\n'));
  json = json_loads (reply, JSON_REJECT_DUPLICATES, NULL);
  ck_assert_msg (json_is_object (json), "%s", reply);
  free (reply);
  return json;
}

static json_t *
ask (const char *line)
{
  int result, errnum;
  json_t *json = ask_raw (true, line, strlen (line), &result, &errnum);

  ck_assert_msg (result == 0, "%s: %s", line,
                 json_string_value (json_object_get (json, "error")));
  return json;
}

/* It is refused with CODE, an errno that NBD knows, and a text that has WORDS in it. */
static void
refused (bool local, const char *line, size_t len, int code, int errnum,
         const char *words)
{
  int result, got;
  json_t *json = ask_raw (local, line, len, &result, &got);
  const char *text = json_string_value (json_object_get (json, "error"));

  ck_assert_int_eq (result, -1);
  ck_assert_msg (text && strstr (text, words), "%s: %s", line, text);
  ck_assert_int_eq (json_integer_value (json_object_get (json, "code")), code);
  ck_assert_int_eq (got, errnum);
  json_decref (json);
}

/* --- verbs --- */

START_TEST (usage)
{
  static const struct { const char *line, *words; } bad[] = {
    { "", "empty request" }, { "   \t ", "empty request" },
    { "frobnicate", "unknown verb" }, { "Seal", "unknown verb" },
    { "seal now", "takes generation=G" }, { "status x", "takes no argument" },
    { "seal generation=0", "number from 1" }, { "seal generation=x", "number from 1" },
    { "seal generation=1 generation=1", "nothing else" }, { "seal epoch=1", "takes generation=G" },
    { "list 7", "takes no argument" }, { "shutdown -f", "takes no argument" },
    { "commit epoch=", "takes a number" }, { "commit epoch=-1", "takes a number" },
    { "commit epoch=18446744073709551616", "takes a number" },
    { "commit generation=0", "number from 1" }, { "commit generation=x", "number from 1" },
    { "commit epoch=1 epoch=1", "each once" }, { "commit 7", "each once" },
    { "commit generation=1 generation=1", "each once" },
    { "commit label=a\tb", "label=" }, { "commit label=\xff", "label=" },
    { "promote 5", "to=" }, { "promote to=", "to=" },
    { "resync over", "overwrite" }, { "resync overwrite it", "overwrite" },
    { "reset", "NAME@scratch" }, { "reset vda", "NAME@scratch" },
    { "reset vda@scratch now", "NAME@scratch" },
    { "seal\nseal", "one line" },
  };
  char label[300] = "commit label=";

  open_world (BACKLOG);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    refused (true, bad[i].line, strlen (bad[i].line), MCEXIT_USAGE, EINVAL,
             bad[i].words);
  refused (true, "se\0al", 5, MCEXIT_USAGE, EINVAL, "one line");
  memset (label + strlen (label), 'x', JOURNAL_LABEL_MAX + 1);
  refused (true, label, strlen ("commit label=") + JOURNAL_LABEL_MAX + 1,
           MCEXIT_USAGE, EINVAL, "longer than 255");
}
END_TEST

static unsigned shutdowns;

static void
on_shutdown (void)
{
  shutdowns++;
}

START_TEST (refusals)
{
  char line[64];
  uint64_t cp;

  open_world (BACKLOG);
  cp = r->checkpoint.id;
  refused (false, "promote", 7, MCEXIT_REFUSED, EPERM, "only on the local control socket");
  refused (false, "shutdown", 8, MCEXIT_REFUSED, EPERM, "only on the local control socket");
  refused (true, "shutdown", 8, MCEXIT_REFUSED, EPERM, "does not take that verb");
  refused (true, "reset vdz@scratch", 17, MCEXIT_USAGE, EINVAL, "no disk");
  refused (true, "reset vda@latest", 16, MCEXIT_USAGE, EINVAL, "scratch");
  json_decref (ask ("reset vda@scratch"));
  /* What it quotes of the request need not be UTF-8. */
  refused (true, "promote to=\xff\xe4x", 14, MCEXIT_REFUSED, EIO, "??x");

  /* Its speculation is lost, as after a power loss: stale. */
  refused (true, "commit", 6, MCEXIT_REFUSED, EPERM, "stale");
  refused (true, "seal", 4, MCEXIT_REFUSED, EPERM, "stale");
  /* But what was committed before is a success that changes nothing. */
  snprintf (line, sizeof line, "commit epoch=%" PRIu64, cp);
  json_decref (ask (line));
  json_decref (ask ("resync"));
  refused (true, "commit generation=9", 19, MCEXIT_REFUSED, ESHUTDOWN, "generation 9");
  snprintf (line, sizeof line, "commit epoch=%" PRIu64, cp + 1);
  refused (true, line, strlen (line), MCEXIT_REFUSED, EPERM, "was discarded");
  refused (true, "commit epoch=999999", 19, MCEXIT_REFUSED, EPERM, "is not sealed");

  replica_set_shutdown (r, on_shutdown);
  json_decref (ask ("shutdown"));
  ck_assert_uint_eq (shutdowns, 1);

  {
    SCOPED_LOCK (&r->lock);
    r->stopping = true;
  }
  refused (true, "status", 6, MCEXIT_USAGE, ESHUTDOWN, "stopping");
  {
    SCOPED_LOCK (&r->lock);
    r->stopping = false;
  }
}
END_TEST

START_TEST (no_checkpoint)
{
  open_world (SYNCING);
  refused (true, "commit epoch=0", 14, MCEXIT_REFUSED, EPERM, "count from 1");
  refused (true, "promote", 7, MCEXIT_NO_CHECKPOINT, EPERM, "no checkpoint");
  refused (true, "resync", 6, MCEXIT_REFUSED, EPERM, "first copy is still going on");
}
END_TEST

/* --- status and list --- */

START_TEST (keys)
{
  static const char *const key[] = {
    "replica", "state", "reason", "generation", "open_epoch", "sealed_epochs",
    "checkpoint", "written_out", "disks", "speculation", "writeout", "journal",
    "buffer", "commit_latency_us", "connections", "version",
  };
  json_t *json;

  open_world (RECOVERED);
  json = ask ("status");
  for (size_t i = 0; i < sizeof key / sizeof key[0]; i++)
    ck_assert_msg (json_object_get (json, key[i]) != NULL, "%s", key[i]);
  ck_assert (json_is_true (json_object_get (json, "drained")));
  json_decref (json);
}
END_TEST

/* The control export's reply has to fit: what does not is left out, and said. */
START_TEST (long_list)
{
  char line[400] = "commit label=";
  json_t *json, *list;
  size_t n;
  int result, errnum;

  open_world (CLEAN);
  memset (line + strlen (line), '"', 250);
  for (unsigned i = 0; i < 200; i++)
    json_decref (ask (line));
  json = ask ("list");
  list = json_object_get (json, "checkpoints");
  n = json_array_size (list);
  ck_assert_uint_ge (n, 200);
  ck_assert_ptr_null (json_object_get (json, "left_out"));
  json_decref (json);

  json = ask_raw (false, "list", 4, &result, &errnum);
  list = json_object_get (json, "checkpoints");
  ck_assert_int_eq (result, 0);
  ck_assert_uint_gt (json_array_size (list), 20);
  ck_assert_uint_eq (json_array_size (list) +
                     json_integer_value (json_object_get (json, "left_out")), n);
  ck_assert_int_eq (json_integer_value (json_object_get
                                        (json_array_get (list, json_array_size (list) - 1), "id")),
                    (json_int_t) r->checkpoint.id);
  json_decref (json);
}
END_TEST

/* A path is bytes; JSON is UTF-8.  Status is asked for when things go wrong: it
 * must not be what fails.
 */
START_TEST (odd_paths)
{
  static const char *const path[] = {
    "/sim/caf\xe9.img",         /* Latin-1 */
    "/sim/\xff\xfe\x80.img",
    "/sim/gr\303\274n.img",
  };
  struct replica_disk_params d = { .name = "vda", .path = path[_i],
                                   .create = true, .size = 1 << 20 };
  struct replica_params p = { .dir = "/sim/odd\xff", .disks = &d, .ndisks = 1,
                              .journal_size = JOURNAL_MIN_SIZE,
                              .buffer = 8 << 20 };
  struct mcerror err;
  json_t *json;

  disk = simdisk_new ();
  p.fs = simdisk_fs (disk);
  ck_assert_msg (replica_open (&p, &r, &err) == 0, "%s", err.text);
  r->by_hand = true;
  json = ask ("status");
  ck_assert (json_is_string (json_object_get (json_array_get (json_object_get (json, "disks"), 0),
                                              "backing")));
  json_decref (json);
  /* A reason that is cut in the middle of a letter, and an error with the path in it. */
  for (unsigned n = 0; n < 4; n++) {
    SCOPED_LOCK (&r->lock);
    char word[300];

    memset (word, 'x', n);
    for (size_t i = n; i + 2 < sizeof word; i += 2)
      memcpy (word + i, "\303\274", 2);
    word[sizeof word - 2] = '\0';
    set_reason_locked (r, "%s", word);
    snprintf (r->wo_error, sizeof r->wo_error, "%s: %.*s", d.path, 251, word);
    pthread_mutex_unlock (&r->lock);
    json_decref (ask ("status"));
    pthread_mutex_lock (&r->lock);
    r->wo_error[0] = '\0';
  }
}
END_TEST

/* --- which epochs were committed --- */

static uint64_t
number (const char *line, const char *key)
{
  json_t *json = ask (line);
  uint64_t n = json_integer_value (json_object_get (json, key));

  json_decref (json);
  return n;
}

static void
asked_again (uint64_t epoch, bool committed)
{
  char line[64];

  snprintf (line, sizeof line, "commit epoch=%" PRIu64, epoch);
  if (committed)
    ck_assert_uint_eq (number (line, "epoch"), epoch);
  else
    refused (true, line, strlen (line), MCEXIT_REFUSED, EPERM, "was discarded");
}

static void
again (void)
{
  struct mcerror err;

  replica_close (r);
  r = world_open (disk, &err);
  ck_assert_msg (r != NULL, "%s", err.text);
}

/* Whoever lost a reply asks again, and is not to hear that what was discarded is safe: not after
 * the next checkpoint either, whatever discarded it, and not of a server that was started since.
 */
START_TEST (discarded)
{
  uint64_t first, sealed, second, third, lost, fourth;

  open_world (CLEAN);
  first = number ("commit", "checkpoint");
  sealed = number ("seal", "sealed");
  json_decref (ask ("resync"));
  second = number ("commit", "checkpoint");
  ck_assert_uint_gt (second, sealed);
  for (unsigned i = 0; i < 2; i++) {
    asked_again (first, true);
    asked_again (sealed, false);
    asked_again (second - 1, false);
    asked_again (second, true);
    again ();
  }

  third = number ("commit", "checkpoint");
  lost = number ("seal", "sealed");
  json_decref (ask (_i == 0 ? "promote" : "status"));
  json_decref (ask ("resync overwrite"));
  fourth = number ("commit", "checkpoint");
  for (unsigned i = 0; i < 2; i++) {
    asked_again (third, true);
    asked_again (second, true);
    asked_again (lost, false);
    asked_again (fourth, true);
    /* So long ago that all of that time are taken for lost. */
    asked_again (sealed, false);
    again ();
  }
}
END_TEST

/* To an older checkpoint: those after it are as if they had never been. */
START_TEST (discarded_commits)
{
  uint64_t kept, gone, next;
  char line[64];

  open_world (CLEAN);
  kept = number ("commit", "checkpoint");
  gone = number ("commit", "checkpoint");
  snprintf (line, sizeof line, "promote to=%" PRIu64, kept);
  json_decref (ask (line));
  json_decref (ask ("resync overwrite"));
  next = number ("commit", "checkpoint");
  ck_assert_uint_gt (next, gone);
  for (unsigned i = 0; i < 2; i++) {
    asked_again (kept, true);
    asked_again (gone, false);
    asked_again (next, true);
    again ();
  }
}
END_TEST

/* What of a text is UTF-8 stays. */
START_TEST (text)
{
  static const struct { const char *bytes, *text; } pairs[] = {
    { "plain", "plain" }, { "gr\303\274n", "gr\303\274n" },
    { "\xe2\x82\xac", "\xe2\x82\xac" }, { "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80" },
    { "\xe0\x80\x80", "???" },  /* longer than it has to be */
    { "\xed\xa0\x80", "???" },  /* a surrogate */
    { "\xf0\x80\x80\x80", "????" }, { "\xf4\x90\x80\x80", "????" },
    { "\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf" },
    { "a\xe2\x82", "a??" }, { "\xe2\x82x", "??x" }, { "\xc3", "?" },
    { "\xf0\x9f\x98", "???" }, { "\xc0\xaf", "??" },
  };

  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
    json_t *json = json_text (pairs[i].bytes);

    ck_assert_ptr_nonnull (json);
    ck_assert_str_eq (json_string_value (json), pairs[i].text);
    json_decref (json);
  }
  ck_assert_str_eq (replica_state_word ((enum journal_replica_state) 77), "unknown");
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("replica");
  TCase *t = tcase_create ("control");

  tcase_add_checked_fixture (t, setup, teardown);
  tcase_set_timeout (t, 120);
  tcase_add_test (t, usage);
  tcase_add_test (t, refusals);
  tcase_add_test (t, no_checkpoint);
  tcase_add_test (t, keys);
  tcase_add_test (t, long_list);
  tcase_add_loop_test (t, odd_paths, 0, 3);
  tcase_add_loop_test (t, discarded, 0, 2);
  tcase_add_test (t, discarded_commits);
  tcase_add_test (t, text);
  suite_add_tcase (s, t);
  return unit_run (s);
}
