#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# mcbuf-recover with a server running, and its usage.  Without a server: the
# tests of the replica.

. "${srcdir:-.}/tools/functions.sh"
j=$tmp/j
result='{"checkpoint":7,"label":"seven","discarded_bytes":8192,"discarded_epochs":2,"written_bytes":4096,"generation":2,"state":"promoted","seconds":0.01,"drained":false}'
drained=${result/false/true}
list='{"checkpoints":[{"id":5,"label":"five","time":"2026-01-31T10:00:00.000Z","extents":1,"bytes":4096},{"id":7,"label":null,"time":"2026-01-31T11:00:00.000Z","extents":2,"bytes":8192}]}'

# The server promotes.
serve "accept
expect promote
reply $result
eof" "$recover" --json "$j"
want 0 "$result"
serve "accept
expect promote to=before the upgrade
reply $drained" "$recover" --to "before the upgrade" "$j"
want 0
output_has 'recovered to checkpoint 7 "seven", generation 2'
output_has '4.0 KiB written in 0.010 s; 8.0 KiB of 2 uncommitted epochs discarded'
output_has 'next: start the VM on'
serve 'accept
any
reply {"error":"state syncing: no checkpoint exists","code":3}' "$recover" --json "$j"
want 3 ""
error_has "no checkpoint exists"

# --wait: until the backing images are complete.
serve "accept
expect promote
reply $drained
eof" "$recover" --wait --json "$j"
want 0 "$drained"
serve "accept
expect promote
reply $result
expect status
reply {\"state\":\"promoted\",\"drained\":false,\"writeout\":{\"bytes\":4096,\"error\":null}}
expect status
reply {\"state\":\"promoted\",\"drained\":true,\"writeout\":{\"bytes\":0,\"error\":null}}
eof" "$recover" --wait --json "$j"
want 0
[ "$(jq -c '[.checkpoint, .written_bytes, .drained, .seconds > 0.1]' "$tmp/out")" = "[7,4096,true,true]" ] ||
    fail "--wait: not the whole result"
# An error that pauses the write-out is told once.
paused='{"drained":false,"writeout":{"bytes":1,"error":"/vm/a.img: No space left on device"}}'
serve "accept
any
reply $result
any
reply $paused
any
reply $paused
any
reply $drained" "$recover" --wait --json "$j"
[ "$rc" = 0 ] || fail "--wait after a pause"
[ "$(grep -c "paused: /vm/a.img: No space left" "$tmp/err")" = 1 ] ||
    fail "--wait: the pause is not told, or told twice"
# Promoted, then the server dies: some, not all.
serve "accept
any
reply $result
any
close" "$recover" --wait "$j"
want 5 ""
error_has "run mcbuf-recover $j again"

# It is not promoted any more: damage was found in the backlog, or somebody gave the disk up.
leaves ()
{
    serve "accept
any
reply $result
any
reply {\"state\":\"promoted\",\"generation\":2,\"drained\":false,\"writeout\":{\"bytes\":4096,\"error\":null}}
any
reply $1
eof" timeout 30 "$recover" --wait "$j"
}
leaves '{"state":"failed","reason":"journal: damage at offset 4096, checkpoint 7","generation":2,"drained":false}'
want 4 ""
error_has "damage at offset 4096, checkpoint 7"
for is in syncing,2 protected,2 resyncing,2 stale,2 promoted,3; do
    leaves "{\"state\":\"${is%,*}\",\"reason\":\"because\",\"generation\":${is#*,},\"drained\":false}"
    want 2 ""
    error_has "${is%,*}"
done

# --list.
serve "accept
expect list
reply $list
eof" "$recover" --list --json "$j"
want 0 "$list"
serve "accept
expect list
reply $list" "$recover" --list "$j"
want 0
[ "$(wc -l < "$tmp/out")" = 3 ] || fail "--list: not a line each"
serve 'accept
expect list
reply {"checkpoints":[]}' "$recover" --list --json "$j"
want 3 '{"checkpoints":[]}'

# --dry-run asks what is, and asks for no change.
dry ()
{
    serve "accept
expect status
reply {\"state\":\"$1\",\"generation\":1,\"open_epoch\":9,\"sealed_epochs\":3,\"speculation\":{\"bytes\":512,\"epochs\":2},\"writeout\":{\"bytes\":12288}}
expect list
reply $2
eof" "$recover" --dry-run --json "${@:3}" "$j"
}
is ()
{
    [ "$(jq -c "$1" "$tmp/out")" = "$2" ] || fail "$1 is not $2"
}
dry protected "$list"
want 0
is '[.checkpoint,.label,.discarded_bytes,.discarded_epochs,.written_bytes,.generation,.state]' \
   '[7,null,512,2,12288,2,"promoted"]'
for to in 5 five 2026-01-31T10:30:00Z; do
    dry stale "$list" --to "$to"
    want 0
    is '[.checkpoint,.label,.discarded_bytes,.discarded_epochs,.written_bytes]' \
       '[5,"five",512,2,4096]'
done
dry protected "$list" --to 6
want 2 ""
dry promoted '{"checkpoints":[{"id":7,"label":null}]}'
want 0
is '[.checkpoint,.discarded_epochs,.generation]' '[7,0,1]'
dry promoted "$list" --to 5
want 2 ""
error_has "state promoted"
serve 'accept
any
reply {"state":"syncing","checkpoint":null}
any
reply {"checkpoints":[]}' "$recover" --dry-run "$j"
want 3 ""
error_has "the image must not be used"
serve 'accept
any
reply {"state":"failed","checkpoint":null}
any
reply {"checkpoints":[]}' "$recover" --dry-run "$j"
want 2 ""
error_has "mcbuf-ctl $j shutdown"

# What only makes sense without a server.
serve "accept
eof" "$recover" --disk=vda:/x "$j"
want_usage "--disk"
serve "accept
eof" "$recover" --verify "$j"
want_usage "--verify"

# Usage.
run "$recover"
want_usage "no JOURNAL"
run "$recover" a b
want_usage "more than one JOURNAL"
run "$recover" nbd://localhost/
want_usage "a URI"
run "$recover" --disk=vda: "$j"
want_usage "gives no path"
run "$recover" --disk=vda:/a --disk=vda:/b "$j"
want_usage "twice"
run "$recover" --disk=/a --disk=/b:c "$j"
want_usage "twice"
run "$recover" --list --dry-run "$j"
want_usage "exclude each other"
run "$recover" --list --to=1 "$j"
want_usage "--to"
run "$recover" --verify --wait "$j"
want_usage "--wait"
run "$recover" --to= "$j"
want_usage "--to="
run "$recover" --bad "$j"
want_usage "--bad"
run "$recover" --to=$'a\nb' "$j"
want 1 ""
error_has "control character"
