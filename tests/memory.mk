# SPDX-License-Identifier: BSD-3-Clause
# Memory, and what happens when a device is slower than those who write.

check_PROGRAMS += unit/test-journal-line
TESTS += unit/test-journal-line
unit_test_journal_line_SOURCES = \
	unit/test-journal-line.c \
	$(UNIT_COMMON) \
	$(journal_test_help) \
	$(NULL)
unit_test_journal_line_LDADD = $(journal_test_libs)

check_PROGRAMS += unit/test-held
TESTS += unit/test-held
unit_test_held_SOURCES = unit/test-held.c $(UNIT_COMMON)
unit_test_held_LDADD = $(UNIT_LIBS)

memory_tests = \
	nbd/test-mcbuf-backpressure.py \
	nbd/test-mcbuf-memory.py \
	$(NULL)
TESTS += $(memory_tests)
EXTRA_DIST += $(memory_tests)
