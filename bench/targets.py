# SPDX-License-Identifier: BSD-3-Clause
"""The targets, each with how it is computed from the rows of a run.

A target that was not measured (a short run, a peer that could not run) says so; it is
neither met nor missed.
"""

from figures import figure, ratio


class Target:
    """WANTED is compared with what COMPUTE (rows) returns; MOST: it may not be more, else not less."""

    def __init__(self, what, wanted, most, unit, compute, note=None):
        self.what, self.wanted, self.most, self.unit = what, wanted, most, unit
        self.compute = compute
        self.note = note                # rows -> more to say about it, or None

    def judge(self, rows):
        value = self.compute(rows)
        met = None
        if value is not None:
            met = value <= self.wanted if self.most else value >= self.wanted
        return {"what": self.what, "target": self.target(), "value": value, "unit": self.unit,
                "met": met, "note": self.note(rows) if self.note and value is not None else None}

    def target(self):
        return "%s %g%s" % ("≤" if self.most else "≥", self.wanted, self.unit)


def over(workload, key, peer):
    """mcbuf's figure by a peer's."""
    return lambda rows: ratio(rows, (workload, "mcbuf", key), (workload, peer, key))


def of(workload, key, scale=1.0):
    def compute(rows):
        value = figure(rows, workload, "mcbuf", key)
        return None if value is None else value * scale
    return compute


def commit_over_bare(workload):
    return lambda rows: ratio(rows, (workload, "mcbuf", "checkpoint_us.p50"),
                              (workload, "mcbuf", "bare_sync_us.p50"))


def commit_note(workload, *others):
    """OTHERS: the same epochs under other circumstances, [(word, workload)]."""
    def note(rows):
        text = "p50 %.2f ms, p99 %.2f ms; the bare one %.2f ms" % (
            figure(rows, workload, "mcbuf", "checkpoint_us.p50") / 1e3,
            figure(rows, workload, "mcbuf", "checkpoint_us.p99") / 1e3,
            figure(rows, workload, "mcbuf", "bare_sync_us.p50") / 1e3)
        for word, other in others:
            value = figure(rows, other, "mcbuf", "checkpoint_us.p50")
            if value is not None:
                text += "; %s p50 %.2f ms" % (word, value / 1e3)
        return text
    return note


def rates_note(workload, key, unit, *peers):
    def note(rows):
        said = [(p, figure(rows, workload, p, key)) for p in ("mcbuf",) + peers]
        return ", ".join("%s %.0f%s" % (p, v, unit) for p, v in said if v is not None)
    return note


def seal_note(workload):
    return lambda rows: "p50 %.0f µs, max %.0f µs" % (
        figure(rows, workload, "mcbuf", "seal_us.p50"),
        figure(rows, workload, "mcbuf", "seal_us.max"))


def process_note(rows):
    return "%.2f ms; /bin/true and a bare overwrite + fdatasync %.2f ms" % (
        figure(rows, "process", "mcbuf", "commit_us.p50") / 1e3,
        figure(rows, "process", "mcbuf", "true_sync_us.p50") / 1e3)


def promote_note(rows):
    return "the verb %.1f ms, connect %.1f ms, read %.1f ms" % tuple(
        figure(rows, "promote-1024M", "mcbuf", k + "_us") / 1e3
        for k in ("promote", "connect", "read"))


def recovery_note(rows):
    return "%.0f MB/s; bare %.0f MB/s" % (figure(rows, "recovery", "mcbuf", "mb_s"),
                                          figure(rows, "recovery", "mcbuf", "bare_mb_s"))


def copy_note(name, *more):
    """MORE: [(words, figure)]."""
    def note(rows):
        said = ["mcbuf %.0f MB/s, file %.0f MB/s" % (figure(rows, name, "mcbuf", "mb_s"),
                                                     figure(rows, name, "mcbuf", "file_mb_s"))]
        return "; ".join(said + [words % figure(rows, name, "mcbuf", key) for words, key in more])
    return note


def ram_note(rows):
    return "speculation %.1f B, backlog %.1f B" % tuple(
        figure(rows, "ram", "mcbuf", k + "_bytes_per_block") for k in ("speculation", "backlog"))


TARGETS = [
    Target("4 KiB random write, qd 16, durable journal, by `nbdkit file`", 1.2, False, " ×",
           over("1024x4K", "iops", "file"), rates_note("1024x4K", "iops", "/s", "file")),
    Target("the same by `nbdkit memory`", 1.0, False, " ×",
           over("1024x4K", "iops", "memory"), rates_note("1024x4K", "iops", "/s", "memory", "null")),
    Target("1 MiB sequential write, qd 4, by `nbdkit file`", 1.5, False, " ×",
           over("1M-qd4", "mb_s", "file"), rates_note("1M-qd4", "mb_s", " MB/s", "file")),
    Target("commit of 64 random 4 KiB writes, p50, by a bare 4 KiB overwrite + fdatasync", 3, True,
           " ×", commit_over_bare("64x4K"), commit_note("64x4K", ("40 a second:", "paced-64"))),
    Target("commit of 1 024, the same", 4, True, " ×", commit_over_bare("1024x4K"),
           commit_note("1024x4K", ("40 a second:", "paced-1024"))),
    Target("commit of 16 384, the same", 8, True, " ×", commit_over_bare("16384x4K"),
           commit_note("16384x4K")),
    Target("commit of 64 with write-out held back, the same", 3, True, " ×",
           commit_over_bare("held-64"), commit_note("held-64")),
    Target("commit of 1 024 with write-out held back, the same", 4, True, " ×",
           commit_over_bare("held-1024"), commit_note("held-1024")),
    Target("commit of 16 384 with write-out held back, the same", 8, True, " ×",
           commit_over_bare("held-16384"), commit_note("held-16384")),
    Target("durable checkpoints a second, epochs of 64 random 4 KiB writes", 400, False, "/s",
           of("64x4K", "epochs_s"), rates_note("64x4K", "epochs_s", "/s", "file", "colo", "daemon",
                                               "btrfs")),
    Target("seal after 64 writes, p99", 100, True, " µs", of("seal-64", "seal_us.p99"),
           seal_note("seal-64")),
    Target("seal after 1 024 writes, p99", 100, True, " µs", of("seal-1024", "seal_us.p99"),
           seal_note("seal-1024")),
    Target("seal after 16 384 writes, p99", 100, True, " µs", of("seal-16384", "seal_us.p99"),
           seal_note("seal-16384")),
    Target("fork + exec of `mcbuf-commit`, empty epoch, by `/bin/true` + one fdatasync", 3, True,
           " ×", lambda rows: ratio(rows, ("process", "mcbuf", "commit_us.p50"),
                                    ("process", "mcbuf", "true_sync_us.p50")), process_note),
    Target("promote to first served read, 1 GiB of committed backlog", 20, True, " ms",
           of("promote-1024M", "total_us", 1e-3), promote_note),
    Target("recovery (offline replay), by a sorted, coalesced pwritev of the same extents", 0.8,
           False, " ×", of("recovery", "ratio"), recovery_note),
    Target("first copy, half of it holes, by `nbdkit file`", 0.95, False, " ×", of("first-copy", "ratio"),
           copy_note("first-copy", ("space in the image %.2f ×", "allocated_ratio"))),
    Target("resync of an unchanged disk by a plain copy to `nbdkit file`", 0.5, False, " ×",
           of("resync", "ratio"),
           copy_note("resync", ("the journal grew by %.0f MiB", "journal_grew_mib"))),
    Target("RAM beside the ring for a buffered 4 KiB block", 64, True, " B",
           of("ram", "most_bytes_per_block"), ram_note),
    Target("4 KiB reads of untouched ranges by `nbdkit file`", 0.95, False, " ×",
           over("read-4K", "iops", "file"), rates_note("read-4K", "iops", "/s", "file")),
]


def judge(rows):
    return [t.judge(rows) for t in TARGETS]
