# SPDX-License-Identifier: BSD-3-Clause
# Views, and what they and history cost.

looks_tests = \
	nbd/test-mcbuf-history-views.py \
	$(NULL)
TESTS += $(looks_tests)
EXTRA_DIST += $(looks_tests)
