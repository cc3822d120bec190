# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's COLO block replication as the secondary: an undo log in a hidden overlay."""

import os
import shutil

from benchlib import Skip, sync_file, unix_uri, write_image
from peer_qemu import QMPError, QemuPeer


class Colo(QemuPeer):
    name = "colo"
    text = "QEMU's COLO replication, secondary; a checkpoint is `xen-colo-do-checkpoint` and a flush"
    checkpoint = "ask-flush"
    program = "qemu-system-x86_64"

    def start(self):
        os.mkdir(self.dir)
        disk = write_image(self.file("disk.raw"), self.size)
        active, hidden = self.overlay("active.qcow2"), self.overlay("hidden.qcow2")
        self.begin([
            "-machine", "none", "-nodefaults", "-display", "none",
            "-qmp", "unix:%s,server=on,wait=off" % self.file("qmp"),
            "-drive", "if=none,id=colo1,driver=raw,file.filename=%s" % disk,
            "-drive", "if=none,id=childs1,driver=replication,mode=secondary,top-id=childs1,"
            "file.driver=qcow2,file.file.filename=%s,file.backing.driver=qcow2,"
            "file.backing.file.filename=%s,file.backing.backing=colo1" % (active, hidden)])
        try:
            self.qmp.command("nbd-server-start",
                             addr={"type": "unix", "data": {"path": self.sock}})
            self.qmp.command("nbd-server-add", device="colo1", writable=True)
            self.qmp.command("xen-set-replication", enable=True, primary=False)
        except QMPError as error:
            raise Skip("QEMU refuses replication: %s" % error) from None
        return self

    def uris(self):
        return [unix_uri(self.sock, "colo1")]

    def ask(self):
        self.qmp.execute("xen-colo-do-checkpoint", {})
        self.qmp.forget()

    def settle(self):
        sync_file(self.file("disk.raw"))

    def stop(self):
        super().stop()
        shutil.rmtree(self.dir, ignore_errors=True)
