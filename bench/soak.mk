# SPDX-License-Identifier: BSD-3-Clause
# make soak [MINUTES=n]: does it stay as it is?

EXTRA_DIST += soak-run
EXTRA_PROGRAMS += soak-load
soak_load_SOURCES = soak-load.c
soak_load_CPPFLAGS = $(AM_CPPFLAGS) $(LIBNBD_CFLAGS)
soak_load_LDADD = $(LIBNBD_LIBS)
CLEANFILES += soak-load

.PHONY: soak
soak: soak-load
	$(srcdir)/soak-run $(top_builddir)/plugin/.libs/nbdkit-mcbuf-plugin.so ./soak-load \
	    $(if $(MINUTES),--minutes=$(MINUTES)) --json=soak.json
DISTCLEANFILES = soak.json
