#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Who owns the journal and the images: from before nbdkit forks until its process ends."""

import os
import re
import signal
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, MiB, PLUGIN, USAGE, WRAPPER, Control, Server, check, done,
                      environment, equal, main, poll, read_file, sparse_file, tool, tool_path)
from libslow import Slow

SIZE = 8 * MiB
LOCKED = 'Failed to get "write" lock'


class Daemon:
    """nbdkit as people run it: it forks into the background."""

    def __init__(self, test, *params, code=0, env=None, preload=()):
        self.sock, self.pidfile = test.unique("s"), test.unique("pid")
        p = subprocess.run(WRAPPER + ["nbdkit", "-U", self.sock, "-P", self.pidfile, PLUGIN, *params],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, cwd=test.dir,
                           env=environment(env, preload))
        self.said = p.stdout
        check(p.returncode == code, "nbdkit ended with", p.returncode, "and said:", p.stdout)
        if code == 0:
            poll("the pid file", lambda: os.path.exists(self.pidfile)
                 and os.path.getsize(self.pidfile))
            self.pid = int(read_file(self.pidfile))

    def end(self, sig):
        os.kill(self.pid, sig)
        poll("the daemon's end", lambda: not is_alive(self.pid))


def is_alive(pid):
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def qemu_io(path):
    """What qemu-io says when it opens PATH."""
    p = subprocess.run(["qemu-io", "-f", "raw", "-c", "read 0 512", path],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, env=environment(ours=False), timeout=DEADLINE)
    return p.stdout


def is_owned(test, images, journal, pid, *params):
    """Neither a QEMU nor another mcbuf gets at IMAGES or JOURNAL; who has them is said."""
    for path in images:
        check(LOCKED in qemu_io(path), path, "is not locked:", qemu_io(path))
        # Nor to read: what is in it need not be a checkpoint.
        p = subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", path, test.path("stolen")], stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           timeout=DEADLINE)
        check(p.returncode != 0 and 'Failed to get shared "write" lock' in p.stdout, p)
        for where in (path, os.path.relpath(path, test.dir)):
            said = Daemon(test, where, "journal=" + test.path("other"), "buffer=8M", code=1).said
            check(os.path.basename(path) in said and "in use" in said, said)
        check(not os.path.exists(test.path("other")), "a refused start left a journal behind")
    copies = [sparse_file(test.path("copy%d" % i), SIZE) for i in range(len(images))]
    said = Daemon(test, *params, *("disk=d%d:%s" % c for c in enumerate(copies)), code=1).said
    check(journal in said and "in use" in said and "process %d:" % pid in said,
          "no process", pid, "in:", said)


def test_daemon(test):
    """Without -f: refused before the fork, with exit 1; the child has the locks, not the parent."""
    images = [sparse_file(test.path("a.img"), SIZE), sparse_file(test.path("b.img"), SIZE)]
    params = ["journal=" + test.path("j"), "buffer=8M", "baseline=trusted"]
    disks = ["disk=d%d:%s" % i for i in enumerate(images)]
    daemon = Daemon(test, *params, *disks)
    try:
        with Control(test.path("j")) as c:
            test.replicas.add(done(c.ask("status"))["replica"])
        is_owned(test, images, test.path("j"), daemon.pid, *params)
        # Recovery that cannot reach the server does not fall upon its journal.
        os.unlink(test.path("j/control"))
        result = tool("mcbuf-recover", test.path("j"), code=USAGE)
        check("in use by process %d" % daemon.pid in result.err, result)
        is_owned(test, images, test.path("j"), daemon.pid, *params)
    finally:
        daemon.end(signal.SIGKILL)
    for path in images:
        check("lock" not in qemu_io(path), "locked after the end:", qemu_io(path))
    daemon = Daemon(test, *params, *disks)
    daemon.end(signal.SIGTERM)
    for path in images:
        check("lock" not in qemu_io(path), "locked after the end:", qemu_io(path))


def test_one_of_two_images(test):
    """The second image is in use: nothing starts, nothing is made, and the first is free again."""
    a, b = sparse_file(test.path("a.img"), SIZE), sparse_file(test.path("b.img"), SIZE)
    sock = test.unique("q")
    qemu = test.spawn(["qemu-nbd", "-f", "raw", "-k", sock, "--persistent", b])
    poll("qemu-nbd to start", lambda: os.path.exists(sock))
    said = Daemon(test, "disk=a:" + a, "disk=b:" + b, "journal=" + test.path("j"), "buffer=8M",
                  code=1).said
    check("b.img" in said and "in use" in said, said)
    check(not os.path.exists(test.path("j")), "a journal was made")
    check("lock" not in qemu_io(a), qemu_io(a))
    qemu.kill()
    qemu.wait()
    daemon = Daemon(test, "disk=a:" + a, "disk=b:" + b, "journal=" + test.path("j"), "buffer=8M")
    daemon.end(signal.SIGTERM)


def test_until_the_end(test):
    """Promoted and drained, the images are still the server's, until it has ended."""
    path = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, path, "buffer=8M", "journal-size=32M", "baseline=trusted")
    server.connect().pwrite(b"x" * 4096, 0)
    server.commit()
    tool("mcbuf-recover", "--wait", server.journal)
    check(LOCKED in qemu_io(path), "free before the end:", qemu_io(path))
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    check("lock" not in qemu_io(path), "locked after the end:", qemu_io(path))


def test_recovery_is_an_owner(test):
    """mcbuf-recover has them too while it works."""
    path = sparse_file(test.path("disk.img"), SIZE)
    slow = Slow(test)
    server = Server(test, path, "buffer=8M", "journal-size=32M", "baseline=trusted", env=slow.env,
                    preload=slow.preload)
    slow.slow("disk.img")
    server.connect().pwrite(b"x" * MiB, 0)
    last = server.commit()["checkpoint"]
    server.kill()
    recover = subprocess.Popen([tool_path("mcbuf-recover"), "--json", server.journal],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True,
                               env=environment(slow.env, slow.preload))
    test.processes.append(recover)
    poll("recovery to begin", lambda: LOCKED in qemu_io(path))
    poll("recovery to be at the image", lambda: writes_image(recover.pid))
    said = Daemon(test, path, "buffer=8M", code=1).said
    check("in use" in said, said)
    result = tool("mcbuf-recover", server.journal, code=USAGE)
    check("in use by process %d" % recover.pid in result.err, result)
    slow.heal()
    out, _ = recover.communicate(timeout=DEADLINE)
    equal(recover.returncode, 0, out)
    check('"checkpoint":%d' % last in out, out)
    equal(read_file(path)[:MiB], b"x" * MiB, "image")
    check("lock" not in qemu_io(path), "locked after the end:", qemu_io(path))


def writes_image(pid):
    """Process PID has the journal open, so it is past what it does first."""
    for name in os.listdir("/proc/%d/fd" % pid):
        try:
            if re.search("/journal$", os.readlink("/proc/%d/fd/%s" % (pid, name))):
                return True
        except FileNotFoundError:
            pass
    return False


main(globals())
