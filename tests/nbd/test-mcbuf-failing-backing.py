#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A backing image that fails: for a while, for ever, on one range; in each state, and after the repair."""

import errno
import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (DONE, NO_CHECKPOINT, PARTIAL, MiB, Faults, Server, check, done, equal, main,
                      nbd_errno, poll, read_all, read_file, refused, same, sparse_file, tool,
                      tool_path)

SIZE = 2 * MiB
IMAGE = "disk.img"
CAUSES = (("pwrite", errno.EIO), ("pwrite", errno.ENOSPC), ("fdatasync", errno.EIO),
          ("fallocate", errno.ENOSPC), ("fallocate", errno.EIO))


def replica(test, *params):
    faults = Faults(test)
    server = Server(test, sparse_file(test.path(IMAGE), SIZE), "journal-size=16M", "buffer=8M",
                    *params, env=faults.env, preload=faults.preload)
    return server, faults


def image(test):
    return read_file(test.path(IMAGE))


def change(h, now, letter):
    """A write, a zero and a trim; all three calls are needed to write them out."""
    now[0:4096] = letter * 4096
    h.pwrite(letter * 4096, 0)
    now[65536:131072] = letter * 65536
    h.pwrite(letter * 65536, 65536)
    for call, at in ((h.zero, 69632), (h.trim, 77824)):
        call(4096, at)
        now[at:at + 4096] = bytes(4096)


def is_paused(server, err):
    """Write-out is paused; everything else goes on, and says so."""
    s = poll("status to tell", lambda: server.status()["writeout"]["error"] and server.status())
    equal(s["state"], "protected", "state")
    for word in (IMAGE, os.strerror(err)):
        check(word in s["writeout"]["error"], "no", word, "in", s["writeout"])
    check("write-out is paused" in s["reason"], s["reason"])
    shown = tool("mcbuf-status", server.journal)
    check(os.strerror(err) in shown.out and "paused" in shown.out, shown)
    return s


def goes_on(server):
    poll("write-out to go on", lambda: not server.status()["writeout"]["error"])
    server.drained()


def test_for_a_while(test):
    """Each error of each call: commits go on meanwhile; it goes on by itself once that is mended."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    now = bytearray(SIZE)
    for i, (call, err) in enumerate(CAUSES):
        faults.fail(call, IMAGE, err=err)
        change(h, now, b"%d" % i)
        first = server.commit()["checkpoint"]
        check(is_paused(server, err)["written_out"] < first, "written out")
        for _ in range(3):
            change(h, now, b"%c" % (97 + i))
            last = server.commit()["checkpoint"]
        equal(last, first + 3, "commits")
        same(read_all(h), bytes(now), "the inlet")
        faults.heal(call)
        goes_on(server)
        same(image(test), bytes(now), "image after", call, err)
        s = server.status()
        equal((s["state"], s["reason"], s["writeout"]["error"]), ("protected", "", None), "status")
    said = server.said()
    equal(said.count("write-out pauses"), len(CAUSES), "lines of the log:", said)


def test_on_one_range(test):
    """One bad range: the rest of the image does not suffer, reads of it come from the journal."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pwrite", IMAGE, span=(MiB, MiB + 4096))
    now = bytearray(SIZE)
    for at in (0, MiB, MiB + 65536):
        now[at:at + 4096] = b"r" * 4096
        h.pwrite(b"r" * 4096, at)
    server.commit()
    is_paused(server, errno.EIO)
    faults.fail("pread", IMAGE, span=(MiB, MiB + 4096))
    same(read_all(h), bytes(now), "the inlet")
    # Where it was not written, a read tells, and is no hole in the stream.
    faults.fail("pread", IMAGE, span=(MiB + 4096, MiB + 8192))
    equal(nbd_errno(h.pread, 512, MiB + 4096), errno.EIO, "errno of a read")
    equal(nbd_errno(h.pwrite, b"n" * 512, MiB + 8192), 0, "errno of a write elsewhere")
    now[MiB + 8192:MiB + 8704] = b"n" * 512
    server.commit()
    faults.heal_all()
    goes_on(server)
    same(image(test), bytes(now), "image")
    equal(server.status()["state"], "protected", "state")


def test_read_for_a_part_of_a_sector(test):
    """A write that has to read first and cannot is refused: the stream has a hole."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pread", IMAGE)
    equal(nbd_errno(h.pwrite, b"p" * 100, 50), errno.EIO, "errno")
    s = server.status()
    equal(s["state"], "stale", "state")
    faults.heal_all()
    refused(server.ask("commit"), 2, "stale", "resync")
    done(server.ask("resync"))
    server.connect().pwrite(b"p" * SIZE, 0)
    server.commit()
    server.drained()
    same(image(test), b"p" * SIZE, "image")


def test_for_ever(test):
    """It is never mended: commits go on until the journal is full; the last checkpoint goes to another image."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pwrite", IMAGE)
    last = None
    for i in range(100):
        data = b"%c" % (65 + i % 26) * 512 * 1024
        errnum = nbd_errno(h.pwrite, data, i * len(data) % SIZE)
        if errnum:
            break
        reply = server.ask("commit")
        if "error" in reply:
            check("again later" in reply["error"] or "stale" in reply["error"], reply)
            break
        last = reply["checkpoint"], read_all(h)
    check(last and last[0] > 10, "commits ended at", last and last[0])
    equal(errnum, errno.ENOSPC, "errno when the journal is full")
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("stale", last[0]), "status")
    check("resync" in s["reason"], s["reason"])
    # Promoted it can be all the same, and read.
    done(server.ask("promote"))
    same(read_all(server.connect("@promoted")), last[1], "the promoted disk")
    server.kill()
    # Here the image is beyond repair, also for recovery; a copy of it elsewhere is not.
    said = tool("mcbuf-recover", server.journal, env=faults.env, preload=faults.preload,
                code=PARTIAL).err
    check(IMAGE in said and "run it again" in said, said)
    shutil.copy(test.path(IMAGE), test.path("rescued.img"))
    os.unlink(test.path(IMAGE))
    answer = tool("mcbuf-recover", "--json", "--disk=" + ":" + test.path("rescued.img"),
                  server.journal).json
    equal(answer["checkpoint"], last[0], "recovered")
    same(read_file(test.path("rescued.img")), last[1], "the rescued image")


def test_first_copy(test):
    """In the first copy an error is a hole in it: stale, and resync overwrite leads back without a restart."""
    for call, err, got in (("pwrite", errno.ENOSPC, errno.ENOSPC), ("pwrite", errno.EIO, errno.EIO),
                           ("fallocate", errno.EIO, errno.EIO), ("fdatasync", errno.EIO, errno.EIO)):
        server, faults = replica(test)
        h = server.connect()
        h.pwrite(b"1" * SIZE, 0)
        faults.fail(call, IMAGE, err=err)
        request = {"pwrite": lambda h=h: h.pwrite(b"2" * 4096, 0),
                   "fallocate": lambda h=h: h.trim(4096, 0), "fdatasync": h.flush}[call]
        equal(nbd_errno(request), got, "errno of the request")
        s = server.status()
        equal(s["state"], "stale", "state after", call)
        for word in (IMAGE, os.strerror(err), "resync overwrite"):
            check(word in s["reason"], "no", word, "in", s["reason"])
        refused(server.ask("commit"), 2, "stale", "resync overwrite")
        refused(server.ask("promote"), 3, "stale", "resync overwrite")
        equal(nbd_errno(h.pwrite, b"3" * 4096, 8192), errno.EIO, "errno of the next write")
        faults.heal_all()
        equal(nbd_errno(h.pwrite, b"3" * 4096, 8192), errno.EIO, "errno when healed")
        tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
        done(server.ask("resync overwrite"))
        h = server.connect()
        h.pwrite(b"4" * SIZE, 0)
        server.commit()
        equal(server.status()["state"], "protected", "state")
        server.kill()
        tool("mcbuf-recover", server.journal)
        same(image(test), b"4" * SIZE, "image")
        shutil.rmtree(server.journal)


def test_first_commit(test):
    """The first commit cannot make the image durable: not acknowledged, stale, and a new first copy leads back."""
    server, faults = replica(test)
    h = server.connect()
    h.pwrite(b"1" * SIZE, 0)
    faults.fail("fdatasync", IMAGE)
    refused(server.ask("commit"), 2, IMAGE, "resync overwrite")
    faults.heal_all()
    equal(server.status()["state"], "stale", "state")
    # Pages may be lost without a trace: asking again must not pretend.
    refused(server.ask("commit"), 2, "stale")
    server.kill()
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    server.start()
    equal(server.status()["state"], "stale", "state after a restart")
    done(server.ask("resync overwrite"))
    server.connect().pwrite(b"2" * SIZE, 0)
    server.commit()
    server.kill()
    tool("mcbuf-recover", server.journal, code=DONE)
    same(image(test), b"2" * SIZE, "image")


def test_promoted_draining(test):
    """Promoted: the disk is served, flushed and read from the journal; --wait says why it waits."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pwrite", IMAGE, err=errno.ENOSPC)
    h.pwrite(b"1" * 65536, 0)
    server.commit()
    is_paused(server, errno.ENOSPC)
    done(server.ask("promote"))
    p = server.connect("@promoted")
    p.pwrite(b"2" * 4096, 4096)
    p.flush()
    p.pwrite(b"3" * 4096, 8192, nbd.CMD_FLAG_FUA)
    want = b"1" * 4096 + b"2" * 4096 + b"3" * 4096 + b"1" * (65536 - 12288) + bytes(SIZE - 65536)
    same(read_all(p), want, "the promoted disk")
    s = server.status()
    check(IMAGE in s["writeout"]["error"] and not s["drained"], s)
    waiting = test.spawn([sys.executable, "-c", "import subprocess, sys\n"
                          "sys.exit(subprocess.call(sys.argv[1:], stderr=sys.stdout))",
                          tool_path("mcbuf-recover"), "--wait", server.journal], output=test.path("wait"), ours=True)
    poll("--wait to say why", lambda: IMAGE.encode() in read_file(test.path("wait")))
    check(waiting.poll() is None, "--wait returned:", read_file(test.path("wait")))
    faults.heal_all()
    equal(waiting.wait(), DONE, "exit code of --wait")
    check(server.status()["drained"], "drained")
    same(image(test), want, "image")


def test_promote_that_comes_to_nothing(test):
    """A promote to an older checkpoint makes write-out leave its cycle; refused, it lets it begin again."""
    server, faults = replica(test, "baseline=trusted")
    h = server.connect()
    faults.fail("pwrite", IMAGE)
    h.pwrite(b"1" * 65536, 0)
    older = server.commit()["checkpoint"]
    is_paused(server, errno.EIO)
    for i in range(200):                        # more than fits into the commit record itself
        h.pwrite(b"2" * 4096, i * 8192)
    last = server.commit()["checkpoint"]
    faults.fail("pread", "/journal")
    reply = server.ask("promote to=%d" % older)
    check(reply.get("code") in (1, 4) and "checkpoint" in reply["error"], reply)
    faults.heal("pread")
    equal(server.status()["state"], "protected", "state")
    equal(server.status()["checkpoint"]["id"], last, "checkpoint")
    faults.heal_all()
    goes_on(server)
    want = bytearray(b"1" * 65536 + bytes(SIZE - 65536))
    for i in range(200):
        want[i * 8192:i * 8192 + 4096] = b"2" * 4096
    same(image(test), bytes(want), "image")
    server.commit()


def test_promoted_drained(test):
    """The image is the disk: its errors are the client's; after a failed sync no flush succeeds, and status tells."""
    server, faults = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 4096, 0)
    server.commit()
    done(server.ask("promote"))
    poll("the drain", lambda: server.status()["drained"])
    p = server.connect("@promoted")
    faults.fail("pwrite", IMAGE, err=errno.ENOSPC)
    equal(nbd_errno(p.pwrite, b"2" * 4096, 0), errno.ENOSPC, "errno of a write")
    equal(server.status()["state"], "promoted", "state")
    faults.heal_all()
    equal(nbd_errno(p.pwrite, b"2" * 4096, 0), 0, "errno of a write when healed")
    equal(nbd_errno(p.flush), 0, "errno of a flush")
    faults.fail("fdatasync", IMAGE)
    equal(nbd_errno(p.flush), errno.EIO, "errno of a flush")
    faults.heal_all()
    # The pages may be gone: a retry that succeeds would be a lie.
    equal(nbd_errno(p.flush), errno.EIO, "errno of the next flush")
    equal(nbd_errno(p.pwrite, b"3" * 4096, 0, nbd.CMD_FLAG_FUA), errno.EIO, "errno of FUA")
    s = server.status()
    equal(s["state"], "promoted", "state")
    for word in (IMAGE, "cannot be synced", "restart"):
        check(word in s["reason"], "no", word, "in", s["reason"])
    equal(nbd_errno(p.pread, 512, 0), 0, "errno of a read")
    p.shutdown()
    server.kill()
    server.start()
    equal(nbd_errno(server.connect("@promoted").flush), 0, "errno of a flush after the restart")


def test_killed_while_paused(test):
    """SIGKILL, SIGTERM and a start with the image still failing: nothing is lost, and it pauses again."""
    server, faults = replica(test, "baseline=trusted")
    now = bytearray(SIZE)
    faults.fail("fdatasync", IMAGE)
    for end in ("kill", "stop", "kill"):
        h = server.connect()
        change(h, now, end[:1].encode())
        server.commit()
        is_paused(server, errno.EIO)
        h.shutdown()
        getattr(server, end)()
        server.start()
        same(read_all(server.connect()), bytes(now), "the inlet after", end)
        is_paused(server, errno.EIO)
    faults.heal_all()
    goes_on(server)
    same(image(test), bytes(now), "image")


main(globals())
