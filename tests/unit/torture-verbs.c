/* SPDX-License-Identifier: BSD-3-Clause */
/* The control verbs, as steps. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "unit/torture.h"

#define rnd life_random

/* A verb; NULL when there was no memory for an answer.  A refusal says why, in one line. */
static json_t *
ask (struct life *l, const char *line, int *result)
{
  char *reply;
  const char *error;
  json_t *json;
  int saved;

  *result = LIBRARY (replica_control (l->r, true, line, strlen (line), &reply));
  saved = errno;
  if (reply == NULL) {
    MUST (*result == -1 && saved == ENOMEM && fault_excuses (l), "%s: no answer: %m", line);
    errno = saved;
    return NULL;
  }
  json = json_loads (reply, 0, NULL);
  MUST (json && strchr (reply, '\n') == NULL, "%s: %s", line, reply);
  if (*result == -1) {
    error = json_string_value (json_object_get (json, "error"));
    MUST (error && strlen (error) > 10, "%s: %s", line, reply);
    if (getenv ("TORTURE_LOG"))
      fprintf (stderr, "%s: %s\n", line, error);
  }
  free (reply);
  errno = saved;
  return json;
}

int
torture_control (struct life *l, const char *line, const char *key, uint64_t *number)
{
  int result, saved;
  json_t *json = ask (l, line, &result), *v;

  *number = 0;
  if (json == NULL)
    return -1;
  saved = errno;
  v = json_object_get (json, result == 0 ? key : "code");
  MUST (json_is_integer (v), "%s: no %s", line, key);
  *number = json_integer_value (v);
  json_decref (json);
  MUST (result == -1 || journal_failed (l->r->journal) == 0 || l->r->direct,
        "%s: acknowledged, and the journal has failed", line);
  errno = saved;
  return result;
}

void
step_seal (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  uint64_t open = life_open_epoch (l), sealed;

  if (l->nsealed == TORTURE_SEALED)
    return;
  model_begin (l, "sealing");
  if (torture_control (l, "seal", "sealed", &sealed) == -1) {
    if (!takes_writes (state))
      return;
    step_excuse (l, true);
    /* Sealed all the same? */
    if (life_open_epoch (l) == open)
      return;
    sealed = open;
  }
  MUST (takes_writes (state), "a seal in %s", replica_state_word (state));
  model_sealed (l, sealed, version_copy (l, l->now));
  model_dirty (l);
}

void
step_commit (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  unsigned sealed = l->nsealed, i = rnd (l, sealed + 1);
  struct outcome o = { .kind = OUTCOME_CHECKPOINT };
  char line[100] = "commit label=a checkpoint";
  uint64_t open = life_open_epoch (l), number;

  model_begin (l, "committing");
  if (i < l->nsealed) {
    o.id = l->sealed[i].epoch;
    o.base = l->sealed[i].v;
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, o.id);
  }
  else {
    o.id = open;
    o.base = version_copy (l, l->now);
  }
  l->sealed_upto = o.id;
  MUST (o.id < TORTURE_CHECKPOINTS, "too many epochs for the test");
  if (!l->hole) {
    l->known[o.id] = o.base;
    model_perhaps (l, o);
  }
  if (torture_control (l, line, "checkpoint", &number) == -1) {
    MUST (number == MCEXIT_REFUSED || fault_excuses (l), "%s: code %" PRIu64, line, number);
    if (!takes_writes (state))
      return;
    step_excuse (l, true);
    if (l->r->has_checkpoint && l->r->checkpoint.id == o.id)
      number = o.id;            /* only the answer is missing */
    else {
      if (i == l->nsealed && i < TORTURE_SEALED && life_open_epoch (l) > open)
        model_sealed (l, open, o.base);
      return;
    }
  }
  MUST (!l->hole, "checkpoint %" PRIu64 " of a stream with a hole was acknowledged", number);
  MUST (number == o.id, "%s: checkpoint %" PRIu64 ", not %" PRIu64, line, number, o.id);
  model_committed (l, o);
  torture_count[i < sealed ? COUNT_OLDER : COUNT_COMMIT]++;
}

/* What must be refused, or changes nothing. */
void
step_nonsense (struct life *l)
{
  char line[100];
  uint64_t number;
  int result;

  torture_doing = "asking for nonsense";
  switch (rnd (l, 3)) {
  case 0:
    if (life_state (l) != JOURNAL_PROTECTED)
      return;
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, l->cur.id);
    result = torture_control (l, line, "checkpoint", &number);
    MUST ((result == 0 && number == l->cur.id) || fault_excuses (l), "%s again: %" PRIu64, line, number);
    return;
  case 1:
    snprintf (line, sizeof line, "commit generation=77");
    break;
  default:
    snprintf (line, sizeof line, "commit epoch=%" PRIu64, life_open_epoch (l));
  }
  MUST (torture_control (l, line, "checkpoint", &number) == -1 &&
        (number == MCEXIT_REFUSED || fault_excuses (l)), "%s", line);
}

void
step_promote (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  struct journal_checkpoint list[16];
  size_t n = MIN (journal_checkpoints (l->r->journal, list, 16), (size_t) 16);
  struct outcome o = { OUTCOME_PROMOTED, l->cur.id, l->cur.base };
  char line[64] = "promote";
  uint64_t number;
  bool again = state == JOURNAL_PROMOTED;
  bool can = again || (l->cur.kind == OUTCOME_CHECKPOINT && state != JOURNAL_FAILED);

  model_begin (l, "promoting");
  if (can && !again && n > 0 && rnd (l, 2) && !l->nested) {
    o.id = list[rnd (l, n)].id;
    o.base = l->known[o.id];
    MUST (o.base, "checkpoint %" PRIu64 " is listed, which never was one", o.id);
    snprintf (line, sizeof line, "promote to=%" PRIu64, o.id);
  }
  if (can && !again)
    model_perhaps (l, o);
  if (torture_control (l, line, "checkpoint", &number) == -1) {
    if (life_state (l) == JOURNAL_PROMOTED && fault_excuses (l))
      number = o.id;            /* only the answer is missing */
    else {
      /* Write-out may have passed what was chosen. */
      if (can && (!l->p.threads || strcmp (line, "promote") == 0))
        step_excuse (l, true);
      return;
    }
  }
  MUST (can, "promoted a replica that was %s", replica_state_word (state));
  MUST (number == o.id, "%s: checkpoint %" PRIu64, line, number);
  if (again)
    return;
  torture_count[o.id == l->cur.id ? COUNT_PROMOTE : COUNT_PROMOTE_OLDER]++;
  model_new_stream (l, o.base);
  model_no_late (l);
  l->cur = o;
  l->scratch_is_disk = CLEAN_NO;
  model_settle (l, CLEAN_NO);
}

void
step_resync (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  bool can = l->cur.kind == OUTCOME_CHECKPOINT && state != JOURNAL_FAILED;
  uint64_t number;

  model_begin (l, "resyncing");
  if (torture_control (l, "resync", "generation", &number) == -1) {
    if (can)
      step_excuse (l, true);
    if (life_state (l) != JOURNAL_RESYNCING || state == JOURNAL_RESYNCING)
      return;                   /* else only the answer is missing */
  }
  MUST (can, "a resync of a replica that was %s", replica_state_word (state));
  torture_count[COUNT_RESYNC]++;
  model_new_stream (l, l->cur.base);
  model_settle (l, CLEAN_NO);
}

/* A new first copy: all of it. */
void
step_overwrite (struct life *l)
{
  uint64_t number, moves = l->r->moves;

  model_begin (l, "resyncing in place");
  model_perhaps (l, (struct outcome) { .kind = OUTCOME_NONE });
  if (torture_control (l, "resync overwrite", "generation", &number) == -1) {
    if (!l->p.threads)          /* else a write-out that takes long is reason enough */
      step_excuse (l, true);
    if (l->r->moves == moves)
      return;
  }
  l->cur = (struct outcome) { .kind = OUTCOME_NONE };
  l->late = NULL;
  l->nlate = 0;
  torture_count[COUNT_OVERWRITE]++;
  memset (l->known, 0, sizeof l->known);
  model_new_stream (l, NULL);
  model_settle (l, CLEAN_NO);
  step_first_copy (l);
}

void
step_status (struct life *l)
{
  enum journal_replica_state state = life_state (l);
  json_t *json, *v;
  const char *word, *reason;
  size_t i;
  int result;

  torture_doing = "looking";
  json = ask (l, "status", &result);
  if (json) {
    word = json_string_value (json_object_get (json, "state"));
    reason = json_string_value (json_object_get (json, "reason"));
    MUST (word && reason && (l->p.threads || strcmp (word, replica_state_word (state)) == 0),
          "status says %s", word ? word : "nothing");
    MUST (state != JOURNAL_STALE || strstr (reason, "resync"), "stale, and no way out: %s", reason);
    MUST (state != JOURNAL_FAILED || strstr (reason, "journal"), "failed, and not at what: %s", reason);
    v = json_object_get (json_object_get (json, "checkpoint"), "id");
    MUST (l->cur.kind == OUTCOME_NONE ? v == NULL :
          (uint64_t) json_integer_value (v) == l->cur.id, "status has another checkpoint");
    json_decref (json);
  }
  json = ask (l, "list", &result);
  if (json == NULL)
    return;
  MUST (result == 0, "list: %m");
  json_array_foreach (json_object_get (json, "checkpoints"), i, v) {
    uint64_t id = json_integer_value (json_object_get (v, "id"));

    MUST (id < TORTURE_CHECKPOINTS && l->known[id] && (id <= l->cur.id || l->hole),
          "checkpoint %" PRIu64 " is listed, which is none", id);
  }
  json_decref (json);
}
