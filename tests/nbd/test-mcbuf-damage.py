#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Damage to a journal and what belongs to it, done and judged from outside.

mcbuf-recover makes the newest acknowledged checkpoint the disk, with exit 0, or it exits with 4
(1 for what cannot be opened), says file, offset and checkpoint, and has changed nothing.
"""

import glob
import os
import re
import shutil
import sqlite3
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libjournal import ANCHOR, BLOCK, CHUNK, SUPER, Journal
from libmcbuf import (DAMAGE, DONE, KiB, REFUSED, USAGE, Faults, Server, StartError, check, connect_errno,
                      equal, forget_memory, main, poll, random_data, read_file, same, seeded,
                      sparse_file, tool, write_file)

SIZE = 1536 * KiB
NAMES = ("a", "b")


class Replica:
    """A dead replica of two disks: checkpoints 1 to 3 are in the images, 4 to 8 in the journal alone."""

    def __init__(self, test, rng, stem, retained=5, clean=False):
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
        if clean:
            self.inlets["a"].pwrite(random_data(rng, 50000), 12288)
            for h in self.inlets.values():
                h.shutdown()
            self.server.stop()
        else:
            self.server.kill()
            forget_memory(self.server)
        self.server.env, self.server.preload = None, ()
        self.pristine = self.save("pristine")
        self.map = Journal(self.journal)

    def copy(self):
        return {n: bytes(c) for n, c in self.now.items()}

    def checkpoint(self):
        # Small ones have their table in the record, large ones tables of their own.
        for _ in range(self.rng.choice((2, 12, 130))):
            n = self.rng.choice(NAMES)
            length = self.rng.choice((512, 4096, 5000, 20000))
            at = self.rng.randrange(0, SIZE - length) // 512 * 512
            data = random_data(self.rng, length)
            self.inlets[n].pwrite(data, at)
            self.now[n][at:at + length] = data
        self.contents[self.server.commit(label="label %d" % len(self.contents))["checkpoint"]] = self.copy()

    def save(self, name):
        """A copy of all files as they are now, in a place of its own."""
        to = self.dir + "." + name
        shutil.copytree(self.dir, to, ignore=shutil.ignore_patterns("control"))
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
        if connect_errno(r.server, n + "@promoted"):
            equal(r.server.status()["state"], "failed", what, "not served")
            break
        h = r.server.connect(n + "@promoted")
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


def test_structures(test):
    """A bit of each structure: the newest, a middle and the oldest retained checkpoint, and none."""
    rng = seeded("test_structures")
    r = Replica(test, rng, "r")
    commits = [c.epoch for c in r.map.commits]
    equal(len(commits), 5, "retained checkpoints")
    places = [(p, DONE) for p in r.map.places if p[0][:5] in ("super", "ancho")]
    for c in (commits[0], commits[2], commits[-1]):
        for what in ("record", "table", "data"):
            found = r.map.of(what, c)
            if found:
                places.append((rng.choice(found), DAMAGE))
    check({p[0][0] for p in places} >= {"record", "data"}, places)
    # Records that are no commit: a later one carries the newest state.
    other = [x for x in r.map.of("record") if x[1] is None]
    places += [(x, DONE) for x in rng.sample(other, 2)]
    for (what, checkpoint, at, length), code in places:
        at += rng.randrange(0, length)
        text = "a bit of %s of checkpoint %s at %d:" % (what, checkpoint, at)
        flip(r.path("journal"), at, 1 << rng.randrange(8))
        judge(r, text, exact=code)
        r.restore()
        flip(r.path("journal"), at, 1 << rng.randrange(8))
        verified = tool("mcbuf-recover", "--verify", "--json", r.journal, code=DAMAGE)
        is_clear(verified, text)
        damage = verified.json["damage"]
        check(any(d["file"].endswith("/journal") and d["offset"] // BLOCK in
                  (at // BLOCK, at // BLOCK - at % CHUNK // BLOCK) or d["offset"] <= at < d["offset"] + 17 * BLOCK
                  for d in damage), text, "not named:", damage)
        if checkpoint:
            check(any(d["checkpoint"] == checkpoint for d in damage), text, "checkpoint not named:", damage)
        got = serve(r, text)
        print(text, "a server", got)
        r.restore()


def test_both_copies(test):
    """Both superblocks, both anchors: nothing can be recovered, nothing is touched."""
    rng = seeded("test_both_copies")
    r = Replica(test, rng, "r", retained=1)
    for pair in (SUPER, ANCHOR):
        for at in pair:
            flip(r.path("journal"), at + 40)
        judge(r, "both at %d" % pair[0], exact=DAMAGE)
        equal(serve(r, "both at %d" % pair[0]), "refused", "a server")
        r.restore()
    poke(r.path("journal"), 0, bytes(CHUNK))
    judge(r, "the first chunk zeroed", exact=DAMAGE)
    r.restore()


def test_unreachable(test):
    """Bits that nobody needs: recovered right, and verified."""
    rng = seeded("test_unreachable")
    r = Replica(test, rng, "r")
    done = 0
    while done < 6:
        at = rng.randrange(CHUNK, r.map.size)
        if r.map.retains(at):
            continue
        flip(r.path("journal"), at)
        tool("mcbuf-recover", "--verify", r.journal)
        judge(r, "a bit that nobody needs at %d" % at, exact=DONE)
        r.restore()
        done += 1


def test_cut(test):
    """Files cut short, to nothing, or gone."""
    rng = seeded("test_cut")
    r = Replica(test, rng, "r")
    used = max(p[2] + p[3] for p in r.map.places)
    lengths = [0, 1, 4096, CHUNK - 5, CHUNK, r.map.size - 1, r.map.size - 3 * CHUNK]
    lengths += [rng.randrange(CHUNK, used) for _ in range(5)]
    for length in lengths:
        os.truncate(r.path("journal"), length)
        judge(r, "journal cut to %d" % length, exact=DAMAGE)
        r.restore()
    os.truncate(r.path("journal"), used - CHUNK // 2)
    check(serve(r, "journal cut") in ("failed", "refused"), "a server on a journal that was cut")
    r.restore()
    for length in (0, 1, 64, 127):
        os.truncate(r.path("acked"), length)
        judge(r, "acked cut to %d" % length, exact=DONE)
        r.restore()
    os.unlink(r.path("acked"))
    tool("mcbuf-recover", "--verify", r.journal, code=DAMAGE)
    judge(r, "acked gone", exact=DONE)
    r.restore()
    # With the mark gone nobody knows whether the end is all there was.
    os.unlink(r.path("acked"))
    place = r.map.of("record", r.newest)[0]
    flip(r.path("journal"), place[2] + 2000)
    judge(r, "acked and the newest record gone", exact=DAMAGE)
    r.restore()
    os.unlink(r.path("journal"))
    judge(r, "journal gone", exact=DAMAGE)
    equal(serve(r, "journal gone"), "refused", "a server in the place of a lost journal")


def test_swap(test):
    """Chunks that changed places, or are as they were before."""
    rng = seeded("test_swap")
    r = Replica(test, rng, "r")
    chunks = sorted({p[2] // CHUNK for p in r.map.places})
    data = read_file(r.path("journal"))
    old = read_file(os.path.join(r.older, "j", "journal"))
    codes = set()
    for _ in range(8):
        i, k = rng.sample(chunks, 2)
        poke(r.path("journal"), i * CHUNK, data[k * CHUNK:(k + 1) * CHUNK])
        poke(r.path("journal"), k * CHUNK, data[i * CHUNK:(i + 1) * CHUNK])
        codes.add(judge(r, "chunks %d and %d swapped" % (i, k)))
        r.restore()
    check(DAMAGE in codes, "no swap was noticed")
    for i in chunks:
        poke(r.path("journal"), i * CHUNK, old[i * CHUNK:(i + 1) * CHUNK])
        judge(r, "chunk %d as it was before" % i)
        r.restore()


def test_mixed(test):
    """Files of another replica, and older ones."""
    rng = seeded("test_mixed")
    r, s = Replica(test, rng, "r"), Replica(test, rng, "s")
    # The other's journal must name the same images.
    for name in ("journal", "acked", "catalog.sqlite"):
        shutil.copy(os.path.join(s.journal, name), r.path(name))
        judge(r, "another replica's " + name, exact=DONE if name[0] == "c" else DAMAGE)
        if name[0] == "j":
            check(serve(r, name) != "serves", "the journal of another replica is served")
        r.restore()
    shutil.copy(os.path.join(r.older, "j", "acked"), r.path("acked"))
    judge(r, "an older acked", exact=DONE)
    r.restore()
    shutil.copy(os.path.join(r.older, "j", "journal"), r.path("journal"))
    judge(r, "an older journal", exact=DAMAGE)
    r.restore()
    for images in (("a",), ("b",), ("a", "b")):
        for n in images:
            shutil.copy(s.images[n], r.images[n])
        judge(r, "images %s of another replica" % (images,), exact=DAMAGE)
        r.restore()


def test_images(test):
    """An image of another size, missing, swapped, older, or written to."""
    rng = seeded("test_images")
    r = Replica(test, rng, "r")
    for size in (0, 4096, SIZE - 512, SIZE + 512):
        os.truncate(r.images["a"], size)
        judge(r, "an image of %d bytes" % size, exact=DAMAGE)
        equal(serve(r, "an image of %d bytes" % size), "refused", "a server")
        r.restore()
    os.unlink(r.images["b"])
    judge(r, "an image gone", allowed=(USAGE,))
    r.restore()
    os.rename(r.images["a"], r.images["a"] + "x")
    os.rename(r.images["b"], r.images["a"])
    os.rename(r.images["a"] + "x", r.images["b"])
    judge(r, "images swapped", exact=DAMAGE)
    equal(serve(r, "images swapped"), "failed", "a server")
    tool("mcbuf-recover", "--disk=a:" + r.images["b"], "--disk=b:" + r.images["a"], r.journal)
    same(read_file(r.images["b"]), r.contents[r.newest]["a"], "disk a, which is now called b.img")
    r.restore()
    # Write-out is under way: what it is about to write is not known, the rest is.
    for n in NAMES:
        at = rng.randrange(0, SIZE - 200000)
        poke(r.images[n], at, random_data(rng, 200000))
        judge(r, "somebody wrote to %s at %d" % (n, at), exact=DAMAGE)
        got = serve(r, "somebody wrote to " + n)
        equal(got, "failed", "a server")
        r.restore()
    sparse_file(r.images["a"], SIZE)
    judge(r, "an image of zeroes", exact=DAMAGE)
    r.restore()
    # With nothing left to write out each byte of images as small as these counts.
    s = Replica(test, rng, "s", retained=0)
    for _ in range(5):
        n, at = rng.choice(NAMES), rng.randrange(0, SIZE)
        flip(s.images[n], at)
        judge(s, "a bit of %s at %d" % (n, at), exact=DAMAGE)
        s.restore()
    # After a recovery the image belongs to its user.
    tool("mcbuf-recover", r.journal)
    poke(r.images["a"], 0, random_data(rng, 100000))
    equal(tool("mcbuf-recover", "--json", r.journal).json["checkpoint"], r.newest, "recovered again")


def test_catalog(test):
    """The catalog decides nothing, whatever is done to it; a server mends it."""
    rng = seeded("test_catalog")
    r = Replica(test, rng, "r")
    s = Replica(test, rng, "s", retained=1)
    catalog = r.path("catalog.sqlite")

    def lose():
        for path in glob.glob(catalog + "*"):
            os.unlink(path)

    def only(directory):
        lose()
        for path in glob.glob(os.path.join(directory, "catalog.sqlite*")):
            shutil.copy(path, r.journal)

    def garbage():
        poke(catalog, 0, random_data(rng, 3000))

    def bits():
        for _ in range(40):
            flip(catalog, rng.randrange(0, os.path.getsize(catalog)))

    # (what, how, does --verify say so?)
    for what, harm, noted in (("lost", lose, True), ("garbage", garbage, False),
                              ("with wrong bits", bits, False),
                              ("empty", lambda: os.truncate(catalog, 0), False),
                              ("cut", lambda: os.truncate(catalog, 5000), False),
                              ("older", lambda: only(os.path.join(r.older, "j")), False),
                              ("of another replica", lambda: only(s.journal), True)):
        harm()
        verified = tool("mcbuf-recover", "--verify", "--json", r.journal).json
        if noted:
            check(any("catalog" in n for n in verified["notes"]), "the catalog is", what, "and not noted:", verified)
        r.server.start()

        def is_filled(r=r):
            db = sqlite3.connect("file:%s?mode=ro" % r.path("catalog.sqlite"), uri=True)
            try:
                rows = db.execute("SELECT id FROM checkpoints WHERE recoverable ORDER BY id").fetchall()
            except sqlite3.Error:
                return False
            finally:
                db.close()
            return bool(rows) and rows[-1][0] == r.newest
        poll("the catalog that was %s to be whole" % what, is_filled)
        r.server.kill()
        forget_memory(r.server)
        r.restore()
        harm()
        judge(r, "a catalog that is " + what, exact=DONE)
        r.restore()


def test_after_clean_stop(test):
    """What a clean stop saved: damage there costs no checkpoint."""
    rng = seeded("test_after_clean_stop")
    r = Replica(test, rng, "r", clean=True)
    saved = [p for p in r.map.places if p[0].startswith("saved")]
    check(saved, "nothing was saved")
    for what, _, at, length in saved[:3]:
        at += rng.randrange(0, length)
        flip(r.path("journal"), at)
        tool("mcbuf-recover", "--verify", r.journal, code=DAMAGE)
        judge(r, "a bit of %s at %d" % (what, at), exact=DONE)
        r.restore()
        flip(r.path("journal"), at)
        r.server.start()
        status = r.server.status()
        equal(status["state"], "stale", "state: speculation is damaged", status)
        r.server.kill()
        forget_memory(r.server)
        r.restore()


def test_server_leaves_damage(test):
    """A server that met damage has not made it worse: mended, all is there."""
    rng = seeded("test_server_leaves_damage")
    r = Replica(test, rng, "r")
    for what in ("record", "data"):
        place = rng.choice(r.map.of(what, r.newest))
        at = place[2] + rng.randrange(0, place[3])
        flip(r.path("journal"), at)
        equal(serve(r, what), "failed", "a server on a damaged", what)
        tool("mcbuf-recover", r.journal, code=DAMAGE)
        flip(r.path("journal"), at)
        judge(r, "mended %s" % what, exact=DONE)
        r.restore()
    # The way out.
    flip(r.path("journal"), r.map.of("record", r.newest)[0][2] + 1)
    r.server.start()
    equal(r.server.status()["state"], "failed", "state")
    tool("mcbuf-ctl", r.journal, "resync", "overwrite")
    for n in NAMES:
        r.server.connect(n).pwrite(b"new" * (SIZE // 3), 0)
    newest = r.server.commit()["checkpoint"]
    r.server.kill()
    equal(tool("mcbuf-recover", "--json", r.journal).json["checkpoint"], newest, "after the way out")
    equal(read_file(r.images["a"]), b"new" * (SIZE // 3), "image")


main(globals())
