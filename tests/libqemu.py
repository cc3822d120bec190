# SPDX-License-Identifier: BSD-3-Clause
"""A real QEMU as the primary, without a guest: qemu-io writes in its place.

The machine "none" has no processor, but its block layer, its jobs and its
"stop" are the real ones.
"""

import re
import shutil
import time

from libmcbuf import DEADLINE, Failure, MiB, check, equal, read_file, skip
from qmp import QMP, QMPError


def start_qemu(test, argv, path, log):
    """Start a QEMU that listens for QMP at PATH; the process and the connection.

    That there is none is a reason to skip a test.  That it does not start, or takes ever so long, is not.
    """
    if shutil.which(argv[0]) is None:
        skip("this needs %s" % argv[0])
    process = test.spawn(argv, output=log)
    try:
        return process, QMP(path, 2 * DEADLINE, lambda: process.poll() is None)
    except (OSError, QMPError) as error:
        raise Failure("%s does not start (%s, exit code %s): %s"
                      % (argv[0], error, process.poll(),
                         read_file(log).decode(errors="replace"))) from None


class Primary:
    """One QEMU with disks d0, d1 ... on IMAGES; MACHINE: options for another machine than none."""

    def __init__(self, test, images, quorum=False, discard="unmap", machine=("-machine", "none")):
        self.test = test
        self.images = images
        path = test.unique("qmp")
        argv = ["qemu-system-x86_64", *machine, "-nodefaults", "-display", "none",
                "-monitor", "none", "-qmp", "unix:%s,server=on,wait=off" % path]
        for i, image in enumerate(images):
            if quorum:
                # COLO's primary: a quorum with one child, a second is added while it runs.
                argv += ["-drive", "if=none,id=d%d,driver=quorum,read-pattern=fifo,"
                         "vote-threshold=1,children.0.driver=raw,"
                         "children.0.file.filename=%s" % (i, image)]
            else:
                # Without auto-read-only=off each write by qemu-io opens the image anew, and reads of
                # a job that are under way get EBADF.
                argv += ["-drive", "if=none,id=d%d,format=raw,discard=%s,auto-read-only=off,"
                         "detect-zeroes=off,file=%s" % (i, discard, image)]
        self.log = test.unique("log")
        self.process, self.qmp = start_qemu(test, argv, path, self.log)

    # --- The guest's part ---

    def io(self, disk, command):
        """One command of qemu-io on disk number DISK, as its guest would."""
        said = self.qmp.hmp('qemu-io d%d "%s"' % (disk, command))
        check(not re.search(r"failed|error|Error|unknown", said), command, "->", said)
        return said

    def write(self, disk, pattern, offset, length):
        self.io(disk, "write -P %d %d %d" % (pattern, offset, length))

    def write_soon(self, disk, pattern, offset, length):
        """Returns at once; QEMU has the write in flight."""
        self.qmp.hmp('qemu-io d%d "aio_write -P %d %d %d"' % (disk, pattern, offset, length))

    # --- The mirror ---

    def add_replica(self, disk, server, export="", reconnect=10, discard="unmap"):
        self.qmp.command("blockdev-add", driver="nbd", node_name="r%d" % disk,
                         export=export, reconnect_delay=reconnect, discard=discard,
                         server={"type": "unix", "path": server.sock})

    def add_again(self, disk, server, export=""):
        """The target node anew: a new connection."""
        self.qmp.command("blockdev-del", node_name="r%d" % disk)
        self.add_replica(disk, server, export)

    def mirror(self, disk, **more):
        self.qmp.command("blockdev-mirror", job_id="m%d" % disk, device="d%d" % disk,
                         target="r%d" % disk, sync="full", copy_mode="write-blocking", **more)

    def drive_mirror(self, disk, server, export="", **more):
        """The mirror by drive-mirror: its connection is a new one, and ends with the job."""
        self.qmp.command("drive-mirror", job_id="m%d" % disk, device="d%d" % disk,
                         target="nbd+unix:///%s?socket=%s" % (export, server.sock), format="raw",
                         mode="existing", sync="full", copy_mode="write-blocking", **more)

    def wait_ready(self):
        for i in range(len(self.images)):
            self.qmp.wait_ready("m%d" % i)

    def job_error(self, disk):
        """The job is over with an error: its event."""
        return self.qmp.wait_event("BLOCK_JOB_COMPLETED",
                                   lambda data: data["device"] == "m%d" % disk)

    def job_fails(self, disk, text=""):
        """The job reports a write or a flush that the target refused, and is over, with TEXT."""
        mine = lambda data: data["device"] == "m%d" % disk
        said = self.qmp.wait_event("BLOCK_JOB_ERROR", mine)
        equal((said["operation"], said["action"]), ("write", "report"), "the job's error", said)
        over = self.job_error(disk)
        check(text in over.get("error", ""), "no", repr(text), "in the end of the job:", over)
        check(over.get("error"), "the job ended without an error:", over)
        equal(self.qmp.job("m%d" % disk), None, "the job")
        self.qmp.events.clear()                         # requests in flight failed too

    def job_refused(self, disk, offset=0):
        """Writes that the target is about to refuse, until one was: the event of the job's end."""
        over = lambda data: data["device"] == "m%d" % disk
        deadline = time.monotonic() + self.qmp.timeout
        while True:
            self.write_soon(disk, 3, offset, 512)
            try:
                return self.qmp.wait_event("BLOCK_JOB_COMPLETED", over, seconds=0.5)
            except QMPError:
                if time.monotonic() > deadline:
                    raise

    # --- A checkpoint, the way a user makes one ---

    def pause(self, server, synced=True):
        """Stop, seal; the epoch and the disks' contents of this moment."""
        self.qmp.command("stop")
        if synced:
            for i in range(len(self.images)):
                self.qmp.wait_synced("m%d" % i)
        epoch = server.seal()
        contents = [read_file(image) for image in self.images]
        self.qmp.command("cont")
        return epoch, contents

    def kill(self):
        self.qmp.close()
        self.process.kill()
        self.process.wait()


def random_writes(rng, primary, n, size, soon=False, first=0):
    """N guest writes, zeroes and discards at sector alignment, from byte FIRST on; 512 bytes is the favourite."""
    for _ in range(n):
        disk = rng.randrange(len(primary.images))
        sectors = rng.choice((1, 1, 1, 3, 7, 8, 9, 16, 100, 333))
        offset = rng.randrange(first // 512, size // 512 - sectors) * 512
        if rng.random() < 0.5:
            offset -= offset % 4096
        kind = rng.random()
        if soon:
            primary.write_soon(disk, rng.randrange(1, 256), offset, sectors * 512)
        elif kind < 0.8:
            primary.write(disk, rng.randrange(1, 256), offset, sectors * 512)
        elif kind < 0.9:
            primary.io(disk, "write -z %s%d %d" % (rng.choice(("", "-u ")), offset, sectors * 512))
        else:
            primary.io(disk, "discard %d %d" % (offset, sectors * 512))


def primary_images(test, rng, n, size):
    """Images with data at the start, a hole, and data at the end."""
    images = []
    for i in range(n):
        path = test.path("primary%d.img" % i)
        with open(path, "wb") as f:
            f.write(rng.randbytes(size // 4))
            f.seek(size - MiB)
            f.write(rng.randbytes(MiB))
        images.append(path)
    return images


def replica_params(test, n, size, *more):
    """Parameters of a server with N missing images, to be made."""
    if n == 1:
        params = [test.path("replica0.img")]
    else:
        params = ["disk=v%d:%s" % (i, test.path("replica%d.img" % i)) for i in range(n)]
    return params + ["size=%d" % size, "journal=" + test.path("j"),
                     "journal-size=128M", "buffer=32M", *more]


def exports(n):
    return [""] if n == 1 else ["v%d" % i for i in range(n)]


def replica_images(test, n):
    return [read_file(test.path("replica%d.img" % i)) for i in range(n)]
