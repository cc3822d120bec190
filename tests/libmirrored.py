# SPDX-License-Identifier: BSD-3-Clause
"""A replica under the mirror of a QEMU whose guest runs and writes all the time.

What goes wrong and what leads back is the tests' part; what must be true meanwhile and
afterwards is here.

A mirror that fails during its copy frees its bitmap of requests in flight while those of
the guest are still under way (mirror_run in QEMU 7.2.22, whatever the target), and QEMU
often dies of that.  So the guest stands still where the copy itself is going to fail.
"""

import contextlib
import glob
import os
import shutil
import subprocess

from libguest import RunningPrimary, records
from libmcbuf import (REFUSED, Faults, MiB, Server, check, done, equal, poll, read_all, read_file, refused,
                      same, tool)
from libqemu import primary_images, random_writes
from qmp import QMPError

SIZE = 16 * MiB
HALF = SIZE // 2                        # the guest's records stay below, qemu-io writes from here on
SLOWLY = MiB                            # bytes a second of a copy that a test has to meet under way


class Mirrored:
    """A running primary and a server with one disk, in the state syncing and without a mirror."""

    def __init__(self, test, rng, journal="32M", reconnect=None):
        self.test, self.rng, self.reconnect = test, rng, reconnect
        self.faults = Faults(test)
        self.image = test.unique("replica") + ".img"
        self.server = Server(test, self.image, "size=%d" % SIZE, "journal=" + test.unique("j"),
                             "journal-size=" + journal, "buffer=8M", env=self.faults.env,
                             preload=self.faults.preload)
        path, = primary_images(test, rng, 1, SIZE)
        self.primary = RunningPrimary(test, path)
        self.qmp = self.primary.qmp
        self.is_added = False
        self.last = self.content = None         # the last checkpoint

    def end(self):
        self.primary.kill()
        self.server.kill()
        for path in glob.glob("/dev/shm/mcbuf-%s*" % self.server.replica):
            os.unlink(path)

    # --- The mirror ---

    def start_mirror(self, export="", **more):
        """A new one, on a new connection; QEMU holds on to it when there is a reconnect delay."""
        if self.is_added:
            self.qmp.command("blockdev-del", node_name="r0")
            self.is_added = False
        if self.reconnect is None:
            self.primary.drive_mirror(0, self.server, export, **more)
        else:
            self.primary.add_replica(0, self.server, export, reconnect=self.reconnect)
            self.is_added = True
            self.primary.mirror(0, **more)

    def is_under_way(self):
        """The copy has begun, and is far from over; the guest and others write into it."""
        poll("the copy to begin", lambda: self.qmp.job("m0")["offset"] > 0)
        self.write(10)
        check(not self.qmp.job("m0")["ready"], "the copy is over already")

    def any_speed(self):
        try:
            self.qmp.command("block-job-set-speed", device="m0", speed=0)
        except QMPError:
            equal(self.qmp.job("m0"), None, "the job")  # over already

    @contextlib.contextmanager
    def stopped(self):
        """The guest stands still; QEMU flushes first."""
        self.qmp.command("stop")
        yield
        self.qmp.command("cont")

    def give_up_mirror(self):
        """It is cancelled; nothing is wrong."""
        with self.stopped():
            self.qmp.command("block-job-cancel", device="m0", force=True)
            poll("the job to end", lambda: self.qmp.job("m0") is None)
        self.qmp.events.clear()

    def copy_fails(self, text):
        """The guest is stopped and the target refuses: if the copy does not hear of it any more, a write does."""
        def is_over():
            job = self.qmp.job("m0")
            return job is None or job["ready"]

        self.any_speed()
        poll("the copy to end", is_over)
        if self.qmp.job("m0"):
            self.primary.write_soon(0, 3, HALF, SIZE - HALF)
        self.primary.job_fails(0, text)

    def mirror_gets_nowhere(self):
        """A new mirror cannot pass the hole, in whatever way that is told."""
        with self.stopped():
            try:
                self.start_mirror()
                check(self.primary.job_error(0).get("error"), "a new mirror goes on")
            except QMPError:
                pass
        self.qmp.events.clear()

    # --- What is written ---

    def write(self, n, soon=False):
        random_writes(self.rng, self.primary, n, SIZE, soon=soon, first=HALF)

    def fill(self, text):
        """Written until the journal takes no more, and the mirror is over with TEXT."""
        with self.stopped():
            for i in range(200):
                self.primary.write(0, 1 + i % 255, HALF + i % 7 * MiB + 4096, MiB)
                if self.qmp.job("m0") is None:
                    break
            check(self.qmp.job("m0") is None, "the journal takes more than it has room for")
            self.primary.job_fails(0, text)

    # --- Checkpoints ---

    def checkpoint(self):
        """One while the guest runs; the image is compared with the primary's at that moment."""
        epoch, contents = self.primary.pause(self.server)
        equal(self.server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
        equal(self.server.status()["state"], "protected", "state")
        self.last, self.content = epoch, contents[0]
        self.is_written_out()

    def is_written_out(self):
        self.server.drained()
        same(read_file(self.image), self.content, "the image at checkpoint", self.last)

    def make_protected(self):
        """Protected, with a few checkpoints and speculation."""
        self.start_mirror()
        self.primary.wait_ready()
        for _ in range(2):
            self.primary.works()
            self.write(10)
            self.checkpoint()
        check(records(self.content) >= 40, "the guest wrote", records(self.content))
        self.write(10)
        self.primary.works()

    def is_recoverable(self, drained=True):
        """The last checkpoint is there, and nothing newer, in whichever way it is looked at."""
        dry = tool("mcbuf-recover", "--dry-run", "--json", self.server.journal).json
        equal(dry["checkpoint"], self.last, "--dry-run")
        h = self.server.connect("@latest")
        same(read_all(h), self.content, "@latest")
        h.shutdown()
        if drained:
            same(read_file(self.image), self.content, "the image")

    def is_recovered(self, *args):
        """The server is dead: what recovery makes of a copy of the image is the last checkpoint."""
        check(not self.server.is_running(), "the server runs")
        there = self.test.unique("copy")
        os.mkdir(there)
        subprocess.run(["cp", "--sparse=always", self.image, there + "/disk.img"], check=True)
        shutil.copytree(self.server.journal, there + "/j", ignore=shutil.ignore_patterns("control"))
        # What is in shared memory is the next server's.
        memory = glob.glob("/dev/shm/mcbuf-%s*" % self.server.replica)
        kept = [(path, path.replace("/mcbuf-", "/mcbuf-kept-", 1)) for path in memory]
        for path, aside in kept:
            os.rename(path, aside)
        try:
            answer = tool("mcbuf-recover", "--json", "--disk=:%s/disk.img" % there, *args, there + "/j").json
        finally:
            for path, aside in kept:
                os.rename(aside, path)
        equal(answer["checkpoint"], self.last, "recovered")
        same(read_file(there + "/disk.img"), self.content, "the recovered copy")
        shutil.rmtree(there)

    # --- States ---

    def is_in(self, state, *words, last="?"):
        """The state, its reason, and its checkpoint; returns the status."""
        s = self.server.status()
        equal((s["state"], s["checkpoint"] and s["checkpoint"]["id"]),
              (state, self.last if last == "?" else last), "status", s)
        for word in words:
            check(word in s["reason"], "no", repr(word), "in", s["reason"])
        return s

    def no_commit(self, *words):
        """Refused with exit code 2, by the socket and by NBD, sealed or not; the message names the way out."""
        for target in (self.server.journal, self.server.uri()):
            for args in ((), ("--seal",)):
                said = tool("mcbuf-commit", *args, target, code=REFUSED)
                for word in words:
                    check(word in said.err, "no", repr(word), "in", said)

    def leads_back(self, verb, export=""):
        """VERB, a new mirror in the same QEMU and the first commit: protected, and every byte is right."""
        first = verb == "resync overwrite"
        old = self.last
        if first:
            done(self.server.ask(verb))
            self.is_in("syncing", last=None)
        else:
            refused(self.server.ask("commit"), 2, "resync")
            tool("mcbuf-ctl", self.server.uri(), verb)
            self.is_in("resyncing")
        self.start_mirror(export)
        self.write(10)
        if not first:
            self.is_recoverable()
        self.primary.wait_ready()
        self.primary.works()
        self.write(10)
        self.is_in("syncing" if first else "resyncing", last=None if first else old)
        self.checkpoint()
        check(first or self.last > old, "checkpoint", self.last, "after", old)
        self.ends_well()

    def ends_well(self):
        """The mirror goes on; then both hosts die, and recovery makes the last checkpoint of the image."""
        self.primary.works()
        self.write(10)
        self.checkpoint()
        self.write(10)                  # after the last checkpoint: never seen again
        equal(self.qmp.job("m0")["status"], "ready", "the new job")
        self.primary.kill()
        self.server.kill()
        answer = tool("mcbuf-recover", "--json", self.server.journal).json
        equal(answer["checkpoint"], self.last, "recovered")
        same(read_file(self.image), self.content, "the recovered image")
        check(records(read_file(self.image)) == records(self.content) > 0, "the guest's records")
