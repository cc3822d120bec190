#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of states, control verbs: each in each state, by the socket and by NBD."""

import errno
import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import check, done, equal, main, nbd_errno, poll, same
from libstates import BLOCK, SECRET, SIZE, Run, block, check_refusal, only, unchanged
from state_table import VERBS, parse

# What changes nothing of the replica's, done or refused.
IDLE = ("status", "list", "commit epoch=COMMITTED", "reset NAME@scratch", "divergence")
BY_NBD = ("seal", "commit", "status", "list", "resync")


def ask_socket(replica, request):
    return replica.server.ask(request)


def ask_nbd(replica, request, secret=True):
    """By the control export, where a secret is asked for: the reply, and the errno of the request."""
    h = replica.connect("mcbuf-control")
    if secret:
        h.pwrite(b"auth " + SECRET, 0)
    errnum = nbd_errno(h.pwrite, request.encode(), 0)
    reply = json.loads(bytes(h.pread(65536, 0)).rstrip(b"\0"))
    again = nbd_errno(h.pread, 512, 0)
    equal(again, 0, "the reply read again")
    h.shutdown()
    equal(errnum != 0, "error" in reply, "errno", errnum, "with", reply)
    if errnum:
        reply["errno"] = errnum
    if replica.name in ("draining", "drained") and request.split()[0] in ("seal", "commit") and secret:
        equal(errnum, errno.ESHUTDOWN, "errno of", request, reply)
    return reply


def ask_without_secret(replica, request):
    return ask_nbd(replica, request, secret=False)


def request_of(replica, event):
    """The line that EVENT stands for."""
    status = replica.server.status()
    sealed = min(replica.at) if replica.at else 0
    older = replica.older[0] if replica.older else 0
    for word, value in (("generation=CURRENT", "generation=%d" % replica.generation),
                        ("generation=OTHER", "generation=%d" % (replica.generation + 1)),
                        ("SEALED", str(sealed)), ("OPEN", str(status["open_epoch"])),
                        ("COMMITTED", str(replica.last)), ("DISCARDED", str(replica.discarded)),
                        ("LAST", str(replica.last)), ("OLDER", str(older)),
                        ("UNKNOWN", "4711"), ("NAME@scratch", "@scratch")):
        event = event.replace(word, value)
    return event.removesuffix(" (written)")


def effect(replica, event, reply):
    """What recovery must make of the image after EVENT was done."""
    verb = event.split()[0]
    if verb == "commit":
        epoch = reply["checkpoint"]
        if "COMMITTED" in event:
            equal(epoch, replica.last, "checkpoint")
            return replica.committed
        check(replica.last is None or epoch > replica.last, "checkpoint", epoch)
        if "SEALED" in event:
            return replica.at[epoch]
        return bytes(replica.now)
    if event == "resync overwrite":
        return None
    if event == "promote to=OLDER":
        equal(reply["checkpoint"], replica.older[0], "checkpoint")
        return replica.older[1]
    if verb == "promote":
        equal(reply["checkpoint"], replica.last, "checkpoint")
        equal(reply["generation"], 2, "generation")
    if event == "promote scratch (written)":
        return scratched(replica)
    if verb == "seal" and replica.committed is None:
        return None
    return replica.committed


def scratched(replica):
    """The last checkpoint with what write_scratch writes over it."""
    content = bytearray(replica.committed)
    content[2 * BLOCK:4 * BLOCK] = block("S") + bytes(BLOCK)
    return bytes(content)


def write_scratch(replica):
    h = replica.connect("@scratch")
    h.pwrite(block("S"), 2 * BLOCK)
    h.zero(BLOCK, 3 * BLOCK)
    same(bytes(h.pread(SIZE, 0)), scratched(replica), "scratch")
    h.shutdown()


def check_divergence(replica, reply):
    known = replica.name in ("draining", "drained")
    if known:
        reply = poll("the divergence", lambda: replica.server.ask("divergence"))
        poll("it to be known", lambda: replica.server.ask("divergence")["known"])
    else:
        equal(reply["known"], False, "divergence")
        check(reply["reason"], "no reason in", reply)


def check_done(replica, event, cell, reply):
    done(reply)
    if event == "shutdown":
        replica.old = None
        replica.server.wait_end()
        replica.check_recovery(started=False)
        return
    if event == "divergence":
        check_divergence(replica, reply)
    committed = effect(replica, event, reply)
    replica.check_state(cell[1:] if cell != "ok" else None)
    if event not in IDLE:
        replica.check_recovery(committed)


def carry_out(replica, event, cell, way):
    """EVENT's CELL, asked by WAY."""
    before = replica.server.status()
    if event.endswith("(written)"):
        write_scratch(replica)
    reply = way(replica, request_of(replica, event.removeprefix("by NBD: ")
                                    .removeprefix("without secret: ")))
    if cell in ("1", "2", "3"):
        equal(reply.get("code"), int(cell), "code of", reply)
        if event.startswith("without secret"):
            check("control-secret" in reply["error"], reply)
        elif event.startswith("promote scratch") and cell == "2" and replica.name not in ("failed", "damaged"):
            # Nothing was written to it; or (stale, with a full journal) there is no room for it.
            check(("do not fit into the journal" if event.endswith("(written)") else "@scratch")
                  in reply["error"], reply)
        elif event.endswith("generation=OTHER"):
            # Whatever else it is: both are named.
            for generation in (replica.generation, replica.generation + 1):
                check("generation %d" % generation in reply["error"], event, "in", replica.name, reply)
            equal(reply.get("errno", errno.ESHUTDOWN), errno.ESHUTDOWN, "errno of", reply)
        elif not event.startswith(("by NBD", "reset", "seal generation", "commit generation",
                                 "commit epoch=OPEN", "commit epoch=DISCARDED")):
            check_refusal(reply["error"], event, replica.name)
        after = replica.server.status()
        for key in ("state", "generation", "open_epoch", "sealed_epochs", "checkpoint"):
            equal(after[key], before[key], key, "after the refusal")
    else:
        check_done(replica, event, cell, reply)


def ways(event):
    """The ways in: the socket, the control export, or both."""
    if event.startswith("without secret"):
        return (ask_without_secret,)
    if event.startswith("by NBD"):
        return (ask_nbd,)
    return (ask_socket, ask_nbd) if event.split()[0] in BY_NBD else (ask_socket,)


def shared(event, cell):
    """Changes nothing, so the next may have the same replica."""
    return unchanged if cell in ("1", "2", "3") or event in IDLE else None


def test_verbs(_):
    """Each verb in each state: the code, the words of the refusal, the state after, what recovery makes of it."""
    Run(only(parse(VERBS)), carry_out, shared, ways).run()


main({"test_verbs": test_verbs})
