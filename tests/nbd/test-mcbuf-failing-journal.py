#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A journal that fails: for a while, on one range, in each state; then what the next server makes of it."""

import errno
import glob
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, NO_CHECKPOINT, USAGE, MiB, Faults, Server, StartError, check, done, equal,
                      main, nbd_errno, poll, read_all, read_file, refused, same, sparse_file, tool)

SIZE = 2 * MiB
IMAGE = "disk.img"
JOURNAL = "/journal"


def replica(test, *params, size="16M"):
    faults = Faults(test)
    server = Server(test, sparse_file(test.path(IMAGE), SIZE), "journal-size=" + size, "buffer=8M",
                    *params, env=faults.env, preload=faults.preload)
    return server, faults


def zero_filled(server):
    """Zero-filling is over: no write to the journal but those that are asked for."""
    path = os.path.join(server.journal, "journal")
    size = os.path.getsize(path)
    poll("zero-filling", lambda: os.stat(path).st_blocks * 512 >= size and is_quiet(path))


def is_quiet(path):
    before = os.stat(path).st_mtime_ns
    poll("time to pass", lambda: os.stat(path).st_mtime_ns == before)
    return True


def has_failed(server, checkpoint):
    """The row of failed, also after the cause is gone."""
    s = poll("the failure", lambda: server.status()["state"] == "failed" and server.status())
    check("stop the server" in s["reason"] and "mcbuf-recover" in s["reason"], s["reason"])
    equal(s["checkpoint"] and s["checkpoint"]["id"], checkpoint, "checkpoint")
    h = server.connect()
    for call, args in ((h.pwrite, (b"x" * 512, 0)), (h.zero, (512, 0)), (h.trim, (512, 0)),
                       (h.flush, ()), (h.pread, (512, 0))):
        equal(nbd_errno(call, *args), errno.EIO, call.__name__)
    h.shutdown()
    refused(server.ask("commit"), 2, "failed")
    refused(server.ask("seal"), 2, "failed")
    refused(server.ask("resync"), 2, "failed", "resync overwrite")
    if checkpoint is not None:
        refused(server.ask("promote"), 2, "failed", "stop the server", "mcbuf-recover")
    check("nothing is acknowledged any more" in server.said(), server.said())


def leads_back(test, server, verb):
    """VERB and a new copy make it protected again."""
    refused(server.ask("commit"), 2, "stale", verb)
    done(server.ask(verb))
    h = server.connect()
    h.pwrite(b"n" * SIZE, 0)
    server.commit()
    equal(server.status()["state"], "protected", "state")
    server.drained()
    same(read_file(test.path(IMAGE)), b"n" * SIZE, "image")


def test_commit(test):
    """A commit that meets an error: not acknowledged; failed until a restart, then stale; resync leads back."""
    for call, err in (("fdatasync", errno.EIO), ("fdatasync", errno.ENOSPC), ("pwrite", errno.EIO),
                      ("pwrite", errno.ENOSPC)):
        for end in ("stop", "kill"):
            server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"))
            h = server.connect()
            h.pwrite(b"1" * 8192, 0)
            last = server.commit()["checkpoint"]
            server.drained()
            h.pwrite(b"2" * 8192, 0)
            zero_filled(server)
            faults.fail(call, JOURNAL, err=err)
            reply = refused(server.ask("commit"), 2, "not acknowledged", os.strerror(err))
            check(server.journal in reply["error"], reply)
            faults.heal_all()
            has_failed(server, last)
            h.shutdown()
            getattr(server, end)()
            server.start()
            s = server.status()
            equal((s["state"], s["checkpoint"]["id"]), ("stale", last), "after the restart", s)
            check("journal had failed" in s["reason"], s["reason"])
            same(read_file(test.path(IMAGE))[:8192], b"1" * 8192, "image")
            leads_back(test, server, "resync")
            server.stop()
            equal(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), [], "left in /dev/shm")


def test_overwrite(test):
    """resync overwrite leads out of failed without a restart, if the device takes it: not before."""
    for call, err in (("fdatasync", errno.EIO), ("pwrite", errno.EIO), ("pwrite", errno.ENOSPC)):
        for end in ("stop", "kill"):
            server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"))
            old = server.connect()
            old.pwrite(b"1" * 8192, 0)
            last = server.commit()["checkpoint"]
            server.drained()
            old.pwrite(b"2" * 8192, 0)
            zero_filled(server)
            faults.fail(call, JOURNAL, err=err)
            refused(server.ask("commit"), 2, "not acknowledged")
            for where in ((JOURNAL,), ("/acked",), (JOURNAL, "/acked")):
                faults.fail(call, *where, err=err)
                refused(server.ask("resync overwrite"), 2, "failed", server.journal, "mend the device")
                has_failed(server, last)
            faults.heal_all()
            same(read_file(test.path(IMAGE))[:8192], b"1" * 8192, "image")
            equal(done(server.ask("resync overwrite"))["state"], "syncing", "state")
            s = server.status()
            equal((s["state"], s["checkpoint"], s["generation"]), ("syncing", None, 1), "status")
            # Whoever was connected before sends into the hole.
            equal(nbd_errno(old.pwrite, b"3" * 512, 0), errno.ESHUTDOWN, "on the old connection")
            old.shutdown()
            h = server.connect()
            h.pwrite(b"n" * SIZE, 0)
            last = server.commit()["checkpoint"]
            h.pwrite(b"m" * 4096, 4096)
            h.shutdown()
            getattr(server, end)()
            server.start()
            s = server.status()
            equal((s["state"], s["checkpoint"]["id"]), ("protected", last), "status after", end)
            same(read_all(server.connect()), b"n" * 4096 + b"m" * 4096 + b"n" * (SIZE - 8192), "disk")
            server.kill()
            equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
            same(read_file(test.path(IMAGE)), b"n" * SIZE, "image")
            sparse_file(test.path(IMAGE), SIZE)


def test_overwrite_of_drained(test):
    """A drained promoted disk that goes on without its journal becomes a standby again once that is mended."""
    server, faults = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 8192, 0)
    server.commit()
    done(server.ask("promote"))
    poll("the drain", lambda: server.status()["drained"])
    zero_filled(server)
    faults.fail("fdatasync", JOURNAL)
    for _ in range(2):
        refused(server.ask("resync overwrite"), 2, server.journal)
        s = server.status()
        equal((s["state"], s["drained"]), ("promoted", True), "status")
        p = server.connect("@promoted")
        p.pwrite(b"2" * 4096, 4096)
        p.flush()
    faults.heal_all()
    done(server.ask("resync overwrite"))
    h = server.connect("@g2")
    h.pwrite(b"n" * SIZE, 0)
    last = server.commit()["checkpoint"]
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
    same(read_file(test.path(IMAGE)), b"n" * SIZE, "image")


def test_note_is_lost_too(test):
    """Not even the word of the failure can be left: then shared memory tells, whichever way the server ends."""
    for end in ("stop", "kill"):
        server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"))
        server.connect().pwrite(b"1" * 8192, 0)
        server.commit()
        server.stop()
        server.start()                          # the clean mark is on
        zero_filled(server)
        faults.fail("pwrite", JOURNAL, "/acked")
        h = server.connect()
        equal(nbd_errno(h.pwrite, b"2" * 8192, 0), errno.EIO, "errno of the write")
        faults.heal_all()
        has_failed(server, 1)
        h.shutdown()
        getattr(server, end)()
        server.start()
        equal(server.status()["state"], "stale", "state after", end)
        leads_back(test, server, "resync")
        server.stop()


def test_first_copy(test):
    """In the first copy: failed, then stale without a checkpoint; resync overwrite leads back."""
    for when in ("the first write", "a seal", "the first commit"):
        server, faults = replica(test, "journal=" + test.unique("j"))
        zero_filled(server)
        h = server.connect()
        if when != "the first write":
            h.pwrite(b"1" * SIZE, 0)
        faults.fail("fdatasync", JOURNAL)
        if when == "the first write":
            equal(nbd_errno(h.pwrite, b"1" * 512, 0), errno.EIO, "errno of the write")
        else:
            refused(server.ask("seal" if when == "a seal" else "commit"), 2)
        faults.heal_all()
        has_failed(server, None)
        refused(server.ask("promote"), 2, "failed")
        server.kill()
        tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
        server.start()
        equal(server.status()["state"], "stale", "state after", when)
        leads_back(test, server, "resync overwrite")
        server.stop()


def test_promoted(test):
    """Promoted: draining needs the journal, and a restart goes on; once drained, the disk does without."""
    server, faults = replica(test, "baseline=trusted")
    faults.fail("pwrite", IMAGE)
    server.connect().pwrite(b"1" * 65536, 0)
    last = server.commit()["checkpoint"]
    poll("write-out to pause", lambda: server.status()["writeout"]["error"])
    done(server.ask("promote"))
    p = server.connect("@promoted")
    p.pwrite(b"2" * 4096, 0)
    p.flush()
    p.pwrite(b"3" * 4096, 4096)
    zero_filled(server)
    faults.fail("fdatasync", JOURNAL)
    equal(nbd_errno(p.flush), errno.EIO, "errno of the flush")
    s = server.status()
    equal(s["state"], "failed", "state")
    equal(nbd_errno(p.pread, 512, 0), errno.EIO, "errno of a read")
    equal(nbd_errno(p.pwrite, b"4" * 512, 0), errno.EIO, "errno of a write")
    faults.heal_all()
    p.shutdown()
    server.stop()
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"], s["generation"]), ("promoted", last, 2), "status")
    p = server.connect("@promoted")
    equal(bytes(p.pread(4096, 0)), b"2" * 4096, "what was flushed")
    poll("the drain", lambda: server.status()["drained"])
    faults.fail("fdatasync", JOURNAL)
    faults.fail("pwrite", JOURNAL)
    p.pwrite(b"5" * 4096, 0)
    p.flush()
    s = server.status()
    equal((s["state"], s["drained"]), ("promoted", True), "drained, with a journal that is gone")
    faults.heal_all()
    p.shutdown()
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
    same(read_file(test.path(IMAGE)),
         b"5" * 4096 + b"1" * 61440 + bytes(SIZE - 65536), "image")


def test_overwrite_of_promoted(test):
    """resync overwrite of a promoted disk is refused by a failing journal: it stays the disk, also after a restart."""
    for end in ("kill", "stop"):
        server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"))
        h = server.connect()
        h.pwrite(b"1" * 8192, 0)
        h.shutdown()
        last = server.commit()["checkpoint"]
        done(server.ask("promote"))
        poll("the drain", lambda: server.status()["drained"])
        server.stop()                           # all of it is in the journal
        server.start()
        zero_filled(server)
        faults.fail("fdatasync", JOURNAL)
        refused(server.ask("resync overwrite"), 2, server.journal, os.strerror(errno.EIO))
        faults.heal_all()
        s = server.status()
        equal((s["state"], s["drained"]), ("promoted", True), "status")
        p = server.connect("@promoted")
        p.pwrite(b"2" * 4096, 4096)
        p.flush()
        p.shutdown()
        getattr(server, end)()
        server.start()
        s = server.status()
        equal((s["state"], s["generation"]), ("promoted", 2), "status after", end)
        equal(bytes(server.connect("@promoted").pread(8192, 0)), b"1" * 4096 + b"2" * 4096, "the disk")
        server.kill()
        equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
        equal(read_file(test.path(IMAGE))[:8192], b"1" * 4096 + b"2" * 4096, "image")


def test_promote(test):
    """The promote's own record fails: not promoted; failed, and mcbuf-recover does it without the server."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    server.drained()
    h.pwrite(b"2" * 8192, 0)
    zero_filled(server)
    faults.fail("fdatasync", JOURNAL)
    refused(server.ask("promote"), 2, "failed", server.journal)
    faults.heal_all()
    has_failed(server, last)
    said = tool("mcbuf-recover", server.journal, code=2).err
    check("failed" in said and "stop the server" in said, said)
    h.shutdown()
    server.stop()
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal((answer["checkpoint"], answer["generation"]), (last, 2), "recovered")
    same(read_file(test.path(IMAGE)), b"1" * 8192 + bytes(SIZE - 8192), "image")


def backlog(server, faults):
    """A committed backlog of 64 KiB.

    In chunks of the journal of their own: of each there is too little for write-out to read
    it whole, and keep it.
    """
    faults.fail("pwrite", IMAGE)
    h = server.connect()
    for i in range(4):
        h.pwrite(b"M" * 16384, i * 16384)
        h.pwrite(bytes(MiB), MiB)
    server.commit()
    return h


def read_fails(h):
    """What is committed is read, from the journal as soon as the buffer is used for something else."""
    def fails():
        h.pwrite(b"z" * MiB, MiB)
        return nbd_errno(h.pread, 65536, 0)

    equal(poll("a read of the journal", fails), errno.EIO, "errno of a read")


def overwrite(server, old, new):
    """The device returns something else from now on."""
    path = os.path.join(server.journal, "journal")
    at = read_file(path).find(old)
    check(at > 0, "what was committed is not in the journal")
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(new)
        f.flush()
        os.fsync(f.fileno())


def test_reading(test):
    """A read of the journal fails: failed, without harm to what is committed; a restart goes on from there."""
    for who in ("the inlet", "write-out"):
        server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"), size="128M")
        h = backlog(server, faults)
        before = faults.happened()
        faults.fail("pread", JOURNAL)
        if who == "the inlet":
            read_fails(h)
        else:
            for i in range(24):                 # more than buffer=
                # Write-out tries again now and then: on a slow machine it meets the fault before the last of them.
                code = nbd_errno(h.pwrite, b"%c" % (97 + i) * MiB, MiB)
                if code:
                    equal(code, errno.EIO, "errno of a write")
                    break
            faults.heal("pwrite")
        s = poll("the failure", lambda: server.status()["state"] == "failed" and server.status())
        check(faults.happened() > before, "no read of the journal was failed")
        for word in ("offset", "cannot be read"):
            check(word in s["reason"], "no", word, "in", s["reason"])
        has_failed(server, 1)
        faults.heal_all()
        h.shutdown()
        server.stop()
        server.start()
        s = server.status()
        equal((s["state"], s["checkpoint"]["id"]), ("stale", 1), "status after", who)
        server.drained()
        same(read_file(test.path(IMAGE)), b"M" * 65536 + bytes(SIZE - 65536), "image")
        leads_back(test, server, "resync")
        server.stop()
        sparse_file(test.path(IMAGE), SIZE)


def test_block_that_does_not_verify(test):
    """A block is not what was written, for a while: failed, and SIGKILL does not make it well again."""
    for end in ("kill", "stop"):
        server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"), size="128M")
        h = backlog(server, faults)
        overwrite(server, b"M" * 4096, b"?" * 4096)
        read_fails(h)
        s = server.status()
        equal(s["state"], "failed", "state")
        for word in ("offset", "mcbuf-recover"):
            check(word in s["reason"], "no", word, "in", s["reason"])
        equal(nbd_errno(h.pwrite, b"lost" * 1024, MiB), errno.EIO, "errno of a write")
        overwrite(server, b"?" * 4096, b"M" * 4096)
        h.shutdown()
        getattr(server, end)()
        faults.heal_all()
        server.start()
        # The write that was refused is missing from the speculation.
        s = server.status()
        equal((s["state"], s["checkpoint"]["id"]), ("stale", 1), "after", end)
        leads_back(test, server, "resync")
        server.stop()


def opening(test, call, state):
    """The journal cannot be synced, or read, when it is opened."""
    server, faults = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    server.drained()
    server.connect().pwrite(b"2" * 8192, 0)
    server.kill()
    faults.fail(call, JOURNAL)
    for args in ((), ("--list",), ("--dry-run",), ("--verify",)):
        said = tool("mcbuf-recover", *args, server.journal, code=(1, 4), env=faults.env,
                    preload=faults.preload).err
        check("journal" in said, said)
    try:
        server.start()
        check(False, "it starts with", call, "failing")
    except StartError as error:
        check("journal" in str(error), error)
    faults.heal_all()
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), (state, last), "status")
    if state == "protected":
        equal(read_all(server.connect())[:8192], b"2" * 8192, "speculation")
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal, code=DONE).json["checkpoint"], last, "recovered")
    equal(read_file(test.path(IMAGE))[:8192], b"1" * 8192, "image")


def test_opening_unread(test):
    """One line, exit code, nothing changed."""
    opening(test, "pread", "protected")


def test_opening_unsynced(test):
    """What the last server pushed may be gone, although a later sync says nothing: it is not believed."""
    opening(test, "fdatasync", "stale")


SPANS = ((MiB, 2 * MiB),                # records
         (8 * MiB, 12 * MiB),           # data in the middle
         (12 * MiB, 16 * MiB))          # all that is at the end


def until_it_fails(server, faults, span):
    """Checkpoints while writes to SPAN of the journal fail: {checkpoint: what the disk was}, also the one refused."""
    h = server.connect()
    disks, last = {0: bytes(SIZE)}, 0
    for letter in range(1, 64):
        if letter == 3:
            before = faults.happened()
            faults.fail("pwrite", JOURNAL, span=span)
        data = bytes([letter]) * SIZE
        epoch = server.status()["open_epoch"]
        if nbd_errno(h.pwrite, data, 0):
            break
        disks[epoch] = data
        reply = server.ask("commit")
        if "error" in reply:
            refused(reply, 2, "failed")
            break
        last = reply["checkpoint"]
        equal(last, epoch, "checkpoint")
    check(faults.happened() > before, "no write to", span, "was failed")
    has_failed(server, last)
    h.shutdown()
    return disks, last


def test_one_range(test):
    """Writes to one range of the journal fail, whichever it is: no checkpoint is lost, none is made up."""
    for span in SPANS:
        for way in ("recover", "restart"):
            # The history has the journal used up to its end.
            server, faults = replica(test, "baseline=trusted", "history=100", "journal=" + test.unique("j"))
            zero_filled(server)
            disks, last = until_it_fails(server, faults, span)
            server.kill()
            if way == "recover":
                # It writes to the journal, too: it may be refused, and then changes nothing.
                said = tool("mcbuf-recover", "--json", server.journal, code=(DONE, USAGE), env=faults.env,
                            preload=faults.preload)
                check(said.code == DONE or server.journal in said.err, said)
                faults.heal_all()
                found = tool("mcbuf-recover", "--json", server.journal).json["checkpoint"]
            else:
                faults.heal_all()
                server.start()
                s = server.status()
                found = s["checkpoint"]["id"]
                equal(s["state"], "stale", "state after the restart")
                same(read_all(server.connect("@latest")), disks[found], "the checkpoint")
                done(server.ask("resync"))
                h = server.connect()
                h.pwrite(b"n" * SIZE, 0)
                h.shutdown()
                disks[server.commit()["checkpoint"]] = b"n" * SIZE
                server.kill()
                disks[found] = disks[tool("mcbuf-recover", "--json", server.journal).json["checkpoint"]]
            check(found in (last, last + 1), "checkpoint", found, "after", last)
            same(read_file(test.path(IMAGE)), disks[found], "the image of", span, way)
            sparse_file(test.path(IMAGE), SIZE)


def test_opening_unwritten(test):
    """Writes to the journal fail for good: who only looks is served; a start and a recovery are refused, and lose nothing."""
    for first in ("start", "recover"):
        server, faults = replica(test, "baseline=trusted", "journal=" + test.unique("j"))
        server.connect().pwrite(b"1" * 8192, 0)
        last = server.commit()["checkpoint"]
        server.drained()
        server.connect().pwrite(b"2" * 8192, 0)
        server.kill()
        faults.fail("pwrite", JOURNAL)
        for option in "--list", "--dry-run", "--verify":
            tool("mcbuf-recover", option, server.journal, env=faults.env, preload=faults.preload)
        for _ in range(2):
            said = tool("mcbuf-recover", server.journal, code=USAGE, env=faults.env, preload=faults.preload).err
            check(server.journal + "/journal" in said and os.strerror(errno.EIO) in said, said)
            try:
                server.start()
                check(False, "it starts without writing to its journal")
            except StartError as error:
                check(server.journal + "/journal: cannot write" in str(error), error)
        same(read_file(test.path(IMAGE)), b"1" * 8192 + bytes(SIZE - 8192), "image")
        faults.heal_all()
        if first == "start":
            server.start()
            s = server.status()
            # What was written in part may be whole now: that it was no success is remembered.
            equal((s["state"], s["checkpoint"]["id"]), ("stale", last), "status")
            check("journal had failed" in s["reason"], s["reason"])
            leads_back(test, server, "resync")
            last = server.status()["checkpoint"]["id"]
            server.kill()
        equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
        same(read_file(test.path(IMAGE)), b"n" * SIZE if first == "start" else b"1" * 8192 + bytes(SIZE - 8192),
             "image")
        sparse_file(test.path(IMAGE), SIZE)


main(globals())
