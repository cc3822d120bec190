# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit's own plugins: file (on disk, no atomicity), memory and null (not durable)."""

import os
import shutil

from benchlib import Peer, Skip, sync_file, unix_uri, write_image


class File(Peer):
    name = "file"
    text = "`nbdkit file`; a checkpoint is a flush, without atomicity"
    checkpoint = "flush"

    def __init__(self, bench, size, disks=1):
        super().__init__(bench, size, disks)
        self.dir = bench.unique("file")
        self.exports = ["v%d" % i for i in range(disks)]
        self.process = self.sock = None

    def images(self):
        return [os.path.join(self.dir, n) for n in self.exports]

    def start(self):
        os.mkdir(self.dir)
        for path in self.images():
            write_image(path, self.size)
        if self.disks == 1:
            self.process, self.sock = self.bench.nbdkit("file", self.images()[0])
        else:
            self.process, self.sock = self.bench.nbdkit("file", "dir=" + self.dir)
        return self

    def uris(self):
        if self.disks == 1:
            return [unix_uri(self.sock)]
        return [unix_uri(self.sock, n) for n in self.exports]

    def pids(self):
        return [self.process.pid]

    def settle(self):
        for path in self.images():
            sync_file(path)

    def stop(self):
        self.bench.end(self.process)
        shutil.rmtree(self.dir, ignore_errors=True)


class Memory(Peer):
    name = "memory"
    text = "`nbdkit memory`; nothing is durable"

    def __init__(self, bench, size, disks=1):
        if disks != 1:
            raise Skip("it serves one disk")
        super().__init__(bench, size)
        self.process = self.sock = None

    def start(self):
        self.process, self.sock = self.bench.nbdkit(self.name, self.size)
        return self

    def uris(self):
        return [unix_uri(self.sock)]

    def pids(self):
        return [self.process.pid]

    def stop(self):
        self.bench.end(self.process)


class Null(Memory):
    name = "null"
    text = "`nbdkit null`; nothing is kept: what NBD itself costs"
