# SPDX-License-Identifier: BSD-3-Clause
"""A client that keeps many requests in flight and knows what must come of them.

Load drives a replica by NBD (asynchronously, on one or more connections per
disk) and by its control socket, in one thread, so that the test decides to
the instant where the server dies.  Beside it runs the model: plain bytes.

What is sure: a request acknowledged before a seal was asked for is in the
sealed epoch, one sent after the seal's reply is not.  A request in flight
meanwhile may be in either epoch; the model keeps both answers for its range.
(No two requests in flight at once overlap, and while a seal is unanswered
no new one is sent, so there are never more than two.)
"""

import errno
import select
import time

import nbd

from libmcbuf import (KiB, MiB, Control, check, done, equal,
                      first_difference, poll, random_data, random_range,
                      read_all)


def sectors(offset, length):
    """OFFSET, LENGTH as the pieces that cannot be torn: cut where sectors are."""
    end = offset + length
    while offset < end:
        high = min(offset // 512 * 512 + 512, end)
        yield offset, high
        offset = high


class Snapshot:
    """What the disks may be: bytes, and ranges that may be one or the other."""

    def __init__(self, disks, flying=()):
        self.content = [bytes(d.now) for d in disks]
        self.either = [(op.disk, op.offset, op.old, op.new) for op in flying]

    def difference(self, images):
        """None if IMAGES are one of the possibilities, else where they are not."""
        for i, content in enumerate(self.content):
            got, want = images[i], bytearray(content)
            for disk, at, old, new in self.either:
                if disk == i:
                    for low, high in sectors(at, len(old)):
                        piece = bytes(got[low:high])
                        if piece not in (old[low - at:high - at],
                                         new[low - at:high - at]):
                            return "disk %d: neither old nor new at %d" % (i, low)
                    want[at:at + len(old)] = got[at:at + len(old)]
            where = first_difference(bytes(got), bytes(want))
            if where:
                return "disk %d: image and model part at %s" % (i, where)
        return None


class Op:
    """One NBD request that changes something."""

    def __init__(self, disk, offset, old, new):
        self.disk, self.offset, self.old, self.new = disk, offset, old, new
        self.buffer = None


class Load:
    def __init__(self, rng, disks, names=("",), depth=8, conns=1,
                 most=64 * KiB, backlog=4 * MiB):
        self.rng = rng
        self.disks = disks              # libmcbuf.Disk: what was acknowledged
        self.names = names
        self.depth, self.conns, self.most = depth, conns, most
        self.backlog = backlog          # uncommitted bytes before a commit is due
        self.sealed = {}                # epoch -> Snapshot, not committed yet
        self.committed = Snapshot(disks)
        self.checkpoint = 0             # newest acknowledged commit
        self.asked = None               # the control request in flight
        self.asked_epoch = None         # the checkpoint that it would make
        self.handles = []
        self.control = None
        self.ops = self.commits = 0
        self.error = None

    # --- Connections ---

    def attach(self, server):
        self.server = server
        self.flying = []
        self.uncommitted = 0
        self.asked = self.asked_epoch = None
        self.handles = [(disk, server.connect(name))
                        for disk, name in enumerate(self.names)
                        for _ in range(self.conns)]
        self.control = Control(server.journal)
        self.epoch = done(self.control.ask("status"))["open_epoch"]

    def detach(self):
        for _, h in self.handles:
            try:
                h.shutdown()
            except nbd.Error:
                pass
        self.handles = []
        self.control.close()

    def drop(self):
        """The server is dead; FLYING stays for the model."""
        self.handles = []
        self.control.close()

    # --- Requests ---

    def _overlaps(self, disk, offset, length):
        # Sectors are the unit of tearing: keep whole sectors apart.
        low, high = offset // 512 * 512, -(-(offset + length) // 512) * 512
        return any(op.disk == disk and op.offset < high
                   and low < op.offset + len(op.old) for op in self.flying)

    def submit(self):
        """Send one random write, zero or trim.  False when its range is busy."""
        disk, h = self.rng.choice(self.handles)
        model = self.disks[disk]
        offset, length = random_range(self.rng, model.size, self.most)
        if self._overlaps(disk, offset, length):
            return False
        old = bytes(model.now[offset:offset + length])
        kind = self.rng.random()
        new = random_data(self.rng, length) if kind < 0.85 else bytes(length)
        op = Op(disk, offset, old, new)

        def complete(error):
            error = getattr(error, "value", error)
            if error:               # an exception would not leave libnbd
                self.error = "%d bytes at %d: errno %d" % (length, offset, error)
            self.flying.remove(op)
            model.write(op.offset, op.new)
            self.ops += 1
            return 1

        if kind < 0.85:
            op.buffer = nbd.Buffer.from_bytearray(bytearray(new))
            h.aio_pwrite(op.buffer, offset, completion=complete,
                         flags=nbd.CMD_FLAG_FUA if self.rng.random() < 0.05 else 0)
        elif kind < 0.95:
            h.aio_zero(length, offset, completion=complete)
        else:
            h.aio_trim(length, offset, completion=complete)
        self.flying.append(op)
        self.uncommitted += length
        return True

    def ask(self, request):
        """Send a control request; its reply is met in step ()."""
        check(self.asked is None, "one control request at a time")
        self.asked = request
        if request == "seal" or request == "commit":
            self.sealed[self.epoch] = Snapshot(self.disks, self.flying)
            self.uncommitted = 0
        self.asked_epoch = None
        if request == "commit":
            self.asked_epoch = self.epoch
        elif request.startswith("commit epoch="):
            self.asked_epoch = int(request[len("commit epoch="):])
        self.control.send(request)

    def _seals(self):
        return self.asked in ("seal", "commit")

    def answered(self, reply):
        """The reply to the control request in flight."""
        done(reply)
        if self._seals():
            if self.asked == "seal":
                equal(reply["sealed"], self.epoch, "sealed epoch")
            self.epoch += 1
        if self.asked_epoch is not None:
            equal(reply["checkpoint"], self.asked_epoch, "checkpoint")
            self.set_checkpoint(self.asked_epoch)
            self.commits += 1
        self.asked = self.asked_epoch = None

    def set_checkpoint(self, epoch):
        if epoch != self.checkpoint:
            self.committed = self.sealed[epoch]
            self.checkpoint = epoch
        for e in [e for e in self.sealed if e <= epoch]:
            del self.sealed[e]

    def _poll_control(self):
        if self.asked and select.select([self.control.sock], [], [], 0)[0]:
            reply = self.control.receive()
            if reply is not None:
                self.answered(reply)

    def _poll_nbd(self, timeout):
        """Let every connection make what progress it can; wait TIMEOUT s for one."""
        poller = select.poll()
        by_fd = {}
        for _, h in self.handles:
            direction = h.aio_get_direction()
            events = ((select.POLLIN if direction & 1 else 0)
                      | (select.POLLOUT if direction & 2 else 0))
            fd = h.aio_get_fd()
            by_fd[fd] = h
            poller.register(fd, events)
        if self.asked:
            poller.register(self.control.sock, select.POLLIN)
        for fd, events in poller.poll(timeout * 1000):
            h = by_fd.get(fd)
            if h is None:
                continue
            direction = h.aio_get_direction()
            if events & (select.POLLIN | select.POLLHUP) and direction & 1:
                h.aio_notify_read()
            elif events & select.POLLOUT and direction & 2:
                h.aio_notify_write()
        check(self.error is None, "a write failed:", self.error)

    def step(self, timeout=0.001):
        """Send what there is room for, take what has come."""
        if not self._seals() and self.uncommitted < self.backlog:
            for _ in range(self.depth):
                if len(self.flying) >= self.depth * len(self.handles):
                    break
                self.submit()
        self._poll_nbd(timeout)
        self._poll_control()

    def steer(self):
        """Now and then seal and commit, as a primary would."""
        if self.asked:
            return
        if self.uncommitted >= self.backlog:
            self.ask("commit")
            return
        luck = self.rng.random()
        if luck < 0.04:
            self.ask("commit")
        elif luck < 0.08:
            self.ask("seal")
        elif luck < 0.14 and self.sealed:
            self.ask("commit epoch=%d" % self.rng.choice(sorted(self.sealed)))

    def settle(self):
        """Wait until nothing is in flight."""
        deadline = time.monotonic() + 60
        while self.flying or self.asked:
            self._poll_nbd(0.01)
            self._poll_control()
            check(time.monotonic() < deadline, "requests without an answer:",
                  len(self.flying), self.asked)

    # --- After a SIGKILL ---

    def kill(self):
        """SIGKILL the server now; take what it had answered before."""
        self.server.kill()
        if self.asked:
            reply = self.control.receive()
            if reply is not None:
                self.answered(reply)
        self.drop()

    def images_after_recovery(self, images, checkpoint):
        """IMAGES, recovered to CHECKPOINT, against the model."""
        allowed = {self.checkpoint: self.committed}
        if self.asked_epoch is not None:
            allowed[self.asked_epoch] = self.sealed[self.asked_epoch]
        check(checkpoint in allowed, "recovered to", checkpoint, "of", sorted(allowed))
        where = allowed[checkpoint].difference(images)
        check(where is None, "checkpoint", checkpoint, where)

    def resume(self):
        """A new server took over: hold what it has against the model, adopt it, go on."""
        status = done(self.server.status())
        newest = status["checkpoint"]["id"] if status["checkpoint"] else 0
        allowed = {self.checkpoint, self.asked_epoch} - {None}
        check(newest in allowed, "restarted at checkpoint", newest, "of", allowed)
        opened, pending = status["open_epoch"], self.epoch
        if self._seals() and opened <= pending:
            self.sealed.pop(pending, None)      # that seal never happened
        if newest != self.checkpoint:
            self.set_checkpoint(newest)
        now = Snapshot(self.disks, self.flying)
        images = []
        for name in self.names:
            h = self.server.connect(name)
            images.append(read_all(h))
            h.shutdown()
        where = now.difference(images)
        check(where is None, "after the takeover:", where)
        for disk, image in zip(self.disks, images):
            disk.now[:] = image
        self.attach(self.server)
        return status


def wait_errno(h, cookie):
    """Wait for one asynchronous request; 0 or its errno."""
    def is_done():
        try:
            return h.aio_command_completed(cookie)
        except nbd.Error as error:
            return error.errnum or errno.EIO
    try:
        value = poll("an NBD reply", lambda: h.poll(10) >= 0 and is_done())
    except nbd.Error as error:
        return error.errnum or errno.EIO
    return 0 if value is True else value
