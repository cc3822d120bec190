#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A real QEMU as the primary: restarts of the server under its mirror, and an old primary that comes back."""

import glob
import os
import struct
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, REFUSED, Control, Faults, Server, check, done, equal, main, poll,
                      read_file, same, seeded, tool)
from libqemu import Primary, primary_images, random_writes, replica_images, replica_params
from qmp import QMPError

SIZE = 8 * MiB


def mirrored(test, rng, export="", **options):
    primary = Primary(test, primary_images(test, rng, 1, SIZE))
    server = Server(test, *replica_params(test, 1, SIZE), journal=test.path("j"), **options)
    primary.add_replica(0, server, export, reconnect=60)
    primary.mirror(0)
    primary.wait_ready()
    return primary, server


def checkpoint(primary, server, label=None):
    epoch, contents = primary.pause(server)
    equal(server.commit(epoch=epoch, label=label)["checkpoint"], epoch, "commit")
    return epoch, contents[0]


def is_image(test, server, content, *what):
    server.drained()
    same(replica_images(test, 1)[0], content, "image", *what)


# --- the server is killed, and started again ------------------------------------

def test_killed_in_flight(test):
    """SIGKILL with requests on their way, which QEMU sends again: the next commit is right."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    checkpoint(primary, server)
    for i in range(3):
        random_writes(rng, primary, 10, SIZE)
        random_writes(rng, primary, 40, SIZE, soon=True)        # some are answered, some are not
        server.kill()
        random_writes(rng, primary, 10, SIZE, soon=True)
        server.start()
        random_writes(rng, primary, 10, SIZE)
        equal(primary.qmp.job("m0")["status"], "ready", "job after kill", i)
        equal(server.status()["state"], "protected", "state after kill", i)
        _, content = checkpoint(primary, server)
        is_image(test, server, content, "after kill", i)
    primary.kill()


def test_killed_in_a_commit(test):
    """SIGKILL while it commits: asked again by its number, the commit is as good as ever."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    checkpoint(primary, server)
    answers = []
    for i in range(6):
        random_writes(rng, primary, 40, SIZE)
        epoch, contents = primary.pause(server)
        random_writes(rng, primary, 10, SIZE, soon=True)
        with Control(server.journal) as control:
            control.send("commit epoch=%d label=try %d" % (epoch, i))
            time.sleep(rng.random() * 0.004)
            server.kill()
            answers.append(control.receive() is not None)
        server.start()
        s = server.status()
        check(not answers[-1] or s["checkpoint"]["id"] == epoch, "an acknowledged commit is gone:", s)
        reply = tool("mcbuf-commit", "--json", "--epoch=%d" % epoch, server.uri()).json
        equal(reply["checkpoint"], epoch, "asked again")
        is_image(test, server, contents[0], "after", i)
        equal(primary.qmp.job("m0")["status"], "ready", "job", i)
    print("answered before the end:", answers)
    primary.kill()


def test_clean_stop(test):
    """A clean stop under a mirror ends the job, and loses nothing."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    epoch, content = checkpoint(primary, server)
    random_writes(rng, primary, 20, SIZE)
    server.process.terminate()
    # nbdkit waits for its client, and refuses what it still sends: the job ends.
    check(primary.job_refused(0).get("error"), "the job ended without an error")
    primary.qmp.command("blockdev-del", node_name="r0")
    server.wait_end()
    equal(glob.glob("/dev/shm/mcbuf-%s*" % server.replica), [], "left in memory")
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("protected", epoch), "status", s)
    is_image(test, server, content, "after a clean stop")
    primary.add_replica(0, server)
    primary.mirror(0)
    primary.wait_ready()
    random_writes(rng, primary, 20, SIZE)
    _, content = checkpoint(primary, server)
    is_image(test, server, content, "after the new mirror")
    primary.kill()


def leads_back(test, rng, primary, server, epoch, content):
    """Stale under a mirror: the job fails, commits are refused, resync and a new mirror lead back."""
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("stale", epoch), "status", s)
    primary.write_soon(0, 1, 0, 512)
    check(primary.job_error(0).get("error"), "the job ended without an error")
    primary.io(0, "write -P 5 4096 512")                # the guest itself goes on
    for target in (server.journal, server.uri()):
        result = tool("mcbuf-commit", target, code=REFUSED)
        check("stale" in result.err and "resync" in result.err, result)
        tool("mcbuf-commit", "--seal", target, code=REFUSED)
    is_image(test, server, content, "while stale")
    primary.qmp.command("blockdev-del", node_name="r0")
    # A new mirror without a resync gets nowhere: it cannot pass the hole.
    try:
        primary.add_replica(0, server, reconnect=0)
        primary.mirror(0)
        check(primary.job_error(0).get("error"), "a new mirror goes on")
    except QMPError:
        pass
    primary.qmp.command("blockdev-del", node_name="r0")

    tool("mcbuf-ctl", server.uri(), "resync")
    equal(server.status()["state"], "resyncing", "state")
    primary.add_replica(0, server)
    primary.mirror(0)
    random_writes(rng, primary, 20, SIZE)               # into the copy
    equal(tool("mcbuf-recover", "--dry-run", "--json", server.journal).json["checkpoint"], epoch,
          "recoverable meanwhile")
    primary.wait_ready()
    random_writes(rng, primary, 20, SIZE)
    last, content = checkpoint(primary, server)
    check(last > epoch, "checkpoint", last, "after", epoch)
    equal(server.status()["state"], "protected", "state")
    is_image(test, server, content, "after the resync")
    random_writes(rng, primary, 20, SIZE)
    primary.kill()
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], last, "recovered")
    same(replica_images(test, 1)[0], content, "recovered image")


def test_reboot(test):
    """The standby's host went down: stale, visibly, and back."""
    rng = seeded(test.name)
    faults = Faults(test)
    primary, server = mirrored(test, rng, env=faults.env, preload=faults.preload)
    epoch, content = checkpoint(primary, server)
    random_writes(rng, primary, 30, SIZE)
    faults.reboot(server)
    server.start()
    leads_back(test, rng, primary, server, epoch, content)


def test_reboot_with_nothing_to_lose(test):
    """Stopped cleanly before: still protected after the reboot, for any mirror."""
    rng = seeded(test.name)
    faults = Faults(test)
    primary, server = mirrored(test, rng, env=faults.env, preload=faults.preload)
    epoch, content = checkpoint(primary, server)
    primary.qmp.command("block-job-cancel", device="m0", force=True)
    poll("the job to end", lambda: primary.qmp.job("m0") is None)
    primary.qmp.command("blockdev-del", node_name="r0")
    server.stop()
    faults.new_boot()
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"]), ("protected", epoch), "status", s)
    is_image(test, server, content, "after the reboot")
    primary.add_replica(0, server)
    primary.mirror(0)
    primary.wait_ready()
    random_writes(rng, primary, 20, SIZE)
    _, content = checkpoint(primary, server)
    is_image(test, server, content, "the next one")
    primary.kill()


def test_upgrade(test):
    """Another version of the shared memory under a mirror: stale, and why, and back."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    epoch, content = checkpoint(primary, server)
    random_writes(rng, primary, 30, SIZE)
    server.kill()
    path, = glob.glob("/dev/shm/mcbuf-%s" % server.replica)
    with open(path, "r+b") as f:
        f.seek(8)
        f.write(struct.pack("<I", 2))
    server.start()
    check("version 2" in server.status()["reason"], server.status()["reason"])
    leads_back(test, rng, primary, server, epoch, content)


def test_killed_in_the_first_copy(test):
    """In syncing too: the copy goes on after the reconnect."""
    rng = seeded(test.name)
    primary = Primary(test, primary_images(test, rng, 1, SIZE))
    server = Server(test, *replica_params(test, 1, SIZE), journal=test.path("j"))
    primary.add_replica(0, server, reconnect=60)
    primary.mirror(0, speed=4 * MiB)
    for _ in range(2):
        random_writes(rng, primary, 5, SIZE)
        server.kill()
        random_writes(rng, primary, 5, SIZE, soon=True)
        server.start()
        equal(server.status()["state"], "syncing", "state")
    primary.qmp.command("block-job-set-speed", device="m0", speed=0)
    primary.wait_ready()
    random_writes(rng, primary, 10, SIZE)
    _, content = checkpoint(primary, server)
    is_image(test, server, content, "after the first copy")
    primary.kill()


# --- an old primary comes back ------------------------------------------------------

def fenced(primary, server, seen, *generations):
    """Its job fails, and a line of the log names GENERATIONS."""
    check(primary.job_error(0).get("error"), "the job ended without an error")
    lines = server.said()[seen:].splitlines()
    check(any(all("generation %d" % g in line for g in generations) for line in lines),
          "no line names", generations, "in", lines)


def test_fenced_on_the_old_connection(test):
    """Promoted under its hands."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng)
    _, content = checkpoint(primary, server)
    random_writes(rng, primary, 20, SIZE)
    seen = len(server.said())
    tool("mcbuf-recover", "--wait", server.journal)
    primary.write_soon(0, 9, 0, 512)
    fenced(primary, server, seen, 1, 2)
    for target in (server.uri(), server.journal):
        result = tool("mcbuf-commit", "--generation=1", target, code=REFUSED)
        check("generation 1" in result.err and "generation 2" in result.err, result)
    primary.kill()
    same(replica_images(test, 1)[0], content, "image")


def fail_over_offline(test, server, content):
    """The server dies, and the fail-over is made without it."""
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(replica_images(test, 1)[0], content, "recovered image")


def test_fenced_on_a_new_connection(test):
    """QEMU's reconnect-delay brings it back to a server that was promoted meanwhile."""
    rng = seeded(test.name)
    for export in ("", "@g1"):
        primary, server = mirrored(test, rng, export)
        _, content = checkpoint(primary, server)
        random_writes(rng, primary, 20, SIZE)
        fail_over_offline(test, server, content)
        primary.write_soon(0, 9, 0, 512)                # waits for the server
        seen = len(server.said())
        server.start()
        fenced(primary, server, seen, 1, 2)
        primary.kill()
        server.stop()
        same(replica_images(test, 1)[0], content, "image, inlet", repr(export))
        for name in os.listdir(server.journal):
            os.unlink(os.path.join(server.journal, name))
        os.unlink(test.path("replica0.img"))


def test_fenced_from_a_standby_again(test):
    """The host is a standby again when it reconnects: NAME@g1 and generation=1 hold."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng, "@g1")
    _, content = checkpoint(primary, server)
    random_writes(rng, primary, 20, SIZE)
    fail_over_offline(test, server, content)
    primary.write_soon(0, 9, 0, 512)
    # It finds no server until this one is a standby: its socket is made known only then.
    known, server.sock = server.sock, server.sock + "-hidden"
    server.start()
    tool("mcbuf-ctl", server.journal, "resync", "overwrite")
    new = Primary(test, [new_disk(test, rng)])
    new.add_replica(0, server, "@g2")
    new.mirror(0)
    new.wait_ready()
    epoch, content = checkpoint(new, server)
    seen = len(server.said())
    if os.path.exists(known):
        os.unlink(known)
    os.symlink(server.sock, known)
    fenced(primary, server, seen, 1, 2)
    for target in (server.uri(), server.journal):
        result = tool("mcbuf-commit", "--generation=1", target, code=REFUSED)
        check("generation 1" in result.err and "generation 2" in result.err, result)
    tool("mcbuf-commit", "--generation=2", server.uri())
    primary.kill()
    random_writes(rng, new, 20, SIZE)                   # the new primary was not disturbed
    equal(new.qmp.job("m0")["status"], "ready", "the new primary's job")
    last, content = checkpoint(new, server)
    check(last > epoch, "epochs")
    is_image(test, server, content, "of the new primary")
    new.kill()


def new_disk(test, rng):
    path = test.path("new.img")
    with open(path, "wb") as f:
        f.write(rng.randbytes(SIZE // 2))
        f.truncate(SIZE)
    return path


def test_old_and_new_primary_at_once(test):
    """The old one writes all the time while the host fails over and becomes a standby again."""
    rng = seeded(test.name)
    primary, server = mirrored(test, rng, "@g1")
    checkpoint(primary, server)
    stop = threading.Event()

    def write_on():
        i = 0
        while not stop.is_set():
            try:
                primary.write_soon(0, 0xee, i % 1000 * 4096, 4096)
            except (QMPError, OSError):
                return
            i += 1
            stop.wait(0.002)
    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        done(server.ask("promote"))
        tool("mcbuf-recover", "--wait", server.journal)
        tool("mcbuf-ctl", server.journal, "resync", "overwrite")
        new = Primary(test, [new_disk(test, rng)])
        new.add_replica(0, server, "@g2")
        new.mirror(0)
        new.wait_ready()
        random_writes(rng, new, 20, SIZE)
        _, content = checkpoint(new, server)
        is_image(test, server, content, "of the new primary")
    finally:
        stop.set()
        writer.join()
    check(primary.job_error(0).get("error"), "the old one's job goes on")
    primary.kill()
    new.kill()


main(globals())
