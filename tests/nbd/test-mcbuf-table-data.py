#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of states, data requests: each in each state, on each export of a disk."""

import errno
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (check, connect_errno, done, equal, main, nbd_errno, poll, read_file,
                      same)
from libstates import BLOCK, SIZE, Run, block, only, unchanged
from state_table import DATA, STATES, TOGETHER, parse

AT = 200                        # a block that no state's making touches


def export_of(replica, event):
    where = event.partition(":")[0].removeprefix("NAME")
    return {"@gCURRENT": "@g%d" % replica.generation,
            "@gOTHER": "@g%d" % (replica.generation + 1),
            "@LAST": "@%d" % (replica.last or 0), "@UNKNOWN": "@4711",
            "@OLDER": "@%d" % (replica.older[0] if replica.older else 0)}.get(where, where)


def content_of(replica, event):
    """What the export reads as: changed by requests that are done."""
    where = event.partition(":")[0]
    if where in ("NAME@latest", "NAME@LAST"):
        return replica.committed
    if where == "NAME@OLDER":
        return replica.older[1]
    if where == "NAME@scratch":
        if not hasattr(replica, "scratch"):
            replica.scratch = bytearray(replica.committed)
        return replica.scratch
    return replica.now


def extents(h):
    """Block status of the whole disk: what it says is zero must be."""
    found = []

    def note(context, offset, entries, error):
        for length, kind in zip(entries[::2], entries[1::2]):
            found.append((offset, length, kind))
            offset += length
        return 0

    h.block_status(SIZE, 0, note)
    equal(sum(length for _, length, _ in found), SIZE, "extents", found)
    return found


def request(content, h, op):
    """OP on H; what it changes is what CONTENT is from now on."""
    change = {"write": block("W"), "write FUA": block("F"), "zero": bytes(BLOCK),
              "fast zero": bytes(BLOCK), "trim": bytes(BLOCK)}.get(op)
    if change is not None and not op.startswith("write"):
        nbd_errno(h.pwrite, block("X"), AT * BLOCK)     # something to zero
    call, args = {
        "read": (h.pread, (SIZE, 0)), "extents": (extents, (h,)), "cache": (h.cache, (SIZE, 0)),
        "fast zero": (h.zero, (BLOCK, AT * BLOCK, nbd.CMD_FLAG_FAST_ZERO)),
        "write": (h.pwrite, (change, AT * BLOCK)),
        "write FUA": (h.pwrite, (change, AT * BLOCK, nbd.CMD_FLAG_FUA)),
        "zero": (h.zero, (BLOCK, AT * BLOCK)), "trim": (h.trim, (BLOCK, AT * BLOCK)),
        "flush": (h.flush, ())}[op]
    errnum = nbd_errno(call, *args)
    if op == "fast zero" and errnum == errno.ENOTSUP:
        errnum, change = 0, block("X")                  # "not fast" is an answer
    if errnum == 0 and change is not None:
        content[AT * BLOCK:(AT + 1) * BLOCK] = change
    return errnum


def check_image(replica, op):
    """Where the request went: to the image in syncing, and to it nowhere else before a promote."""
    image = read_file(replica.image)
    if replica.name in ("syncing", "drained"):
        same(image, bytes(replica.now), "the image after", op)
    elif replica.name in ("closed", "pending", "draining"):
        check(not any(image[AT * BLOCK:(AT + 1) * BLOCK]), op, "went to the image")
    else:
        same(image, replica.committed, "the image after", op)


def on_export(replica, event, cell, h):
    op = event.partition(": ")[2]
    content = content_of(replica, event)
    errnum = request(content, h, op)
    equal(errno.errorcode.get(errnum, "ok"), cell, "errno")
    if cell == "EPERM":
        check(h.is_read_only(), "not said to be read-only")
        same(bytes(h.pread(SIZE, 0)), bytes(content), "the export after a refusal")
    elif errnum:
        # Said once, with the state or both generations.
        said = replica.server.said()
        word = STATES[replica.name][0]
        check(word in said or "generation" in said, "the log does not say why:", said[-300:])
        if event.startswith("NAME@gOTHER"):
            for g in (replica.generation, replica.generation + 1):
                check("generation %d" % g in said, "no generation", g, "in", said[-300:])
    elif op == "read":
        same(bytes(h.pread(SIZE, 0)), bytes(content), "the disk")
    elif event == "NAME@divergence: extents":
        extents(h)              # where it differs, and not what is zero
    elif op == "extents":
        for offset, length, kind in extents(h):
            check(not kind & nbd.STATE_ZERO or not any(content[offset:offset + length]),
                  "said to be zero:", offset, length)
    else:
        same(bytes(h.pread(SIZE, 0)), bytes(content), "the export after", op)
        replica.check_disk()
        check_image(replica, op)
        if op in ("write FUA", "flush") and event.startswith("NAME@promoted"):
            replica.committed = bytes(replica.now)      # durable from here on


EACH = TOGETHER["all"].split(", ")


def after(replica, event, cell):
    """Each request on a connection of before: may it go on after a verb, or a failure of the journal?"""
    h = replica.old or replica.connect(block_status=True)
    what = event.partition(",")[0]
    content = bytearray(replica.now)
    if what == "failure":
        replica.faults.fail("fdatasync", "/journal")
        check("error" in replica.server.ask("resync overwrite" if replica.generation > 1 else "commit"),
              "done without a sync")
        replica.faults.heal("fdatasync")
    else:
        if what != "promote":
            replica.heal()
        done(replica.server.ask("resync overwrite" if what == "overwrite" else what))
        if what == "resync":
            content[:] = replica.committed
    for op in EACH:
        errnum = request(content, h, op)
        equal(errno.errorcode.get(errnum, "ok"), cell, "errno of", op)
    if cell == "ok":
        same(bytes(h.pread(BLOCK, AT * BLOCK)), bytes(content[AT * BLOCK:(AT + 1) * BLOCK]), "what was written")
    if what in ("resync", "overwrite"):
        # A new one may in any case.
        h = replica.connect()
        h.pwrite(block("N"), AT * BLOCK)
        same(bytes(h.pread(BLOCK, AT * BLOCK)), block("N"), "what was written")
        replica.check_state("resyncing" if what == "resync" else "syncing")
    replica.check_recovery(None if what == "overwrite" else replica.committed, started=False)


def carry_out(replica, event, cell, _):
    if event.endswith(": each"):
        after(replica, event, cell)
    elif event.startswith("old connection"):
        on_export(replica, event, cell, replica.old)
    elif cell == "none":
        check(connect_errno(replica.server, export_of(replica, event)) != 0, "can be opened")
    else:
        if event.startswith("NAME@divergence"):
            poll("the divergence", lambda: replica.server.ask("divergence")["known"])
        h = replica.connect(export_of(replica, event), block_status=True)
        on_export(replica, event, cell, h)
        h.shutdown()


def unrefused(replica):
    """Of its own: a write that an inlet refuses after a promote ends what is known of the divergence."""
    unchanged(replica)


def shared(event, cell):
    if event.startswith("NAME@divergence") and cell != "none":
        return unrefused
    return None if event.endswith(": each") else unchanged


def test_data(_):
    """Each request in each state: the errno, the disk after it, the image, the log."""
    Run(only(parse(DATA)), carry_out, shared).run()


main({"test_data": test_data})
