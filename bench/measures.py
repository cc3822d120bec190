# SPDX-License-Identifier: BSD-3-Clause
"""What only mcbuf has, and what the machine itself does, for comparison.

Each function measures one thing and returns its figures; fill_backlog () and
Mcbuf are there for other measurements to be built from.
"""

import os
import time

import figures
from benchlib import GiB, KiB, MiB, sync_file, write_image
from peer_mcbuf import Mcbuf

EPOCH = 16384                           # writes


def scratch_file(bench):
    """A file that has been written once, for overwrites."""
    path = bench.path("scratch")
    if not os.path.exists(path):
        write_image(path, 16 * MiB)
    return path


def bare_sync(bench, count):
    """A 4 KiB overwrite and fdatasync: what a commit's time is a ratio of."""
    return figures.flatten(bench.json_of([bench.program("bare"), "sync", scratch_file(bench),
                                          count]))


def process_cost(bench, server, count):
    """mcbuf-commit as a process, beside /bin/true and one fdatasync."""
    bare, scratch = bench.program("bare"), scratch_file(bench)
    true = bench.json_of([bare, "spawn", scratch, count, "/bin/true"])
    commit = bench.json_of([bare, "spawn", "-", count, bench.tool("mcbuf-commit"),
                            server.journal])
    return figures.flatten({"true_sync_us": true["spawn_us"], "commit_us": commit["spawn_us"]})


# --- A backlog ---

def backlog_server(bench, mib, image=None, params=()):
    """A server that holds write-out back, with room for MIB MiB of backlog.

    IMAGE: the size of an image with data in it; without, it is sparse and four times the backlog.
    """
    size = image or max(GiB, 4 * mib * MiB)
    return Mcbuf(bench, size, journal_size=mib * MiB * 5 // 4 + 512 * MiB, sparse=image is None,
                 params=("history=1000000", *params)).start()


def fill_backlog(bench, server, mib, seed=1, extents=None):
    """MIB MiB of random 4 KiB writes, committed and not written out."""
    writes = mib * MiB // (4 * KiB)
    per_epoch = min(writes, EPOCH)
    return bench.client(server.uris(), checkpoint="commit", control=server.journal,
                        epochs=writes // per_epoch, requests=per_epoch, size=4 * KiB,
                        seed=seed, extents=extents)


def promote(bench, mib, seed=1):
    """From the promote verb to the first read served, with MIB MiB of committed backlog."""
    server = backlog_server(bench, mib)
    try:
        fill_backlog(bench, server, mib, seed)
        before = server.status()["writeout"]["bytes"]
        out = bench.json_of([bench.program("promote"), server.journal,
                             server.uris()[0].replace(":///?", ":///@promoted?"), 0])
        out["backlog_mib"] = before / MiB
        return figures.flatten(out)
    finally:
        server.stop()


def recovery(bench, mib, image, seed=1):
    """Offline replay of MIB MiB of random 4 KiB writes, beside a bare replay of the same extents."""
    server = backlog_server(bench, mib, image=image)
    extents = bench.unique("extents")
    other = bench.unique("replay")
    try:
        fill_backlog(bench, server, mib, seed, extents)
        server.kill()
        write_image(other, image)
        bare = [bench.program("bare"), "replay", other, extents, seed]
        # Who is first changes with the round.
        reference = bench.json_of(bare) if seed % 2 else None
        began = time.monotonic()
        said = bench.json_of([bench.tool("mcbuf-recover"), "--json", server.journal])
        seconds = time.monotonic() - began
        reference = reference or bench.json_of(bare)
        return {"mb_s": said["written_bytes"] / seconds / 1e6, "seconds": seconds,
                "own_seconds": said["seconds"], "bytes": said["written_bytes"],
                "bare_mb_s": reference["mb_s"], "bare_bytes": reference["bytes"],
                "ratio": said["written_bytes"] / seconds / 1e6 / reference["mb_s"]}
    finally:
        server.stop()
        for path in (extents, other):
            if os.path.exists(path):
                os.unlink(path)


def write_out(bench, server, mib, seed=1):
    """One checkpoint of MIB MiB of random 4 KiB writes until it is in the image."""
    server.settle()
    bench.client(server.uris(), requests=mib * MiB // (4 * KiB), seed=seed,
                 length=server.size * 3 // 4)
    nbytes = server.commit()["bytes"]
    began = time.monotonic()
    server.drained()
    seconds = time.monotonic() - began
    for path in server.images.values():
        sync_file(path)
    return {"mb_s": nbytes / seconds / 1e6, "seconds": seconds, "bytes": nbytes}


def ram(bench, mib, seed=1):
    """Memory beside the ring for a buffered block: in one open epoch, and as committed backlog."""
    server = backlog_server(bench, mib)
    try:
        def beside():
            m = server.memory()
            # Pages of the ring that were not touched yet are not resident.
            return m["anon"] + max(0, m["shared"] - server.buffer)

        start = beside()
        bench.client(server.uris(), requests=mib * MiB // (4 * KiB), seed=seed)
        blocks = server.status()["speculation"]["extents"]
        speculation = beside()
        server.commit()
        backlog = beside()
        return {"blocks": blocks, "start_bytes": start,
                "speculation_bytes_per_block": (speculation - start) / blocks,
                "backlog_bytes_per_block": (backlog - start) / blocks,
                "most_bytes_per_block": (max(speculation, backlog) - start) / blocks}
    finally:
        server.stop()
