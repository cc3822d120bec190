#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The journal on file systems with and without O_DIRECT, and on devices with sectors of 512 and 4096 bytes."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, Disk, Server, check, equal, main, random_data, random_range, read_all,
                      read_file, same, seeded, skip, sparse_file, tool)
from libloop import Loop, enter_namespace, mount, run, unmount

SIZE = 8 * MiB
INVARIANTS = "1,2,5"


def loop_fs(test, sector, *mkfs, options="defaults"):
    """A file system made by MKFS on a loop device; returns where it is mounted, and the device."""
    loop = Loop(sparse_file(test.unique("fs"), 160 * MiB), sector)
    check(run(*mkfs, loop.device) is not None, "mkfs failed")
    where = test.unique("mount")
    os.mkdir(where)
    check(mount("-o", options, loop.device, where), "cannot mount", loop.device)
    return where, loop


def is_direct(server):
    """Is the journal open with O_DIRECT?"""
    folder = "/proc/%d/fd" % server.pid
    for fd in os.listdir(folder):
        if os.readlink(os.path.join(folder, fd)) == os.path.join(server.journal, "journal"):
            with open("/proc/%d/fdinfo/%s" % (server.pid, fd), encoding="ascii") as f:
                flags = [line.split()[1] for line in f if line.startswith("flags:")]
            return bool(int(flags[0], 8) & os.O_DIRECT)
    check(False, "the journal is not open")


def some_writes(rng, h, disk):
    for _ in range(40):
        at, length = random_range(rng, SIZE)
        if rng.random() < 0.8:
            data = random_data(rng, length)
            h.pwrite(data, at)
            disk.write(at, data)
        else:
            h.zero(length, at)
            disk.zero(at, length)


def life(test, where, what):
    """Commits, SIGKILL, restart, a clean stop, recovery; returns whether O_DIRECT was used."""
    rng = seeded("life " + what)
    image = sparse_file(os.path.join(where, "disk.img"), SIZE)
    disk = Disk(SIZE)
    server = Server(test, image, "journal-size=48M", "buffer=8M", "baseline=trusted")
    direct = is_direct(server)
    # More than the journal and the buffer hold: recycled chunks, and reads of what left memory.
    for _ in range(2):
        h = server.connect()
        for _ in range(3):
            some_writes(rng, h, disk)
            h.pwrite(random_data(rng, 4 * MiB), 0)
            whole = random_data(rng, 4 * MiB)
            h.pwrite(whole, 0)
            disk.write(0, whole)
            server.commit()
        some_writes(rng, h, disk)
        same(read_all(h), disk.now, what, "inlet")
        server.kill()
        server.start()
        h = server.connect()
        same(read_all(h), disk.now, what, "inlet after SIGKILL")
        h.shutdown()
        server.stop()
        server.start()
        same(read_all(server.connect()), disk.now, what, "inlet after a stop")
        equal(is_direct(server), direct, "O_DIRECT")
    server.commit()
    server.drained()
    same(read_file(image), disk.now, what, "image")
    h = server.connect()
    some_writes(rng, h, disk)
    server.commit()
    last = bytes(disk.now)
    h.pwrite(b"speculation" * 100, 4097)
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(image), last, what, "recovered image")
    print("%s: %s" % (what, "O_DIRECT" if direct else "buffered"))
    return direct, server


def test_sectors(test):
    """ext4 on devices with sectors of both sizes: never through the page cache."""
    for sector, block in ((512, 1024), (512, 4096), (4096, 4096)):
        where, loop = loop_fs(test, sector, "mkfs.ext4", "-q", "-F", "-b", str(block))
        with loop:
            direct, _ = life(test, where, "ext4, blocks of %d on sectors of %d" % (block, sector))
            check(direct, "no O_DIRECT on sectors of", sector)
            unmount(where)


def test_ext4_journals_data(test):
    """ext4 that copies data through its own journal: O_DIRECT in name only."""
    where, loop = loop_fs(test, 512, "mkfs.ext4", "-q", "-F", options="data=journal")
    with loop:
        life(test, where, "ext4, data=journal")
        unmount(where)


def test_btrfs(test):
    """Copy on write, with checksums of what O_DIRECT writes."""
    if run("mkfs.btrfs", "--version") is None:
        skip("mkfs.btrfs is not installed")
    where, loop = loop_fs(test, 4096, "mkfs.btrfs", "-q")
    with loop:
        direct, server = life(test, where, "btrfs")
        check(direct, "no O_DIRECT")
        # Or overwriting it takes new room, which may be lacking.
        flags = run("lsattr", os.path.join(server.journal, "journal")).split()[0]
        check("C" in flags, "the journal is copied on write:", flags)
        unmount(where)


def in_memory(test, kind):
    where = test.unique(kind)
    os.mkdir(where)
    if not mount("-t", kind, "none", where):
        skip("no %s to be had" % kind)
    return where


def test_no_direct(test):
    """ramfs has neither O_DIRECT nor fallocate nor holes."""
    direct, server = life(test, in_memory(test, "ramfs"), "ramfs")
    check(not direct, "O_DIRECT on ramfs")
    check("in memory" in server.said(), "no warning:", server.said())


def test_tmpfs(test):
    """tmpfs, where kernels before 6.6 refuse O_DIRECT."""
    _, server = life(test, in_memory(test, "tmpfs"), "tmpfs")
    check("in memory" in server.said(), "no warning:", server.said())


def overlay(test, upper):
    """An overlay whose upper layer is in the directory UPPER."""
    for name in ("lower", "upper", "work"):
        os.mkdir(os.path.join(upper, name))
    where = test.unique("overlay")
    os.mkdir(where)
    if not mount("-t", "overlay", "-o", ",".join("%s=%s/%s" % (n + "dir", upper, n)
                                                 for n in ("lower", "upper", "work")),
                 "none", where):
        skip("no overlay to be had")
    return where


def test_overlay(test):
    """An overlay does what its upper layer does."""
    life(test, overlay(test, in_memory(test, "tmpfs")), "overlay on tmpfs")
    upper, loop = loop_fs(test, 4096, "mkfs.ext4", "-q", "-F")
    with loop:
        where = overlay(test, upper)
        direct, server = life(test, where, "overlay on ext4")
        check(direct, "no O_DIRECT")
        check("in memory" not in server.said(), "a warning:", server.said())
        unmount(where)
        unmount(upper)


enter_namespace()
main(globals())
