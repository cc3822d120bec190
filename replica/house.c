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
#define CATALOG_MS 100          /* from one writing of the catalog to the next: many commits in one */
#define TOGETHER 64             /* checkpoints in one transaction */
#define KEEP 256                /* events that wait for a catalog that cannot be written */

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
  bool first = r->events == NULL;

  e->next = NULL;
  e->generation = r->generation;
  *r->events_end = e;
  r->events_end = &e->next;
  if (first)
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

  if (e == NULL) {              /* the journal has it */
    r->missed = true;
    return;
  }
  e->is_checkpoint = true;
  e->checkpoint = *cp;
  append_locked (r, e);
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
  catalog_close (r->house.catalog);
  r->house.catalog = NULL;
}

/* --- the catalog --- */

/* Whatever a busy, killed or damaged catalog missed is in the journal. */
static int
refill (struct replica *r)
{
  size_t n = journal_checkpoints (r->journal, NULL, 0);
  CLEANUP_FREE struct journal_checkpoint *list = calloc (n + 1, sizeof *list);
  struct journal_state state;

  if (list == NULL)
    return -1;
  n = MIN (n, journal_checkpoints (r->journal, list, n));
  journal_get_state (r->journal, &state);
  return catalog_checkpoints (r->house.catalog, state.generation, list, n);
}

/* From where to where can be recovered?  Behind damage there may be newer ones, up to the newest. */
static void
window (struct replica *r, uint64_t *oldest, uint64_t *last, uint64_t *newest)
{
  struct journal_damage damage;
  struct journal_state state;

  journal_get_state (r->journal, &state);
  *newest = *last = state.has_checkpoint ? state.checkpoint.id : 0;
  *oldest = !state.has_checkpoint ? 1 : state.state == JOURNAL_PROMOTED ? *newest :
    MIN (state.target, *newest);
  if (journal_get_damage (r->journal, &damage) == 1 &&
      !journal_newest_checkpoint (r->journal, last))
    *oldest = *newest + 1;      /* nowhere */
}

/* What may be recovered to, as the catalog shows it. */
static int
write_window (struct replica *r)
{
  struct house *h = &r->house;

  window (r, &h->oldest, &h->last, &h->newest);
  return catalog_window (h->catalog, h->oldest, h->last, h->newest);
}

/* Write-out has gone on, which makes no event. */
static bool
window_moved (struct replica *r)
{
  uint64_t oldest, last, newest;

  window (r, &oldest, &last, &newest);
  return oldest != r->house.oldest || last != r->house.last || newest != r->house.newest;
}

/* The checkpoints that LIST begins with, into CP; how many of one generation. */
static unsigned
leading_checkpoints (const struct house_event *list,
                     struct journal_checkpoint cp[TOGETHER])
{
  unsigned n = 0;

  for (const struct house_event *e = list;
       e && e->is_checkpoint && e->generation == list->generation && n < TOGETHER; e = e->next)
    cp[n++] = e->checkpoint;
  return n;
}

/* Write and free events from *LIST on, up to one that cannot be written. */
static int
write_events (struct replica *r, struct house_event **list)
{
  struct catalog *c = r->house.catalog;
  struct journal_checkpoint cp[TOGETHER];
  struct house_event *e;

  while ((e = *list) != NULL) {
    unsigned n = leading_checkpoints (e, cp), done = MAX (n, 1u);

    if ((n > 0 ? catalog_checkpoints (c, e->generation, cp, n) :
         catalog_event (c, e->time, e->generation, e->kind, e->text)) == -1)
      return -1;
    while (done-- > 0) {
      e = *list;
      *list = e->next;
      free (e);
    }
  }
  return 0;
}

static int
write_catalog (struct replica *r, struct house_event **list)
{
  struct house *h = &r->house;
  bool rebuilt;

  if (h->catalog == NULL) {
    if (catalog_open (r->fs, r->dir, journal_get_config (r->journal)->id,
                      &h->catalog, &rebuilt) == -1)
      return -1;
    h->behind = true;
  }
  /* Before the events, for some of these are newer than what the journal is asked for. */
  if ((h->behind && refill (r) == -1) || write_events (r, list) == -1 ||
      write_window (r) == -1)
    return -1;
  h->behind = false;
  return 0;
}

/* Those of LIST that the journal cannot tell again wait for the next time. */
static void
put_back (struct replica *r, struct house_event *list)
{
  struct house_event **end = &list;
  unsigned n = 0;
  SCOPED_LOCK (&r->lock);

  while (*end) {
    struct house_event *e = *end;

    if (e->is_checkpoint || n == KEEP) {
      *end = e->next;
      free (e);
    }
    else {
      end = &e->next;
      n++;
    }
  }
  if (n == 0)
    return;
  *end = r->events;
  if (r->events == NULL)
    r->events_end = end;
  r->events = list;
}

static void
keep_catalog (struct replica *r, struct house_event *list)
{
  struct house *h = &r->house;

  if (write_catalog (r, &list) == 0) {
    h->complained = false;
    return;
  }
  if (!h->complained)
    replica_log (r, REPLICA_LOG_ERROR, "%s/catalog.sqlite: %m: the catalog lags behind "
                 "(nothing depends on it)", r->dir);
  h->complained = true;
  h->behind = true;
  if (errno == EBADMSG) {
    catalog_close (h->catalog);
    h->catalog = NULL;
    /* Or it would be opened, and be found damaged, for ever. */
    if (catalog_set_aside (r->fs, r->dir) == -1)
      replica_log (r, REPLICA_LOG_ERROR, "%s/catalog.sqlite: damaged, and cannot be renamed: %m: "
                   "remove it", r->dir);
  }
  put_back (r, list);
}

/* --- the thread --- */

/* Are seals to be expected, that want something prepared? */
static bool
seals_locked (struct replica *r)
{
  return (r->state == JOURNAL_SYNCING || r->state == JOURNAL_PROTECTED ||
          r->state == JOURNAL_RESYNCING) && !r->clean && !r->stopping;
}

/* What there is to do now, with the CATALOG or without.  True: the server stops, this was the last time. */
static bool
round_of_chores (struct replica *r, bool catalog)
{
  struct house_event *list;
  struct divergence *where;
  struct epoch *discarded;
  bool seals, last, failed;

  {
    SCOPED_LOCK (&r->lock);

    last = r->stopping;
    catalog = catalog || last;
    list = catalog ? take_events_locked (r) : NULL;
    discarded = r->discarded;
    where = r->discarded_for;
    r->discarded = NULL;
    if (r->missed)
      r->house.behind = true;
    r->missed = false;
    seals = seals_locked (r);
  }
  if (discarded)
    divergence_finish (r, where, discarded);
  failed = seals && (replica_tighten (r) == -1 || replica_prepare_seal (r) == -1);
  if (failed && !r->house.unprepared)
    replica_log (r, REPLICA_LOG_ERROR, "cannot prepare for the next seal: %m");
  r->house.unprepared = failed;
  if (catalog && (list || r->house.behind || window_moved (r))) {
    keep_catalog (r, list);
    r->house.due = host_monotonic_ns () + CATALOG_MS * UINT64_C (1000000);
  }
  return last;
}

static void
wait_chores (struct replica *r)
{
  SCOPED_LOCK (&r->lock);
  uint64_t now = host_monotonic_ns (), until = now + IDLE_MS * UINT64_C (1000000);
  struct timespec ts;

  if (r->stopping || r->discarded ||
      (seals_locked (r) && !r->house.unprepared &&
       speculation_spares_wanted (r->spec) > 0))
    return;
  if (r->events && !r->house.behind)
    until = r->house.due;
  if (until <= now)
    return;
  ts = (struct timespec) { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };
  (void) pthread_cond_timedwait (&r->chores, &r->lock, &ts);
}

void
house_step (struct replica *r)
{
  (void) round_of_chores (r, true);
}

void *
house_main (void *replica)
{
  struct replica *r = replica;

  host_thread_has_time ();
  while (!round_of_chores (r, host_monotonic_ns () >= r->house.due))
    wait_chores (r);
  return NULL;
}
