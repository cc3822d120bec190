# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# What the shell tests of the plugin share.  Source it first.
#
# $tmp             a private directory, removed at the end
# requires CMD..   skip the test when CMD fails
# fail TEXT        end the test as failed
# poll CMD..       wait until CMD succeeds, 60 seconds at most
# start_mcbuf N P..  start nbdkit with the plugin and parameters P; sets
#                    pid_N, sock_N, uri_N
# stop_mcbuf N     a clean stop
# kill_mcbuf N     SIGKILL
# expect CODE CMD..  CMD must exit with CODE; its output goes to $tmp/out, $tmp/err
#
# Environment: top_builddir, MCBUF_WRAPPER (see libmcbuf.py).

set -euo pipefail
export LC_ALL=C
export MALLOC_CHECK_=1 MALLOC_PERTURB_=$((RANDOM % 255 + 1))

top_builddir=$(cd "${top_builddir:-..}" && pwd)
plugin=$top_builddir/plugin/.libs/nbdkit-mcbuf-plugin.so
PATH=$top_builddir/tools:$PATH
read -r -a wrapper <<<"${MCBUF_WRAPPER-}"

skip () { echo "SKIP: $*"; exit 77; }
fail () { echo "FAIL: $*" >&2; exit 1; }
requires () { "$@" </dev/null >/dev/null 2>&1 || skip "this needs: $*"; }

[ -e "$plugin" ] || skip "$plugin is not there: build first"

# nbdkit itself is not instrumented, so a sanitizer's library has to come first.
sanitizer=$(ldd "$plugin" | sed -n 's/.*=> \([^ ]*lib[atu][a-z]*san[^ ]*\).*/\1/p' | tr '\n' ' ')

tmp=$(mktemp -d "${TMPDIR:-/var/tmp}/mcbuf-test-XXXXXX")
pids=()
replicas=()
# shellcheck disable=SC2317   # called by the trap
cleanup ()
{
    local status=$? pid id
    for pid in "${pids[@]}"; do
        if [ -n "${MCBUF_GENTLE-}" ] && kill "$pid" 2>/dev/null; then
            timeout 5 tail --pid="$pid" -f /dev/null || :
        fi
        if kill -KILL "$pid" 2>/dev/null; then wait "$pid" 2>/dev/null || :; fi
    done
    for id in "${replicas[@]}"; do
        rm -f "/dev/shm/mcbuf-$id"*
    done
    if [ $status -ne 0 ] && [ $status -ne 77 ]; then
        tail -n 50 "$tmp"/*.log 2>/dev/null || :
    fi
    rm -rf "$tmp"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

poll ()
{
    local end=$((SECONDS + 60))
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "waited 60 seconds for: $*"
        sleep 0.01
    done
}

is_up_or_gone () { [ -s "$tmp/$1.pid" ] || ! kill -0 "$2" 2>/dev/null; }

start_mcbuf ()
{
    local name=$1 pid
    shift
    rm -f "$tmp/$name.sock" "$tmp/$name.pid"
    LD_PRELOAD=$sanitizer "${wrapper[@]}" nbdkit -f -U "$tmp/$name.sock" -P "$tmp/$name.pid" \
        "$plugin" "$@" </dev/null >"$tmp/$name.log" 2>&1 &
    pid=$!
    pids+=("$pid")
    poll is_up_or_gone "$name" "$pid"
    [ -s "$tmp/$name.pid" ] || fail "nbdkit did not start: $(cat "$tmp/$name.log")"
    declare -g "pid_$name=$pid" "sock_$name=$tmp/$name.sock"
    declare -g "uri_$name=nbd+unix:///?socket=$tmp/$name.sock"
    local id
    id=$(mcbuf-status --json "nbd+unix:///?socket=$tmp/$name.sock" |
         sed -n 's/.*"replica": *"\([^"]*\)".*/\1/p')
    # An empty one would have the end of this test remove the memory of all replicas.
    [ -n "$id" ] || fail "the server does not say which replica it is"
    replicas+=("$id")
}

stop_mcbuf ()
{
    local pid=pid_$1
    kill "${!pid}"
    wait "${!pid}" || fail "nbdkit ended with $?: $(cat "$tmp/$1.log")"
}

kill_mcbuf ()
{
    local pid=pid_$1
    kill -KILL "${!pid}"
    wait "${!pid}" 2>/dev/null || :
}

# Every write of the last commit is in the images.
is_drained ()
{
    mcbuf-status --json "$1" |
        jq -e '.checkpoint != null and .written_out == .checkpoint.id' >/dev/null
}

expect ()
{
    local want=$1 got=0
    shift
    "$@" </dev/null >"$tmp/out" 2>"$tmp/err" || got=$?
    [ "$got" -eq "$want" ] ||
        fail "expected exit $want, got $got: $* ($(cat "$tmp/out" "$tmp/err"))"
}
