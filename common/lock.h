/* SPDX-License-Identifier: BSD-3-Clause */
/* Locks of short sections. */
#ifndef MCBUF_COMMON_LOCK_H
#define MCBUF_COMMON_LOCK_H

#include <pthread.h>

/* Whoever finds it taken spins a little before he goes to sleep.  Returns 0 or an errno, as pthread_mutex_init. */
extern int lock_init (pthread_mutex_t *lock);

#endif /* MCBUF_COMMON_LOCK_H */
