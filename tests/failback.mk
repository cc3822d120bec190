# SPDX-License-Identifier: BSD-3-Clause
# Failback, who has an image open, and what a server bears from its clients.

failback_tests = \
	nbd/test-mcbuf-failback.py \
	nbd/test-mcbuf-image-users.py \
	$(NULL)
TESTS += $(failback_tests)
EXTRA_DIST += $(failback_tests)
