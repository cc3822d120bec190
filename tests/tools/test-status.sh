#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# mcbuf-status: one line that says it all, in every state; its other formats.

. "${srcdir:-.}/tools/functions.sh"
j=$tmp/j

# status STATE [MORE]: a reply; a later key in MORE wins (it is merged by jq).
reply ()
{
    jq -nc --arg state "$1" --arg now "$(date -u -d '-5 minutes' +%Y-%m-%dT%H:%M:%S.250Z)" \
       "{replica:\"00112233445566778899aabbccddeeff\",state:\$state,reason:null,
         generation:1,open_epoch:9,sealed_epochs:1,
         checkpoint:{id:7,label:\"before\",time:\$now},written_out:6,
         disks:[{name:\"vda\",size:1073741824,backing:\"/vm/a.img\"},
                {name:\"v\\\"b\",size:512,backing:\"/vm/b.img\"}],
         speculation:{bytes:12288,extents:3},
         writeout:{bytes:4096,checkpoints:1,error:null},
         journal:{size:1073741824,used:2097152},buffer:{size:268435456,used:0},
         commit_latency_us:{p50:310,p99:900,max:1200},connections:1}
        * ${2-{\}}"
}

show ()
{
    serve "accept
expect status
reply $1
eof" "$status" "${@:2}" "$j"
}

headline ()
{
    show "$(reply "$@")"
    want 0
    head -n 1 "$tmp/out"
}

is ()
{
    # shellcheck disable=SC2053  # a pattern
    [[ $1 = $2 ]] || fail "first line is not '$2' but: $1"
}

is "$(headline syncing '{checkpoint:null}')" \
   "syncing: no checkpoint yet*when the mirror job is ready: mcbuf-commit $j"
is "$(headline syncing '{checkpoint:null,connections:0}')" \
   "syncing: no checkpoint yet*no primary is connected*"
is "$(headline protected)" 'protected: checkpoint 7 "before", 5 min ago; nothing to do'
is "$(headline protected '{checkpoint:{label:null}}')" \
   'protected: checkpoint 7, 5 min ago; nothing to do'
is "$(headline protected '{reason:"journal is 90 % full"}')" \
   'protected: checkpoint 7 "before", 5 min ago; journal is 90 % full'
is "$(headline protected '{connections:0}')" \
   "protected: checkpoint 7 \"before\", 5 min ago; no primary is connected*mcbuf-recover $j"
is "$(headline protected '{writeout:{error:"/vm/a.img: No space left on device"}}')" \
   "protected: *; write-out is paused: /vm/a.img: No space left on device:*"
is "$(headline stale '{reason:"server restarted after a reboot"}')" \
   "stale: checkpoint 7 \"before\", 5 min ago; server restarted after a reboot;*mcbuf-ctl $j resync,*mcbuf-recover $j"
is "$(headline stale '{checkpoint:null}')" \
   "stale: no checkpoint, the image must not be used;*mcbuf-ctl $j resync overwrite"
is "$(headline resyncing)" "resyncing: checkpoint 7 *mcbuf-commit $j"
is "$(headline promoted '{drained:false}')" \
   "promoted: checkpoint 7 *4.0 KiB still to write out*NAME@promoted*mcbuf-recover --wait $j"
is "$(headline promoted '{drained:true}')" "promoted: checkpoint 7 *start the VM on the export NAME@promoted, or stop the server (mcbuf-ctl $j shutdown)*"
is "$(headline promoted '{drained:true,disks:[{name:"vda"}]}')" "*the export vda@promoted,*"
is "$(headline promoted '{drained:true,disks:[{name:""}]}')" "*the export @promoted,*"
is "$(headline failed '{reason:"fdatasync: Input/output error"}')" \
   "failed: checkpoint 7 *fdatasync: Input/output error;*mcbuf-recover --verify $j*mcbuf-ctl $j resync overwrite"
is "$(headline wondering)" "wondering: *"

# A reason that the headline has no room for is on a line of its own.
show "$(reply promoted '{reason:"the backlog drains"}')"
grep -qx "reason       the backlog drains" "$tmp/out" || fail "no reason"

# Labels cannot move the cursor.
is "$(headline protected '{checkpoint:{label:"\u001b[2J\u009b"}}')" \
   'protected: checkpoint 7 "?[2J?", 5 min ago; nothing to do'

# The other lines.
show "$(reply protected)"
want 0
for line in "replica      00112233445566778899aabbccddeeff, generation 1, 1 connection" \
            "epoch        9 is open, 1 sealed and not committed, written out up to checkpoint 6" \
            "speculation  12.0 KiB in 3 extents" \
            "write-out    4.0 KiB of 1 checkpoint to go" \
            "journal      2.0 MiB of 1.0 GiB (0 %)" \
            "buffer       0 B of 256.0 MiB (0 %)" \
            "commit       p50 310 us, p99 900 us, max 1200 us" \
            "disk         vda, 1.0 GiB, /vm/a.img"; do
    grep -qxF "$line" "$tmp/out" || fail "no line: $line"
done

# Keys that are missing, or new, are no error.
show '{"state":"syncing","checkpoint":null,"new":[{}]}'
want 0

# JSON is the answer as it came.
r=$(reply protected)
show "$r" --json
want 0 "$r"
show '{"error":"out of memory","code":2}' --json
want 2 '{"error":"out of memory","code":2}'

# Prometheus: HELP and TYPE before each metric, samples that parse, labels escaped.
show "$(reply promoted '{drained:true}')" --prometheus
want 0
awk '
  /^# HELP mcbuf_[a-z_]+ .*\.$/ { help = $3; next }
  /^# TYPE mcbuf_[a-z_]+ gauge$/ { if ($3 != help) exit 1; type = $3; next }
  /^mcbuf_[a-z_]+\{replica="[0-9a-f]*"(,[a-z]+="([^"\\]|\\["\\n])*")?\} [0-9.]+$/ {
    split ($0, a, "{"); if (a[1] != type) exit 1; n++; next }
  { print "bad line: " $0; exit 1 }
  END { if (n < 25) exit 1 }' "$tmp/out" || fail "not the text exposition format"
output_has 'mcbuf_state{replica="00112233445566778899aabbccddeeff",state="promoted"} 1'
output_has 'mcbuf_state{replica="00112233445566778899aabbccddeeff",state="stale"} 0'
output_has 'mcbuf_disk_size_bytes{replica="00112233445566778899aabbccddeeff",disk="v\"b"} 512'
output_has 'mcbuf_commit_latency_seconds{replica="00112233445566778899aabbccddeeff",figure="p50"} 0.000310'
output_has 'mcbuf_drained{replica="00112233445566778899aabbccddeeff"} 1'
show "$(reply syncing '{checkpoint:null,commit_latency_us:null}')" --prometheus
want 0
! grep -q "mcbuf_checkpoint\|latency" "$tmp/out" || fail "metrics without a value"

# --watch: a line each time, SIGINT ends it well; one connection.
r=$(reply protected)
serve "accept
expect status
reply $r
expect status
reply $r
expect status
interrupt" "$status" --watch "$j"
want 0
[ "$(wc -l < "$tmp/out")" = 2 ] || fail "--watch: not a line for each answer"
serve "accept
expect status
reply $r
close" "$status" --watch "$j"
want 1

# Usage.
run "$status"
want_usage "no TARGET"
run "$status" a b
want_usage "more than one TARGET"
run "$status" --json --watch "$j"
want_usage "exclude each other"
run "$status" --watch --prometheus "$j"
want_usage "exclude each other"
run "$status" --bad "$j"
want_usage "--bad"
