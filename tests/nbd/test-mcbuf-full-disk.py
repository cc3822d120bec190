#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""File systems that are really full: that of the backing image, of the journal, of both; /dev/shm.

The script runs itself in a mount namespace of its own, so that its file systems go with it.
"""

import errno
import glob
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (NO_CHECKPOINT, Disk, Faults, KiB, MiB, Server, StartError, check, done, equal, main,
                      nbd_errno, poll, random_data, read_all, read_file, same, seeded, skip, sparse_file,
                      tool)

SIZE = 8 * MiB
INSIDE = "MCBUF_TEST_INSIDE"


def enter_namespace():
    if os.environ.get(INSIDE):
        return
    how = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run(how + ["true"], stderr=subprocess.DEVNULL, check=False).returncode:
        skip("no mount namespace to be had: " + " ".join(how))
    os.environ[INSIDE] = "1"
    os.execvp(how[0], how + [sys.executable] + sys.argv)


def mount(*args):
    return subprocess.run(["mount", *args], stderr=subprocess.DEVNULL, check=False).returncode == 0


def file_systems(test, size):
    """Empty file systems of SIZE bytes: [(kind, directory)]."""
    found = []
    for kind in ("tmpfs", "ext4"):
        where = test.unique(kind)
        os.mkdir(where)
        if kind == "tmpfs":
            if not mount("-t", "tmpfs", "-o", "size=%d" % size, "tmpfs", where):
                skip("no tmpfs to be had")
        else:
            image = sparse_file(test.unique("fs"), size + 2 * MiB)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", image],
                           check=True, env=dict(os.environ, PATH=os.environ["PATH"] + ":/sbin:/usr/sbin"))
            if not mount("-o", "loop", image, where):
                print("%s: not to be had here" % kind)      # a namespace of a user
                continue
        found.append((kind, where))
    return found


def fill(where):
    """Take all the room there is; returns what to remove to have it again."""
    path = os.path.join(where, "ballast")
    with open(path, "wb", buffering=0) as f:
        for step in (MiB, 64 * KiB, 4 * KiB, 1):
            try:
                while True:
                    f.write(b"b" * step)
            except OSError as error:
                equal(error.errno, errno.ENOSPC, "errno")
    return path


def unmount(where):
    subprocess.run(["umount", "-l", where], check=True)


def test_image(test):
    """A sparse image without room to grow: write-out pauses, commits go on, and so does it when there is room."""
    for kind, where in file_systems(test, 12 * MiB):
        image = os.path.join(where, "disk.img")
        server = Server(test, sparse_file(image, SIZE), "baseline=trusted", "journal-size=64M",
                        "buffer=8M", "journal=" + test.unique("j"))
        ballast = fill(where)
        h = server.connect()
        for i in range(4):
            for at in range(0, SIZE, MiB):
                h.pwrite(b"%c" % (65 + i) * (MiB - 4096), at)
            last = server.commit()["checkpoint"]
        s = poll("status to tell", lambda: server.status()["writeout"]["error"] and server.status())
        check(os.strerror(errno.ENOSPC) in s["writeout"]["error"], s)
        equal((s["state"], s["written_out"]), ("protected", 0), kind)
        equal(s["checkpoint"]["id"], last, "checkpoint")
        want = read_all(h)
        os.unlink(ballast)
        poll("write-out to go on", lambda: not server.status()["writeout"]["error"])
        server.drained()
        same(read_file(image), want, "image on", kind)
        h.shutdown()
        server.stop()
        unmount(where)


def test_first_copy(test):
    """The same in the first copy: ENOSPC, stale; with room, resync overwrite starts anew without a restart."""
    for kind, where in file_systems(test, 12 * MiB):
        image = os.path.join(where, "disk.img")
        server = Server(test, image, "size=%d" % SIZE, "journal-size=16M", "buffer=8M",
                        "journal=" + test.unique("j"))
        ballast = fill(where)
        h = server.connect()
        errors = [nbd_errno(h.pwrite, b"1" * MiB, at) for at in range(0, SIZE, MiB)]
        equal(errors[0], errno.ENOSPC, "errno on", kind)
        equal(set(errors[1:]), {errno.EIO}, "errno of the next ones")
        s = server.status()
        equal(s["state"], "stale", "state")
        for word in (image, os.strerror(errno.ENOSPC), "resync overwrite"):
            check(word in s["reason"], "no", word, "in", s["reason"])
        tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
        os.unlink(ballast)
        done(server.ask("resync overwrite"))
        h.shutdown()
        h = server.connect()
        h.pwrite(b"2" * SIZE, 0)
        server.commit()
        equal(server.status()["state"], "protected", "state")
        same(read_file(image), b"2" * SIZE, "image on", kind)
        h.shutdown()
        server.stop()
        unmount(where)


def test_journal_does_not_fit(test):
    """A journal for which there is no room: one line, nothing left behind; with room it is made."""
    for kind, where in file_systems(test, 24 * MiB):
        image = sparse_file(test.unique("img"), SIZE)
        ballast = fill(where)
        os.truncate(ballast, os.path.getsize(ballast) - 8 * MiB)
        server = Server(test, image, "journal-size=16M", "buffer=8M",
                        "journal=" + os.path.join(where, "j"), start=False)
        for _ in range(2):
            try:
                server.start()
                check(False, "it starts on", kind)
            except StartError as error:
                lines = [l for l in str(error).splitlines() if "error" in l]
                check(len(lines) == 1 and os.strerror(errno.ENOSPC) in lines[0]
                      and where in lines[0], lines)
        tool("mcbuf-recover", server.journal, code=1)
        os.unlink(ballast)
        server.start()
        h = server.connect()
        h.pwrite(b"1" * 4096, 0)
        server.commit()
        h.shutdown()
        server.stop()
        unmount(where)


def test_both_full(test):
    """Image and journal on a file system that fills up: commits go on in what the journal has, and it all comes right."""
    for kind, where in file_systems(test, 32 * MiB):
        image = os.path.join(where, "disk.img")
        server = Server(test, image, "size=%d" % SIZE, "journal-size=20M", "buffer=8M")
        h = server.connect()
        h.pwrite(b"0" * MiB, 0)
        server.commit()
        ballast = fill(where)
        for i in range(1, 6):
            h.pwrite(b"%d" % i * 512 * KiB, MiB + i * 512 * KiB)
            last = server.commit(label="number %d" % i)["checkpoint"]
        s = poll("status to tell", lambda: server.status()["writeout"]["error"] and server.status())
        equal((s["state"], s["checkpoint"]["id"]), ("protected", last), kind)
        # A restart needs no room either.
        want = read_all(h)
        h.shutdown()
        server.stop()
        server.start()
        h = server.connect()
        same(read_all(h), want, "the inlet after a restart on", kind)
        server.kill()
        server.start()
        equal(server.status()["checkpoint"]["id"], last, "checkpoint after SIGKILL")
        # Nor does a promote, until it is written to.
        done(server.ask("promote"))
        same(read_all(server.connect("@promoted")), want, "the promoted disk on", kind)
        os.unlink(ballast)
        poll("the drain", lambda: server.status()["drained"])
        same(read_file(image), want, "image on", kind)
        server.kill()
        unmount(where)


def test_recovery(test):
    """mcbuf-recover without room for the image: exit 5, and run again with room it goes on."""
    for kind, where in file_systems(test, 24 * MiB):
        image = os.path.join(where, "disk.img")
        server = Server(test, sparse_file(image, SIZE), "baseline=trusted", "journal-size=32M",
                        "buffer=8M", "journal=" + test.unique("j"))
        ballast = fill(where)
        h = server.connect()
        h.pwrite(b"1" * 5 * MiB, MiB)
        last = server.commit()["checkpoint"]
        want = read_all(h)
        server.kill()
        for _ in range(2):
            said = tool("mcbuf-recover", server.journal, code=5).err
            check(os.strerror(errno.ENOSPC) in said and image in said and "run it again" in said,
                  said)
        os.unlink(ballast)
        equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, kind)
        same(read_file(image), want, "image on", kind)
        unmount(where)


def test_shared_memory(test):
    """/dev/shm is too small for buffer=: one line, and no signal; a smaller one starts, and takes over."""
    if not mount("-t", "tmpfs", "-o", "size=12M", "tmpfs", "/dev/shm"):
        skip("no tmpfs to be had")
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "baseline=trusted",
                    "journal-size=32M", "buffer=16M", start=False)
    for _ in range(2):
        try:
            server.start()
            check(False, "it starts")
        except StartError as error:
            for word in ("buffer=", "/dev/shm", os.strerror(errno.ENOSPC)):
                check(word in str(error), "no", word, "in", error)
        equal(glob.glob("/dev/shm/*"), [], "left in /dev/shm")
    server.params[-1] = "buffer=8M"
    server.start()
    h = server.connect()
    h.pwrite(b"1" * 4096, 0)
    server.commit()
    h.pwrite(b"2" * 4096, 0)
    server.kill()
    # More than there is room for: what is there is taken over as it is.
    server.params[-1] = "buffer=64M"
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("protected", 1), "status")
    equal(bytes(server.connect().pread(4096, 0)), b"2" * 4096, "speculation")
    server.kill()
    # Recovery does without.
    for path in glob.glob("/dev/shm/*"):
        os.unlink(path)
    fill("/dev/shm")
    tool("mcbuf-recover", server.journal)
    equal(read_file(test.path("disk.img"))[:4096], b"1" * 4096, "image")
    unmount("/dev/shm")


def test_default_buffer(test):
    """/dev/shm is too small for the buffer that nobody named: half, or half of that, and one warning."""
    for room, size in ((40, 32), (12, 8), (6, 0)):
        if not mount("-t", "tmpfs", "-o", "size=%dM" % room, "tmpfs", "/dev/shm"):
            skip("no tmpfs to be had")
        server = Server(test, sparse_file(test.unique("disk"), 64 * MiB), "baseline=trusted",
                        "journal-size=128M", start=False)
        if size == 0:
            try:
                server.start()
                check(False, "it starts")
            except StartError as error:
                for word in ("buffer=", "/dev/shm", os.strerror(errno.ENOSPC)):
                    check(word in str(error), "no", word, "in", error)
            equal(glob.glob("/dev/shm/*"), [], "left in /dev/shm")
            unmount("/dev/shm")
            continue
        server.start()
        buffer = server.status()["buffer"]
        equal((buffer["size"], buffer["asked"]), (size * MiB, 256 * MiB), "buffer")

        def warned():
            lines = server.said().splitlines()
            equal(len(lines), 1, lines)
            for word in ("warning", "/dev/shm", "buffer=", str(size * MiB), os.strerror(errno.ENOSPC)):
                check(word in lines[0], "no", word, "in", lines)
        warned()
        # An epoch of more than that: slower, and nothing else.
        h = server.connect()
        want = seeded("a full disk").randbytes(MiB) * 48
        for at in range(0, len(want), 4 * MiB):
            h.pwrite(want[at:at + 4 * MiB], at)
        same(read_all(h)[:len(want)], want, "read back")
        server.commit()
        h.pwrite(b"s" * 4096, 0)
        server.kill()
        server.start()
        equal(server.status()["buffer"]["size"], size * MiB, "buffer that was taken over")
        warned()
        equal(bytes(server.connect().pread(4096, 0)), b"s" * 4096, "speculation")
        server.stop()
        unmount("/dev/shm")
    # Room that others have taken is not taken from them, not even for a moment.
    mount("-t", "tmpfs", "-o", "size=40M", "tmpfs", "/dev/shm")
    with open("/dev/shm/other", "wb") as f:
        f.write(bytes(20 * MiB))
    server = Server(test, sparse_file(test.unique("disk"), 8 * MiB), "journal-size=32M")
    equal(server.status()["buffer"]["size"], 16 * MiB, "buffer")
    server.stop()
    unmount("/dev/shm")


def refuses_journal(where, *args, **options):
    """No replica is made with ARGS: said with the way out, and nothing is left of it in WHERE."""
    try:
        Server(*args, "buffer=8M", **options)
        check(False, "a journal was made without room for it")
    except StartError as error:
        check("No space" in str(error) and "journal-size=" in str(error), error)
    free = os.statvfs(where).f_bfree * os.statvfs(where).f_bsize
    check(free > 23 * MiB, "what could not be made still takes room:", free, "bytes are free")


def test_journal_no_room(test):
    """A file system that is too small, or fills up: said at the start; later it does not matter."""
    where = test.path("small")
    os.mkdir(where)
    if not mount("-t", "tmpfs", "-o", "size=24M", "tmpfs", where):
        skip("no tmpfs to be had")
    image = sparse_file(test.path("disk.img"), SIZE)
    journal = "journal=" + where + "/j"
    refuses_journal(where, test, image, journal, "journal-size=32M")
    # Here the file system says that there is room, and then there is none.
    faults = Faults(test)
    faults.fail("pwrite", "journal.new", err=errno.ENOSPC)
    refuses_journal(where, test, image, journal, "journal-size=16M", env=faults.env, preload=faults.preload)
    server = Server(test, image, journal, "journal-size=16M", "buffer=8M", "baseline=trusted")
    fill(where)
    h = server.connect()
    disk = Disk(SIZE)
    rng = seeded("no room")
    for _ in range(30):
        at = rng.randrange(8) * MiB
        data = random_data(rng, MiB)
        h.pwrite(data, at)
        disk.write(at, data)
        server.commit()
    server.kill()
    server.start()
    same(read_all(server.connect()), bytes(disk.now), "after a crash")
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(image), bytes(disk.now), "recovered")
    unmount(where)


enter_namespace()
main(globals())
