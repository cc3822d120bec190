/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocations that fail on demand, by the linker's --wrap. */
#include "config.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/types.h>

#include "unit/unit.h"

extern void *__real_malloc (size_t size);
extern void *__real_calloc (size_t n, size_t size);
extern void *__real_realloc (void *p, size_t size);
extern void *__real_aligned_alloc (size_t align, size_t size);
extern void *__real_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t off);
extern void *__wrap_malloc (size_t size);
extern void *__wrap_calloc (size_t n, size_t size);
extern void *__wrap_realloc (void *p, size_t size);
extern void *__wrap_aligned_alloc (size_t align, size_t size);
extern void *__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t off);

static unsigned countdown, failed;

void
unit_fail_alloc (unsigned nth)
{
  countdown = nth;
  failed = 0;
}

unsigned
unit_failed (void)
{
  return failed;
}

static bool
fails (void)
{
  if (countdown == 0 || (countdown > 1 && countdown-- > 1))
    return false;
  failed++;
  errno = ENOMEM;
  return true;
}

void *
__wrap_malloc (size_t size)
{
  return fails () ? NULL : __real_malloc (size);
}

void *
__wrap_calloc (size_t n, size_t size)
{
  return fails () ? NULL : __real_calloc (n, size);
}

void *
__wrap_realloc (void *p, size_t size)
{
  return fails () ? NULL : __real_realloc (p, size);
}

void *
__wrap_aligned_alloc (size_t align, size_t size)
{
  return fails () ? NULL : __real_aligned_alloc (align, size);
}

void *
__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
  return fails () ? MAP_FAILED
                  : __real_mmap (addr, len, prot, flags, fd, off);
}
