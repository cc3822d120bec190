#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS as nbdkit-mcbuf-plugin(1) shows it: its own command lines, the tools, QEMU's mirror."""

import os
import re
import shutil
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# pylint: disable=wrong-import-position
from libmcbuf import (HERE, MiB, USAGE, Server, StartError, check, equal, main,
                      read_file, same, seeded, skip, sparse_file, tool)
from libqemu import Primary, primary_images, random_writes, replica_images, replica_params

SIZE = 8 * MiB
HOST = "standby.example.com"

for program in ("certtool", "psktool"):
    if shutil.which(program) is None:
        skip("this needs %s (gnutls-bin)" % program)


def from_the_page(test, program, directory, host=HOST):
    """Carry out the page's own lines with PROGRAM, and those between them, in DIRECTORY."""
    page = read_file(os.path.join(HERE, "../man/nbdkit-mcbuf-plugin.pod")).decode()
    section = page[page.index("=head2 TLS"):page.index("=head2 Restarts")]
    lines = [block for block in re.findall(r"(?:^ .*\n)+", section, re.M)
             if re.match(" " + program, block)]
    check(len(lines) == 1, "the page has no block of", program)
    os.mkdir(test.path(directory))
    p = subprocess.run(["sh", "-e", "-c", lines[0].replace(HOST, host)],
                       cwd=test.path(directory), stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    check(p.returncode == 0, lines[0], p.stdout)
    return test.path(directory)


def split(test, directory, *sides):
    """What each of SIDES gets: server or client."""
    result = []
    for side in sides:
        path = os.path.join(test.dir, "%s-%s" % (os.path.basename(directory), side))
        os.mkdir(path)
        for name in ("ca-cert", side + "-cert", side + "-key"):
            shutil.copy(os.path.join(directory, name + ".pem"), path)
        result.append(path)
    return result


class TCPServer(Server):
    """Over TCP, which is where the name in a certificate counts."""

    def argv(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        argv = super().argv()
        at = argv.index("-U")
        return argv[:at] + ["-i", "127.0.0.1", "-p", str(self.port)] + argv[at + 2:]

    def start(self):
        for attempt in range(5):        # somebody else may take the port
            try:
                return super().start()
            except StartError as error:
                if attempt == 4 or "in use" not in str(error):
                    raise
        return self


def replica(test, cls, tls, *params):
    return cls(test, sparse_file(test.path("disk.img"), SIZE), "journal-size=32M", "buffer=8M",
               "baseline=trusted", *params, nbdkit=["--tls=require"] + tls)


def three_tools(uri):
    """Checkpoint, status and a verb, all by URI; the checkpoint's number."""
    number = tool("mcbuf-commit", "--json", uri).json["checkpoint"]
    equal(tool("mcbuf-status", "--json", uri).json["checkpoint"]["id"], number, "status")
    listed = tool("mcbuf-ctl", "--json", uri, "list").json["checkpoints"]
    equal(listed[-1]["id"], number, "list")
    two = tool("mcbuf-commit", "--stdin", uri, stdin="seal\ncommit\n").out.splitlines()
    equal(len(two), 2, "answers")
    return number


def turned_away(server, uri, *words):
    before = server.status()["checkpoint"]
    for name, args in (("mcbuf-commit", []), ("mcbuf-status", []), ("mcbuf-ctl", ["list"])):
        result = tool(name, uri, *args, code=USAGE)
        for word in words:
            check(word in result.err, "no", repr(word), "in", result)
    equal(server.status()["checkpoint"], before, "checkpoint")


def test_certificates(test):
    """nbds+unix:// with certificates on both sides."""
    pki = from_the_page(test, "certtool", "pki", "localhost")
    ours, theirs = split(test, pki, "server", "client")
    server = replica(test, Server, ["--tls-certificates=" + ours, "--tls-verify-peer"])
    uri = "nbds+unix:///?socket=%s&tls-certificates=" % server.sock
    three_tools(uri + theirs)
    check("error" not in server.said(), "what goes well is no error:", server.said())
    turned_away(server, "nbd+unix:///?socket=" + server.sock, "nbds://")
    # Without a certificate, with one of another authority, with one that is not the server's.
    os.mkdir(test.path("none"))
    shutil.copy(os.path.join(pki, "ca-cert.pem"), test.path("none"))
    turned_away(server, uri + test.path("none"))
    stranger, = split(test, from_the_page(test, "certtool", "other", "localhost"), "client")
    turned_away(server, uri + stranger)
    shutil.copy(os.path.join(pki, "ca-cert.pem"), stranger)
    turned_away(server, uri + stranger)
    three_tools(uri + theirs)


def test_certificates_tcp(test):
    """nbds://, where the host's name has to be the certificate's."""
    pki = from_the_page(test, "certtool", "pki", "localhost")
    ours, theirs = split(test, pki, "server", "client")
    server = replica(test, TCPServer, ["--tls-certificates=" + ours, "--tls-verify-peer"])
    three_tools("nbds://localhost:%d/?tls-certificates=%s" % (server.port, theirs))
    three_tools("nbds://localhost:%d/some-export?tls-certificates=%s" % (server.port, theirs))
    turned_away(server, "nbds://127.0.0.1:%d/?tls-certificates=%s" % (server.port, theirs))
    turned_away(server, "nbd://localhost:%d/" % server.port, "nbds://")


def test_psk(test):
    """Pre-shared keys, by both transports; another key is turned away."""
    ours = os.path.join(from_the_page(test, "psktool", "ours"), "keys.psk")
    other = os.path.join(from_the_page(test, "psktool", "other"), "keys.psk")
    server = replica(test, Server, ["--tls-psk=" + ours])
    uri = "nbds+unix://primary@/?socket=%s&tls-psk-file=" % server.sock
    three_tools(uri + ours)
    check("error" not in server.said(), "what goes well is no error:", server.said())
    turned_away(server, uri + other)
    turned_away(server, uri.replace("primary@", "nobody@") + ours)
    server.stop()
    server = replica(test, TCPServer, ["--tls-psk=" + ours])
    three_tools("nbds://primary@localhost:%d/?tls-psk-file=%s" % (server.port, ours))
    turned_away(server, "nbds://primary@localhost:%d/?tls-psk-file=%s" % (server.port, other))


def mirror(test, tls, creds, uri_end):
    """QEMU's mirror over TLS, a checkpoint by URI, and what mcbuf-recover makes of it."""
    rng = seeded(test.name)
    primary = Primary(test, primary_images(test, rng, 1, SIZE))
    server = Server(test, *replica_params(test, 1, SIZE), journal=test.path("j"),
                    nbdkit=["--tls=require"] + tls)
    try:
        primary.qmp.command("object-add", id="tls0", endpoint="client", **creds)
    except Exception as error:                  # pylint: disable=broad-except
        skip("this QEMU has no TLS: %s" % error)
    primary.qmp.command("blockdev-add", driver="nbd", node_name="r0", export="",
                        reconnect_delay=10, discard="unmap", tls_creds="tls0",
                        server={"type": "unix", "path": server.sock},
                        **({"tls_hostname": "localhost"} if "x509" in creds["qom-type"] else {}))
    primary.mirror(0)
    primary.wait_ready()
    random_writes(rng, primary, 30, SIZE)
    primary.qmp.command("stop")
    primary.qmp.wait_synced("m0")
    uri = "nbds+unix://primary@/?socket=%s&%s" % (server.sock, uri_end)
    epoch = tool("mcbuf-commit", "--seal", "--json", uri).json["sealed"]
    content = read_file(primary.images[0])
    primary.qmp.command("cont")
    random_writes(rng, primary, 30, SIZE)
    tool("mcbuf-commit", "--epoch=%d" % epoch, uri)
    random_writes(rng, primary, 30, SIZE)
    primary.kill()
    server.kill()
    equal(tool("mcbuf-recover", "--json", server.journal).json["checkpoint"], epoch, "recovered")
    same(replica_images(test, 1)[0], content, "image")


def test_mirror_certificates(test):
    """QEMU's tls-creds-x509."""
    pki = from_the_page(test, "certtool", "pki", "localhost")
    ours, theirs = split(test, pki, "server", "client")
    mirror(test, ["--tls-certificates=" + ours, "--tls-verify-peer"],
           {"qom-type": "tls-creds-x509", "dir": theirs}, "tls-certificates=" + theirs)


def test_mirror_psk(test):
    """QEMU's tls-creds-psk."""
    keys = from_the_page(test, "psktool", "keys")
    mirror(test, ["--tls-psk=" + keys + "/keys.psk"],
           {"qom-type": "tls-creds-psk", "dir": keys, "username": "primary"},
           "tls-psk-file=" + keys + "/keys.psk")


main(globals())
