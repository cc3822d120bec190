#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Looking at the newest checkpoint again and again does not change what history keeps."""

import os
import struct
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, Control, Server, check, done, equal, main, poll, read_file, same, sparse_file, tool)

SIZE = 1 * MiB
KEPT, COMMITS = 100, 400
MOST = KEPT + KEPT // 8 + 2             # an eighth more; the watermark; the one just made


def content(n):
    """The disk at checkpoint N: block N mod 256 is written before it."""
    disk = bytearray(SIZE)
    for i in range(max(1, n - 255), n + 1):
        disk[i % 256 * 4 * KiB:i % 256 * 4 * KiB + 4 * KiB] = struct.pack("<Q", i) * 512
    return bytes(disk)


def looks(test, keep):
    """A commit, and somebody looks at it; KEEP: for three commits.  The number that is kept at most."""
    image = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, image, "journal=" + test.path("j"), "baseline=trusted", "journal-size=64M", "buffer=8M",
                    "history=%d" % KEPT)
    inlet, views, most = server.connect(), [], 0
    with Control(server.journal) as control:
        def listed():
            return [c["id"] for c in control.ask("list")["checkpoints"]]

        for n in range(1, COMMITS + 1):
            inlet.pwrite(struct.pack("<Q", n) * 512, n % 256 * 4 * KiB)
            equal(done(control.ask("commit"))["checkpoint"], n, "checkpoint")
            views.append((n, server.connect("@latest")))
            at, h = views[0]
            same(bytes(h.pread(4 * KiB, at % 256 * 4 * KiB)), struct.pack("<Q", at) * 512, "view of", at)
            if n % 50 == 0:
                same(bytes(h.pread(SIZE, 0)), content(at), "view of", at)
            if len(views) > keep:
                views.pop(0)[1].shutdown()
            if n > 2 * KEPT and n % 5 == 0:
                poll("no more than %d checkpoints" % MOST, lambda: len(listed()) <= MOST, 60)
                there = listed()
                most = max(most, len(there))
                check(len(there) > KEPT, "too few are kept:", len(there))
        there = listed()
        equal(there, list(range(there[0], COMMITS + 1)), "the list")
        for n in there[::10] + there[-1:]:
            h = server.connect("@%d" % n)
            same(bytes(h.pread(SIZE, 0)), content(n), "view of", n)
            h.shutdown()
    to = there[len(there) - KEPT]
    server.kill()
    tool("mcbuf-recover", "--to=%d" % to, server.journal)
    same(read_file(image), content(to), "recovered to", to)
    return most


def test_each(test):
    """Opened and closed after each commit."""
    print("at most", looks(test, 0), "checkpoints were kept of", KEPT)


def test_overlapping(test):
    """There is always one that is open."""
    print("at most", looks(test, 3), "checkpoints were kept of", KEPT)


main(globals())
