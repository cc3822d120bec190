# SPDX-License-Identifier: BSD-3-Clause
# Failover, restart, fencing and failed journals: what the table of states does not carry out.

TESTS += unit/test-replica-anew
check_PROGRAMS += unit/test-replica-anew
unit_test_replica_anew_SOURCES = unit/test-replica-anew.c $(STORY_SOURCES)
unit_test_replica_anew_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_anew_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-replica-hazard
check_PROGRAMS += unit/test-replica-hazard
unit_test_replica_hazard_SOURCES = unit/test-replica-hazard.c
unit_test_replica_hazard_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_hazard_LDADD = $(TORTURE_LIBS)

standby_tests = \
	nbd/test-mcbuf-list-states.py \
	nbd/test-mcbuf-qemu-bytes.py \
	nbd/test-mcbuf-upgrade-fixtures.py \
	$(NULL)
TESTS += $(standby_tests)
EXTRA_DIST += \
	$(standby_tests) \
	upgrade/1-killed.tar.xz \
	upgrade/1-promoted.tar.xz \
	upgrade/1-stopped.tar.xz \
	upgrade/make-fixtures.py \
	$(NULL)
