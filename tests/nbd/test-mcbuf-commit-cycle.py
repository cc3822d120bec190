#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""mcbuf-commit in all its forms: seal, commit, commit of an epoch, by every way in."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, Control, KiB, MiB, REFUSED, USAGE, Server, check, equal, main,
                      read_file, sparse_file, tool)


def replica(test, *params):
    return Server(test, sparse_file(test.path("disk.img"), 8 * MiB), "journal-size=64M",
                  "buffer=16M", "baseline=trusted", *params)


def commit(target, *args, code=DONE):
    """mcbuf-commit --json; its object, or the Result when it was refused."""
    result = tool("mcbuf-commit", "--json", *args, target, code=code)
    return result.json if code == DONE else result


def test_cycle(test):
    """seal, write on, commit that epoch: the checkpoint has what was before the seal."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * 4096, 0)
    epoch = commit(server.journal, "--seal")["sealed"]
    h.pwrite(b"2" * 4096, 0)
    h.pwrite(b"2" * 4096, 8192)
    reply = commit(server.journal, "--epoch=%d" % epoch)
    for key in ("checkpoint", "epoch", "extents", "bytes", "latency_us"):
        check(key in reply, "no", key, "in", reply)
    equal((reply["checkpoint"], reply["epoch"], reply["bytes"]), (epoch, epoch, 4096), "reply")
    equal(reply["extents"], 1, "extents")
    server.drained()
    equal(read_file(test.path("disk.img"))[:12288], b"1" * 4096 + bytes(8192), "image")
    equal(bytes(h.pread(12288, 0)), b"2" * 4096 + bytes(4096) + b"2" * 4096, "inlet")
    reply = commit(server.journal)
    equal((reply["checkpoint"], reply["bytes"]), (epoch + 1, 8192), "seal and commit in one")
    server.drained()
    equal(read_file(test.path("disk.img"))[:12288],
          b"2" * 4096 + bytes(4096) + b"2" * 4096, "image")


def test_idempotent(test):
    """An epoch that is committed is a success that changes nothing."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * 512, 0)
    first = commit(server.journal, "--label=first")
    epoch = first["checkpoint"]
    for _ in range(3):
        again = commit(server.journal, "--epoch=%d" % epoch)
        equal((again["checkpoint"], again["epoch"]), (epoch, epoch), "again")
    second = commit(server.journal)["checkpoint"]
    again = commit(server.journal, "--epoch=%d" % epoch, "--label=other")
    equal((again["checkpoint"], again["epoch"]), (second, epoch), "an older one")
    equal(server.status()["open_epoch"], second + 1, "open epoch")


def test_not_sealed(test):
    """An epoch that is open, or not begun: exit 2, and the message says what to do."""
    server = replica(test)
    server.connect().pwrite(b"x", 0)
    opened = server.status()["open_epoch"]
    for epoch in (opened, opened + 1, 1 << 40):
        result = commit(server.journal, "--epoch=%d" % epoch, code=REFUSED)
        check("seal" in result.err, result)
    equal(server.status()["checkpoint"]["id"], 0, "checkpoint")


def test_sweep(test):
    """A commit takes every epoch up to its own; those are no checkpoints of their own."""
    server = replica(test)
    h = server.connect()
    epochs = []
    for i in range(5):
        h.pwrite(bytes([i + 1]) * 4096, i * 4096)
        epochs.append(server.seal())
    equal(epochs, list(range(epochs[0], epochs[0] + 5)), "epochs")
    reply = commit(server.journal, "--epoch=%d" % epochs[3])
    equal(reply["bytes"], 4 * 4096, "bytes")
    server.drained()
    want = b"".join(bytes([i + 1]) * 4096 for i in range(4)) + bytes(4096)
    equal(read_file(test.path("disk.img"))[:5 * 4096], want, "image")
    ids = [c["id"] for c in checkpoints(server)]
    check(epochs[3] in ids and not set(ids) & set(epochs[:3] + epochs[4:]), "list:", ids)


def checkpoints(server):
    """The checkpoints that "list" tells of."""
    reply = server.ask("list")
    check("error" not in reply, reply)
    return reply["checkpoints"]


def test_empty_epoch(test):
    """Nothing was written: a checkpoint all the same, with number, label and time."""
    server = replica(test)
    first = commit(server.journal, "--label=nothing new")
    second = commit(server.journal)
    equal((first["extents"], first["bytes"]), (0, 0), "an empty epoch")
    equal(second["checkpoint"], first["checkpoint"] + 1, "number")
    third = commit(server.journal, "--label=third")["checkpoint"]
    newest = server.status()["checkpoint"]
    equal((newest["id"], newest["label"]), (third, "third"), "newest")
    check(newest["time"], "no time in", newest)
    server.drained()


def test_rewritten_block(test):
    """A block written a thousand times costs a checkpoint one block."""
    server = replica(test)
    h = server.connect()
    for i in range(1000):
        h.pwrite(b"%08d" % i * 512, 0)
    commit(server.journal)
    server.drained()
    equal(read_file(test.path("disk.img"))[:4096], b"%08d" % 999 * 512, "image")


def test_labels(test):
    """Labels of any text; what cannot be one is refused."""
    server = replica(test)
    for label in ("plain", "with spaces and = signs", "quo\"te's \\ back", "ünïcode ☃",
                  "x" * 255, "label=twice", "7"):
        commit(server.journal, "--label=" + label)
        equal(server.status()["checkpoint"]["label"], label, "label")
    before = server.status()["checkpoint"]["id"]
    for label in ("x" * 256, "two\nlines"):
        tool("mcbuf-commit", "--label=" + label, server.journal, code=(USAGE, REFUSED))
    equal(server.status()["checkpoint"]["id"], before, "a refused label made a checkpoint")


def test_generation(test):
    """--generation=G refuses in any other."""
    server = replica(test)
    reply = commit(server.journal, "--generation=1")
    for g in (0, 2, 99):
        result = tool("mcbuf-commit", "--generation=%d" % g, server.journal,
                      code=(REFUSED, USAGE) if g == 0 else REFUSED)
        check("generation" in result.err, result)
    equal(server.status()["checkpoint"]["id"], reply["checkpoint"], "checkpoint")


def test_usage(test):
    """What makes no sense: exit 1, one line."""
    server = replica(test)
    for args in (("--epoch=x",), ("--epoch=",), ("--epoch=-1",), ("--nonsense",),
                 ("--seal", "--epoch=1"), ("--generation=x",)):
        tool("mcbuf-commit", *args, server.journal, code=USAGE)
    tool("mcbuf-commit", code=USAGE)
    tool("mcbuf-commit", server.journal, server.journal, code=USAGE)
    tool("mcbuf-commit", test.path("nosuch"), code=USAGE)
    tool("mcbuf-commit", "nbd+unix:///?socket=" + test.path("nosuch"), code=USAGE)
    server.stop()
    result = tool("mcbuf-commit", server.journal, code=USAGE)
    check(server.journal in result.err, result)


def test_stdin(test):
    """Verbs on stdin, a line of JSON for each, one connection."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"s" * 4 * KiB, 0)
    epoch = server.status()["open_epoch"]
    for target in (server.journal, server.uri()):
        request = "seal\ncommit epoch=%d label=from stdin\nstatus\nnonsense\nseal\n" % epoch
        result = tool("mcbuf-commit", "--stdin", target, stdin=request, code=(DONE, USAGE, REFUSED))
        replies = [json.loads(line) for line in result.out.splitlines()]
        equal(len(replies), 5, "replies in", result)
        equal(replies[0]["sealed"], epoch, "seal")
        equal(replies[1]["checkpoint"], epoch, "commit")
        equal(replies[2]["checkpoint"]["label"], "from stdin", "status")
        check("error" in replies[3], replies[3])
        equal(replies[4]["sealed"], epoch + 1, "goes on after a refusal")
        tool("mcbuf-commit", "--epoch=%d" % (epoch + 1), target)
        epoch += 2


def test_nbd_uri(test):
    """The same over NBD; the tool puts the control export in place of the URI's own."""
    server = replica(test)
    server.connect().pwrite(b"u" * 4096, 4096)
    for uri in (server.uri(), server.uri("anything")):
        epoch = commit(uri, "--seal")["sealed"]
        reply = commit(uri, "--epoch=%d" % epoch, "--label=by NBD")
        equal(reply["checkpoint"], epoch, "checkpoint")
        equal(server.status()["checkpoint"]["label"], "by NBD", "label")
        commit(uri, "--epoch=%d" % (epoch + 5), code=REFUSED)
        commit(uri)
    equal(tool("mcbuf-status", "--json", server.uri()).json["state"], "protected", "status")


def test_text_output(test):
    """Without --json a person reads the epoch's number."""
    server = replica(test)
    epoch = server.status()["open_epoch"]
    check(str(epoch) in tool("mcbuf-commit", "--seal", server.journal).out, "seal")
    check(str(epoch) in tool("mcbuf-commit", "--epoch=%d" % epoch, server.journal).out, "commit")
    check("protected" in tool("mcbuf-status", server.journal).out, "status")
    tool("mcbuf-ctl", server.journal, "seal")
    equal(tool("mcbuf-ctl", "--json", server.journal, "commit", "label=by ctl").json["checkpoint"],
          epoch + 2, "a seal and a commit by mcbuf-ctl")


def test_status_fields(test):
    """Every key that scripts may rely on."""
    server = replica(test)
    server.connect().pwrite(b"k" * 8192, 0)
    server.seal()
    status = server.status()
    for key in ("replica", "state", "reason", "generation", "open_epoch", "sealed_epochs",
                "checkpoint", "written_out", "disks", "speculation", "writeout", "journal",
                "buffer", "commit_latency_us", "connections"):
        check(key in status, "no", key, "in", status)
    equal(status["speculation"]["bytes"], 8192, "speculation")
    check(status["journal"]["size"] == 64 * MiB and status["journal"]["used"] > 0, status["journal"])
    for key in ("p50", "p99", "max"):
        check(key in status["commit_latency_us"], "no", key)
    server.commit()
    server.drained()
    status = server.status()
    equal(status["speculation"]["bytes"], 0, "speculation after the commit")
    equal(status["written_out"], status["checkpoint"]["id"], "written out")
    equal(status["writeout"]["bytes"], 0, "write-out backlog")


def test_many_commits(test):
    """Hundreds of checkpoints on one connection: the journal is recycled."""
    server = replica(test)
    h = server.connect()
    with Control(server.journal) as control:
        for i in range(600):
            h.pwrite(b"%08d" % i * 8192, i % 64 * 64 * KiB)
            reply = control.ask("commit")
            check("error" not in reply, reply)
    server.drained()
    image = read_file(test.path("disk.img"))
    for slot in range(64):
        last = max(i for i in range(600) if i % 64 == slot)
        equal(image[slot * 64 * KiB:][:8], b"%08d" % last, "slot", slot)
    check(server.status()["journal"]["used"] <= 64 * MiB, "journal")


INVARIANTS = "1,2,3,4"
main(globals())
