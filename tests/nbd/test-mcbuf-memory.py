#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the server takes of memory: the buffer when it starts, as much as buffer= says, and from then on
only what each buffered block costs, however long it runs.
"""

import glob
import os
import resource
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd

from libmcbuf import (PRELOAD, WRAPPER, KiB, MiB, Server, StartError, check, equal, main, seeded,
                      sparse_file)

DEFAULT = 256 * MiB
BASE = 24 * MiB                 # of the process: nbdkit, libraries, spare maps, 16 threads a connection


def memory(server):
    """Bytes: of the process alone, and of shared memory that it has touched."""
    found = {}
    with open("/proc/%d/status" % server.pid) as f:
        for line in f:
            key, _, value = line.partition(":")
            if key in ("RssAnon", "RssShmem"):
                found[key] = int(value.split()[0]) * KiB
    return found["RssAnon"], found["RssShmem"]


def shared(server):
    return sum(os.stat(p).st_blocks * 512 for p in glob.glob("/dev/shm/mcbuf-%s*" % server.replica))


def plain():
    """Is the memory the server's own?"""
    return not WRAPPER and not PRELOAD


def replica(test, *params, size=64 * MiB, **options):
    return Server(test, sparse_file(test.unique("disk"), size), "journal-size=64M",
                  "baseline=trusted", *params, **options)


def write(h, places, length=4 * KiB):
    buf = nbd.Buffer.from_bytearray(bytearray(b"m" * length))
    for i in range(0, len(places), 64):
        inflight = [h.aio_pwrite(buf, at * length) for at in places[i:i + 64]]
        while inflight:
            h.poll(-1)
            inflight = [c for c in inflight if not h.aio_command_completed(c)]


def test_taken_at_the_start(test):
    """The buffer is there before the first write, as large as was asked for; and that is said."""
    for params, size in (("buffer=8M",), 8 * MiB), (("buffer=33M",), 33 * MiB), ((), DEFAULT):
        server = replica(test, *params, nbdkit=["-v"])
        buffer = server.status()["buffer"]
        equal((buffer["size"], buffer["asked"], buffer["used"]), (size, size, 0), "buffer")
        check("the buffer took %d bytes of shared memory" % size in server.said(), server.said())
        check("warning" not in server.said(), server.said())
        equal(shared(server) * 10 // size in (10, 11), True, "%d bytes of shared memory" % shared(server))
        if plain():
            anon, shmem = memory(server)
            print("buffer %d MiB: %.1f MiB of shared memory touched, %.1f MiB beside it" %
                  (size / MiB, shmem / MiB, anon / MiB))
            check(size <= shmem <= size * 1.1, "prefaulted:", shmem, "of", size)
            check(anon <= BASE, "beside the buffer:", anon)
        server.stop()
        equal(shared(server), 0, "shared memory after a clean stop")


def test_flat(test):
    """Laps of the buffer and of the journal later, it is what it was after the first ones."""
    server = replica(test, "buffer=8M")
    h = server.connect()
    rng = seeded("flat")
    blocks = 64 * MiB // (4 * KiB)

    def laps(n):
        most = 0
        for _ in range(n):          # 48 checkpoints of 1 MiB: most of the journal, six laps of the buffer
            for _ in range(48):
                write(h, rng.sample(range(blocks), 256))
                server.commit()
            most = max(most, *([sum(memory(server))] if plain() else [0]))
            # What a cycle of write-out held is free.
            server.drained()
        return most
    first, later = laps(2), laps(6)
    print("%.1f MiB at most, then %.1f" % (first / MiB, later / MiB))
    # What is touched for the first time comes in pieces of a MiB or two, a thread's arena or the sums'.
    check(later <= first + 6 * MiB, "memory grew from", first, "to", later)
    check(shared(server) <= 8 * MiB * 1.1, "shared memory:", shared(server))
    check(not plain() or later <= 8 * MiB * 1.1 + BASE, "in all:", later)
    equal(server.status()["state"], "protected", "state")


def test_per_block(test):
    """Buffer and 64 bytes for each buffered block, with all of them in the journal."""
    server = replica(test, "buffer=8M", size=256 * MiB)
    h = server.connect()
    write(h, [0])
    server.commit()
    server.drained()
    before = sum(memory(server))
    n = 12000
    write(h, seeded("per block").sample(range(256 * MiB // (4 * KiB)), n))
    grown = sum(memory(server)) - before
    print("%d blocks took %.1f bytes each" % (n, grown / n))
    check(not plain() or grown <= 64 * n + 3 * MiB, n, "blocks took", grown, "bytes")
    server.commit()


def test_limit(test):
    """An address space too small for the default: a smaller buffer, one warning; for a named one: an error."""
    if not plain():
        return                      # they need more of it than that
    class Limited(Server):
        def argv(self):             # threads with small stacks
            return ["prlimit", "--as=%d" % DEFAULT, "--stack=262144"] + super().argv()

    image = sparse_file(test.unique("disk"), 8 * MiB)
    try:
        Limited(test, image, "journal-size=64M", "buffer=%d" % DEFAULT)
        check(False, "a buffer as large as the address space")
    except StartError as error:
        for word in ("buffer=", "Cannot allocate memory"):
            check(word in str(error), "no", word, "in", error)
    server = Limited(test, image, "journal-size=64M")
    buffer = server.status()["buffer"]
    print("%.0f MiB of address space: a buffer of %.0f MiB" % (DEFAULT / MiB, buffer["size"] / MiB))
    equal(buffer["asked"], DEFAULT, "asked")
    check(8 * MiB <= buffer["size"] < DEFAULT, buffer)
    said = server.said().splitlines()
    equal(len([line for line in said if "warning" in line]), 1, said)
    check("Cannot allocate memory" in server.said() and "buffer=" in server.said(), said)
    h = server.connect()
    h.pwrite(b"x" * 4096, 0)
    equal(server.commit()["checkpoint"], 1, "checkpoint")


resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
main(globals())
