# SPDX-License-Identifier: BSD-3-Clause
# Ends and beginnings that follow at once: shutdown, SIGKILL, the next server, recovery; dry runs; the
# installation.

ending_tests = \
	nbd/test-mcbuf-ending.py \
	$(NULL)
TESTS += $(ending_tests)
EXTRA_DIST += $(ending_tests) test-installed.sh
