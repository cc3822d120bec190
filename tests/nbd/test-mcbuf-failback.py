#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Failback from a real QEMU: when copying only the listed ranges is safe, and when it is not.

QEMU's mirror writes to its own disk first and to the replica second.  What was under way when it is killed may
be on the old disk and was never seen here; after a drained "stop", or a clean end, there is no such thing.
"""

import os
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, Server, check, equal, main, poll, read_all, read_file, same, seeded,
                      tool, write_file)
from libqemu import Primary, random_writes

SIZE = 16 * MiB
AT, COUNT, BUSY = 8 * MiB, 4, 0x77      # COUNT writes of 1 MiB


class Pair:
    """A QEMU that mirrors to a replica, some writes after its last checkpoint."""

    def __init__(self, test):
        self.rng = seeded(test.name)
        self.disk = test.path("p.img")
        write_file(self.disk, self.rng.randbytes(SIZE // 2) + bytes(SIZE // 2))
        self.image = test.path("r.img")
        self.server = Server(test, self.image, "size=%d" % SIZE, "journal-size=64M", "buffer=8M")
        self.primary = Primary(test, [self.disk])
        self.primary.add_replica(0, self.server)
        self.primary.mirror(0)
        self.primary.wait_ready()
        self.primary.pause(self.server)
        self.server.commit()
        for i in range(10):
            self.primary.write(0, 1 + i, self.rng.randrange(7 * 16) * 64 * KiB, 4096)

    def write_under_way(self):
        """Several writes at once: on the primary's disk, and not answered by the replica."""
        for i in range(COUNT):
            self.primary.write_soon(0, BUSY, AT + i * MiB, MiB)
        poll("the writes to be on the primary's disk",
             lambda: read_file(self.disk)[AT:AT + COUNT * MiB] == bytes([BUSY]) * COUNT * MiB)

    def listed(self):
        poll("the divergence to be known", lambda: self.server.ask("divergence")["known"])
        result = tool("mcbuf-status", "--divergence", self.server.journal, warns=True)
        # Whoever asks is told on what condition this is all of it, once, in text and in JSON.
        as_json = tool("mcbuf-status", "--divergence", "--json", self.server.journal, warns=True)
        for said in (result.err, as_json.err, as_json.json["complete_if"] + "\n"):
            equal(said.count("\n"), 1, "lines of", said)
            for words in ("was stopped", "told to quit", "killed or crashed", "full copy"):
                check(words in said, "no words", repr(words), "in", said)
        return [tuple(int(n) for n in line.split()[1:]) for line in result.out.splitlines()]

    def copy(self, ranges):
        """Copy those ranges to the old primary's disk; both disks then."""
        h = self.server.connect("@promoted")
        with open(self.disk, "r+b") as f:
            for offset, length in ranges:
                f.seek(offset)
                f.write(h.pread(length, offset))
        promoted = read_all(h)
        h.shutdown()
        return read_file(self.disk), promoted

    def is_not_enough(self):
        """What was under way is missing from the list; the rest is there, and a full copy is right."""
        ranges = self.listed()
        check(ranges and all(o + n <= AT for o, n in ranges), "listed", ranges)
        old, new = self.copy(ranges)
        equal(old[AT:AT + COUNT * MiB], bytes([BUSY]) * COUNT * MiB, "the old primary's disk has the writes")
        same(old[:AT], new[:AT], "before them")
        check(new[AT:AT + COUNT * MiB] == bytes(COUNT * MiB), "the promoted disk has uncommitted writes")
        same(*self.copy([(0, SIZE)]), "after a full copy")

    def is_enough(self):
        ranges = self.listed()
        check(0 < sum(n for _, n in ranges) < SIZE, "listed", ranges)
        same(*self.copy(ranges), "after copying the ranges")


def test_killed(test):
    """QEMU is killed with writes under way: the list is not complete, only a full copy will do."""
    p = Pair(test)
    p.server.process.send_signal(signal.SIGSTOP)        # it answers nothing, and takes little
    p.write_under_way()
    p.primary.kill()
    p.server.process.send_signal(signal.SIGCONT)
    poll("the connection to be gone", lambda: p.server.status()["connections"] == 0)
    p.server.ask("promote")
    p.is_not_enough()


def test_server_killed_first(test):
    """First the server is killed, then QEMU; recovered offline: the same."""
    p = Pair(test)
    p.server.kill()
    p.write_under_way()
    p.primary.kill()
    tool("mcbuf-recover", p.server.journal)
    p.server.start()
    p.is_not_enough()


def test_stopped(test):
    """QEMU was stopped, and the mirror waited for, before it was killed: the list is complete."""
    p = Pair(test)
    random_writes(p.rng, p.primary, 40, SIZE, soon=True)
    p.primary.qmp.command("stop")
    p.primary.qmp.wait_synced("m0")
    p.primary.kill()
    p.server.ask("promote")
    p.is_enough()


def ended(test, end):
    """QEMU ends by itself with writes under way: it carries them out, and the list is complete."""
    p = Pair(test)
    random_writes(p.rng, p.primary, 40, SIZE, soon=True)
    end(p.primary)
    p.primary.process.wait()
    p.primary.qmp.close()
    p.server.ask("promote")
    p.is_enough()


def test_quit(test):
    """QEMU is told to quit."""
    ended(test, lambda primary: primary.qmp.command("quit"))


def test_sigterm(test):
    """QEMU gets SIGTERM."""
    ended(test, lambda primary: primary.process.terminate())


main(globals())
