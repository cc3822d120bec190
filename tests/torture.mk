# SPDX-License-Identifier: BSD-3-Clause
# Power loss and faults of a whole replica, on a simulated disk.

# The simulated host, unit/torture-host.c.
TORTURE_WRAP = \
	$(AM_LDFLAGS) \
	-Wl,--wrap=calloc \
	-Wl,--wrap=free \
	-Wl,--wrap=host_boot_id \
	-Wl,--wrap=host_monotonic_ns \
	-Wl,--wrap=host_random \
	-Wl,--wrap=host_time_ns \
	-Wl,--wrap=journal_start \
	-Wl,--wrap=map_new \
	-Wl,--wrap=mmap \
	-Wl,--wrap=munmap \
	$(NULL)

TESTS += unit/test-replica-torture
check_PROGRAMS += unit/test-replica-torture
unit_test_replica_torture_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/test-replica-torture.c \
	unit/torture-check.c \
	unit/torture-host.c \
	unit/torture-life.c \
	unit/torture.h \
	$(NULL)
unit_test_replica_torture_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_torture_LDADD = $(REPLICA_LIBS)

TESTS += unit/test-replica-found
check_PROGRAMS += unit/test-replica-found
unit_test_replica_found_SOURCES = \
	$(SIMDISK_SOURCES) \
	unit/test-replica-found.c \
	unit/torture-host.c \
	unit/torture.h \
	$(NULL)
unit_test_replica_found_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_found_LDADD = $(REPLICA_LIBS)

# make torture SEEDS=n: n lives, and their share of the rest.
SEEDS = 1000
.PHONY: torture
torture: unit/test-replica-torture
	MCBUF_TORTURE_SEEDS=$(SEEDS) unit/test-replica-torture
