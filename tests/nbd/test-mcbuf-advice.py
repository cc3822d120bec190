#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""When room runs out the message says what to raise, or what to do."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, REFUSED, Control, Faults, Server, check, equal, main, poll, random_data, read_all, read_file,
                      same, seeded, sparse_file, tool)

SIZE = 16 * MiB


def replica(test, size, disk=SIZE, **more):
    return Server(test, sparse_file(test.path("disk.img"), disk), "journal=" + test.path("j"), "buffer=8M",
                  "baseline=trusted", "journal-size=" + size, **more)


def test_soft(test):
    """Past the soft limit status names journal-size."""
    server = replica(test, "32M", disk=32 * MiB)
    rng = seeded("soft")
    h = server.connect()
    reason = ""
    for i in range(28):         # none twice: what is overwritten gives its room back
        h.pwrite(random_data(rng, MiB), i * MiB)
        reason = server.status()["reason"]
        if reason:
            break
    check("journal runs short" in reason and "raise journal-size" in reason, reason)


def test_commit(test):
    """A commit that finds no room for its record: nothing is lost, and it says what to raise."""
    faults = Faults(test)
    server = replica(test, "16M", env=faults.env, preload=faults.preload)
    faults.fail("pwrite", "disk.img")           # what is committed stays in the journal
    h = server.connect()
    data = random_data(seeded("commit"), MiB)
    h.pwrite(data, 0)
    with Control(server.journal) as control:
        for last in range(6000):
            answer = control.ask("commit label=number %d" % last)
            if "error" in answer:
                break
        check("error" in answer and answer["code"] == REFUSED, answer)
        for words in ("No space left", "raise journal-size", "nothing is lost"):
            check(words in answer["error"], "no", words, "in", answer)
        newest = server.status()["checkpoint"]
        equal(server.status()["state"], "protected", "state")
    faults.heal("pwrite")
    poll("write-out to go on", lambda: not server.status()["writeout"]["error"])
    server.drained()
    n = server.commit()["checkpoint"]           # and again later
    check(n > newest["id"], n, newest)
    same(bytes(h.pread(MiB, 0)), data, "inlet")
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], n, "recovered")
    same(read_file(test.path("disk.img"))[:MiB], data, "image")


def test_shrink(test):
    """What holds a smaller journal up is not committed: a commit is what is needed, not patience."""
    server = replica(test, "64M")
    rng = seeded("shrink")
    h = server.connect()
    want = b""
    for _ in range(3):
        want = random_data(rng, SIZE - MiB)
        h.pwrite(want, 0)
    h.shutdown()
    server.stop()
    server.params[-1] = "journal-size=16M"
    server.start()
    said = server.said()
    check("keeps its 67108864 bytes" in said and "commit" in said and "write-out" not in said, said)
    h = server.connect()
    same(read_all(h)[:len(want)], want, "inlet")
    for _ in range(20):         # where records lie is a matter of luck
        server.commit()
        server.drained()
        h.shutdown()
        server.stop()
        server.start()
        h = server.connect()
        if server.status()["journal"]["size"] == 16 * MiB:
            break
    equal(server.status()["journal"]["size"], 16 * MiB, "size")
    same(read_all(h)[:len(want)], want, "inlet of the smaller one")


def test_history(test):
    """History that yields is said, but a write-out that an image's error has paused is said before it."""
    faults = Faults(test)
    server = replica(test, "16M", env=faults.env, preload=faults.preload)
    h = server.connect()
    h.shutdown()
    server.stop()
    server.params.append("history=1000")
    server.start()
    rng, h = seeded("history"), server.connect()

    def go_on():
        h.pwrite(random_data(rng, MiB), rng.randrange(SIZE - MiB) // 4096 * 4096)
        server.commit()
        return server.status()

    s = server.status()
    equal((s["history"]["yields"], s["reason"]), (False, ""), "before")
    s = poll("history to yield", lambda: (lambda s: s["history"]["yields"] and s)(go_on()))
    check("history yields" in s["reason"] and "raise journal-size" in s["reason"], s["reason"])
    check(s["writeout"]["error"] is None, s)
    faults.fail("pwrite", "disk.img")
    s = poll("write-out to pause", lambda: (lambda s: s["writeout"]["error"] and s)(go_on()))
    check(s["history"]["yields"], "it no longer yields:", s)
    check(s["reason"].startswith("write-out is paused by an error of a backing image"), s["reason"])
    faults.heal("pwrite")
    s = poll("write-out to go on", lambda: (lambda s: not s["writeout"]["error"] and s)(server.status()))
    check(s["history"]["yields"] and "history yields" in s["reason"], s["reason"])
    h.shutdown()
    server.ask("resync overwrite")
    s = server.status()
    equal((s["state"], s["history"]["yields"]), ("syncing", False), "after it gave all of it up")
    check("first copy" in s["reason"], s["reason"])


main(globals())
