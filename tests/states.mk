# SPDX-License-Identifier: BSD-3-Clause
# The table of states: every state with every verb, data operation, end and tool.

states_tests = \
	nbd/test-mcbuf-failing-backing.py \
	nbd/test-mcbuf-failing-journal.py \
	nbd/test-mcbuf-full-disk.py \
	nbd/test-mcbuf-qemu-first-copy.py \
	nbd/test-mcbuf-slow-disk.py \
	nbd/test-mcbuf-table-data.py \
	nbd/test-mcbuf-table-ends.py \
	nbd/test-mcbuf-table-verbs.py \
	test-states-pod.sh \
	$(NULL)
TESTS += $(states_tests)
EXTRA_DIST += \
	$(states_tests) \
	libstates.py \
	state_table.py \
	$(NULL)
