#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A secondary that runs along, as in COLO: NAME@scratch is its disk, and is reset at each checkpoint.

The guest of a real COLO gets the primary's memory at a checkpoint.  Here it gets a reset instead,
and tells what it finds on its disk.
"""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libguest import VM, boot_sector, records
from libmcbuf import (MiB, REFUSED, Server, check, done, equal, main, poll, read_all, read_file, refused, same,
                      sparse_file, tool)

SIZE = 4 * MiB
HIGH = 3 * MiB                  # nothing of the guests lies there


def read_at(path, at, n):
    with open(path, "rb") as f:
        f.seek(at)
        return f.read(n)


class Pair:
    """A guest on its own disk, mirrored, and one on the scratch."""

    def __init__(self, test):
        self.image, self.primary_image = test.path("replica.img"), sparse_file(test.path("primary.img"), SIZE)
        self.server = Server(test, "disk=vda:" + self.image, "size=%d" % SIZE, "journal-size=64M", "buffer=8M",
                             "journal=" + test.path("j"))
        with open(self.primary_image, "r+b") as f:
            f.write(boot_sector(test))
        self.primary = VM(test, "file=" + self.primary_image)
        qmp = self.primary.qmp
        qmp.command("blockdev-add", driver="nbd", node_name="replica", export="vda",
                    server={"type": "unix", "path": self.server.sock})
        qmp.command("blockdev-mirror", job_id="mirror0", device="disk0", target="replica", sync="full",
                    copy_mode="write-blocking")
        qmp.wait_ready("mirror0")
        self.commit()
        self.secondary = VM(test, "file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=vda@scratch"
                            % self.server.sock)
        self.h = self.server.connect("vda@scratch")         # the same scratch, to look at it
        equal(self.secondary.last_record(), records(self.at), "what the secondary finds")

    def commit(self):
        """The primary's checkpoint."""
        self.primary.qmp.command("stop")
        self.primary.qmp.wait_synced("mirror0")
        self.epoch = self.server.seal()
        self.at = read_file(self.primary_image)
        self.primary.qmp.command("cont")
        self.server.commit(epoch=self.epoch)

    def run(self):
        """Both go on, each as it likes."""
        self.secondary.go_on(lambda at, n: bytes(self.h.pread(n, at)))
        self.primary.go_on(lambda at, n: read_at(self.primary_image, at, n))

    def checkpoint(self):
        """The whole of it: both stop, one commits, the other's disk becomes that."""
        # The guests write the same, and may be as far as each other: this is the secondary's alone.
        said = self.secondary.qmp.hmp('qemu-io disk0 "write -P 90 %d 4096"' % HIGH)
        check("rror" not in said and "fail" not in said, said)
        self.secondary.qmp.command("stop")
        self.commit()
        check(read_all(self.h) != self.at, "the secondary's disk did not part from the primary's")
        # Until the reset it is the disk of the checkpoint before: nobody may fail over to it.
        refused(self.server.ask("promote scratch"), REFUSED, "the newest is %d" % self.epoch, "reset it")
        done(self.server.ask("reset vda@scratch"))
        same(read_all(self.h), self.at, "the secondary's disk after checkpoint", self.epoch)
        booted = len(self.secondary.says("last record"))
        self.secondary.qmp.command("system_reset")
        self.secondary.known = 0
        self.secondary.qmp.command("cont")
        poll("the secondary to boot", lambda: len(self.secondary.says("last record")) > booted)
        equal(self.secondary.says("last record")[-1], records(self.at), "what the secondary finds")

    def finish(self, disk):
        tool("mcbuf-recover", "--wait", self.server.journal)
        tool("mcbuf-ctl", self.server.journal, "shutdown")
        self.server.wait_end()
        same(read_file(self.image), disk, "the image")


def test_running_secondary(test):
    """COLO: three checkpoints; the primary dies and the secondary goes on as it is."""
    pair = Pair(test)
    for _ in range(3):
        pair.run()
        pair.checkpoint()
    pair.run()
    pair.primary.kill()
    before = records(read_all(pair.h))
    equal(done(pair.server.ask("promote scratch"))["checkpoint"], pair.epoch, "promoted over")
    check(before >= records(pair.at) + 40, "the secondary did not go on")
    pair.secondary.go_on(lambda at, n: bytes(pair.h.pread(n, at)))
    pair.secondary.quit()
    disk = read_all(pair.h)
    pair.h.shutdown()
    check(records(disk) >= before, "records went with the promote")
    pair.finish(disk)


def test_hybrid(test):
    """The same replica, but the checkpoint is what is wanted: the secondary's own writes go."""
    pair = Pair(test)
    pair.run()
    pair.checkpoint()
    pair.run()
    pair.primary.kill()
    pair.secondary.kill()
    check(records(read_all(pair.h)) > records(pair.at), "the secondary did not go on")
    pair.h.shutdown()
    equal(done(pair.server.ask("promote"))["checkpoint"], pair.epoch, "promoted to")
    same(read_all(pair.server.connect("vda@promoted")), pair.at, "the promoted disk")
    third = VM(test, "file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=vda@promoted"
               % pair.server.sock)
    equal(third.last_record(), records(pair.at), "what the guest finds")
    third.kill()


main(globals())
