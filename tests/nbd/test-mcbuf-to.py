#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""--to=TIME and --to=LABEL: a recovery and a promote that really go there."""

import calendar
import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import REFUSED, KiB, Server, check, equal, main, poll, read_file, refused, same, sparse_file, tool

SIZE = 256 * KiB
LABELS = ("nightly", None, "7", "23:59", "nightly", "2001-02-03T04:05:06Z", "nightly ", None)


class Replica:
    """Checkpoint N is a disk full of N."""

    def __init__(self, test, where):
        os.mkdir(test.path(where))
        self.image = sparse_file(test.path(where + "/disk.img"), SIZE)
        self.server = Server(test, self.image, "journal=" + test.path(where + "/j"), "baseline=trusted",
                             "journal-size=16M", "buffer=8M", "history=100")
        h = self.server.connect()
        for n, label in enumerate(LABELS, 1):
            h.pwrite(bytes([n]) * SIZE, 0)
            equal(self.server.commit(label=label)["checkpoint"], n, "checkpoint")
            end = time.time() + 0.02
            poll("the clock", lambda end=end: time.time() > end)
        h.pwrite(b"\xff" * SIZE, 0)             # never committed
        h.shutdown()
        self.times = {c["id"]: c["time"] for c in self.server.ask("list")["checkpoints"]}

    def offline(self, to, n):
        self.server.kill()
        answer = tool("mcbuf-recover", "--json", "--to=" + to, self.server.journal).json
        equal(answer["checkpoint"], n, "recovered by", to)
        same(read_file(self.image), bytes([n]) * SIZE, "image", to)
        # Once more, and by its number: it is the same.
        for again in (to, str(n)):
            equal(tool("mcbuf-recover", "--json", "--to=" + again, self.server.journal).json["checkpoint"], n, again)
        if n > 1:
            tool("mcbuf-recover", "--to=%d" % (n - 1), self.server.journal, code=REFUSED)

    def online(self, to, n, by_verb):
        if by_verb:
            answer = self.server.ask("promote to=" + to)
        else:
            dry = tool("mcbuf-recover", "--dry-run", "--json", "--to=" + to, self.server.journal).json
            equal(dry["checkpoint"], n, "dry run", to)
            answer = tool("mcbuf-recover", "--wait", "--json", "--to=" + to, self.server.journal).json
        equal(answer.get("checkpoint"), n, "promoted by", to, answer)
        h = self.server.connect("@promoted")
        same(h.pread(SIZE, 0), bytes([n]) * SIZE, "@promoted", to)
        h.shutdown()
        equal(self.server.ask("promote to=" + to).get("checkpoint"), n, "again")
        if n > 1:
            refused(self.server.ask("promote to=%d" % (n - 1)), REFUSED, "promoted already")
        poll("the backlog to drain", lambda: self.server.status().get("drained"))
        same(read_file(self.image), bytes([n]) * SIZE, "image", to)
        self.server.kill()


def local(stamp):
    """A time as a person of this host writes it: YYYY-MM-DD HH:MM:SS.mmm."""
    whole, millis = stamp.rstrip("Z").split(".")
    t = time.strptime(whole + " UTC", "%Y-%m-%dT%H:%M:%S %Z")
    return time.strftime("%Y-%m-%d %H:%M:%S.", time.localtime(calendar.timegm(t))) + millis


def go(test, name, choose, n, hows=("offline", "online", "verb")):
    """CHOOSE gives the words for --to; N is where that leads."""
    for how in hows:
        r = Replica(test, name + "-" + how)
        if how == "offline":
            r.offline(choose(r), n)
        else:
            r.online(choose(r), n, how == "verb")


def test_time(test):
    """A time as --list shows it is that checkpoint; one in between is the one before."""
    go(test, "shown", lambda r: r.times[3], 3)
    go(test, "local", lambda r: local(r.times[5]), 5, ("offline", "verb"))

    def before(r):
        whole, millis = r.times[5].rstrip("Z").split(".")
        check(r.times[4] < r.times[5], r.times)
        return whole + ".%03dZ" % (int(millis) - 1) if int(millis) else r.times[4]
    go(test, "before", before, 4)


def test_time_refused(test):
    """From before the oldest, or no time at all: refused, and nothing is done."""
    r = Replica(test, "r")
    for to in ("1999-12-31T23:59:59Z", "tomorrow", "25:61", "2026-13-01T00:00:00Z"):
        refused(r.server.ask("promote to=" + to), REFUSED, "no checkpoint of that")
        tool("mcbuf-recover", "--to=" + to, r.server.journal, code=REFUSED)
    equal(r.server.status()["state"], "protected", "state")
    r.server.kill()
    for to in ("1999-12-31T23:59:59Z", "tomorrow"):
        result = tool("mcbuf-recover", "--to=" + to, r.server.journal, code=REFUSED)
        check("--list" in result.err, result)
    equal(tool("mcbuf-recover", "--json", "--to=2999-01-01T00:00:00Z", r.server.journal).json["checkpoint"],
          len(LABELS), "a time that is to come")


def test_label(test):
    """The newest of a label; to the last blank; one that looks like a time is a label."""
    go(test, "twice", lambda r: "nightly", 5)
    go(test, "blank", lambda r: "nightly ", 7, ("offline",))
    go(test, "clock", lambda r: "23:59", 4, ("offline", "verb"))
    go(test, "stamp", lambda r: "2001-02-03T04:05:06Z", 6, ("online",))


def test_digits(test):
    """Digits only are a number, also when a label has them; when there is no such number it says where that is."""
    go(test, "number", lambda r: "7", 7, ("offline", "verb"))
    r = Replica(test, "r")
    n = r.server.commit(label="4711")["checkpoint"]
    for words in (r.server.ask("promote to=4711"),
                  {"error": tool("mcbuf-recover", "--to=4711", r.server.journal, code=REFUSED).err, "code": REFUSED}):
        refused(words, REFUSED, "4711", "digits", "to=%d" % n)
    r.server.kill()
    result = tool("mcbuf-recover", "--to=4711", r.server.journal, code=REFUSED)
    check("to=%d" % n in result.err and "digits" in result.err, result)
    result = tool("mcbuf-recover", "--to=99999999999999999999999", r.server.journal, code=REFUSED)
    check("--list" in result.err, result)


main(globals())
