# SPDX-License-Identifier: BSD-3-Clause
# The journal's own tests.

journal_test_help = \
	unit/journal-help.c \
	unit/journal-help.h \
	$(NULL)
journal_test_libs = \
	$(top_builddir)/journal/libjournal.la \
	$(top_builddir)/common/libcommon.la \
	$(CHECK_LIBS) \
	$(NULL)

check_PROGRAMS += unit/test-journal-basic
TESTS += unit/test-journal-basic
unit_test_journal_basic_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/test-journal-basic.c \
	$(journal_test_help) \
	$(NULL)
unit_test_journal_basic_LDADD = $(journal_test_libs)

check_PROGRAMS += unit/test-journal-takeover
TESTS += unit/test-journal-takeover
unit_test_journal_takeover_SOURCES = unit/test-journal-takeover.c $(journal_test_help)
unit_test_journal_takeover_LDADD = $(journal_test_libs)

check_PROGRAMS += unit/test-journal-crash
TESTS += unit/test-journal-crash
unit_test_journal_crash_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/test-journal-crash.c \
	$(journal_test_help) \
	$(NULL)
unit_test_journal_crash_LDADD = $(journal_test_libs)

check_PROGRAMS += unit/test-journal-damage
TESTS += unit/test-journal-damage
unit_test_journal_damage_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/test-journal-damage.c \
	$(journal_test_help) \
	$(NULL)
unit_test_journal_damage_LDADD = $(journal_test_libs)

check_PROGRAMS += unit/test-journal-threads
TESTS += unit/test-journal-threads
unit_test_journal_threads_SOURCES = unit/test-journal-threads.c $(journal_test_help)
unit_test_journal_threads_LDADD = $(journal_test_libs)

check_PROGRAMS += unit/test-journal-format
TESTS += unit/test-journal-format
EXTRA_DIST += unit/journal-format-1.golden
unit_test_journal_format_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/test-journal-format.c \
	$(journal_test_help) \
	$(NULL)
unit_test_journal_format_CPPFLAGS = $(AM_CPPFLAGS) -DSRCDIR='"$(srcdir)"'
unit_test_journal_format_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=host_random -Wl,--wrap=host_boot_id
unit_test_journal_format_LDADD = $(journal_test_libs)
