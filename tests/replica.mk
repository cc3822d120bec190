# SPDX-License-Identifier: BSD-3-Clause
# The replica as a whole, without NBD.

REPLICA_LIBS = \
	$(top_builddir)/replica/libreplica.la \
	$(top_builddir)/journal/libjournal.la \
	$(top_builddir)/buffers/libbuffers.la \
	$(top_builddir)/common/libcommon.la \
	$(CHECK_LIBS) $(JANSSON_LIBS) $(SQLITE3_LIBS) \
	$(NULL)

TESTS += unit/test-replica-model
check_PROGRAMS += unit/test-replica-model
unit_test_replica_model_SOURCES = unit/forked.c unit/forked.h unit/test-replica-model.c
unit_test_replica_model_LDADD = $(REPLICA_LIBS)
