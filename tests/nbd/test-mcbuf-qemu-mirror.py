#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's real blockdev-mirror into a replica, and failover to what it had at a checkpoint."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, MiB, REFUSED, SLOW, Faults, Server, check, equal, main,
                      poll, read_file, same, seeded, tool)
from libqemu import (Primary, exports, primary_images, random_writes, replica_images,
                     replica_params)
from qmp import QMPError

SIZE = 16 * MiB


def run(test, ndisks=1, discard="unmap", target_discard="unmap", soon=False):
    """Writes before, during and after READY, checkpoints, writes, SIGKILL, recover, compare."""
    rng = seeded(test.name)
    primary = Primary(test, primary_images(test, rng, ndisks, SIZE), discard=discard)
    server = Server(test, *replica_params(test, ndisks, SIZE), journal=test.path("j"))
    random_writes(rng, primary, 20, SIZE)               # before the mirror
    for i, export in enumerate(exports(ndisks)):
        primary.add_replica(i, server, export, discard=target_discard)
        # Slow enough that the guest writes into the first copy.
        primary.mirror(i, speed=8 * MiB)
    during = 0
    while not all(primary.qmp.job("m%d" % i)["ready"] for i in range(ndisks)):
        random_writes(rng, primary, 3, SIZE)
        during += 3
        for i in range(ndisks):
            if during == 30:
                primary.qmp.command("block-job-set-speed", device="m%d" % i, speed=0)
    primary.wait_ready()
    check(during > 0, "no write fell into the first copy")
    for i in range(ndisks):
        primary.qmp.command("block-job-set-speed", device="m%d" % i, speed=0)

    epochs = []
    for i in range(4):
        random_writes(rng, primary, 40, SIZE)
        if soon:
            random_writes(rng, primary, 20, SIZE, soon=True)
        epoch, contents = primary.pause(server)
        random_writes(rng, primary, 20, SIZE)           # the next epoch's
        equal(server.commit(epoch=epoch, label="cp%d" % i)["checkpoint"], epoch, "commit")
        epochs.append(epoch)
    equal(epochs, list(range(epochs[0], epochs[0] + 4)), "epochs")
    random_writes(rng, primary, 60, SIZE)
    primary.kill()
    last = [read_file(p) for p in primary.images]
    check(last != contents, "nothing was written after the checkpoint")
    if rng.random() < 0.5:
        answer = tool("mcbuf-recover", "--wait", "--json", server.journal).json
        server.stop()
    else:
        server.kill()
        answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], epochs[-1], "recovered")
    for i, image in enumerate(replica_images(test, ndisks)):
        same(image, contents[i], "disk", i)
    # And QEMU starts on the result.
    second = Primary(test, [test.path("replica%d.img" % i) for i in range(ndisks)])
    second.write(0, 7, 0, 512)
    second.kill()


def test_mirror(test):
    """One disk."""
    run(test)


def test_mirror_three_disks(test):
    """Three disks commit together."""
    run(test, ndisks=3)


def test_mirror_without_unmap(test):
    """discard=ignore on both sides."""
    run(test, discard="ignore", target_discard="ignore")


def test_mirror_in_flight(test):
    """Writes are in flight when the guest is stopped; stop drains them."""
    run(test, soon=True)


def mirrored(test, rng, **options):
    primary = Primary(test, primary_images(test, rng, 1, SIZE))
    server = Server(test, *replica_params(test, 1, SIZE), journal=test.path("j"), **options)
    primary.add_replica(0, server)
    primary.mirror(0)
    primary.wait_ready()
    return primary, server


def test_first_copy_does_not_fill_the_journal(test):
    """The mirror's first copy, larger than the journal, goes through."""
    rng = seeded(test.name)
    size = 64 * MiB
    images = [test.path("primary0.img")]
    with open(images[0], "wb") as f:
        f.write(rng.randbytes(size))
    primary = Primary(test, images)
    server = Server(test, test.path("replica0.img"), "size=%d" % size, "journal-size=32M",
                    "buffer=8M")
    primary.add_replica(0, server)
    primary.mirror(0)
    primary.wait_ready()
    epoch, contents = primary.pause(server)
    server.commit(epoch=epoch)
    same(read_file(test.path("replica0.img")), contents[0], "image")


def test_server_restart(test):
    """The server is killed and started again under the mirror: QEMU reconnects, nothing is lost."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    epoch, _ = primary.pause(server)
    server.commit(epoch=epoch)
    for end in ("first kill", "second kill"):
        random_writes(rng, primary, 30, SIZE)
        server.kill()
        # In flight while there is no server; QEMU waits for it to come back.
        random_writes(rng, primary, 5, SIZE, soon=True)
        server.start()
        random_writes(rng, primary, 30, SIZE)
        equal(server.status()["state"], "protected", "state after", end)
        equal(primary.qmp.job("m0")["status"], "ready", "job after", end)
        epoch, contents = primary.pause(server)
        server.commit(epoch=epoch)
        server.drained()
        same(replica_images(test, 1)[0], contents[0], "image after", end)
    primary.kill()


def test_lost_writes_are_not_hidden(test):
    """A server that lost acknowledged writes fails the mirror, where QEMU would notice nothing."""
    rng = seeded(test.name)
    faults = Faults(test)
    primary, server = mirrored(test, rng, env=faults.env, preload=faults.preload)
    epoch, contents = primary.pause(server)
    server.commit(epoch=epoch)
    random_writes(rng, primary, 30, SIZE)
    faults.reboot(server)
    server.start()
    equal(server.status()["state"], "stale", "state")
    primary.write_soon(0, 1, 0, 512)
    primary.write_soon(0, 1, 4096, 512)
    data = primary.job_error(0)
    check(data.get("error"), "the job ended without an error:", data)
    primary.io(0, "write -P 5 0 512")                   # the guest itself goes on
    tool("mcbuf-commit", server.journal, code=REFUSED)
    primary.kill()
    answer = tool("mcbuf-recover", "--wait", "--json", server.journal).json
    equal(answer["checkpoint"], epoch, "recovered")
    same(replica_images(test, 1)[0], contents[0], "image")


def test_promote_fails_the_mirror(test):
    """An old primary that lives on is fenced: its job fails, also when it starts a new one."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    epoch, contents = primary.pause(server)
    server.commit(epoch=epoch)
    tool("mcbuf-recover", "--wait", server.journal)
    primary.write_soon(0, 9, 0, 512)
    check(primary.job_error(0).get("error"), "the job goes on")
    try:
        primary.qmp.command("blockdev-add", driver="nbd", node_name="again", export="",
                            server={"type": "unix", "path": server.sock})
        primary.qmp.command("blockdev-mirror", job_id="m0", device="d0", target="again",
                            sync="full", copy_mode="write-blocking")
        check(primary.job_error(0).get("error"), "a new mirror goes on")
    except QMPError:
        pass
    primary.kill()
    same(replica_images(test, 1)[0], contents[0], "image")


def test_job_ends_well(test):
    """Cancelling the mirror leaves the replica as it was, ready for the next one."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    epoch, contents = primary.pause(server)
    server.commit(epoch=epoch)
    random_writes(rng, primary, 20, SIZE)
    primary.qmp.command("block-job-cancel", device="m0", force=True)
    poll("the job to end", lambda: primary.qmp.job("m0") is None)
    server.drained()
    same(replica_images(test, 1)[0], contents[0], "image after the job")
    primary.mirror(0)
    primary.wait_ready()
    epoch, contents = primary.pause(server)
    server.commit(epoch=epoch)
    server.drained()
    same(replica_images(test, 1)[0], contents[0], "image after a second copy")
    primary.kill()


def test_commit_by_tool(test):
    """Twenty checkpoints in a row by mcbuf-commit, the primary writing all the time."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    for _ in range(5 if SLOW > 1 else 20):
        random_writes(rng, primary, 5, SIZE)
        primary.qmp.command("stop")
        primary.qmp.wait_synced("m0")
        epoch = tool("mcbuf-commit", "--seal", "--json", server.journal).json["sealed"]
        content = read_file(primary.images[0])
        primary.qmp.command("cont")
        random_writes(rng, primary, 5, SIZE)
        tool("mcbuf-commit", "--epoch=%d" % epoch, server.journal, code=DONE)
    primary.kill()
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], epoch, "recovered")
    same(replica_images(test, 1)[0], content, "image")


INVARIANTS = "1,2"
main(globals())
