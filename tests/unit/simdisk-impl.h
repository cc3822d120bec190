/* SPDX-License-Identifier: BSD-3-Clause */
/* What simdisk.c, which keeps files, and simcrash.c, which looks at them, share. */
#ifndef MCBUF_TESTS_UNIT_SIMDISK_IMPL_H
#define MCBUF_TESTS_UNIT_SIMDISK_IMPL_H

#include <pthread.h>

#include "unit/simdisk.h"
#include "unit/simpages.h"

#define SIMDISK_FILES 96

/* A write that was not synced, as whole sectors: what the cache held of them then. */
struct pending {
  uint64_t off;
  size_t len;
  uint8_t *data;
  struct pending *next;
};

struct inode {
  char *name;                   /* NULL: unlinked */
  char *durable_name;           /* after a power loss; NULL: none */
  unsigned opens;
  struct content now, durable;
  struct pending *pending, **last;
  bool lost;                    /* a failed sync lost some: the cache knows more than the disk will */
  uint64_t bad_off, bad_len;
};

struct simdisk {
  struct io_fs fs;
  pthread_mutex_t lock;         /* guards what follows */
  struct inode inodes[SIMDISK_FILES];
  unsigned ninodes;
  uint64_t ops, fail_at;
  int fail_error;
  bool fail_sticky;
  size_t short_len;
  bool torn, no_zero, no_direct;
  /* Set while nothing is under way. */
  simdisk_hook_fn hook;
  void *hook_opaque;
  simdisk_call_fn call;
  void *call_opaque;
};

/* With the lock held, or alone. */
extern struct inode *simdisk_find (struct simdisk *s, const char *path);
extern struct inode *simdisk_inode (struct simdisk *s, const char *path);

#endif
