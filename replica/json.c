/* SPDX-License-Identifier: BSD-3-Clause */
/* Text of any bytes as JSON, which is UTF-8: paths are bytes, and what is cut off at the
 * end of a buffer may be cut in the middle of a letter.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "replica/json.h"

/* Length of the letter at P, 0 when these bytes are none (Unicode 15, table 3-7). */
static unsigned
letter (const unsigned char *p)
{
  unsigned char low = 0x80, high = 0xbf;
  unsigned n;

  if (p[0] < 0x80)
    return 1;
  if (p[0] < 0xc2 || p[0] > 0xf4)
    return 0;
  n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
  switch (p[0]) {
  case 0xe0: low = 0xa0; break; /* not longer than it has to be */
  case 0xed: high = 0x9f; break;        /* no surrogates */
  case 0xf0: low = 0x90; break;
  case 0xf4: high = 0x8f; break;        /* up to U+10FFFF */
  }
  if (p[1] < low || p[1] > high)
    return 0;
  for (unsigned i = 2; i < n; i++)
    if (p[i] < 0x80 || p[i] > 0xbf)
      return 0;
  return n;
}

json_t *
json_text (const char *text)
{
  CLEANUP_FREE char *copy = strdup (text);

  if (copy == NULL)
    return NULL;
  for (char *p = copy; *p; ) {
    unsigned n = letter ((const unsigned char *) p);

    if (n == 0)
      *p++ = '?';
    else
      p += n;
  }
  return json_string (copy);
}
