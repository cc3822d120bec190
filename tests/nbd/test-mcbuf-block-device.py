#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Block devices as backing images, with logical sectors of 512 and of 4096 bytes."""

import errno
import os
import shutil
import subprocess
import sys

import nbd

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, USAGE, Disk, Server, StartError, check, equal, main, nbd_errno, random_data,
                      random_range, read_all, read_file, same, seeded, sparse_file, tool)
from libloop import Loop, enter_namespace, mount, run, unmount

SIZE = 8 * MiB
SECTORS = (512, 4096)
INVARIANTS = "2,5,9"


def device(test, sector, size=SIZE):
    return Loop(sparse_file(test.unique("disk"), size), sector)


def replica(test, path, *params, **options):
    return Server(test, path, "journal-size=64M", "buffer=8M", "baseline=trusted",
                  "journal=" + test.unique("j"), *params, **options)


def some_writes(rng, h, disk, n=60):
    """Writes, zeroes and trims of any alignment."""
    for _ in range(n):
        at, length = random_range(rng, disk.size)
        what = rng.choice("wwwzt")
        if what == "w":
            data = random_data(rng, length)
            h.pwrite(data, at)
            disk.write(at, data)
        else:
            h.zero(length, at, 0 if what == "t" else nbd.CMD_FLAG_NO_HOLE)
            disk.zero(at, length)


def check_extents(h, size):
    """The extents are in order and cover all."""
    seen = []
    h.block_status(size, 0, lambda _ctx, _at, entries, _error: seen.extend(entries))
    check(sum(seen[0::2]) >= size, "extents end at", sum(seen[0::2]))


def test_life(test):
    """Writes, commits, write-out, SIGKILL, restart, recovery: the device is the checkpoint."""
    for sector in SECTORS:
        rng = seeded("test_life")
        with device(test, sector) as loop:
            disk = Disk(SIZE, random_data(rng, SIZE))
            loop.write(bytes(disk.now))
            server = replica(test, loop.device)
            h = server.connect(block_status=True)
            equal(h.get_size(), SIZE, "size")
            for _ in range(4):
                some_writes(rng, h, disk)
                same(read_all(h), disk.now, sector, "inlet")
                server.commit()
            check_extents(h, SIZE)
            server.drained()
            same(loop.read(SIZE), disk.now, sector, "device")
            last = bytes(disk.now)
            some_writes(rng, h, disk)
            server.kill()
            same(loop.read(SIZE), last, sector, "device after SIGKILL")

            server.start()
            h = server.connect()
            same(read_all(h), disk.now, sector, "inlet after SIGKILL")
            server.commit()
            last = bytes(disk.now)
            h.pwrite(b"speculation" * 1000, 12345)
            server.kill()
            answer = tool("mcbuf-recover", "--json", server.journal).json
            equal(answer["state"], "promoted", "state")
            same(loop.read(SIZE), last, sector, "recovered device")


def test_first_copy(test):
    """Syncing: zeroes and trims of any alignment go straight to the device."""
    for sector in SECTORS:
        rng = seeded("test_first_copy")
        with device(test, sector) as loop:
            disk = Disk(SIZE, random_data(rng, SIZE))
            loop.write(bytes(disk.now))
            server = Server(test, loop.device, "journal-size=64M", "buffer=8M",
                            "journal=" + test.unique("j"))
            h = server.connect()
            some_writes(rng, h, disk, 100)
            h.flush()
            same(read_all(h), disk.now, sector, "inlet")
            same(loop.read(SIZE), disk.now, sector, "device")
            # Not slower than a write, or refused.
            got = nbd_errno(h.zero, 512, 512, nbd.CMD_FLAG_FAST_ZERO)
            h.shutdown()
            check(got in (errno.ENOTSUP, errno.EOPNOTSUPP) if sector == 4096 else
                  got in (0, errno.ENOTSUP, errno.EOPNOTSUPP), "fast zero:", got)
            server.stop()


def test_trim_reaches_the_device(test):
    """What lies between whole sectors is a hole in the device, and its neighbours stay."""
    for sector in SECTORS:
        with device(test, sector) as loop:
            loop.write(b"x" * SIZE)
            full = loop.allocated()
            server = replica(test, loop.device)
            h = server.connect()
            h.zero(6 * MiB, MiB + 512, 0)
            server.commit()
            server.drained()
            h.shutdown()
            server.stop()
            same(loop.read(SIZE), b"x" * (MiB + 512) + bytes(6 * MiB) + b"x" * (MiB - 512),
                 sector, "device")
            gone = full - loop.allocated()
            check(gone >= 5 * MiB, "only", gone, "bytes were freed, sectors of", sector)


def test_larger_device(test):
    """A device may have more than the disk, which need not end with a sector; the rest is nobody's."""
    for sector in SECTORS:
        rng = seeded("test_larger_device")
        for size in (SIZE - 4096 + 512, SIZE - 100):
            with device(test, sector) as loop:
                loop.write(b"\xaa" * SIZE)
                disk = Disk(size, b"\xaa" * size)
                server = replica(test, loop.device, "size=%d" % size)
                h = server.connect()
                equal(h.get_size(), size, "size")
                some_writes(rng, h, disk, 30)
                h.pwrite(b"end", size - 3)
                disk.write(size - 3, b"end")
                server.commit()
                h.zero(9000, size - 9000, 0)
                disk.zero(size - 9000, 9000)
                server.commit()
                h.shutdown()
                server.stop()
                # With and without size=, it is that disk.
                server.start()
                equal(server.connect().get_size(), size, "size after a restart")
                server.stop()
                server.params.remove("size=%d" % size)
                server.start()
                h = server.connect()
                equal(h.get_size(), size, "size without size=")
                same(read_all(h), disk.now, sector, "inlet")
                h.pwrite(b"E", size - 1)
                disk.write(size - 1, b"E")
                server.commit()
                h.pwrite(b"speculation", size - 11)
                server.kill()
                tool("mcbuf-recover", "--verify", server.journal)
                tool("mcbuf-recover", "--dry-run", server.journal)
                equal(tool("mcbuf-recover", "--json", server.journal).json["state"], "promoted",
                      "state")
                same(loop.read(SIZE), bytes(disk.now) + b"\xaa" * (SIZE - size), sector, "device")
                server.start()
                equal(server.connect("@promoted").get_size(), size, "promoted size")
                server.stop()


def test_larger_leaves(test):
    """It leaves as the disk that it is: with its last checkpoint on it."""
    rng = seeded("test_larger_leaves")
    size = SIZE - 4096 + 512
    with device(test, 512) as loop:
        loop.write(bytes(SIZE))
        server = Server(test, "disk=a:" + sparse_file(test.path("a.img"), size), "disk=b:" + loop.device,
                        "size=%d" % size, "journal-size=64M", "buffer=8M", "baseline=trusted", "history=1000",
                        "journal=" + test.path("j"))
        disk = Disk(size, bytes(size))
        h = server.connect("b")
        some_writes(rng, h, disk, 20)
        server.commit()
        h.shutdown()
        server.stop()
        server.params.remove("disk=b:" + loop.device)
        server.params.append("remove-disk=b")
        server.start()
        check("without its image" not in server.said(), server.said())
        server.stop()
        same(loop.read(size), bytes(disk.now), "device")


def test_too_small(test):
    """A device that has less than its disk is refused, and not touched."""
    rng = seeded("test_too_small")
    content = random_data(rng, MiB)
    with device(test, 512, MiB) as loop:
        loop.write(content)
        try:
            replica(test, loop.device, "size=2M")
            check(False, "started")
        except StartError as error:
            check(loop.device in str(error) and "1048576" in str(error), error)
        same(loop.read(MiB), content, "device")
        server = replica(test, loop.device)
        server.connect().pwrite(b"data", 0)
        server.commit()
        server.kill()
    with device(test, 512, MiB - 4096) as other:
        result = tool("mcbuf-recover", "--disk=:" + other.device, server.journal, code=USAGE)
        check(other.device in result.err, result)


def test_no_journal_in_dev(test):
    """There is no default journal beside a block device: that would be in memory."""
    with device(test, 512) as loop:
        try:
            Server(test, loop.device)
            check(False, "started")
        except StartError as error:
            check("journal=" in str(error), error)
        check(not os.path.exists(loop.device + ".mcbuf"), "a journal in /dev")


def refused(test, path, *words):
    try:
        replica(test, path).kill()
    except StartError as error:
        for word in words:
            check(word in str(error), "no word", word, "in", error)
        return
    check(False, "started on", path)


def test_in_use(test):
    """While a replica has it nobody else may write a device, and the other way round."""
    for sector in SECTORS:
        with device(test, sector) as loop:
            content = test.unique("fs")
            os.mkdir(content)
            check(run("mkfs.ext4", "-q", "-F", loop.device) is not None, "mkfs.ext4")
            check(mount(loop.device, content), "mount")
            refused(test, loop.device, loop.device, "in use")
            unmount(content)

            server = replica(test, loop.device)
            refused(test, loop.device, loop.device, "in use")
            # By another name it is the same device.
            other = test.unique("node")
            os.mknod(other, 0o600 | os.stat(loop.device).st_mode, os.stat(loop.device).st_rdev)
            refused(test, other, other, "in use")
            check(run("mkfs.ext4", "-q", loop.device) is None, "mkfs.ext4 takes it")
            check(not mount(loop.device, content), "it can be mounted")
            if shutil.which("qemu-io"):
                p = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 4k", loop.device],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   check=False)
                check(p.returncode != 0 and "lock" in p.stdout, "qemu-io:", p.stdout)
            server.kill()
            # And recovery has to wait, as for a file.
            check(mount(loop.device, content), "mount")
            result = tool("mcbuf-recover", server.journal, code=USAGE)
            check(loop.device in result.err and "in use" in result.err, result)
            unmount(content)
            tool("mcbuf-recover", server.journal)


def test_names(test):
    """The name that was given is kept, not what it leads to: the next boot gives devices other numbers."""
    rng = seeded("test_names")
    path = sparse_file(test.unique("disk"), SIZE)
    name = test.path("by-id")
    with Loop(path, 512) as loop:
        os.symlink(loop.device, name)
        server = replica(test, name)
        equal(server.status()["disks"][0]["backing"], name, "backing")
        disk = Disk(SIZE)
        some_writes(rng, server.connect(), disk, 10)
        server.commit()
        server.drained()
        server.kill()
        # Another name of the same device is as good.
        server.params[0] = loop.device
        server.start()
        equal(server.status()["disks"][0]["backing"], loop.device, "backing")
        server.kill()
        server.params[0] = name
        server.start()
        h = server.connect()
        some_writes(rng, h, disk, 10)
        server.commit()
        server.kill()
        was = loop.device
    # "The next boot": the first number is another disk's, this one has the next.
    with Loop(sparse_file(test.unique("other"), SIZE), 512), Loop(path, 512) as loop:
        os.unlink(name)
        os.symlink(loop.device, name)
        print("was %s, is %s" % (was, loop.device))
        server.start()
        same(read_all(server.connect()), disk.now, "inlet")
        server.kill()
        tool("mcbuf-recover", server.journal)
        same(read_file(loop.device), disk.now, "device")


enter_namespace()
main(globals())
