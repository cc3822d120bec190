/* SPDX-License-Identifier: BSD-3-Clause */
/* The catalog: an SQLite index of the replica for people and tools, in
 * JOURNAL/catalog.sqlite.  Never an authority: whatever it lacks is taken
 * from the journal, and a damaged one is moved aside and made anew.  Off the
 * commit path: it is written by one background thread of the replica.
 *
 * Threads: one at a time per struct catalog.  Errors: -1 with errno (EIO for
 * an SQLite error; EBADMSG for a file that is not a catalog of this replica).
 */
#ifndef MCBUF_JOURNAL_CATALOG_H
#define MCBUF_JOURNAL_CATALOG_H

#include "journal/journal.h"

struct catalog;

/* Open or make the catalog in the directory DIR for replica ID.  A file that is damaged,
 * of another replica or of a newer schema is renamed to catalog.sqlite.bad and *REBUILT set, as
 * it is when there was none: the caller then fills it from the journal.
 */
extern int catalog_open (const char *dir, const uint8_t id[HOST_ID_LEN],
                         struct catalog **catalog, bool *rebuilt);
extern void catalog_close (struct catalog *c);

/* Note checkpoint CP of GENERATION; one that is there already is replaced. */
extern int catalog_checkpoints (struct catalog *c, uint64_t generation,
                                const struct journal_checkpoint *cp, size_t n);
/* Checkpoints before OLDEST are no longer recoverable, those after NEWEST never were. */
extern int catalog_window (struct catalog *c, uint64_t oldest, uint64_t newest);
/* Note an event: KIND one word, TEXT a line. */
extern int catalog_event (struct catalog *c, uint64_t time_ns,
                          uint64_t generation, const char *kind,
                          const char *text);

#endif /* MCBUF_JOURNAL_CATALOG_H */
