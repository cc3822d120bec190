/* SPDX-License-Identifier: BSD-3-Clause */
/* The house thread: what has time.  Spare epochs for the seals to come, epoch
 * numbers ahead of them, and the catalog.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "replica/internal.h"

#define IDLE_MS 500

struct house_event {
  struct house_event *next;
  uint64_t time, generation;
  bool is_checkpoint;
  struct journal_checkpoint checkpoint;
  char kind[16];
  char text[256];
};

static void
append_locked (struct replica *r, struct house_event *e)
{
  e->next = NULL;
  e->generation = r->generation;
  *r->events_end = e;
  r->events_end = &e->next;
  pthread_cond_signal (&r->chores);
}

void
house_event_locked (struct replica *r, const char *kind, const char *fmt, ...)
{
  int saved = errno;
  struct house_event *e = calloc (1, sizeof *e);
  va_list args;

  if (e) {                      /* without memory the catalog lacks a line */
    e->time = host_time_ns ();
    snprintf (e->kind, sizeof e->kind, "%s", kind);
    va_start (args, fmt);
    if (vsnprintf (e->text, sizeof e->text, fmt, args) < 0)
      e->text[0] = '\0';        /* no format of ours fails.  LCOV_EXCL_LINE */
    va_end (args);
    append_locked (r, e);
  }
  errno = saved;
}

void
house_checkpoint_locked (struct replica *r,
                         const struct journal_checkpoint *cp)
{
  struct house_event *e = calloc (1, sizeof *e);

  if (e) {
    e->is_checkpoint = true;
    e->checkpoint = *cp;
    append_locked (r, e);
  }
}

static struct house_event *
take_events_locked (struct replica *r)
{
  struct house_event *list = r->events;

  r->events = NULL;
  r->events_end = &r->events;
  return list;
}

static void
free_events (struct house_event *list)
{
  while (list) {
    struct house_event *next = list->next;

    free (list);
    list = next;
  }
}

void
house_free (struct replica *r)
{
  free_events (r->events);
  r->events = NULL;
}

/* A catalog that was lost is made again from what the journal still has. */
static int
refill (struct replica *r, struct catalog *c)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *list = calloc (n + 1, sizeof *list);
  struct journal_state state;

  if (list == NULL)
    return -1;
  n = MIN (n, journal_checkpoints (r->journal, list, n));
  journal_get_state (r->journal, &state);
  return catalog_checkpoints (c, state.generation, list, n);
}

static int
write_events (struct catalog *c, const struct house_event *list)
{
  for (const struct house_event *e = list; e; e = e->next)
    if ((e->is_checkpoint ?
         catalog_checkpoints (c, e->generation, &e->checkpoint, 1) :
         catalog_event (c, e->time, e->generation, e->kind, e->text)) == -1)
      return -1;
  return 0;
}

/* What may be recovered to, as the catalog shows it. */
static int
write_window (struct replica *r, struct catalog *c)
{
  struct journal_state state;

  journal_get_state (r->journal, &state);
  if (!state.has_checkpoint)
    return catalog_window (c, 1, 0);
  return catalog_window (c, MIN (state.target, state.checkpoint.id),
                         state.checkpoint.id);
}

void *
house_main (void *replica)
{
  struct replica *r = replica;
  struct catalog *c = NULL;
  bool rebuilt, complained = false, first = true, last = false;

  /* Whatever a busy or killed catalog missed is in the journal. */
  if (catalog_open (r->dir, journal_get_config (r->journal)->id, &c,
                    &rebuilt) == -1 || refill (r, c) == -1) {
    replica_log (r, REPLICA_LOG_ERROR, "%s/catalog.sqlite: %m: going on without a catalog "
                 "(nothing depends on it)", r->dir);
    complained = true;
  }
  while (!last) {
    struct house_event *list;
    bool seals;

    {
      SCOPED_LOCK (&r->lock);

      if (r->events == NULL && !r->stopping &&
          speculation_spares_wanted (r->spec) == 0) {
        uint64_t ns = host_monotonic_ns () + IDLE_MS * UINT64_C (1000000);
        struct timespec ts = { .tv_sec = ns / 1000000000,
                               .tv_nsec = ns % 1000000000 };

        (void) pthread_cond_timedwait (&r->chores, &r->lock, &ts);
      }
      list = take_events_locked (r);
      last = r->stopping;
      seals = !last && (r->state == JOURNAL_SYNCING ||
                        r->state == JOURNAL_PROTECTED ||
                        r->state == JOURNAL_RESYNCING) && !r->clean;
    }
    if (seals && replica_prepare_seal (r) == -1 && !complained) {
      replica_log (r, REPLICA_LOG_ERROR, "cannot prepare for the next seal: %m");
      complained = true;
    }
    if (c && (list || first) &&
        ((list && write_events (c, list) == -1) ||
         write_window (r, c) == -1) && !complained) {
      replica_log (r, REPLICA_LOG_ERROR, "%s/catalog.sqlite: %m: the catalog lags behind "
                   "(nothing depends on it)", r->dir);
      complained = true;
    }
    free_events (list);
    first = false;
  }
  catalog_close (c);
  return NULL;
}
