#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The control: whose socket it is, who may use it, and requests and clients of every kind."""

import errno
import glob
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, KiB, MiB, PLUGIN, USAGE, WRAPPER, Control, Server, StartError,
                      check, count, done, environment, equal, main, nbd_errno, poll,
                      random_data, read_file, seeded, sparse_file, tool, tool_path, write_file)

SIZE = 8 * MiB
CLIENTS = 256                   # as in replica/socket.c
NOBODY, OTHER = 65534, 65533


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=32M", "buffer=8M",
                  "baseline=trusted", "journal=" + test.path("j"), *params, **options)


def shared():
    return set(glob.glob("/dev/shm/mcbuf-*"))


def does_not_start(test, *words, argv=()):
    """nbdkit does not start, says WORDS in one line, and leaves nothing of the replica in memory."""
    sparse_file(test.path("disk.img"), SIZE)
    p = subprocess.run(WRAPPER + ["nbdkit", "-f", "-U", test.unique("s"), *argv, PLUGIN,
                                  test.path("disk.img"), "journal-size=32M", "buffer=8M",
                                  "journal=" + test.path("j")],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, env=environment(), timeout=DEADLINE)
    check(p.returncode == 1, "started, or died:", p)
    # Another user cannot write down what an instrumented build counts.
    lines = [line for line in p.stdout.splitlines() if not line.startswith("profiling:")]
    equal(len(lines), 1, "lines of", p.stdout)
    for word in words:
        check(word in lines[0], "no", repr(word), "in", lines[0])
    nothing_in_memory(test)


def nothing_in_memory(test):
    # The replica's id is in the journal's first bytes, and in the name of its memory.
    path = test.path("j/journal")
    head = read_file(path)[:4096].hex() if os.path.exists(path) else ""
    left = [p for p in shared() if p.split("mcbuf-")[1] in head]
    for p in left:
        st = os.stat(p)
        if st.st_size > 0:
            os.unlink(p)
            check(False, "left in shared memory:", p, st.st_size)
        os.unlink(p)


# --- the socket --------------------------------------------------------------

def test_modes(test):
    """The directory is made private, whatever it was; so is the socket, whatever the umask."""
    for mode in (0o755, 0o777, 0o700):
        os.mkdir(test.path("j"))
        os.chmod(test.path("j"), mode)
        before = os.umask(0)
        try:
            server = replica(test)
        finally:
            os.umask(before)
        equal(os.stat(server.journal).st_mode & 0o7777, 0o700, "directory, was", oct(mode))
        st = os.lstat(server.journal + "/control")
        equal((st.st_mode & 0o7777, st.st_uid), (0o600, os.geteuid()), "socket")
        server.stop()
        shutil.rmtree(server.journal)


def test_in_the_place_of_the_socket(test):
    """What is no socket is not removed, and nothing is listened on."""
    server = replica(test)
    server.stop()
    control = server.journal + "/control"
    write_file(test.path("precious"), b"precious")
    for make in (lambda: write_file(control, b"precious"),
                 lambda: os.symlink(test.path("precious"), control),
                 lambda: os.symlink(test.path("nosuch"), control),
                 lambda: os.mkdir(control)):
        make()
        does_not_start(test, "/control", "remove")
        check(os.path.lexists(control), "removed")
        if os.path.isdir(control):
            os.rmdir(control)
        else:
            os.unlink(control)
    equal(read_file(test.path("precious")), b"precious", "what a link led to")
    server.start()                      # and the replica is as it was
    equal(server.status()["state"], "protected", "state")


def test_foreign_directory(test):
    """A directory of another user: he could put a socket of his own there."""
    if os.geteuid() != 0:
        print("not root: this part is not tested")
        return
    os.mkdir(test.path("j"))
    os.chown(test.path("j"), NOBODY, NOBODY)
    does_not_start(test, "/j", str(NOBODY))


def test_failed_start_leaves_nothing(test):
    """The address is in use, or nbdkit changes its user: nothing stays in memory."""
    write_file(test.path("taken"), b"")
    for argv in (["-U", test.path("taken")],) + (
            (["-u", "nobody"],) if os.geteuid() == 0 else ()):
        does_not_start(test, "-u" if argv[0] == "-u" else "in use", argv=argv)
        if argv[0] == "-U":     # nbdkit without -f forks only after that, but has to say so too
            p = subprocess.run(["nbdkit", "-U", test.path("taken"), PLUGIN, test.path("disk.img"),
                                "journal=" + test.path("j"), "buffer=8M"],
                               stdin=subprocess.DEVNULL, env=environment(), timeout=DEADLINE,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            check(p.returncode != 0, "started")
            nothing_in_memory(test)


# --- what the tools look at --------------------------------------------------

TOOLS = (("mcbuf-commit", []), ("mcbuf-status", []), ("mcbuf-ctl", ["list"]), ("mcbuf-recover", []))


def tools_refuse(directory, *words):
    for name, args in TOOLS:
        result = tool(name, directory, *args, code=USAGE)
        for word in words:
            check(word in result.err, "no", repr(word), "in", result)


def test_tools_look_at_the_socket(test):
    """A link to another replica's socket, a socket that all may use: not taken."""
    server = replica(test)
    os.mkdir(test.path("link"), 0o700)
    os.symlink(server.journal + "/control", test.path("link/control"))
    tools_refuse(test.path("link"), "link/control", "link")
    os.chmod(server.journal + "/control", 0o666)
    tools_refuse(server.journal, "0666", "0600")
    os.chmod(server.journal + "/control", 0o600)
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("protected", 0), "nothing was carried out")
    os.symlink(server.journal, test.path("shortcut"))           # a link to the directory is well
    tool("mcbuf-commit", test.path("shortcut"))


FAKE = r"""
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o600)
s.listen(5)
print("ready", flush=True)
while True:
    c, _ = s.accept()
    try:
        c.sendall(b'{"checkpoint":7,"epoch":7}\n')
    except OSError:
        pass                    # hung up on
"""


def as_user(uid, argv, **options):
    return subprocess.Popen(["setpriv", "--reuid=%d" % uid, "--regid=%d" % uid, "--clear-groups"]
                            + argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, **options)


def open_up(test):
    """Let other users reach the journal, as they should never."""
    os.chmod(test.dir, 0o755)


def test_tools_look_at_the_server(test):
    """A server of a user who is neither root, nor the caller, nor the directory's owner."""
    if os.geteuid() != 0:
        print("not root: this part is not tested")
        return
    open_up(test)
    os.mkdir(test.path("fake"))
    os.chmod(test.path("fake"), 0o1777)
    fake = as_user(NOBODY, [sys.executable, "-c", FAKE, test.path("fake/control")])
    test.processes.append(fake)
    equal(fake.stdout.readline(), "ready\n", "fake server")
    tools_refuse(test.path("fake"), "fake/control", str(NOBODY))
    # A directory of that user is his to serve, for root too.
    os.chown(test.path("fake"), NOBODY, NOBODY)
    equal(tool("mcbuf-commit", "--json", test.path("fake")).json["checkpoint"], 7, "commit")


ASK = r"""
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
try:
    s.sendall(b"shutdown\n")
except OSError:
    pass                        # hung up on already
data = b""
while not data.endswith(b"\n"):
    more = s.recv(4096)
    if not more:
        break
    data += more
print(data.decode().strip())
"""


def test_peers(test):
    """Only root and the server's own user are listened to, even when the modes let others in."""
    if os.geteuid() != 0:
        print("not root: this part is not tested")
        return
    open_up(test)
    server = replica(test)
    control = server.journal + "/control"
    p = as_user(NOBODY, [sys.executable, "-c", ASK, control])
    said, _ = p.communicate(timeout=DEADLINE)
    check(p.returncode != 0 and "Permission" in said, "nobody got in:", said)
    os.chmod(server.journal, 0o755)
    os.chmod(control, 0o666)
    p = as_user(NOBODY, [sys.executable, "-c", ASK, control])
    said, _ = p.communicate(timeout=DEADLINE)
    equal(p.returncode, 0, said)
    reply = json.loads(said)
    check("root" in reply["error"] and reply["code"] == USAGE, reply)
    os.chmod(control, 0o600)
    equal(server.status()["state"], "protected", "the server goes on")
    server.stop()


def test_server_of_another_user(test):
    """A server that runs as nobody obeys root and nobody, and no third."""
    if os.geteuid() != 0:
        print("not root: this part is not tested")
        return
    open_up(test)
    os.mkdir(test.path("home"))
    os.chown(test.path("home"), NOBODY, NOBODY)
    image, journal = test.path("home/disk.img"), test.path("home/j")
    sparse_file(image, SIZE)
    os.chown(image, NOBODY, NOBODY)
    server = as_user(NOBODY, ["nbdkit", "-f", "-U", test.path("home/s"), "-P",
                              test.path("home/pid"), PLUGIN, image, "journal=" + journal,
                              "journal-size=32M", "buffer=8M", "baseline=trusted"],
                     env=environment())
    test.processes.append(server)
    poll("nbdkit to start", lambda: os.path.exists(test.path("home/pid"))
         or server.poll() is not None)
    equal(server.poll(), None, "nbdkit has ended")
    with Control(journal) as c:
        test.replicas.add(done(c.ask("status"))["replica"])
    tool("mcbuf-commit", journal)
    p = as_user(NOBODY, [tool_path("mcbuf-commit"), journal], env=environment())
    said, _ = p.communicate(timeout=DEADLINE)
    equal(p.returncode, 0, "its own user", said)
    os.chmod(journal, 0o755)
    os.chmod(journal + "/control", 0o666)
    p = as_user(OTHER, [sys.executable, "-c", ASK, journal + "/control"])
    said, _ = p.communicate(timeout=DEADLINE)
    check("root" in json.loads(said)["error"], said)
    os.chmod(journal + "/control", 0o600)
    tool("mcbuf-ctl", journal, "shutdown")
    equal(server.wait(DEADLINE), 0, "end")


# --- requests of any bytes and any length ------------------------------------

WORDS = [b"seal", b"commit", b"status", b"list", b"promote", b"resync", b"reset", b"epoch=",
         b"generation=", b"label=", b"to=", b"1", b"18446744073709551616", b"-1", b"0x1", b" ",
         b"\t", b"\0", b"\xff", b"\xc3\x28", b"%n%s", b"\r", b"\x1b[2J", b"@scratch", b"auth"]


def request(rng):
    """Bytes without a newline: words, noise, or both; sometimes very long."""
    kind = rng.random()
    if kind < 0.4:
        data = b"".join(rng.choice(WORDS) for _ in range(rng.randrange(0, 6)))
    elif kind < 0.7:
        data = b" ".join(rng.choice(WORDS) for _ in range(rng.randrange(0, 6)))
    elif kind < 0.95:
        data = rng.randbytes(rng.randrange(0, 300))
    else:
        data = rng.choice(WORDS) * rng.randrange(0, 20000)
    data = data.replace(b"\n", b"?")
    # These would end the fun.
    return b"?" + data if re.match(rb"[ \t]*(promote|resync|shutdown)", data) else data


def sane(line):
    reply = json.loads(line.decode())
    check(isinstance(reply, dict), line)
    if "error" in reply:
        check(reply["code"] in (1, 2, 3, 4, 5) and reply["error"], reply)
    return reply


def test_any_bytes(test):
    """Each line has one answer, whatever is in it and however it arrives."""
    rng = seeded(test.name)
    server = replica(test)
    for _ in range(count("ROUNDS", 30)):
        requests = [request(rng) for _ in range(rng.randrange(1, 40))]
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(DEADLINE)
            s.connect(server.journal + "/control")
            data = b"".join(r + b"\n" for r in requests)
            half = rng.choice((b"", b"comm", b"commit epoch=1"))

            def send(s=s, data=data, half=half):
                at = 0
                while at < len(data):
                    n = rng.choice((1, 7, 100, 4096, 100000))
                    s.sendall(data[at:at + n])
                    at += n
                s.sendall(half)
                s.shutdown(socket.SHUT_WR)
            sender = threading.Thread(target=send)
            sender.start()
            got = b""
            while True:
                more = s.recv(65536)
                if not more:
                    break
                got += more
            sender.join()
        check(got.endswith(b"\n"), "half an answer:", got[-100:])
        lines = got.split(b"\n")[:-1]
        equal(len(lines), len(requests), "answers to", requests)
        for line in lines:
            sane(line)
    equal(server.status()["state"], "protected", "state")


def test_long_lines(test):
    """Up to 65535 bytes is a request; more is refused once, and the next line is heard."""
    server = replica(test)
    for n, code in ((65534, None), (65535, None), (65536, USAGE), (65537, USAGE), (200000, USAGE)):
        with Control(server.journal) as c:
            c.send("status".ljust(n))
            c.send("status")
            first, second = c.receive(), c.receive()
            equal(first.get("code"), code, "a line of", n, first)
            equal(second["state"], "protected", "the line behind it")


def test_any_bytes_nbd(test):
    """The same on the control export: any bytes, length and offset."""
    rng = seeded(test.name)
    server = replica(test)
    h = server.connect("mcbuf-control")
    for _ in range(count("ROUNDS", 30) * 10):
        data = request(rng)[:65536] or b"?"
        if rng.random() < 0.1:
            data = data.ljust(65536, rng.choice((b"\0", b"\n", b"x")))
        if rng.random() < 0.1:
            data += rng.choice((b"\n", b"\r\n", b"\0\0\0", b"\nseal", b"\0seal"))
            data = data[:65536]
        errnum = nbd_errno(h.pwrite, data, 0)
        reply = sane(bytes(h.pread(65536, 0)).rstrip(b"\0"))
        equal("error" in reply, errnum != 0, "errno", errnum, "with", reply)
        check(errnum in (0, errno.EINVAL, errno.EPERM, errno.EIO, errno.ENOMEM, errno.ESHUTDOWN),
              "errno", errnum)
    for data, at in ((b"status", 1), (b"seal", 4096), (b"s", 65535)):
        equal(nbd_errno(h.pwrite, data, at), errno.EINVAL, "a write at", at)
    check(nbd_errno(h.pwrite, b"seal", 65533), "a write over the end")
    check(nbd_errno(h.pwrite, b"x" * 65537, 0), "a write larger than the export")
    for call, args in ((h.zero, (4096, 0)), (h.trim, (4096, 0)), (h.flush, ()),
                       (h.cache, (4096, 0))):
        nbd_errno(call, *args)          # answered, one way or the other
    equal(json.loads(bytes(server.connect("mcbuf-control").pread(4096, 0)).rstrip(b"\0") or "0"),
          0, "another connection's reply")
    equal(server.status()["state"], "protected", "state")


# --- clients that cost nobody else anything ----------------------------------

def works(server, h):
    """Commits and writes go through, soon."""
    began = time.monotonic()
    for i in range(10):
        h.pwrite(bytes([i]) * 4096, i * 4096)
        server.commit()
        server.status()
    check(time.monotonic() - began < DEADLINE / 2, "slow:", time.monotonic() - began)


def connect(server):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(DEADLINE)
    s.connect(server.journal + "/control")
    return s


def test_everybody_shuts_down(test):
    """Many clients ask for the end at once, and nbdkit is told, too: it ends."""
    for n in range(20):
        server = replica(test)
        clients = [connect(server) for _ in range(60)]
        start = threading.Barrier(len(clients) + 1)

        def ask(s):
            start.wait()  # pylint: disable=cell-var-from-loop
            try:
                s.sendall(b"shutdown\n")
            except OSError:
                pass            # others were quicker
        threads = [threading.Thread(target=ask, args=(s,)) for s in clients]
        for t in threads:
            t.start()
        start.wait()
        if n % 2:
            server.process.terminate()
        for t in threads:
            t.join()
        server.wait_end()
        for s in clients:
            s.close()


def test_slow_clients(test):
    """Silent ones, half a request, answers that nobody takes; and the server still ends."""
    server = replica(test)
    h = server.connect()
    silent = [connect(server) for _ in range(20)]
    half = [connect(server) for _ in range(20)]
    for s in half:
        s.sendall(b"commit label=half a req")
    deaf = [connect(server) for _ in range(5)]
    for s in deaf:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.setblocking(False)
        try:
            while True:
                s.send(b"status\n" * 1000)
        except BlockingIOError:
            pass
    works(server, h)
    trickle = deaf[0]
    stop = threading.Event()

    def take_a_little():
        while not stop.wait(0.2):
            try:
                trickle.recv(500)
            except OSError:
                pass
    taker = threading.Thread(target=take_a_little)
    taker.start()
    try:
        works(server, h)
        for s in half:                  # the other half: they are clients like any
            s.sendall(b"uest\n")
        for s in half:
            check(b'"checkpoint"' in s.recv(4096), "the answer to a request in two parts")
        last = server.status()["checkpoint"]
        equal(last["label"], "half a request", "label")
        for s in silent:
            s.sendall(b"seal")
        for s in silent[:10]:           # hung up on in the middle of a request: not carried out
            s.close()
        works(server, h)
        h.shutdown()
        began = time.monotonic()
        server.stop()
        took = time.monotonic() - began
        check(took < 30 * (DEADLINE / 60), "slow clients hold up the end:", took)
    finally:
        stop.set()
        taker.join()
    server.start()
    equal(server.status()["sealed_epochs"], 0, "half a request was carried out")


def test_slow_clients_nbd(test):
    """On the control export too; there they are nbdkit's connections."""
    server = replica(test)
    h = server.connect()
    handles = [server.connect("mcbuf-control") for _ in range(20)]
    fds = [n.aio_get_fd() for n in handles]
    for i, fd in enumerate(fds):
        # The head of NBD_CMD_WRITE, of 6 bytes at offset 0, and not all of them.
        head = bytes.fromhex("25609513" "0000" "0001") + (7).to_bytes(8, "big") + bytes(8) \
            + (6).to_bytes(4, "big")
        os.write(fd, (head + b"comm")[:(0, 5, 28, 32)[i % 4]])
    works(server, h)
    before = server.status()["checkpoint"]["id"]
    for i, fd in enumerate(fds):
        if i % 4 == 3:
            os.write(fd, b"it")
    poll("the rest of five requests", lambda: server.status()["checkpoint"]["id"] == before + 5)
    del handles[:10]                    # this closes them
    works(server, h)
    began = time.monotonic()
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    check(time.monotonic() - began < DEADLINE / 2, "slow clients hold up the end")


def test_too_many_clients(test):
    """For one more than 256 the one that was silent the longest goes, and none that is busy."""
    server = replica(test)
    gone, stop = [], threading.Event()

    def ask(c):
        while not stop.is_set():
            c.sendall(b"status\n" * 3)
            got = 0
            while got < 3:
                more = c.recv(65536)
                if not more:
                    gone.append(c)
                    return
                got += more.count(b"\n")
            stop.wait(0.2)
    clients = [connect(server) for _ in range(CLIENTS)]
    for c in clients:
        c.sendall(b"status\n")
    for c in clients:
        while not c.recv(65536).endswith(b"\n"):
            pass
    busy = clients[:4]
    threads = [threading.Thread(target=ask, args=(c,)) for c in busy]
    for t in threads:
        t.start()
    try:
        def get_in():
            with connect(server) as s:
                try:
                    s.sendall(b"status\n")
                    return b'"state"' in s.recv(65536)
                except OSError:
                    return False
        poll("a silent one to make room", get_in)
        for _ in range(20):
            poll("a silent one to make room", get_in)
        equal(tool("mcbuf-recover", "--json", server.journal).json["state"], "promoted",
              "and fail-over gets through")
    finally:
        stop.set()
        for t in threads:
            t.join()
    equal(gone, [], "busy clients were sent away")
    for c in clients:
        c.close()


def connect_again(server, s):
    s.close()
    return connect(server)


def test_turned_away(test):
    """While none of 256 is silent, one more gets a line that says so."""
    server = replica(test)
    answers, stop = [], threading.Event()
    seen = threading.Event()
    clients = [connect(server) for _ in range(CLIENTS)]

    def keep_busy(part):
        while not stop.is_set():
            try:
                for c in part:
                    c.sendall(b"x\n")
                for c in part:
                    more = b"x"
                    while more and not more.endswith(b"\n"):
                        more = c.recv(65536)
            except BrokenPipeError:     # on a very busy machine it was silent for too long
                part = [connect_again(server, c) for c in part]

    def one_more():
        while not stop.is_set():
            with connect(server) as s:
                try:
                    s.sendall(b"status\n")
                    answers.append(json.loads(s.makefile().readline() or "{}"))
                except OSError:
                    pass
            if answers and "too many" in answers[-1].get("error", ""):
                seen.set()
                return
    threads = [threading.Thread(target=keep_busy, args=(clients[i::4],)) for i in range(4)]
    threads.append(threading.Thread(target=one_more))
    for t in threads:
        t.start()
    told = seen.wait(DEADLINE)
    stop.set()
    for t in threads:
        t.join()
    check(told, "nobody was turned away; answers:", answers[:3])
    equal(answers[-1]["code"], USAGE, "code")
    for c in clients:
        c.close()
    poll("room again", lambda: "state" in done(server.status()))


main(globals())
