/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include "common/lock.h"

int
lock_init (pthread_mutex_t *lock)
{
  pthread_mutexattr_t attr;
  int r = pthread_mutexattr_init (&attr);

  if (r != 0)
    return r;
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
  r = pthread_mutexattr_settype (&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
  if (r == 0)
    r = pthread_mutex_init (lock, &attr);
  (void) pthread_mutexattr_destroy (&attr);
  return r;
}
