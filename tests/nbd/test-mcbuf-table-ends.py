#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of states, ends and tools: a clean stop, a crash, a reboot in each state, and mcbuf-recover."""

import glob
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import DONE, check, equal, main, poll, read_file, same, tool
from libstates import Run, block, check_refusal, only, unchanged
from state_table import ENDS, STATES, parse


def end(replica, how):
    """The server ends; another one is not started."""
    replica.old = None
    if how == "restart":
        replica.server.stop()
        # Who found damage leaves it as it is: mended, the speculation is there, too.
        equal(len(glob.glob("/dev/shm/mcbuf-%s*" % replica.server.replica)),
              1 if replica.name == "damaged" else 0, "left in /dev/shm")
    elif how == "crash":
        replica.server.kill()
    else:
        replica.faults.reboot(replica.server)


def how_it_wakes(name, how):
    cell = parse(ENDS)[how][name]
    return cell[1:] if cell.startswith(">") else name


def starts_again(replica, how, cell):
    before = replica.check_state()
    promoted = replica.name in ("draining", "drained")
    if promoted:
        # Not flushed: a reboot may lose it, the others must not.
        h = replica.connect("@promoted")
        replica.write("u", 6, h)
        h.shutdown()
    for step in how.split(", "):
        if step == "write":
            h = replica.connect()
            replica.write("v", 7, h)
            h.shutdown()
        else:
            end(replica, step)
            replica.server.start()
    name = cell[1:] if cell != "ok" else replica.name
    after = replica.check_state(name)
    for key in ("replica", "generation", "checkpoint"):
        equal(after[key], before[key], key)
    check(after["open_epoch"] >= before["open_epoch"], "an epoch's number is used again")
    if promoted and how in ("reboot", "crash, reboot"):
        h = replica.connect("@promoted")
        there = bytes(h.pread(4096, 6 * 4096))
        check(there in (bytes(4096), block("u")), "an unflushed write is torn", there[:8])
        replica.now[6 * 4096:7 * 4096] = there
        h.shutdown()
    if cell == "ok":
        if not promoted and name not in ("lost", "empty"):
            for key in ("open_epoch", "sealed_epochs"):
                equal(after[key], before[key], key)
        replica.check_disk()
    if promoted:
        h = replica.connect("@promoted")
        h.flush()                       # what is there now, stays
        h.shutdown()
        replica.committed = bytes(replica.now)
    if name in ("syncing", "closed"):
        # The next start says that the first copy goes on.
        check("goes on" in after["reason"], after["reason"])
    if replica.name == "failed" and "," not in how:
        # The word outlives the server that it was said of.
        check("journal had failed" in after["reason"], after["reason"])
    if name in ("lost", "empty") and name != replica.name:
        # … or why it has to begin anew, and on its standard error too.
        for text in (after["reason"], replica.server.said()):
            check_refusal("stale " + text, how, name)
    replica.check_recovery()


ARGS = {"--to=OLDER": lambda r: "--to=%d" % (r.older[0] if r.older else 0),
        "--to=UNKNOWN": lambda r: "--to=4711"}


def run_recover(replica, option, cell):
    """mcbuf-recover [OPTION], its exit code and its message; the result."""
    code = DONE if cell == "ok" or cell.startswith(">") else int(cell)
    args = [ARGS.get(option, lambda _: option)(replica)] if option else []
    if option != "--verify" or code != DONE:
        args.append("--json")
    said = tool("mcbuf-recover", *args, replica.server.journal, code=code, warns=True)
    if code == 3:
        check("must not be used" in said.err, said)
    elif code == 4:
        check("/journal" in said.err and "offset" in said.err, said)
    elif code == 1:
        check("stop it first" in said.err, said)
    elif code == 2 and replica.server.is_running():
        check_refusal(said.err, "promote" if option != "--dry-run" else "", replica.name)
    elif code == 2 and replica.name in ("draining", "drained"):
        check("promoted" in said.err and "generation 2" in said.err, said)
    if code != DONE or option == "--verify":
        return
    result = said.json
    if option == "--list":
        ids = [c["id"] for c in result["checkpoints"]]
        newest = replica.whole if replica.name == "damaged" else replica.last
        equal(max(ids), newest, "the newest of", ids)
        equal(ids, sorted(ids), "order")
        if replica.older:
            check(replica.older[0] in ids, "no checkpoint", replica.older[0], "in", ids)
        return
    want = replica.older[0] if option == "--to=OLDER" else replica.last
    if replica.name == "failed" and not replica.server.is_running():
        check(result["checkpoint"] in (want, want + 1), result)     # whole, or not there
    else:
        equal(result["checkpoint"], want, "checkpoint")
    equal((result["generation"], result["state"]), (2, "promoted"), "result")


def recovers(replica, how, option, cell):
    """mcbuf-recover with a server (HOW None) or after its end."""
    if how and replica.server.is_running():
        end(replica, how)
    if option == "--wait":
        replica.heal()
    run_recover(replica, option, cell)
    if cell.startswith(">") or (cell == "ok" and option in ("", "--wait")):
        content = replica.older[1] if option == "--to=OLDER" else replica.committed
        if how is None:
            replica.check_state(cell[1:] if cell != "ok" else None)
            h = replica.connect("@promoted")
            same(bytes(h.pread(len(content), 0)), content, "the promoted disk")
            h.shutdown()
        if how or option == "--wait":
            image = read_file(replica.image)
            if replica.name == "failed" and image != content:
                content = bytes(replica.now)
            same(image, content, "the image")
        if how:
            # Again, from any of the two ways: the same answer; and the server that comes next knows.
            replica.committed = content
            run_recover(replica, option, "ok")
            equal(glob.glob("/dev/shm/mcbuf-%s*" % replica.server.replica), [], "left in /dev/shm")
            replica.server.start()
            poll("the drained state", lambda: replica.server.status()["drained"])
        replica.check_recovery(content)
    elif not how:
        replica.check_state()
    elif shared("%s, recover %s" % (how, option), cell) is None:
        goes_on(replica, how)


def goes_on(replica, how):
    """Nothing was changed by the tools: the server goes on as it would have."""
    replica.server.start()
    replica.check_state(how_it_wakes(replica.name, how))
    replica.check_recovery()


def goes_on_after_crash(replica):
    goes_on(replica, "crash")


def carry_out(replica, event, cell, _):
    how, comma, rest = event.partition(", ")
    if "recover" not in event:
        starts_again(replica, event, cell)
    else:
        command = rest if comma else event
        recovers(replica, how if comma else None, command[len("recover "):], cell)


def shared(event, cell):
    """What changes nothing may go together."""
    if cell.startswith(">") or not (cell in ("1", "2", "3") or "--list" in event
                                    or "--dry-run" in event or "--verify" in event):
        return None
    return (unchanged if event.startswith("recover") else
            goes_on_after_crash if event.startswith("crash, ") else None)


def test_ends(_):
    """Each end in each state: the state and the disk of the next server, the log, what recovery does."""
    check(all(len(row) == len(STATES) for row in parse(ENDS).values()), "the table")
    Run(only(parse(ENDS)), carry_out, shared).run()


main({"test_ends": test_ends})
