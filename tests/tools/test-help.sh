#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# --help of each tool against its man page, both ways: every option in one is in
# the other, with the same value.

. "${srcdir:-.}/tools/functions.sh"

for tool in "$commit" "$status" "$recover" "$ctl"; do
    name=$(basename "$tool")
    pod=$man/$name.pod

    run "$tool" --help
    want 0
    # "  --option=VALUE   text" and "  -V, --version   text"
    sed -n 's/^  \(-[^ ,]*\(, --[^ ]*\)\{0,1\}\)  *.*/\1/p' "$tmp/out" |
        sed 's/, /\n/' | sort > "$tmp/help"
    # "=item B<--option>=VALUE"
    sed -n 's/^=item \(B<-.*\)/\1/p' "$pod" | sed 's/[BI]<\([^<>]*\)>/\1/g' |
        sort -u > "$tmp/pod"
    [ -s "$tmp/help" ] || fail "$name --help lists no option"
    diff -u "$tmp/help" "$tmp/pod" || fail "$name --help and $pod differ"

    # --help is for a terminal of 80 columns.
    [ "$(wc -L < "$tmp/out")" -le 80 ] || fail "$name --help is wider than 80 columns"
    # No option that getopt takes is kept secret: each abbreviation of one letter
    # that is not unique or known is an error, each long name in the source is listed.
    for option in $(sed -n 's/^  { "\([a-z-]*\)", .*/\1/p' \
                    "$src/../tools/${name#mcbuf-}.c"); do
        grep -q -- "^--$option\(=\|$\)" "$tmp/help" || fail "$name --help: no --$option"
    done

    for option in --version -V; do
        run "$tool" "$option"
        want 0
        grep -qx "$name [0-9][0-9.]*" "$tmp/out" || fail "$name $option"
    done
    if [ -w /dev/full ]; then
        rc=0
        "$tool" --help > /dev/full 2> "$tmp/err" || rc=$?
        : > "$tmp/out"
        want 1
    fi

    # Every verb of mcbuf-ctl is on its page.
    [ "$name" = mcbuf-ctl ] || continue
    run "$tool" --help
    for verb in $(sed -n '/Verbs:/,/^Options:/s/^  \([a-z]*\) .*/\1/p' "$tmp/out"); do
        grep -q "^=item B<$verb>" "$pod" || fail "$pod does not tell of $verb"
    done
    sed -n 's/^=item B<\([a-z]*\)>.*/\1/p' "$pod" | while read -r verb; do
        grep -q "^  $verb " "$tmp/out" || fail "mcbuf-ctl --help does not tell of $verb"
    done
done
