#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# mcbuf-commit: what it sends for which options, what it prints, how it exits.

. "${srcdir:-.}/tools/functions.sh"
reply='{"checkpoint":7,"epoch":7,"extents":3,"bytes":12288,"latency_us":310}'

for args in "$tmp/j --json" "--json $tmp/j"; do
    # shellcheck disable=SC2086
    serve "accept
expect commit
reply $reply" "$commit" $args
    want 0 "$reply"
done

serve "accept
expect commit
reply $reply
eof" "$commit" "$tmp/j"
want 0 "checkpoint 7"

serve "accept
expect commit epoch=5 generation=2 label=before the upgrade
reply $reply" "$commit" --label="before the upgrade" --generation 2 --epoch=5 "$tmp/j"
want 0 "checkpoint 7"

serve 'accept
expect seal
reply {"sealed":7,"open_epoch":8}' "$commit" --seal "$tmp/j"
want 0 "sealed 7"

serve 'accept
expect seal
reply {"sealed":7,"open_epoch":8}' "$commit" --json --seal "$tmp/j"
want 0 '{"sealed":7,"open_epoch":8}'

# … and only in one generation.
serve 'accept
expect seal generation=2
reply {"sealed":7,"open_epoch":8}' "$commit" --seal --generation=2 "$tmp/j"
want 0 "sealed 7"

# A label may be any UTF-8 text of up to 255 bytes, but no control characters.
label=$(printf 'ä%.0s' {1..127})
serve "accept
expect commit label=${label}x
reply $reply" "$commit" --label="${label}x" "$tmp/j"
want 0
run "$commit" --label="${label}xy" "$tmp/j"
want 1 ""
error_has "256 bytes"
run "$commit" --label=$'two\nlines' "$tmp/j"
want 1 ""
error_has "control character"
run "$commit" --label=$'\xc2\x9b31m' "$tmp/j"
want 1 ""
error_has "control character"
run "$commit" --label=$'\xff' "$tmp/j"
want 1 ""
error_has "UTF-8"

# A refusal's code is the exit code.
for code in 1 2 3 4 5; do
    refusal="{\"error\":\"commit: state stale: run resync\",\"code\":$code}"
    serve "accept
any
reply $refusal" "$commit" "$tmp/j"
    want $code ""
    error_has "mcbuf-commit: commit: state stale: run resync"
    serve "accept
any
reply $refusal" "$commit" --json "$tmp/j"
    want $code "$refusal"
done

# An error is never a success, whatever number comes with it.
for code in 0 6 256 -1 '"2"' null; do
    serve "accept
any
reply {\"error\":\"no\",\"code\":$code}" "$commit" "$tmp/j"
    want 2 ""
done
serve 'accept
any
reply {"error":null}' "$commit" "$tmp/j"
want 2 ""

# Text of the other side cannot put a second line, or an escape, on the terminal.
serve 'accept
any
reply {"error":"one\ntwo\u001b[31m","code":2}' "$commit" "$tmp/j"
want 2 ""
error_has "one?two?[31m"

# Usage.
run "$commit"
want_usage "no TARGET"
run "$commit" ""
want_usage "no TARGET"
run "$commit" a b
want_usage "more than one TARGET"
run "$commit" --nonsense "$tmp/j"
want_usage "unknown or ambiguous option --nonsense"
run "$commit" -x "$tmp/j"
want_usage "unknown option -x"
run "$commit" "$tmp/j" --epoch
want_usage "--epoch needs a value"
run "$commit" --seal=yes "$tmp/j"
want_usage "--seal takes no value"
for n in "" x -1 +1 1x " 1" 9223372036854775808 99999999999999999999; do
    run "$commit" --epoch="$n" "$tmp/j"
    want_usage "not a number"
    run "$commit" --generation="$n" "$tmp/j"
    want_usage "not a number"
done
for other in --epoch=1 --label=x --generation=1; do
    if [ "$other" != --generation=1 ]; then
        run "$commit" --seal $other "$tmp/j"
        want_usage "--seal"
    fi
    run "$commit" --stdin $other "$tmp/j"
    want_usage "--stdin"
done
run "$commit" --seal --stdin "$tmp/j"
want_usage "--stdin"

# Lost output is an error.
if [ -w /dev/full ]; then
    printf 'accept\nany\nreply %s\n' "$reply" > "$tmp/script"
    for option in --json --generation=1; do
        rc=0
        "$fake_server" "$tmp/j" "$tmp/script" "$commit" "$option" "$tmp/j" \
            > /dev/full 2> "$tmp/err" || rc=$?
        : > "$tmp/out"
        want 1
        error_has "standard output"
    done
fi
# Nor does a closed descriptor 1 become the socket.
rc=0
"$fake_server" "$tmp/j" "$tmp/script" "$commit" --json "$tmp/j" \
    >&- 2> "$tmp/err" || rc=$?
want 1
error_has "standard output"
