# SPDX-License-Identifier: BSD-3-Clause
# The benchmark: that it runs, and its arithmetic.  Its figures are nobody's test.

bench_tests = \
	nbd/test-mcbuf-bench.py \
	$(NULL)
TESTS += $(bench_tests)
EXTRA_DIST += $(bench_tests)
