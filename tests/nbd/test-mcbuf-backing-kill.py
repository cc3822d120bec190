#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""SIGKILL of a backing image's NBD server, and of ours, in every phase.

The servers that are killed keep what is not flushed in a cache of their own and
lose it: what a replica claims to be durable must not be in there.
"""

import errno
import os
import sys
import time

import nbd

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, NO_CHECKPOINT, REFUSED, SLOW, Disk, Server, check, done, equal, main,
                      nbd_errno, poll, random_data, random_range, read_all, refused, same, seeded,
                      tool)
from libstore import Store

SIZE = 8 * MiB
EIO = errno.EIO


def replica(test, store, *params, **options):
    return Server(test, "disk=" + store.uri, "journal=" + test.path("j"), "journal-size=64M",
                  "buffer=8M", *params, **options)


def write(rng, h, disk, n=10, most=256 * KiB):
    """Whole sectors: nothing is read for them."""
    for _ in range(n):
        at, length = random_range(rng, disk.size, most)
        at, length = at & -512, (length + 511) & -512
        if rng.randrange(6) == 0:
            h.zero(length, at)
            disk.zero(at, length)
        else:
            data = random_data(rng, length)
            h.pwrite(data, at)
            disk.write(at, data)


def restart(store):
    store.kill()
    store.start()


def durable(store, disk, *what):
    """What is there after the store has died once more?"""
    restart(store)
    same(store.content(), bytes(disk.now), *what)


def ways_out(test, rng, server, store):
    """The replica has lost a part of its first copy: it says so, and another one is whole."""
    s = server.status()
    equal(s["state"], "stale", "state in", s)
    refused(server.ask("commit"), REFUSED, "stale")
    tool("mcbuf-recover", "--list", server.journal, code=NO_CHECKPOINT)
    done(server.ask("resync overwrite"))
    disk = Disk(SIZE, store.content())
    h = server.connect()
    write(rng, h, disk)
    server.commit()
    durable(store, disk, "the second copy")
    write(rng, h, disk)
    server.commit()
    server.drained()
    durable(store, disk, "write-out after it")
    h.shutdown()


def test_syncing_write(test):
    """The store dies with writes of the first copy: the next write is refused."""
    rng = seeded("syncing write")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store)
    h = server.connect()
    write(rng, h, Disk(SIZE))
    restart(store)
    equal(nbd_errno(h.pwrite, b"x" * 4096, 0), EIO, "a write after that")
    h.shutdown()
    ways_out(test, rng, server, store)


def test_syncing_commit(test):
    """The same, and a commit is what comes next."""
    rng = seeded("syncing commit")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store)
    h = server.connect()
    write(rng, h, Disk(SIZE))
    restart(store)
    refused(server.ask("commit"), REFUSED, "durable")
    h.shutdown()
    ways_out(test, rng, server, store)


def test_syncing_flush(test):
    """The same, and a flush."""
    rng = seeded("syncing flush")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store)
    h = server.connect()
    write(rng, h, Disk(SIZE))
    restart(store)
    equal(nbd_errno(h.flush), EIO, "a flush after that")
    h.shutdown()
    ways_out(test, rng, server, store)


def test_syncing_gone(test):
    """The store is gone."""
    rng = seeded("syncing gone")
    store = Store(test, SIZE, "qcow2")
    server = replica(test, store)
    h = server.connect()
    store.kill()
    equal(nbd_errno(h.pwrite, b"x" * 4096, 0), EIO, "a write to no store")
    h.shutdown()
    store.start()
    ways_out(test, rng, server, store)


def test_syncing_flushed(test):
    """With all writes flushed nothing is lost, and the copy goes on."""
    rng = seeded("syncing flushed")
    for kind in ("lossy", "qcow2"):
        store = Store(test, SIZE, kind)
        server = Server(test, "disk=" + store.uri, "journal=" + test.path(kind),
                        "journal-size=64M", "buffer=8M")
        disk = Disk(SIZE)
        h = server.connect()
        for _ in range(3):
            write(rng, h, disk)
            h.flush()
            restart(store)
        write(rng, h, disk)
        server.commit()
        durable(store, disk, "the first copy")
        h.shutdown()
        server.stop()


def test_syncing_stopped(test):
    """A clean stop goes on; a crash of nbdkit does not: it has flushed nothing."""
    rng = seeded("syncing stopped")
    store = Store(test, SIZE, "lossy")
    disk = Disk(SIZE)
    server = replica(test, store)
    h = server.connect()
    write(rng, h, disk)
    h.shutdown()
    server.stop()
    restart(store)
    server.start()
    equal(server.status()["state"], "syncing", "state after a clean stop")
    h = server.connect()
    write(rng, h, disk)
    server.kill()
    server.start()
    ways_out(test, rng, server, store)


def test_syncing_closed(test):
    """A seal has closed the copy, and nbdkit crashes before the commit."""
    rng = seeded("syncing closed")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store)
    h = server.connect()
    write(rng, h, Disk(SIZE))
    server.seal()
    server.kill()
    restart(store)
    server.start()
    ways_out(test, rng, server, store)


def test_protected(test):
    """The store dies again and again while epochs are written out to it."""
    rng = seeded("protected")
    for kind in ("lossy", "qcow2"):
        store = Store(test, SIZE, kind)
        server = Server(test, "disk=" + store.uri, "journal=" + test.path(kind),
                        "journal-size=64M", "buffer=8M", "baseline=trusted")
        disk = Disk(SIZE)
        h = server.connect()
        deaths = 0
        for lap in range(60):
            write(rng, h, disk, 3)
            server.commit()
            if lap % 4 == 1:
                time.sleep(rng.uniform(0, 0.12))        # write-out begins 100 ms after a commit
                store.kill()
                deaths += 1
            elif store.process.poll() is not None:
                store.start()
        if store.process.poll() is not None:
            store.start()
        check(deaths > 10, "only", deaths, "deaths")
        same(read_all(h), bytes(disk.now), "through the inlet")
        poll("write-out", lambda s=server: s.status()["written_out"] ==
             s.status()["checkpoint"]["id"])
        durable(store, disk, "written out to", kind)
        h.shutdown()
        server.stop()


def test_protected_status(test):
    """Status says that write-out is paused; commits go on; it goes on by itself."""
    rng = seeded("status")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store, "baseline=trusted")
    disk = Disk(SIZE)
    h = server.connect()
    store.kill()
    write(rng, h, disk)
    server.commit()
    s = poll("write-out to fail", lambda: server.status()["writeout"]["error"] and server.status())
    check(store.uri in s["writeout"]["error"], s)
    equal(s["state"], "protected", "state")
    for _ in range(5):
        write(rng, h, disk)
        server.commit()
    store.start()
    poll("write-out", lambda: server.status()["written_out"] == server.status()["checkpoint"]["id"])
    equal(server.status()["writeout"]["error"], None, "error")
    durable(store, disk, "written out")


def test_protected_both(test):
    """Both die, in any order, with write-out under way."""
    rng = seeded("both")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store, "baseline=trusted")
    disk = Disk(SIZE)
    for lap in range(8):
        h = server.connect()
        for _ in range(3):
            write(rng, h, disk)
            server.commit()
        time.sleep(rng.uniform(0, 0.15))
        for p in rng.sample((server, store), 2):
            if p is server or rng.randrange(3):
                p.kill()
        if store.process.poll() is not None:
            store.start()
        if lap == 7:
            break
        server.start()
        equal(server.status()["state"], "protected", "state after a crash")
        same(read_all(server.connect()), bytes(disk.now), "through the inlet")
    tool("mcbuf-recover", server.journal)
    durable(store, disk, "recovered")


def promoted(test, rng, store, *params):
    server = replica(test, store, "baseline=trusted", *params)
    disk = Disk(SIZE)
    h = server.connect()
    write(rng, h, disk, 40)
    server.commit()
    h.pwrite(b"s" * 512, 0)
    h.shutdown()
    return server, disk


def test_promoted_drain(test):
    """The store dies while the backlog drains; promoted writes are journaled meanwhile."""
    rng = seeded("drain")
    store = Store(test, SIZE, "lossy")
    store.kill()
    store.start()
    server, disk = promoted(test, rng, store)
    store.kill()
    tool("mcbuf-recover", server.journal)
    h = server.connect("@promoted")
    for _ in range(3):
        try:
            write(rng, h, disk)
        except nbd.Error as error:
            # The backlog was drained when the store died, and status says so as soon as that is recorded.
            equal(error.errnum, EIO, error)
            poll("drained", lambda: server.status()["drained"])
            break
        h.flush()
        store.start()
        time.sleep(rng.uniform(0, 0.1))
        store.kill()
        if server.status()["drained"]:  # then it takes no more without its store
            break
    store.start()
    tool("mcbuf-recover", "--wait", server.journal, warns=True)
    durable(store, disk, "drained")
    same(read_all(h), bytes(disk.now), "the promoted disk")


def test_promoted_lost(test):
    """Writes to a drained disk that its store has lost: no flush says that they are durable."""
    rng = seeded("lost")
    store = Store(test, SIZE, "lossy")
    server, disk = promoted(test, rng, store)
    tool("mcbuf-recover", "--wait", server.journal)
    h = server.connect("@promoted")
    write(rng, h, disk)
    h.flush()
    restart(store)                      # nothing is lost: it goes on
    same(read_all(h), bytes(disk.now), "the promoted disk")
    write(rng, h, disk)
    h.flush()
    durable(store, disk, "flushed")
    write(rng, h, Disk(SIZE))
    restart(store)
    for _ in range(3):
        equal(nbd_errno(h.flush), EIO, "a flush of what is lost")
    check(nbd_errno(h.pwrite, b"x" * 4096, 0, 1) == EIO, "FUA after that")
    h.shutdown()
    server.stop()
    server.start()
    h = server.connect("@promoted")
    disk = Disk(SIZE, read_all(h))
    write(rng, h, disk)
    h.flush()
    durable(store, disk, "after a restart")


def test_hung(test):
    """A store that hangs: commits go on, and the server can be stopped."""
    rng = seeded("hung")
    store = Store(test, SIZE, "lossy")
    server = replica(test, store, "baseline=trusted")
    disk = Disk(SIZE)
    h = server.connect()
    store.pause()
    for _ in range(4):
        write(rng, h, disk)
        server.commit()
        time.sleep(0.05)
    h.shutdown()
    began = time.monotonic()
    done(server.ask("shutdown"))
    server.wait_end()
    check(time.monotonic() - began < 30 * SLOW, "the stop took", time.monotonic() - began)
    store.resume()
    restart(store)
    server.start()
    server.drained()
    durable(store, disk, "written out after a hang")


if __name__ == "__main__":
    main(globals())
