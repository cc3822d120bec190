# SPDX-License-Identifier: BSD-3-Clause
# Other devices, file systems and CPUs than the usual ones.

portability_tests = \
	nbd/test-mcbuf-block-device.py \
	$(NULL)
TESTS += $(portability_tests)
EXTRA_DIST += $(portability_tests) libloop.py
