#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Many users of NAME@scratch: who shares one, who gets a fresh one, and which one is promoted."""

import errno
import os
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, REFUSED, Server, check, connect_errno, equal, main, nbd, nbd_errno, poll, read_file,
                      refused, same, sparse_file, tool)

SIZE = MiB
SECOND = 512 * KiB


def replica(test, names=("vda",), *params):
    server = Server(test, *["disk=%s:%s" % (n, sparse_file(test.path(n + ".img"), SIZE)) for n in names],
                    "journal=" + test.path("j"), "baseline=trusted", "journal-size=64M", "buffer=8M", *params)
    server.inlets = [server.connect(n) for n in names]
    return server


def checkpoint(server, byte):
    """All disks begin with this byte, and that is a checkpoint."""
    for h in server.inlets:
        h.pwrite(bytes([byte]) * 4096, 0)
    return server.commit()["checkpoint"]


def shows(h, base, own=0):
    """BASE is the checkpoint below; OWN is what was written to it."""
    equal((bytes(h.pread(4096, 0)), bytes(h.pread(4096, SECOND))),
          (bytes([base]) * 4096, bytes([own]) * 4096), "scratch")


def put(h, own):
    h.pwrite(bytes([own]) * 4096, SECOND)


def test_storm(test):
    """50 connections at once, again and again, while the mirror commits: each gets a scratch."""
    server = replica(test)
    checkpoint(server, 1)
    for lap in range(6):
        failed, handles, lock = [], [], threading.Lock()
        start = threading.Barrier(50)

        def client(failed=failed, handles=handles, lock=lock, start=start):
            start.wait()
            try:
                h = server.connect("vda@scratch")
                h.pread(4096, 0)
                with lock:
                    handles.append(h)
            except Exception as e:      # pylint: disable=broad-except
                failed.append(str(e))
        threads = [threading.Thread(target=client) for _ in range(50)]
        for t in threads:
            t.start()
        if lap % 2:
            for _ in range(5):
                checkpoint(server, 1)
        for t in threads:
            t.join()
        equal(failed, [], "failed in lap", lap)
        if lap % 2 == 0:                # no commit in between: they are one disk
            put(handles[0], 7)
            for h in handles:
                shows(h, 1, 7)
        for h in handles:
            h.shutdown()
        checkpoint(server, 1)
    server.drained()
    left = [n for n in os.listdir(test.path("j")) if n.startswith("scratch")]
    equal(left, [], "left behind")


def test_two_users(test):
    """After a commit a second user starts fresh, and the first one's disk stays what it is."""
    server = replica(test)
    checkpoint(server, 1)
    first = server.connect("vda@scratch")
    put(first, 0x11)
    again = server.connect("vda@scratch")               # no commit in between: another connection to it
    shows(again, 1, 0x11)
    users = [(first, 1, 0x11), (again, 1, 0x11)]
    for n in range(2, 8):
        checkpoint(server, n)
        h = server.connect("vda@scratch")
        shows(h, n)
        put(h, 0x11 * n)
        users.append((h, n, 0x11 * n))
        for user in users:
            shows(*user)
    # Those that end leave nothing behind, and hold nothing back.
    for h, _, _ in users:
        h.shutdown()
    server.drained()
    h = server.connect("vda@scratch")
    shows(h, 7, 0x77)                                   # no commit since: it is kept
    h.shutdown()
    checkpoint(server, 8)
    h = server.connect("vda@scratch")
    shows(h, 8)


def test_machine(test):
    """The disks of a machine that are opened while commits go on are of one checkpoint; the next machine's, too."""
    names = ("vda", "vdb", "vdc")
    server = replica(test, names)
    checkpoint(server, 1)
    machines = []
    for n in range(1, 5):
        handles = []
        for i, name in enumerate(names):
            h = server.connect(name + "@scratch")
            shows(h, 3 * n - 2)
            put(h, 16 * n + i)
            handles.append(h)
            checkpoint(server, 3 * n - 1 + i)
        machines.append(handles)
        for m, old in enumerate(machines, 1):
            for i, h in enumerate(old):
                shows(h, 3 * m - 2, 16 * m + i)
    # One disk of the newest goes and comes back after a commit: that is another machine's.
    machines[-1][0].shutdown()
    h = server.connect("vda@scratch")
    shows(h, 13)
    for m, old in enumerate(machines, 1):
        for i, h in enumerate(old[1:], 1):
            shows(h, 3 * m - 2, 16 * m + i)


def test_reset(test):
    """Reset is for the newest; a machine that runs on an older one keeps it."""
    server = replica(test)
    checkpoint(server, 1)
    old = server.connect("vda@scratch")
    put(old, 0x11)
    checkpoint(server, 2)
    new = server.connect("vda@scratch")
    put(new, 0x22)
    checkpoint(server, 3)
    equal(server.ask("reset vda@scratch")["checkpoint"], 3, "reset to")
    shows(new, 3)
    shows(old, 1, 0x11)


def test_promote_which(test):
    """While more than one is open it is not clear which is meant: refused; then the newest is the disk."""
    server = replica(test)
    checkpoint(server, 1)
    old = server.connect("vda@scratch")
    put(old, 0x11)
    checkpoint(server, 2)
    new = server.connect("vda@scratch")
    put(new, 0x22)
    refused(server.ask("promote scratch"), REFUSED, "vda@scratch", "checkpoint 1", "close")
    shows(old, 1, 0x11)
    shows(new, 2, 0x22)
    equal(server.status()["state"], "protected", "state")
    old.shutdown()
    poll("the promote", lambda: server.ask("promote scratch").get("generation") == 2)
    shows(new, 2, 0x22)
    shows(server.connect("vda@promoted"), 2, 0x22)


def test_reconnect(test):
    """Who comes back to NAME@scratch after it was promoted finds its disk, also when nbdkit was started anew."""
    for end in ("stop", "kill"):
        server = replica(test, ("vda", "vdb"))
        for path in ("vda.img", "vdb.img"):
            check(os.path.exists(test.path(path)))
        checkpoint(server, 1)
        h = [server.connect(n + "@scratch") for n in ("vda", "vdb")]
        put(h[0], 0x11)
        equal(server.ask("promote scratch")["generation"], 2, "generation")
        for g in h + server.inlets:
            g.shutdown()
        for lap in range(1, 4):
            h = [server.connect(n + "@scratch") for n in ("vda", "vdb")]
            shows(h[0], 1, 0x10 + lap)
            shows(h[1], 1, 0 if lap == 1 else 0x20 + lap)
            put(h[0], 0x11 + lap)
            put(h[1], 0x21 + lap)
            for g in h:
                g.flush()
            h.append(server.connect("vda@promoted"))
            shows(h[2], 1, 0x11 + lap)
            for g in h:
                g.shutdown()
            (server.stop if end == "stop" else server.kill)()
            server.start()
            equal(server.status()["state"], "promoted", "state")
        server.kill()
        tool("mcbuf-recover", server.journal)
        equal(read_file(test.path("vdb.img"))[SECOND:SECOND + 1], b"\x24", "image")
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))


def test_not_the_disk(test):
    """A plain promote discards it: whoever comes back to it must not write to the disk."""
    server = replica(test)
    checkpoint(server, 1)
    h = server.connect("vda@scratch")
    put(h, 0x11)
    equal(server.ask("promote")["generation"], 2, "generation")
    check(nbd_errno(h.pwrite, bytes(512), 0) != 0, "scratch outlived the promote")
    check(connect_errno(server, "vda@scratch") != 0, "scratch is served after a plain promote")
    server.kill()
    server.start()
    check(connect_errno(server, "vda@scratch") != 0, "scratch is served after a restart")
    shows(server.connect("vda@promoted"), 1)
    # Nor after another life.
    server.ask("resync overwrite")
    server.inlets = [server.connect("vda")]
    server.inlets[0].pwrite(bytes(SIZE), 0)
    n = checkpoint(server, 3)
    h = server.connect("vda@scratch")
    put(h, 0x33)
    equal(server.ask("promote scratch")["checkpoint"], n, "checkpoint")
    shows(server.connect("vda@scratch"), 3, 0x33)
    server.ask("resync overwrite")
    equal(nbd_errno(h.pread, 512, 0), errno.ESHUTDOWN, "the old disk's user")
    server.inlets = [server.connect("vda")]
    server.inlets[0].pwrite(bytes(SIZE), 0)
    checkpoint(server, 4)
    shows(server.connect("vda@scratch"), 4)
    server.ask("promote")
    check(connect_errno(server, "vda@scratch") != 0, "scratch of another promote")


def test_not_the_disk_offline(test):
    """Nor is it after a scratch was promoted in an earlier life and the server was killed in this one."""
    server = replica(test)
    checkpoint(server, 1)
    put(server.connect("vda@scratch"), 0x11)
    server.ask("promote scratch")
    server.ask("resync overwrite")
    server.inlets = [server.connect("vda")]
    server.inlets[0].pwrite(bytes(SIZE), 0)
    n = checkpoint(server, 2)
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], n, "checkpoint")
    server.start()
    equal(server.status()["state"], "promoted", "state")
    check(connect_errno(server, "vda@scratch") != 0, "scratch is the disk after a plain recovery")
    shows(server.connect("vda@promoted"), 2)


def test_reset_of_one(test):
    """One of two disks is reset after a commit, closed, and opened again."""
    server = replica(test, ("vda", "vdb"))
    checkpoint(server, 1)
    a, b = server.connect("vda@scratch"), server.connect("vdb@scratch")
    put(a, 0x11)
    put(b, 0x22)
    checkpoint(server, 2)
    server.ask("reset vda@scratch")
    shows(a, 2)
    shows(b, 1, 0x22)
    a.shutdown()
    poll("vda@scratch to be closed", lambda: server.status()["connections"] <= 3)
    # It was sought for ever; so not in this thread.
    found = []
    again = threading.Thread(target=lambda: found.append(server.connect("vda@scratch")), daemon=True)
    again.start()
    poll("vda@scratch to open again", lambda: found)
    shows(found[0], 2)
    shows(b, 1, 0x22)


def test_race(test):
    """Opens, writes and closes while commits, resets and promotes go on: each disk is one checkpoint and one's own."""
    server = replica(test, ("vda", "vdb"))
    checkpoint(server, 1)
    stop, failed = threading.Event(), []

    def client():
        while not stop.is_set():
            try:
                h = server.connect("vda@scratch")
                base = bytes(h.pread(1, 0))[0]
                h.pwrite(b"mine" * 1024, SECOND)
                g = server.connect("vdb@scratch")
                g.pread(4096, 0)
                data = bytes(h.pread(4096, 0))
                if data != data[:1] * 4096 or data[0] < base:
                    failed.append(data[:16])
                g.shutdown()
                h.shutdown()
            except nbd.Error as e:
                # A promote ends it, and a join that a newer set has overtaken is none.
                if e.errnum not in (0, errno.ESHUTDOWN, errno.EIO, errno.ENOENT) or not server.is_running():
                    failed.append(str(e))
    threads = [threading.Thread(target=client) for _ in range(10)]
    for t in threads:
        t.start()
    for n in range(2, 60):
        checkpoint(server, n)
        if n % 3 == 0:
            server.ask("reset vda@scratch")
        if n % 10 == 0:
            server.ask("promote scratch")       # refused, most likely
            if server.status()["state"] == "promoted":
                break
    answer = server.ask("promote scratch")
    state = server.status()["state"]
    stop.set()
    for t in threads:
        t.join()
    equal(failed, [], "failed")
    check(state == ("protected" if "error" in answer else "promoted"), answer, state)
    check(server.is_running(), server.said())
    if state == "protected":
        checkpoint(server, 99)
        shows(server.connect("vdb@scratch"), 99)


main(globals())
