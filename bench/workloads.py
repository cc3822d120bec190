# SPDX-License-Identifier: BSD-3-Clause
"""What the peers are given to do, and how one of them is given it."""

import json
import os
import shutil
import subprocess
import tempfile

import figures
from benchlib import DEADLINE, BenchError, KiB, MiB, counters, last_line, spent

ALL = ("mcbuf", "file", "memory", "null", "colo", "daemon", "btrfs")
NBDKIT = ("mcbuf", "file", "memory", "null")


class Workload:
    """Epochs of requests.  EPOCHS: how many in a full run, of a slow peer, in a short run, of a slow peer."""

    def __init__(self, name, text, requests, size, epochs, peers=ALL, disks=1, depth=16,
                 checkpoint=None, **keys):
        self.name, self.text = name, text
        self.requests, self.size, self.epochs = requests, size, epochs
        self.peers, self.disks, self.depth = peers, disks, depth
        self.checkpoint = checkpoint            # instead of the peer's own
        self.keys = keys                        # for the client

    def run(self, bench, peer, round_, scale=1):
        """One peer, one round: figures."""
        epochs = self.epochs[(2 if bench.quick else 0) + (1 if peer.slow else 0)]
        epochs = max(2, int(epochs * scale))
        requests = max(8, int(self.requests * scale))
        keys = dict(self.keys)
        keys.setdefault("length", peer.size * 3 // 4)   # the rest is for reads
        if keys.get("hold"):
            keys["hold"] = peer.view_uri()
        how = self.checkpoint or peer.checkpoint
        before = counters(peer.pids(), peer.device)
        out = bench.client(peer.uris(), ask=peer.ask, epochs=epochs, requests=requests,
                           size=self.size, depth=self.depth, seed=round_ * 100 + len(self.name),
                           checkpoint=how, control=peer.control(), **keys)
        peer.settle()                           # write-out is part of what it costs
        after = counters(peer.pids(), peer.device)
        written = 0 if keys.get("op") == "read" else out["bytes"]
        out.update(spent(before, after, out["requests"], written))
        return out


WORKLOADS = [
    Workload("64x4K", "epochs of 64 random 4 KiB writes", 64, 4 * KiB, (200, 20, 80, 6)),
    Workload("1024x4K", "epochs of 1 024 random 4 KiB writes", 1024, 4 * KiB, (50, 8, 15, 3)),
    Workload("16384x4K", "epochs of 16 384 random 4 KiB writes", 16384, 4 * KiB, (8, 2, 2, 2)),
    Workload("64M-by-64K", "epochs of a 64 MiB stream by 64 KiB", 1024, 64 * KiB, (15, 4, 3, 2),
             pattern="sequential"),
    Workload("64M-by-1M", "epochs of a 64 MiB stream by 1 MiB, queue depth 16", 64, MiB,
             (15, 4, 3, 2), pattern="sequential"),
    Workload("1M-qd4", "epochs of a 64 MiB stream by 1 MiB, queue depth 4", 64, MiB,
             (15, 4, 4, 2), depth=4, pattern="sequential", peers=NBDKIT),
    Workload("hot", "epochs of 1 024 4 KiB writes, nine in ten to a hundredth of the disk", 1024,
             4 * KiB, (50, 8, 10, 2), pattern="hot"),
    Workload("sparse", "epochs of 1 024 requests: half 4 KiB writes, a quarter each 64 KiB zeroes and trims",
             1024, 4 * KiB, (50, 8, 10, 2), pattern="sparse", peers=("mcbuf", "file")),
    Workload("4-disks", "epochs of 1 024 random 4 KiB writes to 4 disks at once", 1024, 4 * KiB,
             (50, 8, 10, 2), disks=4, peers=("mcbuf", "file")),
    Workload("held-64", "epochs of 64 random 4 KiB writes, write-out held back by a view", 64,
             4 * KiB, (200, 20, 100, 6), peers=("mcbuf",), hold=True),
    Workload("held-1024", "epochs of 1 024 random 4 KiB writes, write-out held back by a view", 1024,
             4 * KiB, (100, 8, 20, 3), peers=("mcbuf",), hold=True),
    Workload("held-16384", "epochs of 16 384 random 4 KiB writes, write-out held back by a view",
             16384, 4 * KiB, (16, 2, 6, 2), peers=("mcbuf",), hold=True),
    Workload("paced-64", "epochs of 64 random 4 KiB writes, 40 a second", 64, 4 * KiB,
             (200, 40, 40, 8), period=25000, peers=("mcbuf", "file", "btrfs")),
    Workload("paced-1024", "epochs of 1 024 random 4 KiB writes, 40 a second", 1024, 4 * KiB,
             (200, 40, 40, 8), period=25000, peers=("mcbuf", "file", "btrfs")),
    Workload("seal-64", "64 random 4 KiB writes; seal, then commit", 64, 4 * KiB,
             (200, 20, 100, 6), peers=("mcbuf",), checkpoint="seal"),
    Workload("seal-1024", "1 024 random 4 KiB writes; seal, then commit", 1024, 4 * KiB,
             (100, 8, 20, 3), peers=("mcbuf",), checkpoint="seal"),
    Workload("seal-16384", "16 384 random 4 KiB writes; seal, then commit", 16384, 4 * KiB,
             (20, 2, 4, 2), peers=("mcbuf",), checkpoint="seal"),
]


class Reads(Workload):
    """Reads of the last quarter of the disk; nothing else goes there.

    A replica has an open epoch with entries meanwhile, for that is when it is read.
    """

    def run(self, bench, peer, round_, scale=1):
        quarter = peer.size // 4
        self.keys = {"op": "read", "offset": 3 * quarter, "length": quarter,
                     "pattern": self.keys.get("pattern", "random")}
        if peer.name == "mcbuf":
            bench.client(peer.uris(), requests=max(8, int(1024 * scale)), length=quarter, seed=round_)
        return super().run(bench, peer, round_, scale)


READS = [
    Reads("read-4K", "random 4 KiB reads of an untouched range, with an open epoch elsewhere",
          4096, 4 * KiB, (10, 2, 5, 2), peers=NBDKIT, checkpoint="none"),
    Reads("read-64K", "a stream of 64 KiB reads of an untouched range", 1024, 64 * KiB,
          (5, 2, 2, 2), peers=NBDKIT, checkpoint="none", pattern="sequential"),
]


class Fio:
    """fio's own client; nothing is committed while it runs."""

    disks = 1
    peers = NBDKIT

    def __init__(self, bs, depth, mib):
        self.bs, self.depth, self.mib = bs, depth, mib
        self.name = "fio-%s-qd%d" % (bs, depth)
        self.text = "fio: %s writes, queue depth %d" % (bs, depth)

    def run(self, bench, peer, round_, scale=1):
        mib = max(1, int(self.mib * scale / (4 if bench.quick else 1)))
        argv = ["fio", "--name=w", "--ioengine=nbd", "--uri=" + peer.uris()[0],
                "--rw=%s" % ("randwrite" if self.bs == "4k" else "write"), "--bs=" + self.bs,
                "--iodepth=%d" % self.depth, "--size=%d" % (peer.size * 3 // 4),
                "--io_size=%dm" % mib, "--randseed=%d" % round_, "--norandommap",
                "--thread", "--output-format=json"]
        # fio leaves files behind in its working directory.
        with tempfile.TemporaryDirectory(dir=bench.dir) as cwd:
            p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=cwd,
                               stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=False)
        if p.returncode != 0:
            raise BenchError("fio: %s" % last_line(p.stderr or p.stdout))
        w = json.loads(p.stdout[p.stdout.index("{"):])["jobs"][0]["write"]
        if peer.name == "mcbuf":
            peer.commit()
        peer.settle()
        return figures.flatten({
            "iops": w["iops"], "mb_s": w["bw_bytes"] / 1e6,
            "request_us": {"p50": w["clat_ns"]["percentile"]["50.000000"] / 1e3,
                           "p99": w["clat_ns"]["percentile"]["99.000000"] / 1e3,
                           "max": w["clat_ns"]["max"] / 1e3}})


FIO = [Fio(bs, depth, mib) for bs, mib in (("4k", 32), ("64k", 128), ("1m", 256))
       for depth in (1, 16, 64)]


def has_fio():
    """fio with its NBD engine?"""
    if shutil.which("fio") is None:
        return False
    p = subprocess.run(["fio", "--enghelp"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.DEVNULL, text=True, check=False)
    return "nbd" in p.stdout.split()


def environment(bench):
    """What figures depend on, for the report."""
    def first(argv):
        try:
            return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True,
                                  check=False).stdout.split("\n")[0].strip()
        except OSError:
            return "none"

    model = "unknown processor"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    mounts, kind = {}, "unknown"
    with open("/proc/self/mountinfo") as f:
        for line in f:
            fields = line.split()
            mounts[fields[4]] = fields[fields.index("-") + 1]
    best = max((m for m in mounts if (bench.dir + "/").startswith(m.rstrip("/") + "/")),
               key=len, default=None)
    if best:
        kind = mounts[best]
    return {"cpu": model, "cores": os.cpu_count(), "kernel": os.uname().release,
            "load": os.getloadavg()[0], "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
            "file_system": kind, "nbdkit": first(["nbdkit", "--version"]),
            "qemu": first(["qemu-system-x86_64", "--version"]), "fio": first(["fio", "--version"])}
