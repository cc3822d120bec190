# SPDX-License-Identifier: BSD-3-Clause
"""What QEMU's own peers share: monitors and overlays."""

import os
import sys

from benchlib import Peer, Skip, last_line, need, run, wait_for

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests"))
# pylint: disable=wrong-import-position
from qmp import QMP, QMPError  # noqa: E402


class Monitor(QMP):
    def wait_job(self, job):
        """Until block job JOB is over."""
        while True:
            for i, event in enumerate(self.events):
                data = event.get("data", {})
                if event["event"] == "BLOCK_JOB_COMPLETED" and data.get("device") == job:
                    del self.events[i]
                    if data.get("error"):
                        raise QMPError("%s: %s" % (job, data["error"]))
                    return
            self.events.append(self._receive())

    def forget(self):
        """Events that nobody waits for."""
        self.events = [e for e in self.events if e["event"] == "BLOCK_JOB_COMPLETED"]


class QemuPeer(Peer):
    slow = True
    program = "?"

    def __init__(self, bench, size, disks=1):
        if disks != 1:
            raise Skip("it is measured with one disk")
        super().__init__(bench, size)
        self.dir = bench.unique(self.name)
        self.process = self.qmp = None
        self.sock = os.path.join(self.dir, "nbd")

    def file(self, name):
        return os.path.join(self.dir, name)

    def begin(self, argv):
        """Start the program and talk to its monitor at self.file ("qmp")."""
        log = self.file("log")
        self.process = self.bench.spawn([need(self.program)] + argv, log)

        def is_up():
            """It ended, or its monitor talks; one that is just being made may not greet."""
            if self.process.poll() is None and os.path.exists(self.file("qmp")):
                try:
                    self.qmp = Monitor(self.file("qmp"), timeout=300)
                except (OSError, QMPError):
                    pass
            return self.qmp is not None or self.process.poll() is not None
        wait_for("%s to start" % self.program, is_up)
        if self.qmp is None:
            with open(log, errors="replace") as f:
                raise Skip("%s does not start: %s" % (self.program, last_line(f.read())))

    def overlay(self, name):
        """An empty qcow2 file of the disk's size."""
        path = self.file(name)
        run([need("qemu-img"), "create", "-q", "-f", "qcow2", path, str(self.size)])
        return path

    def pids(self):
        return [self.process.pid]

    def stop(self):
        if self.qmp:
            self.qmp.close()
        if self.process:
            self.bench.end(self.process)
