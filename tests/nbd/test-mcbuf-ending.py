#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What comes at once after an end: nobody has to wait before the next command of a recipe."""

import fcntl
import glob
import os
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, KiB, MiB, PARTIAL, PLUGIN, USAGE, WRAPPER, Faults, Server, check, environment, equal,
                      main, poll, random_data, read_file, same, seeded, sparse_file, tool, tool_path)

SIZE = 8 * MiB
PARAMS = ("journal-size=32M", "buffer=8M", "baseline=trusted")


def write_image(path):
    """What a QEMU that writes to PATH says: nothing when it gets its locks."""
    p = subprocess.run(["qemu-io", "-f", "raw", "-c", "write -q 0 512", path], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                       env=environment(ours=False), timeout=DEADLINE)
    return p.stdout if p.returncode else ""


def test_shutdown_then_vm(test):
    """recover --wait; ctl shutdown; start the VM: with a client that stays, five times over."""
    rng = seeded("test_shutdown_then_vm")
    for i in range(5):
        a, b = (sparse_file(test.path("%s%d.img" % (n, i)), SIZE) for n in "ab")
        server = Server(test, "disk=a:" + a, "disk=b:" + b, "journal=" + test.path("j%d" % i), *PARAMS)
        h = server.connect("a")
        data = random_data(rng, 100 * KiB)
        h.pwrite(data, 0)
        server.commit()
        tool("mcbuf-recover", "--wait", server.journal)
        if i % 2:                               # without one the server ends by itself
            h.shutdown()
        json = ["--json"] if i == 0 else []
        result = tool("mcbuf-ctl", *json, server.journal, "shutdown")
        equal([write_image(path) for path in (b, a)], ["", ""], "a VM on the images after shutdown")
        if json:
            equal(result.json, {"shutdown": True}, "the reply to shutdown")
        server.wait_end()
        equal(read_file(a)[512:len(data)], data[512:], "image")


def test_shutdown_then_server(test):
    """ctl shutdown; nbdkit mcbuf: the next server gets the journal at once."""
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), *PARAMS)
    for _ in range(5):
        h = server.connect()
        h.pwrite(b"x" * 4096, 0)
        tool("mcbuf-ctl", server.journal, "shutdown")
        old, server.process = server.process, None
        server.start()
        old.wait()
    server.stop()


def test_shutdown_under_run(test):
    """With nbdkit --run the parent keeps the locks until its command ends: that is said, with exit 5."""
    image = sparse_file(test.path("disk.img"), SIZE)
    script = '"%s" "%s" shutdown; echo "code $?"' % (tool_path("mcbuf-ctl"), image + ".mcbuf")
    p = subprocess.run(WRAPPER + ["nbdkit", "-U", test.path("s"), PLUGIN, image, *PARAMS, "--run", script],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       check=False, env=environment(), timeout=DEADLINE)
    check("code %d" % PARTIAL in p.stdout and "nbdkit --run" in p.stdout, p.stdout)
    equal(write_image(image), "", "a VM on the image after nbdkit --run")


def test_shutdown_of_another_namespace(test):
    """The server's process id is that of a PID namespace of its own: here it is somebody else's, who does not end."""
    space = ["unshare", "-p", "-f", "--mount-proc"]
    if subprocess.run(space + ["true"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        print("no PID namespace to be had: not tried")
        return
    image = sparse_file(test.path("disk.img"), SIZE)
    journal = image + ".mcbuf"
    log = test.path("log")
    process = test.spawn(space + WRAPPER + ["nbdkit", "-f", "-U", test.path("s"), PLUGIN, image, *PARAMS],
                         output=log, ours=True)
    poll("the server", lambda: os.path.exists(journal + "/control") or process.poll() is not None)
    check(process.poll() is None, read_file(log).decode(errors="replace"))
    equal(int(read_file(journal + "/lock").split()[0]), 1, "process id in its namespace")
    began = time.monotonic()
    tool("mcbuf-ctl", journal, "shutdown")
    check(time.monotonic() - began < DEADLINE / 2, "it waited for somebody else")
    equal(write_image(image), "", "a VM on the image after shutdown")
    process.wait(DEADLINE)


def commit_one(server, rng):
    """A checkpoint; what the disk is then."""
    data = random_data(rng, 200 * KiB)
    server.connect().pwrite(data, 4096)
    server.commit()
    return bytes(4096) + data + bytes(SIZE - 4096 - len(data))


def test_sigkill_then_server(test):
    """kill -9; nbdkit mcbuf: the next server waits for the dying one, whose memory goes first."""
    rng = seeded("test_sigkill_then_server")
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "buffer=24M", *PARAMS[::2])
    for _ in range(10):
        commit_one(server, rng)
        old, server.process = server.process, None
        old.kill()                              # and not waited for
        server.start()
        equal(server.status()["state"], "protected", "state")
        old.wait()
    server.stop()


def test_sigkill_then_recover(test):
    """kill -9; mcbuf-recover: so does recovery, and a listener that dies is not taken for a server."""
    rng = seeded("test_sigkill_then_recover")
    for i in range(10):
        image = sparse_file(test.path("disk%d.img" % i), SIZE)
        server = Server(test, image, "buffer=24M", *PARAMS[::2])
        content = commit_one(server, rng)
        server.process.kill()
        equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], 1, "checkpoint")
        same(read_file(image), content, "image")
        server.process.wait()


def has_open(pid, path):
    """Has the process PID the file PATH open?  None when it has ended."""
    try:
        for name in os.listdir("/proc/%d/fd" % pid):
            try:
                if os.readlink("/proc/%d/fd/%s" % (pid, name)) == path:
                    return True
            except FileNotFoundError:
                pass
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return False


def recover_under_lock(test, server, path, start, release):
    """Recovery begins while the byte START of PATH is locked; RELEASE: not for ever."""
    with open(path, "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, start)
        p = subprocess.Popen(WRAPPER + [tool_path("mcbuf-recover"), "--json", server.journal], text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env=environment())
        test.processes.append(p)
        poll("recovery to meet the lock", lambda: p.poll() is not None or has_open(p.pid, path))
        if release:
            f.close()           # the lock goes with it, and who has it open for writing is in use, too
        out, err = p.communicate(timeout=DEADLINE)
    return p.returncode, out, err


def test_lock_comes_free(test):
    """A lock of somebody who is about to go is waited for, the journal's and an image's; not for ever."""
    rng = seeded("test_lock_comes_free")
    image = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, image, *PARAMS)
    content = commit_one(server, rng)
    server.kill()
    lock = os.path.join(server.journal, "lock")
    # 101: a program that writes; QEMU locks that byte of an image.
    for path, start in ((lock, 0), (image, 101)):
        code, out, err = recover_under_lock(test, server, path, start, False)
        check(code == USAGE and out == "" and "in use by" in err, code, out, err)
    for path, start in ((lock, 0), (image, 101)):
        code, out, err = recover_under_lock(test, server, path, start, True)
        check(code == 0 and err == "", code, out, err)
    same(read_file(image), content, "image")


def dying_listener(path, times):
    """Who accepts TIMES connections, reads a request, and hangs up without an answer."""
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()

    def run():
        for _ in range(times):
            peer, _ = listener.accept()
            peer.recv(4096)
            peer.close()
        listener.close()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_dying_listener(test):
    """The connection is lost before the answer: asked again; when nobody listens any more, offline."""
    rng = seeded("test_dying_listener")
    image = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, image, *PARAMS)
    content = commit_one(server, rng)
    server.kill()
    control = os.path.join(server.journal, "control")
    for options in (["--list"], ["--dry-run"], ["--json"]):
        thread = dying_listener(control, 3)
        tool("mcbuf-recover", *options, server.journal)
        thread.join(DEADLINE)
    same(read_file(image), content, "image")
    # One that hangs up each time is not waited for without end.
    dying_listener(control, 100000)
    result = tool("mcbuf-recover", server.journal, code=USAGE)
    check("closed the connection" in result.err, result)


def test_recovery_by_root(test):
    """Root recovers another user's replica: the files of the journal's directory stay that user's."""
    if os.geteuid() != 0:
        print("not root: nothing to see")
        return
    rng = seeded("test_recovery_by_root")
    image = sparse_file(test.path("disk.img"), SIZE)
    server = Server(test, image, *PARAMS)
    content = commit_one(server, rng)
    server.connect().pwrite(b"x" * 4096, 0)
    server.kill()
    os.unlink(os.path.join(server.journal, "lock"))
    names = [server.journal] + [os.path.join(server.journal, n) for n in os.listdir(server.journal)]
    for name in names:
        os.chown(name, 65534, 65534, follow_symlinks=False)
    tool("mcbuf-recover", server.journal)
    same(read_file(image), content, "image")
    names = os.listdir(server.journal)
    check("divergence" in names and "lock" in names, names)
    for name in names:
        st = os.lstat(os.path.join(server.journal, name))
        equal((st.st_uid, st.st_gid, st.st_mode & 0o077), (65534, 65534, 0), "owner and mode of", name)


KEYS = ("checkpoint", "label", "discarded_bytes", "discarded_epochs", "written_bytes", "generation", "state")


def test_dry_run_tells(test):
    """What --dry-run says is what the recovery then says: online, and offline after SIGKILL and a clean stop."""
    rng = seeded("test_dry_run_tells")
    for way in ("kill", "stop", "online", "nothing"):
        faults = Faults(test)
        image = sparse_file(test.path(way + ".img"), SIZE)
        server = Server(test, image, *PARAMS, env=faults.env, preload=faults.preload)
        faults.fail("pwrite", way + ".img")     # so that there is a backlog
        h = server.connect()
        for i in range(2):
            h.pwrite(random_data(rng, 20480), 512 + i * MiB)
            server.commit()
        size, epochs = 0, 0
        for length in (5120, 0, 512, 8192) if way != "nothing" else ():
            if length:
                h.pwrite(random_data(rng, length), 1024)
                h.pwrite(random_data(rng, length), 1024)
                size += 2 * length
                epochs += 1
            if length != 8192:
                server.seal()                   # one of them without a write
        if way == "stop":
            h.shutdown()
            server.stop()
        elif way != "online":
            server.kill()
        files = (image, os.path.join(server.journal, "journal"), os.path.join(server.journal, "acked"),
                 *glob.glob("/dev/shm/mcbuf-%s*" % server.replica))
        before = [read_file(f) for f in files]
        dry = tool("mcbuf-recover", "--dry-run", "--json", server.journal).json
        if not server.is_running():
            equal([read_file(f) for f in files], before, way, "after the dry run")
        real = tool("mcbuf-recover", "--json", server.journal).json
        equal([dry[k] for k in KEYS], [real[k] for k in KEYS], way, "dry run and recovery")
        equal((real["discarded_bytes"], real["discarded_epochs"]), (size, epochs), way, "discarded")
        equal(real["written_bytes"], 2 * 20480, way, "written")
        if server.is_running():
            server.kill()


main(globals())
