# SPDX-License-Identifier: BSD-3-Clause
# Other devices, file systems and CPUs than the usual ones.

portability_tests = \
	nbd/test-mcbuf-block-device.py \
	nbd/test-mcbuf-file-systems.py \
	nbd/test-mcbuf-old-cpu.sh \
	$(NULL)
TESTS += $(portability_tests)
EXTRA_DIST += $(portability_tests) libloop.py

check_PROGRAMS += unit/old-cpu
unit_old_cpu_SOURCES = unit/old-cpu.c
