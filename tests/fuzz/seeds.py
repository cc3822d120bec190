#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Write the hand-made inputs of the corpus, seed-*, into the directories that
are there: fuzz/seeds.py tests/fuzz/corpus.  The others are what the fuzzers
found (make fuzz-merge)."""

import os
import struct
import sys

WORLDS = 11
(LOCAL, REMOTE, REMOTE_READ, REMOTE_AT, STREAM, WRITE, ZERO, READ, FLUSH,
 WRITEOUT, RESTART, KILL, EXTENTS, EXPORT, SPARES, FAULT) = range(16)

IMAGE_CUT = 11                  # of enum damage_op


def frame(sort, payload=b""):
    if isinstance(payload, str):
        payload = payload.encode()
    return struct.pack("<BH", sort, len(payload)) + payload


def data(sort, disk=0, off=0, count=4096):
    return frame(sort, struct.pack("<BHBH", disk, off & 0xffff, off >> 16, count - 1))


def control():
    verbs = ["seal", "commit", "commit epoch=3 generation=1 label=a b", "status",
             "list", "promote", "promote to=2", "promote to=first copy", "resync",
             "resync overwrite", "reset vda@scratch", "shutdown", "commit label=gr\u00fcn",
             "commit epoch=", "commit generation=0", "promote to=", "seal now", "",
             "commit epoch=18446744073709551616", "nonsense"]
    for world in range(WORLDS):
        yield "world-%d" % world, bytes([world]) + b"".join(
            [frame(LOCAL, "status"), data(WRITE), data(ZERO, 1, 512, 5000),
             frame(LOCAL, "seal"), frame(REMOTE, "commit label=x"),
             frame(REMOTE_READ, b"\0\0\0\1"), data(READ, 0, 100, 9000),
             data(EXTENTS, 1, 0, 20000), frame(WRITEOUT), frame(FLUSH),
             frame(RESTART), frame(LOCAL, "list"), frame(KILL, b"\1"),
             frame(LOCAL, "status")])
    for n, verb in enumerate(verbs):
        yield "verb-%d" % n, bytes([n % WORLDS]) + b"".join(
            [data(WRITE), frame(LOCAL, verb), frame(REMOTE, verb + "\n\0"),
             frame(LOCAL, "commit")])
    yield "stream", b"\2" + frame(STREAM, "\n".join(verbs) + "\nseal")
    for n, name in enumerate(["vda", "vda@g1", "vda@g2", "vdb@promoted", "",
                              "mcbuf-control", "vdc", "vda@latest", "vda@2"]):
        yield "export-%d" % n, bytes([n]) + frame(EXPORT, name)
    for n in range(8):
        yield "fault-%d" % n, bytes([n]) + b"".join(
            [frame(FAULT, bytes([n, n])), data(WRITE), frame(LOCAL, "commit"),
             frame(SPARES), frame(WRITEOUT), frame(LOCAL, "promote"), frame(KILL)])
    yield "promoted", b"\6" + b"".join(
        [data(WRITE, 0x80), data(READ, 0x80), frame(FLUSH), frame(WRITEOUT),
         data(WRITE, 0xc0), frame(KILL), data(READ, 0x81), frame(REMOTE_AT, "xxseal")])


def params():
    yield "one", b"/vm/disk.img"
    yield "two", (b"vda:/vm/a.img\ndisk=vdb:/vm/b.img\njournal=/vm/j\njournal-size=1G\n"
                  b"buffer=64M\nsize=20G\nbaseline=trusted")
    for n, line in enumerate(["disk=vda:/a", "disk=:/a", "disk=a:", "size=0", "size=1s",
                              "size=99999999999999999999", "journal-size=15M",
                              "journal-size=17T", "buffer=1K", "journal=", "baseline=no",
                              "disk=mcbuf-control:/x", "disk=" + "n" * 64 + ":/x",
                              "history=1h", "history=100", "history=1w", "add-disk=vdb",
                              "remove-disk=vdb", "add-disk=v:b", "control-secret=s",
                              "control-secret=", "buffer=8E", "size=8E", "\u00e4:/x", "="]):
        yield "line-%d" % n, ("/vm/a\n" + line).encode()
    for n, uri in enumerate(["nbd://", "nbd+unix:///?socket=/s", "nbd+unix:///?socket=s",
                             "nbds://h/vda?tls-certificates=c", "vda:nbd+unix:///x?socket=/s"]):
        yield "uri-%d" % n, (uri + "\njournal=/1").encode()
        yield "uri-alone-%d" % n, uri.encode()
    yield "many", "\n".join("d%d:/%d" % (i, i) for i in range(65)).encode() + b"\njournal=/j"


def recovery():
    for world in range(WORLDS):
        for what in (1, 4, 3, 15, 19):
            yield "world-%d-%d" % (world, what), bytes([world, what])
        # The images cut to what they are, and shorter and back again.
        cut = lambda disk, size: struct.pack("<BBHQ", IMAGE_CUT, 0, disk, size)
        yield "same-size-%d" % world, bytes([world, 4]) + cut(0, 70001) + cut(1, 24576)
        yield "regrown-%d" % world, bytes([world, 4]) + cut(1, 4096) + cut(1, 24576)


def reply():
    status = (b'{"replica":"0123","state":"%s","reason":"a\\u0001b\\n\\"","generation":2,'
              b'"open_epoch":7,"sealed_epochs":1,"checkpoint":{"id":5,"label":"gr\xc3\xbcn",'
              b'"time":"2026-01-31T23:59:59.123Z","extents":3,"bytes":4096},"written_out":4,'
              b'"disks":[{"name":"vda","size":1048576,"backing":"/vm/a\\n.img"}],'
              b'"speculation":{"bytes":1,"extents":1},"writeout":{"bytes":9,"checkpoints":1,'
              b'"error":%s},"journal":{"size":16777216,"used":4194304},'
              b'"buffer":{"size":8388608,"used":4096},"commit_latency_us":{"p50":1,"p99":2,'
              b'"max":3},"connections":%d,"drained":true}\n')
    for n, state in enumerate([b"syncing", b"protected", b"stale", b"resyncing",
                               b"promoted", b"failed", b"?"]):
        yield "status-%d" % n, status % (state, b'"EIO"' if n % 2 else b"null", n % 2)
    yield "refusal", b'{"error":"no\\u009f","code":2}\n'
    yield "commit", b'{"checkpoint":5,"epoch":5,"extents":1,"bytes":2,"latency_us":3}\n'
    yield "sealed", b'{"sealed":5,"open_epoch":6}\n'
    yield "list", (b'{"checkpoints":[{"id":1,"label":null,"time":"x","extents":-1,"bytes":1e300},'
                   b'{"id":2,"label":"\\u0085\\u007f","time":null}],"left_out":3}\n')
    yield "recovered", (b'{"checkpoint":5,"label":"a","discarded_bytes":1,"discarded_epochs":2,'
                        b'"written_bytes":3,"generation":2,"state":"promoted","seconds":0.5}\n')
    yield "junk", b"HTTP/1.1 400 Bad Request\r\n\r\n"
    yield "two", b'{"a":1}\n{"b":2}\n'
    yield "half", b'{"a":'
    yield "duplicate", b'{"a":1,"a":2}\n'
    yield "deep", b"[" * 3000 + b"]" * 3000 + b"\n"


for maker in (control, params, recovery, reply):
    folder = os.path.join(sys.argv[1], maker.__name__)
    os.makedirs(folder, exist_ok=True)
    for title, content in maker():
        with open(os.path.join(folder, "seed-" + title), "wb") as f:
            f.write(content)
