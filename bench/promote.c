/* SPDX-License-Identifier: BSD-3-Clause */
/* How long a fail-over takes until a disk is read from.
 *
 * promote JOURNAL URI OFFSET
 *
 * Asks the replica's control socket to promote, connects to URI (its export
 * NAME@promoted) and reads 4 KiB at OFFSET: a line of JSON with what each step took.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "bench/bench.h"

void
die (const char *what)
{
  int err = errno;

  fprintf (stderr, "promote: %s: %s\n", what,
           nbd_get_errno () ? nbd_get_error () : strerror (err));
  exit (EXIT_FAILURE);
}

int
main (int argc, char *argv[])
{
  static char buf[4096];
  uint64_t t[4], checkpoint;
  struct nbd_handle *nbd;
  int control;

  if (argc != 4)
    usage ("three arguments are wanted");
  nbd = nbd_create ();
  if (nbd == NULL)
    die ("libnbd");
  control = control_connect (argv[1]);
  t[0] = now_ns ();
  checkpoint = control_number (control_ask (control, "promote"), "checkpoint");
  t[1] = now_ns ();
  if (nbd_connect_uri (nbd, argv[2]) == -1)
    die (argv[2]);
  t[2] = now_ns ();
  if (nbd_pread (nbd, buf, sizeof buf, number (argv[3]), 0) == -1)
    die ("read");
  t[3] = now_ns ();
  printf ("{\"checkpoint\":%" PRIu64 ",\"promote_us\":%.1f,\"connect_us\":%.1f,"
          "\"read_us\":%.1f,\"total_us\":%.1f}\n", checkpoint,
          (t[1] - t[0]) / 1e3, (t[2] - t[1]) / 1e3, (t[3] - t[2]) / 1e3,
          (t[3] - t[0]) / 1e3);
  nbd_close (nbd);
  return EXIT_SUCCESS;
}
