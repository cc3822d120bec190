# SPDX-License-Identifier: BSD-3-Clause
# What the tests tried, by invariant: it reads the others' logs, and so comes last.

TESTS += test-invariants.sh
EXTRA_DIST += README.md test-invariants.sh tried
CLEANFILES += invariants.md
# By a variable, or automake takes it for a rule in the place of its own.
invariants_log = test-invariants.sh.log
$(invariants_log): $(filter-out test-invariants.sh.log,$(TEST_LOGS))
