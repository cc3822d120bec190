#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The tests' own QEMU: only where none is installed a test is skipped; one that does not start is a failure, with what
it said."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import Failure, check, equal, main
from libqemu import start_qemu

SLOW = """#!/bin/sh
sleep 2
exec %s - "$@" <<'EOF'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
c, _ = s.accept()
c.sendall(b'{"QMP": {}}\\n')
c.recv(1000)
c.sendall(b'{"return": {}}\\n')
c.recv(1000)
EOF
"""


def stand_in(test, name, text):
    """The command line of a program in place of QEMU, and its socket."""
    path = test.path(name)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, 0o700)
    return [path, test.path(name + ".qmp")]


def test_none(test):
    """It is not installed: the test ends here, as skipped."""
    try:
        start_qemu(test, [test.path("no-such-qemu")], test.path("qmp"), test.path("log"))
    except SystemExit as end:
        equal(end.code, 77, "exit code")
        return
    raise Failure("there is no QEMU, and it was started")


def test_dies(test):
    """It says why it cannot start: at once that is a failure."""
    argv = stand_in(test, "dies", "#!/bin/sh\necho no such machine\nexit 3\n")
    try:
        start_qemu(test, argv, argv[1], test.path("said"))
    except Failure as failure:
        check("no such machine" in str(failure) and "exit code 3" in str(failure), failure)
        return
    raise Failure("it was dead, and it was started")


def test_slow(test):
    """The machine is busy: it is waited for."""
    argv = stand_in(test, "slow", SLOW % sys.executable)
    process, qmp = start_qemu(test, argv, argv[1], test.path("said"))
    check(process.poll() is None, "it is not there")
    qmp.close()


if __name__ == "__main__":
    main(globals())
