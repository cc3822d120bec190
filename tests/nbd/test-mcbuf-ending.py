#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What comes at once after an end: nobody has to wait before the next command of a recipe."""

import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (DEADLINE, KiB, MiB, PARTIAL, PLUGIN, WRAPPER, Server, check, environment, equal, main,
                      random_data, read_file, seeded, sparse_file, tool, tool_path)

SIZE = 8 * MiB
PARAMS = ("journal-size=32M", "buffer=8M", "baseline=trusted")


def write_image(path):
    """What a QEMU that writes to PATH says: nothing when it gets its locks."""
    p = subprocess.run(["qemu-io", "-f", "raw", "-c", "write -q 0 512", path], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                       env=environment(ours=False), timeout=DEADLINE)
    return p.stdout if p.returncode else ""


def test_shutdown_then_vm(test):
    """recover --wait; ctl shutdown; start the VM: with a client that stays, five times over."""
    rng = seeded("test_shutdown_then_vm")
    for i in range(5):
        a, b = (sparse_file(test.path("%s%d.img" % (n, i)), SIZE) for n in "ab")
        server = Server(test, "disk=a:" + a, "disk=b:" + b, "journal=" + test.path("j%d" % i), *PARAMS)
        h = server.connect("a")
        data = random_data(rng, 100 * KiB)
        h.pwrite(data, 0)
        server.commit()
        tool("mcbuf-recover", "--wait", server.journal)
        if i % 2:                               # without one the server ends by itself
            h.shutdown()
        json = ["--json"] if i == 0 else []
        result = tool("mcbuf-ctl", *json, server.journal, "shutdown")
        equal([write_image(path) for path in (b, a)], ["", ""], "a VM on the images after shutdown")
        if json:
            equal(result.json, {"shutdown": True}, "the reply to shutdown")
        server.wait_end()
        equal(read_file(a)[512:len(data)], data[512:], "image")


def test_shutdown_then_server(test):
    """ctl shutdown; nbdkit mcbuf: the next server gets the journal at once."""
    server = Server(test, sparse_file(test.path("disk.img"), SIZE), *PARAMS)
    for _ in range(5):
        h = server.connect()
        h.pwrite(b"x" * 4096, 0)
        tool("mcbuf-ctl", server.journal, "shutdown")
        old, server.process = server.process, None
        server.start()
        old.wait()
    server.stop()


def test_shutdown_under_run(test):
    """With nbdkit --run the parent keeps the locks until its command ends: that is said, with exit 5."""
    image = sparse_file(test.path("disk.img"), SIZE)
    script = '"%s" "%s" shutdown; echo "code $?"' % (tool_path("mcbuf-ctl"), image + ".mcbuf")
    p = subprocess.run(WRAPPER + ["nbdkit", "-U", test.path("s"), PLUGIN, image, *PARAMS, "--run", script],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       check=False, env=environment(), timeout=DEADLINE)
    check("code %d" % PARTIAL in p.stdout and "nbdkit --run" in p.stdout, p.stdout)
    equal(write_image(image), "", "a VM on the image after nbdkit --run")


main(globals())
