#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Groups: many disks, one commit for all; which disks belong together; joining and leaving."""

import errno
import os
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, NO_CHECKPOINT, REFUSED, Control, Disk, Faults, Server, StartError, check,
                      connect_errno, done, equal, main, nbd_errno, poll, random_data,
                      random_range, read_all, read_file, refused, same, seeded, sparse_file, tool,
                      write_file)
from libstore import Store

SIZE = 2 * MiB


class Group:
    """A replica whose disks can change, and what they hold."""

    def __init__(self, test, names, size=SIZE, options=("baseline=trusted",), **more):
        self.test, self.size = test, size
        self.paths, self.disks, self.handles = {}, {}, {}
        self.more = more
        for name in names:
            self.make(name)
        self.server = None
        self.start(names, *options)

    def make(self, name, size=None):
        self.paths[name] = sparse_file(self.test.path(name + ".img"), size or self.size)
        self.disks[name] = Disk(size or self.size)

    def start(self, names, *params):
        """With these disks."""
        args = ["disk=%s:%s" % (n, self.paths[n]) for n in names]
        self.server = Server(self.test, *args, "journal=" + self.test.path("j"),
                             "journal-size=64M", "buffer=8M", *params, **self.more)
        self.handles = {}
        return self.server

    def refuses(self, names, words, *params):
        try:
            self.start(names, *params)
        except StartError as error:
            lines = str(error).strip().splitlines()
            equal(len(lines), 1, "lines of", lines)
            for word in words:
                check(word in lines[0], "no word", repr(word), "in", lines[0])
            return
        check(False, "started with", names, params)

    def stop(self):
        for h in self.handles.values():
            h.shutdown()
        self.handles = {}
        self.server.stop()

    def write(self, rng, name, n=8):
        if name not in self.handles:
            self.handles[name] = self.server.connect(name)
        disk = self.disks[name]
        for _ in range(n):
            at, length = random_range(rng, disk.size, 64 * KiB)
            data = random_data(rng, length)
            self.handles[name].pwrite(data, at)
            disk.write(at, data)

    def copies(self):
        return {n: bytes(d.now) for n, d in self.disks.items()}

    def images(self, names, want, *what):
        for name in names:
            same(read_file(self.paths[name]), want[name], *what, name)

    def inlets(self, names, *what):
        for name in names:
            h = self.server.connect(name)
            same(read_all(h), bytes(self.disks[name].now), *what, name)
            h.shutdown()


def covered(server):
    return {d["name"]: d["covered"] for d in server.status()["disks"]}


def test_64_disks(test):
    """64 disks: SIGKILL at any moment leaves all of them at one and the same checkpoint."""
    rng = seeded("64 disks")
    names = ["d%02d" % i for i in range(64)]
    group = Group(test, names, size=64 * KiB)
    known = {0: group.copies()}
    for lap in range(4):
        for name in names:
            if name not in group.handles:
                group.handles[name] = group.server.connect(name)
        acked = group.server.status()["checkpoint"]["id"]
        for _ in range(6):
            stamp = rng.randbytes(4096)
            for name in names:          # every disk, so that none can lag behind unseen
                at = rng.randrange(0, 16) * 4096
                group.handles[name].pwrite(stamp, at)
                group.disks[name].write(at, stamp)
            pending = group.copies()
            if rng.randrange(4) == 0:
                group.server.drained()
            acked = group.server.commit()["checkpoint"]
            known[acked] = pending
        for name in names:
            group.handles[name].pwrite(b"speculation!" * 100, 0)
        control = group.server
        if lap % 2:
            os.kill(control.pid, signal.SIGKILL)
            control.process.wait()
        else:
            # A commit that nobody has seen the answer to: it may be there or not, for all.
            pending = {n: bytes((b"speculation!" * 100 + bytes(d.now)[1200:]))
                       for n, d in group.disks.items()}
            with Control(control.journal) as c:
                c.send("commit")
                time.sleep(rng.uniform(0, 0.003))
                control.kill()
            known[acked + 1] = pending
        if lap < 3:
            group.start(names)
            s = group.server.status()
            newest = s["checkpoint"]["id"]
            check(newest in (acked, acked + 1), "checkpoint", newest, "after", acked)
            for name in names:          # what was not committed is there too: same boot
                group.disks[name] = Disk(64 * KiB, known.get(acked + 1, {}).get(name) or
                                         b"speculation!" * 100 + bytes(group.disks[name].now)[1200:])
            group.inlets(names, "after a crash")
        else:
            r = tool("mcbuf-recover", "--json", control.journal).json
            group.images(names, known[r["checkpoint"]], "recovered to %d:" % r["checkpoint"])
            check(r["checkpoint"] >= acked, r)


def test_promote_64(test):
    """The same for a fail-over with the server running."""
    rng = seeded("promote 64")
    names = ["d%02d" % i for i in range(64)]
    group = Group(test, names, size=64 * KiB)
    for _ in range(3):
        for name in names:
            group.write(rng, name, 1)
        group.server.commit()
    want = group.copies()
    for name in names:
        group.write(rng, name, 1)
    tool("mcbuf-recover", "--wait", group.server.journal)
    group.images(names, want, "promoted")


def test_other_disks(test):
    """Missing, surplus, swapped and resized disks are refused by name; their order is free."""
    rng = seeded("other disks")
    group = Group(test, ["vda", "vdb", "vdc"])
    for name in group.paths:
        group.write(rng, name)
    group.server.commit()
    group.stop()
    group.refuses(["vda", "vdc"], ["vdb", "remove-disk=vdb"])
    group.make("vdx")
    group.refuses(["vda", "vdb", "vdc", "vdx"], ["vdx", "add-disk=vdx"])
    group.refuses(["vda", "vdx", "vdc"], ["vdb", "vdx", "remove-disk=vdb", "add-disk=vdx"])
    # Swapped.
    paths = dict(group.paths)
    group.paths.update(vda=paths["vdb"], vdb=paths["vda"])
    group.refuses(["vda", "vdb", "vdc"], ["vda", paths["vda"], paths["vdb"]])
    group.paths = paths
    # Resized.
    os.truncate(paths["vdb"], SIZE + 4096)
    group.refuses(["vda", "vdb", "vdc"], ["vdb", str(SIZE), str(SIZE + 4096)])
    os.truncate(paths["vdb"], SIZE)
    # Gone.
    os.rename(paths["vdb"], paths["vdb"] + ".away")
    group.refuses(["vda", "vdb", "vdc"], [paths["vdb"], "gone"])
    os.rename(paths["vdb"] + ".away", paths["vdb"])
    # Any order.
    group.start(["vdc", "vda", "vdb"])
    equal([d["name"] for d in group.server.status()["disks"]], ["vda", "vdb", "vdc"], "order")
    group.inlets(["vda", "vdb", "vdc"], "in another order")
    for name in ("vdc", "vda"):
        group.write(rng, name)
    group.server.commit()
    group.server.drained()
    group.images(["vda", "vdb", "vdc"], group.copies(), "written out")


def test_parameters(test):
    """What makes no sense is refused, and nothing has changed."""
    group = Group(test, ["vda", "vdb"])
    group.stop()
    group.refuses(["vda", "vdb"], ["vdc", "missing"], "add-disk=vdc")
    group.refuses(["vda", "vdb"], ["remove-disk=vdb"], "remove-disk=vdb")
    group.refuses(["vda", "vdb"], ["without a path"], "add-disk=vdc:/x")
    group.make("vdx")
    group.make("vdy")
    group.refuses(["vdx"], ["no disk of this replica would stay"], "add-disk=vdx",
                  "remove-disk=vda", "remove-disk=vdb")
    # One of two differences is named: nothing is done.
    group.refuses(["vda", "vdb", "vdx", "vdy"], ["vdy"], "add-disk=vdx")
    group.start(["vda", "vdb"], "add-disk=vda", "remove-disk=vdz")      # nothing to do
    equal(group.server.status()["state"], "protected", "state")


def test_join(test):
    """A disk joins: the old checkpoint stays recoverable, and the next one has all."""
    rng = seeded("join")
    group = Group(test, ["vda", "vdb"])
    for name in ("vda", "vdb"):
        group.write(rng, name)
    group.server.commit()
    group.stop()
    group.make("vdc")
    write_file(group.paths["vdc"], rng.randbytes(SIZE))     # rubbish so far
    names = ["vda", "vdb", "vdc"]
    group.start(names, "add-disk=vdc")
    s = group.server.status()
    equal(s["state"], "resyncing", "state")
    equal(s["checkpoint"]["id"], 1, "checkpoint")
    equal(covered(group.server), {"vda": True, "vdb": True, "vdc": False}, "covered")
    # The mirrors of the others just go on.
    group.write(rng, "vda")
    h = group.server.connect("vdc")
    h.pwrite(bytes(SIZE), 0)            # its first copy
    group.handles["vdc"] = h
    group.write(rng, "vdc", 20)
    group.server.kill()
    group.start(names, "add-disk=vdc")  # left on the command line
    equal(group.server.status()["state"], "resyncing", "state after a crash of nbdkit")
    group.inlets(names, "after a crash")
    group.write(rng, "vdc")
    group.write(rng, "vdb")
    same(read_file(group.paths["vdc"]), bytes(group.disks["vdc"].now), "the copy goes straight")
    group.stop()
    group.start(names)
    equal(group.server.status()["state"], "resyncing", "state after a stop")
    group.write(rng, "vdc")
    sealed = group.server.seal()        # closes the copy
    before = group.copies()
    group.write(rng, "vdc")
    same(read_file(group.paths["vdc"]), before["vdc"], "behind the seal")
    group.server.commit(epoch=sealed)
    equal(group.server.status()["state"], "protected", "state after the commit")
    equal(covered(group.server), {n: True for n in names}, "covered")
    group.inlets(names, "all together")
    group.server.kill()
    r = tool("mcbuf-recover", "--json", group.server.journal).json
    equal(r["checkpoint"], sealed, "checkpoint")
    check("without" not in r, r)
    group.images(names, before, "recovered")


def test_join_recover(test):
    """Fail-over before the copy of a disk that joined is whole: the checkpoint does not have it."""
    rng = seeded("join and recover")
    for online in (False, True):
        for path in ("vda.img", "vdb.img"):
            if os.path.exists(test.path(path)):
                os.unlink(test.path(path))
        group = Group(test, ["vda"])
        group.write(rng, "vda")
        group.server.commit()
        want = group.copies()
        group.stop()
        group.make("vdb")
        group.start(["vda", "vdb"], "add-disk=vdb")
        group.write(rng, "vdb")
        group.write(rng, "vda")
        equal(connect_errno(group.server, "vdb@promoted") != 0, True, "vdb@promoted")
        copied = group.copies()["vdb"]
        if online:
            r = tool("mcbuf-recover", "--wait", "--json", group.server.journal).json
            check(connect_errno(group.server, "vdb@promoted") != 0, "vdb@promoted is served")
            h = group.server.connect("vda@promoted")
            same(read_all(h), want["vda"], "promoted")
            h.pwrite(b"on it goes", 0)
            h.flush()
            h.shutdown()
            want["vda"] = b"on it goes" + want["vda"][10:]
            group.stop()
        else:
            group.server.kill()
            os.rename(group.paths["vdb"], group.paths["vdb"] + ".away")     # not needed
            tool("mcbuf-recover", "--verify", group.server.journal)
            r = tool("mcbuf-recover", "--json", group.server.journal).json
            os.rename(group.paths["vdb"] + ".away", group.paths["vdb"])
            text = tool("mcbuf-recover", group.server.journal).out
            check("vdb" in text and "must not be used" in text, text)
        equal(r["checkpoint"], 1, "checkpoint")
        equal(r["without"], ["vdb"], "without")
        group.images(["vda"], want, "recovered")
        same(read_file(group.paths["vdb"]), copied, "left alone")
        # The way back: a copy of everything.
        group.start(["vda", "vdb"])
        done(group.server.ask("resync overwrite"))
        for name in ("vda", "vdb"):
            group.disks[name] = Disk(SIZE)
            group.handles[name] = group.server.connect(name)
            group.handles[name].pwrite(bytes(SIZE), 0)
            group.write(rng, name)
        group.server.commit()
        equal(covered(group.server), {"vda": True, "vdb": True}, "covered")
        want = group.copies()
        group.server.kill()
        tool("mcbuf-recover", group.server.journal)
        group.images(["vda", "vdb"], want, "recovered with both")
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))


def test_join_older(test):
    """Back to a checkpoint from before a disk joined: that disk is no part of what is promoted."""
    rng = seeded("join and older")
    for online in (False, True):
        for path in ("vda.img", "vdb.img"):
            if os.path.exists(test.path(path)):
                os.unlink(test.path(path))
        group = Group(test, ["vda"], options=("baseline=trusted", "history=100"))
        group.write(rng, "vda")
        group.server.commit()
        want = group.copies()
        group.stop()
        group.make("vdb")
        group.start(["vda", "vdb"], "add-disk=vdb", "history=100")
        group.write(rng, "vdb")
        scratch = group.server.connect("vda@scratch")
        second = group.server.commit()["checkpoint"]
        # A scratch of another disk holds on to a checkpoint that does not have this one.
        check(connect_errno(group.server, "vdb@scratch") != 0, "vdb@scratch from before it joined")
        scratch.shutdown()
        poll("vdb@scratch", lambda g=group: connect_errno(g.server, "vdb@scratch") == 0)
        for name in ("vda", "vdb"):
            group.write(rng, name)
        group.server.commit()
        for name in ("vda", "vdb"):
            group.write(rng, name)
        if online:
            equal(group.server.ask("promote to=1")["checkpoint"], 1, "checkpoint")
            poll("the backlog to drain", lambda g=group: g.server.status().get("drained"))
        else:
            group.server.kill()
            tool("mcbuf-recover", "--to=1", group.server.journal)
        group.images(["vda"], want, "back to 1, not", second)
        if not online:
            group.start(["vda", "vdb"], "history=100")
        poll("the divergence of vda", lambda g=group: g.server.ask("divergence disk=vda")["known"])
        answer = group.server.ask("divergence disk=vdb")
        check(not answer["known"] and not answer["ranges"] and "full copy" in answer["reason"], answer)
        result = tool("mcbuf-status", "--divergence", group.server.journal, code=REFUSED)
        check("full copy" in result.err, result)
        group.server.kill()
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))


def test_join_hole(test):
    """The copy of a disk that joined has a hole: stale, the old checkpoint stays, resync copies it anew."""
    rng = seeded("join and hole")
    faults = Faults(test)
    group = Group(test, ["vda"], env=faults.env, preload=faults.preload)
    group.write(rng, "vda")
    group.server.commit()
    group.server.drained()
    group.stop()
    group.make("vdb")
    group.start(["vda", "vdb"], "add-disk=vdb")
    group.write(rng, "vdb")
    faults.fail("pwrite", "vdb.img")
    equal(nbd_errno(group.handles["vdb"].pwrite, b"x" * 4096, 0), errno.EIO, "a write")
    equal(group.server.status()["state"], "stale", "state")
    refused(group.server.ask("commit"), REFUSED, "stale")
    faults.heal("pwrite")
    done(group.server.ask("resync"))
    equal(group.server.status()["state"], "resyncing", "state")
    group.handles = {}
    for name in ("vda", "vdb"):
        h = group.handles[name] = group.server.connect(name)
        h.pwrite(bytes(group.disks[name].now), 0)
        group.write(rng, name)
    # A sync that fails when the copy ends is a hole as well.
    faults.fail("fdatasync", "vdb.img")
    refused(group.server.ask("commit"), REFUSED, "durable", "resync")
    equal(group.server.status()["state"], "stale", "state")
    faults.heal("fdatasync")
    done(group.server.ask("resync"))
    group.handles = {}
    for name in ("vda", "vdb"):
        h = group.handles[name] = group.server.connect(name)
        h.pwrite(bytes(group.disks[name].now), 0)
    group.server.commit()
    group.server.kill()
    tool("mcbuf-recover", group.server.journal)
    group.images(["vda", "vdb"], group.copies(), "recovered")


def test_join_reboot(test):
    """After a reboot the copy of a disk that joined may have lost something, and says so."""
    rng = seeded("join and reboot")
    faults = Faults(test)
    group = Group(test, ["vda"], env=faults.env, preload=faults.preload)
    group.write(rng, "vda")
    group.server.commit()
    want = group.copies()
    group.stop()
    group.make("vdb")
    group.start(["vda", "vdb"], "add-disk=vdb")
    group.write(rng, "vdb")
    faults.reboot(group.server)
    group.start(["vda", "vdb"])
    equal(group.server.status()["state"], "stale", "state")
    group.server.kill()
    tool("mcbuf-recover", group.server.journal)
    group.images(["vda"], want, "recovered")


def test_join_nbd(test):
    """The disk that joins is behind NBD, and its server loses a part of the copy."""
    rng = seeded("join by NBD")
    group = Group(test, ["vda"])
    group.write(rng, "vda")
    group.server.commit()
    group.stop()
    store = Store(test, SIZE, "lossy")
    group.paths["vdb"] = store.uri
    group.disks["vdb"] = Disk(SIZE)
    group.start(["vda", "vdb"], "add-disk=vdb")
    group.write(rng, "vdb")
    group.write(rng, "vda")
    time.sleep(0.2)
    store.kill()
    store.start()
    refused(group.server.ask("commit"), REFUSED, "durable")
    done(group.server.ask("resync"))
    group.handles = {}
    for name in ("vda", "vdb"):
        h = group.handles[name] = group.server.connect(name)
        h.pwrite(bytes(group.disks[name].now), 0)
    group.server.commit()
    store.kill()
    store.start()
    same(store.content(), bytes(group.disks["vdb"].now), "the copy in the store")
    group.server.kill()
    tool("mcbuf-recover", group.server.journal)
    group.images(["vda"], group.copies(), "recovered")


def test_leave(test):
    """A disk leaves: its image is at the last checkpoint, and the others go on."""
    rng = seeded("leave")
    faults = Faults(test)
    group = Group(test, ["vda", "vdb", "vdc"], env=faults.env, preload=faults.preload)
    faults.fail("pwrite", ".img")       # a backlog that is not written out
    for _ in range(3):
        for name in group.paths:
            group.write(rng, name)
        group.server.commit()
    group.stop()
    want = group.copies()
    group.refuses(["vda", "vdc"], ["cannot be written out", ".img: "], "remove-disk=vdb")
    faults.heal("pwrite")
    group.start(["vda", "vdc"], "remove-disk=vdb")
    s = group.server.status()
    equal((s["state"], s["checkpoint"]["id"], s["written_out"]), ("protected", 3, 3), "status")
    equal([d["name"] for d in s["disks"]], ["vda", "vdc"], "disks")
    group.images(["vda", "vdb", "vdc"], want, "at the checkpoint")
    check(connect_errno(group.server, "vdb") != 0, "vdb is served")
    group.inlets(["vda", "vdc"], "after it")
    for name in ("vdc", "vda"):
        group.write(rng, name)
    group.server.commit()
    want.update({n: group.copies()[n] for n in ("vda", "vdc")})
    group.stop()
    group.start(["vdc", "vda"], "remove-disk=vdb")          # left on the command line
    group.write(rng, "vdc")
    group.server.kill()
    tool("mcbuf-recover", group.server.journal)
    group.images(["vda", "vdb", "vdc"], want, "recovered")


def test_leave_and_join(test):
    """One leaves, another joins, also under the same name: two steps for that."""
    rng = seeded("leave and join")
    group = Group(test, ["vda", "vdb"])
    for name in ("vda", "vdb"):
        group.write(rng, name)
    group.server.commit()
    group.stop()
    group.make("vdc", SIZE // 2)
    group.start(["vda", "vdc"], "remove-disk=vdb", "add-disk=vdc")
    equal(covered(group.server), {"vda": True, "vdc": False}, "covered")
    group.write(rng, "vdc")
    group.server.commit()
    group.stop()
    group.start(["vda"], "remove-disk=vdc")
    equal(group.server.status()["state"], "protected", "state")
    group.stop()
    group.make("vdc", SIZE + 512)       # another size
    group.start(["vda", "vdc"], "add-disk=vdc")
    group.write(rng, "vdc")
    group.server.commit()
    want = group.copies()
    group.write(rng, "vda")
    group.server.kill()
    tool("mcbuf-recover", group.server.journal)
    group.images(["vda", "vdc"], want, "recovered")


def test_uncommitted(test):
    """What is not committed does not survive a change of the set: stale, never half."""
    rng = seeded("uncommitted")
    for names, params in ((["vda"], ["remove-disk=vdb"]),
                          (["vda", "vdb", "vdc"], ["add-disk=vdc"])):
        group = Group(test, ["vda", "vdb"])
        for name in ("vda", "vdb"):
            group.write(rng, name)
        group.server.commit()
        want = group.copies()
        group.write(rng, "vda")
        group.server.seal()
        group.write(rng, "vdb")
        group.stop()
        group.make("vdc")
        group.start(names, *params)
        equal(group.server.status()["state"], "stale", "state")
        refused(group.server.ask("commit"), REFUSED, "stale")
        group.images(["vda", "vdb"], want, "at the checkpoint")
        group.server.kill()
        tool("mcbuf-recover", group.server.journal)
        group.images(["vda", "vdb"], want, "recovered")
        for name in os.listdir(test.path("j")):
            os.unlink(test.path("j/" + name))


def test_states(test):
    """In syncing the set may change as well; a promoted copy is the disk and stays what it is."""
    rng = seeded("states")
    group = Group(test, ["vda"], options=())
    group.write(rng, "vda")
    group.stop()
    group.make("vdb")
    group.start(["vda", "vdb"], "add-disk=vdb")
    equal(group.server.status()["state"], "syncing", "state")
    group.write(rng, "vdb")
    group.write(rng, "vda")
    tool("mcbuf-recover", "--list", group.server.journal, code=NO_CHECKPOINT)
    group.server.commit()
    group.server.drained()
    group.images(["vda", "vdb"], group.copies(), "first copy")
    for h in group.handles.values():
        h.shutdown()
    tool("mcbuf-recover", "--wait", group.server.journal)
    group.server.stop()
    group.refuses(["vda"], ["promoted", "resync overwrite"], "remove-disk=vdb")
    group.start(["vda", "vdb"])
    equal(group.server.status()["state"], "promoted", "state")


def test_crash(test):
    """SIGKILL while the set changes: the old one or the new one, and nothing is lost."""
    rng = seeded("crash")
    group = Group(test, ["vda", "vdb", "vdc"])
    names = ["vda", "vdb", "vdc"]
    for lap in range(12):
        for name in names:
            group.write(rng, name)
        group.server.commit()
        want = group.copies()
        group.stop()
        leaving, joining = rng.choice(names), "j%d" % lap
        group.make(joining)
        after = [n for n in names if n != leaving] + [joining]
        args = ["disk=%s:%s" % (n, group.paths[n]) for n in after]
        server = Server(test, *args, "journal=" + test.path("j"), "buffer=8M",
                        "add-disk=" + joining, "remove-disk=" + leaving, start=False)
        p = test.spawn(server.argv(), server.env, server.preload, server.log, ours=True)
        time.sleep(rng.uniform(0, 0.06))
        p.kill()
        p.wait()
        try:
            group.start(names)
            equal(group.server.status()["state"], "protected", "state with the old set")
        except StartError as error:
            check("add-disk=" in str(error), error)
            group.start(after, "add-disk=" + joining, "remove-disk=" + leaving)
            equal(group.server.status()["state"], "resyncing", "state with the new set")
            names = after
            group.handles[joining] = group.server.connect(joining)
            group.handles[joining].pwrite(bytes(SIZE), 0)
        if leaving not in names:
            same(read_file(group.paths[leaving]), want[leaving], "the one that leaves")
        group.inlets(names, "after a crash")
        check(group.server.status()["checkpoint"]["id"] > 0, "no checkpoint")
    group.server.commit()
    want = group.copies()
    group.server.kill()
    tool("mcbuf-recover", group.server.journal)
    group.images(names, want, "recovered")


if __name__ == "__main__":
    main(globals())
