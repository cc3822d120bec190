# SPDX-License-Identifier: BSD-3-Clause
# How recovery goes about it.

recov_tests = \
	nbd/test-mcbuf-recover-memory.py \
	$(NULL)
TESTS += $(recov_tests)
EXTRA_DIST += $(recov_tests)
