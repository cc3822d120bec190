# SPDX-License-Identifier: BSD-3-Clause
# A replica's life: what comes too late, takes too long, or goes on while something else is asked for.

TESTS += unit/test-replica-late
check_PROGRAMS += unit/test-replica-late
unit_test_replica_late_SOURCES = unit/test-replica-late.c
unit_test_replica_late_LDFLAGS = $(TORTURE_WRAP) \
	-Wl,--wrap=journal_credit \
	-Wl,--wrap=journal_do_commit \
	-Wl,--wrap=journal_failed \
	-Wl,--wrap=journal_record \
	-Wl,--wrap=speculation_put \
	-Wl,--wrap=wait_space \
	$(NULL)
unit_test_replica_late_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-replica-between
check_PROGRAMS += unit/test-replica-between
unit_test_replica_between_SOURCES = unit/test-replica-between.c
unit_test_replica_between_LDFLAGS = $(TORTURE_WRAP) \
	-Wl,--wrap=backing_flush \
	-Wl,--wrap=journal_do_commit \
	$(NULL)
unit_test_replica_between_LDADD = $(TORTURE_LIBS)

life_tests = \
	nbd/test-mcbuf-qemu-start.py \
	nbd/test-mcbuf-scratch-busy.py \
	$(NULL)
TESTS += $(life_tests)
EXTRA_DIST += $(life_tests)
