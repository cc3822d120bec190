#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A guest on NAME@scratch that never rests holds up neither a reset nor the end of the server."""

import os
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import KiB, MiB, DEADLINE, Server, check, equal, main, nbd, poll, sparse_file, tool

SIZE = 4 * MiB
CLIENTS, DEPTH = 4, 16


class Guest:
    """A connection with DEPTH reads and writes under way, always, until the server has gone or it is told to rest."""

    def __init__(self, server):
        self.h = server.connect("vda@scratch")
        self.rest = False
        self.done = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        length = 64 * KiB
        under_way = []
        try:
            while not self.rest:
                while len(under_way) < DEPTH:
                    at = (self.done + len(under_way)) % (SIZE // length) * length
                    if len(under_way) % 4 == 3:
                        under_way.append(self.h.aio_pwrite(bytes([7]) * length, at))
                    else:
                        under_way.append(self.h.aio_pread(nbd.Buffer(length), at))
                self.h.poll(1000)
                left = [c for c in under_way if not self.h.aio_command_completed(c)]
                self.done += len(under_way) - len(left)
                under_way = left
        except nbd.Error:
            pass                # the server has ended


def test_busy(test):
    """Each reset comes through, and so does a shutdown."""
    server = Server(test, "disk=vda:" + sparse_file(test.path("d.img"), SIZE), "journal=" + test.path("j"),
                    "baseline=trusted", "journal-size=64M", "buffer=8M")
    inlet = server.connect("vda")
    guests = [Guest(server) for _ in range(CLIENTS)]
    took = []
    for n in range(1, 21):
        before = [g.done for g in guests]
        inlet.pwrite(bytes([n]) * 4096, 0)
        equal(server.commit()["checkpoint"], n, "checkpoint")
        began = time.monotonic()
        equal(server.ask("reset vda@scratch")["checkpoint"], n, "reset to")
        took.append(time.monotonic() - began)
        poll("the guests to go on", lambda before=before: all(g.done > b for g, b in zip(guests, before)))
    print("resets took %s s" % " ".join("%.2f" % t for t in took))
    # DEPTH requests of 64 KiB of each are before it, not the guests' whole lives.
    check(max(took) < DEADLINE / 2, "a reset took", max(took))
    tool("mcbuf-ctl", server.journal, "shutdown")       # which gives clients a second to leave
    server.wait_end()
    for g in guests:
        g.rest = True
        g.thread.join()


if __name__ == "__main__":
    main(globals())
