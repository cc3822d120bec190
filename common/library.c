/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "common/library.h"

int
library_load (const char *file, const struct library_function *fn, size_t n,
              const char **why)
{
  void *library = dlopen (file, RTLD_NOW | RTLD_LOCAL);

  if (library == NULL) {
    *why = dlerror ();
    errno = ENOENT;
    return -1;
  }
  for (size_t i = 0; i < n; i++) {
    void *address = dlsym (library, fn[i].name);

    if (address == NULL) {
      *why = dlerror ();
      errno = ENOSYS;
      return -1;
    }
    memcpy (fn[i].address, &address, sizeof address);
  }
  return 0;
}
