# SPDX-License-Identifier: BSD-3-Clause
"""What every part of "make bench" uses: a place for images, processes, counters, the client.

Whatever was started is ended, and whatever was made is removed, when a Bench is left,
also by an error or a signal; children die with the driver even when that gets SIGKILL.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import figures

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
DEADLINE = 120
CLIENT_DEADLINE = 600


class BenchError(Exception):
    """Something needed is missing or broke; the text is one line for people."""


class Skip(Exception):
    """This peer cannot run here; the text says why."""


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)          # PR_SET_PDEATHSIG


def need(program, where="PATH"):
    """Its path, or Skip."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Skip("%s is not in %s" % (program, where))
    return path


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def run(argv):
    """A command that has to succeed; its standard output."""
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, preexec_fn=_die_with_parent,
                       check=False)
    if p.returncode != 0:
        raise BenchError("%s: exit %d: %s" % (" ".join(argv), p.returncode, last_line(p.stderr)))
    return p.stdout


def wait_for(what, condition, seconds=DEADLINE):
    """Poll until CONDITION () is true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise BenchError("waited %d s for: %s" % (seconds, what))
        time.sleep(0.001)


def write_image(path, size, sparse=False):
    """An image with data in every block, durable: a disk that has been in use."""
    with open(path, "wb") as f:
        if sparse:
            f.truncate(size)
            return path
        piece = os.urandom(MiB)
        for at in range(0, size, MiB):
            f.write(piece[:size - at])
        f.flush()
        os.fsync(f.fileno())
    return path


def sync_file(path):
    fd = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


# --- Counters of the kernel ---

def device_of(path):
    """major:minor of the block device below PATH, or None (tmpfs, overlay)."""
    dev = os.stat(path).st_dev
    name = "%d:%d" % (os.major(dev), os.minor(dev))
    return name if os.path.exists("/sys/dev/block/%s/stat" % name) else None


def counters(pids, device):
    """What processes and a device have done so far.

    The device's figure is everybody's; but /proc/PID/io counts whole folios of the page cache
    at the first write to each, which is many times what reaches the disk.
    """
    c = {"cpu": 0.0, "device": None}
    for pid in pids:
        with open("/proc/%d/stat" % pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        c["cpu"] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if device:
        with open("/sys/dev/block/%s/stat" % device) as f:
            c["device"] = int(f.read().split()[6]) * 512
    return c


def spent(before, after, requests, nbytes):
    """The difference, for a request and for a byte of data."""
    out = {"cpu_us": (after["cpu"] - before["cpu"]) * 1e6 / requests}
    if nbytes and before["device"] is not None:
        out["disk_bytes_per_byte"] = (after["device"] - before["device"]) / nbytes
    return out


def memory(pid):
    """{"anon": bytes, "shared": bytes} that are resident."""
    out = {}
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            key, _, rest = line.partition(":")
            if key in ("RssAnon", "RssShmem"):
                out[{"RssAnon": "anon", "RssShmem": "shared"}[key]] = int(rest.split()[0]) * KiB
    return out


# --- The place ---

class Bench:
    """One run of the benchmark: with Bench (...) as bench."""

    def __init__(self, build, where=None, quick=False):
        self.build = os.path.abspath(build)
        self.quick = quick
        self.plugin = os.path.join(self.build, "plugin/.libs/nbdkit-mcbuf-plugin.so")
        self.where = where or os.environ.get("TMPDIR") or "/var/tmp"
        self.dir = None
        self.processes = []
        self.undo = []
        self._names = 0

    def __enter__(self):
        for path in (self.plugin, self.program("client"), self.tool("mcbuf-commit")):
            if not os.path.exists(path):
                raise BenchError("%s is not there: run make first" % path)
        if shutil.which("nbdkit") is None:
            raise BenchError("nbdkit is not in PATH: contrib/install-packages build")
        if not os.path.isdir(self.where):
            raise BenchError("BENCH_DIR: %s is not a directory" % self.where)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupted)
        self.dir = tempfile.mkdtemp(prefix="mcbuf-bench-", dir=self.where)
        return self

    @staticmethod
    def _interrupted(number, _frame):
        raise SystemExit(128 + number)

    def __exit__(self, *_):
        for p in reversed(self.processes):
            self.end(p, gently=False)
        for action in reversed(self.undo):
            try:
                action()
            except (OSError, BenchError) as error:
                print("bench: cleaning up: %s" % error, flush=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def program(self, name):
        return os.path.join(self.build, "bench", name)

    def tool(self, name):
        return os.path.join(self.build, "tools", name)

    def path(self, name):
        return os.path.join(self.dir, name)

    def unique(self, stem):
        self._names += 1
        return self.path("%s%d" % (stem, self._names))

    def free_space(self):
        s = os.statvfs(self.dir)
        return s.f_bavail * s.f_frsize

    # --- Processes ---

    def spawn(self, argv, log):
        with open(log, "wb") as out:
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=subprocess.STDOUT, cwd=self.dir,
                                 preexec_fn=_die_with_parent)
        self.processes.append(p)
        return p

    def end(self, process, gently=True):
        if process.poll() is None:
            process.terminate() if gently else process.kill()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def nbdkit(self, *arguments):
        """Start a server; (process, socket)."""
        sock = self.unique("s")
        log = sock + ".log"
        process = self.spawn(["nbdkit", "-f", "-U", sock, "-P", sock + ".pid"]
                             + [str(a) for a in arguments], log)

        def is_up():
            return (process.poll() is not None
                    or (os.path.exists(sock + ".pid") and os.path.getsize(sock + ".pid")))
        wait_for("nbdkit to start", is_up)
        if process.poll() is not None:
            with open(log, errors="replace") as f:
                raise BenchError("nbdkit %s: %s" % (arguments[0], last_line(f.read())))
        return process, sock

    def json_of(self, argv):
        """Run a program that prints one line of JSON."""
        return json.loads(run([str(a) for a in argv]))

    def client(self, uris, ask=None, **keys):
        """Run the load; its figures.  ASK makes a checkpoint where the client asks for one."""
        argv = [self.program("client")] + ["uri=" + u for u in uris]
        argv += ["%s=%s" % item for item in keys.items() if item[1] is not None]
        p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, preexec_fn=_die_with_parent)
        self.processes.append(p)
        watch = threading.Timer(CLIENT_DEADLINE, p.kill)
        watch.daemon = True
        watch.start()
        out = ""
        try:
            for line in p.stdout:
                if line == "checkpoint\n":
                    after = ask()
                    p.stdin.write("ok\n")
                    p.stdin.flush()
                    if after:           # not part of the checkpoint: the client goes on
                        after()
                else:
                    out += line
            said = p.stderr.read()
            p.wait()
        finally:
            watch.cancel()
            self.end(p, gently=False)
            for pipe in (p.stdin, p.stdout, p.stderr):
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        if p.returncode != 0:
            raise BenchError(last_line(said) if said else "the client did not end in %d s"
                             % CLIENT_DEADLINE)
        return figures.flatten(json.loads(out))


class Peer:
    """A server that is measured.  start () may raise Skip."""

    name = "?"                  # what tables call it
    text = ""                   # what it is
    checkpoint = "none"         # see client.c
    slow = False                # fewer epochs

    def __init__(self, bench, size, disks=1):
        self.bench = bench
        self.size, self.disks = size, disks
        self.device = device_of(bench.dir)

    def start(self):
        raise NotImplementedError

    def uris(self):
        """One for each disk."""
        raise NotImplementedError

    def pids(self):
        raise NotImplementedError

    def control(self):
        """The journal directory, for the client."""
        return None

    def ask(self):
        """Make a checkpoint; may return what to do when the client goes on."""
        raise NotImplementedError

    def settle(self):
        """Wait until everything that was acknowledged is where it belongs."""

    def stop(self):
        pass


def unix_uri(sock, export=""):
    return "nbd+unix:///%s?socket=%s" % (export, sock)
