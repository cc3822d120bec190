# SPDX-License-Identifier: BSD-3-Clause
# Views, and what they and history cost.

looks_tests = \
	nbd/test-mcbuf-colo.py \
	nbd/test-mcbuf-history-views.py \
	nbd/test-mcbuf-list-exact.py \
	nbd/test-mcbuf-scratch-full.py \
	nbd/test-mcbuf-view-limit.py \
	$(NULL)
TESTS += $(looks_tests)
EXTRA_DIST += $(looks_tests)
