#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Damage to a journal, done and judged from outside: bits, lengths, places."""

import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libdamage import NAMES, SIZE, Replica, flip, is_clear, judge, poke, serve
from libjournal import ANCHOR, BLOCK, CHUNK, SUPER
from libmcbuf import DAMAGE, DONE, check, equal, main, read_file, seeded, tool


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


def test_speculation_outlives_it(test):
    """Neither does it touch what the server before, which was killed, left in memory."""
    rng = seeded("test_speculation_outlives_it")
    r = Replica(test, rng, "r", forget=False, speculation=b"speculation" * 500)
    place = r.map.of("data", r.newest)[0]
    flip(r.path("journal"), place[2] + 11)
    equal(serve(r, "damaged"), "failed", "a server")
    flip(r.path("journal"), place[2] + 11)
    r.server.start()
    equal(r.server.status()["state"], "protected", "mended, and started again")
    equal(bytes(r.server.connect("a").pread(5500, 0)), b"speculation" * 500, "speculation")
    r.server.kill()
    judge(r, "mended", exact=DONE)


main(globals())
