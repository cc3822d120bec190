/* SPDX-License-Identifier: BSD-3-Clause */
/* Is this CPU one without SSE4.2, which has an instruction for crc32c?  0 yes, 1 no. */
#include "config.h"

int
main (void)
{
#ifdef __x86_64__
  __builtin_cpu_init ();
  return __builtin_cpu_supports ("sse4.2") ? 1 : 0;
#else
  return 1;
#endif
}
