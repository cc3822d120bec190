# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit with the plugin, as a peer and for measures of its own."""

import glob
import json
import os
import shutil
import socket

from benchlib import (DEADLINE, BenchError, MiB, Peer, memory, sync_file, unix_uri, wait_for,
                      write_image)


class Control:
    """A kept connection to the control socket."""

    def __init__(self, journal):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(os.path.join(journal, "control"))
        self.file = self.sock.makefile("rw", encoding="utf-8")

    def ask(self, request):
        self.file.write(request + "\n")
        self.file.flush()
        line = self.file.readline()
        if not line:
            raise BenchError("mcbuf hung up on: %s" % request)
        reply = json.loads(line)
        if "error" in reply:
            raise BenchError("mcbuf: %s: %s" % (request, reply["error"]))
        return reply

    def close(self):
        self.file.close()
        self.sock.close()


class Mcbuf(Peer):
    name = "mcbuf"
    text = "`nbdkit mcbuf`; a checkpoint is a commit"
    checkpoint = "commit"

    def __init__(self, bench, size, disks=1, journal_size=1024 * MiB, buffer=256 * MiB,
                 sparse=False, baseline=True, params=()):
        super().__init__(bench, size, disks)
        self.dir = bench.unique("mcbuf")
        self.journal = os.path.join(self.dir, "j")
        self.sparse = sparse
        names = [""] if disks == 1 else ["v%d" % i for i in range(disks)]
        self.images = {n: os.path.join(self.dir, "disk%s.img" % n) for n in names}
        self.params = ["disk=%s%s" % (n + ":" if n else "", p) for n, p in self.images.items()]
        self.params += ["journal=" + self.journal, "journal-size=%d" % journal_size,
                        "buffer=%d" % buffer, *(["baseline=trusted"] if baseline else []), *params]
        self.journal_size, self.buffer = journal_size, buffer
        self.process = self.sock = self._control = self.replica = None

    def start(self):
        os.mkdir(self.dir)
        for path in self.images.values():
            write_image(path, self.size, self.sparse)
        self.serve()
        return self

    def serve(self):
        """Start the server on what is there."""
        self.process, self.sock = self.bench.nbdkit(self.bench.plugin, *self.params)
        self._control = Control(self.journal)
        self.replica = self.status()["replica"]
        self.bench.undo.append(self.remove)

    def uris(self):
        return [unix_uri(self.sock, n) for n in self.images]

    def view_uri(self):
        """The newest checkpoint of the first disk: while it is open, write-out does not go past it."""
        return unix_uri(self.sock, next(iter(self.images)) + "@latest")

    def pids(self):
        return [self.process.pid]

    def control(self):
        return self.journal

    # --- Control ---

    def request(self, line):
        return self._control.ask(line)

    def status(self):
        return self._control.ask("status")

    def commit(self):
        return self._control.ask("commit")

    def drained(self):
        """Wait until the images are the last checkpoint."""
        def is_drained():
            s = self.status()
            if s["writeout"].get("error"):
                raise BenchError("mcbuf: write-out: %s" % s["writeout"]["error"])
            return s["written_out"] == s["checkpoint"]["id"]
        wait_for("write-out", is_drained)

    def settle(self):
        self.drained()
        for path in self.images.values():
            sync_file(path)

    def memory(self):
        return memory(self.process.pid)

    # --- The end ---

    def kill(self):
        """SIGKILL: recovery's case."""
        self._control.close()
        self.bench.end(self.process, gently=False)

    def stop(self):
        """It is not needed any more, nor is anything that it has."""
        self.kill()
        self.remove()
        self.bench.undo.remove(self.remove)

    def remove(self):
        for path in glob.glob("/dev/shm/mcbuf-%s*" % self.replica):
            os.unlink(path)
        shutil.rmtree(self.dir, ignore_errors=True)


def warm(bench, server):
    """Go round the journal once: what is measured is one that has been in use."""
    bench.client(server.uris()[:1], checkpoint="commit", control=server.journal,
                 pattern="sequential", size=MiB, requests=32,
                 epochs=max(2, server.journal_size // (32 * MiB)))
    server.settle()
