/* SPDX-License-Identifier: BSD-3-Clause */
/* The simulated host: whatever would make a run differ from its replay, or a crash
 * state cost milliseconds, is replaced by the linker's --wrap.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "unit/torture.h"

#define POOL_MIN (UINT64_C (1) << 20)
#define POOL 64
#define SLOT_SIZE (JOURNAL_BLOCK + (size_t) JOURNAL_CHUNK)

extern uint64_t __real_host_monotonic_ns (void);
/* Where off_t is longer than a pointer, that is what the C library calls it. */
#if UINTPTR_MAX < UINT64_MAX
#define __real_mmap __real_mmap64
#define __wrap_mmap __wrap_mmap64
#endif
extern void *__real_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t off);
extern int __real_munmap (void *addr, size_t len);
extern int __real_journal_start (struct journal *j, uint64_t buffer,
                                 bool shared, enum journal_took *took,
                                 struct mcerror *err);

extern int __wrap_host_boot_id (uint8_t id[HOST_ID_LEN]);
extern int __wrap_host_random (void *buf, unsigned len);
extern uint64_t __wrap_host_time_ns (void);
extern uint64_t __wrap_host_monotonic_ns (void);
extern void *__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t off);
extern int __wrap_munmap (void *addr, size_t len);
extern int __wrap_journal_start (struct journal *j, uint64_t buffer,
                                 bool shared, enum journal_took *took,
                                 struct mcerror *err);

extern struct map *__real_map_new (size_t blocks);
extern struct map *__wrap_map_new (size_t blocks);
extern void *__real_calloc (size_t n, size_t size);
extern void *__wrap_calloc (size_t n, size_t size);
extern void __real_free (void *p);
extern void __wrap_free (void *p);

/* Only some programs let allocations fail. */
extern bool unit_alloc_fails (void) __attribute__ ((weak));

static bool
fails (void)
{
  return unit_alloc_fails && unit_alloc_fails ();
}

static __thread uint64_t stream;
static __thread unsigned boot;
static _Atomic unsigned boots;
static _Atomic uint64_t own, ticks;
static bool stepped;

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t
mix (uint64_t z)
{
  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

void
host_seed (uint64_t seed)
{
  stream = seed;
}

uint64_t
host_bits (void)
{
  return mix (stream += UINT64_C (0x9e3779b97f4a7c15));
}

uint64_t
host_below (uint64_t n)
{
  return host_bits () % n;
}

void
host_reset (uint64_t seed, bool by_steps)
{
  own = seed;
  ticks = 0;
  stepped = by_steps;
  boots = boot = 0;
}

unsigned
host_boot (unsigned b)
{
  unsigned was = boot;

  boot = b;
  return was;
}

unsigned
host_new_boot (void)
{
  return ++boots;
}

int
__wrap_host_boot_id (uint8_t id[HOST_ID_LEN])
{
  memset (id, 0, HOST_ID_LEN);
  memcpy (id, &boot, sizeof boot);
  return 0;
}

int
__wrap_host_random (void *buf, unsigned len)
{
  for (unsigned i = 0; i < len; i += 8) {
    const uint64_t step = UINT64_C (0x9e3779b97f4a7c15);
    uint64_t v = mix (atomic_fetch_add (&own, step) + step);

    memcpy ((char *) buf + i, &v, MIN (8u, len - i));
  }
  return 0;
}

uint64_t
__wrap_host_time_ns (void)
{
  return UINT64_C (1700000000000000000) + atomic_fetch_add (&ticks, 1000000);
}

/* Every look at the clock takes 20 ms, and its hours are long gone: whoever waits until some
 * time has waited enough.
 */
uint64_t
__wrap_host_monotonic_ns (void)
{
  return stepped ? atomic_fetch_add (&ticks, 20000000) + 20000000 :
    __real_host_monotonic_ns ();
}

extern int __real_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *lock,
                                          const struct timespec *until);
extern int __wrap_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *lock,
                                          const struct timespec *until);

/* And need not ask the kernel. */
int
__wrap_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *lock,
                               const struct timespec *until)
{
  return stepped ? ETIMEDOUT : __real_pthread_cond_timedwait (cond, lock, until);
}

/* --- Memory: staging and maps are made anew for each crash state --- */

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static struct { void *p; size_t len; } pool[POOL];
static unsigned npool;

static void *
pool_get (size_t len)
{
  SCOPED_LOCK (&pool_lock);

  for (unsigned i = npool; i > 0; i--)
    if (pool[i - 1].len == len) {
      void *p = pool[i - 1].p;

      pool[i - 1] = pool[--npool];
      return p;
    }
  return NULL;
}

void *
__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
  void *p = NULL;

  if (fails ())
    return MAP_FAILED;
  if (fd == -1 && len >= POOL_MIN && (p = pool_get (len)) != NULL) {
    if (len % SLOT_SIZE == JOURNAL_BLOCK) {
      /* A staging region: its header and its buffers' are to be zero. */
      for (size_t at = 0; at < len;
           at += at == 0 ? JOURNAL_BLOCK : SLOT_SIZE)
        memset ((char *) p + at, 0, JOURNAL_BLOCK);
    }
    else
      memset (p, 0, len);
    return p;
  }
  return __real_mmap (addr, len, prot, flags, fd, off);
}

int
__wrap_munmap (void *addr, size_t len)
{
  /* Nothing but staging regions is ever unmapped as it was mapped. */
  if (len >= POOL_MIN && len % SLOT_SIZE == JOURNAL_BLOCK) {
    SCOPED_LOCK (&pool_lock);

    if (npool < POOL) {
      pool[npool].p = addr;
      pool[npool++].len = len;
      return 0;
    }
  }
  return __real_munmap (addr, len);
}

/* A map begins small. */
struct map *
__wrap_map_new (size_t blocks)
{
  return __real_map_new (MIN (blocks, (size_t) 64));
}

/* Each backing image has a piece of zeroes, which nobody changes: one for all. */
static uint8_t zeroes[1 << 20];

void *
__wrap_calloc (size_t n, size_t size)
{
  if (fails ())
    return NULL;
  return n * size == sizeof zeroes ? zeroes : __real_calloc (n, size);
}

void
__wrap_free (void *p)
{
  if (p != zeroes)
    __real_free (p);
}

/* Shared memory goes with the power; and little of it will do. */
int
__wrap_journal_start (struct journal *j, uint64_t buffer, bool shared,
                      enum journal_took *took, struct mcerror *err)
{
  (void) buffer;
  (void) shared;
  return __real_journal_start (j, UINT64_C (8) << 20, false, took, err);
}
