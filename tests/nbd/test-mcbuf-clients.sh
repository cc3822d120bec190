#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Other people's NBD clients on a replica: nbdcopy, nbdinfo, qemu-img, qemu-io,
# fio.  What each of them writes is committed, written out, and must then be the image.
# shellcheck source=tests/functions.sh disable=SC2154
. "${srcdir:-$(dirname "$0")/..}/functions.sh"

requires nbdcopy --version
requires nbdinfo --version
requires qemu-img --version
requires qemu-io --version
requires fio --version
requires jq --version

size=$((64 * 1024 * 1024))
journal=$tmp/disk.img.mcbuf

step () { echo "--- $*"; }

# Commit what a client wrote, and wait until it is in the image.
settle ()
{
    expect 0 mcbuf-commit "$journal"
    poll is_drained "$journal"
}

# An image with data, holes and odd edges.
truncate -s $size "$tmp/source.img"
dd if=/dev/urandom of="$tmp/source.img" bs=64K count=100 seek=3 conv=notrunc status=none
dd if=/dev/urandom of="$tmp/source.img" bs=512 count=99 seek=70001 conv=notrunc status=none
dd if=/dev/urandom of="$tmp/source.img" bs=1 count=1000 seek=$((size - 1000)) conv=notrunc status=none

truncate -s $size "$tmp/disk.img"
start_mcbuf a "$tmp/disk.img" journal-size=256M buffer=32M baseline=trusted
uri=$uri_a

step "nbdcopy to the replica and back"
nbdcopy "$tmp/source.img" "$uri"
nbdcopy "$uri" "$tmp/back.img"
cmp "$tmp/source.img" "$tmp/back.img"
cmp -n 1000000 "$tmp/disk.img" /dev/zero         # not committed: not in the image
settle
cmp "$tmp/source.img" "$tmp/disk.img"

step "nbdcopy with many connections and requests, without sparseness"
dd if=/dev/urandom of="$tmp/source.img" bs=1M count=20 seek=30 conv=notrunc status=none
nbdcopy --connections=4 --requests=64 --request-size=65536 --sparse=0 --allocated \
    "$tmp/source.img" "$uri"
nbdcopy --connections=4 "$uri" "$tmp/back.img"
cmp "$tmp/source.img" "$tmp/back.img"
settle
cmp "$tmp/source.img" "$tmp/disk.img"

step "nbdcopy from one replica to another"
truncate -s $size "$tmp/other.img"
start_mcbuf b "$tmp/other.img" journal-size=256M buffer=32M
nbdcopy "$uri" "$uri_b"
expect 0 mcbuf-commit "$tmp/other.img.mcbuf"
poll is_drained "$tmp/other.img.mcbuf"
cmp "$tmp/source.img" "$tmp/other.img"
stop_mcbuf b

step "nbdinfo"
nbdinfo --json "$uri" | jq -e --argjson size $size '.exports[0]
    | ."export-size" == $size and .can_flush and .can_fua and .can_trim and .can_zero
      and .can_multi_conn and .block_size_minimum == 1 and .block_size_preferred == 4096' \
    >/dev/null || fail "nbdinfo: $(nbdinfo --json "$uri")"
nbdinfo --list "$uri" | grep -q mcbuf-control || fail "nbdinfo --list"

step "nbdinfo --map: the holes of the image, and what was written over them"
truncate -s $size "$tmp/sparse.img"
start_mcbuf c "$tmp/sparse.img" journal-size=64M buffer=16M baseline=trusted
nbdinfo --map --totals "$uri_c" | grep -q '100\.0% *3' || fail "not one hole: $(nbdinfo --map "$uri_c")"
qemu-io -f raw -c 'write -P 7 1M 1M' "$uri_c" >/dev/null
map=$(nbdinfo --map --json "$uri_c" |
      jq -c '[.[] | [.offset, .length, .type]]')
[ "$map" = "[[0,1048576,3],[1048576,1048576,0],[2097152,65011712,3]]" ] || fail "map: $map"
expect 0 mcbuf-commit "$tmp/sparse.img.mcbuf"
poll is_drained "$tmp/sparse.img.mcbuf"
map=$(nbdinfo --map --json "$uri_c" | jq -c '[.[] | [.offset, .length, .type]]')
[ "$map" = "[[0,1048576,3],[1048576,1048576,0],[2097152,65011712,3]]" ] || fail "map: $map"
used=$(($(stat -c %b "$tmp/sparse.img") * 512))
[ $used -lt $((3 * 1024 * 1024)) ] || fail "the image is not sparse any more: $used"
stop_mcbuf c

step "qemu-img convert to the replica, compare, and back"
dd if=/dev/urandom of="$tmp/source.img" bs=4K count=777 seek=100 conv=notrunc status=none
qemu-img convert -n -f raw -O raw "$tmp/source.img" "$uri"
qemu-img compare -f raw -F raw "$tmp/source.img" "$uri"
settle
qemu-img compare -U -f raw -F raw "$tmp/source.img" "$tmp/disk.img"
qemu-img convert -f raw -O qcow2 "$uri" "$tmp/copy.qcow2"
qemu-img compare -f qcow2 -F raw "$tmp/copy.qcow2" "$tmp/source.img"
expect 1 qemu-img compare -f raw -F raw "$tmp/back.img" "$uri"

step "qemu-img map sees the same allocation as in the file"
qemu-img map --output=json -f raw "$uri" | jq -e 'all(.start >= 0)' >/dev/null

step "qemu-io patterns at every alignment"
qemu-io -d unmap -f raw "$uri" >"$tmp/qemu-io.out" 2>&1 <<'END' || fail "qemu-io: $(cat "$tmp/qemu-io.out")"
write -P 1 0 512
write -P 2 512 512
write -P 3 1024 3072
write -P 4 65537 1
write -P 5 1000001 99999
write -z 1010000 5000
write -z -u 1020480 4096
discard 2M 1M
write -f -P 6 3145727 2
aio_write -P 7 4M 64k
aio_write -P 8 5M 64k
aio_write -P 9 4128k 32k
aio_flush
flush
read -P 1 0 512
read -P 2 512 512
read -P 3 1024 3072
read -P 4 65537 1
read -P 5 1000001 9999
read -P 0 1010000 5000
read -P 5 1015000 5480
read -P 0 1020480 4096
read -P 5 1024576 75424
read -P 0 2097152 1048575
read -P 6 3145727 2
read -P 7 4M 32k
read -P 9 4128k 32k
read -P 8 5M 64k
END
if grep -iE 'failed|error|verification' "$tmp/qemu-io.out"; then fail "qemu-io"; fi
[ "$(grep -cE "read [0-9]+/" "$tmp/qemu-io.out")" -ge 14 ] || fail "qemu-io: $(cat "$tmp/qemu-io.out")"
settle
nbdcopy "$uri" "$tmp/back.img"
cmp "$tmp/back.img" "$tmp/disk.img"

step "qemu-nbd on top: a qcow2 in the replica"
qemu-img create -q -f qcow2 "$uri" 32M
qemu-io -f qcow2 -c 'write -P 0x5a 1M 4M' -c 'read -P 0x5a 1M 4M' "$uri" >/dev/null
settle
qemu-io -r -U -f qcow2 -c 'read -P 0x5a 1M 4M' "$tmp/disk.img" >"$tmp/qemu-io.out"
if grep -i failed "$tmp/qemu-io.out"; then fail "qcow2 in the image"; fi
qemu-img check -U -q -f qcow2 "$tmp/disk.img"

step "fio, random writes with verify, commits in between"
( while mcbuf-commit "$journal" >/dev/null 2>&1; do sleep 0.05; done ) &
committer=$!
pids+=("$committer")
for bs in 512 4k 64k; do
    fio --name=verify --ioengine=nbd --verify_state_save=0 --uri="$uri" --rw=randwrite --bs=$bs --iodepth=16 \
        --size=24m --io_size=8m --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=0 \
        --output="$tmp/fio.out" --eta=never || fail "fio bs=$bs: $(cat "$tmp/fio.out")"
done
fio --name=mixed --ioengine=nbd --verify_state_save=0 --uri="$uri" --rw=randrw --bsrange=512-64k --blockalign=512 \
    --iodepth=8 --size=24m --io_size=16m --verify=md5 --verify_fatal=1 --norandommap=0 \
    --output="$tmp/fio.out" --eta=never || fail "fio mixed: $(cat "$tmp/fio.out")"
kill "$committer"
wait "$committer" 2>/dev/null || :
settle
nbdcopy "$uri" "$tmp/back.img"
cmp "$tmp/back.img" "$tmp/disk.img"

step "after all that: kill, recover, and the image is the last checkpoint"
cp "$tmp/disk.img" "$tmp/checkpoint.img"
nbdcopy "$tmp/source.img" "$uri"
kill_mcbuf a
expect 0 mcbuf-recover "$journal"
cmp "$tmp/checkpoint.img" "$tmp/disk.img"
