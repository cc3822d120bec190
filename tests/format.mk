# SPDX-License-Identifier: BSD-3-Clause
# The format page, held against journal/format.h.

unit/format-fields.c: $(srcdir)/unit/format-fields.awk $(top_srcdir)/journal/format.h
	$(AM_V_GEN)$(MKDIR_P) unit && \
	$(AWK) -f $(srcdir)/unit/format-fields.awk $(top_srcdir)/journal/format.h >$@.tmp && \
	mv $@.tmp $@
EXTRA_DIST += unit/format-fields.awk
CLEANFILES += unit/format-fields.c

check_PROGRAMS += unit/test-format-page
TESTS += unit/test-format-page
unit_test_format_page_SOURCES = \
	unit/format-fields.h \
	unit/simcrash.c \
	unit/simdisk-impl.h \
	unit/simdisk.c \
	unit/simdisk.h \
	unit/simpages.c \
	unit/simpages.h \
	unit/test-format-page.c \
	$(journal_test_help) \
	$(NULL)
nodist_unit_test_format_page_SOURCES = unit/format-fields.c
unit_test_format_page_CPPFLAGS = \
	$(AM_CPPFLAGS) \
	-DFORMAT_PAGE='"$(top_srcdir)/man/mcbuf-journal.pod"' \
	$(NULL)
unit_test_format_page_LDADD = $(journal_test_libs)
