#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes tests/upgrade/FORMAT-CASE.tar.xz: what a server of today leaves to the next one.

    cd build/tests && ../../tests/upgrade/make-fixtures.py DIRECTORY

Run it once for each version of the journal's format or of the shared memory, before the first release that has
it; those of older versions stay as they are, so that test-mcbuf-upgrade-fixtures.py holds every later one
against them.  In each: the journal, the image, the shared memory, and what must come of it.
"""

import io
import json
import os
import struct
import sys
import tarfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import MiB, Faults, Server, Test, check, done, poll, read_file, sparse_file

SIZE = MiB
FORMAT = 1                      # FORMAT_VERSION and STAGING_VERSION when this was last run
BOOT = "c0ffee00-1111-2222-3333-444444444444"


class Life:
    """A server whose write-out is held up, so that all it committed lies in the journal."""

    def __init__(self, test):
        self.test = test
        self.faults = Faults(test)
        with open(os.path.join(self.faults.dir, "boot_id"), "w") as f:
            f.write(BOOT + "\n")
        self.server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=16M", "buffer=8M",
                             "history=100", "baseline=trusted", env=self.faults.env,
                             preload=self.faults.preload)
        self.now = bytearray(SIZE)
        self.files = {}
        self.facts = {"format": FORMAT, "size": SIZE, "replica": self.server.replica, "boot": BOOT}
        h = self.server.connect()
        self.write(h, 0, b"first " * 4096)
        self.write(h, 300000, b"second" * 100)          # no edge is one of a sector
        self.older = self.commit("older", "older.img")
        self.write(h, 4096, b"third " * 2000)
        self.zero(h, 8192, 8192)
        self.write(h, SIZE - 1, b"!")
        self.last = self.commit("l\u00e4st", "committed.img")
        h.shutdown()

    def write(self, h, at, data):
        h.pwrite(data, at)
        self.now[at:at + len(data)] = data

    def zero(self, h, at, length):
        h.zero(length, at)
        self.now[at:at + length] = bytes(length)

    def commit(self, label, name):
        self.files[name] = bytes(self.now)
        self.facts.setdefault("labels", []).append(label)
        return self.server.commit(label=label)["checkpoint"]

    def speculate(self):
        h = self.server.connect()
        self.write(h, 12288, b"sealed" * 1500)
        self.zero(h, 300100, 50)
        self.facts["sealed"] = self.server.seal()
        self.files["sealed.img"] = bytes(self.now)
        self.write(h, 12289, b"open" * 1000)
        self.write(h, 700001, b"7")
        h.shutdown()

    def pack(self, case, directory):
        journal = self.server.journal
        for name in os.listdir(journal):
            if name not in ("control", "lock") and not name.startswith("catalog"):
                self.files["journal/" + name] = read_file(os.path.join(journal, name))
        region = "/dev/shm/mcbuf-" + self.server.replica
        if os.path.exists(region):
            self.files["region"] = read_file(region)
            check(struct.unpack("<I", self.files["region"][8:12])[0] == FORMAT, "FORMAT is not that of the region")
        self.files["disk.img"] = read_file(self.test.path("disk.img"))
        self.files["now.img"] = bytes(self.now)
        self.facts.update(case=case, older=self.older, last=self.last)
        self.files["facts.json"] = json.dumps(self.facts).encode()
        path = os.path.join(directory, "%d-%s.tar.xz" % (FORMAT, case))
        with tarfile.open(path, "w:xz", preset=9) as tar:
            for name in sorted(self.files):
                info = tarfile.TarInfo(name)
                info.size = len(self.files[name])
                tar.addfile(info, io.BytesIO(self.files[name]))
        print("%s: %d bytes" % (path, os.path.getsize(path)))


def killed(life):
    """Speculation, sealed and open, in shared memory."""
    life.speculate()
    life.server.kill()


def stopped(life):
    """The same, saved by a clean stop."""
    life.speculate()
    life.server.stop()


def promoted(life):
    """A promoted disk whose backlog has not drained, with flushed writes and others over it."""
    life.speculate()
    life.faults.fail("pwrite", "disk.img")
    done(life.server.ask("promote"))
    life.now[:] = life.files["committed.img"]
    h = life.server.connect("@promoted")
    life.write(h, 0, b"flushed" * 1000)
    h.flush()
    life.write(h, 5000, b"not flushed" * 100)
    h.shutdown()
    poll("write-out to be held up", lambda: life.server.status()["writeout"]["error"])
    life.server.kill()


def main():
    for case in (killed, stopped, promoted):
        test = Test("fixture")
        try:
            life = Life(test)
            case(life)
            life.pack(case.__name__, sys.argv[1])
        finally:
            test.cleanup()


main()
