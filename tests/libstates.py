# SPDX-License-Identifier: BSD-3-Clause
"""A live replica in each of the states of state_table.py, and running the table's cells on it.

A Replica knows what its disk must read as (now), what recovery must make of its image
(committed; None: exit 3), and what was sealed.  A cell that changes something gets
a replica of its own; those that change nothing share one.
"""

import queue
import sys
import threading
import time
import traceback

from libmcbuf import (DAMAGE, MiB, NO_CHECKPOINT, Failure, Faults, Server, Test, check,
                      done, equal, nbd_errno, poll, read_file, same, sparse_file, tool, write_file)
from state_table import STATES, render

SIZE = MiB
BLOCK = 4096
WORKERS = 2
SECRET = b"for the control export"
# Cells, and not the names of tests that main takes them for.
PICKED = [arg for arg in sys.argv[1:] if not arg.startswith("test_")]
sys.argv[1:] = [arg for arg in sys.argv[1:] if arg.startswith("test_")]


def block(letter):
    return letter.encode() * BLOCK


class Replica:
    """One replica, brought into the state NAME."""

    def __init__(self, test, name):
        self.test, self.name = test, name
        self.faults = Faults(test)
        self.image = sparse_file(test.path("disk.img"), SIZE)
        self.now = bytearray(SIZE)      # what the disk reads as
        self.committed = None           # what recovery must make of it
        self.last = None                # the last checkpoint
        self.older = None               # an older one, while it can be recovered to
        self.at = {}                    # sealed epoch: what the disk was then
        self.discarded = None           # an epoch that was
        self.generation = 1
        self.old = None                 # a connection from before the state was reached
        self.server = None
        getattr(self, "make_" + name)()

    # --- Making states ---

    def serve(self, *params):
        secret = self.test.path("secret")
        write_file(secret, SECRET)
        self.server = Server(self.test, self.image, "journal-size=16M", "buffer=8M",
                             "control-secret=+" + secret, *params, env=self.faults.env, preload=self.faults.preload)

    def connect(self, export="", **options):
        return self.server.connect(export, **options)

    def write(self, letter, at=0, h=None):
        (h or self.old).pwrite(block(letter), at * BLOCK)
        self.now[at * BLOCK:(at + 1) * BLOCK] = block(letter)

    def seal(self):
        epoch = self.server.seal()
        self.at[epoch] = bytes(self.now)
        return epoch

    def commit(self):
        self.last = self.server.commit()["checkpoint"]
        self.committed = bytes(self.now)
        self.at = {}

    def is_written_out(self):
        self.server.drained()

    def make_syncing(self):
        self.serve()
        self.old = self.connect(block_status=True)
        for at in range(8):
            self.write("s", at)

    def make_closed(self):
        self.make_syncing()
        self.seal()
        self.write("c", 1)

    def make_protected(self):
        self.serve("baseline=trusted")
        self.old = self.connect(block_status=True)
        self.write("a")
        self.write("b", 2)
        self.commit()
        self.is_written_out()
        self.write("d", 2)

    def hold_writeout(self):
        self.faults.fail("pwrite", "disk.img")

    def heal(self):
        self.faults.heal_all()

    def make_pending(self):
        self.serve("baseline=trusted")
        self.old = self.connect(block_status=True)
        self.hold_writeout()
        self.write("a")
        self.commit()
        poll("write-out to be held up", lambda: self.server.status()["writeout"]["error"])
        self.older = (self.last, self.committed)
        self.write("b", 1)
        self.commit()
        self.write("d", 2)

    def make_sealed(self):
        self.make_protected()
        self.seal()
        self.write("e", 3)
        self.seal()
        self.write("f", 4)

    def make_resyncing(self):
        self.make_protected()
        self.discarded = self.server.status()["open_epoch"]
        done(self.server.ask("resync"))
        self.now[:] = self.committed
        for at in range(4):
            self.write("r", at)

    def make_stale(self):
        self.make_protected()
        for i in range(32):
            data = bytes([0x80 + i]) * SIZE
            if nbd_errno(self.old.pwrite, data, 0):
                return
            self.now[:] = data
        raise Failure("the journal takes more than it has room for")

    def make_lost(self):
        self.make_protected()
        self.discarded = self.server.status()["open_epoch"]
        self.faults.reboot(self.server)
        self.old = None
        self.server.start()

    def make_empty(self):
        self.make_syncing()
        self.faults.reboot(self.server)
        self.old = None
        self.server.start()

    def promote(self):
        self.discarded = self.server.status()["open_epoch"]
        self.generation = done(self.server.ask("promote"))["generation"]
        self.now[:] = self.committed
        self.older = None
        self.at = {}

    def write_promoted(self, letter, at):
        """Durable, so recovery has it too."""
        h = self.connect("@promoted")
        self.write(letter, at, h)
        h.flush()
        h.shutdown()
        self.committed = bytes(self.now)

    def make_draining(self):
        self.make_pending()
        self.promote()
        self.write_promoted("p", 5)

    def make_drained(self):
        self.make_protected()
        self.promote()
        poll("the backlog to drain", lambda: self.server.status()["drained"])
        self.write_promoted("p", 5)

    def make_failed(self):
        self.make_protected()
        self.faults.fail("fdatasync", "/journal")
        check("error" in self.server.ask("commit"), "a commit without a sync")
        self.faults.heal("fdatasync")

    def make_damaged(self):
        self.make_pending()
        self.whole, self.older = self.older[0], None
        self.server.kill()
        self.old = None
        self.flip()
        self.server.start()

    def flip(self):
        """A byte of what was committed, and is in the journal alone: damaged, or mended."""
        path = self.server.journal + "/journal"
        if not hasattr(self, "place"):
            self.place = read_file(path).find(block("b"))
            check(self.place > 0, "what was committed is not in the journal")
        with open(path, "r+b") as f:
            f.seek(self.place)
            byte = f.read(1)[0]
            f.seek(self.place)
            f.write(bytes([byte ^ 1]))

    # --- Looking at it ---

    def check_state(self, name=None):
        """It is in the state NAME (default: still in its own); returns the status."""
        name = name or self.name
        word = STATES[name][0]
        want = {"closed": lambda s: s["sealed_epochs"] > 0,
                "syncing": lambda s: s["sealed_epochs"] == 0,
                "pending": lambda s: s["writeout"]["error"] and s["writeout"]["checkpoints"],
                "sealed": lambda s: s["sealed_epochs"] > 0,
                "stale": lambda s: s["checkpoint"],
                "lost": lambda s: s["checkpoint"],
                "empty": lambda s: not s["checkpoint"],
                "draining": lambda s: not s["drained"] and s["writeout"]["error"],
                "drained": lambda s: s["drained"]}.get(name, lambda s: True)
        equal(self.server.status()["state"], word, "state")
        # Write-out and its errors come in their own time.
        s = poll("a status of " + name, lambda: want(self.server.status())
                 and self.server.status())
        equal(s["state"], word, "state")
        check(s["reason"] or word == "protected", "no reason in", s)
        check(bool(s["checkpoint"]) == (word in ("protected", "resyncing", "promoted", "failed")
                                        or name in ("stale", "lost")), "checkpoint in", s)
        return s

    def check_disk(self):
        """Where it can be read, it reads as it must."""
        if self.name in ("draining", "drained"):
            h = self.connect("@promoted")
        elif self.name in ("lost", "empty", "failed", "damaged"):
            return
        else:
            h = self.connect()
        same(bytes(h.pread(SIZE, 0)), bytes(self.now), "the disk")
        h.shutdown()

    def check_unwritten(self):
        """No uncommitted byte is in the image."""
        if self.name == "syncing":
            same(read_file(self.image), bytes(self.now), "the image")
        elif self.name in ("protected", "sealed", "resyncing", "stale", "lost", "failed"):
            same(read_file(self.image), self.committed, "the image")

    def check_recovery(self, committed="?", started=True):
        """Kill it; recovery makes COMMITTED (None: exit 3) of the image, and a next server knows."""
        committed = self.committed if committed == "?" else committed
        if self.server.is_running():
            self.server.kill()
        if self.name == "damaged" and committed is not None:
            # Nothing else was harmed.
            tool("mcbuf-recover", self.server.journal, code=DAMAGE)
            self.flip()
        if committed is None:
            said = tool("mcbuf-recover", self.server.journal, code=NO_CHECKPOINT).err
            check("must not be used" in said, said)
        else:
            tool("mcbuf-recover", "--json", self.server.journal)
            content = read_file(self.image)
            if self.name == "failed" and content != committed:
                committed = bytes(self.now)     # not acknowledged, and wholly there
            same(content, committed, "the recovered image")
        if started:
            self.server.start()
            equal(self.server.status()["state"],
                  "promoted" if committed is not None else
                  self.server.status()["state"], "state of the next server")

    def end(self):
        self.test.cleanup()


# --- The words of refusals -----------------------------------------------------

# A refusal names the state and the way out of it: for a verb in a state, or for any verb in it.
WAY_OUT = {
    "syncing": ("syncing", "commit"),
    "closed": ("syncing", "commit"),
    "stale": ("stale", "resync"),
    "lost": ("stale", "resync"),
    "empty": ("stale", "resync overwrite"),
    ("promote", "draining"): ("promoted", "leave out to="),
    ("promote", "drained"): ("promoted", "leave out to="),
    "draining": ("promoted", "resync overwrite"),
    "drained": ("promoted", "resync overwrite"),
    ("resync", "failed"): ("failed", "mend the device", "resync overwrite"),
    ("promote", "failed"): ("failed", "stop the server", "mcbuf-recover"),
    "failed": ("failed", "stop the server"),
    ("resync", "damaged"): ("failed", "resync overwrite"),
    "damaged": ("failed", "stop the server"),
}


def check_refusal(text, event, state):
    """TEXT, the refusal of EVENT, says all that it must."""
    verb = (event.split() or [""])[0]
    if "UNKNOWN" in event and state not in ("syncing", "closed", "empty", "draining", "drained",
                                            "failed", "damaged"):
        words = ("4711", "--list")
    else:
        words = WAY_OUT.get((verb, state), WAY_OUT.get(state, ()))
    for word in words:
        check(word in text, "no", repr(word), "in the refusal:", text)


# --- Running a table -----------------------------------------------------------

def unchanged(replica):
    """Nothing has happened to REPLICA."""
    replica.check_state()
    replica.check_disk()
    replica.check_recovery(started=False)


class Run:
    """The cells of TABLE, each by each of its WAYS (event).

    CARRY_OUT (replica, event, cell, way) does one.  SHARED (event, cell): None, or when it
    changes nothing, what checks that in the end.  Those with the same check share a replica.
    """

    def __init__(self, table, carry_out, shared, ways=lambda event: (None,)):
        self.table, self.carry_out, self.is_shared, self.ways = table, carry_out, shared, ways
        self.marks, self.problems, self.took = {}, [], {}
        self.lock = threading.Lock()

    def problem(self, event, state, replica):
        error = sys.exc_info()[1]
        text = "%s, %s: %s\n" % (event, state, error if isinstance(error, Failure)
                                 else traceback.format_exc())
        if replica is not None and replica.server is not None:
            text += replica.server.said()[-800:]
        with self.lock:
            self.marks[event, state] = "!"
            self.problems.append(text)

    def cell(self, replica, event, state, way):
        began = time.monotonic()
        try:
            self.carry_out(replica, event, self.table[event][state], way)
        except Exception:               # pylint: disable=broad-except
            self.problem(event, state, replica)
        with self.lock:
            self.took[event, state] = time.monotonic() - began

    def own(self, state, event, way):
        replica = None
        test = Test("table")
        try:
            replica = Replica(test, state)
        except Exception:               # pylint: disable=broad-except
            self.problem(event, state, replica)
        else:
            self.cell(replica, event, state, way)
        test.cleanup()

    def shared(self, state, finish, events):
        test = Test("table")
        try:
            replica = Replica(test, state)
        except Exception:               # pylint: disable=broad-except
            self.problem(events[0], state, None)
            test.cleanup()
            return
        for event in events:
            for way in self.ways(event):
                self.cell(replica, event, state, way)
        try:
            finish(replica)
        except Exception:               # pylint: disable=broad-except
            self.problem(events[-1], state, replica)
        test.cleanup()

    def jobs(self):
        for state in STATES:
            shared = {}
            for event, row in self.table.items():
                if row[state] == "-":
                    continue
                finish = self.is_shared(event, row[state])
                if finish:
                    shared.setdefault(finish, []).append(event)
                else:
                    for way in self.ways(event):
                        yield self.own, state, event, way
            for finish, events in shared.items():
                yield self.shared, state, finish, events

    def run(self):
        jobs = queue.SimpleQueue()
        n = 0
        for job in self.jobs():
            jobs.put(job)
            n += 1

        def work():
            while True:
                try:
                    function, *args = jobs.get_nowait()
                except queue.Empty:
                    return
                function(*args)

        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        began = time.monotonic()
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        print(render(self.table, self.marks))
        for p in self.problems:
            print("--- " + p)
        cells = sum(c != "-" for row in self.table.values() for c in row.values())
        slow = max(self.took, key=self.took.get)
        print("%d cells on %d replicas, %d wrong, %.1f s (the slowest: %s, %s: %.1f s)"
              % (cells, n, len(self.marks), time.monotonic() - began, *slow, self.took[slow]))
        check(not self.problems, len(self.marks), "cells are wrong")


def only(table):
    """The part of TABLE that the command line names: "EVENT" or "EVENT/STATE"."""
    if not PICKED:
        return table
    picked = {}
    for arg in PICKED:
        event, _, state = arg.partition("/")
        picked[event] = {s: c if state in ("", s) else "-" for s, c in table[event].items()}
    return picked
