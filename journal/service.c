/* SPDX-License-Identifier: BSD-3-Clause */
/* From open to in service and back: staging, what survived, threads. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "journal/internal.h"

/* Publish an extent of a saved epoch again, for this process. */
static int
saved_item (void *opaque, const struct table_item *item)
{
  struct journal *j = opaque;

  if (item->epoch <= newest_settled (j))
    return 0;
  if (journal_credit (j, 1, item->nblocks) == -1)
    return -1;
  journal_publish (j, item->epoch, &item->ext, 1);
  return 0;
}

/* The tables of a clean stop become the stream of this process: where they are,
 * so that no room is needed for another copy, or, from within the record, in a new
 * chunk.  The data stays where it is.
 */
static int
saved_load (struct journal *j)
{
  struct table_runs runs;
  int r;

  if (table_runs_read (j, j->log.saved_seq, j->log.saved_nparts, 0, &runs,
                       NULL) == -1)
    return -1;
  r = runs.inline_ ? table_runs_walk (j, &runs, 0, saved_item, j, NULL) :
      runs.nruns > 0 ? saved_adopt (j, &runs) : 0;
  cleanup_free (&runs.runs);
  return r;
}

/* What was saved turns out not to be whole: start as if there were nothing. */
static int
start_over (struct journal *j, uint64_t buffer)
{
  bool found;

  staging_close (j, true);
  tables_free (j);
  space_free (j);
  j->log.saved_seq = 0;
  j->state.clean = false;
  j->saved_bad = true;
  if (tables_init (j) == -1 || space_init (j) == -1 || space_claim (j) == -1)
    return -1;
  return staging_open (j, buffer, &found);
}

int
journal_start (struct journal *j, uint64_t buffer, bool shared,
               enum journal_took *took, struct mcerror *err)
{
  bool found;

  assert (!j->started);
  *took = JOURNAL_TOOK_NOTHING;
  j->shared = shared;
  if (staging_open (j, buffer, &found) == -1) {
    if (errno == EBUSY)
      mcerror_set (err, MCEXIT_USAGE,
                   "%s: another process serves a copy of this journal on this host: stop it first",
                   j->dir);
    else
      mcerror_set (err, MCEXIT_USAGE,
                   "cannot get %llu bytes of %s memory for buffers: %m; make "
                   "buffer= smaller%s", (unsigned long long) buffer,
                   shared ? "shared" : "private",
                   shared ? " or /dev/shm larger" : "");
    staging_close (j, false);
    return -1;
  }
  if (found && takeover (j, took) == -1)
    goto fail;
  if (*took != JOURNAL_TOOK_SHARED && j->log.saved_seq != 0) {
    *took = JOURNAL_TOOK_SAVED;
    if (saved_load (j) == -1) {
      if (errno != EBADMSG || start_over (j, buffer) == -1)
        goto fail;
      *took = JOURNAL_TOOK_BAD;
    }
  }
  else if (*took == JOURNAL_TOOK_NOTHING && j->saved_bad)
    *took = JOURNAL_TOOK_BAD;
  if (*took == JOURNAL_TOOK_BAD)
    mcerror_set (err, MCEXIT_DAMAGE, "%s", j->was_failed ?
                 "the journal had failed under the last server" : j->saved_bad ?
                 "what the last server saved in the journal does not verify" :
                 "what the last server left in shared memory does not verify");
  else
    mcerror_set (err, MCEXIT_REFUSED, "%s", j->region_why);
  j->started = true;
  return 0;

 fail:
  mcerror_set (err, errno == EBADMSG ? MCEXIT_DAMAGE : MCEXIT_USAGE,
               "cannot take over what the last server left in %s: %m", j->dir);
  staging_close (j, false);
  return -1;
}

int
journal_look_uncommitted (struct journal *j)
{
  enum journal_took took = JOURNAL_TOOK_NOTHING;
  int r;

  assert (j->look && !j->started && !j->shared);
  r = staging_look (j);
  if (r == 1 && takeover (j, &took) == -1)
    r = -1;
  /* What a clean stop saved is read from the record. */
  if (r == -1 || (r == 1 && took != JOURNAL_TOOK_SHARED)) {
    int saved = errno;

    staging_close (j, false);
    j->region = NULL;
    errno = saved;
  }
  return r == -1 ? -1 : 0;
}

/* Tell the threads to end. */
static void
threads_stop (struct journal *j)
{
  SCOPED_LOCK (&j->lock);

  j->stopping = true;
  pthread_cond_broadcast (&j->work_cond);
  pthread_cond_broadcast (&j->zero_cond);
  pthread_cond_broadcast (&j->acked_cond);
}

int
journal_run (struct journal *j)
{
  int r;

  assert (j->started && !j->running);
  lock_sign (j);
  if (j->acked_file == NULL && acked_open (j, true) == -1)
    return -1;
  j->stopping = false;
  if ((r = pthread_create (&j->push_threads[0], NULL, push_thread, j)) != 0)
    goto fail0;
  if ((r = pthread_create (&j->push_threads[1], NULL, push_thread, j)) != 0)
    goto fail1;
  if ((r = pthread_create (&j->zero_thread, NULL, zero_thread_main, j)) != 0)
    goto fail2;
  if ((r = pthread_create (&j->acked_thread, NULL, acked_thread_main, j)) != 0)
    goto fail3;
  pthread_mutex_lock (&j->lock);
  j->running = true;
  pthread_cond_broadcast (&j->work_cond);
  pthread_mutex_unlock (&j->lock);
  return 0;

 fail3:
  threads_stop (j);
  pthread_join (j->zero_thread, NULL);
 fail2:
  threads_stop (j);
  pthread_join (j->push_threads[1], NULL);
 fail1:
  threads_stop (j);
  pthread_join (j->push_threads[0], NULL);
 fail0:
  errno = r;
  return -1;
}

void
journal_stop (struct journal *j, bool end)
{
  if (j->running) {
    threads_stop (j);
    for (unsigned i = 0; i < 2; i++)
      pthread_join (j->push_threads[i], NULL);
    pthread_join (j->zero_thread, NULL);
    pthread_join (j->acked_thread, NULL);
    j->running = false;
  }
  staging_close (j, end);
  j->started = false;
}
