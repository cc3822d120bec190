#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What --list shows of a checkpoint is exactly what was written: extents, bytes, label, time."""

import datetime
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import KiB, MiB, Server, check, equal, main, poll, sparse_file, tool

SIZE = 4 * MiB
# What each checkpoint writes: (disk, offset, length); a length below 0 zeroes.
WRITES = (
    ("one", [(0, 0, 4 * KiB)]),
    ("several", [(0, 0, 4 * KiB), (0, 64 * KiB, 8 * KiB), (0, MiB, 64 * KiB)]),
    ("on two disks", [(0, 0, 4 * KiB), (1, 0, 4 * KiB), (1, 2 * MiB, 12 * KiB)]),
    (None, []),
    ("twice the same", [(0, 0, 4 * KiB), (0, 0, 4 * KiB)]),
    ("overlapping", [(0, 0, 16 * KiB), (0, 8 * KiB, 16 * KiB), (1, 4 * KiB, 4 * KiB)]),
    ("sectors", [(0, 512, 512), (0, 8 * KiB, 1536)]),
    ("zeroes", [(0, 0, -64 * KiB), (1, 128 * KiB, -4 * KiB)]),
    ("crumbs \u00e9 \"quoted\"", [(0, 1, 1), (1, 4095, 2)]),
)
# (extents, bytes) of each: every write counts as it came, also what another one covers, in whole sectors;
# zeroes have no data.
WANT = tuple((len(w), sum((-(-(at + n) // 512) - at // 512) * 512 for _, at, n in w if n > 0)) for _, w in WRITES)


def test_exact(test):
    """The rows, from the server, from mcbuf-recover beside it and without it."""
    images = [sparse_file(test.path("d%d.img" % i), SIZE) for i in range(2)]
    server = Server(test, "disk=vda:" + images[0], "disk=vdb:" + images[1], "journal=" + test.path("j"),
                    "baseline=trusted", "journal-size=32M", "buffer=8M", "history=1000")
    disks = [server.connect(n) for n in ("vda", "vdb")]
    want, spans = [], []
    for (label, writes), (extents, size) in zip(WRITES, WANT):
        for disk, offset, length in writes:
            if length < 0:
                disks[disk].zero(-length, offset)
            else:
                disks[disk].pwrite(b"x" * length, offset)
        before = datetime.datetime.now(datetime.timezone.utc)
        c = server.commit(label=label)
        spans.append((before, datetime.datetime.now(datetime.timezone.utc)))
        want.append((c["checkpoint"], label, extents, size))
        equal((c["extents"], c["bytes"]), (extents, size), "the commit's answer for", label)
    online = server.ask("list")
    rows = online["checkpoints"]
    equal(rows[0]["id"], 0, "the first")
    equal([(c["id"], c["label"], c["extents"], c["bytes"]) for c in rows[1:]], want, "rows")
    slack = datetime.timedelta(milliseconds=1)
    for c, (before, after) in zip(rows[1:], spans):
        at = datetime.datetime.fromisoformat(c["time"][:26].rstrip("Z") + "+00:00")
        check(before - slack <= at <= after + slack, c, "was made between", before, "and", after)
    equal(server.status()["checkpoint"], rows[-1], "status")
    equal(tool("mcbuf-recover", "--list", "--json", server.journal).json, online, "online")
    table = tool("mcbuf-recover", "--list", server.journal).out
    for d in disks:
        d.shutdown()
    for end in (server.stop, server.kill):
        end()
        equal(tool("mcbuf-recover", "--list", "--json", server.journal).json, online, "offline")
        equal(tool("mcbuf-recover", "--list", server.journal).out, table, "the table offline")
        server.start()
        equal(server.ask("list"), online, "after a restart")


main(globals())
