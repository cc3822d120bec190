#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Generations keep an old primary out; two promoters; a promote that races commits."""

import errno
import os
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, KiB, MiB, REFUSED, SLOW, Control, Faults, Server, check, count, done,
                      equal, main, nbd_errno, poll, read_all, read_file, refused, same, seeded,
                      sparse_file, tool)

SIZE = 1 * MiB


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=32M", "buffer=8M",
                  "baseline=trusted", *params, **options)


def new_lines(server, seen):
    """What the server said since it had said SEEN characters."""
    return server.said()[seen:].splitlines()


def is_shut(server, h, *generations):
    """Every data request on H gets ESHUTDOWN, and each a line that names GENERATIONS."""
    for call, args in ((h.pwrite, (b"old" * 100, 0)), (h.pread, (512, 0)), (h.zero, (4096, 0)),
                       (h.trim, (4096, 0)), (h.flush, ())):
        seen = len(server.said())
        equal(nbd_errno(call, *args), errno.ESHUTDOWN, call.__name__)
        named(server, seen, *generations)


def named(server, seen, *generations):
    lines = new_lines(server, seen)
    check(any(all("generation %d" % g in line for g in generations) for line in lines),
          "no line names generations", generations, "in", lines)


def commit_is_refused(server, generation, now):
    """By both ways in, and a seal too: exit 2, a line that names both generations; nothing is sealed."""
    before = server.status()
    for target in (server.journal, server.uri()):
        for options in ((), ("--seal",)):
            seen = len(server.said())
            result = tool("mcbuf-commit", *options, "--generation=%d" % generation, target,
                          code=REFUSED)
            check("generation %d" % generation in result.err
                  and "generation %d" % now in result.err, result)
            named(server, seen, generation, now)
    h = server.connect("mcbuf-control")
    for verb in (b"commit", b"seal"):
        equal(nbd_errno(h.pwrite, verb + b" generation=%d" % generation, 0), errno.ESHUTDOWN,
              "errno")
    after = server.status()
    for key in ("open_epoch", "sealed_epochs", "checkpoint"):
        equal(after[key], before[key], key)


def control_is_shut(server, h, *generations):
    """Whoever sends on a control connection of an earlier generation changes nothing; unless he names this one."""
    before = server.status()
    for verb in (b"seal", b"commit", b"commit epoch=1", b"commit label=x", b"resync", b"resync overwrite"):
        seen = len(server.said())
        equal(nbd_errno(h.pwrite, verb, 0), errno.ESHUTDOWN, "errno of", verb)
        named(server, seen, *generations)
    after = server.status()
    for key in ("state", "open_epoch", "sealed_epochs", "checkpoint", "generation"):
        equal(after[key], before[key], key)


def full_copy(server, export, byte):
    h = server.connect(export)
    h.pwrite(bytes([byte]) * SIZE, 0)
    return h


# --- fencing -------------------------------------------------------------------

def test_old_primary(test):
    """Promoted: its old connection and its new one, its commits and its seals."""
    server = replica(test)
    old, old_g = server.connect(), server.connect("@g1")
    old.pwrite(b"1" * SIZE, 0)
    server.commit()
    done(server.ask("promote"))
    for h in (old, old_g, server.connect(), server.connect("@g1")):
        is_shut(server, h, 1, 2)
    commit_is_refused(server, 1, 2)
    for request in ("seal", "commit"):
        seen = len(server.said())
        refused(server.ask(request), REFUSED, "generation 1", "generation 2", "resync overwrite")
        named(server, seen, 1, 2)


def back_to_standby(server, byte):
    """resync overwrite, a first copy by the new primary, a checkpoint."""
    tool("mcbuf-ctl", server.journal, "resync", "overwrite")
    generation = server.status()["generation"]
    h = full_copy(server, "@g%d" % generation, byte)
    sealed = tool("mcbuf-commit", "--json", "--seal", "--generation=%d" % generation,
                  server.uri()).json["sealed"]
    answer = tool("mcbuf-commit", "--json", "--epoch=%d" % sealed, "--generation=%d" % generation,
                  server.uri())
    return h, answer.json["checkpoint"]


def test_standby_again(test):
    """Fences hold when this host is a standby again, whatever the old primary comes with."""
    server = replica(test)
    old, old_g = server.connect(), server.connect("@g1")
    old_control = server.connect("mcbuf-control")
    old.pwrite(b"1" * SIZE, 0)
    old_control.pwrite(b"commit", 0)
    for generation in (2, 3):
        done(server.ask("promote"))
        tool("mcbuf-recover", "--wait", server.journal)
        if generation == 3:
            commit_is_refused(server, 1, 3)
        else:
            control_is_shut(server, old_control, 1, generation)
        tool("mcbuf-ctl", server.journal, "resync", "overwrite")
        server.connect("@g%d" % generation).pwrite(b"half", 0)
        control_is_shut(server, old_control, 1, generation)     # half a copy is no checkpoint
        h, last = back_to_standby(server, generation)
        control_is_shut(server, old_control, 1, generation)
        equal(server.status()["generation"], generation, "generation")
        for stranger in (old, old_g, server.connect("@g1")):
            is_shut(server, stranger, 1, generation)
        commit_is_refused(server, 1, generation)
        if generation == 3:
            is_shut(server, server.connect("@g2"), 2, 3)
            commit_is_refused(server, 2, 3)
        h.pwrite(b"works", 0)
        equal(server.status()["checkpoint"]["id"], last, "checkpoint")
        server.commit()
        server.drained()
        same(read_file(test.path("disk.img")), b"works" + bytes([generation]) * (SIZE - 5), "image")


def test_refused_leaves_no_trace(test):
    """A seal in another generation does not take the mark of a clean stop off: after a power loss nothing was lost."""
    for state in ("syncing", "protected"):
        faults = Faults(test)
        server = Server(test, sparse_file(test.path("disk.img"), SIZE), "journal=" + test.unique("j"), "journal-size=32M",
                        "buffer=8M", env=faults.env, preload=faults.preload)
        server.connect().pwrite(b"1" * SIZE, 0)
        if state == "protected":
            server.commit()
        server.stop()
        server.start()
        tool("mcbuf-commit", "--seal", "--generation=9", server.journal, code=REFUSED)
        faults.reboot(server)
        server.start()
        equal(server.status()["state"], state, "state")
        server.stop()


def test_across_restarts(test):
    """The same when the fail-over was made without a server, and over any end of one."""
    server = replica(test)
    server.connect().pwrite(b"1" * SIZE, 0)
    server.commit()
    server.kill()
    tool("mcbuf-recover", server.journal)
    for end in (None, "stop", "kill"):
        if end:
            getattr(server, end)()
        server.start()
        is_shut(server, server.connect(), 1, 2)
        is_shut(server, server.connect("@g1"), 1, 2)
        commit_is_refused(server, 1, 2)
    h, _ = back_to_standby(server, 7)
    h.shutdown()
    for end in ("stop", "kill"):
        getattr(server, end)()
        server.start()
        is_shut(server, server.connect("@g1"), 1, 2)
        commit_is_refused(server, 1, 2)
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path("disk.img")), b"\7" * SIZE, "image")
    equal(tool("mcbuf-recover", "--json", server.journal).json["generation"], 3, "generation")


def test_writes_under_way(test):
    """An old primary that writes all the time: cut off at the promote, and at nothing else."""
    server = replica(test)
    server.connect().pwrite(b"1" * SIZE, 0)
    server.commit()
    stop, ends = threading.Event(), []

    def write(export):
        h = server.connect(export)
        while not stop.is_set():
            errnum = nbd_errno(h.pwrite, b"old!" * KiB, 0)
            if errnum:
                ends.append(errnum)
                return
    threads = [threading.Thread(target=write, args=(e,)) for e in ("", "@g1", "", "@g1")]
    for t in threads:
        t.start()
    try:
        done(server.ask("promote"))
        poll("all to be cut off", lambda: len(ends) == len(threads))
        tool("mcbuf-recover", "--wait", server.journal)
        same(read_file(test.path("disk.img")), b"1" * SIZE, "image")
    finally:
        stop.set()
        for t in threads:
            t.join()
    equal(set(ends), {errno.ESHUTDOWN}, "what they got")


# --- two promoters ---------------------------------------------------------------

def at_once(functions):
    """Run FUNCTIONS at the same time; their results."""
    results = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(i):
        barrier.wait()
        results[i] = functions[i]()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def test_two_promoters(test):
    """One wins; all learn what the disk is now, and who of them it was."""
    server = replica(test)
    for generation in range(2, 2 + count("ROUNDS", 10)):
        full_copy(server, "", generation).shutdown()
        last = server.commit()["checkpoint"]
        answers = at_once([
            lambda: tool("mcbuf-recover", "--json", server.journal).json,
            lambda: server.ask("promote"), lambda: server.ask("promote"),
            lambda: server.ask("promote to=%d" % last)])
        for a in answers:
            equal((a["checkpoint"], a["generation"], a["state"]), (last, generation, "promoted"),
                  "answer", a)
        equal(sorted(a["already"] for a in answers), [False, True, True, True], "winners")
        check("already" in tool("mcbuf-recover", server.journal).out, "text")
        done(server.ask("resync overwrite"))


def test_two_promoters_apart(test):
    """To different checkpoints: the loser is refused and told which one won."""
    rng = seeded(test.name)
    faults = Faults(test)
    server = replica(test, env=faults.env, preload=faults.preload)
    seen = set()
    for generation in range(2, 2 + count("ROUNDS", 10)):
        full_copy(server, "", 1).shutdown()
        server.commit()
        server.drained()
        faults.fail("pwrite", "disk.img")               # both stay to be had
        h = server.connect()
        epochs = []
        for byte in (b"a", b"b"):
            h.pwrite(byte * SIZE, 0)
            epochs.append(server.commit()["checkpoint"])
        listed = [c["id"] for c in done(server.ask("list"))["checkpoints"]]
        check(set(epochs) <= set(listed), epochs, "are not all in", listed)
        faults.heal("pwrite")
        order = epochs[:]
        rng.shuffle(order)
        answers = at_once([lambda e=e: server.ask("promote to=%d" % e) for e in order])
        won = [a for a in answers if "error" not in a]
        if len(won) == 0:               # write-out had begun: the older one is gone
            check(False, "nobody won:", answers)
        equal(len(won), 1, "winners of", answers)
        lost, = [a for a in answers if "error" in a]
        refused(lost, REFUSED)
        if "promoted already" in lost["error"]:
            check("checkpoint %d" % won[0]["checkpoint"] in lost["error"]
                  and "generation %d" % generation in lost["error"], lost)
            seen.add(won[0]["checkpoint"] == epochs[1])
        same(read_all(server.connect("@promoted")),
             (b"a", b"b")[epochs.index(won[0]["checkpoint"])] * SIZE, "promoted")
        h.shutdown()
        tool("mcbuf-recover", "--wait", server.journal, code=DONE)
        done(server.ask("resync overwrite"))
    print("the newer one won:", seen)
    check(seen, "no loser was told who won")


# --- promote and commit ------------------------------------------------------------

def filled(n):
    return n.to_bytes(8, "big") * (64 * KiB // 8)


def race(server, rng, generation):
    """One race.  Returns what was refused first, and how many commits were made."""
    h = server.connect("@g%d" % (generation - 1))
    acknowledged, refusals = [], []             # acknowledged: checkpoint, what was written last
    started = threading.Event()
    writes = rng.random() < 0.5

    def commits():
        with Control(server.journal) as c:
            written = 0
            while True:
                if writes or not acknowledged:
                    errnum = nbd_errno(h.pwrite, filled(written + 1), 0)
                    if errnum:
                        refusals.append(("write", errnum))
                        return
                    written += 1
                sealed = c.ask("seal")
                if "error" in sealed:
                    refusals.append(("seal", sealed))
                    return
                reply = c.ask("commit epoch=%d generation=%d" % (sealed["sealed"], generation - 1))
                if "error" in reply:
                    refusals.append(("commit", reply))
                    return
                acknowledged.append((reply["checkpoint"], written))
                started.set()

    t = threading.Thread(target=commits)
    t.start()
    started.wait(60)
    time.sleep(rng.random() * 0.02)     # anywhere in a commit; how long one takes varies
    answer = done(server.ask("promote"))
    t.join()
    (what, refusal), = refusals
    if what == "write":
        equal(refusal, errno.ESHUTDOWN, "errno of a write")
    else:
        refused(refusal, REFUSED, "generation %d" % (generation - 1), "generation %d" % generation)
    last, written = acknowledged[-1]
    equal(answer["checkpoint"], last, "promoted to, after", acknowledged, refusal)
    equal(server.status()["checkpoint"]["id"], last, "status")
    equal(bytes(server.connect("@promoted").pread(64 * KiB, 0)), filled(written), "content")
    return what, written, len(acknowledged)


def test_promote_races_commit(test):
    """A commit is wholly before the promote, and in it; or refused, and nothing of it is there."""
    rng = seeded(test.name)
    server = replica(test)
    first = {"commit": 0, "seal": 0, "write": 0}
    total, rounds, generation = 0, count("ROUNDS", 40 // SLOW), 1
    while generation <= rounds or (first["commit"] == 0 and generation <= 20 * rounds):
        generation += 1
        what, written, n = race(server, rng, generation)
        first[what] += 1
        total += n
        if rng.random() < 0.3:
            server.kill()
            server.start()
            equal(server.status()["generation"], generation, "generation after a restart")
        tool("mcbuf-recover", "--wait", server.journal)
        equal(read_file(test.path("disk.img"))[:64 * KiB], filled(written), "image")
        back_to_standby(server, generation % 256)
    print("%d commits; what was refused first: %s" % (total, first))
    check(first["commit"] > 0, "no promote fell between a seal and its commit")


main(globals())
