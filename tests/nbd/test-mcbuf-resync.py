#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Resync: a full copy over a replica with a checkpoint costs what differs, and endangers nothing."""

import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, KiB, MiB, Server, check, equal, main, poll, read_file, same,
                      seeded, tool)
from libqemu import Primary

GiB = 1 << 30


def sparse_image(path, rng, size, pieces, length):
    """Data here and there in a large hole; where the pieces are."""
    at = sorted(rng.sample(range(size // length), pieces))
    with open(path, "wb") as f:
        f.truncate(size)
        for i in at:
            f.seek(i * length)
            f.write(rng.randbytes(length))
    return [i * length for i in at]


def copy_sparse(source, target):
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def data_ranges(f, size):
    """Where F is no hole."""
    at = 0
    while at < size:
        try:
            start = os.lseek(f.fileno(), at, os.SEEK_DATA)
        except OSError:                                 # ENXIO: no more data
            return
        at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
        yield start, at - start


def same_sparse(a, b, what):
    """Two sparse files are equal; their holes are not read."""
    size = os.path.getsize(a)
    equal(os.path.getsize(b), size, what, "size")
    with open(a, "rb") as f, open(b, "rb") as g:
        for one in (f, g):
            for start, length in data_ranges(one, size):
                same(os.pread(f.fileno(), length, start), os.pread(g.fileno(), length, start),
                     what, "from byte", start)


def used(server):
    s = server.status()
    return s["state"], s["speculation"]["bytes"], s["journal"]["used"]


def trusted(test, image, *more):
    """A replica that was told that its image is the primary's disk."""
    return Server(test, image, "baseline=trusted", "journal-size=16M", "buffer=8M", *more)


def test_unchanged(test):
    """10 GiB that did not change, with far more data than the journal is large."""
    rng = seeded(test.name)
    source, image = test.path("p.img"), test.path("r.img")
    sparse_image(source, rng, 10 * GiB, 200, MiB)
    copy_sparse(source, image)
    server = trusted(test, image)
    before = server.status()["journal"]["used"]
    tool("mcbuf-ctl", server.journal, "resync")
    subprocess.run(["nbdcopy", "--destination-is-zero", "--", source, server.uri()], check=True)
    subprocess.run(["nbdcopy", "--", source, server.uri()], check=True)
    state, speculation, now = used(server)
    equal((state, speculation), ("resyncing", 0), "speculation")
    check(now <= before + 2 * MiB, "the journal went from", before, "to", now)
    server.commit()
    equal(server.status()["state"], "protected", "state")
    server.stop()
    same_sparse(source, image, "the image")


def test_differs(test):
    """What differs is taken: data on a hole, a hole on data, and changed bytes."""
    rng = seeded(test.name)
    source, image = test.path("p.img"), test.path("r.img")
    at = sparse_image(source, rng, GiB, 40, MiB)
    copy_sparse(source, image)
    with open(source, "r+b") as f:
        for offset in at[:20]:
            f.seek(offset + rng.randrange(MiB - 5000))
            f.write(rng.randbytes(rng.choice((1, 512, 5000))))
        for offset in at[20:22]:
            f.seek(offset)
            f.write(bytes(MiB))
        f.seek(GiB - 3000)
        f.write(rng.randbytes(3000))
    old = test.path("old.img")
    copy_sparse(image, old)
    server = trusted(test, image)
    tool("mcbuf-ctl", server.journal, "resync")
    subprocess.run(["nbdcopy", "--", source, server.uri()], check=True)
    state, speculation, _ = used(server)
    equal(state, "resyncing", "state")
    check(0 < speculation <= 21 * 3 * 4096 + 3 * MiB, "speculation is", speculation)
    server.kill()                                       # death in the middle
    dry = tool("mcbuf-recover", "--dry-run", "--json", server.journal).json
    equal(dry["checkpoint"], 0, "recoverable during the resync")
    same_sparse(old, image, "the old checkpoint")
    server.start()
    equal(server.status()["state"], "resyncing", "state after the restart")
    server.commit(label="resynced")
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["label"], "resynced", "label")
    same_sparse(source, image, "the image")


def test_over_uncommitted(test):
    """Old content over something uncommitted is new content."""
    rng = seeded(test.name)
    source, image = test.path("p.img"), test.path("r.img")
    sparse_image(source, rng, 8 * MiB, 64, 64 * KiB)
    copy_sparse(source, image)
    content = read_file(source)
    server = trusted(test, image)
    tool("mcbuf-ctl", server.journal, "resync")
    h = server.connect()
    for _ in range(100):
        n = rng.choice((1, 512, 4096, 70000))
        offset = rng.randrange(len(content) - n)
        h.pwrite(rng.randbytes(n), offset)
        if rng.random() < 0.2:
            server.seal()
    same(content, read_file(image), "the image during the resync")
    for offset in range(0, len(content), MiB):
        h.pwrite(content[offset:offset + MiB], offset)
    same(h.pread(len(content), 0), content, "what the inlet reads")
    server.commit()
    server.drained()
    same(read_file(image), content, "the image")


def test_after_lost_speculation(test):
    """A real QEMU: the secondary's host went down; the resync leads back from stale."""
    rng = seeded(test.name)
    size = 256 * MiB
    source = test.path("p.img")
    sparse_image(source, rng, size, 24, MiB)
    primary = Primary(test, [source])
    server = Server(test, test.path("r.img"), "size=%d" % size, "journal-size=16M", "buffer=8M")
    primary.add_replica(0, server, reconnect=0, discard="ignore")
    primary.mirror(0)
    primary.wait_ready()
    first, contents = primary.pause(server)
    server.commit(epoch=first)
    primary.write(0, 9, 0, MiB)
    server.kill()
    os.unlink("/dev/shm/mcbuf-%s" % server.replica)     # what a reboot does
    primary.write(0, 11, 2 * MiB, MiB)                  # the job finds out
    primary.job_error(0)
    server.start()
    equal(server.status()["state"], "stale", "state after the reboot")

    tool("mcbuf-ctl", server.journal, "resync")
    primary.qmp.command("blockdev-del", node_name="r0")
    primary.add_replica(0, server, reconnect=0, discard="ignore")
    primary.mirror(0)
    primary.wait_ready()
    state, speculation, _ = used(server)
    equal(state, "resyncing", "state")
    check(2 * MiB <= speculation <= 4 * MiB, "what differed was 2 MiB, speculation is", speculation)
    equal(tool("mcbuf-recover", "--dry-run", "--json", server.journal, code=DONE).json["checkpoint"],
          first, "recoverable during the resync")
    epoch, contents = primary.pause(server)
    server.commit(epoch=epoch)
    equal(server.status()["state"], "protected", "state")
    primary.write(0, 10, MiB, MiB)
    primary.kill()
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], epoch, "recovered")
    same(read_file(test.path("r.img")), contents[0], "the image")


main(globals())
