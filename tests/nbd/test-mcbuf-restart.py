#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The server ends and starts again: what it must still know."""

import errno
import glob
import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, MiB, Disk, Faults, Server, StartError, check, equal,
                      forget_memory, main, nbd_errno, random_data, random_range, read_all,
                      read_file, same, seeded, sparse_file, tool)

SIZE = 8 * MiB


def replica(test, *params, journal="disk.img.mcbuf", **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=64M",
                  "buffer=16M", "baseline=trusted", "journal=" + test.path(journal),
                  *params, **options)


def scribble(server, disk, rng, n=60):
    h = server.connect()
    for _ in range(n):
        offset, length = random_range(rng, SIZE, 65536)
        if rng.random() < 0.2:
            h.zero(length, offset)
            disk.zero(offset, length)
        else:
            data = random_data(rng, length)
            h.pwrite(data, offset)
            disk.write(offset, data)
    h.shutdown()


def work(server, disk, rng):
    """Two checkpoints, a sealed epoch, an open one."""
    scribble(server, disk, rng)
    server.commit()
    scribble(server, disk, rng)
    last = server.commit(label="last")["checkpoint"]
    committed = bytes(disk.now)
    scribble(server, disk, rng)
    sealed = server.seal()
    at_seal = bytes(disk.now)
    scribble(server, disk, rng)
    return last, committed, sealed, at_seal


def outlives(test, end):
    rng = seeded("outlives " + end)
    disk = Disk(SIZE)
    server = replica(test)
    last, committed, sealed, at_seal = work(server, disk, rng)
    before = server.status()
    getattr(server, end)()
    server.start()
    after = server.status()
    for key in ("replica", "state", "generation", "open_epoch", "sealed_epochs", "checkpoint"):
        equal(after[key], before[key], key, "after", end)
    same(read_all(server.connect()), bytes(disk.now), "inlet after", end)
    equal(server.commit(epoch=sealed)["checkpoint"], sealed, "commit of the sealed epoch")
    server.drained()
    same(read_file(test.path("disk.img")), at_seal, "image of the sealed epoch")
    scribble(server, disk, rng)
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), bytes(disk.now), "image of the open epoch")
    check(last < sealed and committed != at_seal, "the test did nothing")


def test_clean_stop(test):
    """A clean stop saves speculation, seals and all."""
    outlives(test, "stop")


def test_sigkill(test):
    """SIGKILL on the same boot: the next server takes over from shared memory."""
    outlives(test, "kill")


def test_many_ends(test):
    """Ten ends in a row of either kind, speculation growing all the while."""
    rng = seeded("test_many_ends")
    disk = Disk(SIZE)
    server = replica(test)
    for _ in range(10):
        scribble(server, disk, rng, 20)
        if rng.random() < 0.3:
            server.seal()
        rng.choice((server.stop, server.kill))()
        server.start()
        equal(server.status()["state"], "protected", "state")
        same(read_all(server.connect()), bytes(disk.now), "inlet")
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), bytes(disk.now), "image")


def test_clean_stop_leaves_no_memory(test):
    """After a clean stop nothing is left in shared memory."""
    server = replica(test)
    server.connect().pwrite(b"x" * MiB, 0)
    server.stop()
    equal(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), [], "left in /dev/shm")
    server.start()
    equal(bytes(server.connect().pread(10, 0)), b"x" * 10, "inlet")


def test_lost_memory(test):
    """SIGKILL and the memory gone, with acknowledged speculation: stale, never a silent hole."""
    rng = seeded("test_lost_memory")
    disk = Disk(SIZE)
    server = replica(test)
    last, committed, _, _ = work(server, disk, rng)
    server.kill()
    forget_memory(server)
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("stale", last), "status")
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
    same(read_file(test.path("disk.img")), committed, "image")


def test_damaged_memory(test):
    """Shared memory that was overwritten is not believed."""
    rng = seeded("test_damaged_memory")
    for how in ("zeroes", "noise", "truncated"):
        disk = Disk(SIZE)
        server = replica(test, journal="j-" + how)
        last, committed, _, _ = work(server, disk, rng)
        server.kill()
        paths = glob.glob("/dev/shm/mcbuf-%s*" % server.replica)
        check(paths, "no shared memory")
        for path in paths:
            size = os.path.getsize(path)
            with open(path, "r+b") as f:
                if how == "truncated":
                    f.truncate(size // 2)
                else:
                    f.write(bytes(size) if how == "zeroes" else rng.randbytes(size))
        server.start()
        s = server.status()
        equal((s["state"], s["checkpoint"]["id"]), ("stale", last), "status after", how)
        server.kill()
        tool("mcbuf-recover", server.journal)
        same(read_file(test.path("disk.img")), committed, "image after", how)


def test_flipped_bits(test):
    """One byte of the speculation changed in memory: found, or without effect; never served."""
    rng = seeded("test_flipped_bits")
    outcomes = {}
    for i in range(12):
        disk = Disk(SIZE)
        server = replica(test, journal="j%d" % i)
        last, committed, _, _ = work(server, disk, rng)
        server.kill()
        path, = glob.glob("/dev/shm/mcbuf-%s*" % server.replica)
        with open(path, "r+b") as f:
            memory = f.read()
            at = 0
            while memory[at] == 0:              # where something is
                at = rng.randrange(0, rng.choice((4096, 65536, len(memory))))
            f.seek(at)
            f.write(bytes([memory[at] ^ rng.randrange(1, 256)]))
        try:
            server.start()
        except StartError as error:
            check(False, "a changed byte at", at, "stops the server:", error)
        s = server.status()
        equal(s["checkpoint"]["id"], last, "checkpoint")
        outcomes[s["state"]] = outcomes.get(s["state"], 0) + 1
        if s["state"] == "protected":
            same(read_all(server.connect()), bytes(disk.now), "byte", at, "changed: inlet")
        else:
            equal(s["state"], "stale", "state")
        server.kill()
        tool("mcbuf-recover", server.journal)
        same(read_file(test.path("disk.img")), committed, "byte", at, "changed: image")
        shutil.rmtree(server.journal)
    print(outcomes)
    check("stale" in outcomes, "no change of", sum(outcomes.values()), "was found")


def test_restart_while_writing_out(test):
    """Write-out goes on where it was."""
    faults = Faults(test)
    server = replica(test, env=faults.env, preload=faults.preload)
    rng = seeded("test_restart_while_writing_out")
    disk = Disk(SIZE)
    for end in ("kill", "stop", "kill"):
        faults.fail("fdatasync", "disk.img")
        scribble(server, disk, rng)
        server.commit()
        committed = bytes(disk.now)
        scribble(server, disk, rng)
        getattr(server, end)()
        faults.heal("fdatasync")
        server.start()
        same(read_all(server.connect()), bytes(disk.now), "inlet after", end)
        server.drained()
        same(read_file(test.path("disk.img")), committed, "image after", end)


def test_buffer_size_changes(test):
    """Another buffer= than before, after a clean end and after SIGKILL."""
    rng = seeded("test_buffer_size_changes")
    disk = Disk(SIZE)
    server = replica(test)
    for size, end in (("8M", "kill"), ("32M", "stop"), ("16M", "kill")):
        scribble(server, disk, rng)
        getattr(server, end)()
        server.params = [p for p in server.params if not p.startswith("buffer=")]
        server.params.append("buffer=" + size)
        server.start()
        equal(server.status()["state"], "protected", "state with buffer=" + size)
        same(read_all(server.connect()), bytes(disk.now), "inlet with buffer=" + size)
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), bytes(disk.now), "image")


def test_stop_with_clients(test):
    """SIGTERM while clients are connected: nbdkit ends when they go, and nothing acknowledged is lost."""
    server = replica(test)
    handles = [server.connect() for _ in range(3)]
    for i, h in enumerate(handles):
        h.pwrite(bytes([i + 1]) * 4096, i * 4096)
    server.process.terminate()
    late = 0
    for h in handles:
        # nbdkit answers ESHUTDOWN from the moment that it has seen the signal, or closes
        # the connection over what it has not read: no answer, so nothing was acknowledged.
        errnum = nbd_errno(h.pwrite, b"late", 3 * 4096)
        check(errnum in (0, errno.ESHUTDOWN, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN),
              "errno", errnum)
        late += errnum == 0
        nbd_errno(h.shutdown)
    server.wait_end()
    server.start()
    equal(bytes(server.connect().pread(12288, 0)),
          b"".join(bytes([i + 1]) * 4096 for i in range(3)), "inlet")
    if late:
        equal(bytes(server.connect().pread(4, 12288)), b"late", "the last write")
    tool("mcbuf-status", server.journal, code=DONE)


def test_stale_control_socket(test):
    """A control socket that a dead server left is no obstacle."""
    server = replica(test)
    server.kill()
    check(os.path.exists(os.path.join(server.journal, "control")), "no socket left")
    result = tool("mcbuf-status", server.journal, code=(DONE, 1))
    check(result, "status of a dead replica")
    server.start()
    server.status()


INVARIANTS = "1,4,8"
main(globals())
