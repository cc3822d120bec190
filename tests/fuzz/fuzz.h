/* SPDX-License-Identifier: BSD-3-Clause */
/* What the fuzzers share.
 *
 * Each is one function, LLVMFuzzerTestOneInput, that libFuzzer feeds with inputs of its own
 * making (make fuzz); without libFuzzer, replay.c feeds it with the files of the corpus
 * (make check).  A finding is an abort: of a sanitizer, of an assert, or of HOLDS.
 */
#ifndef MCBUF_TESTS_FUZZ_H
#define MCBUF_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int LLVMFuzzerInitialize (int *argc, char ***argv);
extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* libFuzzer's. */
extern size_t LLVMFuzzerMutate (uint8_t *data, size_t size, size_t max);
extern size_t LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max,
                                       unsigned seed);

/* Large pieces of memory come and go: keep few of them.  A forged disk size asks for more than there is, and gets ENOMEM, as
 * it would without the sanitizer.
 */
#define FUZZ_ASAN_OPTIONS                                               \
  extern const char *__asan_default_options (void);                     \
  __attribute__ ((visibility ("default"))) const char *                 \
  __asan_default_options (void)                                         \
  {                                                                     \
    return "quarantine_size_mb=8:allocator_release_to_os_interval_ms=-1:" \
           "allocator_may_return_null=1";                                \
  }

#define HOLDS(cond, ...)                                                 \
  do {                                                                  \
    if (!(cond)) {                                                      \
      fprintf (stderr, "%s:%d: ", __FILE__, __LINE__);                  \
      fprintf (stderr, __VA_ARGS__);                                    \
      fputc ('\n', stderr);                                             \
      abort ();                                                         \
    }                                                                   \
  } while (0)

#endif /* MCBUF_TESTS_FUZZ_H */
