# SPDX-License-Identifier: BSD-3-Clause
"""Where things lie in a journal, read as mcbuf-journal(5) describes it.

Written from that page alone: a second reading of it, which shares no code with mcbuf.
"""

import os
import struct

BLOCK, CHUNK = 4096, 1 << 20
SUPER = (0, 96 * BLOCK)
ANCHOR = (254 * BLOCK, 255 * BLOCK)

CREATE, OPEN, DIRTY, CLEAN, PART, COMMIT, TARGET, WATERMARK, STATE, PROMOTE, PROMOTED_COMMIT = range(1, 12)
KINDS = ("", "create", "open", "dirty", "clean", "part", "commit", "target", "watermark", "state", "promote",
         "promoted commit")

_TABLE = []
for _n in range(256):
    for _ in range(8):
        _n = (_n >> 1) ^ (0x82F63B78 if _n & 1 else 0)
    _TABLE.append(_n)


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _is_whole(block, length):
    crc, = struct.unpack_from("<I", block, 8)
    return crc32c(block[:8] + bytes(4) + block[12:length]) == crc


class Record:
    """One record, and where it lies."""

    def __init__(self, block, offset):
        self.offset = offset
        self.kind, self.flags = struct.unpack_from("<HH", block, 12)
        self.seq, self.durable, self.salt = struct.unpack_from("<QQQ", block, 32)
        self.next_chunk, self.next_salt = struct.unpack_from("<IQ", block, 60)
        self.epoch, self.first_epoch = struct.unpack_from("<QQ", block, 80)
        self.nparts, self.nruns = struct.unpack_from("<II", block, 112)
        self.table_bytes, = struct.unpack_from("<Q", block, 120)
        self.state, self.state_flags = block[132], block[133]
        self.target, = struct.unpack_from("<Q", block, 184)
        self.checkpoint, = struct.unpack_from("<Q", block, 256)
        self.watermark, = struct.unpack_from("<Q", block, 544)
        self.payload = block[1024:]
        self.runs = [struct.unpack_from("<II", self.payload, 8 * i) for i in range(self.nruns)]

    @property
    def name(self):
        return KINDS[self.kind]


class Journal:
    """All that JOURNAL/journal holds: .records in order, and .places.

    A place is (what, checkpoint or None, offset, length).
    """

    def __init__(self, directory):
        self.path = os.path.join(directory, "journal")
        self.file = open(self.path, "rb")
        supers = [self.read(at, 4096) for at in SUPER]
        good = [s for s in supers if s[:8] == b"MCBUFJNL"]
        best = max(good, key=lambda s: struct.unpack_from("<Q", s, 48))
        self.length, self.ndisks = struct.unpack_from("<II", best, 24)
        self.id = best[32:48]
        self.size, = struct.unpack_from("<Q", best, 56)
        self.places = [("superblock " + "AB"[i], None, at, self.length) for i, at in enumerate(SUPER)]
        self.places += [("anchor " + "AB"[i], None, at, BLOCK) for i, at in enumerate(ANCHOR)]
        self.records = []
        self._walk()
        self._retained()
        self.file.close()

    def read(self, at, n):
        self.file.seek(at)
        return self.file.read(n)

    def _walk(self):
        anchors = [self.read(at, BLOCK) for at in ANCHOR]
        best = max(anchors, key=lambda a: struct.unpack_from("<Q", a, 32))
        chunk, = struct.unpack_from("<I", best, 12)
        salt, seq = struct.unpack_from("<QQ", best, 40)
        while chunk:
            self.chain_end = chunk
            for slot in range(256):
                at = chunk * CHUNK + slot * BLOCK
                block = self.read(at, BLOCK)
                r = Record(block, at)
                if (block[:8] != b"MCBUFREC" or block[16:32] != self.id or r.seq != seq
                        or r.salt != salt or not _is_whole(block, BLOCK)):
                    return
                self.records.append(r)
                self.places.append(("record", r.epoch if r.kind == COMMIT else None, at, BLOCK))
                seq += 1
            chunk, salt = r.next_chunk, r.next_salt

    def _table(self, r):
        """The places of the table of R, and of its data."""
        i = self.records.index(r)
        found, stream = [], []
        for part in self.records[i - r.nparts:i + 1]:
            if part.flags & 1:
                stream.append((None, part.payload[:part.table_bytes]))
            for block, length in part.runs:
                found.append(("table", block * BLOCK, length))
                stream.append((block, self.read(block * BLOCK, length)))
        for block, data in stream:
            at = 0
            while at + 32 <= len(data):
                if data[at:at + 32] == bytes(32) and block is not None:
                    at = at // BLOCK * BLOCK + BLOCK
                    continue
                sector, nsectors, image = struct.unpack_from("<QII", data, at)
                flags, = struct.unpack_from("<H", data, at + 18)
                slots = 1
                if flags & 1:
                    k = (sector % 8 + nsectors + 7) // 8
                    found.append(("data", image * BLOCK, k * BLOCK))
                    slots += (k - 1 + 7) // 8
                at += 32 * slots
        return found

    def _retained(self):
        last = [r for r in self.records if r.kind != PART][-1]
        self.watermark, self.target, self.checkpoint = last.watermark, last.target, last.checkpoint
        self.commits = [r for r in self.records if r.kind in (COMMIT, PROMOTED_COMMIT)
                        and r.epoch > self.watermark]
        for r in self.commits:
            self.places += [(what, r.epoch, at, n) for what, at, n in self._table(r)]
        clean = [r for r in self.records if r.kind == CLEAN]
        if clean and last.state_flags & 2:
            self.places += [("saved " + what, None, at, n) for what, at, n in self._table(clean[-1])]

    def of(self, what, checkpoint=None):
        """Places of that sort (of that checkpoint)."""
        return [p for p in self.places if p[0] == what and checkpoint in (None, p[1])]

    def retains(self, at):
        """Is byte AT one of those that matter?"""
        return any(p[2] <= at < p[2] + p[3] for p in self.places)
