#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Files of a replica that are cut short, lost, older, of another replica, or written to by somebody."""

import glob
import os
import shutil
import sqlite3
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libdamage import NAMES, SIZE, Replica, flip, judge, poke, serve
from libjournal import CHUNK
from libmcbuf import (DAMAGE, DONE, USAGE, check, equal, forget_memory, main, poll, random_data,
                      read_file, same, seeded, sparse_file, tool)


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


main(globals())
