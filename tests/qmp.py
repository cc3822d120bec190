#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Talk to a QEMU by its QMP socket: a module for the tests, and a command.

    qmp.py SOCKET COMMAND [ARGUMENTS]   carry out one command, print its result
    qmp.py SOCKET wait-ready JOB        until the block job JOB is ready
    qmp.py SOCKET wait-synced JOB       until the ready job has nothing left to copy

ARGUMENTS is a JSON object.  Only Python's own library is used.
"""

import json
import socket
import sys
import time


class QMPError(Exception):
    """QEMU refused a command."""


class QMP:
    """One connection to QEMU's monitor."""

    def __init__(self, path, timeout=120, is_there=lambda: True):
        """Wait for the socket PATH, TIMEOUT seconds, as long as whoever is to make it is there."""
        self.timeout = timeout
        self.events = []
        deadline = time.monotonic() + timeout
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            try:
                self.sock.connect(path)
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > deadline or not is_there():
                    raise
                time.sleep(0.01)
        self.file = self.sock.makefile("r", encoding="utf-8")
        greeting = self._receive()
        while "event" in greeting:              # of a QEMU that is just starting
            self.events.append(greeting)
            greeting = self._receive()
        if "QMP" not in greeting:
            raise QMPError("%s: not a QMP socket: it says %s" % (path, greeting))
        self.command("qmp_capabilities")

    def _receive(self):
        line = self.file.readline()
        if not line:
            raise QMPError("QEMU closed its QMP socket")
        return json.loads(line)

    def command(self, name, **arguments):
        """Carry out a command; '_' in its arguments' names stands for '-'."""
        return self.execute(name, {k.replace("_", "-"): v
                                   for k, v in arguments.items()})

    def execute(self, name, arguments):
        message = {"execute": name}
        if arguments:
            message["arguments"] = arguments
        self.sock.sendall(json.dumps(message).encode() + b"\n")
        while True:
            reply = self._receive()
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QMPError("%s: %s" % (name, reply["error"]["desc"]))
            else:
                return reply["return"]

    def hmp(self, line):
        """Carry out a command of the human monitor; returns what it prints."""
        return self.command("human-monitor-command", command_line=line)

    def job(self, job):
        """What query-block-jobs says of JOB, or None."""
        for info in self.command("query-block-jobs"):
            if info["device"] == job:
                return info
        return None

    def _wait_job(self, job, what, is_reached):
        deadline = time.monotonic() + self.timeout
        while True:
            info = self.job(job)
            if info is None:
                raise QMPError("block job %s ended before it was %s" % (job, what))
            if is_reached(info):
                return info
            if time.monotonic() > deadline:
                raise QMPError("block job %s is not %s after %d s: %s"
                               % (job, what, self.timeout, info))
            time.sleep(0.01)

    def wait_ready(self, job):
        return self._wait_job(job, "ready", lambda i: i["ready"])

    def wait_synced(self, job):
        return self._wait_job(job, "synced", lambda i: i["ready"]
                              and i["offset"] == i["len"])

    def wait_event(self, name, is_it=lambda data: True, seconds=None):
        """The next event NAME that is_it () takes, those kept so far first."""
        deadline = time.monotonic() + (seconds or self.timeout)
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name and is_it(event.get("data", {})):
                    del self.events[i]
                    return event.get("data", {})
            if time.monotonic() > deadline:
                raise QMPError("no event %s after %d s" % (name, self.timeout))
            self.command("query-status")        # collects what has arrived
            time.sleep(0.01)

    def close(self):
        self.file.close()
        self.sock.close()


def main(argv):
    if len(argv) not in (3, 4):
        sys.stderr.write(__doc__.split("\n\n", 1)[1])
        return 1
    try:
        qmp = QMP(argv[1])
        if argv[2] == "wait-ready":
            qmp.wait_ready(argv[3])
        elif argv[2] == "wait-synced":
            qmp.wait_synced(argv[3])
        else:
            result = qmp.execute(argv[2],
                                 json.loads(argv[3]) if len(argv) == 4 else {})
            if result not in ({}, ""):
                print(result if isinstance(result, str) else json.dumps(result))
    except (QMPError, OSError, ValueError) as error:
        print("qmp.py: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
