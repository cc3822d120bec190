/* SPDX-License-Identifier: BSD-3-Clause */
/* The fuzzers without libFuzzer: run each file of the corpus once, or those that
 * are named.  For make check, and to look at a finding with a debugger.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <unistd.h>

#include "fuzz/fuzz.h"

FUZZ_ASAN_OPTIONS

#ifndef MCBUF_LIBFUZZER

#define DEADLINE 60             /* seconds that one input may take */

static unsigned long runs;

static void
run_file (const char *path)
{
  static uint8_t data[1 << 20];
  FILE *fp = fopen (path, "rb");
  uint8_t *copy;
  size_t n;

  HOLDS (fp != NULL, "%s: %s", path, strerror (errno));
  n = fread (data, 1, sizeof data, fp);
  HOLDS (!ferror (fp), "%s: %s", path, strerror (errno));
  (void) fclose (fp);
  if (getenv ("MCBUF_FUZZ_VERBOSE"))
    fprintf (stderr, "%s\n", path);
  /* In memory of exactly its size, so that a look beyond is seen. */
  copy = malloc (n ? n : 1);
  HOLDS (copy != NULL, "out of memory");
  memcpy (copy, data, n);
  alarm (DEADLINE);             /* a hang ends the test */
  (void) LLVMFuzzerTestOneInput (copy, n);
  alarm (0);
  free (copy);
  runs++;
}

static void
run_dir (const char *path)
{
  DIR *dir = opendir (path);
  const struct dirent *e;
  char file[4096];

  HOLDS (dir != NULL, "%s: %s", path, strerror (errno));
  while ((e = readdir (dir)) != NULL)
    if (e->d_name[0] != '.') {
      (void) snprintf (file, sizeof file, "%s/%s", path, e->d_name);
      run_file (file);
    }
  (void) closedir (dir);
}

int
main (int argc, char *argv[])
{
  (void) LLVMFuzzerInitialize (&argc, &argv);
  if (argc > 1)
    for (int i = 1; i < argc; i++)
      run_file (argv[i]);
  else
    run_dir (FUZZ_CORPUS);
  HOLDS (runs > 0, "%s: no input", FUZZ_CORPUS);
#ifdef FUZZ_INVARIANTS
  printf ("TRIED invariant=%s test=fuzz/%s what=\"inputs of a corpus\" n=%lu\n",
          FUZZ_INVARIANTS, FUZZ_NAME, runs);
#else
  printf ("%s: %lu inputs of a corpus\n", FUZZ_NAME, runs);
#endif
  return 0;
}

#endif
