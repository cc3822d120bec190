#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes of single bytes and across sectors' edges, through QEMU's mirror: what the target has after a commit."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import MiB, Disk, Server, check, equal, main, read_file, same, seeded, tool
from libqemu import Primary, primary_images, replica_images, replica_params

SIZE = 8 * MiB
# Offset, length: a byte, bytes at the edges of sectors, blocks, the disk; some in one sector, one after the other.
PLACES = [(513, 7), (0, 1), (511, 1), (511, 2), (512, 1), (1023, 1026), (4095, 1), (4095, 2), (4096, 1),
          (4097, 4094), (65535, 3), (515, 1), (514, 600), (2 * MiB - 1, 2), (SIZE - 1, 1), (SIZE - 513, 2)]


def ready(test, rng):
    primary = Primary(test, primary_images(test, rng, 1, SIZE))
    server = Server(test, *replica_params(test, 1, SIZE), journal=test.path("j"))
    primary.add_replica(0, server)
    primary.mirror(0)
    primary.wait_ready()
    return primary, server


def write(primary, disk, pattern, offset, length):
    """As a guest with sectors of one byte would."""
    primary.write(0, pattern, offset, length)
    disk.write(offset, bytes([pattern]) * length)


def run(test, online):
    rng = seeded(test.name)
    primary, server = ready(test, rng)
    disk = Disk(SIZE, read_file(primary.images[0]))
    primary.pause(server)
    first = server.commit()["checkpoint"]
    for i, (offset, length) in enumerate(PLACES):
        write(primary, disk, 1 + i, offset, length)
    for _ in range(40):
        length = rng.choice((1, 1, 2, 7, 511, 513, 4095, 4097))
        write(primary, disk, rng.randrange(1, 255), rng.randrange(SIZE - length), length)
    epoch, contents = primary.pause(server)
    same(contents[0], bytes(disk.now), "the primary's own image")
    equal(server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
    check(epoch > first, "epochs", first, epoch)
    committed = bytes(disk.now)
    # The next epoch's bytes, in the same sectors: none of them may be there.
    for i, (offset, length) in enumerate(PLACES):
        write(primary, disk, 201 + i, offset, length)
    primary.kill()
    if online:
        answer = tool("mcbuf-recover", "--wait", "--json", server.journal).json
        server.stop()
    else:
        server.kill()
        answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], epoch, "recovered")
    same(replica_images(test, 1)[0], committed, "the target")


def test_bytes(test):
    """Recovered without a server."""
    run(test, False)


def test_bytes_online(test):
    """Promoted by the server, and drained."""
    run(test, True)


main({"test_bytes": test_bytes, "test_bytes_online": test_bytes_online})
