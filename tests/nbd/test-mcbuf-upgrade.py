#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What an older, a newer or a damaged server left in shared memory: taken over, or stale and why not."""

import errno
import glob
import os
import struct
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, KiB, MiB, NO_CHECKPOINT, REFUSED, Disk, Faults, Server, check, done,
                      equal, main, nbd_errno, random_data, random_range, read_all, read_file,
                      same, seeded, sparse_file, tool, write_file)

SIZE = 8 * MiB
VERSION = 1                     # STAGING_VERSION in journal/internal.h


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=64M",
                  "buffer=8M", *params, **options)


def memory(server):
    return glob.glob("/dev/shm/mcbuf-%s*" % server.replica)


def change(server, at, data):
    path, = memory(server)
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def scribble(h, disk, rng, n=30):
    for _ in range(n):
        offset, length = random_range(rng, SIZE, 65536)
        data = random_data(rng, length)
        h.pwrite(data, offset)
        disk.write(offset, data)


def with_speculation(test, rng, *params, **options):
    """A killed server; its last checkpoint, that content, and what it acknowledged."""
    disk = Disk(SIZE)
    server = replica(test, *params, **options)
    h = server.connect()
    scribble(h, disk, rng)
    last = server.commit(label="last")["checkpoint"]
    committed = bytes(disk.now)
    scribble(h, disk, rng)
    server.seal()
    scribble(h, disk, rng)
    server.kill()
    return server, last, committed, disk


def leads_back(server, last, committed, *words):
    """Stale, says why; the checkpoint stays; resync leads back."""
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("stale", last), "status", s)
    for word in words:
        check(word in s["reason"], "no", repr(word), "in", s["reason"])
        check(word in server.said(), "no", repr(word), "in the log:", server.said())
    check("resync" in s["reason"], "no way out in", s["reason"])
    equal(nbd_errno(server.connect().pwrite, b"x" * 512, 0), errno.EIO, "a write")
    tool("mcbuf-commit", server.journal, code=REFUSED)
    equal(tool("mcbuf-recover", "--dry-run", "--json", server.journal).json["checkpoint"], last,
          "still to be had")
    equal(len(memory(server)), 1, "one region")
    server.drained()
    same(read_file(server.params[0]), committed, "image")
    tool("mcbuf-ctl", server.journal, "resync")
    h = server.connect()
    for at in range(0, SIZE, MiB):
        h.pwrite(bytes([at // MiB + 1]) * MiB, at)
    newest = server.commit()["checkpoint"]
    check(newest > last, "epochs go on:", newest, last)
    h.pwrite(b"later" * 100, 0)
    server.kill()                       # and what is left now can be taken over
    server.start()
    equal(server.status()["state"], "protected", "state after another kill")
    equal(bytes(server.connect().pread(500, 0)), b"later" * 100, "inlet")
    server.stop()
    equal(memory(server), [], "left in memory")


def test_same_version(test):
    """The counterpart: nothing was changed, all is taken over."""
    rng = seeded(test.name)
    server, last, _, disk = with_speculation(test, rng, "baseline=trusted")
    path, = memory(server)
    equal(struct.unpack("<I", read_file(path)[8:12])[0], VERSION, "version in the header")
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("protected", last), "status")
    same(read_all(server.connect()), bytes(disk.now), "inlet")


def versions(test, version):
    rng = seeded(test.name)
    server, last, committed, _ = with_speculation(test, rng, "baseline=trusted")
    change(server, 8, struct.pack("<I", version))
    server.start()
    leads_back(server, last, committed, "version %d" % version, "version %d" % VERSION)


def test_newer_version(test):
    """A newer mcbuf was here: stale, and both versions are named."""
    versions(test, VERSION + 1)


def test_older_version(test):
    """An older one."""
    versions(test, VERSION - 1)


def test_newer_with_another_layout(test):
    """Of a newer one nothing but magic and version is looked at."""
    rng = seeded(test.name)
    server, last, committed, _ = with_speculation(test, rng, "baseline=trusted")
    path, = memory(server)
    write_file(path, read_file(path)[:8] + struct.pack("<I", 7) + rng.randbytes(16 * MiB))
    server.start()
    leads_back(server, last, committed, "version 7")


def damaged(test, word, how):
    rng = seeded(test.name)
    server, last, committed, _ = with_speculation(test, rng, "baseline=trusted")
    how(server, rng)
    server.start()
    leads_back(server, last, committed, word)


def test_damaged_head(test):
    """The header's fixed part."""
    damaged(test, "damaged", lambda server, rng: change(server, 16, rng.randbytes(16)))


def test_no_magic(test):
    """Zeroes at the beginning."""
    damaged(test, "damaged", lambda server, rng: change(server, 0, bytes(4096)))


def test_cut_short(test):
    """Half of it is not there."""
    damaged(test, "cut short", lambda server, rng: os.truncate(memory(server)[0], 100 * KiB))


def test_smaller_than_it_says(test):
    """It has fewer buffers than its header says."""
    damaged(test, "damaged", lambda server, rng: change(server, 64, struct.pack("<Q", 1 << 40)))


def test_buffers_overwritten(test):
    """What was published in the buffers is not there any more."""
    def how(server, rng):
        path, = memory(server)
        size = os.path.getsize(path)
        for at in range(4096, size - 4096, 64 * KiB):
            change(server, at, rng.randbytes(4096))
    damaged(test, "does not verify", how)


def test_memory_removed(test):
    """Same boot, but somebody cleaned /dev/shm."""
    damaged(test, "is gone",
            lambda server, rng: os.unlink(memory(server)[0]))


def test_reboot(test):
    """The reason tells a host that went down from a server that did."""
    rng = seeded(test.name)
    faults = Faults(test)
    server, last, committed, _ = with_speculation(test, rng, "baseline=trusted", env=faults.env,
                                                  preload=faults.preload)
    faults.reboot(server)
    server.start()
    leads_back(server, last, committed, "went down")


def test_memory_of_another_boot(test):
    """Shared memory that outlived a boot, as in a container, is not of this one."""
    rng = seeded(test.name)
    faults = Faults(test)
    server, last, committed, _ = with_speculation(test, rng, "baseline=trusted", env=faults.env,
                                                  preload=faults.preload)
    faults.new_boot()
    server.start()
    leads_back(server, last, committed, "another boot")


# --- where it does not matter -------------------------------------------------

def test_after_a_clean_stop(test):
    """All was saved: whatever lies in memory is not looked at, and not left there."""
    rng = seeded(test.name)
    for content in (rng.randbytes(16 * MiB), b"", read_file("/proc/self/exe")):
        disk = Disk(SIZE)
        server = replica(test, "baseline=trusted")
        h = server.connect()
        scribble(h, disk, rng)
        h.shutdown()
        server.stop()
        equal(memory(server), [], "left in memory")
        write_file("/dev/shm/mcbuf-" + server.replica, content)
        server.start()
        equal(server.status()["state"], "protected", "state")
        same(read_all(server.connect()), bytes(disk.now), "inlet")
        server.kill()
        tool("mcbuf-recover", server.journal)
        equal(memory(server), [], "left in memory by recovery")
        for name in os.listdir(server.journal):
            os.unlink(os.path.join(server.journal, name))


def test_first_copy(test):
    """In syncing nothing is in memory only: on the same boot the copy goes on."""
    server = replica(test)
    server.connect().pwrite(b"1" * SIZE, 0)
    server.kill()
    change(server, 8, struct.pack("<I", VERSION + 1))
    server.start()
    equal(server.status()["state"], "syncing", "state")
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), b"1" * SIZE, "image")


def test_closed_first_copy(test):
    """But once a seal has closed it there is: stale without a checkpoint, and why."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * SIZE, 0)
    server.seal()
    h.pwrite(b"2" * 4096, 0)
    server.kill()
    change(server, 8, struct.pack("<I", VERSION + 1))
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]), ("stale", None), "status")
    check("version %d" % (VERSION + 1) in s["reason"] and "resync overwrite" in s["reason"], s)
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    done(server.ask("resync overwrite"))
    server.connect().pwrite(b"3" * SIZE, 0)
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), b"3" * SIZE, "image")


def test_promoted(test):
    """A promoted disk has lost only what was not flushed."""
    rng = seeded(test.name)
    faults = Faults(test)
    disk = Disk(SIZE)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    faults.fail("pwrite", "disk.img")
    h = server.connect()
    scribble(h, disk, rng)
    server.commit()
    h.pwrite(b"speculation" * 1000, 0)
    done(server.ask("promote"))
    h = server.connect("@promoted")
    scribble(h, disk, rng)
    h.flush()
    server.kill()
    change(server, 8, struct.pack("<I", VERSION + 1))
    faults.heal("pwrite")
    server.start()
    equal(server.status()["state"], "promoted", "state")
    same(read_all(server.connect("@promoted")), bytes(disk.now), "promoted")
    tool("mcbuf-recover", "--wait", server.journal, code=DONE)
    server.stop()
    same(read_file(test.path("disk.img")), bytes(disk.now), "image")
    equal(memory(server), [], "left in memory")


main(globals())
