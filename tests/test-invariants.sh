#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The last of the tests: each invariant was attacked by some of the others.
# Leaves the page that says by which and how often in invariants.md.

set -eu

srcdir=${srcdir:-$(dirname "$0")}
"$srcdir/tried" --check . >invariants.md || exit 1
grep -c '^| `' invariants.md
