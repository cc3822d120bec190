# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic on what was measured: nothing here measures.

A row is what one peer did with one workload in one round: a dict with "round",
"peer", "workload" and flat figures such as "iops" or "request_us.p99".
"""

import collections
import math

NOT_FIGURES = ("round", "peer", "workload")
COUNTS = ("bytes", "bare_bytes", "count", "requests", "checkpoint")      # how much was asked for


def percentile(values, percent):
    """Nearest rank: the smallest value that PERCENT in a hundred do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def median(values):
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def flatten(figures, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}; what is not a number is left out."""
    flat = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            flat.update(flatten(value, prefix + key + "."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


def by_round(rows, workload, peer, key):
    """{round: figure}"""
    return {r["round"]: r[key] for r in rows
            if r["workload"] == workload and r["peer"] == peer and r.get(key) is not None}


def figure(rows, workload, peer, key):
    """Median over the rounds; the largest for a maximum; None when it was not measured."""
    values = by_round(rows, workload, peer, key).values()
    if not values:
        return None
    return max(values) if key.endswith(".max") else median(values)


def ratio(rows, over, under):
    """The median over the rounds of the quotient of two figures of the same round.

    OVER and UNDER are (workload, peer, key).  What disturbs one round disturbs both.
    """
    a, b = by_round(rows, *over), by_round(rows, *under)
    quotients = [a[r] / b[r] for r in a if b.get(r)]
    return median(quotients) if quotients else None


def summary(rows):
    """{workload: {peer: {key: figure}}}, in the order of the rows."""
    keys = collections.OrderedDict()
    for row in rows:
        for key in row:
            if key not in NOT_FIGURES + COUNTS and not key.endswith(".n"):
                keys.setdefault((row["workload"], row["peer"]), {})[key] = True
    out = collections.OrderedDict()
    for (workload, peer), names in keys.items():
        out.setdefault(workload, {})[peer] = {k: rounded(figure(rows, workload, peer, k))
                                              for k in names}
    return out


def rounded(value, digits=4):
    """To DIGITS significant ones, so that files stay small and honest."""
    if value is None or value == 0:
        return value
    places = digits - 1 - math.floor(math.log10(abs(value)))
    value = round(value, places)
    return int(value) if places <= 0 else value
