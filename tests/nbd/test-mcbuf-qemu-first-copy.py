#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The first copy by QEMU's real mirror: through to the image, holes, the first commit, a seal, every way to die in it."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DONE, NO_CHECKPOINT, KiB, MiB, Faults, Server, check, done, equal, main, poll,
                      read_file, refused, same, seeded, tool, tool_path)
from libqemu import Primary, primary_images, random_writes, replica_params
from qmp import QMPError

SIZE = 16 * MiB
HOLE = 256 * MiB


def replica(test, faults=None, size=SIZE):
    options = {"env": faults.env, "preload": faults.preload} if faults else {}
    return Server(test, *replica_params(test, 1, size), journal=test.path("j"), **options)


def image(test):
    return read_file(test.path("replica0.img"))


def allocated(path):
    return os.stat(path).st_blocks * 512


def copying(test, rng, server, speed=4 * MiB):
    """A primary whose mirror is under way, and slow."""
    primary = Primary(test, primary_images(test, rng, 1, SIZE))
    primary.add_replica(0, server, reconnect=60)
    primary.mirror(0, speed=speed)
    poll("the copy to begin", lambda: primary.qmp.job("m0")["offset"] > MiB)
    check(not primary.qmp.job("m0")["ready"], "the copy is over already")
    return primary


def full_speed(primary):
    primary.qmp.command("block-job-set-speed", device="m0", speed=0)
    primary.wait_ready()


def is_whole(test, primary, server):
    """A checkpoint at last, and it is what the primary has."""
    epoch, contents = primary.pause(server)
    equal(server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
    equal(server.status()["state"], "protected", "state")
    random_writes(test.rng, primary, 20, SIZE)
    server.kill()
    answer = tool("mcbuf-recover", "--json", server.journal).json
    equal(answer["checkpoint"], epoch, "recovered")
    same(image(test), contents[0], "image")
    primary.kill()


def test_through(test):
    """It goes straight to the image and costs the journal nothing; the first commit is checkpoint 1."""
    test.rng = seeded(test.name)
    server = replica(test)
    used = server.status()["journal"]["used"]
    primary = copying(test, test.rng, server)
    random_writes(test.rng, primary, 50, SIZE)
    full_speed(primary)
    primary.qmp.command("stop")
    primary.qmp.wait_synced("m0")
    same(image(test), read_file(primary.images[0]), "the image, before any commit")
    check(server.status()["journal"]["used"] - used <= 2 * MiB, "the journal is used:", server.status())
    said = tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT).err
    check("syncing" in said and "must not be used" in said, said)
    equal(server.commit()["checkpoint"], 1, "the first checkpoint")
    s = server.status()
    equal((s["state"], s["checkpoint"]["id"], s["written_out"]), ("protected", 1, 1), "status")
    before = image(test)
    primary.qmp.command("cont")
    random_writes(test.rng, primary, 50, SIZE)
    same(image(test), before, "the image, behind the first checkpoint")
    is_whole(test, primary, server)


def test_first_commit_is_durable(test):
    """The image is synced before the first commit is recorded, let alone answered."""
    test.rng = seeded(test.name)
    faults = Faults(test)
    server = replica(test, faults)
    primary = copying(test, test.rng, server)
    full_speed(primary)
    for end in (True, False):
        primary.qmp.command("stop")
        primary.qmp.wait_synced("m0")
        contents = read_file(primary.images[0])
        before = faults.happened()
        faults.hold("fdatasync", "replica0.img")
        commit = test.spawn([tool_path("mcbuf-commit"), server.journal], ours=True)
        poll("the image's sync", lambda: faults.happened() > before)
        check(commit.poll() is None, "the commit did not wait for the image")
        primary.qmp.command("cont")
        if end:
            # Nothing is recorded yet: death here leaves no checkpoint.
            server.kill()
            tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
            check(commit.wait() != DONE, "a lost commit was answered")
            faults.heal_all()
            server.start()
            random_writes(test.rng, primary, 5, SIZE)
            equal(server.status()["state"], "syncing", "state after SIGKILL")
    faults.heal_all()
    equal(commit.wait(), DONE, "exit code of the commit")
    equal(server.status()["state"], "protected", "state")
    server.kill()
    tool("mcbuf-recover", server.journal)
    same(image(test), contents, "image")
    primary.kill()


def test_holes(test):
    """Holes stay holes, whatever the discard options of the two ends."""
    for discard in ("unmap", "ignore"):
        path = test.path("primary-%s.img" % discard)
        with open(path, "wb") as f:
            f.truncate(HOLE)
            for at in (0, 100 * MiB, HOLE - MiB):
                f.seek(at)
                f.write(b"d" * MiB)
        server = Server(test, test.path(discard + ".img"), "size=%d" % HOLE, "journal-size=32M",
                        "buffer=8M")
        primary = Primary(test, [path], discard=discard)
        primary.add_replica(0, server, discard=discard)
        primary.mirror(0)
        primary.wait_ready()
        primary.io(0, "write -z %d 65536" % MiB)        # the guest's own zeroes
        primary.io(0, "discard %d 65536" % (2 * MiB))
        epoch, contents = primary.pause(server)
        server.commit(epoch=epoch)
        same(read_file(test.path(discard + ".img")), contents[0], "image")
        room = allocated(test.path(discard + ".img"))
        print("discard=%s: %d KiB of %d KiB allocated" % (discard, room // KiB, HOLE // KiB))
        check(room <= 4 * MiB, "holes were filled:", room)
        primary.kill()
        server.stop()


def test_killed(test):
    """SIGKILL in it: recovery refuses; the next server goes on, says so, and so does the mirror."""
    test.rng = seeded(test.name)
    server = replica(test)
    primary = copying(test, test.rng, server)
    for _ in range(2):
        server.kill()
        tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
        random_writes(test.rng, primary, 3, SIZE, soon=True)
        server.start()
        s = server.status()
        equal((s["state"], s["checkpoint"]), ("syncing", None), "status")
        check("goes on" in s["reason"], s["reason"])
        random_writes(test.rng, primary, 20, SIZE)
    full_speed(primary)
    is_whole(test, primary, server)


def test_stopped(test):
    """A clean stop in it: it goes on even after a reboot, with the mirror or with another one."""
    test.rng = seeded(test.name)
    faults = Faults(test)
    server = replica(test, faults)
    primary = copying(test, test.rng, server)
    tool("mcbuf-ctl", server.journal, "shutdown")
    server.wait_end()
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    faults.new_boot()
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]), ("syncing", None), "status")
    check("goes on" in s["reason"], s["reason"])
    try:
        full_speed(primary)
    except QMPError:
        # nbdkit refuses requests from the moment that it stops, and QEMU takes that for an error.
        primary.add_again(0, server)
        primary.mirror(0)
        primary.wait_ready()
    is_whole(test, primary, server)


def test_reboot(test):
    """The host dies in it: stale, the mirror fails visibly, and a copy from the beginning leads back."""
    test.rng = seeded(test.name)
    faults = Faults(test)
    server = replica(test, faults)
    primary = copying(test, test.rng, server)
    faults.reboot(server)
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    server.start()
    s = server.status()
    equal((s["state"], s["checkpoint"]), ("stale", None), "status")
    for text in (s["reason"], server.said()):
        check("first copy was cut short" in text and "resync overwrite" in text, text)
    check(primary.job_error(0).get("error"), "the job goes on")
    refused(server.ask("commit"), 2, "stale", "resync overwrite")
    refused(server.ask("resync"), 2, "stale", "resync overwrite")
    done(server.ask("resync overwrite"))
    equal(server.status()["state"], "syncing", "state")
    primary.add_again(0, server)
    primary.mirror(0)
    primary.wait_ready()
    is_whole(test, primary, server)


def test_seal(test):
    """A seal closes it: what the guest writes behind the seal is speculation; a second death keeps both."""
    test.rng = seeded(test.name)
    server = replica(test)
    primary = copying(test, test.rng, server)
    full_speed(primary)
    epoch, contents = primary.pause(server)
    same(image(test), contents[0], "the image at the seal")
    random_writes(test.rng, primary, 30, SIZE)
    same(image(test), contents[0], "the image behind the seal")
    tool("mcbuf-recover", server.journal, code=NO_CHECKPOINT)
    server.kill()
    random_writes(test.rng, primary, 3, SIZE, soon=True)
    server.start()
    s = server.status()
    equal((s["state"], s["sealed_epochs"]), ("syncing", 1), "status")
    random_writes(test.rng, primary, 10, SIZE)
    equal(server.commit(epoch=epoch)["checkpoint"], epoch, "commit")
    equal(server.status()["state"], "protected", "state")
    equal(tool("mcbuf-recover", "--dry-run", "--json", server.journal).json["checkpoint"], epoch,
          "recoverable")
    same(image(test), contents[0], "the image, now checkpoint 1")
    is_whole(test, primary, server)


def test_seal_too_early(test):
    """A seal before READY: the rest of the copy is speculation, and the commit of it all is right."""
    test.rng = seeded(test.name)
    server = replica(test)
    primary = copying(test, test.rng, server)
    server.seal()
    before = image(test)
    full_speed(primary)
    random_writes(test.rng, primary, 20, SIZE)
    same(image(test), before, "the image behind the seal")
    is_whole(test, primary, server)


main(globals())
