#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""One disk as an NBD client sees it: every kind of request, at every alignment."""

import errno
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (KiB, MiB, Disk, Server, check, equal, main, nbd_errno,
                      random_data, read_all, read_file, same, seeded,
                      sparse_file, write_file)

SIZE = 16 * MiB


def replica(test, size=SIZE, *params):
    return Server(test, sparse_file(test.path("disk.img"), size), "journal-size=64M",
                  "buffer=16M", "baseline=trusted", *params)


def test_handshake(test):
    """What is advertised: size, flags, block sizes."""
    h = replica(test).connect()
    equal(h.get_size(), SIZE, "size")
    equal(h.is_read_only(), False, "read-only")
    for flag in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn"):
        check(getattr(h, "can_" + flag)(), "can_" + flag)
    equal(h.get_block_size(nbd.SIZE_MINIMUM), 1, "minimum block")
    equal(h.get_block_size(nbd.SIZE_PREFERRED), 4096, "preferred block")
    equal(h.get_block_size(nbd.SIZE_MAXIMUM), 32 * MiB, "maximum block")


def test_patterns(test):
    """Write, read back, overwrite in part; nothing else changes."""
    server = replica(test)
    h = server.connect()
    disk = Disk(SIZE)
    rng = seeded("test_patterns")
    # Offsets around the edges of sectors, blocks, 1 MiB chunks and the disk.
    edges = (0, 1, 511, 512, 513, 4095, 4096, 4097, 8191, MiB - 1, MiB, MiB + 1,
             SIZE - 4097, SIZE - 4096, SIZE - 513, SIZE - 512, SIZE - 1)
    lengths = (1, 2, 511, 512, 513, 4095, 4096, 4097, 65536, 100001)
    for offset in edges:
        for length in lengths:
            length = min(length, SIZE - offset)
            data = random_data(rng, length)
            h.pwrite(data, offset)
            disk.write(offset, data)
            low, high = max(0, offset - 600), min(SIZE, offset + length + 600)
            same(bytes(h.pread(high - low, low)), bytes(disk.now[low:high]),
                 "around %d + %d" % (offset, length))
    same(read_all(h), bytes(disk.now), "whole disk")
    same(read_file(test.path("disk.img")), bytes(SIZE), "the image before a commit")
    server.commit()
    same(read_all(h), bytes(disk.now), "whole disk after the commit")
    server.drained()
    same(read_file(test.path("disk.img")), bytes(disk.now), "image")


def test_largest_requests(test):
    """32 MiB in one request."""
    size = 48 * MiB
    server = Server(test, sparse_file(test.path("disk.img"), size),
                    "journal-size=256M", "buffer=32M", "baseline=trusted")
    h = server.connect()
    data = random_data(seeded("test_largest_requests"), 32 * MiB)
    h.pwrite(data, 7 * MiB + 1)
    want = bytes(7 * MiB + 1) + data + bytes(size - 39 * MiB - 1)
    same(bytes(h.pread(32 * MiB, 7 * MiB + 1)), data, "32 MiB")
    h.zero(32 * MiB, 8 * MiB)
    want = want[:8 * MiB] + bytes(32 * MiB) + want[40 * MiB:]
    same(read_all(h), want, "after a zero of 32 MiB")
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), want, "image")


def test_write_larger_than_buffer(test):
    """A request larger than the staging ring goes through, piece by piece."""
    size = 32 * MiB
    server = Server(test, sparse_file(test.path("disk.img"), size),
                    "journal-size=128M", "buffer=8M", "baseline=trusted")
    h = server.connect()
    data = random_data(seeded("test_write_larger_than_buffer"), 24 * MiB)
    h.pwrite(data, 4 * MiB)
    same(bytes(h.pread(24 * MiB, 4 * MiB)), data, "24 MiB through a ring of 8")
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), bytes(4 * MiB) + data + bytes(4 * MiB), "image")


def test_zero_and_trim(test):
    """Zeroes at odd offsets, with every flag, over data in each layer."""
    server = replica(test)
    h = server.connect()
    disk = Disk(SIZE)
    rng = seeded("test_zero_and_trim")

    def fill():
        data = random_data(rng, SIZE)
        h.pwrite(data, 0)
        disk.write(0, data)

    fill()                                  # zeroes over write-out ...
    server.commit()
    server.drained()
    for layer in ("backing", "speculation"):
        if layer == "speculation":
            fill()
        for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FAST_ZERO):
            for offset, length in ((0, 4096), (512, 512), (MiB - 3, 7), (5, 100000),
                                   (SIZE - 1, 1), (2 * MiB, 4 * MiB)):
                offset += rng.randrange(0, 4) * 8192 if offset < SIZE - MiB else 0
                try:
                    h.zero(length, offset, flags)
                except nbd.Error as error:
                    # Slower than writing zeroes: may be refused, then changes nothing.
                    check(flags == nbd.CMD_FLAG_FAST_ZERO, "zero", error)
                    equal(error.errnum, errno.EOPNOTSUPP, "fast zero")
                else:
                    disk.zero(offset, length)
        for offset, length in ((8 * MiB + 1, 5000), (9 * MiB, MiB), (SIZE - 4096, 4096)):
            h.trim(length, offset)
            disk.zero(offset, length)
        same(read_all(h), bytes(disk.now), "zeroes over", layer)
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), bytes(disk.now), "image")


def test_flush_and_fua(test):
    """Flush, FUA and cache are answered and change nothing."""
    h = replica(test).connect()
    h.pwrite(b"a" * 4096, 0, nbd.CMD_FLAG_FUA)
    h.flush()
    h.cache(SIZE, 0)
    h.trim(4096, 4096, nbd.CMD_FLAG_FUA)
    equal(bytes(h.pread(8192, 0)), b"a" * 4096 + bytes(4096), "content")


def extents(h, size):
    found = []

    def add(context, offset, entries, error):
        equal(context, "base:allocation", "context")
        for length, kind in zip(entries[::2], entries[1::2]):
            found.append((offset, length, kind))
            offset += length
        return 0

    at = 0
    while at < size:
        h.block_status(size - at, at, add)
        check(found[-1][0] + found[-1][1] > at, "block status goes on", found)
        at = found[-1][0] + found[-1][1]
    merged = []
    for offset, length, kind in found:
        if merged and merged[-1][2] == kind:
            merged[-1] = (merged[-1][0], merged[-1][1] + length, kind)
        else:
            merged.append((offset, length, kind))
    return merged


def test_extents(test):
    """Holes of the backing image that nobody wrote to read as holes."""
    with open(sparse_file(test.path("disk.img"), SIZE), "r+b") as f:
        f.seek(4 * MiB)
        f.write(b"b" * MiB)
    server = Server(test, test.path("disk.img"), "journal-size=64M", "buffer=16M",
                    "baseline=trusted")
    h = server.connect(block_status=True)
    data, hole = 0, nbd.STATE_HOLE | nbd.STATE_ZERO
    untouched = [(0, 4 * MiB, hole), (4 * MiB, MiB, data), (5 * MiB, 11 * MiB, hole)]
    equal(extents(h, SIZE), untouched, "untouched")
    h.pwrite(b"s" * 65536, 8 * MiB)
    spoken = [(0, 4 * MiB, hole), (4 * MiB, MiB, data), (5 * MiB, 3 * MiB, hole),
              (8 * MiB, 65536, data), (8 * MiB + 65536, 8 * MiB - 65536, hole)]
    equal(extents(h, SIZE), spoken, "with speculation")
    server.commit()
    server.drained()
    equal(extents(h, SIZE), spoken, "written out")
    # Data that a trim has covered is no data, whatever the layer below holds.
    h.trim(MiB, 4 * MiB)
    for offset, length, kind in extents(h, SIZE):
        if offset <= 4 * MiB < offset + length:
            check(kind & nbd.STATE_ZERO, "trimmed range:", offset, length, kind)
            break


def test_extents_of_odd_writes(test):
    """What block status calls a zero reads as zero, to the byte."""
    server = replica(test)
    h = server.connect(block_status=True)
    rng = seeded("test_extents_of_odd_writes")
    for _ in range(60):
        offset = rng.randrange(0, SIZE - 70000)
        length = rng.randrange(1, 70000)
        rng.choice((lambda: h.pwrite(b"x" * length, offset),
                    lambda: h.zero(length, offset),
                    lambda: h.trim(length, offset)))()
        if rng.random() < 0.1:
            server.commit()
    content = read_all(h)
    covered = 0
    for offset, length, kind in extents(h, SIZE):
        covered += length
        if kind & nbd.STATE_ZERO:
            check(not any(content[offset:offset + length]),
                  "not zero:", offset, length)
    equal(covered, SIZE, "covered by block status")


def test_out_of_range(test):
    """Requests over the end are refused and change nothing."""
    h = replica(test).connect()
    check(nbd_errno(h.pwrite, b"x" * 512, SIZE - 511) in (errno.ENOSPC, errno.EINVAL), "write")
    check(nbd_errno(h.pread, 512, SIZE - 511) == errno.EINVAL, "read")
    check(nbd_errno(h.zero, 2, SIZE - 1) in (errno.ENOSPC, errno.EINVAL), "zero")
    equal(bytes(h.pread(512, SIZE - 512)), bytes(512), "the end of the disk")


def test_odd_size(test):
    """A disk that ends within a sector is served to its last byte."""
    size = 3 * MiB + 4096 + 513
    server = replica(test, size)
    h = server.connect()
    equal(h.get_size(), size, "size")
    h.pwrite(b"end", size - 3)
    equal(bytes(h.pread(10, size - 10)), bytes(7) + b"end", "the end")
    server.commit()
    server.drained()
    same(read_file(test.path("disk.img")), bytes(size - 3) + b"end", "image")


def test_two_connections(test):
    """Multi-conn: one connection's write is another's read."""
    server = replica(test)
    handles = [server.connect() for _ in range(4)]
    for i, h in enumerate(handles):
        h.pwrite(bytes([i + 1]) * 4096, i * 4096)
    want = b"".join(bytes([i + 1]) * 4096 for i in range(4))
    for h in handles:
        equal(bytes(h.pread(16384, 0)), want, "content")
    handles[0].flush()
    check(server.status()["connections"] >= 4, "connections", server.status()["connections"])


def test_image_content_is_served(test):
    """What the image held before shows, and partly covered ranges are stitched."""
    rng = seeded("test_image_content_is_served")
    old = random_data(rng, SIZE)
    write_file(test.path("disk.img"), old)
    server = Server(test, test.path("disk.img"), "journal-size=64M", "buffer=16M",
                    "baseline=trusted")
    h = server.connect()
    same(read_all(h), old, "before")
    h.pwrite(b"1" * 3, 4097)            # write-out
    server.commit()
    h.pwrite(b"2" * 700, 5000)          # speculation
    want = bytearray(old)
    want[4097:4100] = b"111"
    want[5000:5700] = b"2" * 700
    same(bytes(h.pread(20 * KiB, 0)), bytes(want[:20 * KiB]), "stitched")
    for at in range(4090, 5800, 13):
        equal(bytes(h.pread(29, at)), bytes(want[at:at + 29]), "at", at)


INVARIANTS = "5"
main(globals())
