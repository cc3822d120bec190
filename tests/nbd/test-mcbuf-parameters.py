#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every wrong parameter gets one clear line and no server."""

import os
import re
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, PLUGIN, Server, StartError, WRAPPER, check, environment, equal, main,
                      read_file, sparse_file, tool, write_file, tried)
from qmp import QMP

def refuses(test, params, *words):
    """nbdkit with PARAMS ends at once, and says all WORDS in one line of its own."""
    argv = WRAPPER + ["nbdkit", "-f", "-U", test.unique("s"), PLUGIN] + params
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, cwd=test.dir,
                       env=environment(), timeout=60)
    shown = "nbdkit %s: exit %d\n%s" % (" ".join(params), p.returncode, p.stderr)
    check(p.returncode == 1, "not refused:", shown)
    lines = [line for line in p.stderr.splitlines() if line.strip()]
    equal(len(lines), 1, "lines of", shown)
    for word in words:
        check(re.search(word, lines[0]), "nothing like", repr(word), "in", shown)
    return lines[0]


def image(test, name="disk.img", size=4 * MiB):
    return sparse_file(test.path(name), size)


def test_missing(test):
    """No disk at all."""
    refuses(test, [], "disk|image|file|path")
    refuses(test, ["journal=" + test.path("j")], "disk|image|file|path")


def test_unknown(test):
    """A parameter that does not exist is named."""
    refuses(test, [image(test), "nonsense=1"], "nonsense")
    refuses(test, [image(test), "Journal=" + test.path("j")], "Journal")


def test_twice(test):
    """Given twice, it is named."""
    path = image(test)
    for param in ("journal=" + test.path("j"), "journal-size=64M", "buffer=16M",
                  "size=4M", "baseline=trusted"):
        refuses(test, [path, param, param], param.split("=")[0])
    refuses(test, ["disk=a:" + path, "disk=a:" + image(test, "b.img"),
                   "journal=" + test.path("j")], "a")
    refuses(test, ["disk=a:" + path, "disk=b:" + path, "journal=" + test.path("j")],
            "disk.img")
    refuses(test, [path, image(test, "b.img")], "b.img|disk|twice")


def test_not_a_size(test):
    """Sizes that are none, too small, too large."""
    path = image(test)
    for param in ("journal-size", "buffer", "size"):
        for value in ("x", "", "-1", "1Q", "64Mx", "99999999999999999999"):
            refuses(test, [path, "%s=%s" % (param, value)], param)
    refuses(test, [path, "journal-size=1M"], "journal-size|journal", "16")
    refuses(test, [path, "journal-size=64M", "buffer=1"], "buffer")
    check(not os.path.exists(path + ".mcbuf"), "a refused start left a journal behind")


def test_bad_names(test):
    """Names that cannot be disks."""
    path = image(test)
    for name in ("a b", "ä", "a@g1", "a/b", "", "x" * 300, "mcbuf-control", "a\n"):
        refuses(test, ["disk=%s:%s" % (name, path), "journal=" + test.path("j")])
    refuses(test, ["disk=justapath", "journal=" + test.path("j")], "justapath")
    refuses(test, ["disk=a:" + path, "disk=b:" + image(test, "b.img")], "journal")


def test_bad_values(test):
    """Words that are none of those allowed."""
    path = image(test)
    refuses(test, [path, "baseline=maybe"], "baseline", "trusted")
    refuses(test, [path, "baseline="], "baseline")
    refuses(test, [path, "journal="], "journal")


def test_backing_missing(test):
    """No image, no size=; and a folder that is not there."""
    refuses(test, [test.path("none.img")], "none.img", "size=|No such file")
    refuses(test, [test.path("no/where.img"), "size=4M"], "no/where.img", "No such file")


def test_backing_is_a_directory(test):
    """A directory, a device that is none, a socket."""
    os.mkdir(test.path("folder"))
    refuses(test, [test.path("folder")], "folder", "directory")
    refuses(test, ["/dev/null"], "/dev/null")
    s = socket.socket(socket.AF_UNIX)
    s.bind(test.path("socket"))
    refuses(test, [test.path("socket")], "socket")


def test_backing_too_small(test):
    """An empty image, and one that is smaller than size=."""
    refuses(test, [image(test, "empty.img", 0)], "empty.img")
    refuses(test, [image(test, size=4 * MiB), "size=8M"], "disk.img", "size|small")


def test_backing_not_writable(test):
    """An image that may only be read."""
    path = image(test)
    if os.geteuid() != 0:
        os.chmod(path, 0o400)
        refuses(test, [path], "disk.img", "Permission denied")
        return
    # Root may write everywhere, except where nobody may.
    os.chmod(test.dir, 0o755)
    os.chmod(path, 0o400)
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "nbdkit", "-f", "-U", "-", PLUGIN, path, "journal=/nonexistent/j",
            "--run", "true"]
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, env=environment(), timeout=60)
    check(p.returncode != 0 and "Permission denied" in p.stderr, "as nobody:", p)


def test_journal_not_usable(test):
    """A journal path that is a file, or a directory of something else."""
    path = image(test)
    write_file(test.path("file"), b"something")
    refuses(test, [path, "journal=" + test.path("file")], "file")
    equal(read_file(test.path("file")), b"something", "the file")
    os.mkdir(test.path("home"))
    write_file(test.path("home/letter"), b"dear")
    refuses(test, [path, "journal=" + test.path("home")], "home")
    equal(os.listdir(test.path("home")), ["letter"], "somebody's directory")
    refuses(test, [path, "journal=" + test.path("no/where")], "no/where", "No such file")


def protected(test, path, *params):
    server = Server(test, path, "journal-size=32M", "buffer=8M", "baseline=trusted", *params)
    server.connect().pwrite(b"p" * 4096, 0)
    server.commit()
    server.stop()
    return server


def test_size_changed(test):
    """The image is larger or smaller than when the journal was made."""
    path = image(test)
    server = protected(test, path)
    for size in (8 * MiB, 2 * MiB):
        os.truncate(path, size)
        refuses(test, [path], "disk.img", str(4 * MiB) + "|4M|size")
    os.truncate(path, 4 * MiB)
    server.start()


def test_disks_changed(test):
    """Another set of disks than the journal's."""
    a, b = image(test, "a.img"), image(test, "b.img")
    journal = "journal=" + test.path("j")
    server = Server(test, "disk=a:" + a, "disk=b:" + b, journal, "journal-size=32M",
                    "buffer=8M")
    server.stop()
    c = image(test, "c.img")
    refuses(test, ["disk=a:" + a, journal], "b|disk")
    refuses(test, ["disk=a:" + a, "disk=c:" + c, journal], "c|disk")
    refuses(test, ["disk=a:" + a, "disk=b:" + b, "disk=c:" + c, journal], "c|disk")
    server.start()


def test_journal_of_another_replica(test):
    """A journal that was made for another image."""
    server = protected(test, image(test))
    other = image(test, "other.img", 6 * MiB)
    before = read_file(other)
    refuses(test, [other, "journal=" + server.journal], "other.img|journal")
    check(read_file(other) == before, "the other image was touched")


def test_second_server(test):
    """A journal and an image have one server."""
    path = image(test)
    server = Server(test, path, "journal-size=32M", "buffer=8M")
    refuses(test, [path], "mcbuf|lock|use|another")
    refuses(test, [path, "journal=" + test.path("other")], "disk.img")
    server.connect().pwrite(b"x", 0)                # and the first goes on
    # Nor does a recovery fall on a served journal that does not answer.
    link = test.path("link.img")
    os.symlink(path, link)
    refuses(test, [link, "journal=" + test.path("other")], "link.img|disk.img")
    os.link(path, test.path("hard.img"))
    refuses(test, [test.path("hard.img")], "hard.img")
    tried("9", "second servers on a journal or an image, by its names and links", 4)


# A machine whose disk is in use, though it does not run.
QEMU = ["qemu-system-x86_64", "-S", "-m", "16", "-nodefaults", "-display", "none",
        "-monitor", "none", "-device", "virtio-blk-pci,drive=d"]


def qemu_errors(test, path):
    p = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", path],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True, env=environment(ours=False), timeout=60)
    return p.stdout


def test_qemu_image_lock(test):
    """A QEMU that is started on the image too early is refused, and the reverse."""
    path = image(test)
    server = Server(test, path, "journal-size=32M", "buffer=8M")
    check('Failed to get "write" lock' in qemu_errors(test, path), qemu_errors(test, path))
    vm = subprocess.run(QEMU + ["-drive", "if=none,id=d,format=raw,file=" + path],
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, timeout=60)
    check(vm.returncode != 0 and 'Failed to get "write" lock' in vm.stdout, vm)
    server.stop()
    check("Failed" not in qemu_errors(test, path), "after the end:", qemu_errors(test, path))
    # And a server on a disk that a QEMU uses.
    qemu = test.spawn(QEMU + ["-qmp", "unix:%s,server=on,wait=off" % test.path("qmp"),
                              "-drive", "if=none,id=d,format=raw,file=" + path])
    QMP(test.path("qmp")).close()
    refuses(test, [path], "disk.img", "use|lock")
    qemu.kill()
    qemu.wait()
    server.start()
    tried("9", "QEMUs on an image with a server, and the reverse", 3)


def test_size_creates(test):
    """size= makes a missing image, sparse; an image of that size is taken."""
    path = test.path("new.img")
    server = Server(test, path, "size=64M", "journal-size=32M", "buffer=8M")
    equal(os.stat(path).st_size, 64 * MiB, "size")
    check(os.stat(path).st_blocks * 512 < MiB, "not sparse")
    equal(server.connect().get_size(), 64 * MiB, "size of the export")
    server.stop()
    server.start()


def test_relative_paths(test):
    """Paths are relative to where nbdkit was started, and stay right later."""
    image(test)
    server = Server(test, "disk.img", "journal-size=32M", "buffer=8M", "baseline=trusted",
                    journal=test.path("disk.img.mcbuf"))
    equal(server.status()["disks"][0]["backing"], test.path("disk.img"), "backing")
    server.kill()
    tool("mcbuf-recover", server.journal)


def test_journal_mode(test):
    """The journal is nobody else's business."""
    server = Server(test, image(test), "journal-size=32M", "buffer=8M")
    equal(os.stat(server.journal).st_mode & 0o777, 0o700, "journal directory")
    equal(os.stat(server.journal + "/control").st_mode & 0o777, 0o600, "control socket")


def test_read_only(test):
    """nbdkit -r: no writes come in, but the server runs."""
    path = image(test)
    try:
        server = Server(test, path, "journal-size=32M", "buffer=8M", nbdkit=["-r"])
    except StartError:
        return
    check(server.connect().is_read_only(), "read-only")


def test_dump_plugin(test):
    """--dump-plugin names the plugin and needs no parameters."""
    p = subprocess.run(["nbdkit", "--dump-plugin", PLUGIN], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, text=True, env=environment(), timeout=60)
    equal(p.returncode, 0, "exit")
    fields = dict(line.split("=", 1) for line in p.stdout.splitlines() if "=" in line)
    equal(fields["name"], "mcbuf", "name")
    equal(fields["thread_model"], "parallel", "thread model")
    equal(fields["magic_config_key"], "disk", "magic parameter")


def test_only_the_entry_point(test):
    """The plugin shows one symbol."""
    p = subprocess.run(["nm", "-D", "--defined-only", PLUGIN], stdout=subprocess.PIPE, text=True)
    symbols = [line.split()[-1] for line in p.stdout.splitlines()]
    shown = [s for s in symbols if not s.startswith(("__asan", "__ubsan", "_init", "_fini"))]
    equal(shown, ["plugin_init"], "symbols")


def test_later_starts(test):
    """baseline is only looked at when the journal is made; a journal keeps its size until another is named."""
    path = image(test)
    server = Server(test, path, "journal-size=32M", "buffer=8M")
    server.connect().pwrite(b"x", 0)
    server.stop()
    server.params += ["baseline=trusted"]
    server.start()
    equal(server.status()["state"], "syncing", "baseline=trusted on a later start")
    server.stop()
    server.params = [path, "buffer=8M"]
    server.start()
    equal(server.status()["journal"]["size"], 32 * MiB, "journal size")
    server.stop()
    server.params += ["journal-size=64M"]
    server.start()
    equal(server.status()["journal"]["size"], 64 * MiB, "journal size")


main(globals())
