/* SPDX-License-Identifier: BSD-3-Clause */
/* The catalog: an SQLite index of the replica for people and tools, in
 * JOURNAL/catalog.sqlite.  Never an authority: whatever it lacks is taken
 * from the journal, and a damaged one is moved aside and made anew.  Off the
 * commit path: it is written by one background thread of the replica.
 *
 * Other programs may read and even write it meanwhile; whoever keeps it locked
 * makes these functions wait a second and then fail, and nothing worse.  SQLite does the I/O
 * by its own seam, the default VFS; files are made and moved aside through common/io.h.
 *
 * The tables (PRAGMA user_version 1; later versions add columns and tables):
 *   replica      id
 *   checkpoints  id, generation, label, time, time_ns, extents, bytes, recoverable
 *   events       id, time, time_ns, generation, kind, text
 * The newest 10 000 events, and checkpoints that are no longer recoverable, are kept.
 *
 * Threads: one at a time per struct catalog, which must not be carried over a
 * fork.  Errors: -1 with errno: EBUSY when another program has it locked (nothing was
 * changed, try later); EBADMSG when it turned out to be damaged (close it, set it
 * aside and open it anew); ENOSPC, ENOMEM, EROFS; EIO for any other SQLite error.
 */
#ifndef MCBUF_JOURNAL_CATALOG_H
#define MCBUF_JOURNAL_CATALOG_H

#include "journal/journal.h"

struct catalog;

/* Open or make (mode 0600) the catalog in the directory DIR of FS for replica ID.  A file that is damaged,
 * of another replica or of a newer schema is renamed to catalog.sqlite.bad and *REBUILT set, as
 * it is when there was none: the caller then fills it from the journal.
 * *REBUILT is set again at the next opening if no catalog_window followed.
 */
extern int catalog_open (const struct io_fs *fs, const char *dir,
                         const uint8_t id[HOST_ID_LEN],
                         struct catalog **catalog, bool *rebuilt);
extern void catalog_close (struct catalog *c);
/* Rename the catalog in DIR, which nobody here has open, to catalog.sqlite.bad: opening does not see all
 * damage that writing meets.
 */
extern int catalog_set_aside (const struct io_fs *fs, const char *dir);

/* Look at the catalog without changing anything.  0 when it is whole and of replica ID; -1 with a line in
 * TEXT when it is not, or there is none.
 */
extern int catalog_check (const char *dir, const uint8_t id[HOST_ID_LEN],
                          char *text, size_t size);

/* Note the checkpoints CP[0..N) of GENERATION as recoverable; one that is there already
 * is replaced.  All of them or none.
 */
extern int catalog_checkpoints (struct catalog *c, uint64_t generation,
                                const struct journal_checkpoint *cp, size_t n);
/* Checkpoints before OLDEST, and those after LAST, are not recoverable; those after NEWEST never were. */
extern int catalog_window (struct catalog *c, uint64_t oldest, uint64_t last,
                           uint64_t newest);
/* Note an event: KIND one word, TEXT a line. */
extern int catalog_event (struct catalog *c, uint64_t time_ns,
                          uint64_t generation, const char *kind,
                          const char *text);

#endif /* MCBUF_JOURNAL_CATALOG_H */
