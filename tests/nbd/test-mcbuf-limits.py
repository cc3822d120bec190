#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Limits: nothing wedges, nothing committed is lost, and what is used is bounded."""

import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, SLOW, Server, check, main, poll, sparse_file, tool)

SIZE = 8 * MiB


def replica(test, *params, size=SIZE, **options):
    return Server(test, sparse_file(test.path("disk.img"), size), *params,
                  **options)


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle(test):
    """A replica with nothing to do takes no processor, in whatever state it is."""
    server = replica(test, "journal-size=32M", "buffer=8M")

    def idle(what):
        before, began = cpu_seconds(server.pid), time.monotonic()
        poll("some time to pass", lambda: time.monotonic() - began > 1)
        used = cpu_seconds(server.pid) - before
        check(used < 0.2 * SLOW, "%s: %.2f s of processor time in one second" % (what, used))

    h = server.connect()
    h.pwrite(b"x" * 4096, 0)
    idle("syncing")
    server.commit()
    h.pwrite(b"y" * 4096, 0)
    server.commit()
    idle("protected")
    h.shutdown()
    tool("mcbuf-recover", "--wait", server.journal)
    idle("promoted")
    server.stop()
    server.start()
    idle("promoted, started again")


if __name__ == "__main__":
    main(globals())
