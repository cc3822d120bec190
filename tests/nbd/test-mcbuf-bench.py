#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark: its arithmetic, and that a tiny run leaves tables, figures and nothing else.

No figure is held against another: a busy machine must not fail a test.
"""

import json
import os
import re
import signal
import subprocess
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
BENCH = os.path.join(HERE, "../../bench")
sys.path[:0] = [os.path.join(HERE, ".."), BENCH]
# pylint: disable=wrong-import-position
import figures
import report
import targets
from libmcbuf import (BUILD, DEADLINE, Failure, check, environment, equal, main, poll,
                      read_file, write_file)


def raises(kind, function, *arguments):
    try:
        function(*arguments)
    except kind as error:
        return str(error)
    raise Failure("%s%s: no %s" % (function.__name__, arguments, kind.__name__))


def test_percentiles(_test):
    """Nearest rank, medians, significant digits."""
    hundred = list(range(100, 0, -1))
    equal([figures.percentile(hundred, p) for p in (1, 50, 99, 100)], [1, 50, 99, 100], "of 100")
    equal([figures.percentile([7], p) for p in (0, 50, 100)], [7, 7, 7], "of one")
    equal(figures.percentile([1, 2, 3], 50), 2, "of three")
    equal(figures.percentile([1, 2, 3], 67), 3, "above two thirds")
    raises(ValueError, figures.percentile, [], 50)
    equal(figures.median([3, 1, 2]), 2, "odd")
    equal(figures.median([4, 1, 2, 3]), 2.5, "even")
    raises(ValueError, figures.median, [])
    equal([figures.rounded(v) for v in (None, 0, 123456, 1.23456, 0.000123456, -98761)],
          [None, 0, 123500, 1.235, 0.0001235, -98760], "rounded")
    equal(figures.flatten({"a": {"b": 1, "c": {"d": 2.5}}, "e": 3, "f": "text", "g": True}),
          {"a.b": 1, "a.c.d": 2.5, "e": 3}, "flat")


def rows_of(workload, peer, **by_key):
    """Rows of as many rounds as there are values."""
    n = len(next(iter(by_key.values())))
    return [dict({"round": i + 1, "workload": workload, "peer": peer},
                 **{k: v[i] for k, v in by_key.items()}) for i in range(n)]


def test_ratios(_test):
    """A ratio is taken within a round; the median of the rounds; a maximum of all."""
    rows = (rows_of("w", "mcbuf", iops=[10, 40, 90], **{"request_us.max": [5, 50, 7]})
            + rows_of("w", "file", iops=[10, 20, 30]))
    equal(figures.ratio(rows, ("w", "mcbuf", "iops"), ("w", "file", "iops")), 2, "ratio")
    equal(figures.ratio(rows[1:], ("w", "mcbuf", "iops"), ("w", "file", "iops")), 2.5,
          "without the first round of one")
    equal(figures.ratio(rows, ("w", "mcbuf", "iops"), ("w", "null", "iops")), None, "no peer")
    equal(figures.figure(rows, "w", "mcbuf", "iops"), 40, "median")
    equal(figures.figure(rows, "w", "mcbuf", "request_us.max"), 50, "maximum")
    equal(figures.figure(rows, "w", "mcbuf", "mb_s"), None, "not measured")
    equal(figures.summary(rows), {"w": {"mcbuf": {"iops": 40, "request_us.max": 50},
                                        "file": {"iops": 20}}}, "summary")


def test_targets(_test):
    """Met, missed, not measured; at the limit it is met."""
    def verdicts(bare, commit, iops):
        rows = (rows_of("64x4K", "mcbuf", epochs_s=[400], **{
                    "checkpoint_us.p50": [commit], "checkpoint_us.p99": [commit],
                    "bare_sync_us.p50": [bare]})
                + rows_of("1024x4K", "mcbuf", iops=[iops]) + rows_of("1024x4K", "file", iops=[100]))
        return {j["what"]: j for j in targets.judge(rows)}

    commit = "commit of 64 random 4 KiB writes, p50, by a bare 4 KiB overwrite + fdatasync"
    write = "4 KiB random write, qd 16, durable journal, by `nbdkit file`"
    at_limit = verdicts(100, 300, 120)
    for what, value in ((commit, 3), (write, 1.2)):
        equal((at_limit[what]["value"], at_limit[what]["met"]), (value, True), what)
    missed = verdicts(100, 301, 119)
    for what in (commit, write):
        equal(missed[what]["met"], False, what)
    rate = "durable checkpoints a second, epochs of 64 random 4 KiB writes"
    equal(at_limit[rate]["met"], True, rate)
    equal({(j["value"], j["met"]) for what, j in at_limit.items()
           if what not in (commit, write, rate)}, {(None, None)}, "what was not measured")
    equal(len(targets.judge([])), len(targets.TARGETS), "targets of no rows")


def test_tables(test):
    """Numbers for people, alignment, and README's marks."""
    equal([report.number(v) for v in (None, 0, 1.234, 12345.6, 0.00123)],
          ["–", "0", "1.23", "12 346", "0.00123"], "numbers")
    equal(report.number(12345.6, 3), "12.3", "by a thousand")
    equal(report.table(("a", "b"), [("x", "1"), ("y", "22")]),
          "| a | b |\n|---|--:|\n| x | 1 |\n| y | 22 |", "a table")
    equal(report.aligned("text\n\n| a | b |\n|---|--:|\n| xx | 1 |\n| y | 22 |\n"),
          "text\n\na    b\nxx   1\ny   22\n", "the same, aligned")
    page = test.path("page.md")
    write_file(page, b"no marks\n")
    raises(ValueError, report.rewrite, page, {})
    equal(read_file(page), b"no marks\n", "a page without marks")


def bench(test, *arguments, env=None):
    return subprocess.run([os.path.join(BENCH, "run"), "--build=" + BUILD, *arguments],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, cwd=test.dir, timeout=4 * DEADLINE,
                          env=environment(dict(env or {}, BENCH_DIR=test.dir)), check=False)


def test_tiny_run(test):
    """A run of seconds: every workload and measure has its figures, README gets the tables."""
    p = bench(test, "--tiny", "--peers=mcbuf,file", "--json=bench.json")
    check(p.returncode == 0, p)
    equal(sorted(os.listdir(test.dir)), ["bench.json"], "what is left")
    run = json.loads(read_file(test.path("bench.json")))
    equal(run["settings"]["rounds"], 1, "rounds")
    check(run["peers"]["fio"]["skipped"] and "skipped" not in run["peers"]["mcbuf"], run["peers"])
    for name in run["workloads"]:
        of = run["summary"][name]
        for key in ("iops", "mb_s", "request_us.p50", "request_us.p99", "request_us.max"):
            check(of["mcbuf"][key] > 0, name, key, of)
        if not name.startswith("read-"):
            for key in ("checkpoint_us.p50", "checkpoint_us.p99", "epochs_s"):
                check(of["mcbuf"][key] > 0, name, key, of)
        if name.startswith("seal-"):
            check(of["mcbuf"]["seal_us.p99"] > 0, name, of)
        if not name.startswith(("seal-", "held-")):
            check(of["file"]["iops"] > 0, name, of)
    for name, key in (("bare", "sync_us.p50"), ("process", "commit_us.p50"),
                      ("write-out", "mb_s"), ("recovery", "ratio"), ("promote-1M", "total_us"),
                      ("first-copy", "ratio"), ("first-copy", "allocated_ratio"), ("resync", "ratio"),
                      ("ram", "start_bytes")):
        figure, = (f[key] for f in run["summary"][name].values())
        check(figure > 0, name, key)
    rows = {r["workload"]: r for r in run["rows"] if r["peer"] == "mcbuf"}
    equal(rows["recovery"]["bytes"], rows["recovery"]["bare_bytes"], "recovered and replayed bytes")
    equal(rows["promote-1M"]["backlog_mib"] > 0, True, "a backlog was there")
    equal(rows["resync"]["extents_taken"], 0, "what a resync of an unchanged disk takes")
    check(rows["resync"]["journal_grew_mib"] <= 2, "the journal is not nearly empty:", rows["resync"])
    check(rows["first-copy"]["allocated_ratio"] < 1.5, "holes do not stay holes:", rows["first-copy"])
    unmeasured = [t["what"] for t in run["targets"] if t["met"] is None]
    equal(unmeasured, ["the same by `nbdkit memory`",
                       "promote to first served read, 1 GiB of committed backlog"], "unmeasured")
    for text in ("### Targets", "skipped: the tiniest run", "64x4K"):
        check(text in p.stdout, "no", text, "in", p.stdout)

    write_file(test.path("page.md"), ("above\n%s\nold\n%s\nbelow\n" % (report.BEGIN,
                                                                      report.END)).encode())
    p = bench(test, "--readme=page.md", "--json=bench.json")
    check(p.returncode == 0, p)
    page = read_file(test.path("page.md")).decode()
    check(page.startswith("above\n" + report.BEGIN) and page.endswith(report.END + "\nbelow\n")
          and "\nold\n" not in page and "| seal after 64 writes, p99 |" in page, page)


def test_refusals(test):
    """One line on stderr: what is wrong."""
    for arguments, env, words in (
            (("--peers=mcbuf,nobody",), {}, "no such peer: nobody"),
            (("--tiny",), {"ROUNDS": "none"}, "ROUNDS"),
            (("--tiny", "--build=/nowhere"), {}, "run make first"),
            (("--readme=nowhere.md", "--json=nowhere.json"), {}, "nowhere.json")):
        p = bench(test, *arguments, env=env)
        equal(p.returncode, 1, arguments)
        check(p.stderr.startswith("bench: ") and p.stderr.count("\n") == 1 and words in p.stderr,
              arguments, p.stderr)
    p = subprocess.run([os.path.join(BENCH, "run"), "--build=" + BUILD, "--tiny"],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       text=True, cwd=test.dir, env=environment({"BENCH_DIR": "/nowhere"}),
                       timeout=DEADLINE, check=False)
    equal((p.returncode, p.stderr), (1, "bench: BENCH_DIR: /nowhere is not a directory\n"), p)
    equal(os.listdir(test.dir), [], "what is left")


def curves(test, *arguments):
    return subprocess.run([os.path.join(BENCH, "curves-run"), "--build=" + BUILD, "--out=" + test.path("out"),
                           *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, cwd=test.dir, timeout=4 * DEADLINE,
                          env=environment({"BENCH_DIR": test.dir}), check=False)


def test_curves(test):
    """A table with a line for each value, and a picture of it, for each curve that is asked for."""
    p = curves(test, "--tiny", "--only=commit,disk-size,history")
    check(p.returncode == 0, p)
    names = ["commit", "disk-size", "history"]
    equal(sorted(os.listdir(test.path("out"))), sorted(n + e for n in names for e in (".dat", ".svg")), "files")
    equal(os.listdir(test.dir), ["out"], "what is left")
    for name in names:
        lines = read_file(test.path("out/%s.dat" % name)).decode().splitlines()
        rows = [[float(x) for x in line.split("\t")] for line in lines if not line.startswith("#")]
        equal([len(row) for row in rows], [4, 4], name, lines)
        check(rows[0][0] < rows[1][0] and all(x > 0 for row in rows for x in row), name, rows)
        picture = read_file(test.path("out/%s.svg" % name))
        check(picture.startswith(b"<?xml") and picture.count(b"<path") > 3, name, picture[:200])


def test_curves_errors(test):
    """One line for a curve that there is not, and for no rounds."""
    for arguments, words in ((("--only=commit,nonsense",), "nonsense"), (("--rounds=0",), "--rounds")):
        p = curves(test, *arguments)
        equal(p.returncode, 1, arguments)
        check(p.stderr.startswith("curves: ") and p.stderr.count("\n") == 1 and words in p.stderr, p.stderr)
        check(not os.path.exists(test.path("out")), "a folder was made")


def test_a_peer_that_cannot_run(test):
    """It is left out, with the reason in table and JSON; the others go on."""
    os.mkdir(test.path("bin"))
    for name in ("nbdkit", "true"):
        os.symlink(next(os.path.join(d, name) for d in os.environ["PATH"].split(":")
                        if os.path.exists(os.path.join(d, name))), test.path("bin/" + name))
    p = bench(test, "--tiny", "--peers=file,daemon", "--only=64x4K", "--json=bench.json",
              env={"PATH": test.path("bin")})
    check(p.returncode == 0, p)
    run = json.loads(read_file(test.path("bench.json")))
    check("qemu" in run["peers"]["daemon"]["skipped"], run["peers"])
    check("daemon" not in run["summary"]["64x4K"] and run["summary"]["64x4K"]["file"]["iops"] > 0,
          run["summary"])
    check("skipped: qemu" in p.stdout, p.stdout)


def test_interrupted(test):
    """SIGTERM in the middle: servers, files and shared memory go."""
    p = test.spawn([os.path.join(BENCH, "run"), "--build=" + BUILD, "--tiny",
                    "--peers=mcbuf"], env={"BENCH_DIR": test.dir, "ROUNDS": "1000"},
                   output=test.path("said"), ours=True)

    def servers():
        """Process ids of nbdkits that work in the run's directory."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = read_file("/proc/%s/cmdline" % pid)
            except OSError:
                continue
            if os.fsencode(test.dir) in line and b"nbdkit" in line.split(b"\0")[0]:
                found.append(pid)
        return found

    poll("a round", lambda: b"seal-64" in read_file(test.path("said")) or p.poll() is not None)
    shared = {m for pid in servers()
              for m in re.findall(r"/dev/shm/mcbuf-[0-9a-f]+", read_file(
                  "/proc/%s/maps" % pid).decode())}
    check(p.poll() is None and len(shared) > 0, "it ended:", read_file(test.path("said")))
    p.send_signal(signal.SIGTERM)
    equal(p.wait(DEADLINE), 128 + signal.SIGTERM, "exit code")
    poll("the servers to end", lambda: not servers())
    equal(sorted(os.listdir(test.dir)), ["said"], "what is left")
    equal([m for m in shared if os.path.exists(m)], [], "what is left in /dev/shm")


main(globals())
