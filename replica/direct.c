/* SPDX-License-Identifier: BSD-3-Clause */
/* Many scattered blocks at once, past the page cache: a disk that is given one request after the other, or
 * only hears of them when a file is synced, is idle half of the time.  Some threads have a write under way each.
 *
 * For whole blocks whose image is in RAM, and that the image's file has already: to fill a hole so is slow.  Who
 * writes the rest through the page cache does that when all of these are done, and syncs it
 * before the next of these: a page that gets dirty while it is written past is an error of the file to Linux.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "replica/internal.h"

#define THREADS 64u
#define JOBS 192u
#define REAP (JOBS / 3)         /* so many are waited for at a time */
#define PIECES 64u
#define JOB_BYTES (PIECES * JOURNAL_BLOCK)
#define FEW_RUNS 128u           /* not worth it */
#define STACK (256u << 10)

struct job {
  struct job *next;
  struct backing *image;
  uint64_t offset, length;
  unsigned n;
  struct iovec iov[PIECES];
  uint32_t pin[PIECES];
};

struct direct {
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  struct job *first, **last;    /* to be written */
  struct job *finished;
  unsigned nfinished, wanted;   /* ... and how many of them are waited for; 0: none */
  unsigned idle;                /* threads */
  bool stopping;
  int error;                    /* of the first write that failed ... */
  struct backing *failed;       /* ... to this image */
  /* The caller's own: */
  struct drain *d;
  unsigned nthreads, under_way, njobs;
  struct job *free, *now;
  struct { uint64_t from, to; } data[JOURNAL_MAX_DISKS];        /* no hole there */
  pthread_t thread[THREADS];
};

/* --- the threads ------------------------------------------------------------------- */

static void *
direct_main (void *direct)
{
  struct direct *w = direct;

  pthread_mutex_lock (&w->lock);
  for (;;) {
    struct job *job;
    int r;

    while (w->first == NULL && !w->stopping) {
      w->idle++;
      (void) pthread_cond_wait (&w->work, &w->lock);
      w->idle--;
    }
    job = w->first;
    if (job == NULL)
      break;
    w->first = job->next;
    if (w->first == NULL)
      w->last = &w->first;
    if (w->error == 0) {
      pthread_mutex_unlock (&w->lock);
      r = backing_pwritev_direct (job->image, job->iov, job->n, job->offset) == -1 ? errno : 0;
      pthread_mutex_lock (&w->lock);
      if (r != 0 && w->error == 0) {
        w->error = r;
        w->failed = job->image;
      }
    }
    job->next = w->finished;
    w->finished = job;
    if (++w->nfinished == w->wanted)
      pthread_cond_signal (&w->done);
  }
  pthread_mutex_unlock (&w->lock);
  return NULL;
}

void
direct_free (struct direct *w)
{
  int saved = errno;

  if (w == NULL)
    return;
  pthread_mutex_lock (&w->lock);
  w->stopping = true;
  pthread_cond_broadcast (&w->work);
  pthread_mutex_unlock (&w->lock);
  for (unsigned i = 0; i < w->nthreads; i++)
    (void) pthread_join (w->thread[i], NULL);
  free (w->now);
  while (w->free) {
    struct job *job = w->free;

    w->free = job->next;
    free (job);
  }
  pthread_cond_destroy (&w->done);
  pthread_cond_destroy (&w->work);
  pthread_mutex_destroy (&w->lock);
  free (w);
  errno = saved;
}

struct direct *
direct_new (struct drain *d)
{
  struct direct *w = calloc (1, sizeof *w);
  pthread_attr_t attr;

  if (w == NULL)
    return NULL;
  w->d = d;
  w->last = &w->first;
  if (pthread_mutex_init (&w->lock, NULL) != 0)
    goto fail;
  if (pthread_cond_init (&w->work, NULL) != 0)
    goto fail_work;
  if (pthread_cond_init (&w->done, NULL) != 0)
    goto fail_done;
  if (pthread_attr_init (&attr) == 0) {
    (void) pthread_attr_setstacksize (&attr, STACK);
    while (w->nthreads < THREADS &&
           pthread_create (&w->thread[w->nthreads], &attr, direct_main, w) == 0)
      w->nthreads++;
    (void) pthread_attr_destroy (&attr);
  }
  if (w->nthreads > 0)
    return w;
  direct_free (w);
  return NULL;

 fail_done:
  pthread_cond_destroy (&w->work);
 fail_work:
  pthread_mutex_destroy (&w->lock);
 fail:
  free (w);
  return NULL;
}

/* --- their caller ------------------------------------------------------------------ */

static void
release (struct direct *w, struct job *job)
{
  for (unsigned i = 0; i < job->n; i++)
    journal_unpin (w->d->journal, job->pin[i]);
  job->n = 0;
  job->length = 0;
  job->next = w->free;
  w->free = job;
}

/* Wait until N are finished, or take what there is. */
static int
reap (struct direct *w, unsigned n)
{
  struct job *list;
  uint64_t bytes = 0;
  int error;

  {
    SCOPED_LOCK (&w->lock);
    w->wanted = n;
    while (w->nfinished < n)
      (void) pthread_cond_wait (&w->done, &w->lock);
    w->wanted = 0;
    list = w->finished;
    w->finished = NULL;
    w->nfinished = 0;
    error = w->error;
    if (error)
      w->d->failed_path = backing_path (w->failed);
  }
  while (list) {
    struct job *job = list;

    list = job->next;
    bytes += job->length;
    w->under_way--;
    release (w, job);
  }
  if (error) {
    errno = error;
    return -1;
  }
  w->d->written += bytes;
  return bytes > 0 && w->d->progress ? w->d->progress (w->d->opaque, bytes) : 0;
}

static int
submit (struct direct *w)
{
  struct job *job = w->now;

  if (job == NULL || job->n == 0)
    return 0;
  w->now = NULL;
  w->under_way++;
  {
    SCOPED_LOCK (&w->lock);
    job->next = NULL;
    *w->last = job;
    w->last = &job->next;
    if (w->idle > 0)
      pthread_cond_signal (&w->work);
  }
  return w->under_way >= JOBS ? reap (w, REAP) : 0;
}

static struct job *
new_job (struct direct *w)
{
  struct job *job = w->free;

  if (job)
    w->free = job->next;
  else
    job = calloc (1, sizeof *job);
  return job;
}

/* Has the image's file room for it? */
static bool
is_data (struct direct *w, const struct map_run *run)
{
  uint64_t off = run->sector * MAP_SECTOR, size = w->d->disks[run->disk].size, length;
  bool hole;

  if (off >= w->data[run->disk].from && off + JOURNAL_BLOCK <= w->data[run->disk].to)
    return true;
  if (backing_extent (w->d->disks[run->disk].backing, off, size - off, &length, &hole) == -1 || hole ||
      length < JOURNAL_BLOCK)
    return false;
  w->data[run->disk].from = off;
  w->data[run->disk].to = off + length;
  return true;
}

static bool
is_fit (struct direct *w, const struct map_run *run)
{
  const struct disk *disk = &w->d->disks[run->disk];

  return !run->zero && run->nsectors == MAP_BLOCK_SECTORS && run->sector % MAP_BLOCK_SECTORS == 0 &&
    (run->sector + MAP_BLOCK_SECTORS) * MAP_SECTOR <= disk->size &&
    disk->backing && backing_is_direct (disk->backing) && is_data (w, run);
}

/* 1, 0 when it is to be written by other means, -1. */
static int
add (struct direct *w, const struct map_run *run, bool load)
{
  struct backing *image = w->d->disks[run->disk].backing;
  uint64_t off = run->sector * MAP_SECTOR;
  struct job *job = w->now;
  uint32_t one = 1;
  const uint8_t *mem;
  struct iovec *iov;

  if (job && job->n > 0 &&
      (job->image != image || job->offset + job->length != off || job->n == PIECES)) {
    if (submit (w) == -1)
      return -1;
    job = NULL;
  }
  if (job == NULL)
    job = w->now = new_job (w);
  if (job == NULL)
    return 0;
  mem = journal_pin (w->d->journal, run->loc, &one, load, NULL);
  if (mem == NULL)
    return 0;
  if ((uintptr_t) mem % JOURNAL_BLOCK != 0) {
    journal_unpin (w->d->journal, run->loc);
    return 0;
  }
  if (job->n == 0) {
    job->image = image;
    job->offset = off;
  }
  iov = &job->iov[job->n];
  *iov = (struct iovec) { .iov_base = (void *) (uintptr_t) mem, .iov_len = JOURNAL_BLOCK };
  job->pin[job->n++] = run->loc;
  job->length += JOURNAL_BLOCK;
  return 1;
}

int
direct_part (struct direct *w, struct map_run *runs, size_t n, bool load,
             bool *touched, size_t *left)
{
  int r = 0, saved;

  *left = n;
  if (w == NULL || n < FEW_RUNS)
    return 0;
  *left = 0;
  for (size_t i = 0; i < n && r != -1; i++) {
    r = is_fit (w, &runs[i]) ? add (w, &runs[i], load) : 0;
    if (r == 1 && !touched[runs[i].disk]) {
      touched[runs[i].disk] = true;
      backing_restart (w->d->disks[runs[i].disk].backing);
    }
    if (r == 0)
      runs[(*left)++] = runs[i];
  }
  if (r != -1)
    r = submit (w);
  else if (w->now) {
    release (w, w->now);
    w->now = NULL;
  }
  saved = errno;
  while (w->under_way > 0)
    if (reap (w, w->under_way) == -1 && r != -1) {
      r = -1;
      saved = errno;
    }
  errno = saved;
  return r == -1 ? -1 : 0;
}
