#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# mcbuf-commit --stdin: verbs in, a line of JSON out for each, one connection.

. "${srcdir:-.}/tools/functions.sh"

serve_with $'seal\ncommit epoch=1 label=a b\r\nstatus' 'accept
expect seal
reply {"sealed":1,"open_epoch":2}
expect commit epoch=1 label=a b
reply {"checkpoint":1}
expect status
reply {"state":"protected"}
eof' "$commit" --stdin "$tmp/j"
want 0 '{"sealed":1,"open_epoch":2}
{"checkpoint":1}
{"state":"protected"}'

# No verb is no error.
serve_with "" 'accept
eof' "$commit" --stdin --json "$tmp/j"
want 0 ""

# A refusal does not end it; the first one gives the exit code.
serve_with $'seal\ncommit\nseal\n' 'accept
any
reply {"error":"journal damaged","code":4}
any
reply {"error":"state stale","code":2}
any
reply {"sealed":1}' "$commit" --stdin "$tmp/j"
want 4 '{"error":"journal damaged","code":4}
{"error":"state stale","code":2}
{"sealed":1}'
error_has "2 of 3 requests were refused, the first: journal damaged"

# What cannot be sent is answered here, so that a line in has a line out.
serve_with $'\n'"$(printf 'x%.0s' {1..65536})"$'\nseal\n' 'accept
expect seal
reply {"sealed":1}
eof' "$commit" --stdin "$tmp/j"
want 1
[ "$(wc -l < "$tmp/out")" = 3 ] || fail "not a line out for each line in"
[ "$(jq -r .code < "$tmp/out" | tr '\n' ' ')" = "1 1 null " ] ||
    fail "the lines are not JSON refusals"

# A request as long as is allowed does go out.
line="commit label=$(printf 'x%.0s' {1..65522})"
serve_with "$line" 'accept
any
reply {"checkpoint":1}' "$commit" --stdin "$tmp/j"
want 0 '{"checkpoint":1}'

# The server dies under it: an answer for the verb that was under way, and the end.
serve_with $'seal\ncommit\nseal\n' 'accept
expect seal
reply {"sealed":1}
any
close' "$commit" --stdin "$tmp/j"
want 1
[ "$(wc -l < "$tmp/out")" = 2 ] || fail "not a line for seal and one for commit"
error_has "closed the connection"

# A line that nobody asked for is not taken for the answer to the next verb.
cat > "$tmp/late" <<'EOF'
{
    echo seal
    for ((i = 0; i < 3000; i++)); do
        [ ! -e "$3" ] || break
        sleep 0.01
    done
    echo commit
} | "$1" --stdin "$2"
EOF
serve "accept
expect seal
send {\"sealed\":1}\n
taken
send {\"checkpoint\":1}\n
touch $tmp/sent" bash "$tmp/late" "$commit" "$tmp/j" "$tmp/sent"
want 1
[ "$(head -n 1 "$tmp/out")" = '{"sealed":1}' ] || fail "not the answer to seal"
error_has "more than one line"

# Each answer is there before the next verb is sent: a program at the other end of
# two pipes can go step by step.
cat > "$tmp/steps" <<'EOF'
coproc "$1" --stdin "$2"
pid=$COPROC_PID
exec 8>&"${COPROC[1]}" 9<&"${COPROC[0]}"
eval "exec ${COPROC[1]}>&-"
for i in 1 2 3; do
    echo "commit epoch=$i" >&8
    read -r -t 30 line <&9
    [ "$line" = "{\"checkpoint\":$i}" ] || exit 1
done
exec 8>&-
wait $pid
EOF
serve 'accept
expect commit epoch=1
reply {"checkpoint":1}
expect commit epoch=2
reply {"checkpoint":2}
expect commit epoch=3
reply {"checkpoint":3}
eof' bash "$tmp/steps" "$commit" "$tmp/j"
want 0 ""
