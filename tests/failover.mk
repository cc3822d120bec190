# SPDX-License-Identifier: BSD-3-Clause
# Failover, restart and fencing; who may ask for what.

check_PROGRAMS += unit/test-secret
TESTS += unit/test-secret
unit_test_secret_SOURCES = unit/test-secret.c $(UNIT_COMMON)
unit_test_secret_LDADD = $(UNIT_LIBS)

failover_tests = \
	nbd/test-mcbuf-boot.py \
	nbd/test-mcbuf-control.py \
	nbd/test-mcbuf-drain.py \
	nbd/test-mcbuf-fencing.py \
	nbd/test-mcbuf-owners.py \
	nbd/test-mcbuf-qemu-failover.py \
	nbd/test-mcbuf-secret.py \
	nbd/test-mcbuf-tls.py \
	nbd/test-mcbuf-upgrade.py \
	tools/test-secret-time.sh \
	$(NULL)
TESTS += $(failover_tests)
EXTRA_DIST += $(failover_tests) libguest.py libslow.py

# -rpath makes libtool build a library that can be preloaded.
check_LTLIBRARIES += libslow.la
libslow_la_SOURCES = nbd/slow.c
libslow_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
libslow_la_LIBADD = -ldl
