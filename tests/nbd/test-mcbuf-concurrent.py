#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Many requests in flight on many connections, seals and commits among them.

A write acknowledged before a seal was asked for is in the sealed epoch, one
sent after its reply is not; one in flight meanwhile is in one of the two,
whole sectors of it.
"""

import os
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libload import Load
from libmcbuf import (DEADLINE, MiB, SLOW, Control, Disk, Server, check, count, done, equal,
                      main, nbd_errno, read_file, seeded, sparse_file)

SECONDS = count("SECONDS", 3) * SLOW


def replica(test, names, **params):
    disks = [("disk=%s:%s" % (n, sparse_file(test.path(n + ".img"), 8 * MiB))) for n in names]
    return Server(test, *disks, "journal=" + test.path("j"), "baseline=trusted",
                  *["%s=%s" % (k.replace("_", "-"), v) for k, v in params.items()])


def run_load(test, names, load, server, seconds):
    """Work for a while; at each drain hold the images against the model."""
    load.attach(server)
    end = time.monotonic() + seconds
    compared = 0
    last = end + DEADLINE
    # On a busy machine the time alone says nothing: go on until enough was done.
    while time.monotonic() < end or (time.monotonic() < last and
                                     (load.ops <= 100 or load.commits <= 10 or compared <= 2)):
        pause = time.monotonic() + 0.3
        while time.monotonic() < pause:
            load.step()
            load.steer()
        while load.asked:
            load.step()
        # Speculation goes on flying while the images are compared.
        server.drained()
        where = load.committed.difference([read_file(test.path(n + ".img")) for n in names])
        check(where is None, "checkpoint", load.checkpoint, where)
        compared += 1
    load.settle()
    load.detach()
    print("%d requests, %d commits, compared %d times" % (load.ops, load.commits, compared))
    check(load.ops > 100 and load.commits > 10 and compared > 2, "too little was done")


def test_one_disk(test):
    """One disk, one connection, 16 in flight: QEMU's way."""
    names = ["a"]
    server = replica(test, names, journal_size="64M", buffer="16M")
    run_load(test, names, Load(seeded("test_one_disk"), [Disk(8 * MiB)], names, depth=16),
             server, SECONDS)


def test_two_disks_four_connections(test):
    """Two disks, four connections each."""
    names = ["a", "b"]
    server = replica(test, names, journal_size="64M", buffer="16M")
    run_load(test, names, Load(seeded("test_two_disks"), [Disk(8 * MiB) for _ in names], names,
                               depth=4, conns=4), server, SECONDS)


def test_small_journal(test):
    """The smallest ring and journal: writers wait for write-out, nobody fails."""
    names = ["a"]
    server = replica(test, names, journal_size="16M", buffer="8M")
    run_load(test, names, Load(seeded("test_small_journal"), [Disk(8 * MiB)], names, depth=8,
                               backlog=2 * MiB), server, SECONDS)


def test_seal_is_quick_under_load(test):
    """A seal does not wait for a 16 MiB write that is on its way."""
    server = replica(test, ["a"], journal_size="256M", buffer="64M")
    stop = threading.Event()
    errors = []

    def writer():
        h = server.connect("a")
        data = b"z" * (8 * MiB)
        while not stop.is_set():
            errnum = nbd_errno(h.pwrite, data, 0)
            if errnum:
                errors.append(errnum)
                return

    threads = [threading.Thread(target=writer) for _ in range(2)]
    for t in threads:
        t.start()
    with Control(server.journal) as control:
        epochs = []
        for _ in range(50):
            epochs.append(done(control.ask("seal"))["sealed"])
            done(control.ask("commit epoch=%d" % epochs[-1]))
    stop.set()
    for t in threads:
        t.join()
    equal(errors, [], "errors of the writers")
    equal(epochs, list(range(epochs[0], epochs[0] + 50)), "epochs")


def test_many_control_connections(test):
    """Commits from many sides at once: each gets an answer, epochs are used once."""
    server = replica(test, ["a"], journal_size="64M", buffer="16M")
    replies = []
    lock = threading.Lock()

    def client(n):
        h = server.connect("a")
        with Control(server.journal) as control:
            for i in range(25):
                h.pwrite(b"%d" % n * 4096, n * 4096)
                reply = control.ask("commit" if i % 2 else "seal")
                with lock:
                    replies.append(reply)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    equal(len(replies), 8 * 25, "replies")
    for reply in replies:
        check("error" not in reply, reply)
    sealed = [r["sealed"] for r in replies if "sealed" in r and "checkpoint" not in r]
    equal(len(sealed), len(set(sealed)), "an epoch was sealed twice")
    server.commit()
    server.drained()
    image = read_file(test.path("a.img"))
    for n in range(8):
        equal(image[n * 4096:(n + 1) * 4096], b"%d" % n * 4096, "client", n)


INVARIANTS = "3,4,5,10"
main(globals())
