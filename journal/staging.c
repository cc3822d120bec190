/* SPDX-License-Identifier: BSD-3-Clause */
/* The staging region: 1 MiB buffers, each of which mirrors the journal chunk
 * that it is bound to, until that is on disk and somebody wants the buffer.
 *
 *   page 0      struct staging_header
 *   then, for each buffer, one page with its struct buffer_meta and 1 MiB
 *
 * In shared memory it outlives the server; what the next one needs to go on
 * is in the header, the metadata, and the table chunks themselves (takeover.c).
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/crc.h"
#include "common/host.h"
#include "journal/internal.h"

#define SLOT_SIZE (JOURNAL_BLOCK + (size_t) JOURNAL_CHUNK)

_Static_assert (sizeof (struct staging_header) <= JOURNAL_BLOCK, "one page");
_Static_assert (sizeof (struct buffer_meta) <= JOURNAL_BLOCK, "one page");

static void
region_name (struct journal *j, char name[64])
{
  char text[HOST_ID_STRLEN + 1];

  host_id_text (j->config.id, text);
  snprintf (name, 64, "/mcbuf-%s", text);
}

static uint32_t
header_crc (const struct staging_header *h)
{
  const size_t from = offsetof (struct staging_header, id);

  return crc32c ((const char *) h + from,
                 offsetof (struct staging_header, instance) - from,
                 h->version);
}

/* Is the region, of SIZE bytes, one of this replica, journal and boot that can be
 * taken over?  Else region_why says why not.
 */
static bool
region_is_good (struct journal *j, size_t size)
{
  const struct staging_header *h = j->region;

  /* What follows the version may be anything in another one. */
  if (h->magic == STAGING_MAGIC && h->version != STAGING_VERSION)
    snprintf (j->region_why, sizeof j->region_why,
              "the last server left shared memory of version %u, this mcbuf takes over version %u",
              h->version, STAGING_VERSION);
  else if (h->magic != STAGING_MAGIC || h->crc != header_crc (h) ||
           memcmp (h->id, j->config.id, HOST_ID_LEN) != 0 ||
           h->nchunks > j->nchunks ||     /* it may have grown since */
           h->nbuffers < STAGING_MIN_BUFFERS ||
           h->nbuffers > (size - JOURNAL_BLOCK) / SLOT_SIZE)
    snprintf (j->region_why, sizeof j->region_why,
              "the head of the shared memory that the last server left is damaged");
  else if (memcmp (h->boot_id, j->boot_id, HOST_ID_LEN) != 0)
    snprintf (j->region_why, sizeof j->region_why,
              "the shared memory that is left is of another boot");
  else
    return true;
  return false;
}

/* --- Metadata --- */

static uint64_t
meta_word (uint32_t chunk, enum chunk_kind kind)
{
  const uint32_t what[2] = { chunk, kind };

  return chunk | (uint64_t) kind << 32 |
         (uint64_t) (crc32c (what, sizeof what, 0) & 0xffffff) << 40;
}

int64_t
meta_get (const struct buffer_meta *meta, enum chunk_kind *kind)
{
  uint64_t word = meta->bound;

  *kind = word >> 32 & 0xff;
  if (word != meta_word ((uint32_t) word, *kind))
    return -1;
  return (uint32_t) word;
}

void
meta_set (struct buffer_meta *meta, uint32_t chunk, enum chunk_kind kind)
{
  __atomic_store_n (&meta->bound, meta_word (chunk, kind), __ATOMIC_RELEASE);
}

/* --- The region --- */

static int
region_buffers (struct journal *j, unsigned n)
{
  j->buffers = calloc (n, sizeof *j->buffers);
  j->dirty = calloc (n / 64 + 1, sizeof *j->dirty);
  j->need = calloc (n, sizeof *j->need);
  j->needed = calloc (n, sizeof *j->needed);
  if (j->buffers == NULL || j->dirty == NULL || j->need == NULL ||
      j->needed == NULL)
    return -1;
  j->nbuffers = j->nunbound = n;
  for (unsigned b = 0; b < n; b++) {
    uint8_t *p = (uint8_t *) j->region + JOURNAL_BLOCK + b * SLOT_SIZE;

    j->buffers[b].meta = (struct buffer_meta *) p;
    j->buffers[b].mem = p + JOURNAL_BLOCK;
    j->buffers[b].next_ready = NO_BUFFER;
  }
  return 0;
}

static size_t
region_bytes (uint64_t n)
{
  return JOURNAL_BLOCK + n * SLOT_SIZE;
}

/* With fewer than N buffers is it tried next, after ERROR?  0: it is not. */
static uint64_t
fewer (uint64_t n, uint64_t least, int error)
{
  return (error == ENOSPC || error == ENOMEM) && n > least ? MAX (n / 2, least) : 0;
}

/* So that a full /dev/shm is an error here and not a signal later. */
static int
allocate (int fd, size_t have, size_t size)
{
  struct statvfs v;
  int r;

  /* Others would miss what is taken before the kernel finds out, and gives it back. */
  if (fstatvfs (fd, &v) == 0 && v.f_blocks > 0 &&
      size - have > (uint64_t) v.f_bavail * v.f_frsize) {
    errno = ENOSPC;
    return -1;
  }
  do
    r = posix_fallocate (fd, 0, size);
  while (r == EINTR);
  errno = r;
  return r == 0 ? 0 : -1;
}

/* Recovery looks at little of it, and fills less: there a fault for each page of that is cheaper. */
static void *
region_map (const struct journal *j, int fd, size_t size)
{
  return mmap (NULL, size, PROT_READ | PROT_WRITE,
               MAP_SHARED | (j->load_threads > 0 ? 0 : MAP_POPULATE), fd, 0);
}

/* Somebody lives in the region as long as he holds this lock: the journal's own lock is
 * one of a directory, and a directory can be copied.
 */
static int
region_lock (int fd)
{
  struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
  uint64_t since = 0;

  /* Who is dying lets go of the journal's lock first. */
  do
    if (fcntl (fd, F_OFD_SETLK, &l) == 0)
      return 0;
  while ((errno == EAGAIN || errno == EACCES) && host_wait_busy (&since));
  if (errno == EAGAIN || errno == EACCES)
    errno = EBUSY;
  return -1;
}

/* Make the region that was found larger, up to N buffers.  No room for more is no reason to
 * give up what there is.
 */
static void
region_grow (struct journal *j, int fd, uint64_t n)
{
  const uint64_t have = j->region->nbuffers;

  for (; n > have; n = fewer (n, have, errno)) {
    size_t size = region_bytes (n);
    uint8_t *p = allocate (fd, j->region_size, size) == -1 ? MAP_FAILED :
      region_map (j, fd, size);

    if (p == MAP_FAILED) {
      j->short_error = errno;
      continue;
    }
    munmap (j->region, j->region_size);
    for (uint64_t b = have; b < n; b++)
      meta_set ((struct buffer_meta *) (p + JOURNAL_BLOCK + b * SLOT_SIZE), 0,
                CHUNK_FREE);
    j->region = (struct staging_header *) p;
    j->region_size = size;
    __atomic_store_n (&j->region->nbuffers, n, __ATOMIC_RELEASE);
    return;
  }
}

/* The region is mapped at P: take it if it is good.  As region_find. */
static int
region_use (struct journal *j, void *p, size_t size)
{
  if (p == MAP_FAILED)
    return -1;
  j->region = p;
  j->region_size = size;
  if (region_is_good (j, size))
    return 1;
  munmap (p, size);
  j->region = NULL;
  return 0;
}

/* Map the object that a server left behind, made larger if N buffers are
 * more than it has (never smaller).  1, 0 when there is none (or it is of no
 * use, and region_why says why), -1 errno.
 */
static int
region_find (struct journal *j, const char *name, uint64_t n)
{
  CLEANUP_CLOSE int fd = shm_open (name, O_RDWR | O_CLOEXEC, 0);
  struct stat st;
  int good;

  if (fd == -1)
    return errno == ENOENT ? 0 : -1;
  if (region_lock (fd) == -1 || fstat (fd, &st) == -1)
    return -1;
  if (st.st_uid != geteuid ()) {
    snprintf (j->region_why, sizeof j->region_why,
              "the shared memory of the last server belongs to user %ld",
              (long) st.st_uid);
    return 0;
  }
  if ((uint64_t) st.st_size > SIZE_MAX) {
    errno = ENOMEM;             /* left by a program of 64 bits */
    return -1;
  }
  if ((size_t) st.st_size < JOURNAL_BLOCK + STAGING_MIN_BUFFERS * SLOT_SIZE) {
    snprintf (j->region_why, sizeof j->region_why,
              "the shared memory that the last server left is cut short");
    return 0;
  }
  good = region_use (j, region_map (j, fd, st.st_size), st.st_size);
  if (good != 1)
    return good;
  region_grow (j, fd, n);
  if (region_buffers (j, j->region->nbuffers) == -1)
    return -1;
  j->region_fd = fd;
  fd = -1;
  return 1;
}

static void *
private_map (size_t size)
{
  uint8_t *p = mmap (NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (p == MAP_FAILED)
    return p;
  (void) madvise (p, size, MADV_HUGEPAGE);
  for (size_t off = 0; off < size; off += JOURNAL_BLOCK)
    ((volatile uint8_t *) p)[off] = 0;
  return p;
}

/* A fresh region of *N buffers, or of fewer when those will do.  FD -1: in private memory. */
static int
region_make (struct journal *j, int fd, uint64_t *n)
{
  const uint64_t least = j->least ? MIN (j->least, *n) : *n;

  for (uint64_t m = *n; m > 0; m = fewer (m, least, errno)) {
    size_t size = region_bytes (m);
    void *p = fd == -1 ? private_map (size) :
      ftruncate (fd, 0) == -1 || allocate (fd, 0, size) == -1 ? MAP_FAILED :
      region_map (j, fd, size);

    if (p != MAP_FAILED) {
      j->region = p;
      j->region_size = size;
      *n = m;
      return 0;
    }
    j->short_error = errno;
  }
  errno = j->short_error;
  return -1;
}

int
staging_look (struct journal *j)
{
  CLEANUP_CLOSE int fd = -1;
  struct flock l = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
  struct stat st;
  char name[64];
  void *p;
  int good;

  region_name (j, name);
  fd = shm_open (name, O_RDONLY | O_CLOEXEC, 0);
  if (fd == -1)
    return errno == ENOENT ? 0 : -1;
  /* Neither is there anything to take over from somebody who lives in it. */
  if (fcntl (fd, F_OFD_SETLK, &l) == -1 || fstat (fd, &st) == -1)
    return -1;
  if (st.st_uid != geteuid () ||
      (size_t) st.st_size < JOURNAL_BLOCK + STAGING_MIN_BUFFERS * SLOT_SIZE)
    return 0;
  p = mmap (NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  good = region_use (j, p, st.st_size);
  if (good != 1)
    return good;
  if (region_buffers (j, j->region->nbuffers) == -1)
    return -1;
  j->region_fd = fd;            /* has the lock */
  fd = -1;
  return 1;
}

/* A fresh region for SIZE bytes of buffers; *FOUND: instead of that, the one
 * that a server of this boot left behind is mapped as it is.
 */
int
staging_open (struct journal *j, uint64_t size, bool *found)
{
  uint64_t n = MAX (size / JOURNAL_CHUNK, STAGING_MIN_BUFFERS);
  uint64_t began = host_monotonic_ns ();
  char name[64];

  *found = false;
  j->asked = n;
  j->short_error = 0;
  if (n > MIN ((uint64_t) UINT32_MAX / 2, SIZE_MAX / SLOT_SIZE - 1)) {
    errno = ENOMEM;
    return -1;
  }
  if (j->shared) {
    region_name (j, name);
    switch (region_find (j, name, n)) {
    case -1:
      return -1;
    case 1:
      *found = true;
      j->start_ns = host_monotonic_ns () - began;
      return 0;
    }
  }

  if (j->shared) {
    CLEANUP_CLOSE int fd = -1;

    if (shm_unlink (name) == -1 && errno != ENOENT)
      return -1;
    fd = shm_open (name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd == -1 || region_lock (fd) == -1)
      return -1;
    if (region_make (j, fd, &n) == -1) {
      int saved = errno;

      (void) shm_unlink (name);
      errno = saved;
      return -1;
    }
    j->region_fd = fd;
    fd = -1;
  }
  else if (region_make (j, -1, &n) == -1)
    return -1;
  j->start_ns = host_monotonic_ns () - began;
  if (region_buffers (j, n) == -1)
    return -1;
  staging_reset (j);
  return 0;
}

/* Make the region a fresh one: nothing bound, nothing to take over. */
void
staging_reset (struct journal *j)
{
  struct staging_header *h = j->region;

  __atomic_store_n (&h->magic, 0, __ATOMIC_SEQ_CST);
  h->version = STAGING_VERSION;
  memcpy (h->id, j->config.id, HOST_ID_LEN);
  memcpy (h->boot_id, j->boot_id, HOST_ID_LEN);
  h->nchunks = j->nchunks;
  h->unused = 0;
  h->crc = header_crc (h);
  h->instance = 0;
  h->nbuffers = j->nbuffers;
  h->open_epoch = 0;
  h->start = h->mark = 0;
  for (unsigned b = 0; b < j->nbuffers; b++) {
    j->buffers[b].chunk = 0;
    memset (j->buffers[b].meta, 0, sizeof *j->buffers[b].meta);
    meta_set (j->buffers[b].meta, 0, CHUNK_FREE);
  }
  __atomic_store_n (&h->magic, STAGING_MAGIC, __ATOMIC_SEQ_CST);
}

void
journal_set_least_buffer (struct journal *j, uint64_t least)
{
  j->least = MAX (least / JOURNAL_CHUNK, (uint64_t) STAGING_MIN_BUFFERS);
}

void
staging_close (struct journal *j, bool end)
{
  char name[64];

  if (j->region)
    munmap (j->region, j->region_size);
  if (j->region && j->shared && end) {
    region_name (j, name);
    /* Nobody would believe it anyhow: the newest record says so.  Who may not take
     * the name away gives back the memory at least.
     */
    if (shm_unlink (name) == -1 && errno != ENOENT) {
      int ignored = ftruncate (j->region_fd, 0);

      (void) ignored;
    }
  }
  if (j->region_fd != -1)
    (void) close (j->region_fd);
  j->region_fd = -1;
  free (j->buffers);
  free (j->dirty);
  free (j->need);
  free (j->needed);
  j->region = NULL;
  j->buffers = NULL;
  j->dirty = NULL;
  j->need = NULL;
  j->needed = NULL;
  j->nbuffers = j->nunbound = j->hand = 0;
  j->ready_head = j->ready_tail = NO_BUFFER;
  j->open_chunk = 0;
}

/* --- Buffers --- */

/* On disk as far as it was filled, complete, and in nobody's hands. */
static bool
buffer_is_clean_locked (struct journal *j, const struct buffer *b)
{
  struct bits all = { { 0 } };

  if (b->chunk == 0 || b->chunk == j->tab.last_chunk || b->pins > 0 ||
      !j->chunks[b->chunk].closed ||
      !bits_empty (&b->pushing))
    return false;
  bits_set (&all, 0, b->bump);
  return bits_within (&all, &b->meta->pushed);
}

int
buffer_find_locked (struct journal *j)
{
  ASSERT_LOCKED (j);
  for (unsigned i = 0; i < j->nbuffers; i++) {
    unsigned n = (j->hand + i) % j->nbuffers;
    struct buffer *b = &j->buffers[n];

    if (b->taken)
      continue;
    if (b->chunk != 0) {
      if (j->nunbound > 0 || !buffer_is_clean_locked (j, b))
        continue;
      buffer_release_locked (j, n);
    }
    b->taken = true;
    j->nunbound--;
    j->hand = n + 1;
    return n;
  }
  return NO_BUFFER;
}

/* Wait for a buffer.  -1: EIO. */
static int
wait_buffer_locked (struct journal *j)
{
  int n = NO_BUFFER;

  held_begin (&j->held, host_monotonic_ns ());
  while (n == NO_BUFFER && j->failed == 0) {
    /* Help with what a commit needs, then with what is waiting, else wait for those who
     * fill, push or read.
     */
    if (!push_help_locked (j))
      pthread_cond_wait (&j->buffer_cond, &j->lock);
    n = buffer_find_locked (j);
  }
  held_end (&j->held, host_monotonic_ns ());
  return n;
}

int
buffer_take_locked (struct journal *j)
{
  int n = NO_BUFFER;

  ASSERT_LOCKED (j);
  if (j->failed == 0)
    n = buffer_find_locked (j);
  if (n == NO_BUFFER && j->failed == 0)
    n = wait_buffer_locked (j);
  if (n == NO_BUFFER)
    errno = EIO;
  return n;
}

void
buffer_bind_locked (struct journal *j, int n, uint32_t c)
{
  struct buffer *b = &j->buffers[n];

  ASSERT_LOCKED (j);
  assert (b->taken && b->chunk == 0);
  b->taken = false;
  b->chunk = c;
  b->bump = 0;
  b->pushing = (struct bits) { { 0 } };
  b->meta->filled = b->meta->pushed = b->pushing;
  meta_set (b->meta, c, j->chunks[c].kind);
  j->chunks[c].buffer = n;
}

/* Neither pinned nor being pushed; or taken and not wanted after all. */
void
buffer_release_locked (struct journal *j, int n)
{
  struct buffer *b = &j->buffers[n];

  ASSERT_LOCKED (j);
  assert (b->pins == 0 && bits_empty (&b->pushing));
  if (b->chunk != 0)
    j->chunks[b->chunk].buffer = NO_BUFFER;
  meta_set (b->meta, 0, CHUNK_FREE);
  b->chunk = 0;
  b->taken = false;
  j->dirty[n / 64] &= ~(UINT64_C (1) << (n % 64));
  j->nunbound++;
  pthread_cond_broadcast (&j->buffer_cond);
}

bool
buffer_filled_locked (struct journal *j, int n, unsigned from, unsigned count)
{
  struct buffer *b = &j->buffers[n];

  ASSERT_LOCKED (j);
  bits_set (&b->meta->filled, from, count);
  j->dirty[n / 64] |= UINT64_C (1) << (n % 64);
  return push_ready_locked (j, n);
}

void
chunk_close_locked (struct journal *j, uint32_t c, unsigned bump)
{
  struct chunk *chunk = &j->chunks[c];

  ASSERT_LOCKED (j);
  chunk->closed = true;
  if (chunk->buffer != NO_BUFFER) {
    j->buffers[chunk->buffer].bump = bump;
    if (push_ready_locked (j, chunk->buffer))
      push_wake (j);
  }
}
