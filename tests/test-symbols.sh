#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The plugin shows nothing but its entry point: nbdkit has symbols of its own, and
# so have the filters and libraries that it loads beside us.

set -eu

plugin=../plugin/.libs/nbdkit-mcbuf-plugin.so
if [ ! -f "$plugin" ]; then
    echo "$0: skipped: $plugin is not built"
    exit 77
fi
if ! nm --version >/dev/null 2>&1; then
    echo "$0: skipped: nm is not installed"
    exit 77
fi

symbols=$(nm -D --defined-only "$plugin" | awk '{ print $NF }' | sort)
if [ "$symbols" != plugin_init ]; then
    echo "$0: $plugin should export plugin_init and nothing else, but has:"
    echo "$symbols"
    exit 1
fi
