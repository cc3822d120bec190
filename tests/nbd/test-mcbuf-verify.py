#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""mcbuf-recover --verify: it reads everything that counts and changes nothing, not even a time stamp."""

import glob
import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libdamage import SIZE, Replica, flip, is_clear
from libmcbuf import (DAMAGE, DONE, NO_CHECKPOINT, USAGE, Server, check, equal, main, read_file,
                      seeded, sparse_file, tool)


def fingerprint(*directories):
    """Every byte, name, mode and time (but that of the last reading) of files and directories."""
    found = {}
    for directory in directories:
        for folder, dirs, names in os.walk(directory):
            for name in ["."] + dirs + names:
                path = os.path.join(folder, name)
                st = os.lstat(path)
                found[path] = (st.st_mode, st.st_ino, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ctime_ns,
                               read_file(path) if os.path.isfile(path) else None)
    return found


def unchanged(before, *directories):
    after = fingerprint(*directories)
    equal(sorted(after), sorted(before), "names")
    for path, was in before.items():
        check(after[path] == was, path, "was changed:", was[:6], after[path][:6])


def shared(server):
    return {p: read_file(p) for p in glob.glob("/dev/shm/mcbuf-%s*" % server.replica)}


def test_nothing_changes(test):
    """Whole, damaged, of a server that was killed, or stopped: no byte, no name, no time stamp."""
    rng = seeded("test_nothing_changes")
    for clean in (False, True):
        r = Replica(test, rng, "r%d" % clean, clean=clean, forget=False)
        memory = shared(r.server)
        check(clean or memory, "a killed server left no shared memory")
        for damaged in (False, True):
            if damaged:
                flip(r.path("journal"), r.map.of("data", r.newest)[0][2] + 5)
            before = fingerprint(r.dir)
            result = tool("mcbuf-recover", "--verify", r.journal, code=DAMAGE if damaged else DONE)
            tool("mcbuf-recover", "--verify", "--json", r.journal, code=result.code)
            tool("mcbuf-recover", "--dry-run", r.journal, code=result.code)
            tool("mcbuf-recover", "--list", r.journal)
            unchanged(before, r.dir)
            equal(shared(r.server), memory, "shared memory")
    # And it was all there to recover from.
    flip(r.path("journal"), r.map.of("data", r.newest)[0][2] + 5)
    equal(tool("mcbuf-recover", "--json", r.journal).json["checkpoint"], r.newest, "checkpoint")


def test_read_only(test):
    """A journal that cannot be written to, without a lock file: verified all the same."""
    rng = seeded("test_read_only")
    r = Replica(test, rng, "r")
    os.unlink(r.path("lock"))
    for folder, _, names in os.walk(r.dir, topdown=False):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o400)
        os.chmod(folder, 0o500)
    before = fingerprint(r.dir)
    tool("mcbuf-recover", "--verify", r.journal)
    unchanged(before, r.dir)
    for folder, _, _ in os.walk(r.dir):
        os.chmod(folder, 0o700)


def test_answers(test):
    """What it says, as text and as JSON, and of each of several damages."""
    rng = seeded("test_answers")
    r = Replica(test, rng, "r")
    whole = tool("mcbuf-recover", "--verify", "--json", r.journal).json
    equal((whole["checkpoint"], whole["label"], whole["recoverable"], whole["damage"], whole["damages"]),
          (r.newest, "label %d" % r.newest, r.newest, [], 0), "whole")
    # All that lies in a place of its own, each byte once.
    least = sum(n for what, _, _, n in r.map.places) + 128
    check(whole["verified_bytes"] >= least, "read", whole["verified_bytes"], "of", least)
    check("verified: whole up to checkpoint %d" % r.newest in tool("mcbuf-recover", "--verify", r.journal).out,
          "text")
    commits = [c.epoch for c in r.map.commits]
    wanted = []
    for place in (r.map.of("superblock B")[0], r.map.of("anchor A")[0],
                  r.map.of("data", commits[3])[0], r.map.of("data", commits[1])[0]):
        flip(r.path("journal"), place[2] + 8)
        wanted.append((place[2], place[1]))
    flip(r.path("acked"), 50)
    result = tool("mcbuf-recover", "--verify", "--json", r.journal, code=DAMAGE)
    is_clear(result)
    found = {(d["offset"], d["checkpoint"]) for d in result.json["damage"] if d["file"] == r.path("journal")}
    check(set(wanted) <= found, "damage", wanted, "found", found)
    check(any(d["file"] == r.path("acked") for d in result.json["damage"]), result)
    equal(result.json["recoverable"], commits[0], "recoverable")
    check("checkpoint %d" % commits[1] in result.err, "the oldest that is hurt:", result)
    text = tool("mcbuf-recover", "--verify", r.journal, code=DAMAGE)
    equal(text.err, result.err, "the same line")
    equal(len([line for line in text.out.splitlines() if line.startswith("damage: ")]), len(result.json["damage"]),
          "lines of", text)
    # A copy of something that is there twice hurts no checkpoint.
    r.restore()
    flip(r.path("journal"), r.map.of("superblock A")[0][2] + 8)
    result = tool("mcbuf-recover", "--verify", "--json", r.journal, code=DAMAGE)
    is_clear(result)
    check("no checkpoint needs it" in result.err, result)
    equal(result.json["recoverable"], r.newest, "recoverable")


def test_every_structure(test):
    """One bit in each place that counts is found, and named."""
    rng = seeded("test_every_structure")
    r = Replica(test, rng, "r", clean=True)
    places = {}
    for place in r.map.places:
        places.setdefault(place[0], []).append(place)
    check(len(places) >= 8, "kinds of places:", sorted(places))
    for what in sorted(places):
        for place in rng.sample(places[what], min(4, len(places[what]))):
            at = place[2] + rng.randrange(0, place[3])
            mask = 1 << rng.randrange(8)
            flip(r.path("journal"), at, mask)
            result = tool("mcbuf-recover", "--verify", "--json", r.journal, code=DAMAGE)
            is_clear(result, what)
            check(result.json["damage"], what, result)
            flip(r.path("journal"), at, mask)
    for at in rng.sample(range(72), 5):
        flip(r.path("acked"), at)
        result = tool("mcbuf-recover", "--verify", "--json", r.journal, code=DAMAGE)
        check(result.json["damage"][0]["file"].endswith("/acked"), result)
        flip(r.path("acked"), at)
    tool("mcbuf-recover", "--verify", r.journal)


def test_images(test):
    """Images that the journal can tell about; one that is elsewhere is a note."""
    rng = seeded("test_images")
    r = Replica(test, rng, "r", retained=0)
    flip(r.images["b"], rng.randrange(0, SIZE))
    result = tool("mcbuf-recover", "--verify", "--json", r.journal, code=DAMAGE)
    is_clear(result)
    equal(result.json["damage"][0]["file"], r.images["b"], "file")
    r.restore()
    moved = os.path.join(test.dir, "moved.img")
    shutil.move(r.images["a"], moved)
    result = tool("mcbuf-recover", "--verify", "--json", r.journal)
    check(any("a.img" in n for n in result.json["notes"]), "no note:", result)
    result = tool("mcbuf-recover", "--verify", "--json", "--disk=a:" + moved, r.journal)
    equal(result.json["notes"], [], "notes")
    tool("mcbuf-recover", "--verify", "--disk=nosuch:" + moved, r.journal, code=USAGE)
    os.truncate(r.images["b"], SIZE + 4096)
    tool("mcbuf-recover", "--verify", r.journal, code=DAMAGE)


def test_no_checkpoint(test):
    """Nothing to verify is no success; nor is a server that runs."""
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=16M", "buffer=8M")
    tool("mcbuf-recover", "--verify", server.journal, code=USAGE)
    server.kill()
    tool("mcbuf-recover", "--verify", server.journal, code=NO_CHECKPOINT)
    tool("mcbuf-recover", "--verify", test.path("nosuch"), code=USAGE)
    os.mkdir(test.path("empty"))
    tool("mcbuf-recover", "--verify", test.path("empty"), code=USAGE)
    equal(os.listdir(test.path("empty")), [], "what it left in an empty directory")


main(globals())
