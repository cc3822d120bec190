#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# mcbuf-commit is started once for each checkpoint: it loads libc and libjansson,
# and nothing more unless TARGET is a URI.

. "${srcdir:-.}/tools/functions.sh"
requires readelf --version
if is_sanitized "$commit"; then
    echo "SKIP: sanitizers load more"
    exit 77
fi

for tool in "$commit" "$status" "$ctl"; do
    args=("$tmp/j")
    [ "$tool" != "$ctl" ] || args+=(status)
    # LD_DEBUG tells of dlopen too.
    serve 'accept
any
reply {"checkpoint":7,"state":"protected"}' \
        env LD_DEBUG=files LD_DEBUG_OUTPUT="$tmp/loaded" "$tool" "${args[@]}"
    want 0
    readelf -d "$tool" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort > "$tmp/needed"
    [ "$(grep -vc '^libc\.\|^libjansson\.\|^ld-' "$tmp/needed" || :)" = 0 ] ||
        fail "$tool needs: $(tr '\n' ' ' < "$tmp/needed")"
    grep -q libjansson "$tmp"/loaded.* || fail "LD_DEBUG tells nothing"
    ! grep -q libnbd "$tmp"/loaded.* || fail "$tool loads libnbd for a local journal"
done
