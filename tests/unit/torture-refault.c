/* SPDX-License-Identifier: BSD-3-Clause */
/* Each call and each allocation of a recovery fails.  It ends well, or says what went wrong and is run again; what comes
 * of that is right, and stays so over a power loss.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "unit/torture.h"

static struct simdisk *
copy_of (struct simdisk *disk)
{
  struct simdisk *copy = simdisk_crash (disk, SIMDISK_KILL, host_bits);

  simdisk_torn (copy, host_below (2));
  return copy;
}

static struct answer
recover_with (struct life *l, struct simdisk *disk, const struct fault *f)
{
  struct answer a;

  fault_arm (l, disk, f);
  a = LIBRARY (torture_recover (disk, NULL));
  simdisk_calls (disk, NULL, NULL);
  l->fault.over = true;
  return a;
}

static void
one_fault (struct life *l, const struct expect *e, const struct answer *whole,
           const struct fault *f)
{
  struct simdisk *disk = copy_of (l->disk), *after;
  struct answer a = recover_with (l, disk, f), again;
  enum simdisk_crash how;
  unsigned boot;

  MUST (l->fault.hit, "call or allocation %llu was not made", (unsigned long long) f->at);
  if (a.code == MCEXIT_DONE || fault_is_harmless (&l->fault)) {
    (void) torture_match_answer (l, disk, e, &a, l->expect.garbled);
    torture_same_answer (&a, whole, "recovery with a fault");
  }
  else
    MUST ((a.code == MCEXIT_USAGE || a.code == MCEXIT_DAMAGE || a.code == MCEXIT_PARTIAL ||
           (a.code == MCEXIT_NO_CHECKPOINT && whole->code == a.code)) && strlen (a.text) > 10,
          "recovery: code %d: %s", a.code, a.text);
  again = torture_recover (disk, NULL);
  (void) torture_match_answer (l, disk, e, &again, l->expect.garbled);
  torture_same_answer (&again, whole, "recovery after one with a fault");

  boot = host_boot (host_new_boot ());
  how = host_below (SIMDISK_HOWS);
  after = simdisk_crash (disk, how, host_bits);
  again = torture_recover (after, NULL);
  (void) torture_match_answer (l, after, e, &again, l->expect.garbled || how == SIMDISK_GARBLE);
  torture_same_answer (&again, whole, "recovery after a power loss after that");
  host_boot (boot);
  simdisk_free (after);
  simdisk_free (disk);
  torture_refaults++;
}

uint64_t torture_refaults;

void
torture_refault (struct life *l)
{
  const struct expect e = l->expect;
  struct simdisk *disk = copy_of (l->disk);
  struct fault all = { .room = 256, .trace = calloc (256, sizeof *all.trace) }, f;
  struct answer whole;

  torture_doing = "recovering with faults";
  assert (all.trace);
  whole = recover_with (l, disk, &all);
  (void) torture_match_answer (l, disk, &e, &whole, l->expect.garbled);
  all = l->fault;
  simdisk_free (disk);
  for (uint64_t n = 0; n < all.ntrace; n++)
    for (unsigned k = 0; fault_way (all.trace[n].call, k, &f); k++)
      if (!f.sticky) {
        f.at = n + 1;
        one_fault (l, &e, &whole, &f);
      }
  free (all.trace);

  disk = copy_of (l->disk);
  f = (struct fault) { .memory = true };
  (void) recover_with (l, disk, &f);
  simdisk_free (disk);
  for (uint64_t n = l->fault.n; n > 0; n--) {
    f.at = n;
    one_fault (l, &e, &whole, &f);
  }
}
