#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A restart does not change how history yields when the journal runs short: bit by bit."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, Server, check, equal, main, nbd, poll, read_file, same, seeded, sparse_file, tool)

SIZE = 2 * MiB


class Replica:
    """A server, and its disk at each checkpoint."""

    def __init__(self, test, *params):
        self.rng = seeded(test.name)
        self.image = sparse_file(test.path("disk.img"), SIZE)
        self.server = Server(test, self.image, "journal=" + test.path("j"), "baseline=trusted",
                             "journal-size=64M", "buffer=8M", *params)
        self.at, self.now = {}, bytearray(SIZE)

    def commits(self, n, length=MiB):
        h = self.server.connect()
        for _ in range(n):
            at = self.rng.randrange(SIZE - length + 1) // 4096 * 4096
            data = self.rng.randbytes(length)
            h.pwrite(data, at)
            self.now[at:at + length] = data
            self.at[self.server.commit()["checkpoint"]] = bytes(self.now)
        h.shutdown()

    def listed(self):
        return [c["id"] for c in self.server.ask("list")["checkpoints"]]

    def views(self):
        """Every checkpoint that is listed, unless it goes meanwhile, can be looked at, and is what it was."""
        for n in self.listed():
            try:
                h = self.server.connect("@%d" % n)
            except nbd.Error:
                poll("checkpoint %d, that cannot be looked at, to leave the list" % n,
                     lambda n=n: n not in self.listed())
                continue
            same(h.pread(SIZE, 0), self.at[n] if n else bytes(SIZE), "checkpoint", n)
            h.shutdown()


def yields(test, how):
    r = Replica(test, "history=1h")
    r.commits(30)
    equal(r.listed()[0], 0, "oldest before")
    if how:
        (r.server.stop if how == "stop" else r.server.kill)()
        r.server.start()
        r.views()
    smallest = 30
    for _ in range(20):
        r.commits(1)
        smallest = min(smallest, len(r.listed()))
    listed = r.listed()
    check(listed[0] > 0, "the journal did not run short, the test thought:", listed)
    r.views()
    r.server.kill()
    n = listed[-8]
    tool("mcbuf-recover", "--to=%d" % n, r.server.journal)
    same(read_file(r.image), r.at[n], "recovered to", n)
    return smallest


def test_yields(test):
    """After a stop or a crash as much stays as in a server that just went on."""
    live = yields(test, None)
    for how in ("stop", "kill"):
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))
        os.unlink(test.path("disk.img"))
        left = yields(test, how)
        print("checkpoints kept: %d, after %s %d" % (live, how, left))
        check(left >= live - 6, "of", live, "checkpoints only", left, "were left after", how)


def test_many_small(test):
    """After each restart there are as many checkpoints as were asked for, and each is what it was."""
    r = Replica(test, "history=32")
    for _ in range(3):
        r.commits(20, 4096)
        r.server.stop()
        r.server.start()
    listed = r.listed()
    check(len(listed) >= 32, listed)
    r.views()


main(globals())
