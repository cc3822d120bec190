# SPDX-License-Identifier: BSD-3-Clause
"""qemu-storage-daemon: a qcow2 snapshot for each checkpoint, the layer below committed behind it."""

import os
import shutil

from benchlib import sync_file, unix_uri, write_image
from peer_qemu import QemuPeer


class Daemon(QemuPeer):
    name = "daemon"
    text = "`qemu-storage-daemon`; a checkpoint is `blockdev-snapshot`, then `block-commit` of the layer below"
    checkpoint = "ask"
    program = "qemu-storage-daemon"

    def start(self):
        os.mkdir(self.dir)
        disk = write_image(self.file("disk.raw"), self.size)
        self.overlay("empty.qcow2")
        self.begin([
            "--chardev", "socket,id=m,path=%s,server=on,wait=off" % self.file("qmp"),
            "--monitor", "m",
            "--blockdev", "driver=file,node-name=base-file,filename=%s" % disk,
            "--blockdev", "driver=raw,node-name=base,file=base-file",
            "--nbd-server", "addr.type=unix,addr.path=%s" % self.sock,
            "--export", "nbd,id=e,node-name=base,name=disk,writable=on"])
        self.layers, self.top, self.commits = 0, "base", None
        self._next_layer()
        self.ask()              # the first layer: nothing is below it yet
        self._next_layer()
        return self

    def _next_layer(self):
        """A fresh qcow2 file, ready to be put on top."""
        self.layers += 1
        name = "o%d" % self.layers
        shutil.copyfile(self.file("empty.qcow2"), self.file(name))
        self.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=None,
                         file={"driver": "file", "filename": self.file(name)})
        self.fresh = name

    def _finish_commit(self):
        if self.commits:
            self.qmp.wait_job(self.commits)
            self.qmp.command("blockdev-del", node_name=self.commits)
            os.unlink(self.file(self.commits))
            self.commits = None
        self.qmp.forget()

    def ask(self):
        self._finish_commit()
        below, self.top = self.top, self.fresh
        self.qmp.command("blockdev-snapshot", node=below, overlay=self.top)
        if below == "base":
            return None

        def after():
            self.qmp.command("block-commit", job_id=below, device=self.top, top_node=below,
                             base_node="base")
            self.commits = below
            self._next_layer()
        return after

    def uris(self):
        return [unix_uri(self.sock, "disk")]

    def settle(self):
        self._finish_commit()
        sync_file(self.file("disk.raw"))

    def stop(self):
        super().stop()
        shutil.rmtree(self.dir, ignore_errors=True)
