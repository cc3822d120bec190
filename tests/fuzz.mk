# SPDX-License-Identifier: BSD-3-Clause
# Fuzzers.  In make check they run their corpus; "make fuzz" at the top builds
# them with libFuzzer and lets them look for more.

FUZZERS = recovery

fuzz_replay = fuzz/fuzz.h fuzz/replay.c
fuzz_world = \
	$(fuzz_replay) \
	fuzz/world.c \
	fuzz/world.h \
	unit/simdisk.c \
	unit/simdisk.h \
	unit/simpages.c \
	unit/simpages.h \
	unit/torture-host.c \
	unit/torture.h \
	$(NULL)
# The simulated host, as in torture.mk.
fuzz_world_wrap = \
	$(AM_LDFLAGS) $(FUZZER_LDFLAGS) \
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

check_PROGRAMS += fuzz/fuzz-recovery
TESTS += fuzz/fuzz-recovery
fuzz_fuzz_recovery_SOURCES = \
	$(fuzz_world) \
	fuzz/damage.c \
	fuzz/damage.h \
	fuzz/fuzz-recovery.c \
	unit/format-fields.c \
	unit/format-fields.h \
	$(NULL)
fuzz_fuzz_recovery_CPPFLAGS = \
	$(AM_CPPFLAGS) \
	-DFUZZ_NAME='"fuzz-recovery"' \
	-DFUZZ_CORPUS='"$(srcdir)/fuzz/corpus/recovery"' \
	-DFUZZ_INVARIANTS='"1,2,3,6,7"' \
	$(NULL)
fuzz_fuzz_recovery_LDFLAGS = $(fuzz_world_wrap)
fuzz_fuzz_recovery_LDADD = $(REPLICA_LIBS)
