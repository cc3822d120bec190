#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Scratches on a journal's file system that is full: they get ENOSPC, the replica does not notice.

The script runs itself in a mount namespace of its own, so that its file systems go with it.
"""

import errno
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import KiB, MiB, Server, check, done, equal, main, nbd_errno, read_all, same, skip, sparse_file, read_file, tool

SIZE = 16 * MiB
JOURNAL = 16 * MiB
INSIDE = "MCBUF_TEST_INSIDE"


def enter_namespace():
    if os.environ.get(INSIDE):
        return
    how = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run(how + ["true"], stderr=subprocess.DEVNULL, check=False).returncode:
        skip("no mount namespace to be had: " + " ".join(how))
    os.environ[INSIDE] = "1"
    os.execvp(how[0], how + [sys.executable] + sys.argv)


def free(where):
    s = os.statvfs(where)
    return s.f_bavail * s.f_frsize


def full(test, kind):
    where = test.path(kind)
    os.mkdir(where)
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", where]
    else:
        device = sparse_file(test.path("fs"), 28 * MiB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", device], check=True,
                       env=dict(os.environ, PATH=os.environ["PATH"] + ":/sbin:/usr/sbin"))
        mount = ["mount", "-o", "loop", device, where]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        skip("no %s to be had" % kind)
    image = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, image, "journal=" + os.path.join(where, "j"), "baseline=trusted",
                    "journal-size=%d" % JOURNAL, "buffer=8M")
    inlet = server.connect()
    want = bytearray(SIZE)
    inlet.pwrite(b"1" * MiB, 0)
    want[0:MiB] = b"1" * MiB
    server.commit()
    room = free(where)
    scratch, scratched = server.connect("@scratch"), bytearray(want)
    # More than there is: what was refused may be there in part, so only what was taken counts.
    errors, taken = [], []
    for at in range(0, SIZE, 256 * KiB):
        e = nbd_errno(scratch.pwrite, b"s" * 256 * KiB, at)
        if e == 0:
            scratched[at:at + 256 * KiB] = b"s" * 256 * KiB
            taken.append(at)
        errors.append(e)
    equal(set(errors), {0, errno.ENOSPC}, "errno of writes to the scratch on", kind)
    check(free(where) < 256 * KiB, free(where), "bytes are free")
    for at in taken:
        same(bytes(scratch.pread(256 * KiB, at)), bytes(scratched[at:at + 256 * KiB]), "the scratch at", at)

    # The replica has its room: more than the journal goes through it, and is recovered.
    for i in range(40):
        data = (b"%c" % (65 + i)) * MiB
        at = i % 15 * MiB
        equal(nbd_errno(inlet.pwrite, data, at), 0, "errno of a mirrored write on", kind)
        want[at:at + MiB] = data
        last = server.commit(label="number %d" % i)["checkpoint"]
        if i == 2:
            # What is a write of the scratch's alone is refused as before.
            equal(nbd_errno(scratch.pwrite, b"t" * 256 * KiB, SIZE - 256 * KiB), errno.ENOSPC, "errno")
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"], s["writeout"]["error"]), ("protected", last, None), "status")
    same(read_all(inlet), want, "the inlet on", kind)

    done(server.ask("reset @scratch"))
    check(free(where) >= room - 64 * KiB, "reset left", free(where), "bytes free of", room)
    same(read_all(scratch), want, "the scratch after reset")
    equal(nbd_errno(scratch.pwrite, b"u" * MiB, 0), 0, "errno of a write after reset")
    same(bytes(scratch.pread(MiB, 0)), b"u" * MiB, "the scratch")
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
    same(read_file(image), want, "image on", kind)
    subprocess.run(["umount", "-l", where], check=True)


def test_tmpfs(test):
    """Memory."""
    full(test, "tmpfs")


def test_ext4(test):
    """A loop device."""
    full(test, "ext4")


enter_namespace()
main(globals())
