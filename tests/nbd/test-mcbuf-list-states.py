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
from libmcbuf import DEADLINE, Test, check, connect_errno, equal, main, poll, skip
from libstates import Replica
from state_table import STATES

# Beside the inlet and the control export.
CHECKPOINT = {"@latest", "@scratch"}
OTHERS = {"syncing": set(), "closed": set(), "empty": set(), "failed": set(),
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


main({"test_states": test_states})
