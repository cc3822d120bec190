#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A journal device, or a backing image, that is slower than those who write: they are slowed evenly,
commits wait for their own data, and status says which of the two it is.

Everything is counted in what each got when all together got so much, never in time.  Who comes before whom
is unit/test-journal-line's.
"""

import os
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd

from libmcbuf import (KiB, MiB, Disk, Server, check, equal, main, poll, random_data, read_all,
                      read_file, same, seeded, sparse_file, tool)
from libslow import Slow

SIZE = 16 * MiB
BUFFER = 8 * MiB


def replica(test, slow, *params):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "buffer=%d" % BUFFER,
                  "baseline=trusted", *params, env=slow.env, preload=slow.preload)


class Writer:
    """One connection that keeps DEPTH writes of LENGTH bytes in flight, in its own part of the disk."""

    def __init__(self, server, n, length, depth):
        self.h = server.connect()
        self.length, self.depth, self.base = length, depth, n * 4 * MiB
        self.done = 0           # requests
        self.stopping = False
        self.error = None
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self):
        buf = nbd.Buffer.from_bytearray(bytearray(b"w" * self.length))
        inflight = []
        count = 0
        try:
            while inflight or not self.stopping:
                while len(inflight) < self.depth and not self.stopping:
                    at = self.base + count * self.length % (4 * MiB)
                    count += 1
                    inflight.append(self.h.aio_pwrite(buf, at))
                self.h.poll(-1)
                for cookie in list(inflight):
                    if self.h.aio_command_completed(cookie):
                        inflight.remove(cookie)
                        self.done += 1
            self.h.shutdown()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def stop(self):
        self.stopping = True
        poll("a writer to end", lambda: not self.thread.is_alive())
        check(self.error is None, "a writer failed:", self.error)


def test_even(test):
    """Small writes one by one, small ones in a crowd, large ones: none waits for more than a line."""
    slow = Slow(test)
    server = replica(test, slow, "journal-size=512M")
    slow.slow("/journal", 20)
    one = Writer(server, 0, 4 * KiB, 1)
    crowd = [Writer(server, 1, 4 * KiB, 8), Writer(server, 2, 4 * KiB, 8)]
    large = Writer(server, 3, MiB, 8)
    writers = [one, *crowd, large]
    for w in writers:
        w.thread.start()
    poll("the limit", lambda: server.status()["limit"] == "journal")
    # The buffer is full, and from now on each waits.
    start = [w.done for w in writers]

    def so_far():
        return [w.done - was for w, was in zip(writers, start)]
    poll("some laps", lambda: sum(n * w.length for n, w in zip(so_far(), writers)) >= 6 * BUFFER)
    s = server.status()
    equal(s["limit"], "journal", "limit")
    check(s["held_back"]["journal"] > s["held_back"]["writeout"], s["held_back"])
    check("limit        journal" in tool("mcbuf-status", server.journal).out, "text")
    prometheus = tool("mcbuf-status", "--prometheus", server.journal).out
    check('limit="journal"} 1' in prometheus and 'limit="write-out"} 0' in prometheus, prometheus)
    got = so_far()
    slow.heal()
    for w in writers:
        w.stop()
    print("requests for each:", got)
    # In each round of the line everybody has his turn, unless his client was too slow to be in it.
    rounds = sum(n * w.length for n, w in zip(got, writers)) / sum(w.depth * w.length for w in writers)
    for n, w in zip(got, writers):
        check(n * 6 >= rounds, "%.1f rounds, and a writer of %d bytes got" % (rounds, w.length), n)
    # Those who are alike are served alike.
    check(min(got[1], got[2]) * 3 > max(got[1], got[2]), "the two crowds got", got)
    poll("the limit to be gone", lambda: server.status()["limit"] is None)
    check("limit " not in tool("mcbuf-status", server.journal).out, "text")


def test_commit(test):
    """Commits beside writers that keep the buffer full: a small epoch with more behind it, then all there is."""
    slow = Slow(test)
    server = replica(test, slow, "journal-size=512M")
    h = server.connect()
    h.pwrite(b"1" * 4096, 0)
    epoch = server.seal()
    slow.slow("/journal", 50)
    writers = [Writer(server, n, 64 * KiB, 8) for n in (1, 2)]
    for w in writers:
        w.thread.start()
    poll("the buffer to be full", lambda: server.status()["limit"] == "journal")
    slow.watch("/journal")
    equal(server.commit(epoch=epoch)["checkpoint"], epoch, "checkpoint")
    wrote = sum(n for call, n in slow.calls() if call == "w")
    print("%.1f MiB were written to the journal meanwhile" % (wrote / MiB))
    for n in (1, 2):
        equal(server.commit()["checkpoint"], epoch + n, "checkpoint")
    check(server.status()["checkpoint"]["bytes"] > MiB, "the writers did not go on")
    slow.heal()
    for w in writers:
        w.stop()
    equal(server.status()["state"], "protected", "state")


def test_writeout(test):
    """The backing image is what is slow: that is said, and nobody is refused or forgotten."""
    slow = Slow(test)
    server = replica(test, slow, "journal-size=128M")
    slow.slow("disk.img", 100)
    over, wrong = [], []

    def commits():
        while not over:
            # One after the other, many hundreds while write-out does one thing: their own room may run short.
            reply = server.ask("commit")
            if "error" in reply and "later" not in reply["error"]:
                wrong.append(reply)
                return
    committer = threading.Thread(target=commits, daemon=True)
    committer.start()
    writers = [Writer(server, 0, 4 * KiB, 1), Writer(server, 1, 64 * KiB, 4),
               Writer(server, 2, MiB, 4)]
    for w in writers:
        w.thread.start()

    poll("the limit", lambda: server.status()["limit"] == "write-out")
    check("limit        write-out" in tool("mcbuf-status", server.journal).out, "text")
    start = [w.done for w in writers]
    poll("everybody to get on", lambda: all(w.done - was >= 4 for w, was in zip(writers, start)))
    slow.heal()
    for w in writers:
        w.stop()
    over.append(True)
    poll("the last commit", lambda: not committer.is_alive())
    equal(wrong, [], "commits that were refused")
    equal(server.status()["state"], "protected", "state")


def test_content(test):
    """Under both limits in turn, what was committed is what is recovered."""
    slow = Slow(test)
    server = replica(test, slow, "journal-size=32M")
    rng = seeded("backpressure")
    disk = Disk(SIZE)
    h = server.connect()
    for lap in range(6):
        slow.slow(("/journal", "disk.img")[lap % 2], 10)
        for _ in range(12):
            length = rng.choice((4 * KiB, 64 * KiB, MiB))
            at = rng.randrange(SIZE // length) * length
            data = random_data(rng, length)
            h.pwrite(data, at)
            disk.write(at, data)
        server.commit()
    same(read_all(h), bytes(disk.now), "read back")
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path("disk.img")), bytes(disk.now), "recovered")


main(globals())
