#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The VM runs on: a guest boots from NAME@promoted while the backlog drains."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libguest import VM, boot_sector, records
from libmcbuf import (MiB, Server, check, equal, main, poll, read_all, read_file, same,
                      sparse_file, tool)
from libslow import Slow

SIZE = 32 * MiB
HIGH = 16 * MiB                 # nothing of the guest's lies there


def checkpoint(vm, server):
    """As a user makes one; the epoch, and the disk at that moment."""
    vm.qmp.command("stop")
    vm.qmp.wait_synced("mirror0")
    epoch = tool("mcbuf-commit", "--seal", "--json", server.uri()).json["sealed"]
    content = read_file(vm.image)
    vm.qmp.command("cont")
    tool("mcbuf-commit", "--epoch=%d" % epoch, server.uri())
    return epoch, content


def read_at(path, at, n):
    with open(path, "rb") as f:
        f.seek(at)
        return f.read(n)


def running_primary(test, server, inlet):
    """A guest that runs on its own disk, mirrored."""
    image = sparse_file(test.path("primary.img"), SIZE)
    with open(image, "r+b") as f:
        f.write(boot_sector(test))
    vm = VM(test, "file=" + image)
    vm.image = image
    vm.read = lambda at, n: read_at(image, at, n)
    equal(vm.last_record(), 0, "records on a new disk")
    vm.qmp.command("blockdev-add", driver="nbd", node_name="replica", export=inlet,
                   server={"type": "unix", "path": server.sock})
    vm.qmp.command("blockdev-mirror", job_id="mirror0", device="disk0", target="replica",
                   sync="full", copy_mode="write-blocking")
    vm.qmp.wait_ready("mirror0")
    return vm


def write_high(vm, byte):
    """Blocks that do not touch: each is a write of its own for write-out."""
    for i in range(100):
        said = vm.qmp.hmp('qemu-io disk0 "write -P %d %d 4096"' % (byte, HIGH + i * 16384))
        check("rror" not in said and "fail" not in said, said)


def boot(test, name):
    """Fail-over of the disk NAME."""
    slow = Slow(test)
    image = test.path("replica.img")
    server = Server(test, "disk=%s:%s" % (name, image) if name else image, "size=%d" % SIZE,
                    "journal-size=128M", "buffer=32M", "journal=" + test.path("j"),
                    env=slow.env, preload=slow.preload)
    vm = running_primary(test, server, name)
    checkpoint(vm, server)
    server.drained()
    slow.slow("replica.img")            # from here on nothing gets through to the image
    for byte in (1, 2):
        vm.go_on(vm.read)
        write_high(vm, byte)
        epoch, content = checkpoint(vm, server)
    vm.go_on(vm.read)
    write_high(vm, 3)
    vm.kill()
    written = records(content)
    check(records(read_file(vm.image)) >= written + 40, "the guest did not go on")
    check(records(read_file(image)) < written, "the image has it all already")

    # The primary is dead.
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal((answer["checkpoint"], answer["drained"]), (epoch, False), "answer")
    nbd = ("file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=%s@promoted"
           % (server.sock, name))
    second = VM(test, nbd)
    equal(second.last_record(), written, "what the guest finds")
    h = server.connect(name + "@promoted")
    second.go_on(lambda at, n: bytes(h.pread(n, at)))
    s = server.status()
    equal((s["state"], s["drained"]), ("promoted", False), "while it drains", s)
    check(s["writeout"]["bytes"] > 100 * 4096, "backlog:", s["writeout"])
    check(records(read_file(image)) < written, "it did not drain, the test thought")
    slow.slow("replica.img", 2)         # slowly, while the guest writes on
    tool("mcbuf-recover", "--wait", server.journal)
    equal(server.status()["drained"], True, "drained")
    second.go_on(lambda at, n: bytes(h.pread(n, at)))            # straight to the image

    second.quit()
    disk = read_all(h)
    h.shutdown()
    n = records(disk)
    check(n >= written + 80, "records:", n, "after", written)
    equal(disk[HIGH:HIGH + MiB], content[HIGH:HIGH + MiB], "what the guest did not touch")
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    same(read_file(image), disk, "image after shutdown")
    third = VM(test, "file=" + image)   # and now from the image itself
    equal(third.last_record(), n, "what the guest finds in the image")
    third.kill()
    poll("QEMU to be gone", lambda: third.process.poll() is not None)


def test_boot(test):
    """Fail-over under a running guest, which then boots from vda@promoted."""
    boot(test, "vda")


def test_scratch(test):
    """A standby is tried out: a guest boots from vda@scratch, and writes, while the mirror goes on."""
    image = test.path("replica.img")
    server = Server(test, "disk=vda:" + image, "size=%d" % SIZE, "journal-size=128M",
                    "buffer=32M", "journal=" + test.path("j"))
    vm = running_primary(test, server, "vda")
    checkpoint(vm, server)
    vm.go_on(vm.read)
    _, content = checkpoint(vm, server)
    written = records(content)
    vm.go_on(vm.read)

    scratch = ("file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=vda@scratch"
               % server.sock)
    second = VM(test, scratch)
    equal(second.last_record(), written, "what the guest on scratch finds")
    h = server.connect("vda@scratch")
    for _ in range(2):
        second.go_on(lambda at, n: bytes(h.pread(n, at)))
        vm.go_on(vm.read)
        _, content = checkpoint(vm, server)             # the replica goes on below
    check(records(read_all(h)) > written, "scratch lost what its guest wrote")
    second.kill()
    h.shutdown()
    third = VM(test, scratch)                           # after later commits it is fresh
    equal(third.last_record(), records(content), "what the next guest on scratch finds")
    third.kill()
    vm.kill()
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(image), content, "the image")


def test_promote_scratch(test):
    """The guest that runs on vda@scratch beside the mirror becomes the machine, and stays it when nbdkit is replaced."""
    image = test.path("replica.img")
    server = Server(test, "disk=vda:" + image, "size=%d" % SIZE, "journal-size=128M",
                    "buffer=32M", "journal=" + test.path("j"))
    vm = running_primary(test, server, "vda")
    vm.go_on(vm.read)
    checkpoint(vm, server)
    scratch = ("file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=vda@scratch,"
               "file.reconnect-delay=60" % server.sock)
    tried = VM(test, scratch)
    h = server.connect("vda@scratch")
    tried.go_on(lambda at, n: bytes(h.pread(n, at)), 16)
    vm.go_on(vm.read)
    epoch, content = checkpoint(vm, server)             # the replica goes on below it

    # Another one is to be the machine.
    written = records(content)
    second = VM(test, scratch)
    equal(second.last_record(), written, "what the second guest finds")
    tried.kill()
    h.shutdown()
    h = server.connect("vda@scratch")
    second.go_on(lambda at, n: bytes(h.pread(n, at)))
    vm.go_on(vm.read)                                   # the mirror goes on: speculation
    vm.kill()
    before = records(read_all(h))
    answer = poll("the promote", lambda: promoted(server))
    equal(answer["checkpoint"], epoch, "checkpoint")
    check(records(read_all(h)) >= before >= written + 40, "records went with the promote")
    second.go_on(lambda at, n: bytes(h.pread(n, at)))
    h.shutdown()
    server.kill()                                       # a new nbdkit; QEMU comes back to vda@scratch by itself
    server.start()
    h = server.connect("vda@promoted")
    second.go_on(lambda at, n: bytes(h.pread(n, at)))
    second.quit()
    disk = read_all(h)
    h.shutdown()
    n = records(disk)
    check(n >= before + 80, "records:", n, "after", before)
    tool("mcbuf-recover", "--wait", server.journal)
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    same(read_file(image), disk, "the image")


def promoted(server):
    """The answer; None while the connection of the guest that was killed is still open."""
    answer = server.ask("promote scratch")
    check("error" not in answer or "is open twice" in answer["error"], answer)
    return None if "error" in answer else answer


main(globals())
