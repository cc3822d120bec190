# SPDX-License-Identifier: BSD-3-Clause
# Threads: what make check-tsan runs under ThreadSanitizer.

check_PROGRAMS += unit/test-replica-threads
TESTS += unit/test-replica-threads
unit_test_replica_threads_SOURCES = unit/test-replica-threads.c $(UNIT_COMMON)
unit_test_replica_threads_LDADD = $(REPLICA_LIBS)

# The units that have threads, and nbdkit with the plugin under its clients.
tsan_tests = \
	test-catalog \
	unit/test-journal-threads \
	unit/test-replica-limits \
	unit/test-replica-socket \
	unit/test-replica-threads \
	nbd/test-mcbuf-basic.py \
	nbd/test-mcbuf-commit-cycle.py \
	nbd/test-mcbuf-concurrent.py \
	nbd/test-mcbuf-promote.py \
	$(NULL)
EXTRA_DIST += tsan.supp

# A selection for an instrumented build (make check-asan ASAN_TESTS=check-sanitized): all units, and
# nbdkit with the plugin and the sanitizer's library loaded before.  ASAN_TESTS=check is everything.
sanitized_tests = \
	nbd/test-mcbuf-basic.py \
	nbd/test-mcbuf-commit-cycle.py \
	nbd/test-mcbuf-promote.py \
	nbd/test-mcbuf-restart.py \
	nbd/test-mcbuf-states.py \
	$(NULL)
# Of these the cheapest tests only: SCRIPT:TEST[,TEST...]
sanitized_some = \
	nbd/test-mcbuf-backing-nbd.py:test_life_no_zero,test_recover_offline \
	nbd/test-mcbuf-divergence.py:test_online,test_restarts,test_offline \
	nbd/test-mcbuf-groups.py:test_join_recover,test_join_nbd \
	nbd/test-mcbuf-history.py:test_view_properties,test_promote_to_older \
	nbd/test-mcbuf-image-users.py:test_writer,test_reader \
	nbd/test-mcbuf-scratch.py:test_reset,test_promote_scratch_zeroes \
	$(NULL)
.PHONY: check-sanitized check-sanitized-some
check-sanitized:
	$(MAKE) $(AM_MAKEFLAGS) check-units
	$(MAKE) $(AM_MAKEFLAGS) check-TESTS TESTS="$(sanitized_tests)"
	$(MAKE) $(AM_MAKEFLAGS) check-sanitized-some
check-sanitized-some: libfaults.la
	for t in $(sanitized_some); do \
	    echo "== $$t"; \
	    $(srcdir)/$${t%%:*} $$(echo "$${t#*:}" | tr , ' ') || test $$? -eq 77 || exit 1; \
	done

# Reports go to files, so that one of nbdkit's is not lost.
.PHONY: check-tsan
check-tsan: $(filter-out %.py,$(tsan_tests)) libfaults.la
	rm -rf tsan-reports
	$(MKDIR_P) tsan-reports
	TSAN_OPTIONS="suppressions=$(abs_srcdir)/tsan.supp log_path=$(abs_builddir)/tsan-reports/report" \
	    $(MAKE) $(AM_MAKEFLAGS) check-TESTS TESTS="$(tsan_tests)"
	for f in tsan-reports/*; do test ! -e $$f || { cat tsan-reports/*; exit 1; }; done
clean-local-tsan:
	rm -rf tsan-reports
clean-local: clean-local-tsan
