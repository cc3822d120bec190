# SPDX-License-Identifier: BSD-3-Clause
# Backing images by NBD, groups of disks, limits.

backing_tests = \
	nbd/test-mcbuf-backing-kill.py \
	nbd/test-mcbuf-backing-nbd.py \
	nbd/test-mcbuf-groups.py \
	nbd/test-mcbuf-limits.py \
	$(NULL)
TESTS += $(backing_tests)
EXTRA_DIST += \
	$(backing_tests) \
	libstore.py \
	$(NULL)
