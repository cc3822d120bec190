#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Promote takes no longer for a large backlog, and what follows: drain, status, --wait, shutdown."""

import os
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, KiB, MiB, Control, Server, check, done, environment, equal, main,
                      poll, read_all, read_file, same, seeded, sparse_file, tool, tool_path)
from libslow import Slow

SIZE = 64 * MiB


def replica(test, name, slow, *params):
    return Server(test, sparse_file(test.path(name + ".img"), SIZE), "journal-size=256M",
                  "buffer=32M", "baseline=trusted", *params, env=slow.env, preload=slow.preload)


def backlog(server, slow, blocks, rng=None):
    """Checkpoints of BLOCKS blocks of 4 KiB, none next to another, of which none is written out."""
    slow.slow(".img")
    h = server.connect()
    places = list(range(0, SIZE // 4096, 2))
    if rng:
        rng.shuffle(places)
    content = bytearray(SIZE)
    for n, place in enumerate(places[:blocks]):
        data = (b"%07d\n" % n) * 512
        h.pwrite(data, place * 4096)
        content[place * 4096:place * 4096 + 4096] = data
        if n % 2048 == 2047:
            server.commit()
    last = server.commit(label="last")["checkpoint"]
    h.pwrite(b"speculation" * 1000, 4096)
    return h, last, content


def test_large_pieces_are_begun(test):
    """What is written out in large pieces goes to the disk at once, not all of it at the sync; small ones wait."""
    slow = Slow(test)
    server = replica(test, "begun", slow)
    h = server.connect()
    rng = seeded(test.name)
    for begin, data, large in ((0, rng.randbytes(MiB), True), (MiB, rng.randbytes(8 * KiB), False)):
        slow.watch(".img")
        for piece in range(0, len(data), 16 * KiB):
            h.pwrite(data[piece:piece + 16 * KiB], begin + piece)
        checkpoint = server.commit()["checkpoint"]
        poll("write-out", lambda want=checkpoint: server.status()["written_out"] == want)
        calls = slow.calls()
        equal(sum(n for call, n in calls if call == "w"), len(data), "written")
        equal(sum(n for call, n in calls if call == "b"), len(data) if large else 0, "begun")
        check(("s", 0) in calls, "it is synced all the same")
        equal(max(i for i, call in enumerate(calls) if call[0] != "r"), calls.index(("s", 0)),
              "the sync is last")
    h.shutdown()
    server.stop()


def is_quiet(slow):
    """Nothing happens in the journal for a while."""
    slow.watch("/journal")
    time.sleep(0.3)
    return not slow.calls()


def promote(server, slow):
    """One promote: milliseconds until the first byte is read, and what was done to the journal."""
    # The write-out thread sits in its first write of the image and does nothing else.
    poll("write-out to begin", lambda: server.status()["writeout"]["bytes"] > 0)
    poll("the journal to be zero-filled", lambda: is_quiet(slow))
    with Control(server.journal) as control:
        done(control.ask("status"))
        slow.watch("/journal")
        began = time.monotonic()
        answer = done(control.ask("promote"))
        h = server.connect("@promoted")
        h.pread(4096, 0)
        took = time.monotonic() - began
    calls = slow.calls()
    equal((answer["state"], answer["drained"]), ("promoted", False), "answer")
    return took * 1000, calls, answer


def test_promote_is_o1(test):
    """200 times the backlog: neither more I/O nor, but for noise, more time."""
    figures = {}
    for name, blocks in (("small", 40), ("large", 8000)):
        slow = Slow(test)
        server = replica(test, name, slow)
        h, last, content = backlog(server, slow, blocks)
        before = server.status()["writeout"]["bytes"]
        check(before >= (blocks - 1) * 4096, "a backlog of", before)
        took, calls, answer = promote(server, slow)
        equal(answer["checkpoint"], last, "checkpoint")
        written = sum(n for call, n in calls if call == "w")
        read = sum(n for call, n in calls if call == "r")
        synced = sum(1 for call, n in calls if call == "s")
        print("%s: %.1f ms; journal: %d calls, %d bytes written, %d read, %d syncs"
              % (name, took, len(calls), written, read, synced))
        figures[name] = (took, len(calls), written, synced)
        check(synced >= 1, "a promote without a sync:", calls)
        check(len(calls) <= 20 and written <= 64 * KiB and read <= 64 * KiB, "I/O:", calls)
        equal(server.status()["writeout"]["bytes"], before, "backlog after the promote")
        # What is served meanwhile is the checkpoint.
        same(read_all(server.connect("@promoted")), bytes(content), "promoted", name)
        slow.heal()
        h.shutdown()
        server.kill()
    small, large = figures["small"], figures["large"]
    check(large[1] <= small[1] + 8, "calls grow with the backlog:", figures)
    check(large[0] <= 20 * small[0] + 200, "time grows with the backlog:", figures)


def test_status_and_wait(test):
    """status says when it has drained, --wait returns then; shutdown; the image is the disk."""
    rng = seeded(test.name)
    slow = Slow(test)
    server = replica(test, "disk", slow)
    h, last, content = backlog(server, slow, 500, rng)
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal((answer["checkpoint"], answer["drained"], answer["already"]), (last, False, False),
          "answer")
    s = server.status()
    equal((s["state"], s["drained"]), ("promoted", False), "status")
    check(s["writeout"]["bytes"] > 0 and "@promoted" in s["reason"], s)
    text = tool("mcbuf-status", server.journal).out
    check("@promoted" in text, "status for people:", text)

    waiter = subprocess.Popen([tool_path("mcbuf-recover"), "--wait", "--json", server.journal],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env=environment())
    test.processes.append(waiter)
    # The disk is used meanwhile, over the backlog and beside it.
    p = server.connect("@promoted")
    for i in range(300):
        at = rng.randrange(0, SIZE - 20000)
        data = rng.randbytes(rng.randrange(1, 20000))
        p.pwrite(data, at)
        content[at:at + len(data)] = data
        if i % 50 == 0:
            p.flush()
    equal(waiter.poll(), None, "--wait returned while nothing was written out")
    slow.slow(".img", 1)                # slow, but it goes on
    stop = threading.Event()

    def write_on():
        w = server.connect("@promoted")
        n = 0
        while not stop.is_set():
            at = n * 4096 % (2 * MiB)
            data = b"%015d\n" % n * 256
            w.pwrite(data, at)
            content[at:at + 4096] = data
            n += 1
            if n % 100 == 0:
                w.flush()
        w.shutdown()
        written.append(n)
    written = []
    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        out, _ = waiter.communicate(timeout=DEADLINE)
    finally:
        stop.set()
        writer.join()
    equal(waiter.returncode, 0, out)
    print("%d writes while it drained" % written[0])
    s = server.status()
    equal((s["state"], s["drained"], s["writeout"]["bytes"]), ("promoted", True, 0), "status", s)
    same(read_all(p), bytes(content), "promoted, drained")
    p.pwrite(b"the last word", 12345)   # straight to the image now
    content[12345:12358] = b"the last word"
    p.shutdown()
    h.shutdown()
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    same(read_file(test.path("disk.img")), bytes(content), "image after shutdown")
    # Anybody may open it now.
    q = subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 7 0 512", test.path("disk.img")],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, timeout=DEADLINE)
    check(q.returncode == 0 and "lock" not in q.stdout, q)


def test_wait_without_a_backlog(test):
    """Nothing to drain: --wait returns soon, and says so."""
    server = replica(test, "disk", Slow(test))
    answer = tool("mcbuf-recover", "--wait", "--json", server.journal).json
    equal((answer["checkpoint"], answer["drained"]), (0, True), "answer")


main(globals())
