# SPDX-License-Identifier: BSD-3-Clause
# Calls and allocations that fail, one after the other, in a whole replica.

TESTS += unit/test-replica-faults
check_PROGRAMS += unit/test-replica-faults
unit_test_replica_faults_SOURCES = unit/test-replica-faults.c
unit_test_replica_faults_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_faults_LDADD = $(TORTURE_LIBS)

# Real threads on the simulated disk.
TESTS += unit/test-replica-race
check_PROGRAMS += unit/test-replica-race
unit_test_replica_race_SOURCES = unit/test-replica-race.c
unit_test_replica_race_LDFLAGS = $(TORTURE_WRAP)
unit_test_replica_race_LDADD = $(TORTURE_LIBS)
