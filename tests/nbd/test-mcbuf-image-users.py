#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""An image that somebody has open for writing, without any lock, is refused; readers are welcome."""

import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (KiB, MiB, USAGE, Server, StartError, check, equal, forget_memory, main, poll,
                      random_data, read_file, same, seeded, sparse_file, tool)

SIZE = 4 * MiB


class Dead:
    """A dead replica on IMAGE, and what recovery has to make of that."""

    def __init__(self, test, image):
        self.image = image
        self.server = Server(test, image, "journal=" + test.path("j"), "journal-size=16M", "buffer=8M",
                             "baseline=trusted", "history=10")
        data = random_data(seeded(test.name), 300 * KiB)
        self.server.connect().pwrite(data, 8192)
        self.server.commit()
        self.server.kill()
        forget_memory(self.server)
        self.want = bytes(8192) + data + bytes(SIZE - 8192 - len(data))

    def refused(self, *words):
        """Recovery and a server are refused in one line, exit 1, and nothing is touched."""
        files = [os.path.join(self.server.journal, n) for n in ("journal", "acked")] + [self.image]
        before = [read_file(p) for p in files]
        result = tool("mcbuf-recover", self.server.journal, code=USAGE)
        try:
            self.server.start()
            check(False, "a server started on an image that is in use")
        except StartError as error:
            said = str(error)
        for word in words:
            check(word in result.err, "no", repr(word), "in", result)
            check(word in said, "no", repr(word), "in", said)
        check([read_file(p) for p in files] == before, "refused, but something was changed")

    def recovered(self):
        equal(tool("mcbuf-recover", "--json", self.server.journal).json["checkpoint"], 1, "checkpoint")
        same(read_file(self.image), self.want, "image")


def test_writer(test):
    """Open for writing somewhere, with no lock at all."""
    dead = Dead(test, sparse_file(test.path("disk.img"), SIZE))
    with open(dead.image, "r+b"):
        dead.refused("disk.img", "in use by another process", "process %d" % os.getpid())
        # To look does no harm to anybody.
        tool("mcbuf-recover", "--verify", dead.server.journal)
        tool("mcbuf-recover", "--dry-run", dead.server.journal)
    dead.recovered()


def test_reader(test):
    """Open for reading, as a backup has it: no obstacle."""
    dead = Dead(test, sparse_file(test.path("disk.img"), SIZE))
    with open(dead.image, "rb"):
        dead.recovered()
        dead.server.start()
        dead.server.stop()


def test_link(test):
    """Open under another name."""
    dead = Dead(test, sparse_file(test.path("disk.img"), SIZE))
    os.link(dead.image, test.path("other.img"))
    with open(test.path("other.img"), "ab"):
        dead.refused("disk.img", "in use by another process")
    dead.recovered()


def test_nbdkit_file(test):
    """Served by nbdkit's file plugin, while a client is connected."""
    import nbd                          # pylint: disable=import-outside-toplevel
    dead = Dead(test, sparse_file(test.path("disk.img"), SIZE))
    sock = test.path("file.sock")
    p = test.spawn(["nbdkit", "-f", "-U", sock, "file", dead.image])
    poll("nbdkit", lambda: os.path.exists(sock) or p.poll() is not None)
    h = nbd.NBD()
    h.connect_unix(sock)
    dead.refused("disk.img", "in use by another process", "process %d, nbdkit" % p.pid)
    h.shutdown()
    p.terminate()
    p.wait()
    dead.recovered()


def test_qemu_without_locks(test):
    """A storage daemon with locking=off."""
    dead = Dead(test, sparse_file(test.path("disk.img"), SIZE))
    sock = test.path("q.sock")
    p = test.spawn(["qemu-storage-daemon", "--blockdev",
                    "driver=file,node-name=f,filename=%s,locking=off" % dead.image,
                    "--nbd-server", "addr.type=unix,addr.path=" + sock,
                    "--export", "type=nbd,id=e,node-name=f,writable=on"])
    poll("qemu-storage-daemon", lambda: os.path.exists(sock) or p.poll() is not None)
    dead.refused("disk.img", "in use by another process", "process %d" % p.pid)
    p.terminate()
    p.wait()
    dead.recovered()


def test_mcbuf_without_locks(test):
    """What is refused does not end who is asked for it: the server that has the image goes on."""
    image = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, image, "journal-size=16M", "buffer=8M", "baseline=trusted")
    h = server.connect()
    for i in range(20):
        try:
            Server(test, image, "journal=" + test.path("j%d" % i), "journal-size=16M", "buffer=8M",
                   "baseline=trusted")
            check(False, "two servers have one image")
        except StartError as error:
            check("in use by another process" in str(error) and "process %d" % server.pid in str(error), error)
        h.pwrite(b"x" * 4096, 0)
        server.commit()


def losetup(test, path):
    """A loop device on PATH, or None where there is none to be had."""
    p = subprocess.run(["losetup", "--find", "--show", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True, check=False)
    if p.returncode:
        print("no loop device here, left out: " + p.stderr)
    return p.stdout.strip() if p.returncode == 0 else None


def detach(device):
    subprocess.run(["losetup", "--detach", device], check=True)
    name = "/sys/block/%s/loop/backing_file" % os.path.basename(device)
    poll("the loop device to be gone", lambda: not os.path.exists(name))


def test_loop(test):
    """A loop device is on the file; on a loop device itself: what is mounted is refused."""
    dead = Dead(test, sparse_file(test.path("disk.img"), SIZE))
    device = losetup(test, dead.image)
    if device is None:
        dead.recovered()
        return
    try:
        dead.refused("disk.img", "in use by another process", device)
    finally:
        detach(device)
    dead.recovered()


def test_block_device(test):
    """A block device as the image: works, has one owner, and not when it is mounted."""
    device = losetup(test, sparse_file(test.path("disk.img"), SIZE))
    if device is None:
        return
    try:
        dead = Dead(test, device)
        dead.recovered()
        subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
        os.mkdir(test.path("mnt"))
        subprocess.run(["mount", device, test.path("mnt")], check=True)
        try:
            Server(test, device, "journal=" + test.path("k"), "journal-size=16M", "buffer=8M")
            check(False, "a server started on a device that is mounted")
        except StartError as error:
            check("in use" in str(error) and "mounted" in str(error), error)
        finally:
            subprocess.run(["umount", test.path("mnt")], check=True)
        server = Server(test, device, "journal=" + test.path("k"), "journal-size=16M", "buffer=8M")
        try:
            Server(test, device, "journal=" + test.path("l"), "journal-size=16M", "buffer=8M")
            check(False, "two servers have one device")
        except StartError as error:
            check("in use" in str(error), error)
        server.stop()
    finally:
        for p in test.processes:
            if p.poll() is None:
                p.kill()
                p.wait()
        detach(device)


main(globals())
