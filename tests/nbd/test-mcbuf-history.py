#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""History and views: older checkpoints are recovered to and looked at, and yield when room is short."""

import errno
import os
import struct
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, REFUSED, Control, Server, StartError, check, done, equal, main, nbd, poll, read_file,
                      same, seeded, sparse_file, tool)

SIZE = 4 * MiB


class Replica:
    """A server, the content of its disk now and at each checkpoint."""

    def __init__(self, test, *params, names=("",), size=SIZE, journal_size="64M"):
        self.rng = seeded(test.name)
        self.names, self.size = names, size
        self.images = [sparse_file(test.path("r%d.img" % i), size) for i in range(len(names))]
        disks = ["disk=%s:%s" % (n, p) if n else p for n, p in zip(names, self.images)]
        self.server = Server(test, *disks, "journal=" + test.path("j"), "baseline=trusted",
                             "journal-size=" + journal_size, "buffer=8M", *params)
        self.now = [bytearray(size) for _ in names]
        self.at = {0: [bytes(size) for _ in names]}
        self.connect()

    def connect(self):
        self.inlets = [self.server.connect(n) for n in self.names]

    def write(self, n=10, length=None):
        for _ in range(n):
            d = self.rng.randrange(len(self.names))
            count = length or self.rng.choice((1, 512, 4096, 5000, 65536))
            offset = self.rng.randrange(self.size - count + 1)
            data = self.rng.randbytes(count)
            if self.rng.random() < 0.15:
                data = bytes(count)
                self.inlets[d].zero(count, offset)
            else:
                self.inlets[d].pwrite(data, offset)
            self.now[d][offset:offset + count] = data

    def commit(self, label=None):
        n = self.server.commit(label=label)["checkpoint"]
        self.at[n] = [bytes(c) for c in self.now]
        return n

    def listed(self):
        return [c["checkpoint"] if "checkpoint" in c else c["id"]
                for c in self.server.ask("list")["checkpoints"]]

    def look(self, what, disk=0):
        return self.server.connect("%s@%s" % (self.names[disk], what))

    def look_if_there(self, n):
        """A view of what was listed; None if write-out has gone past it meanwhile."""
        try:
            return self.look(n)
        except nbd.Error:
            poll("checkpoint %d, that cannot be looked at, to leave the list" % n,
                 lambda: n not in self.listed())
            return None

    def check_all_views(self):
        seen = 0
        for n in self.listed():
            h = self.look_if_there(n)
            if h:
                self.check_view(h, n)
                seen += 1
        check(seen > 0, "no checkpoint can be looked at")

    def check_view(self, h, n, disk=0):
        same(h.pread(self.size, 0), self.at[n][disk], "view of checkpoint", n)


def refused(what, fn, *errors):
    try:
        fn()
    except nbd.Error as e:
        check(not errors or e.errnum in errors, what, "failed with", e)
        return
    check(False, what, "was not refused")


def test_count(test):
    """history=N: the last N can be looked at and recovered to."""
    r = Replica(test, "history=5")
    for i in range(30):
        r.write(4)
        r.commit(label="cp%d" % i)
        listed = r.listed()
        equal(listed, sorted(listed), "the list")
        equal(listed[-1], max(r.at), "newest")
        check(len(listed) >= min(6, len(r.at)), "too little history:", listed)
    poll("old checkpoints to go", lambda: len(r.listed()) <= 8)
    r.check_all_views()
    s = r.server.status()["history"]
    equal((s["wanted_checkpoints"], s["yields"]), (5, False), "status")
    check(s["checkpoints"] >= 6 and s["oldest"] in r.listed(), "status:", s)
    gone = min(r.listed()) - 1
    refused("a checkpoint that is gone", lambda: r.look(gone))
    to = r.listed()[-5]
    r.server.kill()
    equal(tool("mcbuf-recover", "--to", to, "--json", r.server.journal).json["checkpoint"], to, "to")
    same(read_file(r.images[0]), r.at[to][0], "the image")
    tool("mcbuf-recover", "--to", to + 1, r.server.journal, code=REFUSED)


def test_time(test):
    """history=TIME: what is older than that goes."""
    r = Replica(test, "history=1h")
    for _ in range(20):
        r.write(2)
        r.commit()
    equal(r.listed(), sorted(r.at), "an hour keeps them all")
    r.inlets[0].shutdown()
    r.server.stop()
    r.server.params = ["history=2s" if p == "history=1h" else p for p in r.server.params]
    r.server.start()
    r.connect()
    r.write(1)
    last = r.commit()
    poll("two seconds to pass", lambda: r.listed() == [last] or
         (len(r.listed()) < 5 and r.server.status()["written_out"] > 10))


def test_bad_values(test):
    """One clear line."""
    for value in ("", "x", "-1", "1.5", "10w", "h", "5 h", "99999999999999999999", "4000000000d"):
        try:
            Server(test, sparse_file(test.unique("i"), MiB), "history=" + value)
        except StartError as e:
            check("history=" in str(e) and len(str(e).splitlines()) == 1, "it said:", e)
        else:
            check(False, "history=%s was taken" % value)


def test_view_is_frozen(test):
    """An open view stays as it is, while replication runs and write-out goes on below it."""
    r = Replica(test, names=("vda", "vdb"))
    r.write(30)
    first = r.commit()
    views = [(first, d, r.look("latest", d)) for d in range(2)]
    for i in range(12):
        r.write(20)
        n = r.commit()
        if i % 4 == 0:
            views += [(n, d, r.look("latest" if i else n, d)) for d in range(2)]
        for at, d, h in views:
            r.check_view(h, at, d)
        check(r.server.status()["written_out"] <= first, "write-out went past an open view")
    r.write(5)
    for at, d, h in views:
        r.check_view(h, at, d)
    equal(r.server.status()["views"], len(views), "views in status")
    while views:
        at, d, h = views.pop(0)
        h.shutdown()
        held = views[0][0] if views else max(r.at)
        if views and views[0][0] != at:
            poll("write-out to go on to the next view",
                 lambda held=held: r.server.status()["written_out"] == held)
        for at, d, h in views:
            r.check_view(h, at, d)
    r.server.drained()


def test_view_is_the_one(test):
    """vda@N while N+1 is committed: N or nothing."""
    r = Replica(test, "history=1000", size=1 * MiB)
    ended, newest = threading.Event(), [0]

    def commits():
        with Control(r.server.journal) as control:
            while not ended.is_set():
                r.inlets[0].pwrite(struct.pack("<Q", newest[0] + 1) * 512, 0)
                newest[0] = done(control.ask("commit"))["checkpoint"]
    thread = threading.Thread(target=commits)
    thread.start()
    try:
        poll("a checkpoint", lambda: newest[0] > 0)
        until, opened = time.monotonic() + 5, 0
        while time.monotonic() < until and newest[0] < 900:
            n = newest[0]
            h = r.look(n)
            equal(struct.unpack("<Q", h.pread(8, 0))[0], n, "the content of view", n)
            h.shutdown()
            opened += 1
        check(opened > 10, opened, "views")
    finally:
        ended.set()
        thread.join()


def test_view_properties(test):
    """Read-only, sized, listed, with holes; old names are refused."""
    r = Replica(test, "history=10", names=("vda", "vdb"))
    r.write(3)
    n = r.commit()
    h = r.look("latest")
    equal(h.get_size(), SIZE, "size")
    check(h.is_read_only(), "not read-only")
    # Another connection to it may find a newer one: nobody may read from both as from one disk.
    check(not h.can_multi_conn(), "many connections are offered to what each sees differently")
    check(r.look(n).can_multi_conn(), "many connections are not offered to one checkpoint")
    refused("a write", lambda: h.pwrite(b"x", 0), errno.EPERM, errno.EROFS, errno.EINVAL)
    r.check_view(h, n)
    names = []
    lister = nbd.NBD()
    lister.set_opt_mode(True)
    lister.connect_unix(r.server.sock)
    lister.opt_list(lambda name, what: names.append(name))
    lister.opt_abort()
    for name in ("vda@latest", "vdb@latest", "vda@%d" % n, "vda@0", "vdb@%d" % n):
        check(name in names, name, "is not listed:", names)
    extents = []
    g = r.server.connect("vda@0", block_status=True)
    g.block_status(SIZE, 0, lambda context, offset, e, err: extents.extend(e))
    equal(extents, [SIZE, 3], "the extents of an empty disk")
    for name in ("vda@%d" % (n + 1), "vda@00", "vda@", "vda@-1", "vdc@latest", "@latest",
                 "vda@latest2", "vda@18446744073709551615", "vda@99999999999999999999"):
        refused(name, lambda name=name: r.server.connect(name))


def test_short_journal(test):
    """Protection goes first: history yields and says so, and nothing is refused."""
    r = Replica(test, "history=1000", journal_size="16M")
    for _ in range(60):
        r.write(3, length=256 * KiB)
        r.commit()
        r.check_view(r.look("latest"), max(r.at))
    check("history yields" in r.server.said(), "it did not say so:", r.server.said())
    s = r.server.status()
    check(s["history"]["yields"] and "history yields" in s["reason"], "status does not say so:", s)
    check(len(r.listed()) < 40, "60 checkpoints of 768 KiB do not fit")
    r.check_all_views()
    r.write(1)
    r.server.kill()
    tool("mcbuf-recover", r.server.journal)
    same(read_file(r.images[0]), r.at[max(r.at)][0], "the image")


def test_revoked(test):
    """A view that holds write-out for too long is revoked, and reads EIO ever after."""
    r = Replica(test, journal_size="16M")
    r.write(10)
    n = r.commit()
    h = r.look("latest")
    r.check_view(h, n)
    for _ in range(60):
        r.write(3, length=256 * KiB)
        r.commit()
    refused("a revoked view", lambda: h.pread(512, 0), errno.EIO)
    check("checkpoint %d is revoked" % n in r.server.said(), "it said:", r.server.said())
    r.check_view(r.look("latest"), max(r.at))
    h.shutdown()
    r.server.drained()
    same(read_file(r.images[0]), r.at[max(r.at)][0], "the image")


def promote_ends_views(test, to):
    """After a promote no view is left and none is opened."""
    r = Replica(test, "history=100")
    for _ in range(6):
        r.write(5)
        r.commit()
    h = r.look(3)
    r.check_view(h, 3)
    r.write(5)
    equal(r.server.ask("promote to=%d" % to)["checkpoint"], to, "promoted to")
    refused("an old view", lambda: h.pread(512, 0), errno.EIO)
    refused("a new view", lambda: r.look("latest"))
    same(r.server.connect("@promoted").pread(SIZE, 0), r.at[to][0], "the promoted disk")
    poll("the backlog to drain", lambda: r.server.status().get("drained"))
    same(read_file(r.images[0]), r.at[to][0], "the image")


def test_promote_to_newest(test):
    """The newest checkpoint becomes the disk."""
    promote_ends_views(test, 6)


def test_promote_to_older(test):
    """An older checkpoint becomes the disk."""
    promote_ends_views(test, 4)


def test_random(test):
    """Writes, commits, seals, views, resyncs, restarts and kills; every view equals its checkpoint."""
    r = Replica(test, "history=12", size=MiB, journal_size="32M")
    views = []
    for _ in range(400):
        what = r.rng.random()
        if what < 0.45:
            r.write(5)
        elif what < 0.7:
            r.commit()
        elif what < 0.75:
            r.server.seal()
        elif what < 0.85 and len(views) < 12:
            n = r.rng.choice(r.listed())
            h = r.look_if_there(n)
            if h:
                views.append((n, h))
        elif what < 0.93 and views:
            views.pop(r.rng.randrange(len(views)))[1].shutdown()
        elif what < 0.95:
            r.server.ask("resync")
            r.now = [bytearray(c) for c in r.at[max(r.at)]]
        elif what < 0.98:
            before = r.listed()
            for _, h in views:
                h.shutdown()
            views = []
            if r.rng.random() < 0.5:
                r.inlets[0].shutdown()
                r.server.stop()
            else:
                r.server.kill()
            r.server.start()
            r.connect()
            after = r.listed()
            equal(after[-1], before[-1], "newest after the restart")
            check(len(after) >= min(len(before), 13), "history was lost:", before, after)
        for n, h in views:
            r.check_view(h, n)
        same(r.inlets[0].pread(r.size, 0), r.now[0], "the inlet")
    r.check_all_views()


main(globals())
