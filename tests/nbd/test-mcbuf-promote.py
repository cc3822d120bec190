#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Failover with the server running: fencing, NAME@promoted, the drain behind it."""

import errno
import glob
import os
import shutil
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (KiB, MiB, REFUSED, Faults, Server, check, connect_errno,
                      done, equal, main, nbd_errno, poll, random_data, read_all,
                      read_file, same, seeded, sparse_file, tool)

SIZE = 8 * MiB


def replica(test, **options):
    return Server(test, *["disk=%s:%s" % (n, sparse_file(test.path(n + ".img"), SIZE))
                          for n in ("a", "b")],
                  "journal=" + test.path("j"), "journal-size=64M", "buffer=16M",
                  "baseline=trusted", **options)


def fill(server, seed="fill", rounds=4):
    """Commit some epochs, write on; contents of the last checkpoint by disk."""
    rng = seeded(seed)
    handles = {n: server.connect(n) for n in ("a", "b")}
    now = {n: bytearray(SIZE) for n in handles}
    for _ in range(rounds):
        for _ in range(30):
            n = rng.choice("ab")
            at = rng.randrange(0, SIZE - 64 * KiB)
            data = random_data(rng, rng.randrange(1, 64 * KiB))
            handles[n].pwrite(data, at)
            now[n][at:at + len(data)] = data
        last = server.commit()["checkpoint"]
    for h in handles.values():
        h.pwrite(b"speculation" * 3000, 12345)
    return last, {n: bytes(c) for n, c in now.items()}, handles


def disconnect(handles):
    """nbdkit ends when its last client has gone."""
    for h in handles.values():
        h.shutdown()


def test_fencing(test):
    """Each inlet, old connection or new, answers ESHUTDOWN; the control export lives."""
    server = replica(test)
    last, _, handles = fill(server)
    fenced = server.connect("a@g1")
    answer = done(server.ask("promote"))
    equal(answer["checkpoint"], last, "promote")
    for h in list(handles.values()) + [fenced, server.connect("a"), server.connect("b")]:
        for call, args in ((h.pwrite, (b"x" * 512, 0)), (h.pread, (512, 0)),
                           (h.zero, (4096, 0)), (h.trim, (4096, 0)), (h.flush, ())):
            equal(nbd_errno(call, *args), errno.ESHUTDOWN, call.__name__)
    said = server.said()
    check("generation" in said and "1" in said and "2" in said,
          "no message that names both generations:", said)
    equal(server.status()["generation"], 2, "generation")
    tool("mcbuf-status", server.uri())
    tool("mcbuf-commit", server.uri(), code=REFUSED)


def test_promoted_export(test):
    """NAME@promoted is the checkpoint, at once; it takes writes, which last."""
    server = replica(test)
    check(connect_errno(server, "a@promoted"), "a@promoted before a promote")
    _, content, _ = fill(server)
    done(server.ask("promote"))
    promoted = {n: server.connect(n + "@promoted") for n in content}
    want = {}
    rng = seeded("test_promoted_export")
    for n, h in promoted.items():
        equal(h.get_size(), SIZE, "size")
        same(read_all(h), content[n], "promoted", n)
        want[n] = bytearray(content[n])
        for _ in range(50):
            at = rng.randrange(0, SIZE - 64 * KiB)
            data = random_data(rng, rng.randrange(1, 64 * KiB))
            h.pwrite(data, at)
            want[n][at:at + len(data)] = data
        h.zero(100000, 54321)
        want[n][54321:154321] = bytes(100000)
        h.trim(4096, 8192)
        want[n][8192:12288] = bytes(4096)
        same(read_all(h), bytes(want[n]), "written", n)
        h.flush()
    server.kill()
    # Flushed promoted writes survive everything; recovery finishes the drain.
    tool("mcbuf-recover", server.journal)
    for n in content:
        same(read_file(test.path(n + ".img")), bytes(want[n]), "image", n)


def test_promoted_write_over_backlog(test):
    """A promoted write to a block still in the backlog is not undone by the drain or a replay."""
    for end in ("drain", "kill", "restart"):
        faults = Faults(test)
        server = replica(test, env=faults.env, preload=faults.preload)
        faults.fail("pwrite", ".img")           # everything stays in the backlog
        _, content, handles = fill(server)
        done(server.ask("promote"))
        h = server.connect("a@promoted")
        want = bytearray(content["a"])
        flushed = []
        for at in range(0, SIZE, 256 * KiB):
            data = b"P" * 5000
            errnum = nbd_errno(h.pwrite, data, at + 100, nbd.CMD_FLAG_FUA)
            if errnum == 0:
                want[at + 100:at + 5100] = data
                flushed.append(at)
        faults.heal("pwrite")
        if end == "drain":
            h.flush()
            h.shutdown()
            tool("mcbuf-recover", "--wait", server.journal, warns=True)
            disconnect(handles)
            server.stop()
        elif end == "restart":
            server.kill()
            server.start()
            h = server.connect("a@promoted")
            same(read_all(h), bytes(want), "after a restart")
            h.shutdown()
            tool("mcbuf-recover", "--wait", server.journal)
            server.stop()
        else:
            server.kill()
            tool("mcbuf-recover", server.journal)
        print("%s: %d writes over the backlog" % (end, len(flushed)))
        same(read_file(test.path("a.img")), bytes(want), "image after", end)
        same(read_file(test.path("b.img")), content["b"], "the other image after", end)
        shutil.rmtree(server.journal)


def test_wait_and_shutdown(test):
    """--wait returns when the images are the disk; shutdown ends the server."""
    server = replica(test)
    last, content, handles = fill(server)
    answer = tool("mcbuf-recover", "--wait", "--json", server.journal).json
    equal((answer["checkpoint"], answer["generation"]), (last, 2), "answer")
    for n in content:
        same(read_file(test.path(n + ".img")), content[n], "image", n)
    disconnect(handles)
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    for n in content:
        same(read_file(test.path(n + ".img")), content[n], "image after shutdown", n)
    equal(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), [], "left in /dev/shm")
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "offline")


def test_second_failover(test):
    """A second failover changes nothing, whoever asks how often."""
    server = replica(test)
    last, content, handles = fill(server)
    first = tool("mcbuf-recover", "--wait", "--json", server.journal).json
    h = server.connect("a@promoted")
    h.pwrite(b"after" * 100, 0)
    h.flush()
    for how in ("tool", "verb", "tool"):
        if how == "tool":
            again = tool("mcbuf-recover", "--json", server.journal).json
        else:
            again = done(server.ask("promote"))
        for key in ("checkpoint", "generation"):
            equal(again[key], first[key], key, "the second time")
    equal(server.status()["generation"], 2, "generation")
    equal(bytes(h.pread(500, 0)), b"after" * 100, "promoted writes")
    tool("mcbuf-recover", "--to=%d" % (last - 1), server.journal, code=REFUSED)
    h.shutdown()
    disconnect(handles)
    server.stop()
    want = b"after" * 100 + content["a"][500:]
    same(read_file(test.path("a.img")), want, "image")
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "offline")
    same(read_file(test.path("a.img")), want, "image after an offline recovery")


def test_promote_under_load(test):
    """Writers are cut off at one instant; nothing of theirs comes through."""
    server = replica(test)
    _, content, handles = fill(server)
    stop = threading.Event()
    seen = []

    def writer(name):
        h = server.connect(name)
        i = 0
        while not stop.is_set():
            errnum = nbd_errno(h.pwrite, b"L" * 4096, i % 2048 * 4096)
            if errnum:
                seen.append(errnum)
                return
            i += 1

    threads = [threading.Thread(target=writer, args=(n,)) for n in ("a", "b", "a", "b")]
    for t in threads:
        t.start()
    done(server.ask("promote"))
    poll("the writers to be cut off", lambda: len(seen) == len(threads))
    stop.set()
    for t in threads:
        t.join()
    equal(set(seen), {errno.ESHUTDOWN}, "what writers got")
    for n in content:
        same(read_all(server.connect(n + "@promoted")), content[n], "promoted", n)
    del handles


def test_extents_of_promoted(test):
    """Block status of the promoted disk tells no zero that is not."""
    server = replica(test)
    _, content, _ = fill(server)
    done(server.ask("promote"))
    h = server.connect("a@promoted", block_status=True)

    def look(context, offset, entries, error):
        for length, kind in zip(entries[::2], entries[1::2]):
            if kind & nbd.STATE_ZERO and any(content["a"][offset:offset + length]):
                wrong.append((offset, length))
            offset += length
        return 0

    wrong = []
    h.block_status(SIZE, 0, look)
    equal(wrong, [], "not zero")


INVARIANTS = "2,6"
main(globals())
