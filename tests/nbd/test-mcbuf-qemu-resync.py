#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A resync by the mirror of a running guest, and all that can happen in it: the old checkpoint is there until the end."""

import errno
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (REFUSED, MiB, check, done, equal, main, read_all, read_file, refused, same, seeded,
                      tool)
from libmirrored import HALF, SLOWLY, Mirrored

EIO, ENOSPC, ESHUTDOWN = (os.strerror(e) for e in (errno.EIO, errno.ENOSPC, errno.ESHUTDOWN))


def resyncing(test, reconnect=None, **more):
    """A resync whose copy has begun: the mirror was given up for a while, and the guest went on."""
    m = Mirrored(test, seeded(test.name), reconnect=reconnect)
    m.make_protected()
    m.give_up_mirror()
    m.primary.works()
    m.write(40)                         # no mirror has seen these
    equal(done(m.server.ask("resync"))["state"], "resyncing", "state")
    m.start_mirror(**more)
    if more:
        m.is_under_way()
    else:
        m.primary.wait_ready()
        m.primary.works()
    m.is_in("resyncing")
    m.is_recoverable()
    return m


def is_stale(m):
    m.is_in("stale", "resync")
    m.no_commit("stale", "resync")
    m.primary.works()
    m.is_recoverable()
    m.mirror_gets_nowhere()
    m.is_recoverable()


# --- the server dies -------------------------------------------------------------

def test_killed(test):
    """resyncing -> resyncing: SIGKILL of nbdkit; QEMU reconnects, the copy goes on, and the first commit ends it."""
    m = resyncing(test, reconnect=60, speed=SLOWLY)
    for _ in range(2):
        m.write(20, soon=True)          # some are answered, some are sent again
        m.server.kill()
        equal(tool("mcbuf-recover", "--dry-run", "--json", m.server.journal).json["checkpoint"], m.last,
              "--dry-run without a server")
        m.is_recovered("--to=%d" % m.last)
        m.write(20, soon=True)
        m.server.start()
        m.is_in("resyncing")
        m.is_recoverable()
        m.primary.works()
        m.write(10)
        check(not m.qmp.job("m0")["ready"], "the copy is over already")
    m.any_speed()
    m.primary.wait_ready()
    m.primary.works()
    m.server.kill()                     # once more, with the copy complete
    m.is_recovered()
    m.server.start()
    m.is_in("resyncing")
    m.primary.works()
    equal(m.qmp.job("m0")["status"], "ready", "the job that was there from the beginning")
    m.checkpoint()
    m.ends_well()


def test_rebooted(test):
    """resyncing -> stale -> resyncing: the host is booted again; the mirror fails, and a new resync leads back."""
    m = resyncing(test, reconnect=60, speed=SLOWLY)
    with m.stopped():
        m.faults.reboot(m.server)
        m.is_recovered()
        m.server.start()
        m.is_in("stale", "resync")
        m.copy_fails(EIO)
    is_stale(m)
    m.leads_back("resync")


def test_rebooted_when_ready(test):
    """resyncing -> stale -> resyncing: the same between the end of the copy and its commit; the guest's write finds out."""
    m = resyncing(test, reconnect=60)
    m.faults.reboot(m.server)
    m.is_recovered("--to=%d" % m.last)
    m.server.start()
    m.primary.job_fails(0, EIO)
    is_stale(m)
    m.leads_back("resync")


# --- the disk that is here is needed ---------------------------------------------

def is_promoted(m, generation=2):
    """The old checkpoint is the disk, byte for byte; the old primary is fenced, and its guest goes on."""
    s = m.is_in("promoted")
    equal(s["generation"], generation, "generation")
    h = m.server.connect("@promoted")
    same(read_all(h), m.content, "@promoted")
    h.shutdown()
    m.no_commit("promoted")
    tool("mcbuf-commit", "--generation=1", m.server.uri(), code=REFUSED)
    m.primary.works()
    m.mirror_gets_nowhere()
    tool("mcbuf-recover", "--wait", m.server.journal)
    same(read_file(m.image), m.content, "the image")


def names_both(m, seen):
    lines = m.server.said()[seen:].splitlines()
    check(any("generation 1" in line and "generation 2" in line for line in lines),
          "no line names both generations:", lines)


def test_promoted(test):
    """resyncing -> promoted: in the midst of the copy; and back by resync overwrite, to the inlet of the new generation."""
    m = resyncing(test, speed=SLOWLY)
    seen = len(m.server.said())
    with m.stopped():
        equal(done(m.server.ask("promote"))["checkpoint"], m.last, "promoted to")
        m.copy_fails(ESHUTDOWN)
    names_both(m, seen)
    is_promoted(m)
    m.leads_back("resync overwrite", "@g2")


def test_promoted_when_ready(test):
    """resyncing -> promoted: with the copy complete and not committed, under the hands of the guest."""
    m = resyncing(test)
    seen = len(m.server.said())
    tool("mcbuf-recover", m.server.journal)
    m.primary.job_fails(0, ESHUTDOWN)
    names_both(m, seen)
    is_promoted(m)


def test_promoted_offline(test):
    """resyncing -> promoted: nbdkit was dead; the mirror that reconnects to the next one is told."""
    m = resyncing(test, reconnect=60, speed=SLOWLY)
    with m.stopped():
        m.write(20, soon=True)
        m.server.kill()
        equal(tool("mcbuf-recover", "--json", m.server.journal).json["checkpoint"], m.last, "recovered")
        same(read_file(m.image), m.content, "the image")
        seen = len(m.server.said())
        m.server.start()
        m.copy_fails(ESHUTDOWN)
    names_both(m, seen)
    is_promoted(m)


# --- its disks fail --------------------------------------------------------------

def test_journal_full(test):
    """resyncing -> stale -> resyncing: what is new fills the journal."""
    m = resyncing(test)
    m.fill(ENOSPC)
    is_stale(m)
    m.leads_back("resync")


def test_image_unread(test):
    """resyncing -> stale -> resyncing: an image that cannot be read does not stop the copy; a part of a sector needs it."""
    m = resyncing(test, speed=SLOWLY)
    with m.stopped():
        m.faults.fail("pread", os.path.basename(m.image))
        m.any_speed()
        m.primary.wait_ready()
        m.is_in("resyncing")
        m.primary.write(0, 9, HALF - MiB + 100, 100)
        m.primary.job_fails(0, EIO)
    m.is_in("stale", EIO)
    m.faults.heal_all()
    is_stale(m)
    m.leads_back("resync")


def test_journal_unsynced(test):
    """resyncing -> failed -> stale -> resyncing: the commit that would end it fails, and is not acknowledged."""
    m = resyncing(test)
    m.faults.fail("fdatasync", "/journal")
    epoch, _ = m.primary.pause(m.server)
    refused(m.server.ask("commit epoch=%d" % epoch), 2, "not acknowledged", EIO)
    m.primary.job_fails(0, EIO)
    m.is_in("failed")
    m.no_commit("failed")
    same(read_file(m.image), m.content, "the image")
    m.faults.heal_all()
    m.server.kill()
    m.is_recovered()
    m.server.start()
    is_stale(m)
    m.leads_back("resync")


main(globals())
