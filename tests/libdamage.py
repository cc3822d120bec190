# SPDX-License-Identifier: BSD-3-Clause
"""Replicas to be damaged, and what is to become of them: for test-mcbuf-damage*.py.

mcbuf-recover makes the newest acknowledged checkpoint the disk, with exit 0, or it exits with 4
(1 for what cannot be opened), says file, offset and checkpoint, and has changed nothing.
"""

import os
import re
import shutil

import nbd
from libjournal import Journal
from libmcbuf import (DAMAGE, DONE, KiB, REFUSED, USAGE, Faults, Server, StartError, check,
                      connect_errno, equal, forget_memory, random_data, read_file, same, tool,
                      write_file)

SIZE = 1536 * KiB
NAMES = ("a", "b")


class Replica:
    """A dead replica of two disks: checkpoints 1 to 3 are in the images, 4 to 8 in the journal alone."""

    def __init__(self, test, rng, stem, retained=5, clean=False, forget=True,
                 speculation=b""):
        self.test, self.dir = test, test.path(stem)
        os.mkdir(self.dir)
        self.journal = os.path.join(self.dir, "j")
        self.images = {n: os.path.join(self.dir, n + ".img") for n in NAMES}
        self.rng = rng
        self.now = {n: bytearray(SIZE) for n in NAMES}
        for n, path in self.images.items():
            self.now[n][:] = random_data(rng, SIZE // 2) + bytes(SIZE - SIZE // 2)
            write_file(path, self.now[n])
        self.contents = {0: self.copy()}
        faults = Faults(test)
        self.server = Server(test, *["disk=%s:%s" % i for i in self.images.items()],
                             "journal=" + self.journal, "journal-size=16M", "buffer=8M",
                             "baseline=trusted", env=faults.env, preload=faults.preload)
        self.inlets = {n: self.server.connect(n) for n in NAMES}
        for _ in range(3):
            self.checkpoint()
        self.server.drained()
        self.older = self.save("older")
        faults.fail("pwrite", ".img")
        for _ in range(retained):
            self.checkpoint()
        self.newest = max(self.contents)
        if speculation:
            self.inlets["a"].pwrite(speculation, 0)
        if clean:
            self.inlets["a"].pwrite(random_data(rng, 50000), 12288)
            for h in self.inlets.values():
                h.shutdown()
            self.server.stop()
        else:
            self.server.kill()
            if forget:
                forget_memory(self.server)
        self.server.env, self.server.preload = None, ()
        self.pristine = self.save("pristine")
        self.map = Journal(self.journal)

    def copy(self):
        return {n: bytes(c) for n, c in self.now.items()}

    def checkpoint(self):
        # Small ones have their table in the record, large ones tables of their own.
        for _ in range((12, 130, 2)[len(self.contents) % 3]):
            n = self.rng.choice(NAMES)
            length = self.rng.choice((512, 4096, 5000, 20000))
            at = self.rng.randrange(0, SIZE - length) // 512 * 512
            data = random_data(self.rng, length)
            self.inlets[n].pwrite(data, at)
            self.now[n][at:at + length] = data
        self.contents[self.server.commit(label="label %d" % len(self.contents))["checkpoint"]] = self.copy()

    def save(self, name):
        """A copy of all files as they are now, in a place of its own."""
        def copy(source, target):
            try:
                shutil.copy2(source, target)
            except FileNotFoundError:           # of the catalog, which a server is writing to
                pass
        to = self.dir + "." + name
        shutil.copytree(self.dir, to, ignore=shutil.ignore_patterns("control"), copy_function=copy)
        return to

    def restore(self):
        for folder, _, names in os.walk(self.dir):
            for name in names:
                os.unlink(os.path.join(folder, name))
        shutil.copytree(self.pristine, self.dir, dirs_exist_ok=True)

    def path(self, name):
        return os.path.join(self.journal, name)

    def state(self):
        """All bytes but those of who had the lock, and of the catalog."""
        found = {}
        for folder, _, names in os.walk(self.dir):
            for name in names:
                if not name.startswith("catalog") and name not in ("lock", "control"):
                    path = os.path.join(folder, name)
                    found[os.path.relpath(path, self.dir)] = read_file(path)
        return found

    def images_are(self, checkpoint, *what):
        for n, path in self.images.items():
            same(read_file(path), self.contents[checkpoint][n], "disk", n, "of checkpoint", checkpoint, *what)


def flip(path, at, mask=1):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ mask]))


def poke(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def is_clear(result, *what):
    """One line (tool () has seen to that) that names a file, an offset, and what becomes of checkpoints."""
    check(re.search(r"/[^ :]+: damage at offset \d+: ", result.err), *what, "no file or offset:", result)
    check("checkpoint" in result.err, *what, "no checkpoint:", result)


def judge(r, what, allowed=(DONE, DAMAGE), exact=None):
    """What recovery makes of R as it is now.  Returns the exit code."""
    before = r.state()
    verified = tool("mcbuf-recover", "--verify", "--json", r.journal, code=(DONE, USAGE, DAMAGE))
    equal(r.state(), before, what, "verified: files")
    dry = tool("mcbuf-recover", "--dry-run", r.journal, code=allowed)
    result = tool("mcbuf-recover", "--json", r.journal, code=allowed)
    equal(dry.code, result.code, what, "a dry run's exit code", dry, result)
    if exact is not None:
        equal(result.code, exact, what, result)
    if result.code == DONE:
        equal(result.json["checkpoint"], r.newest, what, "checkpoint")
        r.images_are(r.newest, what)
        return DONE
    check(verified.code != DONE or verified.json["notes"], what, "verified, but recovery says", result, verified)
    equal(r.state(), before, what, "refused, but files")
    if result.code == DAMAGE:
        is_clear(result, what)
        offer = re.search(r"--to=(\d+)", result.err)
        if offer:
            to = int(offer.group(1))
            check(to <= r.newest, what, result)
            equal(tool("mcbuf-recover", "--json", "--to=%d" % to, r.journal).json["checkpoint"], to, what)
            r.images_are(to, what, "by the offer")
            equal(tool("mcbuf-recover", "--json", r.journal).json["checkpoint"], to, what, "then")
            r.images_are(to, what, "again")
    return result.code


def later(r, what):
    """Write-out has met what the start had not: what was whole before still is."""
    judge(r, what + " a server has failed;", exact=DAMAGE)
    return "fails later"


def serve(r, what):
    """A server that starts on R: right data or none; what is damaged stays as it is."""
    before = r.state()
    try:
        r.server.start()
    except StartError as error:
        lines = [line for line in str(error).splitlines() if "error:" in line]
        equal(len(lines), 1, what, "lines of", str(error))
        equal(r.state(), before, what, "a server did not start, but files")
        return "refused"
    status = r.server.status()
    if status["state"] == "failed":
        check(status["reason"], what, status)
        check(connect_errno(r.server, "a@promoted"), what, "a failed replica serves NAME@promoted")
        h = r.server.connect("a")
        for call in (lambda: h.pread(4096, 0), lambda: h.pwrite(bytes(4096), 0)):
            try:
                call()
            except nbd.Error:
                continue
            check(False, what, "a failed replica serves data")
        h.shutdown()
        r.server.stop()
        if "cannot be trusted" in status["reason"]:
            return later(r, what)
        equal(r.state(), before, what, "the server had failed, but files")
        return "failed"
    equal(status["checkpoint"]["id"], r.newest, what, "the server's checkpoint")
    if tool("mcbuf-recover", r.journal, code=(DONE, REFUSED)).code == REFUSED:
        equal(r.server.status()["state"], "failed", what, "state")
        r.server.kill()
        return later(r, what)
    for n in NAMES:
        try:
            h = r.server.connect(n + "@promoted")
        except nbd.Error:
            equal(r.server.status()["state"], "failed", what, "not served")
            break
        for at in range(0, SIZE, 64 * KiB):
            try:
                got = bytes(h.pread(64 * KiB, at))
            except nbd.Error:
                continue
            same(got, r.contents[r.newest][n][at:at + 64 * KiB], what, "served of disk", n, "at", at)
        h.shutdown()
    r.server.kill()
    forget_memory(r.server)
    return "serves"
