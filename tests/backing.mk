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

# On a simulated disk; see torture.mk for what the linker replaces.
TESTS += unit/test-replica-groups
check_PROGRAMS += unit/test-replica-groups
unit_test_replica_groups_SOURCES = \
	unit/test-replica-groups.c \
	unit/unit.c \
	unit/unit.h \
	$(NULL)
unit_test_replica_groups_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_groups_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-speculation
check_PROGRAMS += unit/test-speculation
unit_test_speculation_SOURCES = \
	unit/fail-alloc.c \
	unit/test-speculation.c \
	unit/unit.c \
	unit/unit.h \
	$(NULL)
unit_test_speculation_LDFLAGS = $(UNIT_WRAP)
unit_test_speculation_LDADD = $(top_builddir)/buffers/libbuffers.la $(UNIT_LIBS)
