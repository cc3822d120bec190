#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What servers of each older format left, kept in tests/upgrade: this one takes it over, to the last byte.

Whoever changes the journal's format or the shared memory must still read these; of speculation he may say why
not, then the replica is stale (see test-mcbuf-upgrade.py), but no checkpoint and no promoted write may be lost.
"""

import fcntl
import glob
import json
import os
import sys
import tarfile
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DAMAGE, HERE, Faults, Server, Test, check, done, equal, main, poll, read_all, read_file,
                      same, tool, write_file)

FIXTURES = sorted(glob.glob(os.path.join(HERE, "upgrade", "*.tar.xz")))


class Left:
    """One fixture, put where a server finds it."""

    def __init__(self, test, path):
        self.test = test
        with tarfile.open(path) as tar:
            self.files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        self.facts = json.loads(self.files["facts.json"])
        self.case = self.facts["case"]
        # Its shared memory has one name on this host.
        self.only = open(os.path.join(tempfile.gettempdir(),
                                      "mcbuf-fixture-%d-%s" % (os.getuid(), self.facts["replica"])), "w")
        fcntl.flock(self.only, fcntl.LOCK_EX)
        test.replicas.add(self.facts["replica"])
        self.image = test.path("disk.img")
        self.journal = self.image + ".mcbuf"
        os.mkdir(self.journal, 0o700)
        write_file(self.image, self.files["disk.img"])
        for name, data in self.files.items():
            if name.startswith("journal/"):
                write_file(os.path.join(self.journal, name[len("journal/"):]), data)
        if "region" in self.files:
            region = "/dev/shm/mcbuf-" + self.facts["replica"]
            write_file(region, self.files["region"])
            os.chmod(region, 0o600)
        self.faults = Faults(test)
        write_file(os.path.join(self.faults.dir, "boot_id"), self.facts["boot"].encode() + b"\n")

    def serve(self, *params):
        return Server(self.test, self.image, "journal-size=16M", "buffer=8M", "history=100", *params,
                      env=self.faults.env, preload=self.faults.preload)

    def recover(self, *args, **more):
        return tool("mcbuf-recover", "--json", "--disk=:" + self.image, *args, self.journal,
                    env=self.faults.env, preload=self.faults.preload, **more)

    def same(self, got, name):
        same(got, self.files[name], self.case, name)


def each(test_one):
    """TEST_ONE (left) on every fixture."""
    check(len(FIXTURES) >= 3, "fixtures:", FIXTURES)
    for path in FIXTURES:
        own = Test("fixture")
        try:
            left = Left(own, path)
            test_one(left)
            left.only.close()
        except Exception as error:
            raise AssertionError("%s: %s" % (os.path.basename(path), error)) from error
        finally:
            own.cleanup()


def taken_over(left):
    facts = left.facts
    server = left.serve()
    s = server.status()
    equal((s["replica"], s["checkpoint"]["id"], s["checkpoint"]["label"]),
          (facts["replica"], facts["last"], facts["labels"][-1]), "status")
    if left.case == "promoted":
        equal((s["state"], s["generation"]), ("promoted", 2), "status")
        left.same(read_all(server.connect("@promoted")), "now.img")
        poll("the drain", lambda: server.status()["drained"])
        server.stop()
        left.same(read_file(left.image), "now.img")
        return
    equal((s["state"], s["generation"], s["sealed_epochs"]), ("protected", 1, 1), "status")
    equal([(c["id"], c["label"]) for c in done(server.ask("list"))["checkpoints"]][-2:],
          list(zip((facts["older"], facts["last"]), facts["labels"])), "checkpoints")
    left.same(read_all(server.connect()), "now.img")
    left.same(read_all(server.connect("@latest")), "committed.img")
    left.same(read_all(server.connect("@%d" % facts["older"])), "older.img")
    # And it goes on: the sealed epoch is committed, what is open is speculation.
    equal(server.commit(epoch=facts["sealed"])["checkpoint"], facts["sealed"], "commit")
    server.kill()
    equal(left.recover().json["checkpoint"], facts["sealed"], "recovered")
    left.same(read_file(left.image), "sealed.img")


def test_taken_over(_):
    """By a server: everything that was acknowledged is there, speculation too, and it goes on."""
    each(taken_over)


def recovered(left):
    equal(left.recover("--list").json["checkpoints"][-1]["id"], left.facts["last"], "listed")
    tool("mcbuf-recover", "--verify", "--disk=:" + left.image, left.journal)
    equal(left.recover().json["checkpoint"], left.facts["last"], "recovered")
    image = read_file(left.image)
    if left.case == "promoted":
        # What was not flushed may be there or not.
        check(image[:5000] == left.files["now.img"][:5000] and
              image[8192:] == left.files["now.img"][8192:], "the promoted disk")
    else:
        left.same(image, "committed.img")
    equal(glob.glob("/dev/shm/mcbuf-%s*" % left.facts["replica"]), [], "left in /dev/shm")


def test_recovered(_):
    """By mcbuf-recover: the last checkpoint, nothing of what came after, nothing left behind."""
    each(recovered)


def recovered_older(left):
    if left.case != "promoted":
        equal(left.recover("--to=older").json["checkpoint"], left.facts["older"], "recovered")
        left.same(read_file(left.image), "older.img")


def test_recovered_older(_):
    """To an older checkpoint, by its label."""
    each(recovered_older)


def test_unlike(_):
    """The fixtures are looked at: a changed byte of one is noticed."""
    def changed(left):
        path = os.path.join(left.journal, "journal")
        data = bytearray(read_file(path))
        at = data.find(b"third ")
        check(at > 0, "what was committed is not in the journal")
        data[at] ^= 1
        write_file(path, bytes(data))
        left.recover(code=DAMAGE)
    each(changed)


main(globals())
