# SPDX-License-Identifier: BSD-3-Clause
# The command line tools, against a server that follows a script, and their
# man pages.

check_PROGRAMS += tools/fake-server
tools_fake_server_SOURCES = tools/fake-server.c

tools_tests = \
	tools/test-client-nbd.sh \
	tools/test-commit-stdin.sh \
	tools/test-commit.sh \
	tools/test-ctl.sh \
	tools/test-help.sh \
	tools/test-live.sh \
	tools/test-load.sh \
	tools/test-plugin-pod.sh \
	tools/test-recover.sh \
	tools/test-status.sh \
	tools/test-wire.sh \
	$(NULL)
TESTS += $(tools_tests)
EXTRA_DIST += $(tools_tests) tools/functions.sh
