#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Sixteen checkpoints can be looked at, sixty-four disks replicated: one more is refused, clearly, and leaves nothing."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import KiB, MiB, Server, StartError, check, equal, main, nbd, poll, same, sparse_file

MOST = 16


def refused(server, name):
    try:
        server.connect(name)
    except nbd.Error as error:
        return error
    raise AssertionError(name + " was not refused")


def descriptors(server):
    return len(os.listdir("/proc/%d/fd" % server.pid))


def test_views(test):
    """The seventeenth is refused; a second look at one is not; a closed one makes room; nothing leaks."""
    server = Server(test, sparse_file(test.path("disk.img"), MiB), "journal=" + test.path("j"), "baseline=trusted",
                    "journal-size=32M", "buffer=8M", "history=100")
    inlet = server.connect()
    for n in range(1, 31):
        inlet.pwrite(b"%c" % n * 4 * KiB, 0)
        equal(server.commit()["checkpoint"], n, "checkpoint")
    before = server.status()
    fds = descriptors(server)

    def is_as_before():
        s = server.status()
        return (s["views"] == 0 and descriptors(server) == fds and s["journal"] == before["journal"] and
                s["connections"] == before["connections"])
    for _ in range(3):
        views = {n: server.connect("@%d" % n) for n in range(1, MOST + 1)}
        equal(server.status()["views"], MOST, "views")
        for name in ("@17", "@latest", "@scratch"):
            at = len(server.said())
            refused(server, name)
            said = server.said()[at:].splitlines()
            lines = [l for l in said if "too many checkpoints are looked at already: close some" in l]
            check(len(lines) == 1 and '"%s"' % name in lines[0], name, "was refused with", said)
        again = server.connect("@5")
        same(bytes(again.pread(4 * KiB, 0)), b"\5" * 4 * KiB, "another look at", 5)
        again.shutdown()
        views.pop(3).shutdown()
        poll("a place", lambda: server.status()["views"] == MOST - 1)
        views[20] = server.connect("@20")
        for n, h in views.items():
            same(bytes(h.pread(4 * KiB, 0)), b"%c" % n * 4 * KiB, "view of", n)
        for h in views.values():
            h.shutdown()
        poll("nothing to be left", is_as_before)


def test_disks(test):
    """65 disks: the message names the limit, and there is no journal; 64 start."""
    paths = [sparse_file(test.path("d%02d.img" % i), 64 * KiB) for i in range(65)]
    journal = test.path("j")
    disks = ["disk=d%02d:%s" % (i, p) for i, p in enumerate(paths)]
    rest = ["journal=" + journal, "baseline=trusted", "journal-size=16M", "buffer=8M"]
    there = sorted(os.listdir(test.dir))
    try:
        Server(test, *disks, *rest, journal=journal)
    except StartError as error:
        lines = str(error).splitlines()
        check(len(lines) == 1 and "64" in lines[0], "it said", lines)
    else:
        check(False, "65 disks were taken")
    left = {f for f in os.listdir(test.dir) if not f.startswith(("log", "s"))}
    equal(left, set(there), "files")
    server = Server(test, *disks[:64], *rest, journal=journal)
    equal(len(server.status()["disks"]), 64, "disks")
    server.stop()


main(globals())
