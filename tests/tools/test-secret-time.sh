#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The comparison of the control-secret takes no branch and no address from the
# secret: unit/test-secret marks it as not initialised for valgrind.

. "${srcdir:-.}/tools/functions.sh"
requires valgrind --version
requires test -e /usr/include/valgrind/memcheck.h
program=$build/unit/test-secret
if is_sanitized "$program"; then
    echo "SKIP: valgrind cannot run a program with a sanitizer"
    exit 77
fi
CK_FORK=no run "$build/../libtool" --mode=execute \
    valgrind -q --error-exitcode=119 "$program"
[ "$rc" = 0 ] || fail "valgrind"
