/* SPDX-License-Identifier: BSD-3-Clause */
/* What the programs of "make bench" share.  Each prints one line of JSON. */
#ifndef MCBUF_BENCH_H
#define MCBUF_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Say what failed and why (errno, or libnbd's own words), and exit. */
void die (const char *what) __attribute__ ((noreturn));

/* Say that the command line is wrong, and exit. */
void usage (const char *what) __attribute__ ((noreturn));

/* Monotonic. */
uint64_t now_ns (void);

/* A decimal number, or usage (). */
uint64_t number (const char *text);

/* xorshift64*: STATE must not be 0. */
uint64_t rnd (uint64_t *state);

/* N bytes that nothing can compress or recognize. */
void *random_bytes (size_t n, uint64_t seed);

/* --- Latencies: every one is kept --- */

struct latencies {
  uint64_t *ns;
  size_t n, room;
};

void latencies_add (struct latencies *l, uint64_t ns);
void latencies_append (struct latencies *to, const struct latencies *from);

/* ,"NAME":{"n":..,"p50":..,"p99":..,"max":..} in microseconds, nearest rank; sorts them. */
void latencies_print (const char *name, struct latencies *l);

/* --- The control socket of a replica --- */

int control_connect (const char *journal);

/* Send REQUEST, a line without its end; the reply is text until the next call.  A
 * refusal ends the program.
 */
const char *control_ask (int control, const char *request);

/* The number behind "KEY": in a reply. */
uint64_t control_number (const char *reply, const char *key);

#endif /* MCBUF_BENCH_H */
