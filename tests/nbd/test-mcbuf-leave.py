#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk that leaves needs no image; and what is known of the images after the set has changed."""

import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, Faults, Server, StartError, check, equal, main, poll, read_all, read_file,
                      same, seeded, sparse_file, tool, write_file)
from libstore import Store

SIZE = 2 * MiB


class Group:
    """A replica of some disks, with two checkpoints of random content."""

    def __init__(self, test, names=("vda", "vdb", "vdc"), **more):
        self.test, self.more = test, more
        self.rng = seeded(test.name)
        self.paths = {n: sparse_file(test.path(n + ".img"), SIZE) for n in names}
        self.now = {n: bytearray(SIZE) for n in names}
        self.start(names, "baseline=trusted")
        self.write()
        self.server.commit()

    def start(self, names, *params):
        self.server = Server(self.test, *["disk=%s:%s" % (n, self.paths[n]) for n in names],
                             "journal=" + self.test.path("j"), "journal-size=64M", "buffer=8M",
                             *params, **self.more)
        self.names = names

    def refuses(self, names, words, *params):
        try:
            self.start(names, *params)
        except StartError as error:
            for word in words:
                check(word in str(error), "no word", word, "in", error)
            return
        check(False, "started")

    def write(self, n=8):
        for name in self.names:
            h = self.server.connect(name)
            for _ in range(n):
                at = self.rng.randrange(0, SIZE - 64 * KiB)
                data = self.rng.randbytes(self.rng.randrange(1, 64 * KiB))
                h.pwrite(data, at)
                self.now[name][at:at + len(data)] = data
            h.shutdown()

    def rest(self, *what):
        """All is well with the disks that there are, and goes on."""
        s = self.server.status()
        equal((s["state"], [d["name"] for d in s["disks"]]), ("protected", list(self.names)), s, *what)
        self.write()
        self.server.commit()
        self.server.drained()
        for n in self.names:
            same(read_file(self.paths[n]), self.now[n], "image", n, *what)
            h = self.server.connect(n)
            same(read_all(h), self.now[n], "inlet", n, *what)
            h.shutdown()


def lose(group, how):
    """Something happens to the image of vdb; what is in its place then."""
    path = group.paths["vdb"]
    if how == "empty":
        os.unlink(path)
        sparse_file(path, SIZE)
    elif how == "other":
        write_file(path, group.rng.randbytes(SIZE))
    elif how == "resized":
        os.truncate(path, SIZE + 4096)
    elif how == "gone":
        os.unlink(path)
        return None
    return read_file(path)


def test_lost(test):
    """An image that is lost, empty, another one or resized is no reason not to let its disk go."""
    for how in ("empty", "other", "resized", "gone"):
        for backlog in (False, True):
            faults = Faults(test)
            group = Group(test, env=faults.env, preload=faults.preload)
            group.server.drained()
            if backlog:
                faults.fail("pwrite", ".img")
                group.write()
                group.server.commit()
            group.server.stop()
            faults.heal_all()
            left = lose(group, how)
            group.start(("vda", "vdc"), "remove-disk=vdb")
            said = group.server.said()
            check("vdb has left" in said and "without its image" in said, how, said)
            # What is there is somebody else's: not a byte of it is written to.
            equal(os.path.exists(group.paths["vdb"]), left is not None, how)
            if left is not None:
                same(read_file(group.paths["vdb"]), left, "what is in the place of an image that is", how)
            group.rest(how, backlog)
            group.server.kill()
            tool("mcbuf-recover", "--verify", group.server.journal)
            tool("mcbuf-recover", group.server.journal)
            for n in group.names:
                same(read_file(group.paths[n]), group.now[n], "recovered", n, how)
            for name in os.listdir(test.path("j")):
                os.unlink(test.path("j/" + name))


def test_nbd(test):
    """An NBD server that does not answer may be back soon: refused; when it is back the disk leaves complete."""
    group = Group(test, ("vda",))
    group.server.stop()
    store = Store(test, SIZE, "lossy")
    group.paths["vdb"] = store.uri
    group.now["vdb"] = bytearray(SIZE)
    group.start(("vda", "vdb"), "add-disk=vdb")
    group.write()
    group.server.commit()
    group.server.drained()
    group.server.stop()
    store.kill()
    group.refuses(("vda",), (store.uri, "start its server"), "remove-disk=vdb")
    store.start()
    group.start(("vda",), "remove-disk=vdb")
    check("without its image" not in group.server.said(), group.server.said())
    same(store.content(), group.now["vdb"], "the image that has left")
    group.rest("nbd")


def test_others_are_checked(test):
    """What leaves may be lost, what stays may not."""
    group = Group(test)
    group.server.drained()
    group.server.stop()
    lose(group, "gone")
    write_file(group.paths["vdc"], group.rng.randbytes(SIZE))
    group.refuses(("vda", "vdc"), ("vdc.img", "not what was written out"), "remove-disk=vdb")


def test_killed(test):
    """Killed while a disk without its image leaves: should the set stay after all, it needs a copy of that disk."""
    seen = set()
    for i in range(12):
        faults = Faults(test)
        group = Group(test, env=faults.env, preload=faults.preload)
        group.server.drained()
        before = read_file(group.paths["vdb"])
        faults.fail("pwrite", ".img")
        group.write()
        group.server.commit()
        group.server.stop()
        faults.heal_all()
        os.rename(group.paths["vdb"], group.paths["vdb"] + ".away")
        server = Server(test, *["disk=%s:%s" % (n, group.paths[n]) for n in ("vda", "vdc")],
                        "journal=" + test.path("j"), "buffer=8M", "remove-disk=vdb", start=False,
                        **group.more)
        p = test.spawn(server.argv(), server.env, server.preload, server.log, ours=True)
        time.sleep((0.0, 1.0)[i] if i < 2 else group.rng.uniform(0, 0.08))
        p.kill()
        p.wait()
        # The image comes back, as old as it was.
        os.rename(group.paths["vdb"] + ".away", group.paths["vdb"])
        same(read_file(group.paths["vdb"]), before, "the image that was away")
        try:
            group.start(("vda", "vdb", "vdc"))
        except StartError as error:
            check("vdb" in str(error), error)
            group.start(("vda", "vdc"))
            seen.add("left")
            group.rest("left")
        else:
            group.names = ("vda", "vdb", "vdc")
            s = group.server.status()
            if s["state"] == "protected":
                seen.add("stayed")
                group.rest("stayed")
            else:               # never without a word
                check(s["state"] == "stale" and "without its image" in s["reason"], s)
                seen.add("needs a copy")
        group.server.kill()
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))
    check({"left", "stayed"} <= seen, seen)


def test_exchanged_after(test):
    """Right after a change of the set the images that stay are known: two that are exchanged are damage."""
    for params, names in ((("remove-disk=vdc",), ("vda", "vdb")), (("add-disk=vdd",), ("vda", "vdb", "vdc", "vdd"))):
        group = Group(test)
        group.server.drained()
        group.server.stop()
        group.paths["vdd"] = sparse_file(test.path("vdd.img"), SIZE)
        group.start(names, *params)
        group.server.stop()
        a, b = (read_file(group.paths[n]) for n in ("vda", "vdb"))
        write_file(group.paths["vda"], b)
        write_file(group.paths["vdb"], a)
        group.start(names)
        s = group.server.status()
        check(s["state"] == "failed" and "not what was written out" in s["reason"], s)
        group.server.stop()
        write_file(group.paths["vda"], a)
        write_file(group.paths["vdb"], b)
        if "vdd" in names:              # its copy goes straight to it, it may be anything
            write_file(group.paths["vdd"], group.rng.randbytes(SIZE))
        group.start(names)
        poll("a good state", lambda g=group: g.server.status()["state"] in ("protected", "resyncing"))
        group.server.kill()
        tool("mcbuf-recover", group.server.journal)
        for n in ("vda", "vdb"):
            same(read_file(group.paths[n]), group.now[n], "recovered", n)
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))


main(globals())
