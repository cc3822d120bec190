#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""control-secret=: who may use the control export."""

import errno
import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (MiB, PLUGIN, USAGE, Server, check, done, environment, equal,
                      main, nbd_errno, sparse_file, tool, tool_path, write_file)

SECRET = "a secret with b\u00e4nds, and blanks"


def secret_file(test, text=SECRET, name="secret"):
    write_file(test.path(name), text.encode())
    return test.path(name)


def replica(test, *params, **options):
    return Server(test, sparse_file(test.path("disk.img"), 8 * MiB), "journal-size=32M",
                  "buffer=8M", "baseline=trusted", *params, **options)


def ask(h, request):
    """errno of REQUEST on the control export H, and its reply."""
    if isinstance(request, str):
        request = request.encode()
    errnum = nbd_errno(h.pwrite, request, 0)
    return errnum, json.loads(bytes(h.pread(65536, 0)).rstrip(b"\0") or b"{}")


def test_refused_without(test):
    """Every verb is refused with EPERM until this connection has given the secret."""
    server = replica(test, "control-secret=+" + secret_file(test, SECRET + "\nsecond line\n"))
    h = server.connect("mcbuf-control")
    wrong = [SECRET[:-1], SECRET + "x", SECRET.upper(), "", "x" * 2000, "\0" + SECRET,
             SECRET + "\0x", SECRET + "\nx", SECRET + "\nsecond line", " " + SECRET]
    for request in (["seal", "seal generation=1", "commit", "commit generation=1",
                     "commit label=x", "status", "list", "resync", "promote",
                     "shutdown", "nonsense", "auth", "AUTH " + SECRET, SECRET]
                    + ["auth " + w for w in wrong]):
        errnum, reply = ask(h, request)
        equal(errnum, errno.EPERM, "errno of", repr(request))
        check("secret" in reply["error"], "no word of a secret in", reply)
        equal(reply["code"], USAGE, "code of", reply)
    s = server.status()                 # the control socket asks for none
    equal((s["open_epoch"], s["sealed_epochs"], s["checkpoint"]["id"]), (1, 0, 0), "untouched")
    equal(ask(h, "auth " + SECRET), (0, {"authorised": True}), "auth")
    equal(ask(h, "seal")[1].get("sealed"), 1, "seal")
    # Another connection has to say it again; a wrong one later takes nothing away.
    other = server.connect("mcbuf-control")
    equal(ask(other, "commit")[0], errno.EPERM, "on another connection")
    equal(ask(h, "auth nonsense")[0], errno.EPERM, "a wrong secret, later")
    equal(ask(h, "commit")[1].get("checkpoint"), 2, "commit")
    # Disks do not ask for it.
    server.connect().pwrite(b"x" * 512, 0)
    check(SECRET not in server.said() and "secret" in server.said(), "log:", server.said())


def test_without_a_secret(test):
    """A server without a secret takes any: a tool may always give one."""
    server = replica(test)
    h = server.connect("mcbuf-control")
    equal(ask(h, "auth whatever"), (0, {"authorised": True}), "auth")
    equal(ask(h, "seal")[1].get("sealed"), 1, "seal")
    tool("mcbuf-status", "--secret=+" + secret_file(test), server.uri())


def test_tools(test):
    """--secret=+FILE and MCBUF_SECRET_FILE; never the secret itself."""
    path = secret_file(test, SECRET + "\n")
    server = replica(test, "control-secret=+" + path)
    other = secret_file(test, "other", "other")
    env = {"MCBUF_SECRET_FILE": path}
    for name, args in (("mcbuf-commit", []), ("mcbuf-status", []), ("mcbuf-ctl", ["list"])):
        def run(option, target=server.uri(), code=0, env=None, name=name, args=args):
            return tool(name, *option, target, *args, code=code, env=env)
        result = run([], code=USAGE)
        check("--secret" in result.err, result)
        result = run(["--secret=+" + other], code=USAGE)
        check("secret" in result.err and "other" not in result.err, result)
        run(["--secret=+" + path])
        run([], env=env)
        run(["--secret=+" + path], env={"MCBUF_SECRET_FILE": other})    # the option wins
        run([], env={"MCBUF_SECRET_FILE": other}, code=USAGE)
        for bad in (SECRET, "+", ""):
            result = run(["--secret=" + bad], code=USAGE)
            check("FILE" in result.err and SECRET not in result.err, result)
        for text in ("", "\n", "a\tb\n", "x" * 1024, "a\0b\n"):
            result = run(["--secret=+" + secret_file(test, text, "bad")], code=USAGE)
            check("bad" in result.err, result)
        result = run(["--secret=+" + test.path("nosuch")], code=USAGE)
        check("nosuch" in result.err, result)
        # The journal directory needs none, and then no file is read.
        run(["--secret=+" + test.path("nosuch")], target=server.journal)
        run([], target=server.journal, env={"MCBUF_SECRET_FILE": test.path("nosuch")})
    result = tool("mcbuf-commit", "--stdin", "--json", server.uri(), stdin="seal\ncommit\n", env=env)
    equal(len(result.out.splitlines()), 2, "answers of", result)
    checkpoint = tool("mcbuf-commit", "--json", server.uri(), env=env).json["checkpoint"]
    equal(server.status()["checkpoint"]["id"], checkpoint, "checkpoint")


def test_parameter(test):
    """control-secret= as nbdkit's passwords: a file, a descriptor, the secret itself."""
    path = sparse_file(test.path("disk.img"), 8 * MiB)

    def starts(value, text="x"):
        """nbdkit starts and the tool, with TEXT as the secret, gets in; and what was said."""
        p = subprocess.run(["sh", "-c", 'exec 7<"$MCBUF_SECRET_FILE"; exec "$@"', "sh", "nbdkit",
                            "-U", "-", PLUGIN, path, "journal-size=32M", "buffer=8M",
                            "control-secret=" + value,
                            "--run", tool_path("mcbuf-status") + ' "$uri"'],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, timeout=60,
                           env=environment({"MCBUF_SECRET_FILE": secret_file(test, text, "to")}))
        return p.returncode == 0, p.stdout
    for value, text in (("+" + secret_file(test), SECRET), ("-7", "by a descriptor"),
                        ("literal", "literal")):
        ok, said = starts(value, text)
        check(ok, value, said)
    for value in ("", "+" + test.path("nosuch"), "+" + secret_file(test, "", "empty"),
                  "+" + secret_file(test, "a\tb", "tab"), "x" * 1024):
        ok, said = starts(value)
        check(not ok and "error:" in said and "protected" not in said, "taken:", value, said)
    ok, said = starts("x", "y")
    check(not ok and "secret" in said, said)


main(globals())
