# SPDX-License-Identifier: BSD-3-Clause
# Damage to journals, marks and images; recovery; recycling.

TESTS += unit/test-replica-damage
check_PROGRAMS += unit/test-replica-damage
unit_test_replica_damage_SOURCES = \
	unit/damage-harm.c \
	unit/damage-life.c \
	unit/damage.h \
	unit/slow.h \
	unit/test-replica-damage.c \
	$(NULL)
unit_test_replica_damage_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_damage_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-recover-io
check_PROGRAMS += unit/test-recover-io
unit_test_recover_io_SOURCES = \
	unit/damage-harm.c \
	unit/damage-life.c \
	unit/damage.h \
	unit/slow.h \
	unit/test-recover-io.c \
	$(NULL)
unit_test_recover_io_LDFLAGS = $(TORTURE_WRAP)
unit_test_recover_io_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-replica-laps
check_PROGRAMS += unit/test-replica-laps
unit_test_replica_laps_SOURCES = \
	unit/slow.h \
	unit/test-replica-laps.c \
	$(NULL)
unit_test_replica_laps_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_laps_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-journal-resize
check_PROGRAMS += unit/test-journal-resize
unit_test_journal_resize_SOURCES = \
	unit/simcrash.c \
	unit/simdisk-impl.h \
	unit/simdisk.c \
	unit/simdisk.h \
	unit/simpages.c \
	unit/simpages.h \
	unit/slow.h \
	unit/test-journal-resize.c \
	$(journal_test_help) \
	$(NULL)
unit_test_journal_resize_LDADD = $(journal_test_libs)

damage_tests = \
	nbd/test-mcbuf-damage.py \
	nbd/test-mcbuf-damage-files.py \
	nbd/test-mcbuf-journal-size.py \
	nbd/test-mcbuf-recover-busy.py \
	nbd/test-mcbuf-recover-kill.py \
	nbd/test-mcbuf-sums.py \
	nbd/test-mcbuf-verify.py \
	$(NULL)
TESTS += $(damage_tests)
EXTRA_DIST += libdamage.py libjournal.py $(damage_tests)
