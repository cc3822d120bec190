/* SPDX-License-Identifier: BSD-3-Clause */
/* Going on with the staging region of a server that died. */
#include "config.h"

#include "journal/internal.h"

int
takeover (struct journal *j, enum journal_took *took)
{
  *took = JOURNAL_TOOK_NOTHING;
  staging_reset (j);
  return 0;
}
