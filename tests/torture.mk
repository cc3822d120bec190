# SPDX-License-Identifier: BSD-3-Clause
# Power loss of a whole replica, on a simulated disk.

# The simulated host, unit/torture-host.c, and allocations that fail, unit/fail-alloc.c.
TORTURE_WRAP = \
	$(AM_LDFLAGS) \
	-Wl,--wrap=aligned_alloc \
	-Wl,--wrap=asprintf \
	-Wl,--wrap=calloc \
	-Wl,--wrap=free \
	-Wl,--wrap=host_boot_id \
	-Wl,--wrap=host_monotonic_ns \
	-Wl,--wrap=host_random \
	-Wl,--wrap=host_time_ns \
	-Wl,--wrap=journal_start \
	-Wl,--wrap=malloc \
	-Wl,--wrap=map_new \
	-Wl,--wrap=mmap \
	-Wl,--wrap=mmap64 \
	-Wl,--wrap=munmap \
	-Wl,--wrap=posix_memalign \
	-Wl,--wrap=pthread_cond_timedwait \
	-Wl,--wrap=realloc \
	-Wl,--wrap=strdup \
	-Wl,--wrap=strndup \
	$(NULL)
TORTURE_LIBS = \
	unit/libtorture.la \
	$(REPLICA_LIBS) \
	$(NULL)

check_LTLIBRARIES += unit/libtorture.la
unit_libtorture_la_CPPFLAGS = $(AM_CPPFLAGS) -DTORTURE
unit_libtorture_la_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/fail-alloc.c \
	unit/simvfs.c \
	unit/simvfs.h \
	unit/torture-catalog.c \
	unit/torture-check.c \
	unit/torture-fault.c \
	unit/torture-host.c \
	unit/torture-life.c \
	unit/torture-model.c \
	unit/torture-refault.c \
	unit/torture-steps.c \
	unit/torture-verbs.c \
	unit/torture-views.c \
	unit/torture.h \
	$(NULL)

# One disk, for stories that are told step by step.
STORY_SOURCES = unit/story.c unit/story.h

TESTS += unit/test-replica-torture
check_PROGRAMS += unit/test-replica-torture
unit_test_replica_torture_SOURCES = unit/test-replica-torture.c
unit_test_replica_torture_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_torture_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-replica-found
check_PROGRAMS += unit/test-replica-found
unit_test_replica_found_SOURCES = unit/test-replica-found.c $(STORY_SOURCES)
unit_test_replica_found_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_found_LDADD = $(TORTURE_LIBS)

TESTS += unit/test-replica-races
check_PROGRAMS += unit/test-replica-races
unit_test_replica_races_SOURCES = unit/test-replica-races.c $(STORY_SOURCES)
unit_test_replica_races_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_races_LDADD = $(TORTURE_LIBS)

# make torture SEEDS=n: n lives, and their share of the rest.
SEEDS = 1000
.PHONY: torture
torture: unit/test-replica-torture unit/test-replica-faults
	MCBUF_TORTURE_SEEDS=$(SEEDS) unit/test-replica-torture
	MCBUF_TORTURE_SEEDS=$(SEEDS) unit/test-replica-faults
