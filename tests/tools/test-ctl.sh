#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# mcbuf-ctl: any verb, readable or as JSON.

. "${srcdir:-.}/tools/functions.sh"
j=$tmp/j

# ask REQUEST REPLY ARGUMENT …
ask ()
{
    serve "accept
expect $1
reply $2
eof" "$ctl" "${@:3}"
}

ask "commit label=two words" '{"checkpoint":3}' "$j" commit "label=two words"
want 0 "checkpoint 3"
ask "commit epoch=3 label=a b" '{"checkpoint":3}' "$j" commit epoch=3 label=a b
want 0 "checkpoint 3"
ask "commit label=-x" '{"checkpoint":3}' "$j" -- commit label=-x
want 0 "checkpoint 3"
ask "seal" '{"sealed":3,"open_epoch":4}' "$j" seal
want 0 "sealed 3"
ask "shutdown" '{}' "$j" shutdown
want 0 "done"
ask "resync overwrite" '{"state":"syncing","n":{"a":[1,null,true,1.5]}}' "$j" resync overwrite
want 0 "state: syncing
n.a.0: 1
n.a.1: none
n.a.2: yes
n.a.3: 1.5"
ask "unheard of" '{"x":"\u001b\n"}' "$j" unheard of
want 0 "x: ??"
ask "status" '{"state":"protected","checkpoint":{"id":7,"label":null}}' "$j" status
want 0 "protected: checkpoint 7; nothing to do"
ask "list" '{"checkpoints":[{"id":7,"label":"x","time":"2026-01-31T23:59:59.123Z","extents":2,"bytes":8192}]}' "$j" list
want 0 "CHECKPOINT  TIME                        EXTENTS        SIZE  LABEL
         7  2026-01-31T23:59:59.123Z          2     8.0 KiB  x"
ask "promote to=x y" '{"checkpoint":7,"label":null,"discarded_bytes":1,"discarded_epochs":1,"written_bytes":0,"generation":2,"state":"promoted","seconds":0.0131}' \
    "$j" promote "to=x y"
want 0 "recovered to checkpoint 7, generation 2
0 B written in 0.013 s; 1 B of 1 uncommitted epoch discarded"

# --json at any place: the answer as it came.
for args in "--json $j list" "$j --json list" "$j list --json"; do
    # shellcheck disable=SC2086
    ask list '{"checkpoints": []}' $args
    want 0 '{"checkpoints": []}'
done
ask list '{"error":"no","code":4}' --json "$j" list
want 4 '{"error":"no","code":4}'
error_has "mcbuf-ctl: no"

run "$ctl"
want_usage "no TARGET"
run "$ctl" "$j"
want_usage "no VERB"
run "$ctl" "$j" ""
want_usage "no VERB"
run "$ctl" --bad "$j" list
want_usage "--bad"
run "$ctl" "$j" $'seal\nshutdown'
want 1 ""
error_has "control character"
