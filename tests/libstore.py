# SPDX-License-Identifier: BSD-3-Clause
"""Storage behind a replica: other people's NBD servers, which can be killed and come back."""

import os
import signal
import shutil
import subprocess

import nbd

from libmcbuf import (KiB, Failure, check, poll, read_all, skip, sparse_file)


class Store:
    """A server of one export.  KIND:

    qcow2   qemu-nbd with a qcow2 image
    file    nbdkit with a file
    lossy   nbdkit with a file behind a write-back cache: what is not flushed is lost with it
    """

    def __init__(self, test, size, kind="file", tcp=False, options=(), name="store", clients=8):
        self.test, self.size, self.kind = test, size, kind
        self.options = list(options)
        self.clients = clients
        self.file = test.unique(name)
        self.sock = test.unique("n")
        self.log = test.unique("log")
        self.port = None
        self.process = None
        if kind == "qcow2":
            if not shutil.which("qemu-nbd"):
                skip("there is no qemu-nbd")
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.file, str(size)],
                           check=True)
        else:
            sparse_file(self.file, size)
        self.tcp = tcp
        self.start()

    def argv(self):
        if self.kind == "qcow2":
            return (["qemu-nbd", "--persistent", "--shared=%d" % self.clients, "--format=qcow2",
                     "--cache=writeback", "--socket=" + self.sock] + self.options + [self.file])
        where = (["-p", str(self.port), "-i", "localhost"] if self.tcp else ["-U", self.sock])
        filters = ["--filter=cache"] if self.kind == "lossy" else []
        return ["nbdkit", "-f"] + where + filters + self.options + ["file", self.file]

    def start(self):
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        for _ in range(20):
            if self.tcp and self.port is None:
                self.port = self.test.port()
            self.process = self.test.spawn(self.argv(), output=self.log)
            poll("the store to start", lambda: self.process.poll() is not None or self.answers())
            if self.process.poll() is None:
                return self
            if self.tcp:                # somebody else was quicker
                self.port = None
                continue
            break
        with open(self.log, errors="replace") as f:
            raise Failure("the store does not start: " + f.read())

    def answers(self):
        try:
            self.connect().shutdown()
        except nbd.Error:
            return False
        return True

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    @property
    def uri(self):
        if self.tcp:
            return "nbd://localhost:%d/" % self.port
        return "nbd+unix:///?socket=" + self.sock

    def connect(self):
        h = nbd.NBD()
        h.connect_uri(self.uri)
        return h

    def content(self):
        """What the store holds, read through itself."""
        h = self.connect()
        data = read_all(h, step=64 * KiB)
        h.shutdown()
        check(len(data) == self.size, "the store has", len(data), "bytes")
        return data
