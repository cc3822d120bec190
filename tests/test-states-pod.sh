#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The tables in mcbuf-states(7) are those that the tests carry out.
# When they are not: put in what python3 tests/state_table.py prints.
set -euo pipefail

srcdir=${srcdir:-$(dirname "$0")}
python3 -B - "$srcdir" <<'EOF'
import os
import sys

sys.path.insert(0, sys.argv[1])
# pylint: disable=wrong-import-position
from state_table import STATES, pages

with open(os.path.join(sys.argv[1], "../man/mcbuf-states.pod"), encoding="utf-8") as f:
    pod = f.read()
blocks = list(pages())
assert len(blocks) == 12 and all(len(b.splitlines()) > 3 for b in blocks)
missing = [b for b in blocks if b not in pod]
for block in missing:
    print("not in man/mcbuf-states.pod:\n" + block)
rows = sum(len(b.splitlines()) for b in blocks)
in_page = sum(line.startswith(" ") for line in pod.splitlines())
if in_page != rows:
    print("man/mcbuf-states.pod has %d lines of tables, and not %d" % (in_page, rows))
unexplained = [s for s in STATES if "=item B<%s>" % s not in pod]
if unexplained:
    print("columns without a word in man/mcbuf-states.pod:", *unexplained)
print("%d tables, %d lines" % (len(blocks), rows))
sys.exit(1 if missing or unexplained or in_page != rows else 0)
EOF
