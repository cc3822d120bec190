#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk so slow that a call to it does not return until the test lets it: nothing else waits for it."""

import os
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, NO_CHECKPOINT, Control, Faults, Server, check, done, equal, main,
                      nbd_errno, poll, read_all, read_file, refused, same, sparse_file, tool)

SIZE = 2 * MiB
IMAGE = "disk.img"
JOURNAL = "/journal"


def replica(test, *params, size="16M"):
    faults = Faults(test)
    server = Server(test, sparse_file(test.path(IMAGE), SIZE), "journal-size=" + size, "buffer=8M",
                    *params, env=faults.env, preload=faults.preload)
    return server, faults


class Later:
    """FUNCTION runs; its result comes later."""

    def __init__(self, function, *args):
        self.result = None
        self.error = None

        def work():
            try:
                self.result = function(*args)
            except Exception as error:  # pylint: disable=broad-except
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def is_over(self):
        return not self.thread.is_alive()

    def get(self, what):
        poll(what, self.is_over)
        if self.error is not None:
            raise self.error
        return self.result


def hold(faults, call, where):
    """Returns what tells whether a call is held by now."""
    before = faults.happened()
    faults.hold(call, where)
    return lambda: faults.happened() > before


def answers(server, state):
    """Status, by each way; and the catalog does not hold it up either."""
    equal(server.status()["state"], state, "state")
    equal(tool("mcbuf-status", "--json", server.journal).json["state"], state, "state")
    equal(tool("mcbuf-status", "--json", server.uri()).json["state"], state, "state")
    check("checkpoints" in server.ask("list"), "no list")


def test_writeout(test):
    """A write to the image, or its sync, hangs: writes, reads, seals, commits, resync and promote do not wait."""
    for call in ("pwrite", "fdatasync"):
        server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"))
        h = server.connect()
        is_held = hold(faults, call, IMAGE)
        h.pwrite(b"1" * 8192, 0)
        server.commit()
        poll("write-out to hang", is_held)
        for i in range(20):
            h.pwrite(b"%c" % (97 + i) * 8192, 4096)
            server.seal()
            equal(server.commit()["checkpoint"], 3 + 2 * i, "commit")
        answers(server, "protected")
        h.pwrite(b"n" * 8192, 0)
        done(server.ask("resync"))
        h.pwrite(b"m" * 8192, 0)
        last = server.commit()["checkpoint"]
        answers(server, "protected")
        equal(done(server.ask("promote"))["checkpoint"], last, "promote")
        p = server.connect("@promoted")
        equal(bytes(p.pread(16384, 0)), b"m" * 8192 + b"t" * 4096 + bytes(4096), "the promoted disk")
        p.pwrite(b"p" * 4096, 0)
        p.flush()
        answers(server, "promoted")
        faults.heal_all()
        poll("the drain", lambda: server.status()["drained"])
        same(read_file(test.path(IMAGE)), b"p" * 4096 + b"m" * 4096 + b"t" * 4096 +
             bytes(SIZE - 12288), "image")
        p.shutdown()
        h.shutdown()
        server.stop()
        sparse_file(test.path(IMAGE), SIZE)


def test_read(test):
    """A read of the image hangs, half of whose bytes come from the buffers: commits, resync and promote do not wait."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pwrite", IMAGE)
    h.pwrite(b"1" * 4096, 0)
    server.commit()
    views = [server.connect(), server.connect("@latest"), server.connect("@scratch")]
    is_held = hold(faults, "pread", IMAGE)
    reads = [Later(v.pread, 8192, 0) for v in views]
    poll("a read to hang", is_held)
    h.pwrite(b"2" * 4096, 0)
    equal(Later(server.commit).get("a commit")["checkpoint"], 2, "commit")
    done(Later(server.ask, "resync").get("resync"))
    h.pwrite(b"3" * 4096, 0)
    last = Later(server.commit).get("the commit that ends it")["checkpoint"]
    scratch = Later(server.ask, "promote scratch")
    poll("promote scratch to give up", scratch.is_over)
    refused(scratch.get("promote scratch"), 2, "scratch")
    equal(done(Later(server.ask, "promote").get("promote"))["checkpoint"], last, "promote")
    check(not any(r.is_over() for r in reads), "a read was over, so that nothing was held")
    answers(server, "promoted")
    faults.heal_all()
    for r in reads:
        poll("the reads", r.is_over)
    poll("the drain", lambda: server.status()["drained"])
    same(read_file(test.path(IMAGE)), b"3" * 4096 + bytes(SIZE - 4096), "image")
    for v in views:
        v.shutdown()
    h.shutdown()
    server.stop()


def test_older_and_overwrite(test):
    """What has to wait for the image gives up after a while, and meanwhile status answers."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pwrite", IMAGE)
    h.pwrite(b"1" * 8192, 0)
    older = server.commit()["checkpoint"]
    poll("write-out to pause", lambda: server.status()["writeout"]["error"])
    h.pwrite(b"2" * 8192, 0)
    server.commit()
    poll("write-out to hang", hold(faults, "pwrite", IMAGE))
    promote = Later(server.ask, "promote to=%d" % older)
    overwrite = Later(server.ask, "resync overwrite")
    commit = Later(server.ask, "commit")
    answers(server, "protected")
    poll("one of them to give up", lambda: server.status()["state"] == "protected"
         and (promote.is_over() or overwrite.is_over()))
    refused(promote.get("promote") if promote.is_over() else overwrite.get("overwrite"), 2,
            "protected", "does not come to an end" if promote.is_over() else "do not come to an end")
    done(commit.get("the commit") if commit.is_over() else {})
    faults.heal_all()
    poll("all of them", lambda: promote.is_over() and overwrite.is_over() and commit.is_over())
    check(server.status()["state"] in ("protected", "syncing", "promoted"), server.status())


def test_stop(test):
    """shutdown is answered while the image hangs, and is carried out when it does not any more."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    is_held = hold(faults, "pwrite", IMAGE)
    server.commit()
    h.pwrite(b"2" * 8192, 0)
    h.shutdown()
    poll("write-out to hang", is_held)
    done(server.ask("shutdown"))
    faults.heal_all()
    server.wait_end()
    server.start()
    equal(server.status()["state"], "protected", "state")
    equal(read_all(server.connect())[:8192], b"2" * 8192, "speculation")
    server.drained()
    equal(read_file(test.path(IMAGE))[:8192], b"1" * 8192, "image")


def test_kill(test):
    """Killed while the image hangs: recovery has it all in the journal."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    is_held = hold(faults, "fdatasync", IMAGE)
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    poll("write-out to hang", is_held)
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
    equal(read_file(test.path(IMAGE))[:8192], b"1" * 8192, "image")


def test_commit(test):
    """A commit whose sync hangs: writes, reads, seals and status go on; the next commit waits its turn."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    server.commit()
    server.drained()
    h.pwrite(b"2" * 8192, 0)
    is_held = hold(faults, "fdatasync", JOURNAL)
    first = Later(server.ask, "commit")
    poll("the commit to hang", is_held)
    for i in range(50):
        h.pwrite(b"%c" % (65 + i % 26) * 4096, 4096 * (2 + i))
        sealed = server.seal()
    equal(bytes(h.pread(8192, 0)), b"2" * 8192, "the inlet")
    equal(nbd_errno(h.flush), 0, "errno of a flush")
    second = Later(server.ask, "commit epoch=%d" % sealed)
    answers(server, "protected")
    # The control export too, each on a connection of its own.
    check(not first.is_over() and not second.is_over(), "a commit without a sync")
    equal(server.status()["checkpoint"]["id"], 1, "checkpoint")
    faults.heal_all()
    equal(done(first.get("the first commit"))["checkpoint"], 2, "the first commit")
    equal(done(second.get("the second commit"))["checkpoint"], sealed, "the second commit")
    want = read_all(h)
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path(IMAGE)), want, "image")


def test_pushing(test):
    """The journal takes no data: writes go on until the buffer is full, then wait; none fails."""
    server, faults = replica(test, "baseline=trusted", size="64M")
    h = server.connect()
    h.pwrite(b"1" * 512, 0)
    is_held = hold(faults, "pwrite", JOURNAL)

    def write():
        for i in range(24):
            h.pwrite(b"%c" % (65 + i) * MiB, i % 2 * MiB)

    writer = Later(write)
    poll("the journal to hang", is_held)
    poll("the buffer to be full", lambda: server.status()["buffer"]["used"] >= 6 * MiB)
    answers(server, "protected")
    with Control(server.journal) as control:
        done(control.ask("status"))
    faults.heal_all()
    writer.get("the writer")
    server.commit()
    server.drained()
    same(read_file(test.path(IMAGE)), b"W" * MiB + b"X" * MiB, "image")


def test_first_copy(test):
    """In the first copy a write hangs: others, a seal and status do not; the commit waits for it."""
    server, faults = replica(test)
    h, other = server.connect(), server.connect()
    h.pwrite(b"1" * SIZE, 0)
    faults.rules("pwrite", "hold %s 0 4096" % IMAGE)
    before = faults.happened()
    write = Later(h.pwrite, b"2" * 4096, 0)
    poll("the write to hang", lambda: faults.happened() > before)
    other.pwrite(b"3" * 4096, 8192)
    equal(bytes(other.pread(4096, 8192)), b"3" * 4096, "the inlet")
    epoch = server.seal()
    other.pwrite(b"4" * 4096, 16384)
    commit = Later(server.ask, "commit epoch=%d" % epoch)
    answers(server, "syncing")
    check(not commit.is_over() and not write.is_over(), "over too early")
    faults.heal_all()
    write.get("the write")
    equal(done(commit.get("the commit"))["checkpoint"], epoch, "commit")
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path(IMAGE)), b"2" * 4096 + b"1" * 4096 + b"3" * 4096 +
         b"1" * (SIZE - 12288), "image")


def test_first_copy_sync(test):
    """The sync that ends the first copy hangs: only commits wait for it."""
    server, faults = replica(test)
    h, other = server.connect(), server.connect()
    h.pwrite(b"1" * SIZE, 0)
    is_held = hold(faults, "fdatasync", IMAGE)
    commit = Later(server.ask, "commit")
    poll("the sync to hang", is_held)
    other.pwrite(b"2" * 4096, 4096)
    equal(bytes(h.pread(8192, 0)), b"1" * 4096 + b"2" * 4096, "the inlet")
    equal(nbd_errno(h.flush), 0, "errno of a flush")
    sealed = server.seal()
    second = Later(server.ask, "commit epoch=%d" % sealed)
    third = Later(server.ask, "commit")
    refused(Later(server.ask, "promote").get("promote"), NO_CHECKPOINT, "syncing", "no checkpoint")
    answers(server, "syncing")
    overwrite = Later(server.ask, "resync overwrite")
    answers(server, "syncing")
    refused(overwrite.get("resync overwrite"), 2, "syncing", "do not come to an end")
    h.pwrite(b"3" * 4096, 0)
    refused(Later(server.ask, "promote").get("promote"), NO_CHECKPOINT, "no checkpoint")
    check(not (commit.is_over() or second.is_over() or third.is_over()), "a commit without the sync")
    done(Later(server.ask, "shutdown").get("shutdown"))
    faults.heal_all()
    first = done(commit.get("the first commit"))["checkpoint"]
    for later in second, third:
        reply = later.get("a later commit")
        check("error" in reply or reply["checkpoint"] > first, "a later commit", reply)
    h.shutdown()
    other.shutdown()
    server.wait_end()
    server.start()
    equal(server.status()["state"], "protected", "state")
    server.commit()
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path(IMAGE)), b"3" * 4096 + b"2" * 4096 + b"1" * (SIZE - 8192), "image")


def test_first_copy_sync_fails(test):
    """It hangs, then fails: the copy has a hole, and no commit takes that for success."""
    server, faults = replica(test)
    h = server.connect()
    h.pwrite(b"1" * SIZE, 0)
    is_held = hold(faults, "fdatasync", IMAGE)
    commits = [Later(server.ask, "commit") for _ in range(3)]
    poll("the sync to hang", is_held)
    overwrite = Later(server.ask, "resync overwrite")
    answers(server, "syncing")
    faults.fail("fdatasync", IMAGE)
    for commit in commits:
        refused(commit.get("a commit"), 2)
    poll("resync overwrite to be over", overwrite.is_over)
    faults.heal_all()
    reply = overwrite.get("resync overwrite")
    if "error" in reply:
        equal(server.status()["state"], "stale", "state")
        done(server.ask("resync overwrite"))
    equal(server.status()["state"], "syncing", "state")
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    h = server.connect()
    h.pwrite(b"2" * SIZE, 0)
    server.commit()
    h.shutdown()
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path(IMAGE)), b"2" * SIZE, "image")


def test_joined_sync(test):
    """That of a disk that has joined: promote does not wait, and what comes of the sync then is nothing to it."""
    faults = Faults(test)
    disks = ["disk=%s:%s" % (n, sparse_file(test.path(n + ".img"), SIZE)) for n in ("vda", "vdb")]
    params = ["journal=" + test.path("j"), "journal-size=16M", "buffer=8M"]
    server = Server(test, disks[0], *params, "baseline=trusted")
    h = server.connect("vda")
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    h.shutdown()
    server.stop()
    server = Server(test, *disks, *params, "add-disk=vdb", env=faults.env, preload=faults.preload)
    h = server.connect("vdb")
    h.pwrite(b"2" * SIZE, 0)
    is_held = hold(faults, "fdatasync", "vdb.img")
    commit = Later(server.ask, "commit")
    poll("the sync to hang", is_held)
    answers(server, "resyncing")
    equal(done(Later(server.ask, "promote").get("promote"))["checkpoint"], last, "promote")
    faults.fail("fdatasync", "vdb.img")
    refused(commit.get("the commit"), 2, "promoted")
    equal(server.status()["state"], "promoted", "state")
    p = server.connect("vda@promoted")
    equal(bytes(p.pread(8192, 0)), b"1" * 8192, "the promoted disk")
    p.pwrite(b"3" * 4096, 0)
    p.flush()
    done(server.ask("divergence disk=vda"))
    poll("the drain", lambda: server.status()["drained"])
    equal(read_file(test.path("vda.img"))[:8192], b"3" * 4096 + b"1" * 4096, "image")
    p.shutdown()
    h.shutdown()
    faults.heal_all()
    server.stop()


main(globals())
