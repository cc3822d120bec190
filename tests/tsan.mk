# SPDX-License-Identifier: BSD-3-Clause
# Threads: what make check-tsan runs under ThreadSanitizer.

check_PROGRAMS += unit/test-replica-threads
TESTS += unit/test-replica-threads
unit_test_replica_threads_SOURCES = unit/test-replica-threads.c $(UNIT_COMMON)
unit_test_replica_threads_LDADD = $(REPLICA_LIBS)
