#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random work by NBD on one to three disks, against plain bytes in memory.

Reads, writes, zeroes, trims, flushes, seals, commits, clean restarts, SIGKILL
restarts and recoveries, one after the other (test-mcbuf-sigkill.py is about
what is in flight).  After each step that could show a lie, everything is read
back: the inlets, and the images, which must never hold an uncommitted byte.

MCBUF_TEST_STEPS: how many steps (4000).
"""

import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (KiB, MiB, WRAPPER, Disk, Server, check, count,
                      done, equal, first_difference, main, random_data,
                      random_range, read_all, read_file, refused, same, seeded,
                      sparse_file, tool, write_file, tried)

STEPS = count("STEPS", 300 if WRAPPER else 4000)
BACKLOG = 6 * MiB               # uncommitted bytes before a commit is due


class Replica:
    """A replica, its server, and what must be in it."""

    def __init__(self, test, rng, number):
        self.test, self.rng = test, rng
        n = rng.randint(1, 3)
        self.names = [""] if n == 1 else ["a", "b.1", "C_2"][:n]
        self.journal = test.path("journal%d" % number)
        # Sizes that end within a block and within a sector.
        self.sizes = [rng.choice((4 * MiB, 3 * MiB + 4096, 5 * MiB - 512,
                                  2 * MiB + 1536)) for _ in range(n)]
        trusted = rng.random() < 0.5
        params = ["journal=" + self.journal,
                  "journal-size=%dM" % rng.choice((32, 48, 64)),
                  "buffer=%dM" % rng.choice((8, 16))]
        self.disks, self.images = [], []
        for i, size in enumerate(self.sizes):
            image = test.path("disk%d.%d" % (number, i))
            disk = Disk(size, rng.randbytes(size) if trusted else None)
            if trusted:
                write_file(image, disk.now)
            else:
                sparse_file(image, size)
            params.append("disk=%s:%s" % (self.names[i], image)
                          if self.names[i] else image)
            self.disks.append(disk)
            self.images.append(image)
        self.state = "syncing"
        self.checkpoint = 0
        self.epoch = 1
        self.sealed = {}            # epoch -> contents
        self.recent = []            # committed contents that may still be in the images
        self.uncommitted = 0
        if trusted:
            params.append("baseline=trusted")
            self.state = "protected"
            self.recent = [self.contents()]
        self.server = Server(test, *params, journal=self.journal)
        self.epoch = self.server.status()["open_epoch"]
        self.handles = [None] * n
        self.connect()

    def contents(self):
        return [bytes(d.now) for d in self.disks]

    def connect(self):
        self.handles = [self.server.connect(name) for name in self.names]

    def disconnect(self):
        for h in self.handles:
            h.shutdown()

    # --- Steps: requests ---

    def pick(self, most=256 * KiB):
        i = self.rng.randrange(len(self.disks))
        disk = self.disks[i]
        return self.handles[i], disk, *random_range(self.rng, disk.size, most)

    def step_read(self):
        h, disk, offset, length = self.pick(MiB)
        same(bytes(h.pread(length, offset)), bytes(disk.now[offset:offset + length]),
             "read of %d at %d" % (length, offset))

    def step_write(self):
        h, disk, offset, length = self.pick()
        data = random_data(self.rng, length)
        h.pwrite(data, offset, nbd.CMD_FLAG_FUA if self.rng.random() < 0.1 else 0)
        disk.write(offset, data)
        self.uncommitted += length + 8192

    def step_big_write(self):
        h, disk, offset, length = self.pick(4 * MiB)
        data = random_data(self.rng, length)
        h.pwrite(data, offset)
        disk.write(offset, data)
        self.uncommitted += length + 8192

    def step_zero(self):
        h, disk, offset, length = self.pick(2 * MiB)
        flags = self.rng.choice((0, 0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA,
                                 nbd.CMD_FLAG_FAST_ZERO))
        try:
            h.zero(length, offset, flags)
        except nbd.Error as error:
            check(flags == nbd.CMD_FLAG_FAST_ZERO and error.errno in ("ENOTSUP", "EOPNOTSUPP"),
                  "zero:", error)
            return
        disk.zero(offset, length)
        self.uncommitted += 8192

    def step_trim(self):
        h, disk, offset, length = self.pick(2 * MiB)
        h.trim(length, offset)
        disk.zero(offset, length)
        self.uncommitted += 8192

    def step_flush(self):
        self.rng.choice(self.handles).flush()

    # --- Steps: epochs ---

    def step_seal(self):
        equal(self.server.seal(), self.epoch, "sealed")
        self.sealed[self.epoch] = self.contents()
        self.copied()
        self.epoch += 1

    def copied(self):
        """The first seal or commit closes the first copy: this is what the images hold."""
        if self.state == "syncing" and not self.recent:
            self.recent = [self.contents()]

    def committed(self, epoch):
        self.checkpoint = epoch
        self.recent.append(self.sealed[epoch])
        self.sealed = {e: c for e, c in self.sealed.items() if e > epoch}
        self.state = "protected"

    def step_commit(self):
        self.sealed[self.epoch] = self.contents()
        self.copied()
        reply = self.server.commit(label=self.rng.choice((None, "a label, with 'signs' é")))
        equal(reply["checkpoint"], self.epoch, "commit")
        self.epoch += 1
        self.committed(self.epoch - 1)
        self.uncommitted = 0

    def step_commit_sealed(self):
        if not self.sealed:
            self.step_seal()
        epoch = self.rng.choice(sorted(self.sealed))
        reply = self.server.commit(epoch=epoch)
        equal((reply["checkpoint"], reply["epoch"]), (epoch, epoch), "commit")
        self.committed(epoch)
        if not self.sealed:
            self.uncommitted = 0

    def step_commit_again(self):
        if self.state == "protected" and self.checkpoint:
            reply = self.server.commit(epoch=self.rng.randint(1, self.checkpoint))
            equal(reply["checkpoint"], self.checkpoint, "repeated commit")

    def step_commit_open(self):
        refused(self.server.ask("commit epoch=%d" % self.epoch), 2)

    def step_drain(self):
        if self.state == "protected":
            self.server.drained()
            self.recent = self.recent[-1:]
            self.check_images()

    # --- Steps: what must hold ---

    def check_images(self):
        """Each sector of an image is that of a committed state, none is newer."""
        if not self.recent:
            return                  # the first copy goes straight to them
        for i, path in enumerate(self.images):
            got = read_file(path)
            if got == self.recent[-1][i]:
                continue
            if len(self.recent) == 1:
                same(got, self.recent[-1][i], "image", i)
            for at in range(0, len(got), 512):
                piece = got[at:at + 512]
                if not self.is_committed(i, at, piece):
                    # Reading is not atomic: half of it may come from before a write-out.
                    piece = read_file(path)[at:at + 512]
                check(self.is_committed(i, at, piece),
                      "image %d: sector at %d is of no checkpoint" % (i, at),
                      "(speculation!)" if piece == self.disks[i].now[at:at + 512] else "")

    def is_committed(self, i, at, piece):
        return any(piece == r[i][at:at + 512] for r in self.recent)

    def check_inlets(self):
        for i, h in enumerate(self.handles):
            same(read_all(h, self.sizes[i]), bytes(self.disks[i].now), "inlet", i)

    def check_status(self):
        s = done(self.server.status())
        equal(s["state"], self.state, "state")
        equal(s["open_epoch"], self.epoch, "open epoch")
        equal(s["checkpoint"]["id"] if s["checkpoint"] else 0, self.checkpoint, "checkpoint")

    # --- Steps: ends ---

    def step_restart(self):
        self.disconnect()
        self.server.stop()
        self.server.start()
        self.restarted()

    def step_sigkill(self):
        self.server.kill()
        self.server.start()
        self.restarted()

    def restarted(self):
        self.connect()
        self.check_status()
        self.check_inlets()
        self.check_images()

    def recover(self):
        """The end of this replica: what it recovers to, offline or online."""
        how = self.rng.choice(("clean", "killed", "online"))
        if how == "online":
            if self.state == "syncing":
                tool("mcbuf-recover", self.journal, code=3)
            else:
                answer = tool("mcbuf-recover", "--wait", "--json", self.journal).json
            self.disconnect()
            self.server.stop()
            if self.state == "syncing":
                return
        else:
            if how == "clean":
                self.disconnect()
                self.server.stop()
            else:
                self.server.kill()
            if self.state == "syncing":
                tool("mcbuf-recover", self.journal, code=3)
                return
            answer = tool("mcbuf-recover", "--json", self.journal).json
        equal(answer["checkpoint"], self.checkpoint, "recovered", how)
        for i, image in enumerate(self.images):
            where = first_difference(read_file(image), self.recent[-1][i])
            check(where is None, "recovered", how, "image", i, where)


STEPS_BY_WEIGHT = (
    ("read", 20), ("write", 40), ("big_write", 2), ("zero", 8), ("trim", 6),
    ("flush", 2), ("seal", 4), ("commit", 4), ("commit_sealed", 4),
    ("commit_again", 1), ("commit_open", 1), ("drain", 1),
    ("restart", 0.5), ("sigkill", 0.5),
)


def test_model(test):
    """Thousands of random steps."""
    rng = seeded("test_model")
    names = [n for n, _ in STEPS_BY_WEIGHT]
    weights = [w for _, w in STEPS_BY_WEIGHT]
    tally = dict.fromkeys(names, 0)
    steps = replicas = 0
    while steps < STEPS:
        r = Replica(test, rng, replicas)
        replicas += 1
        for _ in range(rng.randint(50, 500)):
            name = rng.choices(names, weights)[0]
            if r.uncommitted > BACKLOG:
                name = "commit"
            try:
                getattr(r, "step_" + name)()
                if rng.random() < 0.02:
                    r.check_images()
                    r.check_inlets()
                    r.check_status()
            except Exception:
                print("at step %d (%s) of replica %d, %d disks, %s"
                      % (steps, name, replicas, len(r.disks), r.state))
                raise
            tally[name] += 1
            steps += 1
        r.check_inlets()
        r.recover()
        if r.server.is_running():
            r.server.kill()
        for image in r.images:
            os.unlink(image)
        shutil.rmtree(r.journal)
    tried("1,2,3,4,5,6", "random requests, restarts and kills", steps)
    print("%d steps, %d replicas: %s" % (steps, replicas,
          ", ".join("%s %d" % t for t in tally.items())))
    check(tally["sigkill"] or WRAPPER or STEPS < 1000, "no SIGKILL in", steps, "steps")


main(globals())
