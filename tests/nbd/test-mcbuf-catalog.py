#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The catalog is an index: taken away or damaged, it comes back from the journal."""

import os
import sqlite3
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, Server, check, equal, main, poll, read_file,
                      seeded, sparse_file, tool, write_file)


def replica(test):
    return Server(test, sparse_file(test.path("disk.img"), 8 * MiB), "journal-size=32M",
                  "buffer=8M", "baseline=trusted")


def catalog(server):
    return os.path.join(server.journal, "catalog.sqlite")


def rows(server):
    """The checkpoints in the catalog as {id: label}, or None while there is none."""
    try:
        db = sqlite3.connect("file:%s?mode=ro" % catalog(server), uri=True, timeout=30)
        try:
            return dict(db.execute("SELECT id, label FROM checkpoints"))
        finally:
            db.close()
    except sqlite3.Error:
        return None


def has(server, checkpoint, label):
    poll("checkpoint %d in the catalog" % checkpoint,
         lambda: (rows(server) or {}).get(checkpoint) == label, 30)


def commit(server, label):
    server.connect().pwrite(label.encode() * 100, 0)
    return server.commit(label=label)["checkpoint"]


def test_catalog(test):
    """A commit shows in the catalog soon after."""
    server = replica(test)
    for label in ("one", "two", "it's \"three\""):
        has(server, commit(server, label), label)


def test_removed(test):
    """Removed while the server is down: rebuilt."""
    server = replica(test)
    last = commit(server, "kept")
    has(server, last, "kept")
    for end in (server.stop, server.kill):
        end()
        for name in os.listdir(server.journal):
            if name.startswith("catalog"):
                os.unlink(os.path.join(server.journal, name))
        server.start()
        has(server, last, "kept")
    has(server, commit(server, "after"), "after")


def test_damaged(test):
    """Damaged in every way: rebuilt, and nobody is told no."""
    server = replica(test)
    last = commit(server, "kept")
    has(server, last, "kept")
    good = None
    for how in ("garbage", "empty", "header", "directory entry of zero bytes"):
        server.stop()
        good = good or read_file(catalog(server))
        if how == "garbage":
            write_file(catalog(server), seeded("garbage").randbytes(20000))
        elif how == "header":
            write_file(catalog(server), good[:100] + b"\xff" * (len(good) - 100))
        else:
            write_file(catalog(server), b"")
        server.start()
        last = commit(server, how)
        has(server, last, how)


def test_recover_without(test):
    """Recovery needs no catalog, and does not mind a damaged one."""
    server = replica(test)
    last = commit(server, "x")
    server.kill()
    write_file(catalog(server), b"not a catalog" * 1000)
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], last, "recovered")
    check(read_file(test.path("disk.img")).startswith(b"x" * 100), "image")


def test_commits_do_not_wait(test):
    """A catalog that cannot be written holds no commit up."""
    server = replica(test)
    commit(server, "a")
    db = sqlite3.connect(catalog(server), timeout=30)
    db.execute("BEGIN EXCLUSIVE")
    for i in range(20):
        commit(server, "locked %d" % i)
    db.rollback()
    db.close()
    last = commit(server, "unlocked")
    has(server, last, "unlocked")


main(globals())
