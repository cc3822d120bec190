# SPDX-License-Identifier: BSD-3-Clause
# A replica's life beside the mirror: disks that leave, scratches, history, checkpoints by time and label.

views_tests = \
	nbd/test-mcbuf-advice.py \
	nbd/test-mcbuf-history-restart.py \
	nbd/test-mcbuf-leave.py \
	nbd/test-mcbuf-scratch-sets.py \
	nbd/test-mcbuf-to.py \
	$(NULL)
TESTS += $(views_tests)
EXTRA_DIST += $(views_tests)
