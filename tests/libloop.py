# SPDX-License-Identifier: BSD-3-Clause
"""Loop devices, and file systems on them, that go away with the test however it ends."""

import os
import subprocess
import sys

from libmcbuf import check, skip

INSIDE = "MCBUF_TEST_INSIDE"
SBIN = dict(os.environ, PATH=os.environ["PATH"] + ":/sbin:/usr/sbin")


def run(*argv):
    """The output of ARGV, or None when it fails."""
    p = subprocess.run(argv, env=SBIN, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, check=False)
    if p.returncode:
        print("%s: %s" % (" ".join(argv), p.stderr.strip()))
    return None if p.returncode else p.stdout.strip()


class Loop:
    """A block device over the file PATH with logical sectors of SECTOR bytes."""

    def __init__(self, path, sector):
        self.path, self.sector = path, sector
        self.device = run("losetup", "--find", "--show", "--sector-size", str(sector), path)
        if not self.device:
            skip("no loop device with sectors of %d bytes to be had" % sector)
        # Detached while it is open, it goes with whoever closes it last.
        self.fd = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        check(run("losetup", "--detach", self.device) is not None, "cannot detach", self.device)
        name = os.path.basename(self.device)
        with open("/sys/block/%s/queue/logical_block_size" % name, encoding="ascii") as f:
            check(int(f.read()) == sector, "sectors of", self.device)

    def read(self, length, offset=0):
        return os.pread(self.fd, length, offset)

    def write(self, data, offset=0):
        check(os.pwrite(self.fd, data, offset) == len(data), "short write")

    def sync(self):
        os.fsync(self.fd)

    def allocated(self):
        """Bytes that the file below takes."""
        self.sync()
        return os.stat(self.path).st_blocks * 512

    def close(self):
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def enter_namespace():
    """Run the script in a mount namespace of its own: its file systems go with it."""
    if os.environ.get(INSIDE):
        return
    if os.geteuid() != 0:
        skip("only root can mount")
    if run("unshare", "--mount", "true") is None:
        skip("no mount namespace to be had")
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--mount", sys.executable] + sys.argv)


def mount(*args):
    return run("mount", *args) is not None


def unmount(where):
    check(run("umount", where) is not None, "cannot unmount", where)
