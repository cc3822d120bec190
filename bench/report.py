# SPDX-License-Identifier: BSD-3-Clause
"""Tables of a run, for the terminal and for README.md: no figure is typed by hand."""

from figures import ratio

BEGIN = "<!-- from bench.json: make bench-readme writes what is between these two lines -->"
END = "<!-- end of what make bench-readme writes -->"

WRITE_COLUMNS = (
    ("requests/s", "iops", 0), ("MB/s", "mb_s", 0), ("request p50 µs", "request_us.p50", 0),
    ("p99", "request_us.p99", 0), ("max", "request_us.max", 0),
    ("checkpoint p50 ms", "checkpoint_us.p50", 3), ("p99", "checkpoint_us.p99", 3),
    ("max", "checkpoint_us.max", 3), ("epochs/s", "epochs_s", 0),
    ("CPU µs/request", "cpu_us", 0), ("disk bytes/byte", "disk_bytes_per_byte", 0),
)
READ_COLUMNS = WRITE_COLUMNS[:5] + (("CPU µs/request", "cpu_us", 0),)
FIO_COLUMNS = WRITE_COLUMNS[:5]

MEASURES = ("bare", "process", "write-out", "recovery", "first-copy", "resync", "ram")


def number(value, power=0):
    """VALUE / 10^POWER, three significant digits, for people."""
    if value is None:
        return "–"
    value /= 10 ** power
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return "{:,.0f}".format(value).replace(",", " ")
    return "%.3g" % value


def table(head, rows, left=1):
    """Markdown; all but the LEFT first columns are numbers."""
    out = ["| " + " | ".join(head) + " |",
           "|" + "".join("---|" if i < left else "--:|" for i in range(len(head)))]
    out += ["| " + " | ".join(r) + " |" for r in rows]
    return "\n".join(out)


def verdict(target):
    return {True: "met", False: "**missed**", None: "not measured"}[target["met"]]


def targets_table(run):
    rows = []
    for t in run["targets"]:
        value = "–" if t["value"] is None else number(t["value"]) + t["unit"]
        rows.append((t["what"], t["target"], value, verdict(t), t["note"] or ""))
    return table(("what", "target", "measured", "", "figures"), rows, left=5)


def peers_table(run):
    rows = [(name, p["text"], "skipped: " + p["skipped"] if p.get("skipped") else "measured")
            for name, p in run["peers"].items()]
    return table(("peer", "what it is", ""), rows, left=3)


def by_file(run, workload, peer):
    """Throughput as a ratio to nbdkit file's, taken within a round."""
    value = ratio(run["rows"], (workload, peer, "mb_s"), (workload, "file", "mb_s"))
    return "–" if value is None else number(value) + " ×"


def workload_table(run, name, columns):
    of = run["summary"][name]
    used = [c for c in columns if any(p.get(c[1]) is not None for p in of.values())]
    rows = []
    for peer, f in of.items():
        rows.append([peer, by_file(run, name, peer)] + [number(f.get(key), power) for _, key, power in used])
    return table(["peer", "by file"] + [c[0] for c in used], rows)


def fio_table(run):
    names = [w for w in run["summary"] if w.startswith("fio-")]
    rows = []
    for name in names:
        for peer, f in run["summary"][name].items():
            rows.append([name[4:], peer, by_file(run, name, peer)]
                        + [number(f.get(key)) for _, key, _ in FIO_COLUMNS])
    return table(["fio", "peer", "by file"] + [c[0] for c in FIO_COLUMNS], rows, left=2)


def promote_table(run):
    rows = []
    for name, of in run["summary"].items():
        if name.startswith("promote-"):
            f = of["mcbuf"]
            rows.append([number(round(f["backlog_mib"]))] + [number(f[k + "_us"], 3) for k in
                                                      ("promote", "connect", "read", "total")])
    rows.sort(key=lambda r: int(r[0].replace(" ", "")))
    return table(("backlog MiB", "promote ms", "connect ms", "first read ms", "in all ms"), rows, 0)


def measures_table(run):
    rows = []
    for name in MEASURES:
        for figures in run["summary"].get(name, {}).values():
            rows += [(name, key, number(value)) for key, value in figures.items()]
    return table(("measure", "figure", "median"), rows, left=2)


def settings_line(run):
    m, s = run["machine"], run["settings"]
    return ("%d rounds%s, image of %d MiB, on %s: %s with %d cores, %d GiB, Linux %s; "
            "%s; %s; %s; load average at the start %.1f." % (
        s["rounds"], " (a short run)" if s["quick"] else "", s["image_mib"], m["file_system"],
        m["cpu"], m["cores"], m["memory_gib"], m["kernel"], m["nbdkit"], m["qemu"], m["fio"], m["load"]))


def busy(run):
    """A warning, when others used the machine meanwhile."""
    m = run["machine"]
    if m["load"] < m["cores"]:
        return []
    return ["**The machine was busy with other work when this run began** (load average %.1f on %d cores). "
            "Nothing here can be judged by it: the bare overwrite + fdatasync, which commits are held against, "
            "is slow then, too, so that a target can seem to be met that is not; and tails are those of "
            "the scheduler." % (m["load"], m["cores"])]


def page(run):
    """All of it, Markdown."""
    parts = [settings_line(run), *busy(run), "### Targets", targets_table(run), "### Peers", peers_table(run)]
    text = run["workloads"]
    for name in run["summary"]:
        if name in MEASURES or name.startswith(("promote-", "fio-")):
            continue
        parts.append("### %s: %s" % (name, text[name]))
        parts.append(workload_table(run, name, READ_COLUMNS if name.startswith("read-")
                                    else WRITE_COLUMNS))
    if any(n.startswith("fio-") for n in run["summary"]):
        parts += ["### fio", fio_table(run)]
    if any(n.startswith("promote-") for n in run["summary"]):
        parts += ["### Promote to first served read", promote_table(run)]
    parts += ["### Single measures", measures_table(run)]
    return "\n\n".join(parts) + "\n"


def aligned(markdown):
    """The same, tables aligned for a terminal."""
    out, block = [], []
    for line in markdown.split("\n") + [""]:
        if line.startswith("|"):
            block.append([c.strip() for c in line.strip("|").split("|")])
            continue
        if block:
            right = [c.endswith(":") for c in block[1]]
            del block[1]
            widths = [max(len(r[i]) for r in block) for i in range(len(block[0]))]
            out += ["  ".join(c.rjust(w) if e else c.ljust(w) for c, w, e in
                              zip(r, widths, right)).rstrip() for r in block]
            block = []
        out.append(line)
    return "\n".join(out).rstrip() + "\n"


def rewrite(path, run):
    """Put the tables between the two marks of a README."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError("%s: the two marks are not there" % path)
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    with open(path, "w", encoding="utf-8") as f:
        f.write(head + BEGIN + "\n" + page(run) + END + tail)
