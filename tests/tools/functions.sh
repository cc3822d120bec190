# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# What the tests of the tools have in common.  Sourced; leaves the paths of the
# tools in variables, a private directory in $tmp, and removes it at the end.

set -e
set -u
set -o pipefail

build=$(pwd)
# shellcheck disable=SC2154  # automake gives srcdir
src=$(cd "${srcdir:-.}" && pwd)
# shellcheck disable=SC2034
{
    commit=$build/../tools/mcbuf-commit
    status=$build/../tools/mcbuf-status
    recover=$build/../tools/mcbuf-recover
    ctl=$build/../tools/mcbuf-ctl
    man=$src/../man
}
fake_server=$build/tools/fake-server

tmp=$(mktemp -d "${TMPDIR:-/tmp}/mcbuf-tools-XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir -m 700 "$tmp/j"

# Malloced memory is not zero.
export MALLOC_PERTURB_=$((RANDOM % 255 + 1))

fail ()
{
    echo "FAIL: $*" >&2
    echo "exit code ${rc-none}, standard output:" >&2
    head -c 2000 "$tmp/out" >&2 || :
    echo "standard error:" >&2
    head -c 2000 "$tmp/err" >&2 || :
    exit 1
}

requires ()
{
    "$@" > /dev/null 2>&1 || { echo "SKIP: '$*' does not work here"; exit 77; }
}

# Was this program, or plugin, built with a sanitizer?
is_sanitized ()
{
    grep -qaE '__(asan|tsan)_init|__ubsan_handle' "$1"
}

# Run a command; leaves $rc, $tmp/out and $tmp/err.
run ()
{
    rc=0
    "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null || rc=$?
}

# run_with INPUT COMMAND …
run_with ()
{
    local input=$1
    shift
    rc=0
    printf '%s' "$input" | "$@" > "$tmp/out" 2> "$tmp/err" || rc=$?
}

# serve SCRIPT COMMAND …: the command with a server on $tmp/j/control that
# follows SCRIPT (see fake-server.c).
serve ()
{
    printf '%s\n' "$1" > "$tmp/script"
    shift
    run "$fake_server" "$tmp/j" "$tmp/script" "$@"
}

# serve_with INPUT SCRIPT COMMAND …
serve_with ()
{
    local input=$1
    printf '%s\n' "$2" > "$tmp/script"
    shift 2
    run_with "$input" "$fake_server" "$tmp/j" "$tmp/script" "$@"
}

# The exit code, and standard output as a whole.
want ()
{
    [ "$rc" = "$1" ] || fail "exit code $rc, not $1"
    [ $# -lt 2 ] || [ "$(cat "$tmp/out")" = "$2" ] ||
        fail "standard output is not: $2"
    # Errors are one line on standard error, and success is silent.
    if [ "$rc" = 0 ]; then
        [ ! -s "$tmp/err" ] || fail "success, but something on standard error"
    else
        [ "$(wc -l < "$tmp/err")" = 1 ] || fail "the error is not one line"
        grep -q '^mcbuf-[a-z]*: ' "$tmp/err" || fail "the error names no tool"
    fi
}

error_has ()
{
    grep -qF -- "$1" "$tmp/err" || fail "the error does not say: $1"
}

output_has ()
{
    grep -qF -- "$1" "$tmp/out" || fail "the output does not say: $1"
}

# A usage error: exit code 1, and a way to learn more.
want_usage ()
{
    want 1 ""
    error_has "$1"
    error_has "--help"
}
