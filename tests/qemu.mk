# SPDX-License-Identifier: BSD-3-Clause
# States and the ways between them, with the mirror of a QEMU whose guest runs.

qemu_tests = \
	nbd/test-mcbuf-qemu-faults.py \
	nbd/test-mcbuf-qemu-resync.py \
	$(NULL)
TESTS += $(qemu_tests)
EXTRA_DIST += $(qemu_tests) libmirrored.py
