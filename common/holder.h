/* SPDX-License-Identifier: BSD-3-Clause */
/* Who has a file open to write. */
#ifndef MCBUF_COMMON_HOLDER_H
#define MCBUF_COMMON_HOLDER_H

#include <stddef.h>

/* FD is a regular file that is open for reading only.  0: nobody has it open for writing, nor has this process; or
 * that cannot be told (a file system without leases, or somebody else's file without CAP_LEASE).  -1 with EBUSY:
 * somebody has; WHO says who, for people, if that can be found out, else it is "".
 *
 * Readers are not looked at.  Any thread.
 */
extern int holder_check (int fd, char *who, size_t size);

#endif /* MCBUF_COMMON_HOLDER_H */
