/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <stddef.h>
#include <string.h>

#include "common/uri.h"

bool
uri_is_nbd (const char *text)
{
  static const char letters[] = "abcdefghijklmnopqrstuvwxyz";

  if (strncmp (text, "nbd", 3) != 0)
    return false;
  text += 3;
  if (*text == 's')
    text++;
  if (*text == '+') {
    size_t n = strspn (text + 1, letters);

    if (n == 0)
      return false;
    text += 1 + n;
  }
  return strncmp (text, "://", 3) == 0;
}

const char *
uri_relative_path (const char *uri)
{
  static const char *const files[] = { "socket", "tls-certificates",
                                       "tls-psk-file" };
  const char *p = strchr (uri, '?');

  while (p) {
    p++;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
      size_t n = strlen (files[i]);

      if (strncmp (p, files[i], n) == 0 && p[n] == '=' && p[n + 1] != '/' &&
          strncmp (p + n + 1, "%2F", 3) != 0 &&
          strncmp (p + n + 1, "%2f", 3) != 0)
        return files[i];
    }
    p = strpbrk (p, "&;");
  }
  return NULL;
}
