/* SPDX-License-Identifier: BSD-3-Clause */
/* See simpages.h. */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "unit/simpages.h"

#define PAGE 16384u

struct page {
  _Atomic unsigned refs;        /* of contents that may be in different hands */
  uint8_t data[PAGE];
};

static unsigned
npages (uint64_t size)
{
  return DIV_UP (size, PAGE);
}

static void
page_drop (struct page *p)
{
  if (p && --p->refs == 0)
    free (p);
}

void
content_resize (struct content *c, uint64_t size)
{
  unsigned old = npages (c->size), n = npages (size);

  for (unsigned i = n; i < old; i++)
    page_drop (c->pages[i]);
  c->pages = realloc (c->pages, MAX (n, 1u) * sizeof *c->pages);
  assert (c->pages);
  for (unsigned i = old; i < n; i++)
    c->pages[i] = NULL;
  c->size = size;
}

struct content
content_share (const struct content *c)
{
  struct content copy = { NULL, 0 };

  content_resize (&copy, c->size);
  for (unsigned i = 0; i < npages (c->size); i++) {
    copy.pages[i] = c->pages[i];
    if (copy.pages[i])
      copy.pages[i]->refs++;
  }
  return copy;
}

void
content_free (struct content *c)
{
  for (unsigned i = 0; i < npages (c->size); i++)
    page_drop (c->pages[i]);
  free (c->pages);
}

void
content_write (struct content *c, const uint8_t *data, size_t len, uint64_t off)
{
  if (off + len > c->size)
    content_resize (c, off + len);
  while (len > 0) {
    struct page **p = &c->pages[off / PAGE];
    size_t n = MIN (len, PAGE - off % PAGE);

    if (*p == NULL || (*p)->refs > 1) {
      struct page *own = malloc (sizeof *own);

      assert (own);
      if (*p)
        memcpy (own->data, (*p)->data, PAGE);
      else
        memset (own->data, 0, PAGE);
      page_drop (*p);
      own->refs = 1;
      *p = own;
    }
    memcpy ((*p)->data + off % PAGE, data, n);
    data += n;
    off += n;
    len -= n;
  }
}

void
content_read (const struct content *c, uint8_t *data, size_t len, uint64_t off)
{
  while (len > 0) {
    const struct page *p = c->pages[off / PAGE];
    size_t n = MIN (len, PAGE - off % PAGE);

    if (p)
      memcpy (data, p->data + off % PAGE, n);
    else
      memset (data, 0, n);
    data += n;
    off += n;
    len -= n;
  }
}

bool
content_equals (const struct content *c, const uint8_t *data, uint64_t len)
{
  static const uint8_t zeroes[PAGE];

  if (c->size != len)
    return false;
  for (uint64_t off = 0; off < len; off += PAGE)
    if (memcmp (c->pages[off / PAGE] ? c->pages[off / PAGE]->data : zeroes,
                data + off, MIN (len - off, (uint64_t) PAGE)) != 0)
      return false;
  return true;
}

bool
content_same (const struct content *a, const struct content *b)
{
  static const uint8_t zeroes[PAGE];

  if (a->size != b->size)
    return false;
  for (unsigned i = 0; i < npages (a->size); i++)
    if (a->pages[i] != b->pages[i] &&
        memcmp (a->pages[i] ? a->pages[i]->data : zeroes,
                b->pages[i] ? b->pages[i]->data : zeroes,
                MIN (a->size - (uint64_t) i * PAGE, (uint64_t) PAGE)) != 0)
      return false;
  return true;
}

uint64_t
content_extent (const struct content *c, uint64_t off, bool *hole)
{
  unsigned i = off / PAGE;

  *hole = c->pages[i] == NULL;
  while (i < npages (c->size) && (c->pages[i] == NULL) == *hole)
    i++;
  return MIN ((uint64_t) i * PAGE, c->size);
}
