# SPDX-License-Identifier: BSD-3-Clause
# Included by every Makefile.am: where headers are found, and the flags that
# configure worked out.  A header is always named by its folder,
# "journal/journal.h", so that the layer test can read the arrows.

NULL =
AM_CPPFLAGS = -I$(top_srcdir) -I$(top_builddir)
AM_CFLAGS = $(WARN_CFLAGS) $(SAN_CFLAGS) -fvisibility=hidden -pthread
AM_LDFLAGS = $(SAN_CFLAGS) -pthread
