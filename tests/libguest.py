# SPDX-License-Identifier: BSD-3-Clause
"""A real guest that runs: the boot sector of contrib/quickstart-guest.S.

It writes numbered, checksummed records of a sector each from sector 2048 on, and tells
on its serial port which one was the last when it booted, and how far it is.
"""

import os
import re
import subprocess

from libmcbuf import HERE, check, equal, poll, read_file, skip
from libqemu import Primary, start_qemu

FIRST = 2048                    # the sector of record 1


def boot_sector(test):
    """The assembled guest."""
    source = os.path.join(HERE, "../contrib/quickstart-guest.S")
    try:
        subprocess.run(["as", "--32", "-o", test.path("guest.o"), source], check=True,
                       stdin=subprocess.DEVNULL)
        subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o",
                        test.path("guest.bin"), test.path("guest.o")], check=True,
                       stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        skip("the guest cannot be assembled for x86: %s" % error)
    return read_file(test.path("guest.bin"))


def records(image):
    """How many whole records an image has in a row."""
    n = 0
    while sector_number(image[(FIRST + n) * 512:(FIRST + n + 1) * 512]) == n + 1:
        n += 1
    return n


def sector_number(sector):
    """The number of the record that a sector holds, None when it is none, or not whole."""
    if len(sector) < 512 or sector[:4] != b"MCBF":
        return None
    total = 0
    for i in range(0, 508, 4):
        total = (total + int.from_bytes(sector[i:i + 4], "little")) & 0xffffffff
        total = (total << 1 | total >> 31) & 0xffffffff
    if total != int.from_bytes(sector[508:], "little"):
        return None
    return int.from_bytes(sector[4:8], "little")


class Guest:
    """What the guest in a QEMU says and does."""

    def __init__(self, test):
        self.console = test.unique("console")
        self.known = 0                  # records that are known to be on its disk
        self.options = ["-accel", "tcg", "-m", "32", "-serial", "file:" + self.console]

    def says(self, what):
        """The numbers N of lines "WHAT N" so far."""
        try:
            text = read_file(self.console).decode(errors="replace")
        except FileNotFoundError:
            return []
        check("full" not in text, "the guest's disk is full:", text)
        return [int(n) for n in re.findall(what + r" (\d+)\r", text)]

    def go_on(self, read, n=40):
        """Until it has written N records more to its disk, which READ (offset, length) reads.

        A tick of its clock is 16 records; a busy machine gives it few.
        """
        until = None

        def is_there():
            nonlocal until
            while sector_number(read((FIRST + self.known) * 512, 512)) == self.known + 1:
                self.known += 1
            if until is None:
                until = self.known + n
            return self.known >= until
        poll("the guest to write %d records" % n, is_there)

    def last_record(self):
        """What it found when it booted."""
        return poll("the guest to boot", lambda: self.says("last record"))[0]


class VM(Guest):
    """A QEMU that runs the guest on DRIVE, the options of its node "disk0"."""

    def __init__(self, test, drive):
        super().__init__(test)
        self.log = test.unique("log")
        path = test.unique("qmp")
        self.process, self.qmp = start_qemu(
            test,
            ["qemu-system-x86_64", *self.options, "-nodefaults", "-display", "none",
             "-drive", "if=none,id=disk0,format=raw," + drive,
             "-device", "virtio-blk-pci,drive=disk0", "-qmp",
             "unix:%s,server=on,wait=off" % path], path, self.log)

    def kill(self):
        self.qmp.close()
        self.process.kill()
        self.process.wait()

    def quit(self):
        """An end at which QEMU flushes."""
        self.qmp.command("stop")
        self.qmp.command("quit")
        self.qmp.close()
        check(self.process.wait(60) == 0, "QEMU ended with", self.process.returncode)


class RunningPrimary(Primary, Guest):
    """A primary whose guest runs from its disk d0, IMAGE, and writes records all the time."""

    def __init__(self, test, image):
        with open(image, "r+b") as f:
            f.write(boot_sector(test))
        Guest.__init__(self, test)
        Primary.__init__(self, test, [image],
                         machine=[*self.options, "-device", "virtio-blk-pci,drive=d0"])
        equal(self.last_record(), 0, "records on a new disk")

    def works(self, n=40):
        """The guest has written N records more."""
        with open(self.images[0], "rb") as f:
            self.go_on(lambda at, length: os.pread(f.fileno(), length, at), n)
