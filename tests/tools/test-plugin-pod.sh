#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The plugin's --help and --dump-plugin against its man page, both ways.

. "${srcdir:-.}/tools/functions.sh"
requires nbdkit --version
plugin=$build/../plugin/.libs/nbdkit-mcbuf-plugin.so
pod=$man/nbdkit-mcbuf-plugin.pod
if [ ! -e "$plugin" ]; then
    echo "SKIP: the plugin is not built"
    exit 77
fi
if is_sanitized "$plugin"; then
    echo "SKIP: nbdkit itself cannot load a plugin with a sanitizer"
    exit 77
fi

# Parameters: the first word of their lines, "journal=DIR".
run nbdkit "$plugin" --help
[ "$rc" = 0 ] || fail "nbdkit --help"
sed -n 's/^\([[a-z-]*=[^ ]*\)  .*/\1/p' "$tmp/out" | sort > "$tmp/help"
sed -n '/^=head1 PARAMETERS/,/^=head1 STATES/s/^=item //p' "$pod" |
    sed 's/[BI]<\([^<>]*\)>/\1/g' | sort > "$tmp/pod"
[ -s "$tmp/help" ] || fail "nbdkit --help lists no parameter"
diff -u "$tmp/help" "$tmp/pod" || fail "--help and $pod differ"
# The synopsis has them all.
while IFS= read -r parameter; do
    sed -n '/^=head1 SYNOPSIS/,/^=head1 DESC/p' "$pod" | grep -qF -- "$parameter" ||
        fail "not in the synopsis: $parameter"
done < "$tmp/pod"
# Defaults that --help names.
for default in $(sed -n 's/.*(default: \([0-9]*[KMGT]\)).*/\1/p' "$tmp/out"); do
    grep -q "default is $default\b" "$pod" || fail "default $default is not in $pod"
done

# Fields of --dump-plugin.
run nbdkit --dump-plugin "$plugin"
[ "$rc" = 0 ] || fail "nbdkit --dump-plugin"
sed -n 's/^\(mcbuf_[a-z0-9_]*\)=.*/\1/p' "$tmp/out" | sort > "$tmp/dump"
grep '^=item C<mcbuf_' "$pod" | grep -o 'mcbuf_[a-z0-9_]*' | sort > "$tmp/pod"
diff -u "$tmp/dump" "$tmp/pod" || fail "--dump-plugin and $pod differ"

# All states and exports that the server has words for.
for word in syncing protected stale resyncing promoted failed; do
    grep -q "^=item B<$word>" "$pod" || fail "state $word is not in $pod"
done
