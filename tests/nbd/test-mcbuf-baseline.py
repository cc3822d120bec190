#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""baseline=trusted: the image already is the primary's disk, and checkpoint 0 is it."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, MiB, NO_CHECKPOINT, Server, check, equal,
                      forget_memory, main, random_data, read_file, same, seeded,
                      tool, write_file)

SIZE = 8 * MiB


def image(test):
    data = random_data(seeded("image"), SIZE)
    write_file(test.path("disk.img"), data)
    return data


def replica(test, *params):
    return Server(test, test.path("disk.img"), "journal-size=32M", "buffer=8M", *params)


def test_checkpoint_0(test):
    """Protected from the first moment; what is written comes off again."""
    base = image(test)
    server = replica(test, "baseline=trusted")
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"], s["written_out"]), ("protected", 0, 0), "status")
    server.connect().pwrite(b"x" * MiB, 0)
    same(read_file(test.path("disk.img")), base, "the image while there is speculation")
    server.kill()
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], 0, "recovered")
    same(read_file(test.path("disk.img")), base, "recovered to checkpoint 0")


def test_durable(test):
    """Killed at once, it is still protected; also on another boot."""
    base = image(test)
    server = replica(test, "baseline=trusted")
    server.kill()
    forget_memory(server)
    equal(tool("mcbuf-recover", "--json", "--dry-run", server.journal).json["checkpoint"], 0,
          "checkpoint")
    server.start()
    check(server.status()["state"] in ("protected", "stale"), server.status())
    equal(server.status()["checkpoint"]["id"], 0, "checkpoint")
    same(read_file(test.path("disk.img")), base, "image")


def test_without(test):
    """Without it the image is the first copy's to fill: no checkpoint, exit 3."""
    image(test)
    server = replica(test)
    equal(server.status()["state"], "syncing", "state")
    check(not server.status()["checkpoint"], "checkpoint", server.status())
    server.stop()
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)


def test_ignored_later(test):
    """On a later start it is ignored, and clears no stale."""
    image(test)
    server = replica(test)
    server.stop()
    server.params.append("baseline=trusted")
    server.start()
    equal(server.status()["state"], "syncing", "a later start")
    server.commit()
    server.connect().pwrite(b"speculation" * 100, 0)
    server.kill()
    forget_memory(server)
    server.start()
    equal(server.status()["state"], "stale", "after lost speculation")
    server.stop()
    server.start()
    equal(server.status()["state"], "stale", "and again")
    server.stop()
    tool("mcbuf-recover", server.journal, code=DONE)


def test_new_image(test):
    """A missing image made by size= is zeroes: it may be trusted, if that is the disk."""
    server = Server(test, test.path("new.img"), "size=4M", "journal-size=32M", "buffer=8M",
                    "baseline=trusted")
    server.connect().pwrite(b"x", 0)
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path("new.img")), bytes(4 * MiB), "image")


main(globals())
