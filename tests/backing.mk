# SPDX-License-Identifier: BSD-3-Clause
# Backing images by NBD, groups of disks, limits.

backing_tests = \
	nbd/test-mcbuf-limits.py \
	$(NULL)
TESTS += $(backing_tests)
EXTRA_DIST += \
	$(backing_tests) \
	$(NULL)
