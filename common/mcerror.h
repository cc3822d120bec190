/* SPDX-License-Identifier: BSD-3-Clause */
/* What went wrong, in the words a person will read.
 *
 * Below plugin/ and tools/ a failing function returns -1 with errno set.
 * Where errno alone cannot tell the user what to do (which file, which
 * offset, which way out), the function that knows also fills a struct
 * mcerror; the caller nearest the user prints it, once.
 */
#ifndef MCBUF_COMMON_MCERROR_H
#define MCBUF_COMMON_MCERROR_H

/* The exit codes of every tool; also "code" in a JSON refusal. */
enum mcexit {
  MCEXIT_DONE = 0,
  MCEXIT_USAGE = 1,             /* usage, or cannot reach or open */
  MCEXIT_REFUSED = 2,           /* refused by the replica's state */
  MCEXIT_NO_CHECKPOINT = 3,     /* nothing to recover to */
  MCEXIT_DAMAGE = 4,            /* file, offset and checkpoint are named */
  MCEXIT_PARTIAL = 5,           /* run it again and it goes on */
};

struct mcerror {
  enum mcexit code;
  char text[1024];              /* one line, no newline */
};

/* Fill ERR (may be NULL) with CODE and a formatted line.  errno is kept, and
 * %m works.  Control characters that got in are shown as '?', so that it
 * stays one line.  Returns -1, so that "return mcerror_set (...)" reads well.
 */
extern int mcerror_set (struct mcerror *err, enum mcexit code,
                        const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

#endif /* MCBUF_COMMON_MCERROR_H */
