/* SPDX-License-Identifier: BSD-3-Clause */
/* One call of the simulated disk, or one allocation of the library, that fails.
 *
 * Each of the library's allocations is counted while it runs on behalf of a life (LIBRARY) and is not in
 * the simulated kernel; jansson's and SQLite's are made to pass by here too.
 */
#include "config.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <sqlite3.h>

#include "unit/torture.h"

#define FAULT_LASTS 60          /* calls: for ever, to whoever waits for its end */

extern bool unit_alloc_fails (void);

static struct life *watched;
static __thread unsigned library, kernel;

/* --- allocations --- */

bool
unit_alloc_fails (void)
{
  struct fault *f = watched ? &watched->fault : NULL;

  if (f == NULL || !f->memory || f->over || library == 0 || kernel > 0)
    return false;
  f->n++;
  if (f->at == 0 || (f->sticky ? f->n < f->at || f->n > f->at + FAULT_LASTS : f->n != f->at))
    return false;
  if (!f->hit && watched->r)
    f->state = watched->r->state;
  f->hit = true;
  f->step = watched->nsteps;
  errno = ENOMEM;
  return true;
}

static void *
sql_malloc (int n)
{
  return malloc (n);
}

static void
sql_free (void *p)
{
  free (p);
}

static void *
sql_realloc (void *p, int n)
{
  return realloc (p, n);
}

static int
sql_size (void *p)
{
  return malloc_usable_size (p);
}

static int
sql_round (int n)
{
  return ROUND_UP (n, 8);
}

static int
sql_init (void *opaque)
{
  (void) opaque;
  return SQLITE_OK;
}

static void
sql_shutdown (void *opaque)
{
  (void) opaque;
}

static void
inside (bool in)
{
  kernel += in ? 1 : -1;
}

/* Before anything else uses them. */
static void __attribute__ ((constructor))
hook_libraries (void)
{
  static const sqlite3_mem_methods methods = {
    sql_malloc, sql_free, sql_realloc, sql_size, sql_round, sql_init,
    sql_shutdown, NULL };

  /* What each crash state takes and gives back stays with the process. */
  (void) mallopt (M_MMAP_THRESHOLD, 32 << 20);
  (void) mallopt (M_TRIM_THRESHOLD, 1 << 30);
  json_set_alloc_funcs (malloc, free);
  if (sqlite3_config (SQLITE_CONFIG_MALLOC, &methods) != SQLITE_OK)
    abort ();
}

void
torture_library (bool in)
{
  library += in ? 1 : -1;
}

/* --- calls --- */

static enum fault_where
where_is (const char *path)
{
  if (strstr (path, ".img"))
    return FAULT_IMAGE;
  /* Without either, all that is kept goes on. */
  if (strstr (path, "/catalog") || strstr (path, "/divergence") || strstr (path, "/sums"))
    return FAULT_CATALOG;
  if (strstr (path, "/acked") || strstr (path, "/lock"))
    return FAULT_MARK;
  if (torture_is_scratch (path))
    return FAULT_SCRATCH;
  /* A directory: the catalog's files have names in it, too. */
  if (strstr (path, "/journal") == NULL &&
      (strcmp (torture_doing, "keeping the catalog") == 0 || strcmp (torture_doing, "stopping") == 0))
    return FAULT_CATALOG;
  return FAULT_JOURNAL;
}

static void
note (struct fault *f, struct fault_call c)
{
  if (f->ntrace == f->room) {
    f->room = f->room * 2 + 256;
    f->trace = realloc (f->trace, f->room * sizeof *f->trace);
    assert (f->trace);
  }
  f->trace[f->ntrace++] = c;
}

static bool
writing_out (const struct life *l)
{
  return l->r && l->r->writing_out;
}

static int
on_call (void *opaque, enum simdisk_call call, const char *path, size_t *len)
{
  struct life *l = opaque;
  struct fault *f = &l->fault;
  struct fault_call c = { call, where_is (path) };
  bool again = !f->over && f->hit && f->sticky && c.call == f->what.call &&
    c.where == f->what.where && f->n <= f->at + FAULT_LASTS;

  f->n++;
  if (f->trace)
    note (f, c);
  /* What write-out met, status shows for as long as it lasts. */
  if (f->hit && f->shown && writing_out (l) && c.where == FAULT_IMAGE) {
    MUST (strstr (l->r->wo_error, f->shown), "write-out met an error of %s, and status shows \"%s\"",
          f->shown, l->r->wo_error);
    f->shown = NULL;
  }
  if (f->over || (f->n != f->at && !again))
    return 0;
  if (getenv ("TORTURE_LOG"))
    fprintf (stderr, "call %llu, of kind %d, on %s fails: %d\n", (unsigned long long) f->n, call, path, f->error);
  f->hit = true;
  f->step = l->nsteps;
  f->what = c;
  f->state = l->r ? l->r->state : 0;
  f->moves = l->r ? l->r->moves : 0;
  f->server = l->servers;
  if (f->error == 0) {
    *len = MIN (*len, (size_t) SIMDISK_SECTOR);
    return 0;
  }
  if (f->error != EINTR && c.where == FAULT_IMAGE && writing_out (l) &&
      (call == SIMDISK_CALL_WRITE || call == SIMDISK_CALL_SYNC))
    for (unsigned d = 0; d < l->ndisks; d++)
      if (strcmp (l->path[d], path) == 0)
        f->shown = l->path[d];
  return f->error;
}

#define SHORT (-1)

/* Each row ends with 0. */
static const struct way { int error; bool sticky; } ways[SIMDISK_CALLS][7] = {
  [SIMDISK_CALL_OPEN] = { { EIO, false }, { EMFILE, false } },
  [SIMDISK_CALL_READ] = { { EIO, false }, { EINTR, false }, { SHORT, false }, { EIO, true } },
  [SIMDISK_CALL_WRITE] = { { EIO, false }, { ENOSPC, false }, { EINTR, false }, { SHORT, false },
                           { EIO, true }, { ENOSPC, true } },
  [SIMDISK_CALL_SYNC] = { { EIO, false }, { ENOSPC, false }, { EIO, true } },
  [SIMDISK_CALL_SPACE] = { { EIO, false }, { ENOSPC, false }, { EINTR, false } },
  [SIMDISK_CALL_LOOK] = { { EIO, false } },
  [SIMDISK_CALL_NAME] = { { EIO, false }, { EACCES, false } },
};

bool
fault_way (enum simdisk_call call, unsigned k, struct fault *f)
{
  const struct way *w = &ways[call][k];

  *f = (struct fault) { .error = w->error == SHORT ? 0 : w->error, .sticky = w->sticky };
  return w->error != 0;
}

void
fault_arm (struct life *l, struct simdisk *disk, const struct fault *f)
{
  l->fault = *f;
  l->fault.n = 0;
  if (!f->memory && (f->at || f->trace))
    simdisk_calls (disk, on_call, l);
}

void
fault_watch (struct life *l)
{
  watched = l;
  simdisk_inside = inside;
  fault_arm (l, l->disk, &l->p.fault);
}

void
fault_move (struct life *l)
{
  const struct fault *f = &l->fault;

  if (!f->memory && (f->at || f->trace))
    simdisk_calls (l->disk, on_call, l);
}

void
fault_end (struct life *l)
{
  (void) l;
  watched = NULL;
}

/* What can be gone on with at once, and what nothing depends on. */
bool
fault_is_harmless (const struct fault *f)
{
  return !f->memory && (f->error == 0 || f->error == EINTR || f->what.where == FAULT_CATALOG);
}

bool
fault_excuses (const struct life *l)
{
  const struct fault *f = &l->fault;

  if (!f->hit || f->past)
    return false;
  if (fault_is_harmless (f))
    return false;
  if (f->sticky && f->n <= f->at + FAULT_LASTS)
    return true;
  if (f->step == l->nsteps)
    return true;
  /* One of before: as if it had not been, but for what it has left. */
  return l->r && (l->r->state == JOURNAL_FAILED ||
                  (l->r->state == JOURNAL_PROMOTED && !f->memory));
}

void
fault_check (struct life *l)
{
  struct fault *f = &l->fault;
  enum journal_replica_state state = l->r->state;

  if (!f->hit || f->state == 0 || f->checked++ > 1)
    return;
  if (f->state != JOURNAL_FAILED && (f->memory || f->what.where != FAULT_JOURNAL))
    MUST (state != JOURNAL_FAILED, "failed, though nothing was wrong with the journal: %s", l->r->reason);
  if (fault_is_harmless (f))
    MUST (state != JOURNAL_STALE || f->state == JOURNAL_STALE, "stale, though nothing was lost: %s", l->r->reason);
  if (f->memory)
    return;
  if (f->what.where == FAULT_SCRATCH)
    MUST (state != JOURNAL_STALE || f->state == JOURNAL_STALE, "stale, though only scratch was hit: %s", l->r->reason);
  if (f->what.where == FAULT_IMAGE && f->state != JOURNAL_SYNCING && f->what.call != SIMDISK_CALL_READ)
    MUST (state != JOURNAL_STALE || f->state == JOURNAL_STALE,
          "stale, though write-out can go on later: %s", l->r->reason);
  /* At the latest the next request says so, if it does not begin anew. */
  if (f->what.where == FAULT_JOURNAL && f->error != 0 && f->error != EINTR && f->checked > 1 &&
      (f->what.call == SIMDISK_CALL_WRITE || f->what.call == SIMDISK_CALL_SYNC) && !l->r->direct &&
      l->r->moves == f->moves && l->servers == f->server)
    MUST (state == JOURNAL_FAILED, "the journal could not be written, and the replica is %s",
          replica_state_word (state));
}
