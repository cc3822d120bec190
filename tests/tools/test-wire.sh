#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Every tool against a control socket that is not there, is slow, cuts its
# answers, hangs up, or is no mcbuf server.

. "${srcdir:-.}/tools/functions.sh"
j=$tmp/j

each_tool ()
{
    local body=$1
    "$body" "$commit" "$j"
    "$body" "$status" "$j"
    "$body" "$ctl" "$j" status
    "$body" "$recover" "$j"
}

# mcbuf-recover goes on without a server; the others name it.
nobody ()
{
    case $1 in *recover) return ;; esac
    rm -f "$j/control"
    run "$@"
    want 1 ""
    error_has "$j/control: no server listens"
    error_has "mcbuf-recover --list $j"
    # A socket that a killed server left behind.
    serve "" true
    run "$@"
    want 1 ""
    error_has "no server listens"
}
each_tool nobody

no_directory ()
{
    local tool=$1
    shift 2
    run "$tool" "$tmp/none" "$@"
    want 1 ""
    error_has "$tmp/none: No such file"
    touch "$tmp/file"
    run "$tool" "$tmp/file" "$@"
    want 1 ""
    error_has "not a directory"
}
each_tool no_directory

# mcbuf-recover asks again, which nbd/test-mcbuf-ending.py tests.
hangs_up ()
{
    local text
    case $1 in *recover) return ;; esac
    for text in "" '{"checkpoint":' '{"checkpoint":1}'; do
        serve "accept
any
send $text
close" "$@"
        want 1 ""
        error_has "not known"
    done
    serve "accept
close" "$@"
    want 1 ""
    error_has "closed the connection"
}
each_tool hangs_up

# What the server said before it hung up is heard, though the request went nowhere.
last_words ()
{
    serve 'accept
reply {"error":"not the owner","code":1}
close' "$@"
    want 1 ""
    error_has "not the owner"
}
each_tool last_words

no_json ()
{
    local text
    for text in "HTTP/1.1 400 Bad Request" "" "7" '["checkpoint"]' \
                '{"checkpoint":1' '{"a":1}{"a":2}' '{"error":1,"error":2}'; do
        serve "accept
any
reply $text" "$@"
        want 1 ""
        error_has "not a line of JSON"
    done
    serve 'accept
any
send {"a":1}\n{"b":2}\n' "$@"
    want 1 ""
    error_has "more than one line"
}
each_tool no_json

# Refused: the answer comes in pieces, with everything taken in between.
pieces ()
{
    serve 'accept
any
send {"err
taken
send or":"in pie
taken
send ces","code":2}
taken
send \n
eof' "$@"
    want 2 ""
    error_has "in pieces"
}
each_tool pieces

# A long line.
serve 'accept
any
send {"label":"
fill 300000
send "}\n' "$ctl" --json "$j" anything
want 0
[ "$(wc -c < "$tmp/out")" = 300013 ] || fail "the long answer is not whole"

# A server that does not answer: SIGINT ends the tool.
silent ()
{
    serve 'accept
any
interrupt' "$@"
    [ "$rc" = 130 ] || fail "SIGINT did not end it"
}
each_tool silent

# A directory whose path is longer than a socket's address.
deep=$tmp/$(printf 'd%.0s' {1..120})
mkdir -p "$deep/$(printf 'e%.0s' {1..120})"
deep=$deep/$(printf 'e%.0s' {1..120})
printf '%s\n' accept 'expect commit' 'reply {"checkpoint":7}' > "$tmp/script"
run "$fake_server" "$deep" "$tmp/script" "$commit" "$deep"
want 0 "checkpoint 7"
run "$commit" "$deep"
want 1 ""
error_has "no server listens"

# Relative, and with a slash behind it.
cd "$tmp"
serve 'accept
any
reply {"checkpoint":7}' "$commit" "j/"
want 0 "checkpoint 7"
