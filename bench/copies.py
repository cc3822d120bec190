# SPDX-License-Identifier: BSD-3-Clause
"""Whole disks, copied as QEMU's mirror does it: one connection, 16 requests of 1 MiB, holes as zeroes.

nbdcopy reads the disk from a file in the page cache; what is measured is how fast it is taken.
"""

import os
import shutil
import time

from benchlib import MiB, run, sync_file, unix_uri, write_image
from peer_mcbuf import Mcbuf

PIECE = 16 * MiB                # data and holes take turns


def has_nbdcopy():
    return shutil.which("nbdcopy") is not None


def half_holes(bench, size):
    """A disk half of which was never written to; made once, for what was just written disturbs what is measured."""
    path = bench.path("half-holes-%d" % size)
    if os.path.exists(path):
        return path
    piece = os.urandom(min(PIECE, size // 2))
    with open(path, "wb") as f:
        f.truncate(size)
        for at in range(0, size, 2 * len(piece)):
            f.seek(at)
            f.write(piece)
        f.flush()
        os.fsync(f.fileno())
    return path


def copy(source, uri):
    """Seconds, until it is flushed."""
    began = time.monotonic()
    run(["nbdcopy", "--connections=1", "--requests=16", "--threads=1", "--request-size=%d" % MiB,
         "--flush", source, uri])
    return time.monotonic() - began


def copy_to_file(bench, source, path):
    """The same by nbdkit file, into PATH."""
    process, sock = bench.nbdkit("file", path)
    try:
        return copy(source, unix_uri(sock))
    finally:
        bench.end(process)


def in_turn(round_, first, second):
    """What both return; who is first changes with the round."""
    if round_ % 2:
        return first(), second()
    other = second()
    return first(), other


def figures_of(size, own, other, **more):
    return dict({"mb_s": size / own / 1e6, "file_mb_s": size / other / 1e6, "ratio": other / own},
                **more)


def first_copy(bench, size, buffer, round_):
    """Into an empty image, in "syncing", beside nbdkit file; the commit that ends it is apart."""
    source, other = half_holes(bench, size), bench.unique("copy")
    server = None
    try:
        write_image(other, size, sparse=True)
        server = Mcbuf(bench, size, journal_size=64 * MiB, buffer=buffer, sparse=True,
                       baseline=False).start()
        own, file = in_turn(round_, lambda: copy(source, server.uris()[0]),
                            lambda: copy_to_file(bench, source, other))
        began = time.monotonic()
        server.commit()
        commit = time.monotonic() - began
        image, = server.images.values()
        return figures_of(size, own, file, commit_us=commit * 1e6,
                          allocated_ratio=os.stat(image).st_blocks / os.stat(other).st_blocks)
    finally:
        if server:
            server.stop()
        remove(other)


def resync(bench, size, buffer, round_):
    """An unchanged disk once more, over a checkpoint that stays, beside a plain copy by nbdkit file."""
    source = bench.unique("source")
    other = bench.unique("copy")
    server = None
    try:
        server = Mcbuf(bench, size, journal_size=max(64 * MiB, size // 4), buffer=buffer).start()
        image, = server.images.values()
        for path in (source, other):
            shutil.copyfile(image, path)
            sync_file(path)
        server.request("resync")
        before = server.status()["journal"]["used"]
        own, file = in_turn(round_, lambda: copy(source, server.uris()[0]),
                            lambda: copy_to_file(bench, source, other))
        used = server.status()["journal"]["used"]
        extents = server.status()["speculation"]["extents"]
        server.commit()
        return figures_of(size, own, file, journal_mib=used / MiB,
                          journal_grew_mib=(used - before) / MiB, extents_taken=extents)
    finally:
        if server:
            server.stop()
        remove(source, other)


def remove(*paths):
    for path in paths:
        if os.path.exists(path):
            os.unlink(path)
