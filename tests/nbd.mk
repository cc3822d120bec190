# SPDX-License-Identifier: BSD-3-Clause
# The plugin and the tools from outside: a real nbdkit, and other people's
# NBD clients.

nbd_tests = \
	nbd/test-mcbuf-basic.py \
	nbd/test-mcbuf-baseline.py \
	nbd/test-mcbuf-catalog.py \
	nbd/test-mcbuf-clients.sh \
	nbd/test-mcbuf-commit-cycle.py \
	nbd/test-mcbuf-concurrent.py \
	nbd/test-mcbuf-divergence.py \
	nbd/test-mcbuf-exports.py \
	nbd/test-mcbuf-history.py \
	nbd/test-mcbuf-parameters.py \
	nbd/test-mcbuf-promote.py \
	nbd/test-mcbuf-qemu-mirror.py \
	nbd/test-mcbuf-qemu-quorum.py \
	nbd/test-mcbuf-qemu-replication.py \
	nbd/test-mcbuf-recover.py \
	nbd/test-mcbuf-restart.py \
	nbd/test-mcbuf-resync.py \
	nbd/test-mcbuf-scratch.py \
	nbd/test-mcbuf-states.py \
	$(NULL)
TESTS += $(nbd_tests)
EXTRA_DIST += \
	$(nbd_tests) \
	functions.sh \
	libload.py \
	libmcbuf.py \
	libqemu.py \
	qmp.py \
	$(NULL)

# Faults for a real server; -rpath makes libtool build a library that can be preloaded.
check_LTLIBRARIES += libfaults.la
libfaults_la_SOURCES = nbd/faults.c
libfaults_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
libfaults_la_LIBADD = -ldl
