#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Scratch: a checkpoint to write to, apart from the replica; and "promote scratch"."""

import errno
import os
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, Control, Server, check, done, equal, main, nbd, poll, read_file, same,
                      seeded, sparse_file, tool)

SIZE = 3 * MiB + 777


class Replica:
    """A server, and what its disks hold at each checkpoint."""

    def __init__(self, test, *params, names=("",), journal_size="64M"):
        self.rng = seeded(test.name)
        self.names = names
        self.images = [sparse_file(test.path("r%d.img" % i), SIZE) for i in range(len(names))]
        disks = ["disk=%s:%s" % (n, p) if n else p for n, p in zip(names, self.images)]
        self.server = Server(test, *disks, "journal=" + test.path("j"), "baseline=trusted",
                             "journal-size=" + journal_size, "buffer=8M", *params)
        self.now = [bytearray(SIZE) for _ in names]
        self.newest = [bytes(SIZE) for _ in names]
        self.inlets = [self.server.connect(n) for n in names]

    def scribble(self, h, content, n=20, length=None):
        """Random writes and zeroes to H, and to CONTENT."""
        for _ in range(n):
            count = length or self.rng.choice((1, 100, 512, 4096, 5000, 70000))
            offset = self.rng.randrange(SIZE - count + 1)
            if self.rng.random() < 0.1:
                offset = SIZE - count
            if self.rng.random() < 0.5:
                offset -= offset % 512
            kind = self.rng.random()
            if kind < 0.75:
                data = self.rng.randbytes(count)
                h.pwrite(data, offset, nbd.CMD_FLAG_FUA if kind < 0.1 else 0)
            else:
                data = bytes(count)
                (h.trim if kind < 0.85 else h.zero)(count, offset)
            content[offset:offset + count] = data

    def write(self, n=10, length=None):
        for d, h in enumerate(self.inlets):
            self.scribble(h, self.now[d], n, length)

    def commit(self):
        n = self.server.commit()["checkpoint"]
        self.newest = [bytes(c) for c in self.now]
        return n

    def scratch(self, disk=0):
        return self.server.connect(self.names[disk] + "@scratch")

    def unharmed(self):
        """What was written to scratch is nowhere else."""
        for d, name in enumerate(self.names):
            same(self.inlets[d].pread(SIZE, 0), self.now[d], "inlet", d)
            h = self.server.connect(name + "@latest")
            same(h.pread(SIZE, 0), self.newest[d], "latest", d)
            h.shutdown()


def test_apart(test):
    """Reads and writes of any alignment; the replica goes on and never sees them."""
    r = Replica(test)
    r.write(40)
    r.commit()
    h = r.scratch()
    g = r.server.connect("@scratch", block_status=True)
    equal((h.get_size(), h.is_read_only(), h.can_multi_conn()), (SIZE, 0, 0), "size, access, multi-conn")
    content = bytearray(r.newest[0])
    for i in range(15):
        r.scribble(h, content)
        r.write(5)
        if i % 4 == 3:
            r.commit()
        same(h.pread(SIZE, 0), content, "scratch")
        for _ in range(10):
            n = r.rng.randrange(1, 9000)
            at = r.rng.randrange(SIZE - n)
            same(h.pread(n, at), content[at:at + n], "a part of scratch")
        r.unharmed()
    h.flush()
    extents = []
    g.block_status(SIZE, 0, lambda context, offset, e, err: extents.extend(e))
    at = 0
    for length, flags in zip(extents[::2], extents[1::2]):
        if flags & 2:
            equal(bytes(content[at:at + length]), bytes(length), "an extent of zeroes")
        at += length
    equal(at, SIZE, "the extents' sum")
    g.shutdown()
    h.shutdown()
    r.server.drained()
    same(read_file(r.images[0]), r.newest[0], "the image")
    equal(sorted(os.listdir(r.server.journal)),
          sorted(n for n in os.listdir(r.server.journal) if not n.startswith("scratch")), "files left")


def test_life(test):
    """It stays what it was while it is open, and until a later commit; who opens it then has a fresh one."""
    r = Replica(test, names=("vda", "vdb"))
    r.write()
    r.commit()
    h = r.scratch(0)
    content = bytearray(r.newest[0])
    r.scribble(h, content)
    h.shutdown()
    h = r.scratch(0)
    same(h.pread(SIZE, 0), content, "opened again without a later commit")
    old = r.newest
    r.write()
    r.commit()
    same(h.pread(SIZE, 0), content, "open over a commit")
    g = r.scratch(1)
    same(g.pread(SIZE, 0), old[1], "another disk of the same machine")
    h2 = r.scratch(0)
    same(h2.pread(SIZE, 0), r.newest[0], "opened a second time, after a commit")
    same(h.pread(SIZE, 0), content, "the first one")
    h.shutdown()
    h2.shutdown()
    g.shutdown()
    h = r.scratch(0)
    same(h.pread(SIZE, 0), r.newest[0], "opened after a later commit")
    g = r.scratch(1)
    same(g.pread(SIZE, 0), r.newest[1], "the other disk")
    r.unharmed()


def test_reset(test):
    """Reset discards; an open one goes on with the newest checkpoint, as COLO's secondary wants it."""
    r = Replica(test)
    r.write()
    r.commit()
    h = r.scratch()
    for _ in range(5):
        content = bytearray(r.newest[0])
        same(h.pread(SIZE, 0), content, "fresh")
        r.scribble(h, content)
        same(h.pread(SIZE, 0), content, "written to")
        r.write()
        n = r.commit()
        answer = tool("mcbuf-ctl", "--json", r.server.journal, "reset", "@scratch").json
        equal(answer["checkpoint"], n, "reset to")
    h.shutdown()
    h = r.scratch()
    r.scribble(h, bytearray(r.newest[0]))
    h.shutdown()
    tool("mcbuf-ctl", r.server.journal, "reset", "@scratch")
    same(r.scratch().pread(SIZE, 0), r.newest[0], "after a reset while nobody had it open")
    r.server.drained()
    for bad in ("reset", "reset x@scratch", "reset scratch", "reset @latest", "reset @scratch x"):
        equal(r.server.ask(bad)["code"], 1, bad)


def test_revoked(test):
    """When the journal runs short the checkpoint below goes, and reset helps."""
    r = Replica(test, journal_size="16M")
    r.write()
    r.commit()
    h = r.scratch()
    r.scribble(h, bytearray(SIZE))
    for _ in range(40):
        r.write(3, 256 * KiB)
        r.commit()
    try:
        h.pread(SIZE, 0)
    except nbd.Error as e:
        equal(e.errnum, errno.EIO, "errno")
    else:
        check(False, "the checkpoint below a scratch was not given up")
    check("the checkpoint below its scratch was given up" in r.server.said(), r.server.said())
    r.server.ask("reset @scratch")
    same(h.pread(SIZE, 0), r.newest[0], "after the reset")


def test_promote_scratch(test):
    """What was written to scratch becomes the disk, and who has it open keeps it."""
    for how in ("drained", "killed", "recovered"):
        r = Replica(test, "history=100", names=("vda", "vdb")) if how == "drained" else r2(test, how)
        r.write(30)
        r.commit()
        h = [r.scratch(0), r.scratch(1)]
        content = [bytearray(c) for c in r.newest]
        for d in range(2):
            r.scribble(h[d], content[d], 60)
        r.write()                                       # speculation: to be discarded
        answer = r.server.ask("promote scratch")
        equal((answer.get("checkpoint"), answer.get("generation")), (1, 2), "answer", answer)
        for d in range(2):
            same(h[d].pread(SIZE, 0), content[d], "its old connection", d)
            r.scribble(h[d], content[d], 10)
            h[d].flush()
            g = r.server.connect(r.names[d] + "@promoted")
            same(g.pread(SIZE, 0), content[d], "the promoted disk", d)
            r.scribble(g, content[d], 10)
            g.flush()
            same(h[d].pread(SIZE, 0), content[d], "both are one disk", d)
        equal(r.server.ask("promote scratch").get("generation"), 2, "asked again")
        if how == "drained":
            poll("the backlog to drain", lambda r=r: r.server.status().get("drained"))
            r.scribble(h[0], content[0], 10)
            h[0].flush()
        else:
            r.server.kill()
            if how == "recovered":
                tool("mcbuf-recover", r.server.journal)
            else:
                r.server.start()
                poll("the backlog to drain", lambda r=r: r.server.status().get("drained"))
        for d in range(2):
            same(read_file(r.images[d]), content[d], "the image", d)
        if r.server.is_running():
            r.server.kill()


def r2(test, how):
    """Another replica in a folder of its own."""
    os.mkdir(test.path(how))
    sub = type("Sub", (), {"name": test.name, "path": lambda self, n: test.path(how + "/" + n),
                           "unique": test.unique, "spawn": test.spawn, "replicas": test.replicas})()
    return Replica(sub, names=("vda", "vdb"))


def test_promote_scratch_zeroes(test):
    """More zeroes in one piece than a request, or 32 bits, can say."""
    size, mark = 9 << 30, b"before" * 100
    places = (0, (1 << 30) + 5, (4 << 30) - 300, 4 << 30, (5 << 30) + 7, (8 << 30) - 1000, (9 << 30) - len(mark))
    server = Server(test, sparse_file(test.path("big.img"), size), "baseline=trusted",
                    "journal-size=64M", "buffer=8M")
    inlet = server.connect()
    for at in places:
        inlet.pwrite(mark, at)
    server.commit()
    h = server.connect("@scratch")
    for at in range(0, 8 << 30, 1 << 30):
        h.zero(1 << 30, at)
    done(server.ask("promote scratch"))
    promoted = server.connect("@promoted")
    for name, disk in (("scratch", h), ("promoted", promoted)):
        for at in places:
            want = mark if at >= 8 << 30 else bytes(len(mark))
            same(disk.pread(len(mark), at), want, name, "at", at)
    server.kill()


def test_promote_scratch_refused(test):
    """Never over an older checkpoint than the newest; not when there is nothing."""
    r = Replica(test)
    r.write()
    r.commit()
    answer = r.server.ask("promote scratch")
    equal(answer.get("code"), 2, answer)
    h = r.scratch()
    content = bytearray(r.newest[0])
    r.scribble(h, content)
    r.write()
    r.commit()
    answer = r.server.ask("promote scratch")
    equal(answer.get("code"), 2, answer)
    check("checkpoint 1" in answer["error"] and "reset" in answer["error"], answer)
    same(h.pread(SIZE, 0), content, "scratch after the refusal")
    r.unharmed()
    equal(r.server.status()["state"], "protected", "state")
    equal(r.server.ask("promote")["checkpoint"], 2, "promote without it")
    try:
        h.pread(512, 0)
        check(False, "scratch outlived the promote")
    except nbd.Error:
        pass


def test_promote_scratch_killed(test):
    """SIGKILL at any moment of it: the checkpoint, or the checkpoint and all of scratch."""
    seen = set()
    for i in range(14):
        r = r2(test, "k%d" % i)
        r.write(5)
        r.commit()
        h = [r.scratch(0), r.scratch(1)]
        content = [bytearray(c) for c in r.newest]
        for d in range(2):
            r.scribble(h[d], content[d], 150)
        delay = 0.0 if i == 0 else 1.0 if i == 1 else r.rng.random() * 0.03
        answers = []

        def promote(r=r, answers=answers):
            with Control(r.server.journal) as control:
                control.send("promote scratch")
                answers.append(control.receive())
        thread = threading.Thread(target=promote)
        thread.start()
        poll("some time to pass", lambda t=time.monotonic() + delay: time.monotonic() >= t)
        r.server.kill()
        thread.join()
        acknowledged = bool(answers and answers[0])
        if r.rng.random() < 0.5:
            r.server.start()
            if r.server.status()["state"] == "promoted":
                poll("the backlog to drain", lambda r=r: r.server.status().get("drained"))
            r.server.kill()
        tool("mcbuf-recover", r.server.journal)
        got = [read_file(p) for p in r.images]
        if got == [bytes(c) for c in content]:
            seen.add("all")
        else:
            check(not acknowledged, "an acknowledged promote lost what was written to scratch")
            for d in range(2):
                same(got[d], r.newest[d], "a promote that was killed, disk", d)
            seen.add("none")
    equal(seen, {"all", "none"}, "outcomes")


main(globals())
