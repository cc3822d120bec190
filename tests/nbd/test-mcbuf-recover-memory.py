#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A long backlog is recovered right with much memory and with little; how much it takes is bounded.

The image has data in every block, then holes: whole blocks go past the page cache in the first case,
and what is left, parts of blocks and zeroes among it, goes through it.
"""

import glob
import os
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, KiB, MiB, PARTIAL, PRELOAD, WRAPPER, Faults, Server, check, environment, equal, main,
                      read_file, seeded, sparse_file, tool, tool_path, write_file)

SIZE = 64 * MiB + 512
LIMIT = 384 * MiB
EPOCHS = 16


class Replica:
    """A backlog of some 100 MiB over an image of 64, killed; WANT is what it makes of the image."""

    def __init__(self, test, rng, holes, speculation=False):
        self.dir = test.unique("r")
        os.mkdir(self.dir)
        self.image = os.path.join(self.dir, "disk.img")
        self.want = bytearray(SIZE) if holes else bytearray(rng.randbytes(SIZE))
        if holes:
            sparse_file(self.image, SIZE)
        else:
            write_file(self.image, bytes(self.want))
        server = Server(test, self.image, "journal=" + os.path.join(self.dir, "j"), "journal-size=256M",
                        "buffer=16M", "baseline=trusted", "history=1000", journal=os.path.join(self.dir, "j"))
        h = server.connect()
        for _ in range(EPOCHS):
            self.epoch(h, rng)
            server.commit()
        if speculation:                 # what nobody will see
            h.pwrite(rng.randbytes(MiB), 0)
        server.kill()
        self.region, = glob.glob("/dev/shm/mcbuf-%s*" % server.replica)

    def put(self, h, data, at):
        h.pwrite(data, at)
        self.want[at:at + len(data)] = data

    def epoch(self, h, rng):
        for _ in range(500):
            self.put(h, rng.randbytes(4 * KiB), rng.randrange(SIZE // (4 * KiB)) * 4 * KiB)
        for _ in range(60):             # parts of blocks
            n = rng.choice((512, 1024, 6 * KiB))
            self.put(h, rng.randbytes(n), rng.randrange((SIZE - n) // 512) * 512)
        for _ in range(4):
            self.put(h, rng.randbytes(MiB), rng.randrange((SIZE - MiB) // 512) * 512)
        at = rng.randrange((SIZE - MiB) // 512) * 512
        h.zero(300 * KiB, at)
        self.want[at:at + 300 * KiB] = bytes(300 * KiB)

    def copied(self, test):
        there = test.unique("copy")
        os.mkdir(there)
        os.system("cp --sparse=always %s %s/disk.img" % (self.image, there))
        shutil.copytree(os.path.join(self.dir, "j"), there + "/j",
                        ignore=lambda _, names: [n for n in names if n == "control"])
        return there

    def must_be_in(self, there):
        check(read_file(there + "/disk.img") == bytes(self.want), "not what was committed in", there)


# What a process that becomes another one had counts as that one's: so it is started by one that has little.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def most_memory(there, limit):
    """Recover it with that address space; the most that was resident."""
    p = subprocess.run([sys.executable, "-c", MEASURE, "prlimit", "--as=%d" % limit, tool_path("mcbuf-recover"),
                        "--disk=:%s/disk.img" % there, there + "/j"], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, env=environment(), text=True, timeout=DEADLINE, check=False)
    equal(p.returncode, 0, "exit")
    return int(p.stdout) * KiB


def recovered(test, holes):
    rng = seeded("holes" if holes else "data")
    replica = Replica(test, rng, holes)
    there = replica.copied(test)
    tool("mcbuf-recover", "--disk=:%s/disk.img" % there, there + "/j")
    replica.must_be_in(there)
    return replica


def test_data(test):
    recovered(test, False)


def test_holes(test):
    recovered(test, True)


def test_little(test):
    """A quarter of what it may have, and no more, holds the journal: the backlog is larger."""
    if WRAPPER or PRELOAD:   # valgrind and sanitizers need more memory than that
        return
    replica = Replica(test, seeded("little"), False)
    there = replica.copied(test)
    took = most_memory(there, LIMIT)
    print("%.0f MiB of address space, %.0f MiB resident at most" % (LIMIT / MiB, took / MiB))
    replica.must_be_in(there)
    check(took <= LIMIT // 4 + 40 * MiB, "it took", took, "bytes")


def test_fault(test):
    """One of the many writes that are under way fails: exit 5, no more, and the next run mends it."""
    replica = Replica(test, seeded("fault"), False)
    faults = Faults(test)
    for at in (SIZE // 3, SIZE - MiB):
        faults.fail("pwrite", "disk.img", span=(at, SIZE))
        tool("mcbuf-recover", os.path.join(replica.dir, "j"), code=PARTIAL, env=faults.env, preload=faults.preload)
        faults.heal("pwrite")
    tool("mcbuf-recover", os.path.join(replica.dir, "j"))
    replica.must_be_in(replica.dir)


def test_damaged_region(test):
    """What a killed server left in memory does not verify when recovery has read the whole backlog: begun anew, it
    still writes what was committed."""
    rng = seeded("test_damaged_region")
    r = Replica(test, rng, False, speculation=True)
    memory = bytearray(read_file(r.region))
    # The only table chunk in memory, behind its head: a descriptor.
    at = memory.index(b"MCBUFTAB") + 4096
    check(any(memory[at:at + 32]), "no descriptor there")
    memory[at + 9] ^= 0x55
    with open(r.region, "r+b") as f:
        f.write(memory)
    tool("mcbuf-recover", os.path.join(r.dir, "j"))
    r.must_be_in(r.dir)


main(globals())
