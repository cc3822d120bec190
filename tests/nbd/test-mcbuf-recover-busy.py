#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""mcbuf-recover refuses what somebody else uses: the replica, or a backing image."""

import glob
import os
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, KiB, MiB, USAGE, Faults, Server, StartError, check, equal,
                      environment, forget_memory, main, poll, random_data, read_file, same, seeded,
                      skip, sparse_file, tool, tool_path)

SIZE = 4 * MiB


def dead(test, rng, forget=True):
    """A dead replica with a backlog: its server, and what recovery has to make of the image."""
    faults = Faults(test)
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=16M", "buffer=8M",
                    "baseline=trusted", env=faults.env, preload=faults.preload)
    faults.fail("pwrite", "disk.img")
    data = random_data(rng, 300 * KiB)
    server.connect().pwrite(data, 8192)
    server.commit()
    server.kill()
    if forget:
        forget_memory(server)
    server.env, server.preload = None, ()
    return server, bytes(8192) + data + bytes(SIZE - 8192 - len(data))


def state(*paths):
    return [read_file(p) for p in paths]


def refused(server, image, *words):
    """Recovery is refused with exit 1 and those words, and nothing is touched."""
    files = [os.path.join(server.journal, n) for n in ("journal", "acked")] + [image]
    before = state(*files)
    result = tool("mcbuf-recover", server.journal, code=USAGE)
    for word in words:
        check(word in result.err, "no", repr(word), "in", result)
    check(state(*files) == before, "refused, but something was changed")


def qemu_io(test, *options):
    """qemu-io that has the image open until its standard input ends."""
    p = subprocess.Popen(["qemu-io", "-f", "raw"] + list(options) + [test.path("disk.img")], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(ours=False))
    test.processes.append(p)
    p.stdin.write("length\n")
    p.stdin.flush()
    line = p.stdout.readline()
    check("MiB" in line, "qemu-io:", line)
    return p


def leave(p):
    p.stdin.close()
    p.wait()
    p.stdout.close()


def test_qemu_io(test):
    """QEMU has the image open: refused, and nothing is touched; once it is gone: done."""
    if shutil.which("qemu-io") is None:
        skip("no qemu-io")
    rng = seeded("test_qemu_io")
    server, content = dead(test, rng)
    image = test.path("disk.img")
    p = qemu_io(test)
    refused(server, image, "disk.img", "in use by another process")
    # To look does no harm to anybody.
    tool("mcbuf-recover", "--verify", server.journal)
    tool("mcbuf-recover", "--dry-run", server.journal)
    try:
        server.start()
        check(False, "a server started on an image that QEMU has open")
    except StartError as error:
        check("in use by another process" in str(error), error)
    leave(p)
    # A reader that says it does not mind what others do (--force-share) is no obstacle.
    p = qemu_io(test, "-r", "-U")
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], 1, "checkpoint")
    leave(p)
    same(read_file(image), content, "image")


def test_storage_daemon(test):
    """The same with qemu-storage-daemon, which exports the image for writing, or for reading."""
    if shutil.which("qemu-storage-daemon") is None:
        skip("no qemu-storage-daemon")
    rng = seeded("test_storage_daemon")
    server, content = dead(test, rng)
    image = test.path("disk.img")
    for writable in ("on", "off"):
        sock = test.path("q.sock." + writable)
        p = test.spawn(["qemu-storage-daemon", "--blockdev",
                        "driver=file,node-name=f,filename=%s,read-only=%s" % (image, "off" if writable == "on" else "on"),
                        "--nbd-server", "addr.type=unix,addr.path=" + sock,
                        "--export", "type=nbd,id=e,node-name=f,writable=" + writable], output=test.path("log.qsd"))
        poll("qemu-storage-daemon to listen", lambda p=p, sock=sock: os.path.exists(sock) or p.poll() is not None)
        check(p.poll() is None, "qemu-storage-daemon:", read_file(test.path("log.qsd")))
        refused(server, image, "disk.img", "in use by another process")
        p.terminate()
        p.wait()
    tool("mcbuf-recover", server.journal)
    same(read_file(image), content, "image")


def test_qemu_waits(test):
    """The other way round: while a server has the image, QEMU does not get it."""
    if shutil.which("qemu-io") is None:
        skip("no qemu-io")
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=16M", "buffer=8M")
    result = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", test.path("disk.img")], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(ours=False),
                            check=False)
    check(result.returncode != 0 and "lock" in result.stdout, result)
    equal(read_file(test.path("disk.img")), bytes(SIZE), "image")
    server.kill()


def test_served(test):
    """A replica that is served is promoted online; without its socket recovery says who has it."""
    rng = seeded("test_served")
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=16M", "buffer=8M",
                    "baseline=trusted")
    data = random_data(rng, 100 * KiB)
    server.connect().pwrite(data, 4096)
    newest = server.commit()["checkpoint"]
    socket = os.path.join(server.journal, "control")
    os.rename(socket, socket + ".away")
    for option in ((), ("--dry-run",), ("--verify",), ("--list",)):
        result = tool("mcbuf-recover", *option, server.journal, code=USAGE)
        check(re.search(r"in use by process %d\b" % server.pid, result.err), result)
    os.rename(socket + ".away", socket)
    equal(server.status()["state"], "protected", "state after refusals")
    answer = tool("mcbuf-recover", "--json", "--wait", server.journal).json
    equal((answer["checkpoint"], answer["state"], answer["drained"]), (newest, "promoted", True), "online")
    h = server.connect("@promoted")
    equal(bytes(h.pread(100 * KiB, 4096)), data, "the promoted disk")
    h.shutdown()
    server.stop()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], newest, "then offline")


def test_copy_of_served(test):
    """A copy of the journal of a replica that is served, on the same images: refused, and the server lives on."""
    rng = seeded("test_copy_of_served")
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=16M", "buffer=8M",
                    "baseline=trusted")
    h = server.connect()
    h.pwrite(random_data(rng, 50000), 0)
    server.commit()
    server.drained()
    copy = test.path("copy")
    shutil.copytree(server.journal, copy, ignore=shutil.ignore_patterns("control", "catalog*"))
    result = tool("mcbuf-recover", copy, code=USAGE)
    check("in use by another process" in result.err, result)
    # With a copy of the image as well it is another machine's business, but not on this host.
    shutil.copy(test.path("disk.img"), test.path("disk2.img"))
    memory = glob.glob("/dev/shm/mcbuf-%s*" % server.replica)
    tool("mcbuf-recover", "--disk=%s" % test.path("disk2.img"), copy, code=(DONE, USAGE))
    equal(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), memory, "the server's shared memory")
    h.pwrite(b"x" * 4096, 0)
    server.commit()
    equal(bytes(h.pread(4096, 0)), b"x" * 4096, "the server")


def test_two_at_once(test):
    """Two recoveries at the same time: one does it, the other is refused or comes after it."""
    rng = seeded("test_two_at_once")
    server, content = dead(test, rng)
    both = [subprocess.Popen([tool_path("mcbuf-recover"), "--json", server.journal], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
            for _ in range(4)]
    codes = []
    for p in both:
        out, err = p.communicate()
        codes.append(p.returncode)
        check(p.returncode in (DONE, USAGE), out, err)
        if p.returncode == USAGE:
            check("in use by" in err, err)
    check(DONE in codes, codes)
    same(read_file(test.path("disk.img")), content, "image")


def test_lock_file(test):
    """What is in the lock file decides nothing."""
    rng = seeded("test_lock_file")
    server, content = dead(test, rng)
    for text in (b"", b"garbage\n", b"%d\n" % os.getpid(), b"99999999\n"):
        with open(os.path.join(server.journal, "lock"), "wb") as f:
            f.write(text)
        tool("mcbuf-recover", "--verify", server.journal)
    os.unlink(os.path.join(server.journal, "lock"))
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path("disk.img")), content, "image")


main(globals())
