# SPDX-License-Identifier: BSD-3-Clause
# The main job as a whole against a plain model: random work, and SIGKILL.

main_tests = \
	main/test-mcbuf-model.py \
	main/test-mcbuf-sigkill.py \
	$(NULL)
TESTS += $(main_tests)
EXTRA_DIST += $(main_tests)
