#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The exports that a server lists are those that can be opened: in every state, by nbdinfo --list."""

import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
import nbd
from libmcbuf import (DEADLINE, MiB, Server, Test, check, connect_errno, done, equal, main, poll, skip,
                      sparse_file)
from libstates import Replica
from state_table import STATES

# Beside the inlet and the control export.
CHECKPOINT = {"@latest", "@scratch"}
OTHERS = {"syncing": set(), "closed": set(), "empty": set(), "failed": set(), "damaged": set(),
          "draining": {"@promoted", "@divergence"}, "drained": {"@promoted", "@divergence"}}


def listed(server):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(server.sock)
    names = []
    h.opt_list(lambda name, description: names.append(name) or 0)
    h.opt_abort()
    return names


def all_open(replica, divergence=True):
    """What is listed opens, and what opens is listed."""
    server = replica.server
    names = set(listed(server))
    want = OTHERS.get(replica.name, CHECKPOINT) | {"", "mcbuf-control"}
    if not divergence:
        want -= {"@divergence"}
    checkpoints = {n for n in names if n[1:].isdigit()}
    equal(names - checkpoints, want, "exports listed in", replica.name)
    if replica.last and want & CHECKPOINT:
        check("@%d" % replica.last in names, "no checkpoint among", names)
    for name in names:
        equal(connect_errno(server, name), 0, "errno of opening", repr(name), "in", replica.name)
    for name in {"@promoted", "@divergence", "@latest", "@scratch", "@4711"} - names:
        check(connect_errno(server, name) != 0, name, "opens in", replica.name, "and is not listed")
    p = subprocess.run(["nbdinfo", "--list", "--json", "nbd+unix:///?socket=" + server.sock],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
    equal(p.returncode, 0, "nbdinfo --list in", replica.name, p.stderr)
    equal({e["export-name"] for e in json.loads(p.stdout)["exports"]}, names, "by nbdinfo")


def test_states(_):
    """Each state of the table."""
    try:
        subprocess.run(["nbdinfo", "--version"], stdout=subprocess.DEVNULL, check=True)
    except OSError as error:
        skip("nbdinfo: %s" % error)
    for name in STATES:
        own = Test("list")
        try:
            replica = Replica(own, name)
            if name in ("draining", "drained"):
                poll("the divergence", lambda: replica.server.ask("divergence")["known"])
            all_open(replica)
            if name == "drained":
                # A server that finds no divergence it can rely on does not offer it.
                replica.old = None
                replica.server.kill()
                os.unlink(os.path.join(replica.server.journal, "divergence"))
                replica.server.start()
                all_open(replica, divergence=False)
        finally:
            own.cleanup()


def test_promoted_scratch(test):
    """The other name that "promote scratch" gives the disk is listed while it can be opened; a plain promote gives none."""
    server = Server(test, sparse_file(test.path("disk.img"), MiB), "baseline=trusted", "journal-size=16M",
                    "buffer=8M")
    scratch = server.connect("@scratch")
    scratch.pwrite(b"s" * 4096, 0)
    done(server.ask("promote scratch"))
    scratch.shutdown()
    for _ in range(2):
        names = set(listed(server))
        check({"@scratch", "@promoted"} <= names and "@latest" not in names, "listed:", names)
        for name in ("@scratch", "@promoted"):
            h = server.connect(name)
            equal(h.pread(4096, 0), b"s" * 4096, name)
            h.shutdown()
        server.kill()
        server.start()
    done(server.ask("resync overwrite"))
    check("@scratch" not in listed(server), "listed in a first copy:", listed(server))
    server.connect().pwrite(bytes(MiB), 0)
    server.commit()
    done(server.ask("promote"))
    check("@scratch" not in listed(server), "listed after a plain promote:", listed(server))
    check(connect_errno(server, "@scratch") != 0, "it opens after a plain promote")


main({"test_states": test_states, "test_promoted_scratch": test_promoted_scratch})
