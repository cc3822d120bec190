/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of an epoch, the way each peer has it; see the head of client.c. */
#ifndef MCBUF_BENCH_CHECKPOINT_H
#define MCBUF_BENCH_CHECKPOINT_H

enum checkpoint_how {
  CHECKPOINT_NONE,
  CHECKPOINT_FLUSH,
  CHECKPOINT_COMMIT,
  CHECKPOINT_SEAL,
  CHECKPOINT_ASK,
  CHECKPOINT_ASK_FLUSH,
};

enum checkpoint_how checkpoint_parse (const char *word);

/* JOURNAL: for COMMIT and SEAL; a control connection is opened and kept. */
void checkpoint_open (enum checkpoint_how how, const char *journal);

/* Returns when the checkpoint is made, and keeps what it took. */
void checkpoint_make (void);

/* ,"checkpoint_us":{...} and for SEAL ,"seal_us":{...} */
void checkpoint_print (void);

/* client.c: flush every connection. */
void flush_all (void);

#endif /* MCBUF_BENCH_CHECKPOINT_H */
