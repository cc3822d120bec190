#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The size of the journal: other sizes between runs, many laps, too small, and full."""

import errno
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, KiB, MiB, REFUSED, Disk, Faults, Server, check, equal, main, nbd_errno,
                      poll, random_data, random_range, read_all, read_file, same, seeded, sparse_file,
                      tool)

SIZE = 12 * MiB


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "buffer=8M", "baseline=trusted",
                  *params, **options)


def set_size(server, size):
    server.params = [p for p in server.params if not p.startswith("journal-size=")]
    if size:
        server.params.append("journal-size=" + size)


def size_is(server, size, *what):
    equal(server.status()["journal"]["size"], size, *what, "status")
    equal(os.path.getsize(os.path.join(server.journal, "journal")), size, *what, "file")


def stop(server, *handles):
    for h in handles:
        h.shutdown()
    server.stop()


def recovered(test, server, checkpoint, content):
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], checkpoint, "recovered to")
    same(read_file(test.path("disk.img")), content, "image")


def test_grow(test):
    """A larger journal-size= is simply used; what was in the journal is there."""
    rng = seeded("test_grow")
    server = replica(test, "journal-size=16M")
    model = Disk(SIZE)
    h = server.connect()
    for size in ("24M", "24M", None, "64M"):
        data = random_data(rng, 3 * MiB)
        at = rng.randrange(0, SIZE - len(data))
        h.pwrite(data, at)
        model.write(at, data)
        server.commit()
        h.pwrite(b"speculation" * 1000, at)     # saved by the clean stop
        model.write(at, b"speculation" * 1000)
        stop(server, h)
        set_size(server, size)
        server.start()
        check(not server.said(), "it said", server.said())
        h = server.connect()
        same(read_all(h), bytes(model.now), "inlet with journal-size=%s" % size)
    size_is(server, 64 * MiB)
    # An epoch that would not have fit.
    for at in range(0, SIZE, MiB):
        data = random_data(rng, MiB)
        h.pwrite(data, at)
        h.pwrite(data, at)
        model.write(at, data)
    recovered(test, server, server.commit()["checkpoint"], bytes(model.now))


def test_grow_after_kill(test):
    """The server was killed: its speculation goes on in the larger journal."""
    rng = seeded("test_grow_after_kill")
    server = replica(test, "journal-size=16M")
    h = server.connect()
    data = random_data(rng, 2 * MiB)
    h.pwrite(data, 4096)
    server.commit()
    h.pwrite(data[::-1], 4096)
    server.kill()
    set_size(server, "32M")
    server.start()
    size_is(server, 32 * MiB)
    equal(server.status()["state"], "protected", "state")
    h = server.connect()
    same(bytes(h.pread(2 * MiB, 4096)), data[::-1], "inlet")
    recovered(test, server, server.commit()["checkpoint"],
              bytes(4096) + data[::-1] + bytes(SIZE - 4096 - 2 * MiB))


def test_shrink(test):
    """Smaller, once what is retained allows it; up to then the replica runs on as it is, and says so."""
    rng = seeded("test_shrink")
    faults = Faults(test)
    server = replica(test, "journal-size=64M", env=faults.env, preload=faults.preload)
    h = server.connect()
    model = Disk(SIZE)
    faults.fail("pwrite", "disk.img")
    for _ in range(3):                          # more than 16 MiB in the backlog
        for at in range(0, SIZE, MiB):
            data = random_data(rng, MiB)
            h.pwrite(data, at)
            model.write(at, data)
        server.commit()
    stop(server, h)
    set_size(server, "16M")
    server.start()
    lines = server.said().splitlines()
    equal(len(lines), 1, "lines of", server.said())
    check("keeps its 67108864 bytes" in lines[0] and "write-out" in lines[0], lines)
    size_is(server, 64 * MiB, "refused")
    h = server.connect()
    same(read_all(h), bytes(model.now), "inlet")
    h.pwrite(b"x", 7)                           # from here on the stop was not clean
    model.write(7, b"x")
    server.kill()
    server.start()
    check("only after a clean stop" in server.said(), server.said())
    size_is(server, 64 * MiB, "after a kill")
    faults.heal("pwrite")
    server.drained()
    h = server.connect()
    h.pwrite(b"speculation" * 1000, 5)
    model.write(5, b"speculation" * 1000)
    # Where what was saved lies is a matter of luck: with a new epoch it lies elsewhere.
    for _ in range(20):
        stop(server, h)
        server.start()
        h = server.connect()
        same(read_all(h), bytes(model.now), "inlet")
        if server.status()["journal"]["size"] == 16 * MiB:
            break
        server.commit()
        server.drained()
    size_is(server, 16 * MiB)
    newest = server.commit()["checkpoint"]
    for _ in range(6):
        for _ in range(3):
            at = rng.randrange(0, SIZE - MiB)
            data = random_data(rng, MiB)
            h.pwrite(data, at)
            model.write(at, data)
        newest = server.commit()["checkpoint"]
    recovered(test, server, newest, bytes(model.now))


def test_laps(test):
    """Thirty laps of the smallest journal, with kills."""
    rng = seeded("test_laps")
    server = replica(test, "journal-size=16M")
    model = Disk(SIZE)
    written = 0
    h = server.connect()
    noise = random_data(rng, 4 * MiB)
    for lap in range(1, 31):
        while written < lap * 16 * MiB:
            for _ in range(12):
                offset, length = random_range(rng, SIZE, 512 * KiB)
                skip = rng.randrange(0, len(noise) - length)
                h.pwrite(noise[skip:skip + length], offset)
                model.write(offset, noise[skip:skip + length])
                written += length + 4096
            newest = server.commit()["checkpoint"]
        at = rng.randrange(0, SIZE - MiB)
        same(bytes(h.pread(MiB, at)), bytes(model.now[at:at + MiB]), "lap", lap)
        if lap % 10 == 0:
            server.kill()
            server.start()
            h = server.connect()
            same(read_all(h), bytes(model.now), "after a kill in lap", lap)
    recovered(test, server, newest, bytes(model.now))


def test_soft_limit(test):
    """Before it is full status says so; a commit makes room, and all is well again."""
    rng = seeded("test_soft_limit")
    server = replica(test, "journal-size=32M")
    h = server.connect()
    told = None
    for i in range(28):
        data = random_data(rng, MiB)
        h.pwrite(data, i % 12 * MiB)
        status = server.status()
        equal(status["state"], "protected", "state")
        if status["reason"]:
            told = i
            h.pwrite(data, 0)                   # well beyond the limit
            h.pwrite(data, MiB)
            break
    check(told is not None and told > 8, "told after", told, "MiB")
    check("journal runs short" in status["reason"], status["reason"])
    check("journal runs short" in tool("mcbuf-status", server.journal).out, "mcbuf-status does not say so")
    server.commit()
    server.drained()
    equal(server.status()["reason"], "", "reason")
    for i in range(8):
        h.pwrite(data, i * MiB)
    server.commit()


def test_too_small(test):
    """One epoch alone fills the journal: ENOSPC, stale, the last checkpoint whole, and a way out."""
    rng = seeded("test_too_small")
    server = replica(test, "journal-size=16M")
    h = server.connect()
    first = random_data(rng, MiB)
    h.pwrite(first, 0)
    last = server.commit()["checkpoint"]
    server.drained()
    got = 0
    for i in range(40):
        got = nbd_errno(h.pwrite, random_data(rng, MiB), i % 12 * MiB)
        if got:
            break
    equal(got, errno.ENOSPC, "errno")
    status = server.status()
    equal(status["state"], "stale", "state")
    check("No space left" in status["reason"] and "resync" in status["reason"], status["reason"])
    check("No space left" in server.said(), server.said())
    equal(nbd_errno(h.pwrite, bytes(4096), 0), errno.EIO, "then")
    result = tool("mcbuf-commit", server.journal, code=REFUSED)
    check("stale" in result.err, result)
    equal(tool("mcbuf-recover", "--dry-run", "--json", server.journal).json["checkpoint"], last, "recoverable")
    equal(read_file(test.path("disk.img"))[:MiB], first, "image")
    # The way out that the message and the manual name: a larger journal, and a new copy.
    stop(server, h)
    set_size(server, "64M")
    server.start()
    size_is(server, 64 * MiB)
    tool("mcbuf-ctl", server.journal, "resync")
    h = server.connect()
    model = Disk(SIZE)
    for at in range(0, SIZE, MiB):
        data = random_data(rng, MiB)
        h.pwrite(data, at)
        model.write(at, data)
    recovered(test, server, server.commit()["checkpoint"], bytes(model.now))


def test_full(test):
    """Write-out stuck: status warns, commits go on until it is full, then ENOSPC; nothing acknowledged is lost."""
    rng = seeded("test_full")
    faults = Faults(test)
    server = replica(test, "journal-size=24M", env=faults.env, preload=faults.preload)
    model, last = Disk(SIZE), 0
    faults.fail("pwrite", "disk.img")
    h = server.connect()
    h.pwrite(random_data(rng, 4096), 0)
    last = server.commit()["checkpoint"]
    model.write(0, bytes(h.pread(4096, 0)))
    poll("write-out to be stuck", lambda: server.status()["writeout"]["error"])
    warned, committed = False, bytes(model.now)
    for i in range(60):
        data = random_data(rng, MiB)
        got = nbd_errno(h.pwrite, data, i % 12 * MiB)
        if got:
            break
        model.write(i % 12 * MiB, data)
        last = server.commit()["checkpoint"]
        committed = bytes(model.now)
        status = server.status()
        equal(status["state"], "protected", "state")
        warned = warned or status["reason"] != ""
    equal(got, errno.ENOSPC, "errno")
    check(warned, "no warning before it was full")
    equal(server.status()["state"], "stale", "state")
    check("No space left" in server.status()["reason"], server.status())
    # Promote has its room kept.
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal((answer["checkpoint"], answer["state"]), (last, "promoted"), "promoted")
    p = server.connect("@promoted")
    same(read_all(p), committed, "the promoted disk")
    p.shutdown()
    faults.heal("pwrite")
    tool("mcbuf-recover", "--wait", server.journal, warns=True)     # perhaps that it was paused
    same(read_file(test.path("disk.img")), committed, "image")
    stop(server, h)
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "offline, then")


def test_full_offline(test):
    """The same, recovered without a server: there is room for what recovery writes."""
    rng = seeded("test_full_offline")
    faults = Faults(test)
    server = replica(test, "journal-size=16M", env=faults.env, preload=faults.preload)
    faults.fail("pwrite", "disk.img")
    h = server.connect()
    model, last, committed = Disk(SIZE), 0, None
    for i in range(60):
        data = random_data(rng, 200 * KiB)
        if nbd_errno(h.pwrite, data, i * 200 * KiB):
            break
        model.write(i * 200 * KiB, data)
        last = server.commit()["checkpoint"]
        committed = bytes(model.now)
    recovered(test, server, last, committed)
    equal(tool("mcbuf-recover", server.journal).code, DONE, "again")


main(globals())
