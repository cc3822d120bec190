# SPDX-License-Identifier: BSD-3-Clause
# What no other test gets to, above all errors: control verbs, the socket, opening.

check_PROGRAMS += unit/test-replica-control
TESTS += unit/test-replica-control
unit_test_replica_control_SOURCES = \
	$(fuzz_world) \
	unit/test-replica-control.c \
	$(UNIT_COMMON) \
	$(NULL)
unit_test_replica_control_LDFLAGS = $(fuzz_world_wrap)
unit_test_replica_control_LDADD = $(REPLICA_LIBS)

check_PROGRAMS += unit/test-replica-socket
TESTS += unit/test-replica-socket
unit_test_replica_socket_SOURCES = unit/test-replica-socket.c $(UNIT_COMMON)
unit_test_replica_socket_LDADD = $(REPLICA_LIBS)

check_PROGRAMS += unit/test-replica-open
TESTS += unit/test-replica-open
unit_test_replica_open_SOURCES = $(fuzz_world) unit/test-replica-open.c $(UNIT_COMMON)
unit_test_replica_open_LDFLAGS = $(fuzz_world_wrap)
unit_test_replica_open_LDADD = $(REPLICA_LIBS)

EXTRA_DIST += coverage

fail_some = unit/fail-some.c unit/fail-some.h
fail_some_wrap = \
	$(fuzz_world_wrap) \
	-Wl,--wrap=malloc \
	-Wl,--wrap=posix_memalign \
	-Wl,--wrap=realloc \
	$(NULL)

check_PROGRAMS += unit/test-recovery-faults
TESTS += unit/test-recovery-faults
unit_test_recovery_faults_SOURCES = \
	$(fail_some) \
	$(fuzz_world) \
	unit/test-recovery-faults.c \
	$(UNIT_COMMON) \
	$(NULL)
unit_test_recovery_faults_LDFLAGS = $(fail_some_wrap)
unit_test_recovery_faults_LDADD = $(REPLICA_LIBS)

check_PROGRAMS += unit/test-replica-limits
TESTS += unit/test-replica-limits
unit_test_replica_limits_SOURCES = \
	$(fail_some) \
	$(fuzz_world) \
	unit/test-replica-limits.c \
	$(UNIT_COMMON) \
	$(NULL)
unit_test_replica_limits_LDFLAGS = $(fail_some_wrap) -Wl,--wrap=pthread_create
unit_test_replica_limits_LDADD = $(REPLICA_LIBS)
