#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""SIGKILL the server at random moments, during writes, seals, commits and write-out.

After each kill, one of
- mcbuf-recover (itself sometimes killed and run again): the images must be
  the last acknowledged checkpoint or the one whose commit was in flight;
- a new server, which must go on from what the dead one left in memory: each
  acknowledged write is there, and the next kill comes.

MCBUF_TEST_ROUNDS: how many kills (200).
"""

import os
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libload import Load, Snapshot
from libmcbuf import (DONE, MiB, NO_CHECKPOINT, WRAPPER, Disk, Server, check,
                      count, environment, equal, main, read_file, seeded,
                      sparse_file, tool, tool_path, write_file, tried)

ROUNDS = count("ROUNDS", 200)


class Lifetime:
    """One replica, from its creation to its recovery."""

    def __init__(self, test, rng, number):
        self.test, self.rng = test, rng
        ndisks = rng.choice((1, 1, 2))
        self.names = [""] if ndisks == 1 else ["vda", "vdb"]
        self.images = [test.path("disk%d.img" % i) for i in range(ndisks)]
        self.journal = test.path("journal%d" % number)
        self.disks = []
        trusted = rng.random() < 0.8
        params = ["journal=" + self.journal, "journal-size=32M", "buffer=8M"]
        for name, path in zip(self.names, self.images):
            disk = Disk(8 * MiB, rng.randbytes(8 * MiB) if trusted else None)
            self.disks.append(disk)
            if trusted:
                write_file(path, disk.now)
            else:
                sparse_file(path, disk.size)
            params.append("disk=%s:%s" % (name, path) if name else path)
        if trusted:
            params.append("baseline=trusted")
        self.load = Load(rng, self.disks, self.names)
        self.server = Server(test, *params, journal=self.journal)
        if not trusted:
            self.first_copy()
        self.load.attach(self.server)

    def first_copy(self):
        """syncing: write everywhere, and make checkpoint 1 (kills come later)."""
        for disk, name in zip(self.disks, self.names):
            h = self.server.connect(name)
            for at in range(0, disk.size, MiB):
                if self.rng.random() < 0.5:
                    data = self.rng.randbytes(MiB)
                    h.pwrite(data, at)
                    disk.write(at, data)
            h.shutdown()
        self.load.checkpoint = self.server.commit()["checkpoint"]
        self.load.committed = Snapshot(self.disks)

    def run_and_kill(self):
        """Work, then SIGKILL at a moment of one of several kinds."""
        load, rng = self.load, self.rng
        kind = rng.choice(("any", "any", "commit", "commit", "seal", "write-out"))
        end = time.monotonic() + rng.uniform(0, 0.06)
        while time.monotonic() < end:
            load.step()
            load.steer()
        if kind != "any":
            while load.asked:
                load.step()
            load.ask("seal" if kind == "seal" else "commit")
            if kind == "write-out":
                while load.asked:
                    load.step()
            # A commit takes some hundred microseconds, write-out some milliseconds.
            end = time.monotonic() + rng.uniform(0, 0.01 if kind == "write-out" else 0.002)
            while time.monotonic() < end:
                load.step(0)
        load.kill()
        return kind

    def restart(self):
        self.server.start()
        status = self.load.resume()
        equal(status["state"], "protected", "state after SIGKILL on the same boot:", status)

    def recover(self):
        argv = ["--json", self.journal]
        if self.rng.random() < 0.3:             # kill the recovery too
            p = subprocess.Popen([tool_path("mcbuf-recover")] + argv,
                                 stdout=subprocess.DEVNULL, env=environment())
            time.sleep(self.rng.uniform(0, 0.02))
            p.kill()
            p.wait()
        answer = tool("mcbuf-recover", *argv).json
        self.load.images_after_recovery([read_file(i) for i in self.images],
                                        answer["checkpoint"])
        equal(answer["state"], "promoted", answer)
        if self.rng.random() < 0.2:
            again = tool("mcbuf-recover", *argv).json
            equal(again["checkpoint"], answer["checkpoint"], "a second recovery")
            self.load.images_after_recovery([read_file(i) for i in self.images],
                                            again["checkpoint"])
        shutil.rmtree(self.journal)


def test_sigkill(test):
    """The image is always the last checkpoint."""
    if WRAPPER:
        print("under a wrapper, fewer rounds are enough")
    rounds = min(ROUNDS, 10) if WRAPPER else ROUNDS
    rng = seeded("test_sigkill")
    kills = lifetimes = recoveries = ops = commits = 0
    kinds = {}
    while kills < rounds:
        life = Lifetime(test, rng, lifetimes)
        lifetimes += 1
        while True:
            kind = life.run_and_kill()
            kills += 1
            kinds[kind] = kinds.get(kind, 0) + 1
            if rng.random() < 0.5 or kills >= rounds:
                break
            life.restart()
        life.recover()
        recoveries += 1
        ops += life.load.ops
        commits += life.load.commits
    print("%d kills (%s), %d replicas recovered; %d requests, %d commits acknowledged"
          % (kills, ", ".join("%s %d" % k for k in sorted(kinds.items())),
             recoveries, ops, commits))
    tried("1,2,3,4,6", "kills under load", kills)
    tried("1,2,3,4,6", "requests between them", ops)
    check(ops > 10 * kills and commits > kills, "the test did too little:", ops, commits)


def test_sigkill_syncing(test):
    """Killed in its first copy: no checkpoint, and the copy goes on after a restart."""
    rng = seeded("test_sigkill_syncing")
    disk = Disk(8 * MiB)
    image = sparse_file(test.path("disk.img"), disk.size)
    server = Server(test, image, "journal-size=32M", "buffer=8M")
    load = Load(rng, [disk])
    for _ in range(5):
        load.attach(server)
        end = time.monotonic() + rng.uniform(0, 0.05)
        while time.monotonic() < end:
            load.step()
        load.kill()
        answer = tool("mcbuf-recover", "--dry-run", server.journal, code=NO_CHECKPOINT)
        check("checkpoint" in answer.err, answer)
        server.start()
        status = load.resume()
        equal(status["state"], "syncing", "state")
        load.detach()
    server.commit()
    server.kill()
    tool("mcbuf-recover", server.journal, code=DONE)
    where = Snapshot([disk]).difference([read_file(image)])
    check(where is None, where)


main(globals())
