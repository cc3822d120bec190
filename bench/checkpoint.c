/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/checkpoint.h"

static enum checkpoint_how how;
static int control = -1;
static struct latencies made, sealed;

enum checkpoint_how
checkpoint_parse (const char *word)
{
  static const char *const words[] = {
    [CHECKPOINT_NONE] = "none", [CHECKPOINT_FLUSH] = "flush",
    [CHECKPOINT_COMMIT] = "commit", [CHECKPOINT_SEAL] = "seal",
    [CHECKPOINT_ASK] = "ask", [CHECKPOINT_ASK_FLUSH] = "ask-flush",
  };

  for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
    if (strcmp (word, words[i]) == 0)
      return i;
  usage ("no such checkpoint");
}

void
checkpoint_open (enum checkpoint_how h, const char *journal)
{
  how = h;
  if (how == CHECKPOINT_COMMIT || how == CHECKPOINT_SEAL) {
    if (journal == NULL)
      usage ("control= is missing");
    control = control_connect (journal);
  }
}

static void
ask_driver (void)
{
  char line[64];

  printf ("checkpoint\n");
  if (fflush (stdout) == EOF)
    die ("standard output");
  if (fgets (line, sizeof line, stdin) == NULL || strcmp (line, "ok\n") != 0) {
    fprintf (stderr, "client: the checkpoint was not made\n");
    exit (EXIT_FAILURE);
  }
}

static void
seal_and_commit (void)
{
  uint64_t t0 = now_ns (), t1;
  uint64_t epoch = control_number (control_ask (control, "seal"), "sealed");
  char request[64];

  t1 = now_ns ();
  latencies_add (&sealed, t1 - t0);
  snprintf (request, sizeof request, "commit epoch=%" PRIu64, epoch);
  control_number (control_ask (control, request), "checkpoint");
  latencies_add (&made, now_ns () - t1);
}

void
checkpoint_make (void)
{
  uint64_t t = now_ns ();

  switch (how) {
  case CHECKPOINT_NONE:
    return;
  case CHECKPOINT_SEAL:
    seal_and_commit ();
    return;
  case CHECKPOINT_FLUSH:
    flush_all ();
    break;
  case CHECKPOINT_COMMIT:
    control_number (control_ask (control, "commit"), "checkpoint");
    break;
  case CHECKPOINT_ASK:
    ask_driver ();
    break;
  case CHECKPOINT_ASK_FLUSH:
    ask_driver ();
    flush_all ();
    break;
  }
  latencies_add (&made, now_ns () - t);
}

void
checkpoint_print (void)
{
  latencies_print ("checkpoint_us", &made);
  latencies_print ("seal_us", &sealed);
  free (made.ns);
  free (sealed.ns);
}
