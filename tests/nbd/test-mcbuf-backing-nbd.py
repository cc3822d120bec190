#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backing images that are NBD exports: what they take, what is refused, recovery."""

import errno
import os
import random
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd

from libmcbuf import (KiB, MiB, NO_CHECKPOINT, PARTIAL, USAGE, Disk, Server, StartError,
                      check, equal, main, nbd_errno, poll, random_data, random_range, read_all, read_file,
                      same, seeded, sparse_file, tool, tool_path)
from libstore import Store

SIZE = 8 * MiB


def replica(test, disks, *params, journal="j", **options):
    """DISKS: stores or paths by name."""
    args = ["disk=%s%s" % (name + ":" if name else "", getattr(d, "uri", d))
            for name, d in disks.items()]
    return Server(test, *args, "journal=" + test.path(journal), "journal-size=64M",
                  "buffer=8M", *params, **options)


def some_writes(rng, h, disk, n=60, most=256 * KiB, whole=False):
    """WHOLE: whole sectors, for which nothing is read."""
    for _ in range(n):
        at, length = random_range(rng, disk.size, most)
        if whole:
            at, length = at & -512, (length + 511) & -512
        kind = rng.randrange(8)
        if kind == 0:
            h.zero(length, at, nbd.CMD_FLAG_NO_HOLE if rng.randrange(2) else 0)
            disk.zero(at, length)
        elif kind == 1:
            h.trim(length, at)
            disk.zero(at, length)
        else:
            data = random_data(rng, length)
            h.pwrite(data, at, nbd.CMD_FLAG_FUA if kind == 2 else 0)
            disk.write(at, data)


def life(test, rng, stores, *params):
    """Syncing, protected, promoted; each disk is compared on the way and in the store."""
    server = replica(test, stores, *params)
    disks = {name: Disk(s.size) for name, s in stores.items()}
    handles = {name: server.connect(name) for name in stores}
    for name, h in handles.items():
        some_writes(rng, h, disks[name])
        same(read_all(h), bytes(disks[name].now), "syncing", name)
        h.flush()
    server.commit()
    for name, s in stores.items():
        same(s.content(), bytes(disks[name].now), "the first copy in the store of", name)
    for _ in range(3):
        for name, h in handles.items():
            some_writes(rng, h, disks[name])
        server.commit()
    for name, h in handles.items():
        same(read_all(h), bytes(disks[name].now), "protected", name)
    server.drained()
    for name, s in stores.items():
        same(s.content(), bytes(disks[name].now), "written out to the store of", name)
    for h in handles.values():
        h.pwrite(b"speculation" * 1000, 12345)
        h.shutdown()
    tool("mcbuf-recover", "--wait", server.journal)
    for name, s in stores.items():
        same(s.content(), bytes(disks[name].now), "promoted, in the store of", name)
        h = server.connect(name + "@promoted", block_status=True)
        some_writes(rng, h, disks[name])
        h.flush()
        same(read_all(h), bytes(disks[name].now), "promoted and written", name)
        same(s.content(), bytes(disks[name].now), "promoted and flushed, in the store of", name)
        h.shutdown()
    server.stop()
    server.start()
    for name in stores:
        h = server.connect(name + "@promoted")
        same(read_all(h), bytes(disks[name].now), "started again", name)


def test_life_qcow2(test):
    """qemu-nbd with a qcow2 image."""
    life(test, seeded("qcow2"), {"": Store(test, SIZE, "qcow2")})


def test_life_group(test):
    """A qcow2 image, a file by TCP, and a plain image in one replica."""
    rng = seeded("group")
    life(test, rng, {"vda": Store(test, SIZE, "qcow2"),
                     "vdb": Store(test, 3 * MiB, "file", tcp=True),
                     "vdc": Store(test, 5 * MiB + 12800, "file")})


def test_life_block_sizes(test):
    """A server that takes only 4 KiB blocks, and at most 64 KiB at once."""
    store = blocks_store(test, SIZE)
    h = store.connect()
    h.set_strict_mode(0)
    equal(nbd_errno(h.pwrite, b"x" * 512, 0), errno.EINVAL, "a small write to the store")
    h.shutdown()
    life(test, seeded("block sizes"), {"": store})


def blocks_store(test, size):
    """A server that takes only whole 4 KiB blocks, and at most 64 KiB at once."""
    store = Store(test, size, "file")
    store.stop()
    store.argv = lambda: ["nbdkit", "-f", "-U", store.sock, "--filter=blocksize-policy",
                          "file", store.file, "blocksize-minimum=4096",
                          "blocksize-preferred=4096", "blocksize-maximum=65536",
                          "blocksize-error-policy=error"]
    return store.start()


def test_parallel(test):
    """Many at once write neighbouring pieces of blocks that can only be written whole."""
    seed = seeded("parallel")
    # The last server leaves connections that are one too many waiting, instead of refusing them.
    for store in (blocks_store(test, MiB), Store(test, MiB, "qcow2"),
                  Store(test, MiB, "qcow2", clients=2)):
        server = replica(test, {"": store}, journal=os.path.basename(store.file) + "j")
        disk = Disk(MiB)
        failed = []

        def work(k, rng, server=server, disk=disk, failed=failed):
            try:
                h = server.connect()
                for i in range(200):
                    at, length = i * 4096 + k * 512 + rng.randrange(256), rng.randrange(1, 256)
                    data = random_data(rng, length)
                    h.pwrite(data, at)
                    disk.write(at, data)
                    equal(bytes(h.pread(length, at)), data, "read back at", at)
                h.shutdown()
            except Exception as error:  # pylint: disable=broad-except
                failed.append(error)

        threads = [threading.Thread(target=work, args=(k, random.Random(seed.random())))
                   for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        check(not failed, failed)
        server.commit()
        server.stop()
        same(store.content(), bytes(disk.now), "in the store")


def test_life_no_zero(test):
    """A server that knows neither zeroes nor trims nor holes, and one client at a time."""
    store = Store(test, SIZE, "file")
    store.stop()
    store.argv = lambda: ["nbdkit", "-f", "-U", store.sock, "--filter=nozero", "--filter=noextents",
                          "--filter=multi-conn", "file", store.file, "zeromode=none",
                          "multi-conn-mode=disable"]
    store.start()
    life(test, seeded("no zero"), {"": store})


def test_holes(test):
    """Holes of the store are holes of the inlet, and what is trimmed becomes one."""
    store = Store(test, SIZE, "qcow2")
    server = replica(test, {"": store})
    h = server.connect(block_status=True)
    h.pwrite(b"x" * MiB, 2 * MiB)
    h.zero(512 * KiB, 2 * MiB)
    found = []
    h.block_status(SIZE, 0, lambda _, at, entries, err: found.extend(entries))
    ends, at = [], 0
    for length, flags in zip(found[::2], found[1::2]):
        at += length
        ends.append((at, flags & 3))
    equal(ends, [(2 * MiB + 512 * KiB, 3), (3 * MiB, 0), (SIZE, 3)], "extents")
    data = h.get_size()
    equal(data, SIZE, "size")


def fails(test, words, *params):
    try:
        Server(test, *params, journal=test.path("none"))
    except StartError as error:
        lines = str(error).strip().splitlines()
        equal(len(lines), 1, "lines of", lines)
        for word in words:
            check(word in lines[0], "no word", repr(word), "in", lines[0])
        check(not os.path.exists(test.path("none/journal")), "a journal was made")
        return
    check(False, "started with", params)


def test_refused(test):
    """Exports that will not do, each with one clear line."""
    journal = "journal=" + test.path("none")
    store = Store(test, SIZE, "file")
    fails(test, ["journal=DIR is needed"], store.uri)
    fails(test, ["absolute"], "nbd+unix:///?socket=n", journal)
    fails(test, ["No such file", "nowhere"], "nbd+unix:///?socket=" + test.path("nowhere"), journal)
    fails(test, ["refused"], "nbd://localhost:%d" % test.port(), journal)
    fails(test, ["size= says"], store.uri, "size=9M", journal)
    fails(test, ["twice"], "disk=a:" + store.uri, "disk=b:" + store.uri, journal)
    readonly = Store(test, SIZE, "file", options=["-r"])
    fails(test, ["read-only"], readonly.uri, journal)
    empty = Store(test, 0, "file")
    fails(test, ["empty"], empty.uri, journal)
    noflush = Store(test, SIZE, "file")
    noflush.stop()
    noflush.argv = lambda: ["nbdkit", "-f", "-U", noflush.sock, "eval", "get_size=echo 1M",
                            "pread=dd if=/dev/zero count=$3 iflag=count_bytes", "pwrite=cat >/dev/null"]
    noflush.start()
    fails(test, ["cannot flush"], noflush.uri, journal)


def test_other_export(test):
    """An image that was swapped, resized, or has moved."""
    store, other = Store(test, SIZE, "file"), Store(test, SIZE, "file")
    server = replica(test, {"vda": store}, "baseline=trusted")
    server.stop()

    def refuses(words, uri):
        try:
            replica(test, {"vda": uri})
        except StartError as error:
            for word in words:
                check(word in str(error), "no word", repr(word), "in", error)
            return
        check(False, "started with", uri)

    refuses(["vda", store.uri, other.uri], other.uri)
    refuses(["vda", store.uri], sparse_file(test.path("plain.img"), SIZE))
    store.stop()
    replica(test, {"vda": other}).stop()        # nothing is left at the old place
    other.stop()
    os.truncate(other.file, SIZE + 512)
    other.start()
    refuses(["vda", str(SIZE), str(SIZE + 512)], other.uri)


def test_recover_offline(test):
    """mcbuf-recover writes to the export itself, also to one that has moved."""
    rng = seeded("recover")
    stores = {"vda": Store(test, SIZE, "qcow2"), "vdb": Store(test, SIZE, "lossy")}
    server = replica(test, stores, "baseline=trusted")
    disks = {name: Disk(SIZE) for name in stores}
    stores["vdb"].pause()               # the backlog stays one
    for name in stores:
        h = server.connect(name)
        some_writes(rng, h, disks[name], whole=True)
    server.commit()
    h.pwrite(b"s" * 512, 0)
    server.kill()
    stores["vdb"].kill()
    r = tool("mcbuf-recover", server.journal, code=USAGE)
    check("vdb" in r.err or stores["vdb"].sock in r.err, r)
    stores["vdb"].sock = test.unique("moved")
    stores["vdb"].start()
    r = tool("mcbuf-recover", server.journal, code=USAGE)
    r = tool("mcbuf-recover", server.journal, "--disk=vdb:nbd+unix:///?socket=rel", code=USAGE)
    check("absolute" in r.err, r)
    r = tool("mcbuf-recover", server.journal, "--disk=vdb:" + stores["vdb"].uri)
    stores["vdb"].kill()                # whatever is not durable is gone
    stores["vdb"].start()
    for name, s in stores.items():
        same(s.content(), bytes(disks[name].now), "recovered", name)
    tool("mcbuf-recover", server.journal)       # the new place was noted


def test_recover_without_checkpoint(test):
    """The image of a first copy must not be used, wherever it is."""
    store = Store(test, SIZE, "file")
    server = replica(test, {"": store})
    server.connect().pwrite(b"x" * 4096, 0)
    server.kill()
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)


def test_recover_killed_store(test):
    """The server dies during recovery: exit 5, and again goes on."""
    rng = seeded("killed store")
    store = Store(test, 16 * MiB, "lossy")
    server = replica(test, {"": store}, "baseline=trusted")
    disk = Disk(16 * MiB)
    store.pause()
    h = server.connect()
    for _ in range(3):
        some_writes(rng, h, disk, 20, MiB, whole=True)
        server.commit()
    server.kill()
    store.kill()
    plain, log = store.argv, test.path("requests")
    store.argv = lambda: ["nbdkit", "-f", "-U", store.sock, "--filter=log", "--filter=delay",
                          "--filter=cache", "file", store.file, "logfile=" + log, "wdelay=20ms"]
    store.start()
    p = test.spawn([tool_path("mcbuf-recover"), server.journal], ours=True)
    poll("recovery to write", lambda: b" Write " in read_file(log) or p.poll() is not None)
    store.kill()
    equal(p.wait(), PARTIAL, "exit code of a recovery whose store died")
    store.argv = plain
    store.start()
    tool("mcbuf-recover", server.journal)
    store.kill()
    store.start()
    same(store.content(), bytes(disk.now), "recovered")


if __name__ == "__main__":
    main(globals())
