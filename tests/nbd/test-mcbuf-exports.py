#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Several disks of one replica as exports, and names that are none."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (MiB, Server, check, connect_errno, done, equal, main,
                      nbd_errno, read_file, same, sparse_file, tool,
                      write_file)

SIZES = {"vda": 4 * MiB, "vdb.data": 6 * MiB, "c_3-x": 5 * MiB}


def replica(test, *params):
    return Server(test, *["disk=%s:%s" % (n, sparse_file(test.path(n + ".img"), s))
                          for n, s in SIZES.items()],
                  "journal=" + test.path("vm1.mcbuf"), "journal-size=64M",
                  "buffer=16M", *params)


def listed(server):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(server.sock)
    names = []
    h.opt_list(lambda name, description: names.append(name) or 0)
    h.opt_abort()
    return names


def test_disks(test):
    """Each disk has its name, its size and its own content."""
    server = replica(test, "baseline=trusted")
    handles = {n: server.connect(n) for n in SIZES}
    for n, h in handles.items():
        equal(h.get_size(), SIZES[n], "size of", n)
        h.pwrite(n.encode() * 1000, 4096)
    for n, h in handles.items():
        equal(bytes(h.pread(len(n) * 1000, 4096)), n.encode() * 1000, n)
    server.commit()
    server.drained()
    for n, size in SIZES.items():
        data = n.encode() * 1000
        same(read_file(test.path(n + ".img")),
             bytes(4096) + data + bytes(size - 4096 - len(data)), "image of", n)


def test_commit_covers_all_disks(test):
    """One commit, one epoch number, all disks."""
    server = replica(test, "baseline=trusted")
    handles = {n: server.connect(n) for n in SIZES}
    for n, h in handles.items():
        h.pwrite(b"1" * 4096, 0)
    epoch = server.seal()
    for n, h in handles.items():
        h.pwrite(b"2" * 4096, 0)
    reply = server.commit(epoch=epoch)
    equal(reply["bytes"], 3 * 4096, "bytes of the commit")
    server.kill()
    tool("mcbuf-recover", server.journal)
    for n in SIZES:
        equal(read_file(test.path(n + ".img"))[:4096], b"1" * 4096, n)


def test_status_names_disks(test):
    """status tells each disk's name, size and image."""
    server = replica(test)
    disks = {d["name"]: d for d in server.status()["disks"]}
    equal(sorted(disks), sorted(SIZES), "names")
    for n, d in disks.items():
        equal(d["size"], SIZES[n], "size of", n)
        equal(d["backing"], test.path(n + ".img"), "image of", n)


def test_list(test):
    """The list of exports has the disks and the control export."""
    names = listed(replica(test))
    for n in list(SIZES) + ["mcbuf-control"]:
        check(n in names, n, "not in", names)
    equal(len(names), len(set(names)), "an export twice:", names)


def test_default_export(test):
    """With one unnamed disk the default export is the disk."""
    server = Server(test, sparse_file(test.path("disk.img"), 4 * MiB), "journal-size=32M",
                    "buffer=8M")
    equal(server.connect("").get_size(), 4 * MiB, "size")
    check("" in listed(server), "the default export is listed")


def test_generation_in_the_name(test):
    """NAME@gG works while the generation is G, and only then."""
    server = replica(test, "baseline=trusted")
    equal(server.status()["generation"], 1, "generation")
    h = server.connect("vda@g1")
    h.pwrite(b"g" * 512, 0)
    equal(bytes(server.connect("vda").pread(512, 0)), b"g" * 512, "the same disk")
    for name in ("vda@g2", "vda@g0"):
        try:
            other = server.connect(name)
        except nbd.Error:
            continue
        check(nbd_errno(other.pwrite, b"x" * 512, 0) != 0, name, "takes writes")


def test_unknown_names(test):
    """No export under any other name, and the server lives on."""
    server = replica(test, "baseline=trusted")
    for name in ("nosuch", "vd", "vdaa", "vda@", "vda@g", "vda@gx", "vda@g1x",
                 "vda@g-1", "vda@g99999999999999999999999", "@g1", "vda@promoted",
                 "nosuch@promoted", "vda@nonsense", "VDA", "vda/", "../vda",
                 "mcbuf-control@g1", "x" * 4000, "ä@1"):
        check(connect_errno(server, name) != 0, name, "can be opened")
    server.connect("vda").pwrite(b"x", 0)


def test_control_export(test):
    """seal, commit and status by a write and a read at offset 0; the rest is refused."""
    server = replica(test, "baseline=trusted")
    h = server.connect("mcbuf-control")
    equal(h.get_size(), 65536, "size")

    def ask(request, errnum=0):
        equal(nbd_errno(h.pwrite, request, 0), errnum, request)
        text = bytes(h.pread(65536, 0)).rstrip(b"\0").decode()
        equal(text.count("\n"), 0, "lines in", text)
        return json.loads(text)

    equal(ask(b"status")["state"], "protected", "state")
    server.connect("vda").pwrite(b"c" * 512, 0)
    epoch = ask(b"seal")["sealed"]
    equal(ask(b"commit epoch=%d label=by NBD\n" % epoch)["checkpoint"], epoch, "commit")
    equal(server.status()["checkpoint"]["label"], "by NBD", "label")
    equal(ask(b"commit epoch=%d\0\0\0" % epoch)["checkpoint"], epoch, "again")
    done(ask(b"list"))
    # A refusal has an errno and leaves its reply to be read.
    for verb in (b"promote", b"shutdown", b"nonsense", b"", b"commit epoch=x",
                 b"commit epoch=%d" % (epoch + 1), b"\xff\xfe", b"seal seal"):
        check(nbd_errno(h.pwrite, verb, 0) != 0, verb, "is not refused")
        reply = json.loads(bytes(h.pread(65536, 0)).rstrip(b"\0"))
        check("error" in reply and reply["code"] in (1, 2), verb, reply)
    equal(server.status()["state"], "protected", "state")
    # The reply belongs to the connection.
    other = server.connect("mcbuf-control")
    other.pwrite(b"status", 0)
    check("error" in json.loads(bytes(h.pread(65536, 0)).rstrip(b"\0")), "mixed up replies")
    # Anything but a request at offset 0 is an error, not a crash.
    check(nbd_errno(h.pwrite, b"status", 4096) != 0, "a write elsewhere")
    ask(b"status")


def test_many_disks(test):
    """Sixteen disks."""
    names = ["d%02d" % i for i in range(16)]
    for n in names:
        write_file(test.path(n), n.encode() + bytes(MiB - 3))
    server = Server(test, *["disk=%s:%s" % (n, test.path(n)) for n in names],
                    "journal=" + test.path("j"), "journal-size=32M", "buffer=8M",
                    "baseline=trusted")
    for n in names:
        equal(bytes(server.connect(n).pread(3, 0)), n.encode(), n)


INVARIANTS = "2"
main(globals())
