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

check_PROGRAMS += unit/test-replica-host
TESTS += unit/test-replica-host
unit_test_replica_host_SOURCES = $(fuzz_world) unit/test-replica-host.c $(UNIT_COMMON)
unit_test_replica_host_LDFLAGS = $(fuzz_world_wrap)
unit_test_replica_host_LDADD = $(REPLICA_LIBS)
