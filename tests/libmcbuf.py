# SPDX-License-Identifier: BSD-3-Clause
"""What the Python tests share: private directories, servers, tools, models.

A test script defines functions test_*() that take a Test and calls
main(globals()).  Each gets a directory of its own; whatever it started is
ended by process id when it returns.  A name on the command line picks tests.

Environment: top_builddir (default: the parent of the directory that make
check runs in), MCBUF_TEST_SEED (replays a random test), MCBUF_WRAPPER (put before
nbdkit and the tools, for example "valgrind -q --error-exitcode=119").
"""

import ctypes
import errno
import glob
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

try:
    import nbd
except ImportError:
    print("SKIP: this Python has no libnbd bindings (python3-libnbd)")
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.abspath(os.environ.get("top_builddir", ".."))
PLUGIN = os.path.join(BUILD, "plugin/.libs/nbdkit-mcbuf-plugin.so")
FAULTS = os.path.join(BUILD, "tests/.libs/libfaults.so")
WRAPPER = shlex.split(os.environ.get("MCBUF_WRAPPER", ""))
# End what is left over so that it can write down its coverage (make coverage).
GENTLE = bool(os.environ.get("MCBUF_GENTLE"))

KiB, MiB = 1 << 10, 1 << 20

# A slow tool (valgrind, a sanitizer) stretches every deadline.
SLOW = 10 if WRAPPER else 1
DEADLINE = 60 * SLOW

# Exit codes of DESIGN.md.
DONE, USAGE, REFUSED, NO_CHECKPOINT, DAMAGE, PARTIAL = range(6)


class Failure(AssertionError):
    """A test's own verdict."""


class StartError(Exception):
    """The server did not start; the text is what it said."""


def check(condition, *what):
    if not condition:
        raise Failure(" ".join(str(w) for w in what))


def shown(value):
    """VALUE for a message: not megabytes of it."""
    text = repr(value)
    return text if len(text) <= 400 else "%s... (%d)" % (text[:400], len(text))


def equal(got, want, *what):
    if got != want:
        where = ""
        if isinstance(got, bytes) and isinstance(want, bytes):
            where = "; they part at " + first_difference(got, want)
        raise Failure("%s: got %s, want %s%s" % (" ".join(str(w) for w in what),
                                                 shown(got), shown(want), where))


def skip(why):
    print("SKIP: %s" % why)
    sys.exit(77)


def poll(what, condition, seconds=None):
    """Wait until CONDITION () is true; returns its value."""
    deadline = time.monotonic() + (seconds or DEADLINE)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure("waited too long for: %s" % what)
        time.sleep(0.005)


def first_difference(a, b):
    """Where two byte strings part, in words; None when they are equal."""
    if a == b:
        return None
    if len(a) != len(b):
        return "lengths %d and %d" % (len(a), len(b))
    low, high = 0, len(a)
    while high - low > 1:                       # bisect by comparing prefixes
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return "byte %d (%d of block %d): %s.. and %s.." % (
        low, low % 4096, low // 4096, bytes(a[low:low + 8]).hex(),
        bytes(b[low:low + 8]).hex())


def same(got, want, *what):
    """Two images are equal; says where they part when they are not."""
    where = first_difference(got, want)
    check(where is None, *what, "differs at", where)


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def write_file(path, data):
    with open(path, "wb") as f:
        f.write(data)


def sparse_file(path, size):
    with open(path, "wb") as f:
        f.truncate(size)
    return path


def _environment():
    """The environment of nbdkit and the tools."""
    env = dict(os.environ, LC_ALL="C",
               MALLOC_CHECK_="1", MALLOC_PERTURB_=str(random.randrange(1, 256)))
    preload = []
    if os.path.exists(PLUGIN):
        # nbdkit itself is not instrumented, so the sanitizer's library has to come first.
        libs = subprocess.run(["ldd", PLUGIN], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True).stdout
        found = re.findall(r"=> (\S*lib[atu][a-z]*san\S*)", libs)
        if found:
            preload = found
            env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "detect_leaks=0")
            env["MCBUF_PLAIN_EXIT"] = "1"
            global SLOW, DEADLINE
            SLOW = max(SLOW, 4)
            DEADLINE = 60 * SLOW
    if WRAPPER or preload:
        del env["MALLOC_CHECK_"], env["MALLOC_PERTURB_"]
    return env, preload


ENV, PRELOAD = _environment()


def environment(extra=None, preload=(), ours=True):
    """The environment of a child; OURS: it is nbdkit or a tool of mcbuf."""
    env = dict(ENV, **(extra or {}))
    libs = (list(PRELOAD) if ours else []) + list(preload)
    if ours and PRELOAD and not preload and os.path.exists(FAULTS):
        libs.append(FAULTS)             # for MCBUF_PLAIN_EXIT
    if libs:
        env["LD_PRELOAD"] = ":".join(libs)
    return env


def _die_with_parent():
    """In a child: get SIGKILL when the test ends, however it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def tool_path(name):
    return os.path.join(BUILD, "tools", name)


class Result:
    """What a tool did."""

    def __init__(self, argv, code, out, err):
        self.argv, self.code, self.out, self.err = argv, code, out, err

    def __str__(self):
        return "%s: exit %d\nstdout: %sstderr: %s" % (
            " ".join(self.argv), self.code, self.out, self.err)

    @property
    def json(self):
        return json.loads(self.out)


def tool(name, *args, code=DONE, stdin=None, env=None, preload=(), warns=False):
    """Run a tool and hold its exit code against CODE (a number or several).

    A refusal is one line on stderr; a success says nothing there unless it WARNS.
    """
    argv = [os.path.basename(name)] + [str(a) for a in args]
    p = subprocess.run(WRAPPER + [tool_path(name)] + argv[1:], text=True,
                       input=stdin, stdin=None if stdin is not None
                       else subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       env=environment(env, preload), timeout=DEADLINE)
    result = Result(argv, p.returncode, p.stdout, p.stderr)
    codes = code if isinstance(code, tuple) else (code,)
    check(p.returncode in codes, "expected exit", code, "of", result)
    if p.returncode == DONE and not warns:
        equal(p.stderr, "", "stderr of", result)
    elif p.returncode != DONE:
        lines = p.stderr.splitlines()
        check(len(lines) == 1 and lines[0].strip(),
              "a refusal must be one line on stderr:", result)
    return result


class Test:
    """One test's directory and processes."""

    def __init__(self, name):
        self.name = name
        self.dir = tempfile.mkdtemp(prefix="mcbuf-test-",
                                    dir=os.environ.get("TMPDIR", "/var/tmp"))
        self.processes = []
        self.replicas = set()
        self._names = 0

    def path(self, name):
        return os.path.join(self.dir, name)

    def unique(self, stem):
        self._names += 1
        return self.path("%s%d" % (stem, self._names))

    def port(self):
        """A TCP port of this host that nobody listens on just now."""
        with socket.socket(socket.AF_INET) as s:
            s.bind(("localhost", 0))
            return s.getsockname()[1]

    def spawn(self, argv, env=None, preload=(), output=None, ours=False):
        out = open(output or os.devnull, "wb")
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT, cwd=self.dir,
                             env=environment(env, preload, ours),
                             preexec_fn=_die_with_parent)
        out.close()
        self.processes.append(p)
        return p

    def cleanup(self):
        running = [p for p in reversed(self.processes) if p.poll() is None]
        if GENTLE:
            for p in running:
                p.terminate()
        for p in running:
            try:
                p.wait(5 if GENTLE else 0)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        # What a server that got SIGKILL left for the next one.
        for replica in self.replicas:
            for path in glob.glob("/dev/shm/mcbuf-%s*" % replica):
                os.unlink(path)
        shutil.rmtree(self.dir, ignore_errors=True)


class Server:
    """One nbdkit with the plugin.  start () may be called again after an end."""

    def __init__(self, test, *params, journal=None, env=None, preload=(),
                 nbdkit=(), start=True):
        self.test = test
        self.params = [str(p) for p in params]
        self.journal = journal
        self.env, self.preload = env, preload
        self.nbdkit = list(nbdkit)
        self.sock = test.unique("s")
        self.log = test.unique("log")
        self.process = self.replica = None
        if self.journal is None:
            for p in self.params:
                if p.startswith("journal="):
                    self.journal = p[len("journal="):]
            if self.journal is None:
                self.journal = self.params[0] + ".mcbuf"
        if start:
            self.start()

    def argv(self):
        return (WRAPPER + ["nbdkit", "-f", "-U", self.sock, "-P", self.sock + ".pid"]
                + self.nbdkit + [PLUGIN] + self.params)

    def start(self):
        for path in (self.sock, self.sock + ".pid"):
            if os.path.exists(path):
                os.unlink(path)
        self.process = self.test.spawn(self.argv(), self.env, self.preload,
                                       self.log, ours=True)
        pidfile = self.sock + ".pid"

        def is_up():
            return (self.process.poll() is not None
                    or (os.path.exists(pidfile) and os.path.getsize(pidfile)))
        poll("nbdkit to start", is_up)
        if self.process.poll() is not None:
            raise StartError(self.said())
        self.replica = self.status()["replica"]
        self.test.replicas.add(self.replica)
        return self

    def said(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    @property
    def pid(self):
        return self.process.pid

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """A clean stop."""
        self.process.terminate()
        self.wait_end()

    def wait_end(self):
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise Failure("nbdkit does not stop; it said: " + self.said()) from None
        check(code == 0, "nbdkit ended with", code, "and said:", self.said())

    # --- NBD ---

    def uri(self, export=""):
        return "nbd+unix:///%s?socket=%s" % (export, self.sock)

    def connect(self, export="", block_status=False):
        h = nbd.NBD()
        h.set_export_name(export)
        h.set_strict_mode(0)
        if block_status:
            h.add_meta_context("base:allocation")
        h.connect_unix(self.sock)
        return h

    # --- Control ---

    def ask(self, request):
        """One verb by the control socket; the reply as a dict."""
        with Control(self.journal) as control:
            return control.ask(request)

    def status(self):
        return self.ask("status")

    def seal(self):
        return done(self.ask("seal"))["sealed"]

    def commit(self, epoch=None, label=None):
        request = "commit"
        if epoch is not None:
            request += " epoch=%d" % epoch
        if label is not None:
            request += " label=%s" % label
        return done(self.ask(request))

    def drained(self):
        """Wait until the backing images are the last checkpoint."""
        def is_drained():
            s = self.status()
            check(not s["writeout"].get("error"), "write-out error:", s)
            newest = s["checkpoint"]
            return s["written_out"] == (newest["id"] if newest else 0)
        poll("write-out to be done", is_drained)


class Control:
    """A kept connection to a replica's control socket."""

    def __init__(self, journal):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(os.path.join(journal, "control"))
        self.rest = b""

    def send(self, request):
        self.sock.sendall(request.encode() + b"\n")

    def receive(self):
        """One reply, or None when the server is gone."""
        while b"\n" not in self.rest:
            try:
                more = self.sock.recv(65536)
            except ConnectionError:
                return None
            if not more:
                return None
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def ask(self, request):
        self.send(request)
        reply = self.receive()
        check(reply is not None, "the server hung up on", request)
        return reply

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def done(reply):
    """REPLY, which must not be a refusal."""
    check("error" not in reply, "refused:", reply)
    return reply


def refused(reply, code, *words):
    """REPLY must be a refusal with CODE whose text has all WORDS."""
    check("error" in reply, "not refused:", reply)
    equal(reply["code"], code, "code of", reply)
    for word in words:
        check(word in reply["error"], "no word", repr(word), "in", reply)
    return reply


def forget_memory(server):
    """Take away what a killed server left in shared memory, as a reboot would."""
    paths = glob.glob("/dev/shm/mcbuf-%s*" % server.replica)
    check(paths, "nothing of replica", server.replica, "in /dev/shm")
    for path in paths:
        os.unlink(path)


class Faults:
    """Faults for a server or tool started with env=f.env, preload=f.preload (nbd/faults.c)."""

    BOOTS = 0

    def __init__(self, test):
        self.dir = test.unique("faults")
        os.mkdir(self.dir)
        self.env = {"MCBUF_FAULTS": self.dir}
        self.preload = [FAULTS]
        check(os.path.exists(FAULTS), FAULTS, "is not built")

    def rules(self, call, *rules):
        """From now on these are the RULES for CALL."""
        write_file(os.path.join(self.dir, "tmp"), "".join(r + "\n" for r in rules).encode())
        os.rename(os.path.join(self.dir, "tmp"), os.path.join(self.dir, call))

    def fail(self, call, *where, err=errno.EIO, span=None):
        """From now on CALL fails on files whose path ends in one of WHERE, within the bytes SPAN."""
        self.rules(call, *["%d %s%s" % (err, w, " %d %d" % span if span else "") for w in where])

    def hold(self, call, where):
        """From now on CALL does not return."""
        self.rules(call, "hold " + where)

    def heal(self, call):
        os.unlink(os.path.join(self.dir, call))

    def heal_all(self):
        for call in ("fallocate", "fdatasync", "pwrite", "pread"):
            if os.path.exists(os.path.join(self.dir, call)):
                self.heal(call)

    def happened(self):
        """How many calls were failed so far."""
        try:
            return os.path.getsize(os.path.join(self.dir, "count"))
        except FileNotFoundError:
            return 0

    def reboot(self, server):
        """The server died with its host: another boot, and nothing in memory."""
        if server.is_running():
            server.kill()
        forget_memory(server)
        self.new_boot()

    def new_boot(self):
        Faults.BOOTS += 1
        write_file(os.path.join(self.dir, "boot_id"),
                   b"%08x-1111-2222-3333-444444444444\n" % Faults.BOOTS)


# --- NBD requests whose failure is part of the test --------------------------

def nbd_errno(call, *args):
    """0 when the NBD request succeeds, else its errno."""
    try:
        call(*args)
    except nbd.Error as error:
        return error.errnum or errno.EIO    # an error without a number is no success
    return 0


def connect_errno(server, export):
    """0 when EXPORT can be opened, else an errno (never 0)."""
    try:
        h = server.connect(export)
    except nbd.Error as error:
        return error.errnum or errno.EIO
    h.shutdown()
    return 0


def read_all(h, size=None, step=16 * MiB):
    size = h.get_size() if size is None else size
    return b"".join(bytes(h.pread(min(step, size - at), at))
                    for at in range(0, size, step))


# --- Models ------------------------------------------------------------------

class Disk:
    """What one disk must read as: plain bytes in memory."""

    def __init__(self, size, content=None):
        self.size = size
        self.now = bytearray(content if content is not None else size)

    def write(self, offset, data):
        self.now[offset:offset + len(data)] = data

    def zero(self, offset, length):
        self.now[offset:offset + length] = bytes(length)


def random_range(rng, size, most=256 * KiB):
    """Offset and length: mostly aligned to 4 KiB, some to 512 bytes, some to nothing."""
    unit = rng.choices((4096, 512, 1), (6, 3, 2))[0]
    limit = min(most, size)
    length = min(int(2 ** rng.uniform(0, limit.bit_length())), limit)
    length = max(unit, length - length % unit)
    offset = rng.randrange(0, size - length + 1)
    if rng.random() < 0.05:
        offset = rng.choice((0, size - length))      # first and last byte
    offset -= offset % unit
    return offset, length


def random_data(rng, length):
    return rng.randbytes(length)


# --- Random numbers ----------------------------------------------------------

_seeded = {}                            # how often, by what for


def seeded(what):
    """A random generator whose seed is printed and can be given; without that it follows from MCBUF_TEST_SERIES."""
    seed = os.environ.get("MCBUF_TEST_SEED")
    _seeded[what] = _seeded.get(what, 0) + 1
    series = "%s %s %s %d" % (os.environ.get("MCBUF_TEST_SERIES", 1), os.path.basename(sys.argv[0]),
                              what, _seeded[what])
    seed = int(seed) if seed else zlib.crc32(series.encode())
    print("%s: replay with MCBUF_TEST_SEED=%d" % (what, seed), flush=True)
    return random.Random(seed)


def count(name, default):
    """How often: MCBUF_TEST_<NAME> or DEFAULT."""
    return int(os.environ.get("MCBUF_TEST_" + name, default))


def tried(invariants, what, n):
    """Say for tests/README.md what was tried, and how often (see tests/tried)."""
    name = "/".join(os.path.abspath(sys.argv[0]).split("/")[-2:])
    print('TRIED invariant=%s test=%s what="%s" n=%d' % (invariants, name, what, n), flush=True)


# --- The main program --------------------------------------------------------

def main(names):
    if not os.path.exists(PLUGIN):
        skip("%s is not there: build first" % PLUGIN)
    tests = [(n, f) for n, f in names.items() if n.startswith("test_")]
    if len(sys.argv) > 1:
        tests = [(n, f) for n, f in tests if n in sys.argv[1:]]
        check(tests, "no such test")
    failed = []
    invariants = names.get("INVARIANTS")        # that all of these tests attack
    for name, function in tests:
        print("--- %s: %s" % (name, (function.__doc__ or "").split("\n")[0]), flush=True)
        test = Test(name)
        began = time.monotonic()
        try:
            function(test)
            print("ok   %s (%.1f s)" % (name, time.monotonic() - began), flush=True)
        except Exception:       # pylint: disable=broad-except
            traceback.print_exc(file=sys.stdout)
            for log in sorted(glob.glob(test.path("log*"))):
                text = read_file(log).decode(errors="replace").strip()
                if text:
                    print("%s:\n%s" % (os.path.basename(log), text[-2000:]))
            print("FAIL %s" % name, flush=True)
            failed.append(name)
        finally:
            test.cleanup()
    if invariants:
        tried(invariants, "situations", len(tests) - len(failed))
    print("%d of %d failed%s" % (len(failed), len(tests),
                                 ": " + " ".join(failed) if failed else ""))
    sys.exit(1 if failed else 0)
