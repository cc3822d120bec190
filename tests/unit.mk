# SPDX-License-Identifier: BSD-3-Clause
# Unit tests of common/, buffers/ and the catalog; what holds for the tree.

UNIT_TESTS = \
	test-catalog \
	test-common \
	test-io \
	test-map \
	test-overlay \
	test-writeout \
	test-zeroset \
	$(NULL)

TREE_TESTS = \
	test-layers.sh \
	test-spdx.sh \
	test-symbols.sh \
	$(NULL)

TESTS += $(UNIT_TESTS) $(TREE_TESTS)
EXTRA_DIST += $(TREE_TESTS)
check_PROGRAMS += $(UNIT_TESTS)

UNIT_COMMON = unit/unit.c unit/unit.h
UNIT_LIBS = $(top_builddir)/common/libcommon.la $(CHECK_LIBS)

SIMDISK_SOURCES = \
	unit/simcrash.c \
	unit/simdisk-impl.h \
	unit/simdisk.c \
	unit/simdisk.h \
	unit/simpages.c \
	unit/simpages.h \
	$(NULL)

# Every allocation of the program goes through unit/fail-alloc.c.
UNIT_WRAP = \
	$(AM_LDFLAGS) \
	-Wl,--wrap=malloc \
	-Wl,--wrap=calloc \
	-Wl,--wrap=realloc \
	-Wl,--wrap=aligned_alloc \
	-Wl,--wrap=asprintf \
	-Wl,--wrap=mmap \
	-Wl,--wrap=mmap64 \
	-Wl,--wrap=posix_memalign \
	-Wl,--wrap=strdup \
	-Wl,--wrap=strndup \
	$(NULL)

test_catalog_SOURCES = \
	../journal/catalog.c \
	unit/test-catalog.c \
	$(UNIT_COMMON) \
	$(NULL)
test_catalog_LDADD = $(UNIT_LIBS) $(SQLITE3_LIBS)

test_common_SOURCES = unit/test-common.c $(UNIT_COMMON)
test_common_LDADD = $(UNIT_LIBS)

test_io_SOURCES = unit/test-io.c $(UNIT_COMMON)
test_io_LDADD = $(UNIT_LIBS)

test_map_SOURCES = \
	unit/fail-alloc.c \
	unit/model.c \
	unit/model.h \
	unit/test-map.c \
	$(UNIT_COMMON) \
	$(NULL)
test_map_LDFLAGS = $(UNIT_WRAP)
test_map_LDADD = $(top_builddir)/buffers/libbuffers.la $(UNIT_LIBS)

test_overlay_SOURCES = \
	unit/fail-alloc.c \
	unit/model.c \
	unit/model.h \
	unit/test-overlay.c \
	$(UNIT_COMMON) \
	$(NULL)
test_overlay_LDFLAGS = $(UNIT_WRAP)
test_overlay_LDADD = $(top_builddir)/buffers/libbuffers.la $(UNIT_LIBS)

test_writeout_SOURCES = unit/fail-alloc.c unit/test-writeout.c $(UNIT_COMMON)
test_writeout_LDFLAGS = $(UNIT_WRAP)
test_writeout_LDADD = $(top_builddir)/buffers/libbuffers.la $(UNIT_LIBS)

test_zeroset_SOURCES = unit/fail-alloc.c unit/test-zeroset.c $(UNIT_COMMON)
test_zeroset_LDFLAGS = $(UNIT_WRAP)
test_zeroset_LDADD = $(top_builddir)/buffers/libbuffers.la $(UNIT_LIBS)
