#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""mcbuf-recover with a large backlog: killed at random moments, and what it shows on a terminal."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, DONE, KiB, MiB, WRAPPER, Faults, Server, check, environment, equal,
                      forget_memory, main, random_data, same, read_file, seeded, sparse_file, tool,
                      tool_path)

SIZE = 48 * MiB
NAMES = ("a", "b")


class Backlog:
    """A dead replica of two disks with BACKLOG bytes in the journal."""

    def __init__(self, test, rng, backlog):
        self.test = test
        self.images = {n: sparse_file(test.path(n + ".img"), SIZE) for n in NAMES}
        self.journal = test.path("j")
        faults = Faults(test)
        server = Server(test, *["disk=%s:%s" % i for i in self.images.items()], "journal=" + self.journal,
                        "journal-size=%d" % (backlog + 48 * MiB), "buffer=16M", "baseline=trusted",
                        env=faults.env, preload=faults.preload)
        faults.fail("pwrite", ".img")
        inlets = {n: server.connect(n) for n in NAMES}
        now = {n: bytearray(SIZE) for n in NAMES}
        noise = random_data(rng, 4 * MiB)
        written = 0
        while written < backlog:
            for _ in range(40):
                n = rng.choice(NAMES)
                length = rng.choice((4 * KiB, 64 * KiB, 256 * KiB, 1 * MiB))
                at = rng.randrange(0, SIZE - length) // 4096 * 4096
                skip = rng.randrange(0, len(noise) - length)
                inlets[n].pwrite(noise[skip:skip + length], at)
                now[n][at:at + length] = noise[skip:skip + length]
                written += length
            self.newest = server.commit()["checkpoint"]
        self.content = {n: bytes(c) for n, c in now.items()}
        server.kill()
        forget_memory(server)
        self.kept = test.path("kept")
        os.mkdir(self.kept)
        self._copy(self.journal, self.kept)

    @staticmethod
    def _copy(source, to):
        for name in ("journal", "acked"):
            subprocess.run(["cp", "--sparse=always", os.path.join(source, name), os.path.join(to, name)], check=True)

    def restore(self):
        self._copy(self.kept, self.journal)
        for path in self.images.values():
            os.truncate(path, 0)
            os.truncate(path, SIZE)

    def is_recovered(self, answer):
        equal((answer["checkpoint"], answer["generation"], answer["state"]), (self.newest, 2, "promoted"), "answer")
        for n, path in self.images.items():
            same(read_file(path), self.content[n], "disk", n)


def test_killed(test):
    """SIGKILL at random moments, again and again until it is done."""
    rng = seeded("test_killed")
    r = Backlog(test, rng, 48 * MiB)
    began = time.monotonic()
    r.is_recovered(tool("mcbuf-recover", "--json", r.journal).json)
    seconds = time.monotonic() - began
    killed = begun = rounds = 0
    while rounds < (2 if WRAPPER else 4) or (killed < 10 and rounds < 20):
        rounds += 1
        r.restore()
        for attempt in range(8):
            began = time.monotonic()
            p = subprocess.Popen(WRAPPER + [tool_path("mcbuf-recover"), "--json", r.journal], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
            try:
                p.wait(rng.uniform(0, seconds * (0.8 + attempt / 4)))
            except subprocess.TimeoutExpired:
                p.kill()
            out, err = p.communicate()
            if p.returncode == DONE:            # how fast it is changes with what else the host does
                seconds = time.monotonic() - began
                break
            equal((p.returncode, out, err), (-9, "", ""), "killed, but")
            killed += 1
            if killed % 3 == 0:
                dry = tool("mcbuf-recover", "--dry-run", "--json", r.journal).json
                equal((dry["checkpoint"], dry["generation"]), (r.newest, 2), "a dry run in between")
                begun += tool("mcbuf-recover", "--verify", "--json", r.journal).json["state"] == "promoted"
        else:
            out = tool("mcbuf-recover", "--json", r.journal).out
        r.is_recovered(json.loads(out))
        r.is_recovered(tool("mcbuf-recover", "--json", r.journal).json)
    print("%d recoveries killed; of every third, %d when it had begun to write" % (killed, begun))
    check(killed > 3, "too few recoveries were killed")


def on_terminal(*args):
    """Run mcbuf-recover with a terminal for its standard error: (code, stdout, what the terminal got)."""
    master, slave = pty.openpty()
    p = subprocess.Popen(WRAPPER + [tool_path("mcbuf-recover")] + list(args), stdout=subprocess.PIPE, stderr=slave,
                         stdin=subprocess.DEVNULL, env=environment())
    os.close(slave)
    shown, deadline = b"", time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if master not in select.select([master], [], [], 1)[0]:
            continue
        try:
            more = os.read(master, 65536)
        except OSError:                         # EIO: the other side is closed
            break
        if not more:
            break
        shown += more
    out = p.stdout.read()
    p.stdout.close()
    os.close(master)
    return p.wait(DEADLINE), out, shown


def test_progress(test):
    """A bar for each phase on a terminal, cleared at the end; nothing elsewhere."""
    rng = seeded("test_progress")
    r = Backlog(test, rng, 24 * MiB)
    bar = re.compile(rb"\r(\w+) +\[([#.]+)\] +(\d+) %  [0-9.]+ \w+ of [0-9.]+ \w+\x1b\[K")
    code, out, shown = on_terminal("--verify", r.journal)
    equal(code, DONE, "--verify", out, shown)
    check(bar.search(shown), "no bar:", shown)
    code, out, shown = on_terminal("--json", r.journal)
    equal(code, DONE, "exit", out, shown)
    r.is_recovered(json.loads(out))
    bars = bar.findall(shown)
    equal(sorted({phase for phase, _, _ in bars}), [b"verifying", b"writing"], "phases", shown)
    for phase in (b"verifying", b"writing"):
        parts = [int(n) for p, _, n in bars if p == phase]
        equal(parts, sorted(parts), "goes back:", phase)
        equal(parts[-1], 100, "ends with", phase)
    for _, marks, part in bars:
        check(abs(marks.count(b"#") / len(marks) - int(part) / 100) <= 0.05, marks, part)
    check(shown.endswith(b"\r\x1b[K"), "the bar is not cleared:", shown[-80:])
    equal(bar.sub(b"", shown), b"\r\x1b[K", "what else the terminal got")
    # An error stands on a line of its own.
    shutil.rmtree(r.journal)
    code, out, shown = on_terminal(r.journal)
    equal(code, 1, "exit", out, shown)
    check(shown.startswith(b"mcbuf-recover: ") and shown.count(b"\n") == 1, shown)


main(globals())
