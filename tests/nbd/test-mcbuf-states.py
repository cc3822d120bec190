#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of states of DESIGN.md, row by row: inlet writes, commit, recover.

A row's columns are written as: what a write of the inlet gets (0 or an errno),
what mcbuf-commit and mcbuf-commit --seal exit with, what mcbuf-recover exits with.
"""

import errno
import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DAMAGE, DONE, KiB, MiB, NO_CHECKPOINT, REFUSED, Faults,
                      Server, check, equal, main, nbd_errno, poll,
                      read_file, same, sparse_file, tool)

SIZE = 8 * MiB
JOURNAL = 32 * MiB


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE),
                  "journal-size=%d" % JOURNAL, "buffer=8M", *params, **options)


def image(test):
    return read_file(test.path("disk.img"))


def write_gets(server, errnum):
    """A write on a new connection gets ERRNUM; so does a zero and a trim."""
    h = server.connect()
    for call, args in ((h.pwrite, (b"w" * 512, SIZE - 512)), (h.zero, (512, SIZE - 512)),
                       (h.trim, (512, SIZE - 512))):
        equal(nbd_errno(call, *args), errnum, call.__name__, "in", server.status()["state"])


def commit_gets(server, code, *words):
    """mcbuf-commit exits with CODE, alone and with an epoch and by NBD."""
    before = server.status()["checkpoint"]
    for args in ((), ("--label=x",), ("--generation=1",)):
        for target in (server.journal, server.uri()):
            result = tool("mcbuf-commit", *args, target, code=code)
            for word in words:
                check(word in result.err, "no", repr(word), "in", result)
    if code:
        equal(server.status()["checkpoint"], before, "a refused commit changed the checkpoint")


def recover_gets(server, code, checkpoint=None, *words):
    """mcbuf-recover without a server."""
    if server.is_running():
        server.kill()
    dry = tool("mcbuf-recover", "--dry-run", "--json", server.journal, code=code)
    result = tool("mcbuf-recover", "--json", server.journal, code=code)
    for r in (dry, result):
        for word in words:
            check(word in r.err, "no", repr(word), "in", r)
        if code == DONE:
            equal(r.json["checkpoint"], checkpoint, "recovered to")
    return result


# --- syncing -----------------------------------------------------------------

def test_syncing(test):
    """syncing: writes go straight to the image; recover is refused, exit 3."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * 4096, 0)
    equal(image(test)[:4096], b"1" * 4096, "the image")
    used = server.status()["journal"]["used"]
    for at in range(0, SIZE, MiB):
        h.pwrite(b"2" * MiB, at)
    check(server.status()["journal"]["used"] - used <= 2 * MiB, "the first copy fills the journal")
    result = tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    check("checkpoint" in result.err, result)
    equal(server.status()["state"], "syncing", "state after the refusal")
    equal(bytes(h.pread(4096, 0)), b"2" * 4096, "goes on")
    recover_gets(server, NO_CHECKPOINT, None, "checkpoint")
    server.start()
    equal(server.status()["state"], "syncing", "on the same boot")


def test_syncing_commit(test):
    """syncing: commit makes the image durable, then checkpoint 1, and the replica protected."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * SIZE, 0)
    answer = tool("mcbuf-commit", "--json", "--label=first", server.journal).json
    equal(answer["checkpoint"], 1, "checkpoint")
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"], s["checkpoint"]["label"]),
          ("protected", 1, "first"), "status")
    h.pwrite(b"2" * 4096, 0)
    equal(image(test)[:4096], b"1" * 4096, "the image, now protected")
    recover_gets(server, DONE, 1)
    same(image(test), b"1" * SIZE, "recovered image")


def test_syncing_seal(test):
    """syncing: a seal closes the copy; what comes later is speculation."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    epoch = server.seal()
    h.pwrite(b"2" * 4096, 0)
    equal(image(test)[:8192], b"1" * 8192, "the image after the seal")
    equal(bytes(h.pread(8192, 0)), b"2" * 4096 + b"1" * 4096, "the inlet")
    equal(server.status()["state"], "syncing", "state")
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    equal(server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
    equal(server.status()["state"], "protected", "state")
    equal(image(test)[:8192], b"1" * 8192, "the image after the commit")
    equal(server.commit()["checkpoint"], epoch + 1, "the next one")
    server.drained()
    equal(image(test)[:8192], b"2" * 4096 + b"1" * 4096, "the image")


def test_syncing_seal_restart(test):
    """syncing, closed by a seal: that too outlives a restart of the server."""
    for end in ("stop", "kill"):
        server = replica(test)
        h = server.connect()
        h.pwrite(b"1" * 8192, 0)
        epoch = server.seal()
        h.pwrite(b"2" * 4096, 0)
        h.shutdown()
        getattr(server, end)()
        server.start()
        equal(server.status()["state"], "syncing", "state after", end)
        equal(bytes(server.connect().pread(8192, 0)), b"2" * 4096 + b"1" * 4096, end)
        equal(server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
        recover_gets(server, DONE, epoch)
        equal(image(test)[:8192], b"1" * 8192, "the image after", end)
        server_gone(server)


def server_gone(server):
    """Make room for another replica on the same image."""
    shutil.rmtree(server.journal)


def test_syncing_clean_stop_reboot(test):
    """syncing goes on after a clean stop, whatever the boot."""
    faults = Faults(test)
    server = replica(test, env=faults.env, preload=faults.preload)
    server.connect().pwrite(b"1" * SIZE, 0)
    server.stop()
    faults.new_boot()
    server.start()
    equal(server.status()["state"], "syncing", "state")
    server.commit()
    recover_gets(server, DONE, 1)
    same(image(test), b"1" * SIZE, "image")


# --- protected ---------------------------------------------------------------

def test_protected(test):
    """protected: writes are speculation, commits are atomic, recover gives the last one."""
    server = replica(test, "baseline=trusted")
    write_gets(server, 0)
    server.connect().pwrite(b"1" * 8192, 0)
    commit_gets(server, DONE)
    last = server.status()["checkpoint"]["id"]
    server.connect().pwrite(b"2" * 8192, 0)
    recover_gets(server, DONE, last)
    equal(image(test)[:8192], b"1" * 8192, "image")


# --- stale -------------------------------------------------------------------

def is_stale(server, checkpoint):
    """The row of stale with a checkpoint."""
    s = server.status()
    equal(s["state"], "stale", "state", s)
    check(s["reason"], "no reason:", s)
    write_gets(server, errno.EIO)
    commit_gets(server, REFUSED, "stale", "resync")
    equal(server.status()["checkpoint"]["id"], checkpoint, "checkpoint")


def test_stale_after_reboot(test):
    """stale: acknowledged speculation was lost with the host."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    h.pwrite(b"2" * 4096, 0)
    faults.reboot(server)
    server.start()
    is_stale(server, last)
    server.stop()
    server.start()
    is_stale(server, last)                      # a clean stop does not wash it off
    recover_gets(server, DONE, last)
    equal(image(test)[:8192], b"1" * 8192, "image")


def test_not_stale_without_loss(test):
    """A clean stop loses nothing, on any boot: protected, speculation and all."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    server.commit()
    h.pwrite(b"2" * 4096, 0)
    h.shutdown()
    server.stop()
    faults.new_boot()
    server.start()
    equal(server.status()["state"], "protected", "state")
    equal(bytes(server.connect().pread(8192, 0)), b"2" * 4096 + b"1" * 4096, "inlet")


def test_stale_without_checkpoint(test):
    """stale in the first copy: a reboot may have lost what was written through; exit 3."""
    faults = Faults(test)
    server = replica(test, env=faults.env, preload=faults.preload)
    server.connect().pwrite(b"1" * SIZE, 0)
    faults.reboot(server)
    server.start()
    equal(server.status()["state"], "stale", "state")
    write_gets(server, errno.EIO)
    commit_gets(server, REFUSED, "stale", "resync overwrite")
    recover_gets(server, NO_CHECKPOINT, None, "checkpoint")


def fill_journal(server):
    """Write new blocks without a commit until one is refused; the errno."""
    h = server.connect()
    data = b"f" * MiB
    for i in range(4 * JOURNAL // MiB):
        errnum = nbd_errno(h.pwrite, data, i * MiB % SIZE)
        if errnum:
            return errnum
    return 0


def test_stale_by_overflow(test):
    """stale: uncommitted epochs alone fill the journal: ENOSPC, and the checkpoint stays whole."""
    server = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    equal(fill_journal(server), errno.ENOSPC, "errno of the overflow")
    is_stale(server, last)
    recover_gets(server, DONE, last)
    same(image(test), b"1" * 8192 + bytes(SIZE - 8192), "image")


# --- promoted ----------------------------------------------------------------

def is_promoted(server, checkpoint, generation):
    s = server.status()
    equal((s["state"], s["generation"]), ("promoted", generation), "status")
    for name in ("", "@g1", "@g%d" % generation):
        try:
            h = server.connect(name)
        except Exception:               # pylint: disable=broad-except
            check(name != "", "the inlet cannot even be opened")
            continue
        for call, args in ((h.pwrite, (b"x" * 512, 0)), (h.pread, (512, 0)),
                           (h.zero, (512, 0)), (h.trim, (512, 0)), (h.flush, ())):
            equal(nbd_errno(call, *args), errno.ESHUTDOWN, name, call.__name__)
    commit_gets(server, REFUSED, "promoted")
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], checkpoint,
          "online again")


def test_promoted(test):
    """promoted, online: inlets ESHUTDOWN, commit exit 2; recover the same every time."""
    server = replica(test, "baseline=trusted")
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    h.pwrite(b"2" * 8192, 0)
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal((answer["checkpoint"], answer["generation"], answer["state"]),
          (last, 2, "promoted"), "answer")
    equal(nbd_errno(h.pwrite, b"3" * 512, 0), errno.ESHUTDOWN, "the old connection")
    h.shutdown()
    is_promoted(server, last, 2)
    server.stop()
    server.start()
    is_promoted(server, last, 2)
    result = tool("mcbuf-recover", "--to=%d" % (last + 1), server.journal, code=REFUSED)
    check("promoted" in result.err, result)
    recover_gets(server, DONE, last)
    equal(image(test)[:8192], b"1" * 8192, "image")


def test_promoted_offline(test):
    """promoted, offline: a server started on it afterwards knows."""
    server = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    recover_gets(server, DONE, last)
    tool("mcbuf-recover", "--to=0", server.journal, code=REFUSED)
    server.start()
    is_promoted(server, last, 2)
    recover_gets(server, DONE, last)
    equal(image(test)[:8192], b"1" * 8192, "image")


# --- failed ------------------------------------------------------------------

def test_failed_by_fsync(test):
    """failed: the commit's fsync failed; nothing is acknowledged any more."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    server.drained()
    h.pwrite(b"2" * 8192, 0)
    faults.fail("fdatasync", "/journal")
    result = tool("mcbuf-commit", server.journal, code=REFUSED)
    check(faults.happened(), "no fdatasync was failed")
    faults.heal("fdatasync")                    # and healing it is too late
    s = server.status()
    equal(s["state"], "failed", "state", result)
    equal(s["checkpoint"]["id"], last, "checkpoint")
    write_gets(server, errno.EIO)
    commit_gets(server, REFUSED, "failed")
    server.kill()
    # The unacknowledged commit may or may not be on the disk: it is whole or it is not there.
    answer = tool("mcbuf-recover", "--json", server.journal).json
    check(answer["checkpoint"] in (last, last + 1), answer)
    equal(image(test)[:8192], (b"1" if answer["checkpoint"] == last else b"2") * 8192, "image")


def test_failed_journal_write(test):
    """failed: the journal's device gives EIO to the data itself."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    server.drained()
    faults.fail("pwrite", "/journal")
    # Acknowledged from memory, as ever, if zero-filling has not run into it yet.
    check(nbd_errno(h.pwrite, b"2" * 4096, 0) in (0, errno.EIO), "an unknown error")
    tool("mcbuf-commit", server.journal, code=REFUSED)
    check(faults.happened(), "no pwrite was failed")
    faults.heal("pwrite")
    poll("failed", lambda: server.status()["state"] == "failed")
    write_gets(server, errno.EIO)
    commit_gets(server, REFUSED, "failed")
    recover_gets(server, DONE, last)
    equal(image(test)[:8192], b"1" * 8192, "image")


def test_damage(test):
    """Damage under an acknowledged checkpoint: exit 4, naming file, offset and checkpoint."""
    server = replica(test, "baseline=trusted")
    faulty = Faults(test)
    server.stop()
    # Hold write-out back, so that the checkpoint lives in the journal alone.
    server.env, server.preload = faulty.env, faulty.preload
    faulty.fail("pwrite", "disk.img")
    server.start()
    h = server.connect()
    marker = b"find this text in the journal...".ljust(4096, b"!")
    h.pwrite(marker, 0)
    last = server.commit()["checkpoint"]
    server.kill()
    journal = os.path.join(server.journal, "journal")
    with open(journal, "r+b") as f:
        at = f.read().find(marker[:32])
        check(at > 0, "the committed block is not in the journal")
        f.seek(at + 5)
        f.write(b"X")
    dry = tool("mcbuf-recover", "--dry-run", server.journal, code=DAMAGE)
    result = tool("mcbuf-recover", server.journal, code=DAMAGE)
    for r in (dry, result):
        for word in ("journal", str(last)):
            check(word in r.err, "no", repr(word), "in", r)
    check(any(str(o) in result.err for o in range(at // 4096 * 4096, at + 4096)),
          "no offset near", at, "in", result)
    equal(image(test)[:4096], bytes(4096), "the damaged block was written out")
    tool("mcbuf-recover", "--verify", server.journal, code=DAMAGE)
    try:
        server.start()
    except Exception:                   # pylint: disable=broad-except
        return                          # may refuse to start, with one line
    s = server.status()
    equal(s["state"], "failed", "state of a damaged replica", s)
    write_gets(server, errno.EIO)
    commit_gets(server, REFUSED, "failed")


def test_damaged_superblock(test):
    """A journal that is none any more: exit 4 or 1, one line, image untouched."""
    server = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 8192, 0)
    server.commit()
    server.drained()
    server.stop()
    before = image(test)
    with open(os.path.join(server.journal, "journal"), "r+b") as f:
        f.write(b"\xaa" * MiB)
    tool("mcbuf-recover", server.journal, code=(1, DAMAGE))
    same(image(test), before, "image")


# --- the backing image's own errors ------------------------------------------

def test_writeout_error(test):
    """An image that cannot be written is not "failed": write-out pauses, commits go on, then it heals."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    for call, err in (("pwrite", errno.EIO), ("fdatasync", errno.EIO), ("pwrite", errno.ENOSPC)):
        faults.fail(call, "disk.img", err=err)
        before = faults.happened()
        h.pwrite(bytes([err + len(call)]) * 8192, 0)
        last = server.commit()["checkpoint"]
        poll("the write-out to fail", lambda: faults.happened() > before)
        poll("status to tell", lambda: server.status()["writeout"]["error"])
        s = server.status()
        equal(s["state"], "protected", "state")
        check(s["written_out"] < last, "written out:", s)
        equal(server.commit()["checkpoint"], last + 1, "commits go on")
        equal(bytes(h.pread(8192, 0)), bytes([err + len(call)]) * 8192, "reads go on")
        faults.heal(call)
        poll("write-out to go on", lambda: not server.status()["writeout"]["error"])
        server.drained()
        equal(image(test)[:8192], bytes([err + len(call)]) * 8192, "image after", call)


def test_writeout_error_kill(test):
    """Killed while write-out is stuck: recovery has it all in the journal."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    faults.fail("fdatasync", "disk.img")
    for i in range(10):
        h.pwrite(bytes([i + 1]) * 64 * KiB, i * 64 * KiB)
        last = server.commit()["checkpoint"]
    poll("status to tell", lambda: server.status()["writeout"]["error"])
    recover_gets(server, DONE, last)
    same(image(test)[:640 * KiB], b"".join(bytes([i + 1]) * 64 * KiB for i in range(10)), "image")


# --- ways out ----------------------------------------------------------------

def test_way_out_of_stale(test):
    """stale -> resync: a new copy, the old checkpoint recoverable meanwhile."""
    faults = Faults(test)
    server = replica(test, "baseline=trusted", env=faults.env, preload=faults.preload)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    server.drained()
    h.pwrite(b"2" * 8192, 0)
    faults.reboot(server)
    server.start()
    tool("mcbuf-ctl", server.journal, "resync")
    equal(server.status()["state"], "resyncing", "state")
    h = server.connect()
    for at in range(0, SIZE, MiB):
        h.pwrite(b"3" * MiB, at)
    equal(image(test)[:8192], b"1" * 8192, "the image while the copy runs")
    answer = tool("mcbuf-recover", "--dry-run", "--json", server.journal).json
    equal(answer["checkpoint"], last, "recoverable meanwhile")
    newest = server.commit()["checkpoint"]
    check(newest > last, "epochs go on:", newest, last)
    equal(server.status()["state"], "protected", "state")
    recover_gets(server, DONE, newest)
    same(image(test), b"3" * SIZE, "image")


def test_way_out_of_promoted(test):
    """promoted -> resync overwrite: a new first copy."""
    server = replica(test, "baseline=trusted")
    server.connect().pwrite(b"1" * 8192, 0)
    server.commit()
    tool("mcbuf-recover", "--wait", server.journal)
    tool("mcbuf-ctl", server.journal, "resync", code=REFUSED)
    tool("mcbuf-ctl", server.journal, "resync", "overwrite")
    s = server.status()
    equal((s["state"], s["generation"]), ("syncing", 2), "status")
    h = server.connect()
    for at in range(0, SIZE, MiB):
        h.pwrite(b"3" * MiB, at)
    newest = server.commit()["checkpoint"]
    equal(server.status()["state"], "protected", "state")
    recover_gets(server, DONE, newest)
    same(image(test), b"3" * SIZE, "image")


def test_unreachable(test):
    """No journal at all: exit 1."""
    for name in ("mcbuf-recover", "mcbuf-status", "mcbuf-commit"):
        tool(name, test.path("nosuch"), code=1)
    os.mkdir(test.path("empty"))
    tool("mcbuf-recover", test.path("empty"), code=1)


INVARIANTS = "1,7,8,10"
main(globals())
