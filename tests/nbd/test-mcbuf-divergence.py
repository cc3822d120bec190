#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Failback: the old primary's disk is made equal by copying only the ranges in which it may differ."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, REFUSED, Server, check, equal, main, nbd, poll, read_file, same,
                      seeded, sparse_file, tool)
from libqemu import Primary

SIZES = (40 * MiB + 12345, 8 * MiB)
NAMES = ("vda", "vdb")


class Pair:
    """A primary (two disks in memory that are written to directly) and its replica."""

    def __init__(self, test, *params):
        self.rng = seeded(test.name)
        self.images = [sparse_file(test.path("r%d.img" % i), s) for i, s in enumerate(SIZES)]
        self.server = Server(test, *["disk=%s:%s" % d for d in zip(NAMES, self.images)],
                             "journal=" + test.path("j"), "baseline=trusted", "journal-size=64M",
                             "buffer=8M", *params)
        self.primary = [bytearray(s) for s in SIZES]
        self.inlets = [self.server.connect(n) for n in NAMES]

    def ranges(self, n):
        for _ in range(n):
            d = self.rng.randrange(2)
            count = self.rng.choice((1, 512, 4096, 70000))
            yield d, self.rng.randrange(SIZES[d] - count + 1), count

    def write(self, n=10):
        """The guest, on the old primary: its own disk and the mirror."""
        for d, offset, count in self.ranges(n):
            data = self.rng.randbytes(count) if self.rng.random() < 0.8 else bytes(count)
            self.primary[d][offset:offset + count] = data
            if any(data):
                self.inlets[d].pwrite(data, offset)
            else:
                self.inlets[d].zero(count, offset)

    def write_promoted(self, n=10):
        """The guest, on the new primary."""
        for d, offset, count in self.ranges(n):
            h = self.server.connect(NAMES[d] + "@promoted")
            if self.rng.random() < 0.8:
                h.pwrite(self.rng.randbytes(count), offset)
            else:
                h.trim(count, offset)
            h.flush()
            h.shutdown()

    def promoted(self, d):
        h = self.server.connect(NAMES[d] + "@promoted")
        data = b"".join(h.pread(min(8 * MiB, SIZES[d] - at), at) for at in range(0, SIZES[d], 8 * MiB))
        h.shutdown()
        return data

    def listed(self):
        """mcbuf-status --divergence: ranges by disk."""
        found = [[], []]
        for line in tool("mcbuf-status", "--divergence", self.server.journal, warns=True).out.splitlines():
            name, offset, length = line.split()
            found[NAMES.index(name)].append((int(offset), int(length)))
        return found

    def mapped(self, d):
        """The same from the block status of NAME@divergence."""
        h = self.server.connect(NAMES[d] + "@divergence", block_status=True)
        check(h.is_read_only(), "divergence can be written")
        found, at = [], 0
        while at < SIZES[d]:
            extents = []
            h.block_status(SIZES[d] - at, at, lambda c, o, e, err, extents=extents: extents.extend(e))
            for length, flags in zip(extents[::2], extents[1::2]):
                if not flags & 1:
                    if found and found[-1][0] + found[-1][1] == at:
                        found[-1] = (found[-1][0], found[-1][1] + length)
                    else:
                        found.append((at, length))
                at += length
        return h, found

    def fail_back(self):
        """Copy only what may differ; everything is equal then, and it was not everything."""
        poll("the divergence to be known",
             lambda: self.server.ask("divergence disk=vda")["known"])
        listed, copied = self.listed(), 0
        for d in range(2):
            h, found = self.mapped(d)
            equal(found, listed[d], "the map and the list of disk", d)
            for offset, length in found:
                self.primary[d][offset:offset + length] = h.pread(length, offset)
                copied += length
            h.shutdown()
            same(bytes(self.primary[d]), self.promoted(d), "disk", d)
        check(copied < sum(SIZES) // 2, copied, "bytes is no saving")
        return copied


def begin(test, *params):
    """Three checkpoints, and something after the last."""
    p = Pair(test, *params)
    for _ in range(3):
        p.write()
        p.server.commit()
    p.write()
    p.server.seal()
    p.write(5)
    return p


def test_online(test):
    """Promote online, write, fail back."""
    p = begin(test)
    p.server.ask("promote")
    p.fail_back()
    p.write_promoted()
    p.fail_back()
    poll("the backlog to drain", lambda: p.server.status().get("drained"))
    p.write_promoted()
    p.fail_back()


def test_nothing_differs(test):
    """Nothing after the last checkpoint: nothing to copy."""
    p = Pair(test)
    p.write()
    p.server.commit()
    p.server.ask("promote")
    equal(p.fail_back(), 0, "bytes copied")


def test_older(test):
    """Promoted to an older checkpoint: what was committed since differs as well."""
    p = begin(test, "history=10")
    equal(p.server.ask("promote to=1")["checkpoint"], 1, "promoted")
    p.fail_back()


def test_scratch(test):
    """What was written to scratch differs, too."""
    p = begin(test)
    h = p.server.connect("vda@scratch")
    for _, offset, count in p.ranges(20):
        h.pwrite(p.rng.randbytes(count), offset % (SIZES[0] - count))
    equal(p.server.ask("promote scratch").get("generation"), 2, "promoted")
    p.fail_back()


def test_restarts(test):
    """The promoted server is killed and stopped and started; what it knows stays."""
    p = begin(test)
    p.server.ask("promote")
    p.write_promoted()
    poll("the divergence to be known", lambda: p.server.ask("divergence")["known"])
    for how in (p.server.kill, p.server.stop, p.server.kill):
        p.write_promoted()
        for h in p.inlets:
            h.shutdown() if h.aio_is_ready() else None
        p.inlets = []
        how()
        p.server.start()
        p.fail_back()


def test_offline(test):
    """Recovered without a server, whose shared memory still has what was speculative."""
    p = begin(test)
    p.server.kill()
    tool("mcbuf-recover", p.server.journal)
    p.server.start()
    p.fail_back()
    p.write_promoted()
    p.fail_back()


def unknown(p, *words):
    result = tool("mcbuf-status", "--divergence", p.server.journal, code=REFUSED)
    for word in words + ("full copy",):
        check(word in result.err, "expected", word, "in", result)
    equal(result.out, "", "no range is named")
    try:
        p.server.connect("vda@divergence")
    except nbd.Error:
        return
    check(False, "the map of what is not known was opened")


def test_unknown_lost(test):
    """What was speculative is gone with the host: only a full copy is safe."""
    p = begin(test)
    p.server.kill()
    os.unlink("/dev/shm/mcbuf-%s" % p.server.replica)
    tool("mcbuf-recover", p.server.journal)
    p.server.start()
    unknown(p)


def test_unknown_after_refusal(test):
    """The old primary is alive and writes after the promote: only a full copy is safe, ever after."""
    p = begin(test)
    p.server.ask("promote")
    poll("the divergence to be known", lambda: p.server.ask("divergence")["known"])
    try:
        p.inlets[0].pwrite(b"x", 0)
        check(False, "an inlet took a write after a promote")
    except nbd.Error:
        pass
    unknown(p, "old primary")
    p.server.kill()
    p.server.start()
    unknown(p)


def test_unknown_resync(test):
    """Half a resync says nothing about the rest of the disk."""
    p = begin(test)
    p.server.ask("resync")
    p.write(3)
    p.server.ask("promote")
    unknown(p, "not whole")


def written_past(p):
    """Somebody writes to an image while nothing serves it: nothing is known, ever after."""
    with open(p.images[1], "r+b") as f:
        f.seek(4 * MiB)
        f.write(b"a virtual machine that was started on the image")
    for words in (("past the server",), ()):
        p.server.start()
        unknown(p, *words)
        p.server.stop()


def test_unknown_image_used(test):
    """Recovered offline, a virtual machine ran on the image itself: what that wrote is in no list."""
    p = begin(test)
    p.server.kill()
    tool("mcbuf-recover", p.server.journal)
    p.server.start()
    p.fail_back()
    p.server.stop()
    tool("mcbuf-recover", p.server.journal)     # once more, and it changes nothing
    p.server.start()
    p.fail_back()
    p.server.stop()
    written_past(p)


def test_unknown_image_used_at_once(test):
    """The same, and recovery is run again in between."""
    p = begin(test)
    p.server.kill()
    tool("mcbuf-recover", p.server.journal)
    with open(p.images[0], "r+b") as f:
        f.write(b"x")
    tool("mcbuf-recover", p.server.journal)
    written_past(p)


def test_unknown_image_used_after_stop(test):
    """The same after a promote with a server, and a clean stop of that."""
    p = begin(test)
    tool("mcbuf-recover", "--wait", p.server.journal)
    p.write_promoted()
    for h in p.inlets:
        h.shutdown()
    p.server.stop()
    p.server.start()
    p.fail_back()
    p.server.stop()
    written_past(p)


def test_unknown_not_promoted(test):
    """There is none before a promote."""
    p = begin(test)
    result = tool("mcbuf-status", "--divergence", p.server.journal, code=REFUSED)
    check("not promoted" in result.err, result)


def test_damaged_file(test):
    """A file that was cut short, or another boot's, is not believed."""
    p = begin(test)
    p.server.ask("promote")
    poll("the divergence to be known", lambda: p.server.ask("divergence")["known"])
    p.server.kill()
    path = os.path.join(p.server.journal, "divergence")
    whole = read_file(path)
    for harmed in (whole[:-1], whole[:4000], b"", whole[:30] + b"\0" + whole[31:],
                   whole[:41] + b"\7" + whole[42:]):
        with open(path, "wb") as f:
            f.write(harmed)
        p.server.start()
        unknown(p)
        p.server.kill()


def test_qemu(test):
    """A real QEMU as the old primary: stopped, failed over from, made equal, and mirrored to again."""
    rng = seeded(test.name)
    size = 64 * MiB
    source = sparse_file(test.path("p.img"), size)
    with open(source, "r+b") as f:
        f.write(rng.randbytes(20 * MiB))
    primary = Primary(test, [source])
    server = Server(test, test.path("r.img"), "size=%d" % size, "journal-size=64M", "buffer=8M")
    primary.add_replica(0, server)
    primary.mirror(0)
    primary.wait_ready()
    primary.write(0, 1, 5 * MiB, 64 * KiB)
    primary.pause(server)
    server.commit()
    for i in range(20):
        primary.write(0, 2 + i, rng.randrange(size // MiB) * MiB, 4096)
    primary.qmp.command("stop")
    primary.qmp.wait_synced("m0")
    primary.kill()
    server.ask("promote")
    h = server.connect("@promoted")
    for i in range(10):
        h.pwrite(rng.randbytes(512), rng.randrange(size // 512) * 512)
    h.flush()
    poll("the divergence to be known", lambda: server.ask("divergence")["known"])
    copied = 0
    with open(source, "r+b") as f:
        for line in tool("mcbuf-status", "--divergence", server.journal, warns=True).out.splitlines():
            _, offset, length = line.split()
            f.seek(int(offset))
            f.write(h.pread(int(length), int(offset)))
            copied += int(length)
    check(0 < copied <= 30 * 2 * 64 * KiB, "copied", copied)
    same(read_file(source), h.pread(32 * MiB, 0) + h.pread(32 * MiB, 32 * MiB), "the old primary's disk")


main(globals())
