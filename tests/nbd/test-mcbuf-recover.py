#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""mcbuf-recover without a server: list, dry run, choice, moved images, again and again."""

import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, KiB, MiB, REFUSED, USAGE, WRAPPER, Faults, Server,
                      check, environment, equal, main, random_data, read_file, same,
                      seeded, sparse_file, tool, tool_path)

SIZE = 8 * MiB


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=64M",
                  "buffer=8M", "baseline=trusted", *params, **options)


def with_backlog(test, checkpoints=5):
    """A dead replica whose newest checkpoints are in the journal only.

    Returns the server and the contents by checkpoint.
    """
    faults = Faults(test)
    server = replica(test, env=faults.env, preload=faults.preload)
    faults.fail("pwrite", "disk.img")
    h = server.connect()
    now = bytearray(SIZE)
    contents = {0: bytes(now)}
    rng = seeded("with_backlog")
    for i in range(checkpoints):
        for _ in range(20):
            at = rng.randrange(0, SIZE - 64 * KiB)
            data = random_data(rng, rng.randrange(1, 64 * KiB))
            h.pwrite(data, at)
            now[at:at + len(data)] = data
        contents[server.commit(label="label %d" % (i + 1))["checkpoint"]] = bytes(now)
    h.pwrite(b"speculation" * 1000, 0)
    server.kill()
    return server, contents


def fingerprint(directory):
    """Every byte and every time stamp below DIRECTORY, but for who holds the lock."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            st = os.stat(path)
            if not os.path.isfile(path) or name == "lock":
                continue
            found[path] = (st.st_size, st.st_mtime_ns,
                           hashlib.sha256(read_file(path)).hexdigest())
    return found


def test_recover(test):
    """The last checkpoint becomes the image; the answer tells all."""
    server, contents = with_backlog(test)
    last = max(contents)
    answer = tool("mcbuf-recover", "--json", server.journal).json
    for key in ("checkpoint", "label", "discarded_bytes", "discarded_epochs",
                "written_bytes", "generation", "state", "seconds"):
        check(key in answer, "no", key, "in", answer)
    equal((answer["checkpoint"], answer["label"], answer["generation"], answer["state"]),
          (last, "label %d" % last, 2, "promoted"), "answer")
    check(answer["written_bytes"] > 0, answer)
    same(read_file(test.path("disk.img")), contents[last], "image")


def test_again(test):
    """Once more changes nothing and says the same."""
    server, contents = with_backlog(test)
    first = tool("mcbuf-recover", "--json", server.journal).json
    image = read_file(test.path("disk.img"))
    for _ in range(3):
        again = tool("mcbuf-recover", "--json", server.journal).json
        for key in ("checkpoint", "label", "generation", "state", "discarded_bytes",
                    "discarded_epochs"):
            equal(again[key], first[key], key, "the second time")
        same(read_file(test.path("disk.img")), image, "image")
    same(image, contents[max(contents)], "image")


def test_list_and_dry_run(test):
    """--list and --dry-run change no byte."""
    server, contents = with_backlog(test)
    before = fingerprint(test.dir)
    listed = tool("mcbuf-recover", "--list", "--json", server.journal)
    lines = [line for line in listed.out.splitlines() if line]
    dry = tool("mcbuf-recover", "--dry-run", "--json", server.journal).json
    equal((dry["checkpoint"], dry["label"]), (max(contents), "label %d" % max(contents)), "dry run")
    text = tool("mcbuf-recover", "--list", server.journal).out
    check("label %d" % max(contents) in text, text)
    tool("mcbuf-recover", "--verify", server.journal)
    check(lines, "an empty list")
    equal(fingerprint(test.dir), before, "files")
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], max(contents),
          "then for real")


def test_to(test):
    """--to by number and by label, of what --list shows; else exit 2, nothing done."""
    server, contents = with_backlog(test)
    listed = tool("mcbuf-recover", "--list", "--json", server.journal).out
    ids = sorted(c["id"] for c in json.loads(listed)["checkpoints"])
    check(set(ids) <= set(contents) and max(contents) in ids, "list:", ids)
    for to in ("99", "no such label", "1999-12-31"):
        tool("mcbuf-recover", "--to=" + to, server.journal, code=REFUSED)
    before = tool("mcbuf-recover", "--dry-run", "--json", server.journal).json
    equal(before["checkpoint"], max(contents), "after refusals")
    to = ids[0] if ids[0] else max(contents)
    answer = tool("mcbuf-recover", "--to=%d" % to, "--json", server.journal).json
    equal(answer["checkpoint"], to, "--to")
    same(read_file(test.path("disk.img")), contents[to], "image")
    tool("mcbuf-recover", "--to=%d" % to, server.journal)       # the same is no other
    if to != max(contents):
        tool("mcbuf-recover", "--to=%d" % max(contents), server.journal, code=REFUSED)


def test_to_label(test):
    """--to=LABEL."""
    server, contents = with_backlog(test)
    answer = tool("mcbuf-recover", "--to=label %d" % max(contents), "--json", server.journal).json
    equal(answer["checkpoint"], max(contents), "--to=LABEL")
    same(read_file(test.path("disk.img")), contents[max(contents)], "image")


def test_moved_image(test):
    """--disk=NAME:PATH for an image that has moved."""
    paths = {n: sparse_file(test.path(n + ".img"), SIZE) for n in ("a", "b")}
    server = Server(test, *["disk=%s:%s" % p for p in paths.items()],
                    "journal=" + test.path("j"), "journal-size=64M", "buffer=8M",
                    "baseline=trusted")
    for n in paths:
        server.connect(n).pwrite(n.encode() * 4096, 0)
    server.commit()
    server.kill()
    os.rename(paths["b"], test.path("moved.img"))
    result = tool("mcbuf-recover", server.journal, code=USAGE)
    check("b.img" in result.err and "--disk" in result.err, result)
    tool("mcbuf-recover", "--disk=nosuch:" + test.path("moved.img"), server.journal, code=USAGE)
    tool("mcbuf-recover", "--disk=b:" + test.path("nosuch"), server.journal, code=USAGE)
    sparse_file(test.path("small.img"), MiB)
    tool("mcbuf-recover", "--disk=b:" + test.path("small.img"), server.journal, code=(USAGE, REFUSED))
    tool("mcbuf-recover", "--disk=b:" + test.path("moved.img"), server.journal)
    equal(read_file(paths["a"])[:4096], b"a" * 4096, "a")
    equal(read_file(test.path("moved.img"))[:4096], b"b" * 4096, "b")
    check(not os.path.exists(paths["b"]), "an image was made at the old place")


def test_moved_journal(test):
    """A journal that was moved or copied as a whole is still the replica."""
    server, contents = with_backlog(test)
    shutil.move(server.journal, test.path("elsewhere"))
    answer = tool("mcbuf-recover", "--json", test.path("elsewhere")).json
    equal(answer["checkpoint"], max(contents), "checkpoint")
    same(read_file(test.path("disk.img")), contents[max(contents)], "image")


def test_image_in_use(test):
    """Another process that writes the image: refused, nothing written."""
    server, contents = with_backlog(test)
    before = read_file(test.path("disk.img"))
    sock = test.path("q.sock")
    qemu = test.spawn(["qemu-nbd", "-f", "raw", "-k", sock, "--persistent",
                       test.path("disk.img")])
    deadline = time.monotonic() + 30
    while not os.path.exists(sock) and time.monotonic() < deadline:
        time.sleep(0.01)
    result = tool("mcbuf-recover", server.journal, code=(USAGE, REFUSED))
    check("disk.img" in result.err, result)
    same(read_file(test.path("disk.img")), before, "image")
    qemu.kill()
    qemu.wait()
    tool("mcbuf-recover", server.journal)
    same(read_file(test.path("disk.img")), contents[max(contents)], "image")


def test_killed_recovery(test):
    """Recovery itself killed, again and again: the next one finishes."""
    server, contents = with_backlog(test, 12)
    rng = seeded("test_killed_recovery")
    killed = 0
    began = time.monotonic()
    copy = read_file(test.path("disk.img"))
    shutil.copytree(server.journal, test.path("copy"), ignore=shutil.ignore_patterns("control"))
    tool("mcbuf-recover", server.journal)
    seconds = time.monotonic() - began
    for _ in range(10 if WRAPPER else 40):
        shutil.rmtree(server.journal)
        shutil.copytree(test.path("copy"), server.journal)
        with open(test.path("disk.img"), "wb") as f:
            f.write(copy)
        for _ in range(rng.randint(1, 3)):
            p = subprocess.Popen([tool_path("mcbuf-recover"), server.journal],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 env=environment())
            time.sleep(rng.uniform(0, seconds * 1.2))
            p.kill()
            killed += p.wait() != 0
        answer = tool("mcbuf-recover", "--json", server.journal).json
        equal(answer["checkpoint"], max(contents), "after a killed recovery")
        same(read_file(test.path("disk.img")), contents[max(contents)], "image")
    print("%d recoveries killed" % killed)
    check(killed > 0, "no recovery was killed")


def test_clean_stop(test):
    """After a clean stop the saved speculation is discarded all the same."""
    server = replica(test)
    h = server.connect()
    h.pwrite(b"1" * 8192, 0)
    last = server.commit()["checkpoint"]
    h.pwrite(b"2" * 8192, 0)
    h.shutdown()
    server.stop()
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], last, "checkpoint")
    check(answer["discarded_bytes"] >= 8192, "discarded:", answer)
    equal(read_file(test.path("disk.img"))[:8192], b"1" * 8192, "image")


def test_memory_is_given_back(test):
    """Recovery leaves nothing of the replica in shared memory."""
    server, _ = with_backlog(test)
    check(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), "no shared memory before")
    tool("mcbuf-recover", server.journal)
    equal(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), [], "left in /dev/shm")


def test_large_backlog(test):
    """A backlog of many overlapping epochs: newest wins everywhere."""
    server, contents = with_backlog(test, 40)
    tool("mcbuf-recover", server.journal, code=DONE)
    same(read_file(test.path("disk.img")), contents[max(contents)], "image")


INVARIANTS = "1,6"
main(globals())
