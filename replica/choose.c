/* SPDX-License-Identifier: BSD-3-Clause */
/* Which checkpoint does a person mean? */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "replica/recover.h"

static bool
only_digits (const char *text)
{
  return text[0] && text[strspn (text, "0123456789")] == '\0';
}

int
recover_choose (const struct journal_checkpoint *list, size_t n,
                const char *to, struct journal_checkpoint *chosen,
                struct mcerror *err)
{
  uint64_t ns;

  if (only_digits (to)) {
    char *end;

    errno = 0;
    uint64_t id = strtoull (to, &end, 10);
    for (size_t i = 0; i < n && errno == 0; i++)
      if (list[i].id == id) {
        *chosen = list[i];
        return 0;
      }
    for (size_t i = n; i > 0; i--)
      if (strcmp (list[i - 1].label, to) == 0) {
        errno = ENOENT;
        return mcerror_set (err, MCEXIT_REFUSED,
                            "%s: no checkpoint of that number can be recovered, and digits only are a number: "
                            "for the label use its checkpoint, to=%" PRIu64, to, list[i - 1].id);
      }
  }
  else {
    for (size_t i = n; i > 0; i--)
      if (list[i - 1].label[0] && strcmp (list[i - 1].label, to) == 0) {
        *chosen = list[i - 1];
        return 0;
      }
    if (host_time_parse (to, &ns) == 0)
      for (size_t i = n; i > 0; i--)
        if (list[i - 1].time <= ns) {
          *chosen = list[i - 1];
          return 0;
        }
  }
  errno = ENOENT;
  return mcerror_set (err, MCEXIT_REFUSED,
                      "%s: no checkpoint of that number, label or time can be recovered: "
                      "see mcbuf-recover --list", to);
}
