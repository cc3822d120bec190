#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Limits: nothing wedges, nothing committed is lost, and what is used is bounded."""

import errno
import glob
import os
import resource
import signal
import socket
import struct
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd

from libmcbuf import (DEADLINE, KiB, MiB, PRELOAD, REFUSED, SLOW, WRAPPER, Disk, Failure, Server, check, done, equal, main, nbd_errno, poll, random_data,
                      read_all, read_file, refused, same, seeded, skip, sparse_file, tool)
from libstore import Store

SIZE = 8 * MiB


def replica(test, *params, size=SIZE, **options):
    return Server(test, sparse_file(test.path("disk.img"), size), *params,
                  **options)


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle(test):
    """A replica with nothing to do takes no processor, in whatever state it is."""
    server = replica(test, "journal-size=32M", "buffer=8M")

    def idle(what):
        before, began = cpu_seconds(server.pid), time.monotonic()
        poll("some time to pass", lambda: time.monotonic() - began > 1)
        used = cpu_seconds(server.pid) - before
        check(used < 0.2 * SLOW, "%s: %.2f s of processor time in one second" % (what, used))

    h = server.connect()
    h.pwrite(b"x" * 4096, 0)
    idle("syncing")
    server.commit()
    h.pwrite(b"y" * 4096, 0)
    server.commit()
    idle("protected")
    h.shutdown()
    tool("mcbuf-recover", "--wait", server.journal)
    idle("promoted")
    server.stop()
    server.start()
    idle("promoted, started again")


def memory(pid):
    """Anonymous memory of a process, bytes."""
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * KiB
    return 0


def shared(server):
    """What the replica has in /dev/shm."""
    return sum(os.stat(p).st_blocks * 512
               for p in glob.glob("/dev/shm/mcbuf-%s*" % server.replica))


def stale_for(server, *words):
    """The replica is stale, says why and what to raise; the checkpoint stays."""
    s = server.status()
    equal(s["state"], "stale", "state")
    for word in words:
        check(word in s["reason"], "no word", repr(word), "in", s["reason"])


def recovered(server, want, path, *what):
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(path), want, *what)


def write_spread(h, spots):
    """One 4 KiB block at each of SPOTS, many at a time."""
    for i in range(0, len(spots), 64):
        inflight = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"y" * 4096)), at * 4096)
                    for at in spots[i:i + 64]]
        while inflight:
            h.poll(-1)
            inflight = [c for c in inflight if not h.aio_command_completed(c)]


def test_memory_history(test):
    """History, a view of an older checkpoint, a scratch, a promote: 64 bytes a block each, as the page says."""
    if WRAPPER or PRELOAD:
        return                          # they take what they like
    size, blocks, checkpoints = 512 * MiB, 8000, 5
    server = replica(test, "journal-size=384M", "buffer=8M", "baseline=trusted", "history=100", size=size,
                     nbdkit=["-t", "2"])
    rng = seeded("memory of history")
    places = range(1, size // 4096)     # block 0 is what the view is known by
    h = server.connect()
    h.pwrite(b"x" * 4096, 0)
    server.commit()
    state = {"before": memory(server.pid)}

    def grown(what, most):
        now = memory(server.pid)
        n = now - state["before"]
        print("%s: %.2f MiB, at most %.2f" % (what, n / MiB, most / MiB))
        check(n <= most, what, "took %.2f MiB, more than %.2f" % (n / MiB, most / MiB))
        state["before"] = max(now, state["before"])

    for _ in range(checkpoints):
        write_spread(h, rng.sample(places, blocks))
        server.commit()
    grown("history", 64 * blocks * checkpoints + 4 * MiB)
    view = server.connect("@3")
    equal(view.pread(4096, 0), b"x" * 4096, "checkpoint 3")
    grown("a view of an older checkpoint", 64 * 2 * blocks + 4 * MiB)
    scratch = server.connect("@scratch")
    write_spread(scratch, rng.sample(places, blocks))
    grown("a scratch", 64 * blocks + 4 * MiB)
    for client in (view, scratch, h):
        client.shutdown()
    done(server.ask("reset @scratch"))
    server.ask("promote")
    poll("the backlog to drain", lambda: server.status().get("drained"))
    grown("a promote", 16 * MiB + size // (64 * KiB))
    check(shared(server) <= 8 * MiB + 256 * KiB, "shared memory:", shared(server))
    equal(os.path.getsize(os.path.join(server.journal, "divergence")), 4096 + size // (64 * KiB), "file divergence")


def test_memory(test):
    """A large epoch takes at most 64 bytes of memory a block, beside the buffer."""
    if WRAPPER or PRELOAD:
        return                          # they take what they like
    size, blocks = 512 * MiB, 40000
    server = replica(test, "journal-size=384M", "buffer=8M", "baseline=trusted", size=size)
    h = server.connect()
    h.pwrite(b"x" * 4096, 0)
    server.commit()
    server.drained()
    before = memory(server.pid)
    rng = seeded("memory")
    spots = rng.sample(range(size // 4096), blocks)
    write_spread(h, spots)
    grown = memory(server.pid) - before
    check(grown <= 64 * blocks + 4 * MiB, "%d blocks took %.1f MiB, %.1f bytes each" %
          (blocks, grown / MiB, grown / blocks))
    check(shared(server) <= 8 * MiB + 256 * KiB, "shared memory:", shared(server))
    server.commit()
    poll("write-out", lambda: server.status()["written_out"] == 2)
    grown = memory(server.pid) - before
    check(grown <= 16 * MiB, "after write-out: %.1f MiB more" % (grown / MiB))
    check(shared(server) <= 8 * MiB + 256 * KiB, "shared memory:", shared(server))


def test_thousand_seals(test):
    """A thousand seals without a commit, with little in each: also after a crash."""
    server = replica(test, "journal-size=64M", "buffer=8M", "baseline=trusted")
    h = server.connect()
    h.pwrite(b"x" * 4096, 0)
    server.commit()
    before = memory(server.pid)
    disk = Disk(SIZE)
    disk.write(0, b"x" * 4096)
    rng = seeded("seals")
    for _ in range(1000):
        at = rng.randrange(SIZE // 4096) * 4096
        data = random_data(rng, 4096)
        h.pwrite(data, at)
        disk.write(at, data)
        server.seal()
    equal(server.status()["sealed_epochs"], 1000, "sealed")
    bounded = 1000 * 8 * KiB + 24 * MiB

    def is_small():
        return memory(server.pid) - before <= bounded
    if not WRAPPER and not PRELOAD:
        poll("memory to be given back", is_small, 20 * SLOW)
    same(read_all(h), bytes(disk.now), "through a thousand epochs")
    server.kill()
    server.start()
    equal(server.status()["sealed_epochs"], 1000, "sealed, after a crash")
    if not WRAPPER and not PRELOAD:
        check(memory(server.pid) - before <= bounded, "after a crash: %.1f MiB" %
              (memory(server.pid) / MiB))
    h = server.connect()
    same(read_all(h), bytes(disk.now), "after a crash")
    server.commit()
    recovered(server, bytes(disk.now), test.path("disk.img"), "recovered")


def test_epoch_over_buffer(test):
    """An epoch several times the size of the buffer."""
    server = replica(test, "journal-size=128M", "buffer=8M", "baseline=trusted", size=64 * MiB)
    rng = seeded("over buffer")
    h = server.connect()
    want = random_data(rng, 64 * MiB)
    for at in range(0, 64 * MiB, 4 * MiB):
        h.pwrite(want[at:at + 4 * MiB], at)
    same(read_all(h), want, "read back")
    server.commit()
    recovered(server, want, test.path("disk.img"), "recovered")


def test_epoch_over_journal(test):
    """An epoch larger than the journal: ENOSPC, stale, and the last checkpoint is whole."""
    server = replica(test, "journal-size=16M", "buffer=8M", "baseline=trusted", size=64 * MiB)
    rng = seeded("over journal")
    h = server.connect()
    first = random_data(rng, 2 * MiB)
    h.pwrite(first, 0)
    server.commit(label="kept")
    server.drained()
    code = 0
    for at in range(0, 64 * MiB, MiB):
        code = nbd_errno(h.pwrite, random_data(rng, MiB), at)
        if code:
            break
    equal(code, errno.ENOSPC, "the write that is too much")
    stale_for(server, "journal-size", "commit more often")
    refused(server.ask("commit"), REFUSED, "stale")
    check("journal-size" in tool("mcbuf-status", server.journal, code=(0, REFUSED)).out, "status")
    # The way out, with epochs that fit.
    done(server.ask("resync"))
    h = server.connect()
    disk = Disk(64 * MiB)
    for at in range(0, 64 * MiB, 2 * MiB):
        data = random_data(rng, 2 * MiB)
        h.pwrite(data, at)
        disk.write(at, data)
        if at == 0:
            kept = bytes(disk.now)
        if at % (4 * MiB):
            server.commit()
    del kept
    recovered(server, bytes(disk.now), test.path("disk.img"), "recovered")


def test_slow_backing(test):
    """Write-out far slower than the writers: they are held back, and nothing is refused."""
    rng = seeded("slow")
    store = Store(test, 16 * MiB, "file")
    store.stop()
    store.argv = lambda: ["nbdkit", "-f", "-U", store.sock, "--filter=delay", "file", store.file,
                          "wdelay=30ms"]
    store.start()
    server = Server(test, "disk=" + store.uri, "journal=" + test.path("j"), "journal-size=32M",
                    "buffer=8M", "baseline=trusted")
    h = server.connect()
    disk = Disk(16 * MiB)
    began = time.monotonic()
    soft = False
    for i in range(20):
        for _ in range(4):
            at = rng.randrange(16) * MiB
            data = random_data(rng, MiB)
            h.pwrite(data, at)
            disk.write(at, data)
        latency = server.commit()["latency_us"]
        soft = soft or "runs short" in server.status()["reason"]
        check(latency < 5e6 * SLOW, "commit", i, "took", latency, "us")
    print("80 MiB in %.1f s" % (time.monotonic() - began))
    check(soft, "status said nothing of a journal that runs short")
    equal(server.status()["state"], "protected", "state")
    same(read_all(h), bytes(disk.now), "read back")
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(store.content(), bytes(disk.now), "recovered")


def test_full_and_paused(test):
    """The journal fills up because a backing image fails: that is what is said."""
    rng = seeded("paused")
    store = Store(test, SIZE, "lossy")
    server = Server(test, "disk=" + store.uri, "journal=" + test.path("j"), "journal-size=16M",
                    "buffer=8M", "baseline=trusted")
    h = server.connect()
    disk = Disk(SIZE)
    store.kill()
    code = 0
    while not code:
        at, data = rng.randrange(SIZE // MiB) * MiB, random_data(rng, MiB)
        code = nbd_errno(h.pwrite, data, at)
        if not code:
            disk.write(at, data)
            kept = server.commit()["checkpoint"]
    equal(code, errno.ENOSPC, "the write that is too much")
    stale_for(server, "journal is full", store.uri, "journal-size")
    store.start()
    poll("write-out", lambda: server.status()["written_out"] == kept)
    same(store.content(), bytes(disk.now), "written out")
    done(server.ask("resync"))
    h = server.connect()
    h.pwrite(bytes(disk.now), 0)
    server.commit()


def handshake(server, export=b""):
    """A socket that has just come through NBD's handshake, by hand."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(DEADLINE)
    s.connect(server.sock)

    def get(n):
        data = b""
        while len(data) < n:
            more = s.recv(n - len(data))
            check(more, "the server hung up")
            data += more
        return data

    get(18)
    s.sendall(struct.pack(">I", 3))     # fixed newstyle, no zeroes
    s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(export)) + export)
    get(10)
    return s


def request(kind, offset, length, cookie=1):
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length)


def test_rude_clients(test):
    """Clients that say nothing, half a request, or go in the middle of one."""
    # One thread a connection: see test_rude_default.
    server = replica(test, "journal-size=64M", "buffer=8M", "baseline=trusted",
                     nbdkit=["-t", "1"])
    rng = seeded("rude")
    disk = Disk(SIZE)
    good = server.connect()
    rude = []
    for lap in range(60):
        kind = lap % 6
        if kind == 0:                   # not a word
            s = socket.socket(socket.AF_UNIX)
            s.connect(server.sock)
        else:
            s = handshake(server)
            if kind == 1:               # half a header
                s.sendall(request(1, 0, 4096)[:rng.randrange(1, 28)])
            elif kind == 2:             # a write with half of its data
                s.sendall(request(1, 0, MiB) + b"r" * rng.randrange(0, MiB // 2))
            elif kind == 3:             # reads whose answers nobody takes
                for i in range(20):
                    s.sendall(request(0, 0, MiB, i))
            elif kind == 4:             # rubbish
                s.sendall(rng.randbytes(100))
        if rng.randrange(3):
            s.close()
        else:
            rude.append(s)
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(os.path.join(server.journal, "control"))
            control.sendall((b"", b"com", b"commit label=half", rng.randbytes(50))[lap % 4])
        data = random_data(rng, 64 * KiB)
        at = rng.randrange(SIZE // (64 * KiB)) * 64 * KiB
        good.pwrite(data, at)
        disk.write(at, data)
        if lap % 10 == 9:
            equal(server.commit()["checkpoint"], lap // 10 + 1, "checkpoint")
    same(read_all(good), bytes(disk.now), "what the good one wrote")
    equal(server.status()["state"], "protected", "state")
    good.shutdown()
    for s in rude:
        s.close()
    server.stop()
    server.start()
    same(read_all(server.connect()), bytes(disk.now), "after a restart")


def test_rude_default(test):
    """The same with nbdkit's 16 threads a connection, for which nbdkit 1.32 itself aborts: nothing is lost.

    When a client goes while two threads answer it, nbdkit before 1.34 ends in an assertion, with every plugin.
    """
    server = replica(test, "journal-size=64M", "buffer=8M", "baseline=trusted")
    rng = seeded("rude default")
    disk = Disk(SIZE)
    state = {"good": server.connect(), "last": 0, "aborts": 0}

    def rude(kind):
        """Twenty reads, or writes of zeroes to the last MiB, which has nothing else; and gone."""
        s = handshake(server)
        for i in range(20):
            s.sendall(request(0, 0, MiB // 2, i) if kind == 0 else
                      request(1, SIZE - MiB + i * 4096, 4096, i) + bytes(4096))
        s.close()

    def write(at, data):
        state["good"].pwrite(data, at)
        disk.write(at, data)

    def again():
        """nbdkit has aborted, for that reason and no other; all is there."""
        poll("nbdkit's end", lambda: not server.is_running())
        check(server.process.returncode == -signal.SIGABRT and "Assertion `sock >= 0' failed" in server.said(),
              "nbdkit ended with", server.process.returncode, server.said())
        state["aborts"] += 1
        server.start()
        state["good"] = server.connect()

    def same_as_ever():
        equal(server.status()["state"], "protected", "state")
        check((server.status()["checkpoint"] or {"id": 0})["id"] >= state["last"], "a checkpoint is gone")
        same(read_all(state["good"]), bytes(disk.now), "after abort", state["aborts"])

    for lap in range(30):
        at, data = rng.randrange(SIZE // MiB - 1) * MiB, random_data(rng, 64 * KiB)
        try:
            write(at, data)
            if lap % 5 == 4:
                state["last"] = server.commit()["checkpoint"]
            rude(lap % 2)
        except (nbd.Error, OSError, Failure) as error:
            print("lap", lap, error)
            again()
            write(at, data)             # sent again, as a mirror with reconnect-delay does
            same_as_ever()
    print("nbdkit aborted %d times" % state["aborts"])
    try:
        poll("the rude ones to be gone", lambda: server.ask("status")["connections"] == 1)
        same_as_ever()
    except (nbd.Error, OSError, Failure):
        again()
        same_as_ever()
    server.commit()
    recovered(server, bytes(disk.now), test.path("disk.img"), "recovered")


def test_thousand_connections(test):
    """A thousand NBD connections, and as many that want to control."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        skip("no more than %d open files" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    try:
        # One thread for each, so that it is the plugin that is put to the test.
        server = replica(test, "journal-size=64M", "buffer=8M", "baseline=trusted",
                         nbdkit=["-t", "1"], start=False)
        if not WRAPPER:                 # as a shell starts it; the plugin has to ask for more
            plain = server.argv()
            server.argv = lambda: ["prlimit", "--nofile=1024:%d" % hard] + plain
        server.start()
        before = memory(server.pid)
        clients = [handshake(server) for _ in range(1000)]
        equal(server.status()["connections"], 1000, "connections")
        rng = seeded("thousand")
        disk = Disk(SIZE)
        h = server.connect()
        for i in range(0, 1000, 10):
            data = random_data(rng, 4096)
            clients[i].sendall(request(1, i * 4096, 4096) + data)
            check(len(clients[i].recv(16)) == 16, "no answer")
            disk.write(i * 4096, data)
        same(read_all(h), bytes(disk.now), "read back")
        server.commit()
        if not WRAPPER and not PRELOAD:
            grown = (memory(server.pid) - before) // 1000
            check(grown < 64 * KiB, "a connection takes", grown, "bytes")
        controls = []
        for _ in range(1000):
            s = socket.socket(socket.AF_UNIX)
            s.connect(os.path.join(server.journal, "control"))
            controls.append(s)
        h.pwrite(b"last", 0)
        disk.write(0, b"last")
        # What is refused is told so; whoever was there before goes on.
        controls[0].sendall(b"commit\n")
        controls[0].settimeout(DEADLINE)
        check(b"checkpoint" in controls[0].recv(4096), "no commit")
        controls[-1].settimeout(DEADLINE)
        check(b"too many" in controls[-1].recv(4096), "not told")
        for s in controls + clients:
            s.close()
        poll("them to be gone", lambda: try_status(server) == 1)
        h.shutdown()
        recovered(server, bytes(disk.now), test.path("disk.img"), "recovered")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def try_status(server):
    status = server.ask("status")
    return status.get("connections")


if __name__ == "__main__":
    main(globals())
