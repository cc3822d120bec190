# SPDX-License-Identifier: BSD-3-Clause
# The main job as a whole against a plain model: random work, and SIGKILL.

main_tests = \
	main/test-mcbuf-model.py \
	main/test-mcbuf-sigkill.py \
	$(NULL)
TESTS += $(main_tests)
EXTRA_DIST += $(main_tests)

# The programs among the tests, which are the units.  Those that try states by the thousand are
# of many minutes under an instrumented build: run them there by hand.
long_units = \
	unit/test-recover-io \
	unit/test-replica-damage \
	unit/test-replica-faults \
	unit/test-replica-groups \
	unit/test-replica-laps \
	unit/test-replica-torture \
	$(NULL)
.PHONY: check-units check-valgrind
check-units:
	$(MAKE) $(AM_MAKEFLAGS) check TESTS="$(filter-out %.sh %.py $(long_units) $(long_units:=$(EXEEXT)),$(TESTS))"

# Valgrind runs the units, and nbdkit and the tools in these:
valgrind_tests = \
	main/test-mcbuf-model.py \
	main/test-mcbuf-sigkill.py \
	nbd/test-mcbuf-basic.py \
	nbd/test-mcbuf-commit-cycle.py \
	nbd/test-mcbuf-promote.py \
	nbd/test-mcbuf-recover.py \
	nbd/test-mcbuf-restart.py \
	nbd/test-mcbuf-states.py \
	$(NULL)
VALGRIND_COMMAND = $(VALGRIND) -q --error-exitcode=119 --fair-sched=yes

# Not in continuous integration: even one unit takes minutes there, and AddressSanitizer has the same tests.
check-valgrind:
	test "$(VALGRIND)" != no
	CK_FORK=no CK_TIMEOUT_MULTIPLIER=20 $(MAKE) $(AM_MAKEFLAGS) check-units \
	    LOG_COMPILER="$(VALGRIND_COMMAND)"
	MCBUF_WRAPPER="$(VALGRIND_COMMAND)" $(MAKE) $(AM_MAKEFLAGS) check \
	    TESTS="$(valgrind_tests)"
