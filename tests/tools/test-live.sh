#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The tools against the real plugin: a replica's life from the first copy to
# the fail-over, online and then without a server.

. "${srcdir:-.}/tools/functions.sh"
requires nbdkit --version
requires qemu-io --version
plugin=$build/../plugin/.libs/nbdkit-mcbuf-plugin.so
if [ ! -e "$plugin" ]; then
    echo "SKIP: the plugin is not built"
    exit 77
fi
if is_sanitized "$plugin"; then
    echo "SKIP: nbdkit itself cannot load a plugin with a sanitizer"
    exit 77
fi
j=$tmp/a.img.mcbuf
uri="nbd+unix:///?socket=$tmp/s"
trap '[ ! -e "$tmp/pid" ] || kill "$(cat "$tmp/pid")" 2> /dev/null || :; rm -rf "$tmp"' EXIT

start ()
{
    nbdkit -U "$tmp/s" -P "$tmp/pid" "$plugin" "disk=vda:$tmp/a.img" \
        journal="$j" size=16M journal-size=64M buffer=8M
}

# Wait for the end of nbdkit: 30 seconds at most.
gone ()
{
    for ((i = 0; i < 3000; i++)); do
        kill -0 "$(cat "$tmp/pid")" 2> /dev/null || { rm "$tmp/pid" "$tmp/s"; return; }
        sleep 0.01
    done
    fail "nbdkit does not end"
}

write ()
{
    qemu-io -f raw -c "write -P $1 $2" "nbd+unix:///vda?socket=$tmp/s" > /dev/null
}

is ()
{
    [ "$(jq -c "$1" "$tmp/out")" = "$2" ] || fail "$1 is not $2"
}

image_is ()
{
    cmp -n 8192 "$tmp/a.img" <(head -c 4096 /dev/zero | tr '\0' "\\$1"
                               head -c 4096 /dev/zero | tr '\0' "\\$2") ||
        fail "not what the checkpoint holds"
}

start
run "$status" --json "$j"
want 0
is '[.state, .checkpoint, .generation]' '["syncing",null,1]'
run "$recover" --dry-run "$j"
want 3 ""
run "$recover" "$j"
want 3 ""
run "$recover" --list "$j"
want 3 ""

write 1 "0 8k"
run "$commit" --label=first "$j"
want 0 "checkpoint 1"
write 2 "0 4k"
run "$commit" --seal "$uri"
want 0 "sealed 2"
write 3 "4k 4k"
run "$commit" --json --epoch=2 --generation=1 "$uri"
want 0
is '[.checkpoint, .epoch, .bytes]' '[2,2,4096]'
# Asked again, it is a success that changes nothing.
run "$commit" --json --epoch=2 "$j"
want 0
is '[.checkpoint, .epoch]' '[2,2]'
run "$commit" --epoch=7 "$j"
want 2 ""
run "$commit" --generation=2 "$j"
want 2 ""
run_with $'status\nlist\n' "$commit" --stdin "$uri"
want 0
[ "$(wc -l < "$tmp/out")" = 2 ] || fail "--stdin by URI"
run "$status" "$uri"
want 0
output_has "protected: checkpoint 2"
run "$status" --prometheus "$j"
want 0
output_has ',disk="vda"} 16777216'
run "$ctl" "$j" list
want 0
run "$ctl" "$j" nonsense
want 1 ""
run "$ctl" "$uri" promote
want 2 ""
run "$recover" --dry-run --json "$j"
want 0
is '[.checkpoint, .discarded_epochs, .discarded_bytes, .generation]' '[2,1,4096,2]'
run "$recover" --disk=vda:/x "$j"
want_usage "--disk"

run "$recover" --wait --json "$j"
want 0
is '[.checkpoint, .discarded_bytes, .generation, .state, .drained]' \
   '[2,4096,2,"promoted",true]'
image_is 2 1
run "$commit" "$j"
want 2 ""
run "$recover" --to=1 "$j"
want 2 ""
run "$ctl" "$j" shutdown
want 0
gone

# Without a server: the same answer.
run "$recover" --json "$j"
want 0
is '[.checkpoint, .discarded_bytes, .generation, .state]' '[2,4096,2,"promoted"]'
image_is 2 1
run "$status" "$j"
want 1 ""
error_has "no server listens"

# Again, but the server is killed, and its image moved.
rm -rf "$j"
start
write 4 "0 8k"
run "$commit" "$j"
want 0 "checkpoint 1"
write 5 "0 4k"
run "$commit" --label=five "$j"
want 0 "checkpoint 2"
write 6 "0 8k"
kill -KILL "$(cat "$tmp/pid")"
gone
mv "$tmp/a.img" "$tmp/b.img"
run "$recover" --list --json "$j"
want 0
is '.checkpoints[-1] | [.id, .label, .bytes]' '[2,"five",4096]'
run "$recover" --verify "$j"
want 0
output_has 'verified: whole up to checkpoint 2 "five"'
output_has "note: $tmp/a.img: No such file"
run "$recover" "$j"
want 1 ""
error_has "--disk=vda:PATH"
run "$recover" --disk=vda:"$tmp/b.img" --json "$j"
want 0
is '[.checkpoint, .label, .generation, .state]' '[2,"five",2,"promoted"]'
mv "$tmp/b.img" "$tmp/a.img"
image_is 5 4
