#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A replica as a child of a quorum, the way COLO's primary has its secondary."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import MiB, Server, check, equal, main, same, seeded, skip, tool
from libqemu import (Primary, primary_images, random_writes, replica_images, replica_params)
from qmp import QMPError

SIZE = 16 * MiB


def attach(primary, node):
    primary.qmp.command("x-blockdev-change", parent="d0", node=node)


def first_copy(test, rng):
    """The replica starts from a copy made otherwise: baseline=trusted."""
    images = primary_images(test, rng, 1, SIZE)
    with open(images[0], "rb") as f, open(test.path("replica0.img"), "wb") as g:
        g.write(f.read())
    return images


def cycle(test, rng, primary, server):
    for i in range(4):
        random_writes(rng, primary, 40, SIZE)
        epoch, contents = primary.pause(server, synced=False)
        random_writes(rng, primary, 20, SIZE)
        equal(server.commit(epoch=epoch, label="cp%d" % i)["checkpoint"], epoch, "commit")
    primary.kill()
    server.kill()
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], epoch, "recovered")
    same(replica_images(test, 1)[0], contents[0], "image")


def test_plain_child(test):
    """blockdev-add nbd, x-blockdev-change: each guest write goes to both, synchronously."""
    rng = seeded(test.name)
    primary = Primary(test, first_copy(test, rng), quorum=True)
    server = Server(test, *replica_params(test, 1, SIZE, "baseline=trusted"),
                    journal=test.path("j"))
    primary.add_replica(0, server)
    try:
        attach(primary, "r0")
    except QMPError as error:
        skip("this QEMU cannot add children to a quorum: %s" % error)
    cycle(test, rng, primary, server)


def test_replication_child(test):
    """COLO's own topology: a replication node in mode=primary over the nbd client."""
    rng = seeded(test.name)
    primary = Primary(test, first_copy(test, rng), quorum=True)
    server = Server(test, *replica_params(test, 1, SIZE, "baseline=trusted"),
                    journal=test.path("j"))
    said = primary.qmp.hmp("drive_add -n buddy driver=replication,mode=primary,"
                           "file.driver=nbd,file.path=%s,file.export=,node-name=repl0"
                           % server.sock)
    check("rror" not in said and "nknown" not in said, said)
    attach(primary, "repl0")
    primary.qmp.command("xen-set-replication", enable=True, primary=True)
    cycle(test, rng, primary, server)


def test_child_goes_and_comes(test):
    """The child is taken out and put back: what the replica had at its checkpoint stays."""
    rng = seeded(test.name)
    primary = Primary(test, first_copy(test, rng), quorum=True)
    server = Server(test, *replica_params(test, 1, SIZE, "baseline=trusted"),
                    journal=test.path("j"))
    primary.add_replica(0, server)
    attach(primary, "r0")
    random_writes(rng, primary, 20, SIZE)
    epoch, contents = primary.pause(server, synced=False)
    server.commit(epoch=epoch)
    primary.qmp.command("x-blockdev-change", parent="d0", child="children.1")
    random_writes(rng, primary, 20, SIZE)
    server.drained()
    same(replica_images(test, 1)[0], contents[0], "image")
    primary.kill()


INVARIANTS = "2"
main(globals())
