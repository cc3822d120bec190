/* SPDX-License-Identifier: BSD-3-Clause */
/* What mcbuf asks of the host it runs on: which boot this is, random
 * identities, the time.
 */
#ifndef MCBUF_COMMON_HOST_H
#define MCBUF_COMMON_HOST_H

#include <stdbool.h>
#include <stdint.h>

#define HOST_ID_LEN 16
#define HOST_ID_STRLEN (2 * HOST_ID_LEN)

/* The kernel's boot id: equal on two calls if and only if the host was not
 * booted between them.  -1 with errno when /proc is not to be read.
 */
extern int host_boot_id (uint8_t id[HOST_ID_LEN]);

/* A fresh random identity.  -1 with errno. */
extern int host_random (void *buf, unsigned len);

/* ID as 32 hexadecimal digits and a NUL. */
extern void host_id_text (const uint8_t id[HOST_ID_LEN],
                          char text[HOST_ID_STRLEN + 1]);

/* Bytes of memory that are free or could be freed, as far as this process may have them (control groups, RLIMIT_AS);
 * 0: that cannot be told.
 */
extern uint64_t host_memory_available (void);

/* The calling thread does what has time: whoever waits for an answer goes before it, but it gets some of a busy
 * processor, too (a tenth of one that others want as well).  Where that is not to be had it is as any other.
 */
extern void host_thread_has_time (void);

/* Wall clock in nanoseconds since 1970, and a clock that never steps. */
extern uint64_t host_time_ns (void);
extern uint64_t host_monotonic_ns (void);

/* Another process has what is wanted, a lock for example.  It may be one that got SIGKILL: it keeps its files
 * until its memory is unmapped, which takes a while.  True, after a pause: try again.  False: that was
 * done for two seconds, it is no dying one.  *SINCE is 0 before the first call.
 */
extern bool host_wait_busy (uint64_t *since);

/* NS (since 1970) as RFC 3339 in UTC with milliseconds, "2026-01-31T23:59:59.123Z". */
#define HOST_TIME_STRLEN 32
extern void host_time_text (uint64_t ns, char text[HOST_TIME_STRLEN]);

/* The reverse, for what a person types: RFC 3339 with 'T' or a space, with
 * or without fraction and zone ("Z", "+01:00"; none means local time); or
 * "HH:MM[:SS]" today, local time.  -1 with EINVAL.  The result is the last
 * nanosecond that the text still covers, so that "12:00" takes in all of that minute
 * and "12:00:01.5" all of that tenth.
 */
extern int host_time_parse (const char *text, uint64_t *ns);

#endif /* MCBUF_COMMON_HOST_H */
