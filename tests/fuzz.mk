# SPDX-License-Identifier: BSD-3-Clause
# Fuzzers.  In make check they run their corpus; "make fuzz" at the top builds
# them with libFuzzer and lets them look for more.

FUZZERS = control params recovery reply

# Which of DESIGN.md's invariants they attack.
FUZZ_CONTROL = 1,8,10
FUZZ_RECOVERY = 1,2,3,6,7

fuzz_programs = $(FUZZERS:%=fuzz/fuzz-%)

# With libFuzzer only.  What a fuzzer finds goes to found/: inputs that reach
# new code to a folder of their own, failures beside it.
# FUZZ_SEED=n with FUZZ_RUNS=n makes the same inputs every time; 0 and -1 are libFuzzer's "any".
FUZZ_SECONDS = 60
FUZZ_SEED = 0
FUZZ_RUNS = -1
.PHONY: fuzz fuzz-merge $(FUZZERS:%=fuzz-run-%)
fuzz: $(FUZZERS:%=fuzz-run-%)
$(FUZZERS:%=fuzz-run-%): fuzz-run-%: fuzz/fuzz-%
	@$(MKDIR_P) fuzz/found/$*; \
	log=fuzz/found/$*.log; \
	case $* in \
	    recovery) of=$(FUZZ_RECOVERY);; control) of=$(FUZZ_CONTROL);; *) of=-;; \
	esac; \
	ASAN_OPTIONS=allocator_may_return_null=1 \
	fuzz/fuzz-$* -malloc_limit_mb=1000000 -max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) -runs=$(FUZZ_RUNS) -timeout=60 -max_len=4000 \
	    -print_final_stats=1 -artifact_prefix=fuzz/found/$*- \
	    fuzz/found/$* $(srcdir)/fuzz/corpus/$* >$$log 2>&1 || \
	    { tail -n 60 $$log; exit 1; }; \
	n=`sed -n 's/^stat::number_of_executed_units: *//p' $$log`; \
	echo "TRIED invariant=$$of test=fuzz/fuzz-$* what=\"inputs made by libFuzzer\" n=$${n:-0}" | \
	    tee -a $$log
fuzz-merge: $(fuzz_programs)
	@for f in $(FUZZERS); do \
	    $(MKDIR_P) fuzz/found/$$f && \
	    fuzz/fuzz-$$f -merge=1 -use_counters=0 $(srcdir)/fuzz/corpus/$$f fuzz/found/$$f || exit; \
	done
EXTRA_DIST += fuzz/corpus fuzz/seeds.py

fuzz_replay = fuzz/fuzz.h fuzz/replay.c
fuzz_world = \
	fuzz/fuzz.h \
	fuzz/world.c \
	fuzz/world.h \
	unit/simcrash.c \
	unit/simdisk-impl.h \
	unit/simdisk.c \
	unit/simdisk.h \
	unit/simpages.c \
	unit/simpages.h \
	unit/torture-host.c \
	unit/torture.h \
	$(NULL)
# The simulated host, as in torture.mk.
fuzz_world_wrap = \
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
	-Wl,--wrap=mmap64 \
	-Wl,--wrap=munmap \
	-Wl,--wrap=pthread_cond_timedwait \
	$(NULL)

check_PROGRAMS += fuzz/fuzz-recovery
TESTS += fuzz/fuzz-recovery
fuzz_fuzz_recovery_SOURCES = \
	$(fuzz_replay) \
	$(fuzz_world) \
	fuzz/damage.c \
	fuzz/damage.h \
	fuzz/fuzz-recovery.c \
	unit/format-fields.h \
	$(NULL)
nodist_fuzz_fuzz_recovery_SOURCES = unit/format-fields.c
fuzz_fuzz_recovery_CPPFLAGS = \
	$(AM_CPPFLAGS) \
	-DFUZZ_NAME='"fuzz-recovery"' \
	-DFUZZ_CORPUS='"$(srcdir)/fuzz/corpus/recovery"' \
	-DFUZZ_INVARIANTS='"$(FUZZ_RECOVERY)"' \
	$(NULL)
fuzz_fuzz_recovery_LDFLAGS = $(fuzz_world_wrap) $(FUZZER_LDFLAGS)
fuzz_fuzz_recovery_LDADD = $(REPLICA_LIBS)

check_PROGRAMS += fuzz/fuzz-control
TESTS += fuzz/fuzz-control
fuzz_fuzz_control_SOURCES = \
	$(fuzz_replay) \
	$(fuzz_world) \
	../plugin/control.c \
	../plugin/params.c \
	fuzz/fuzz-control.c \
	fuzz/nbdkit-stubs.c \
	fuzz/nbdkit-stubs.h \
	$(NULL)
fuzz_fuzz_control_CPPFLAGS = \
	$(AM_CPPFLAGS) $(NBDKIT_CFLAGS) \
	-DFUZZ_NAME='"fuzz-control"' \
	-DFUZZ_CORPUS='"$(srcdir)/fuzz/corpus/control"' \
	-DFUZZ_INVARIANTS='"$(FUZZ_CONTROL)"' \
	$(NULL)
fuzz_fuzz_control_LDFLAGS = $(fuzz_world_wrap) $(FUZZER_LDFLAGS)
fuzz_fuzz_control_LDADD = $(REPLICA_LIBS)

check_PROGRAMS += fuzz/fuzz-params
TESTS += fuzz/fuzz-params
fuzz_fuzz_params_SOURCES = \
	$(fuzz_replay) \
	fuzz/fuzz-params.c \
	fuzz/nbdkit-stubs.c \
	fuzz/nbdkit-stubs.h \
	$(NULL)
fuzz_fuzz_params_CPPFLAGS = \
	$(AM_CPPFLAGS) $(NBDKIT_CFLAGS) \
	-DFUZZ_NAME='"fuzz-params"' \
	-DFUZZ_CORPUS='"$(srcdir)/fuzz/corpus/params"' \
	$(NULL)
fuzz_fuzz_params_LDFLAGS = $(AM_LDFLAGS) $(FUZZER_LDFLAGS)
fuzz_fuzz_params_LDADD = $(REPLICA_LIBS)

check_PROGRAMS += fuzz/fuzz-reply
TESTS += fuzz/fuzz-reply
fuzz_fuzz_reply_SOURCES = $(fuzz_replay) fuzz/fuzz-reply.c
fuzz_fuzz_reply_CPPFLAGS = \
	$(AM_CPPFLAGS) \
	-DFUZZ_NAME='"fuzz-reply"' \
	-DFUZZ_CORPUS='"$(srcdir)/fuzz/corpus/reply"' \
	$(NULL)
fuzz_fuzz_reply_LDFLAGS = $(AM_LDFLAGS) $(FUZZER_LDFLAGS)
fuzz_fuzz_reply_LDADD = $(top_builddir)/tools/libtools.la $(JANSSON_LIBS)

# What they have found, as tests that a person can read.
check_PROGRAMS += unit/test-recovery-found
TESTS += unit/test-recovery-found
unit_test_recovery_found_SOURCES = \
	$(fuzz_world) \
	fuzz/damage.c \
	fuzz/damage.h \
	unit/format-fields.h \
	unit/test-recovery-found.c \
	$(UNIT_COMMON) \
	$(NULL)
nodist_unit_test_recovery_found_SOURCES = unit/format-fields.c
unit_test_recovery_found_LDFLAGS = $(fuzz_world_wrap)
unit_test_recovery_found_LDADD = $(REPLICA_LIBS)
