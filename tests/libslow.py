# SPDX-License-Identifier: BSD-3-Clause
"""A slow disk, and what a server does to its files, by nbd/slow.c."""

import os

from libmcbuf import BUILD, check, write_file

SLOW_LIBRARY = os.path.join(BUILD, "tests/.libs/libslow.so")
FOR_EVER = 24 * 3600 * 1000     # milliseconds


class Slow:
    """For a server started with env=s.env, preload=s.preload."""

    def __init__(self, test):
        self.dir = test.unique("slow")
        os.mkdir(self.dir)
        self.env = {"MCBUF_SLOW": self.dir}
        self.preload = [SLOW_LIBRARY]
        check(os.path.exists(SLOW_LIBRARY), SLOW_LIBRARY, "is not built")

    def _write(self, name, text):
        write_file(os.path.join(self.dir, "tmp"), text.encode())
        os.rename(os.path.join(self.dir, "tmp"), os.path.join(self.dir, name))

    def slow(self, where, ms=FOR_EVER):
        """From now on a write of a file whose path ends in WHERE takes MS longer."""
        self._write("slow", "%d %s\n" % (ms, where))

    def heal(self):
        os.unlink(os.path.join(self.dir, "slow"))

    def watch(self, where):
        """Note each call on such files from now on; forgets what was noted."""
        self._write("watch", where + "\n")
        self._write("calls", "")

    def calls(self):
        """What was noted: (call, bytes), the call is r, w, b (begin to sync) or s."""
        with open(os.path.join(self.dir, "calls"), encoding="ascii") as f:
            return [(line.split()[0], int(line.split()[1])) for line in f]
