#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Disks of the standby that fail under the mirror of a running guest: each way into stale and failed, and back."""

import errno
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (NO_CHECKPOINT, REFUSED, MiB, check, done, equal, main, poll, refused, seeded, tool)
from libmirrored import HALF, Mirrored

JOURNAL = "/journal"
EIO, ENOSPC = os.strerror(errno.EIO), os.strerror(errno.ENOSPC)


# --- protected -> stale: a write was refused -------------------------------------

def is_stale(m, drained=True):
    """A write of QEMU's was refused: its job is over, the guest is not, and no commit hides the hole."""
    m.is_in("stale", "resync")
    m.no_commit("stale", "resync")
    m.primary.works()
    m.is_recoverable(drained)
    m.mirror_gets_nowhere()
    m.is_in("stale")


def test_journal_full(test):
    """protected -> stale: uncommitted epochs alone fill the journal."""
    m = Mirrored(test, seeded(test.name))
    m.make_protected()
    sealed = m.server.seal()
    m.fill(ENOSPC)
    is_stale(m)
    refused(m.server.ask("commit epoch=%d" % sealed), 2, "stale", "resync")
    m.leads_back("resync")


def test_journal_full_of_a_backlog(test):
    """protected -> stale: the image fails, so that committed epochs fill the journal."""
    m = Mirrored(test, seeded(test.name))
    m.make_protected()
    m.faults.fail("pwrite", os.path.basename(m.image))
    m.write(10)
    for i in range(3):
        m.primary.write(0, 200 + i, HALF + i * MiB, MiB)
        epoch, contents = m.primary.pause(m.server)
        equal(m.server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
        m.last, m.content = epoch, contents[0]
    poll("write-out to pause", lambda: m.server.status()["writeout"]["error"])
    m.fill(ENOSPC)
    is_stale(m, drained=False)
    m.faults.heal_all()
    poll("write-out to go on", lambda: not m.server.status()["writeout"]["error"])
    m.is_written_out()
    m.leads_back("resync")


def test_image_unread(test):
    """protected -> stale: a write of a part of a sector has to read the image, and cannot."""
    m = Mirrored(test, seeded(test.name))
    m.make_protected()
    m.checkpoint()
    m.faults.fail("pread", os.path.basename(m.image), span=(HALF, HALF + MiB))
    m.primary.write(0, 77, HALF + 40050, 100)
    m.primary.job_fails(0, EIO)
    m.is_in("stale", EIO)
    m.faults.heal_all()
    is_stale(m)
    m.leads_back("resync")


# --- protected -> failed: the journal --------------------------------------------

def has_failed(m):
    """QEMU's job is over, the guest is not, and nothing is believed or acknowledged, also when the device is mended."""
    m.is_in("failed", "mcbuf-recover")
    m.primary.works()
    for _ in range(2):
        m.no_commit("failed")
        refused(m.server.ask("resync"), 2, "failed", "resync overwrite")
        said = tool("mcbuf-recover", m.server.journal, code=REFUSED).err
        check("failed" in said and "stop the server" in said, said)
        m.mirror_gets_nowhere()
        m.faults.heal_all()
    m.is_in("failed")


def commit_fails(m):
    m.faults.fail("fdatasync", JOURNAL)
    epoch, _ = m.primary.pause(m.server)
    refused(m.server.ask("commit epoch=%d" % epoch), 2, "not acknowledged", EIO)
    m.primary.job_fails(0, EIO)         # the guest's next write


def test_commit_unsynced(test):
    """protected -> failed -> syncing: a commit's sync fails; resync overwrite leads back without a restart."""
    m = Mirrored(test, seeded(test.name))
    m.make_protected()
    commit_fails(m)
    for _ in range(2):
        refused(m.server.ask("resync overwrite"), 2, "failed", "mend the device")
    has_failed(m)
    m.leads_back("resync overwrite")


def test_journal_unwritten(test):
    """protected -> failed: what QEMU writes cannot be pushed to the journal; it fails before any commit does."""
    m = Mirrored(test, seeded(test.name))
    m.make_protected()
    m.faults.fail("pwrite", JOURNAL, err=errno.ENOSPC)
    m.fill(EIO)
    has_failed(m)
    m.leads_back("resync overwrite")


def test_failed_and_restarted(test):
    """protected -> failed -> stale: the next server has the last checkpoint, and no stream; resync leads back."""
    m = Mirrored(test, seeded(test.name), reconnect=60)
    m.make_protected()
    commit_fails(m)
    has_failed(m)
    m.server.kill()
    m.is_recovered()
    m.server.start()
    m.is_in("stale", "journal had failed")
    is_stale(m)
    m.leads_back("resync")


# --- syncing -> stale, failed ----------------------------------------------------

def is_empty(m, *words):
    """QEMU's job is over, and there is nothing that could be used."""
    m.is_in("stale", "resync overwrite", *words, last=None)
    m.no_commit("stale", "resync overwrite")
    tool("mcbuf-recover", m.server.journal, code=NO_CHECKPOINT)
    m.primary.works()
    m.mirror_gets_nowhere()
    m.faults.heal_all()
    refused(m.server.ask("resync"), 2, "stale", "resync overwrite")
    m.mirror_gets_nowhere()


def test_copy_unwritten(test):
    """syncing -> stale -> syncing: the image gives an error to the copy, and then to its flush."""
    m = Mirrored(test, seeded(test.name))
    name = os.path.basename(m.image)
    for call, span in (("pwrite", (2 * MiB, 2 * MiB + 4096)), ("fdatasync", None)):
        with m.stopped():
            m.faults.fail(call, name, span=span)
            m.start_mirror()
            m.primary.job_fails(0, EIO)
        is_empty(m, EIO, name)
        done(m.server.ask("resync overwrite"))
        m.is_in("syncing", last=None)
    m.leads_back("resync overwrite")


def test_guest_unwritten(test):
    """syncing -> stale -> syncing: the image gives an error to what the guest writes, or zeroes, before the first commit."""
    m = Mirrored(test, seeded(test.name))
    name = os.path.basename(m.image)
    for call, err, command in (("pwrite", errno.ENOSPC, "write -P 5"), ("fallocate", errno.EIO, "write -z -u")):
        m.start_mirror()
        m.primary.wait_ready()
        m.primary.works()
        m.primary.write(0, 5, HALF, MiB)
        with m.stopped():
            m.faults.fail(call, name, err=err)
            m.primary.io(0, "%s %d 65536" % (command, HALF))
            m.primary.job_fails(0, os.strerror(err))
        is_empty(m, os.strerror(err), name)
        done(m.server.ask("resync overwrite"))
    m.leads_back("resync overwrite")


def test_first_commit(test):
    """syncing -> stale: the first commit cannot make the image durable; the mirror hears of it, too."""
    m = Mirrored(test, seeded(test.name))
    m.start_mirror()
    m.primary.wait_ready()
    epoch, _ = m.primary.pause(m.server)        # QEMU flushes when it stops
    m.faults.fail("fdatasync", os.path.basename(m.image))
    refused(m.server.ask("commit epoch=%d" % epoch), 2, os.path.basename(m.image), "resync overwrite")
    m.primary.job_fails(0, EIO)
    is_empty(m)
    m.leads_back("resync overwrite")


def test_closed_copy(test):
    """syncing -> stale: a seal closed the first copy, and speculation fills the journal before it is committed."""
    m = Mirrored(test, seeded(test.name))
    m.start_mirror()
    m.primary.wait_ready()
    m.primary.pause(m.server)
    m.fill(ENOSPC)
    is_empty(m)
    m.leads_back("resync overwrite")


def test_first_copy_unsynced(test):
    """syncing -> failed -> syncing: the journal fails the seal of the first copy."""
    m = Mirrored(test, seeded(test.name))
    m.start_mirror()
    m.primary.wait_ready()
    m.faults.fail("fdatasync", JOURNAL)
    refused(m.server.ask("seal"), 2)
    m.primary.job_fails(0, EIO)
    has_failed(m)
    m.leads_back("resync overwrite")


main(globals())
