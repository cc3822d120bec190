/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocations that fail on demand, by the linker's --wrap. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

#include "unit/unit.h"

extern bool unit_alloc_fails (void);

#ifdef TORTURE
/* unit/torture-fault.c counts, and unit/torture-host.c has calloc and mmap. */
#else
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

bool
unit_alloc_fails (void)
{
  if (countdown == 0 || (countdown > 1 && countdown-- > 1))
    return false;
  failed++;
  errno = ENOMEM;
  return true;
}

extern void *__real_calloc (size_t n, size_t size);
extern void *__wrap_calloc (size_t n, size_t size);

void *
__wrap_calloc (size_t n, size_t size)
{
  return unit_alloc_fails () ? NULL : __real_calloc (n, size);
}

/* Where off_t is longer than a pointer, that is what the C library calls it. */
#if UINTPTR_MAX < UINT64_MAX
#define __real_mmap __real_mmap64
#define __wrap_mmap __wrap_mmap64
#endif
extern void *__real_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t off);
extern void *__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t off);

void *
__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
  return unit_alloc_fails () ? MAP_FAILED
                             : __real_mmap (addr, len, prot, flags, fd, off);
}
#endif

extern void *__real_malloc (size_t size);
extern void *__real_realloc (void *p, size_t size);
extern void *__real_aligned_alloc (size_t align, size_t size);
extern int __real_posix_memalign (void **p, size_t align, size_t size);
extern char *__real_strdup (const char *s);
extern char *__real_strndup (const char *s, size_t n);
extern void *__wrap_malloc (size_t size);
extern void *__wrap_realloc (void *p, size_t size);
extern void *__wrap_aligned_alloc (size_t align, size_t size);
extern int __wrap_posix_memalign (void **p, size_t align, size_t size);
extern char *__wrap_strdup (const char *s);
extern char *__wrap_strndup (const char *s, size_t n);
extern int __wrap_asprintf (char **p, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

void *
__wrap_malloc (size_t size)
{
  return unit_alloc_fails () ? NULL : __real_malloc (size);
}

void *
__wrap_realloc (void *p, size_t size)
{
  return unit_alloc_fails () ? NULL : __real_realloc (p, size);
}

void *
__wrap_aligned_alloc (size_t align, size_t size)
{
  return unit_alloc_fails () ? NULL : __real_aligned_alloc (align, size);
}

int
__wrap_posix_memalign (void **p, size_t align, size_t size)
{
  return unit_alloc_fails () ? ENOMEM : __real_posix_memalign (p, align, size);
}

char *
__wrap_strdup (const char *s)
{
  return unit_alloc_fails () ? NULL : __real_strdup (s);
}

char *
__wrap_strndup (const char *s, size_t n)
{
  return unit_alloc_fails () ? NULL : __real_strndup (s, n);
}

int
__wrap_asprintf (char **p, const char *fmt, ...)
{
  va_list args;
  int n;

  if (unit_alloc_fails ())
    return -1;
  va_start (args, fmt);
  n = vasprintf (p, fmt, args);
  va_end (args);
  return n;
}
