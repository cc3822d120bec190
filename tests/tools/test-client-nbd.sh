#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The tools by NBD URI: the control export's name in place of the URI's own,
# the reply read also after a refusal, and no request ever written to a disk.

. "${srcdir:-.}/tools/functions.sh"
requires nbdkit --version
requires nbdkit --dump-plugin eval
requires nbdkit --dump-plugin memory

# An eval server whose control answers with the file $tmp/reply.
cat > "$tmp/open" <<'EOF'
[ "$3" = mcbuf-control ] || { echo "ENOENT no export $3" >&2; exit 1; }
EOF
cat > "$tmp/pwrite" <<EOF
cat > "$tmp/request"
[ ! -e "$tmp/refuse" ] || { echo "ESHUTDOWN refused" >&2; exit 1; }
EOF
# dd would stop at the end of the reply; the rest are NULs.
cat > "$tmp/pread" <<EOF
cat "$tmp/reply" /dev/zero | tail -c +\$((\$4 + 1)) | head -c \$3
EOF

# by_nbd COMMAND …, where @URI@ is the server's URI
by_nbd ()
{
    rm -f "$tmp/request"
    local cmd=()
    local arg
    for arg; do
        # shellcheck disable=SC2016
        arg=${arg//@URI@/nbd+unix:///other?socket=$tmp/s}
        cmd+=("$(printf %q "$arg")")
    done
    rm -f "$tmp/s"
    # nbdkit's own messages are not the tool's.
    run nbdkit -U "$tmp/s" "${server[@]}" --run "${cmd[*]} 2>\"$tmp/tool\""
    mv "$tmp/tool" "$tmp/err"
}

server=(eval open=". $tmp/open" can_write=exit\ 0 get_size='echo 65536'
        pwrite=". $tmp/pwrite" pread=". $tmp/pread")
reply='{"checkpoint":7,"epoch":7}'
printf %s "$reply" > "$tmp/reply"
by_nbd "$commit" --json --label="a b" @URI@
want 0 "$reply"
[ "$(cat "$tmp/request")" = "commit label=a b" ] || fail "not the request"

# Longer than the first read, and filling the export to the last byte.
for n in 4094 4095 4096 5000 65536; do
    { printf '{"x":"'; head -c $((n - 8)) /dev/zero | tr '\0' x; printf '"}'; } > "$tmp/reply"
    by_nbd "$ctl" --json @URI@ status
    want 0
    [ "$(wc -c < "$tmp/out")" = $((n + 1)) ] || fail "reply of $n bytes is not whole"
done

# Cut off, because it is longer than the export.
{ printf '{"x":"'; head -c 70000 /dev/zero | tr '\0' x; printf '"}'; } > "$tmp/reply"
by_nbd "$ctl" --json @URI@ list
want 1 ""
error_has "longer than the control export"

# Refused: the write fails, the reply says why.
touch "$tmp/refuse"
printf '%s\n' '{"error":"state promoted: generation 2","code":2}' > "$tmp/reply"
by_nbd "$commit" @URI@
want 2 ""
error_has "mcbuf-commit: state promoted: generation 2"

# Refused, but the reply that is kept is an older one: not a success.
printf %s "$reply" > "$tmp/reply"
by_nbd "$commit" @URI@
want 1 ""
error_has "kept no reason"
rm "$tmp/refuse"

# --stdin keeps the connection.
cat > "$tmp/stdin" <<'EOF'
printf 'seal\ncommit\n' | "$1" --stdin "$2"
EOF
by_nbd bash "$tmp/stdin" "$commit" @URI@
want 0 "$reply
$reply"

# A server without that export.
server=(eval open='echo ENOENT none >&2; exit 1' get_size='echo 65536' pread='exit 1')
by_nbd "$status" @URI@
want 1 ""
error_has "mcbuf-control"

# One that gives a disk whatever the name: nothing is written to it.
server=(memory 1M)
by_nbd bash -c "\"$commit\" \"\$0\"; rc=\$?; [ \"\$(nbdinfo --size \"\$0\")\" = 1048576 ] && \
    nbdcopy \"\$0\" - | tr -d '\\0' > \"$tmp/left\"; exit \$rc" @URI@
want 1 ""
error_has "not an mcbuf server"
[ -s "$tmp/left" ] && fail "something was written to a disk"

# Nobody there; not a URI that libnbd knows.
run "$commit" "nbd+unix:///x?socket=$tmp/none"
want 1 ""
error_has "cannot connect"
run "$commit" "nbd+carrier-pigeon://x/"
want 1 ""
