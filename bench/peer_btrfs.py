# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit file on a btrfs subvolume, with a snapshot of it for each checkpoint.

The file system is in a file, mounted by a loop device in a mount namespace of the driver's
own: when the driver is gone the mount and the device are, too.
"""

import ctypes
import fcntl
import os
import struct

from benchlib import BenchError, GiB, Peer, Skip, need, run, unix_uri, write_image

CLONE_NEWNS = 0x20000
BTRFS_IOC_SNAP_CREATE = 0x50009401
BTRFS_IOC_SUBVOL_CREATE = 0x5000940e
BTRFS_IOC_SNAP_DESTROY = 0x5000940f
KEPT = 2                                # snapshots


def volume(name, fd=0):
    """struct btrfs_ioctl_vol_args"""
    return bytearray(struct.pack("=q4088s", fd, name.encode()))     # ioctl () takes no such long bytes


class Btrfs(Peer):
    name = "btrfs"
    text = "`nbdkit file` on btrfs (loop mount); a checkpoint is a snapshot of the subvolume"
    checkpoint = "ask"
    slow = True

    def __init__(self, bench, size, disks=1):
        if disks != 1:
            raise Skip("it is measured with one disk")
        super().__init__(bench, size)
        self.mnt = bench.unique("btrfs")
        self.backing = self.mnt + ".fs"
        self.process = self.root = self.subvolume = None
        self.snapshots, self.made = [], 0

    def start(self):
        if os.geteuid() != 0:
            raise Skip("a loop mount needs root")
        mkfs, mount = need("mkfs.btrfs"), need("mount")
        write_image(self.backing, 4 * self.size + GiB, sparse=True)
        os.mkdir(self.mnt)
        try:
            run([mkfs, "-q", self.backing])
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
                raise Skip("no mount namespace: %s" % os.strerror(ctypes.get_errno()))
            run([mount, "--make-rprivate", "/"])
            run([mount, "-o", "loop,noatime", self.backing, self.mnt])
        except BenchError as error:
            raise Skip("a loop mount of btrfs is not allowed here: %s" % error) from None
        self.bench.undo.append(self.unmount)
        self.device = self._loop_device()
        self.root = os.open(self.mnt, os.O_RDONLY)
        fcntl.ioctl(self.root, BTRFS_IOC_SUBVOL_CREATE, volume("disk"))
        self.subvolume = os.open(os.path.join(self.mnt, "disk"), os.O_RDONLY)
        image = write_image(os.path.join(self.mnt, "disk/disk.img"), self.size)
        self.process, self.sock = self.bench.nbdkit("file", image)
        return self

    def _loop_device(self):
        with open("/proc/self/mountinfo") as f:
            for line in f:
                fields = line.split()
                if fields[4] == self.mnt:
                    dev = os.stat(fields[fields.index("-") + 2]).st_rdev
                    return "%d:%d" % (os.major(dev), os.minor(dev))
        return None

    def uris(self):
        return [unix_uri(self.sock)]

    def pids(self):
        return [self.process.pid]

    def ask(self):
        """The ioctl returns when the transaction with the snapshot is durable."""
        name = "s%d" % self.made
        self.made += 1
        fcntl.ioctl(self.root, BTRFS_IOC_SNAP_CREATE, volume(name, self.subvolume))
        self.snapshots.append(name)
        return self._drop_old

    def _drop_old(self):
        while len(self.snapshots) > KEPT:
            fcntl.ioctl(self.root, BTRFS_IOC_SNAP_DESTROY, volume(self.snapshots.pop(0)))

    def settle(self):
        os.fsync(self.subvolume)

    def stop(self):
        self.bench.end(self.process)
        self.unmount()
        self.bench.undo.remove(self.unmount)

    def unmount(self):
        for fd in (self.subvolume, self.root):
            if fd is not None:
                os.close(fd)
        self.subvolume = self.root = None
        run(["umount", self.mnt])
        os.unlink(self.backing)
