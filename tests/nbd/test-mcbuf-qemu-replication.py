#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The behaviour that QEMU tests for its own block replication, held against a replica.

The cases are those of QEMU's tests/unit/test-replication.c for the secondary:
read, write, start, stop, continuous replication, checkpoint, errors.  There the
three layers are active disk, hidden disk, secondary disk; here they are
speculation, write-out, backing image.  qemu-io does the requests.
"""

import errno
import itertools
import os
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, MiB, NO_CHECKPOINT, REFUSED, Server, check, connect_errno,
                      done, environment, equal, main, nbd_errno, read_file, refused,
                      same, sparse_file, tool)

SIZE = 8 * MiB
HALF = SIZE // 2


def replica(test, *params):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=64M",
                  "buffer=16M", *params)


def qemu_io(server, *commands, export=""):
    """qemu-io on an export: every command must succeed."""
    argv = ["qemu-io", "-f", "raw"]
    for command in commands:
        argv += ["-c", command]
    p = subprocess.run(argv + [server.uri(export)], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       env=environment(ours=False), timeout=60)
    check(p.returncode == 0 and "failed" not in p.stdout and "rror" not in p.stdout, p)


def image(test, pattern_of_halves):
    """The backing image, as one pattern byte for each half."""
    want = bytes([pattern_of_halves[0]]) * HALF + bytes([pattern_of_halves[1]]) * HALF
    same(read_file(test.path("disk.img")), want, "the image")


def test_read(test):
    """test_secondary_read: what is in the image is read through the replica."""
    server = replica(test, "baseline=trusted")
    qemu_io(server, "read -P 0 0 %d" % SIZE)


def test_write(test):
    """test_secondary_write: a write is read back at once, and is not in the image."""
    server = replica(test, "baseline=trusted")
    qemu_io(server, "write -P 0x11 0 %d" % HALF, "read -P 0x11 0 %d" % HALF,
            "read -P 0 %d %d" % (HALF, HALF))
    image(test, (0, 0))


def test_start(test):
    """test_secondary_start: with data in the image, then written over, then recovered."""
    server = replica(test)
    qemu_io(server, "write -P 0x11 %d %d" % (HALF, HALF))       # the first copy
    server.commit()
    image(test, (0, 0x11))
    qemu_io(server, "write -P 0x22 %d %d" % (HALF, HALF),
            "read -P 0x22 %d %d" % (HALF, HALF), "write -P 0x33 0 %d" % HALF)
    image(test, (0, 0x11))


def test_stop_with_failover(test):
    """test_secondary_stop: stop with failover keeps the checkpoint, drops what came after."""
    server = replica(test, "baseline=trusted")
    qemu_io(server, "write -P 0x22 %d %d" % (HALF, HALF))
    server.commit()
    qemu_io(server, "write -P 0x33 0 %d" % SIZE)
    tool("mcbuf-recover", "--wait", server.journal)
    image(test, (0, 0x22))
    qemu_io(server, "read -P 0 0 %d" % HALF, "read -P 0x22 %d %d" % (HALF, HALF),
            export="@promoted")


def test_continuous_replication(test):
    """test_secondary_continuous_replication: writes, checkpoint, writes over, failover."""
    server = replica(test, "baseline=trusted")
    qemu_io(server, "write -P 0x22 %d %d" % (HALF, HALF))
    server.commit()
    for pattern in (0x33, 0x44, 0x55):
        qemu_io(server, "write -P %d 0 %d" % (pattern, HALF),
                "read -P %d 0 %d" % (pattern, HALF),
                "read -P 0x22 %d %d" % (HALF, HALF))
        server.commit()
    qemu_io(server, "write -P 0x66 0 %d" % SIZE)
    server.kill()
    tool("mcbuf-recover", server.journal)
    image(test, (0x55, 0x22))


def test_checkpoint(test):
    """test_secondary_do_checkpoint: before it the image is old, after it the image is new."""
    server = replica(test, "baseline=trusted")
    for pattern in (0x11, 0x22, 0x33):
        before = read_file(test.path("disk.img"))
        qemu_io(server, "write -P %d %d %d" % (pattern, HALF, HALF))
        same(read_file(test.path("disk.img")), before, "the image before the checkpoint")
        server.commit()
        server.drained()
        image(test, (0, pattern))
        qemu_io(server, "read -P %d %d %d" % (pattern, HALF, HALF))


def test_errors(test):
    """test_secondary_get_error_all: no error while all is well, and status says so."""
    server = replica(test, "baseline=trusted")
    qemu_io(server, "write -P 1 0 %d" % SIZE)
    server.commit()
    s = server.status()
    equal((s["state"], s["writeout"].get("error") or None), ("protected", None), "status")


# Orders.  Each verb in each state: what it gets, and what it must leave alone.
STEPS = {
    # before any checkpoint: start (the mirror), stop, checkpoint in every order
    "checkpoint": lambda s: done(s.ask("commit")),
    "seal": lambda s: done(s.ask("seal")),
    "failover": lambda s: tool("mcbuf-recover", "--wait", s.journal, code=(DONE, NO_CHECKPOINT)),
    "restart": lambda s: (s.stop(), s.start()),
    "crash": lambda s: (s.kill(), s.start()),
}


def test_every_order(test):
    """Checkpoint, seal, stop, crash and failover in every order of three, each after a write."""
    for order in itertools.product(STEPS, repeat=3):
        server = replica(test)
        committed = None            # content of the last checkpoint, by pattern
        state = "syncing"
        for pattern, step in enumerate(order, 1):
            if state != "promoted":
                h = server.connect()
                equal(nbd_errno(h.pwrite, bytes([pattern]) * 4096, 0), 0, order, "write")
                h.shutdown()
            if step == "checkpoint" and state == "promoted":
                refused(server.ask("commit"), REFUSED, "promoted")
                continue
            if step == "seal" and state == "promoted":
                refused(server.ask("seal"), REFUSED, "promoted")
                continue
            STEPS[step](server)
            if step == "checkpoint":
                state, committed = "protected", pattern
            if step == "failover" and committed is not None:
                state = "promoted"
            equal(server.status()["state"], state, order, "after", step)
            if state == "promoted":
                h = server.connect("@promoted")
                equal(bytes(h.pread(4096, 0)), bytes([committed]) * 4096, order, step)
                h.shutdown()
            elif step == "failover":
                # Refused: it must not have touched the mirror.
                equal(bytes(server.connect().pread(4096, 0)), bytes([pattern]) * 4096, order)
        server.stop()
        code = DONE if committed is not None else NO_CHECKPOINT
        tool("mcbuf-recover", server.journal, code=code)
        if committed is not None:
            equal(read_file(test.path("disk.img"))[:4096], bytes([committed]) * 4096, order)
        shutil.rmtree(server.journal)
        os.unlink(server.log)


def test_second_failover(test):
    """A second failover changes nothing: not the image, not the generation, not the answer."""
    server = replica(test, "baseline=trusted")
    qemu_io(server, "write -P 0x11 0 %d" % SIZE)
    server.commit()
    qemu_io(server, "write -P 0x22 0 %d" % SIZE)
    first = tool("mcbuf-recover", "--wait", "--json", server.journal).json
    image(test, (0x11, 0x11))
    second = tool("mcbuf-recover", "--wait", "--json", server.journal).json
    image(test, (0x11, 0x11))
    server.stop()
    third = tool("mcbuf-recover", "--json", server.journal).json
    image(test, (0x11, 0x11))
    for answer in (second, third):
        equal((answer["checkpoint"], answer["generation"]),
              (first["checkpoint"], first["generation"]), "answer")


def test_checkpoint_after_failover(test):
    """After failover there are no checkpoints, and the old primary writes nowhere."""
    server = replica(test, "baseline=trusted")
    h = server.connect()
    server.commit()
    tool("mcbuf-recover", "--wait", server.journal)
    equal(nbd_errno(h.pwrite, b"x" * 512, 0), errno.ESHUTDOWN, "write")
    tool("mcbuf-commit", server.journal, code=REFUSED)
    tool("mcbuf-commit", "--seal", server.journal, code=REFUSED)
    equal(connect_errno(server, "@promoted"), 0, "@promoted")
    image(test, (0, 0))


INVARIANTS = "1,2"
main(globals())
