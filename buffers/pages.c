/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#include "buffers/pages.h"
#include "common/bytes.h"

#define PAGE ((size_t) 4096)            /* smaller than the real one is fine */
#define HUGE_PAGE ((size_t) 2 << 20)

static size_t
whole_pages (size_t bytes)
{
  return ROUND_UP (bytes, bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE);
}

static void
unmap (char *from, char *to)
{
  int saved = errno;

  /* What cannot be unmapped stays mapped: the address space is wasted. */
  if (from < to)
    (void) munmap (from, to - from);
  errno = saved;
}

void *
pages_alloc_lazy (size_t bytes)
{
  size_t len = whole_pages (bytes);
  size_t slack = len >= HUGE_PAGE ? HUGE_PAGE : 0;
  char *area, *start;

  if (len < bytes || len + slack < len) {
    errno = ENOMEM;
    return NULL;
  }
  area = mmap (NULL, len + slack, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) {
    errno = ENOMEM;
    return NULL;
  }
  start = area;
  if (slack > 0) {
    start += -(uintptr_t) area & (HUGE_PAGE - 1);
    unmap (area, start);
    unmap (start + len, area + len + slack);
    /* A hint only: without huge pages it is as correct. */
    (void) madvise (start, len, MADV_HUGEPAGE);
  }
  return start;
}

void *
pages_alloc (size_t bytes)
{
  char *area = pages_alloc_lazy (bytes);

  if (area)
    for (size_t i = 0; i < whole_pages (bytes); i += PAGE)
      *(volatile char *) (area + i) = 0;
  return area;
}

void
pages_free (void *area, size_t bytes)
{
  if (area)
    unmap (area, (char *) area + whole_pages (bytes));
}

size_t
pages_shrink (void *area, size_t from, size_t to)
{
  size_t have = whole_pages (from), keep = whole_pages (to);

  if (keep >= have)
    return from;
  if (munmap ((char *) area + keep, have - keep) == -1)
    return from;
  return to;
}
