/* SPDX-License-Identifier: BSD-3-Clause */
/* Scope-bound cleanup, after nbdkit's habit.
 *
 * CLEANUP_FREE frees a heap pointer when it leaves scope; SCOPED_LOCK holds a
 * mutex until the end of the enclosing block.  Both keep errno as it was.
 */
#ifndef MCBUF_COMMON_CLEANUP_H
#define MCBUF_COMMON_CLEANUP_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void
cleanup_free (void *ptr)
{
  int saved = errno;
  free (*(void **) ptr);
  errno = saved;
}

static inline void
cleanup_close (int *fd)
{
  int saved = errno;
  if (*fd >= 0)
    (void) close (*fd);
  errno = saved;
}

static inline void
cleanup_unlock (pthread_mutex_t **lock)
{
  int r = pthread_mutex_unlock (*lock);
  assert (r == 0);
  (void) r;
}

static inline pthread_mutex_t *
scoped_lock (pthread_mutex_t *lock)
{
  int r = pthread_mutex_lock (lock);
  assert (r == 0);
  (void) r;
  return lock;
}

#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free)))
#define CLEANUP_CLOSE __attribute__ ((cleanup (cleanup_close)))

#define CLEANUP_CAT2(a, b) a##b
#define CLEANUP_CAT(a, b) CLEANUP_CAT2 (a, b)
#define SCOPED_LOCK(mutex)                                              \
  __attribute__ ((cleanup (cleanup_unlock), unused))                    \
  pthread_mutex_t *CLEANUP_CAT (scope_lock_, __LINE__) = scoped_lock (mutex)

#endif /* MCBUF_COMMON_CLEANUP_H */
