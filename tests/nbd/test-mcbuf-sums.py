#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A large image with another content where mcbuf has written out: never taken, wherever that is.

The samples in the journal cover some MiB at most.  These images are larger than that, and what is changed is
one block of many that were written.
"""

import os
import re
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DAMAGE, DONE, Faults, KiB, MiB, PARTIAL, Server, check, count, equal, main, read_file, seeded,
                      sparse_file, tool, tried, write_file)

SIZE = 64 * MiB - 1536
BLOCK = 4 * KiB
TRIES = count("ROUNDS", 30)


class Replica:
    """Two disks with some thousand blocks written out; killed, or stopped.  Copies are tried."""

    def __init__(self, test, rng, clean, backlog=False):
        self.test = test
        self.dir = test.path("r%d%d" % (clean, backlog))
        os.mkdir(self.dir)
        self.journal = os.path.join(self.dir, "j")
        server = Server(test, *["disk=%s:%s" % (n, sparse_file(os.path.join(self.dir, n + ".img"), SIZE))
                                for n in "ab"], "journal=" + self.journal, "journal-size=128M", "buffer=16M",
                        "baseline=trusted", journal=self.journal)
        self.written = []
        for n in "ab":
            h = server.connect(n)
            for _ in range(1500):
                at = rng.randrange(SIZE // 512) * 512
                length = min(rng.choice((512, 1024, BLOCK, BLOCK, 3 * BLOCK)), SIZE - at)
                h.pwrite(rng.randbytes(length), at)
                self.written.append((n, at, length))
            h.zero(MiB, 40 * MiB + 512)
            self.written.append((n, 40 * MiB + 512, MiB))
            h.shutdown()
        equal(tool("mcbuf-commit", "--json", self.journal).json["checkpoint"], 1, "checkpoint")
        server.drained()
        for _ in range(2):      # nothing was written, and what is known stays known
            server.commit()
            server.drained()
        if backlog:
            h = server.connect("a")
            h.pwrite(b"backlog" * 1000, 4096)
            tool("mcbuf-commit", self.journal)
            server.kill()
        elif clean:
            server.stop()
        else:
            server.kill()
        self.now = {n: read_file(os.path.join(self.dir, n + ".img")) for n in "ab"}

    def copied(self):
        """As a backup would: other inodes, other times."""
        there = self.test.unique("copy")
        os.mkdir(there)
        for n in "ab":
            os.system("cp --sparse=always %s/%s.img %s/%s.img" % (self.dir, n, there, n))
        shutil.copytree(self.journal, os.path.join(there, "j"),
                        ignore=lambda _, names: [n for n in names if n == "control"])
        return there


def recover(there, *options, code=DONE):
    return tool("mcbuf-recover", *options, "--disk=a:%s/a.img" % there, "--disk=b:%s/b.img" % there,
                there + "/j", code=code)


def spoil(there, disk, at, rng):
    """Another byte there."""
    with open("%s/%s.img" % (there, disk), "r+b") as f:
        f.seek(at)
        was = f.read(1)
        f.seek(at)
        f.write(bytes([was[0] ^ (1 + rng.randrange(255))]))


def test_one_block(test):
    """One byte of one block of thousands: the copy is refused, its place is named; untouched it is taken."""
    rng = seeded("test_one_block")
    for clean, backlog in ((False, False), (True, False), (False, True)):
        r = Replica(test, rng, clean, backlog)
        for n in range(max(TRIES // 3, 1)):
            there = r.copied()
            disk, at, length = rng.choice(r.written)
            at += rng.randrange(length)
            spoil(there, disk, at, rng)
            before = {d: read_file("%s/%s.img" % (there, d)) for d in "ab"}
            options = ("--verify",) if n % 3 == 0 else ()
            if backlog and disk == "a" and at // BLOCK <= 2:
                continue                # is written again, and so is right
            result = recover(there, *options, code=DAMAGE)
            said = re.search(r"/%s\.img: damage at offset (\d+)" % disk, result.err)
            check(said and 0 <= at - int(said[1]) < 64 * KiB, "not", disk, at, "but", result.err)
            for d in "ab":
                check(before[d] == read_file("%s/%s.img" % (there, d)), "changed", d)
            # Mended, though not with the time it had.
            with open("%s/%s.img" % (there, disk), "r+b") as f:
                f.seek(at)
                f.write(r.now[disk][at:at + 1])
            recover(there)
            if not backlog:
                for d in "ab":
                    check(read_file("%s/%s.img" % (there, d)) == r.now[d], "not what it was:", d)
            shutil.rmtree(there)
    tried("2,6", "images with one wrong byte", TRIES)


def test_server(test):
    """A server does not go on with such an image either; told apart though its time was set back."""
    rng = seeded("test_server")
    r = Replica(test, rng, clean=True)
    disk, at, _ = rng.choice(r.written)
    path = "%s/%s.img" % (r.dir, disk)
    times = os.stat(path)
    spoil(r.dir, disk, at, rng)
    params = ["disk=%s:%s/%s.img" % (n, r.dir, n) for n in "ab"]
    server = Server(test, *params, "journal=" + r.journal, journal=r.journal)
    equal(server.status()["state"], "failed", "state")
    check(path in server.status()["reason"], server.status()["reason"])
    server.stop()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    err = tool("mcbuf-recover", "--verify", r.journal, code=DAMAGE).err
    said = [int(n) for n in re.findall(r"/%s\.img: damage at offset (\d+)" % disk, err)]
    check(any(0 <= at - n < 64 * KiB for n in said), "--verify relies on times: not", disk, at, "but", err)


def test_file_itself(test):
    """Gone, cut short, damaged, of before, or of another replica: knowledge is lost, never the replica."""
    rng = seeded("test_file_itself")
    r = Replica(test, rng, clean=False)
    other = Replica(test, rng, clean=True)
    sums = read_file(r.journal + "/sums")
    check(len(sums) > 4096, "only", len(sums), "bytes of sums")

    def flipped(n):
        at = rng.randrange(n)
        return sums[:at] + bytes([sums[at] ^ 0x10]) + sums[at + 1:]
    for what in (None, b"", sums[:4096], sums[:5000], flipped(40), flipped(4096), flipped(len(sums)),
                 read_file(other.journal + "/sums"), b"\0" * len(sums), rng.randbytes(len(sums))):
        there = r.copied()
        if what is None:
            os.unlink(there + "/j/sums")
        else:
            write_file(there + "/j/sums", what)
        recover(there, "--verify")
        recover(there)
        for d in "ab":
            check(read_file("%s/%s.img" % (there, d)) == r.now[d], "not what it was:", d)
        shutil.rmtree(there)


def test_older(test):
    """The file of an earlier time is not believed."""
    rng = seeded("test_older")
    path = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, path, "journal=" + test.path("j"), "journal-size=64M", "buffer=16M", "baseline=trusted")
    h = server.connect()
    sums = None
    for _ in range(2):
        for at in range(0, SIZE - MiB, MiB):
            h.pwrite(rng.randbytes(512), at)
        tool("mcbuf-commit", server.journal)
        server.drained()
        sums = sums or read_file(server.journal + "/sums")
    server.kill()
    write_file(server.journal + "/sums", sums)
    tool("mcbuf-recover", server.journal)


def test_older_journal(test):
    """Journal and images of an earlier time are put back, and the file of sums stays."""
    rng = seeded("test_older_journal")
    r = Replica(test, rng, clean=False, backlog=True)
    there = r.copied()
    kept = {n: read_file(os.path.join(there, "j", n)) for n in ("journal", "acked")}
    recover(there)
    for n, content in kept.items():
        write_file(os.path.join(there, "j", n), content)
    for d in "ab":
        write_file("%s/%s.img" % (there, d), r.now[d])
    recover(there)


def test_journal_alone(test):
    """Only journal and mark of an earlier time are put back: the images have been written to since, where no sample is."""
    rng = seeded("test_journal_alone")
    paths = {n: sparse_file(test.path(n + ".img"), SIZE) for n in "ab"}
    server = Server(test, *["disk=%s:%s" % d for d in paths.items()], "journal=" + test.path("j"), "journal-size=64M",
                    "buffer=16M", "baseline=trusted", journal=test.path("j"))
    h = {n: server.connect(n) for n in "ab"}
    for at in range(0, SIZE - MiB, MiB):
        h["a"].pwrite(rng.randbytes(512), at)
    tool("mcbuf-commit", server.journal)
    server.drained()
    kept = {n: read_file(os.path.join(server.journal, n)) for n in ("journal", "acked")}
    was = read_file(paths["a"])
    h["a"].pwrite(b"later" * 100, MiB // 2)
    tool("mcbuf-commit", server.journal)
    server.drained()
    server.kill()
    for n, content in kept.items():
        write_file(os.path.join(server.journal, n), content)
    now = read_file(paths["a"])
    for options in (("--dry-run",), ("--verify",), (), ()):
        err = tool("mcbuf-recover", *options, server.journal, code=DAMAGE).err
        check(paths["a"] in err and "a later time than the journal" in err, err)
    check(read_file(paths["a"]) == now, "refused, and the image was changed")
    # The image, too; b has not been written to, and need not be.
    write_file(paths["a"], was)
    tool("mcbuf-recover", server.journal)
    check(read_file(paths["a"]) == was, "not what it was")


def test_interrupted(test):
    """Recovery that fails half way over blocks that are known, and is run again."""
    rng = seeded("test_interrupted")
    path = sparse_file(test.path("disk.img"), SIZE)
    params = (path, "journal=" + test.path("j"), "journal-size=128M", "buffer=16M", "baseline=trusted")
    server = Server(test, *params)
    h = server.connect()
    places = [rng.randrange(SIZE // BLOCK) * BLOCK for _ in range(4000)]
    want = bytearray(SIZE)

    def put(n):
        for at in rng.sample(places, n):
            data = rng.randbytes(BLOCK)
            h.pwrite(data, at)
            want[at:at + BLOCK] = data
    put(4000)
    server.commit()
    server.drained()
    h.shutdown()
    server.stop()
    server = Server(test, *params, "history=1000")
    h = server.connect()
    for _ in range(8):
        put(300)
        server.commit()
    server.kill()
    faults = Faults(test)
    for half in (SIZE // 4, SIZE // 2, SIZE * 3 // 4):
        faults.fail("pwrite", "disk.img", span=(half, SIZE))
        tool("mcbuf-recover", server.journal, code=PARTIAL, env=faults.env, preload=faults.preload)
        faults.heal("pwrite")
    faults.fail("fdatasync", "disk.img")
    tool("mcbuf-recover", server.journal, code=PARTIAL, env=faults.env, preload=faults.preload)
    faults.heal("fdatasync")
    tool("mcbuf-recover", server.journal)
    check(read_file(path) == bytes(want), "not what was committed")


main(globals())
