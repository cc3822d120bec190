#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# tests/test-installed.sh BUILD
# What make install in the folder BUILD puts there is all that a user needs: the main job with the
# installed plugin and tools alone.  Not part of make check: it would make install while others test.
set -euo pipefail

build=$(cd "$1" && pwd)
tmp=$(mktemp -d "${TMPDIR:-/var/tmp}/mcbuf-installed.XXXXXX")
server=
# shellcheck disable=SC2317   # called by the trap
cleanup ()
{
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    rm -rf "$tmp"
}
trap cleanup EXIT
fail () { echo "FAIL: $*" >&2; exit 1; }

make -C "$build" install DESTDIR="$tmp/root" >"$tmp/log" 2>&1 || { tail -n 20 "$tmp/log"; fail "make install"; }

mapfile -t plugins < <(find "$tmp/root" -name nbdkit-mcbuf-plugin.so)
[ ${#plugins[@]} -eq 1 ] || fail "plugins installed: ${plugins[*]}"
plugin=${plugins[0]}
bin=$(dirname "$(find "$tmp/root" -name mcbuf-commit)")
for tool in commit ctl recover status; do
    [ -x "$bin/mcbuf-$tool" ] || fail "no mcbuf-$tool"
    "$bin/mcbuf-$tool" --version >"$tmp/out" || fail "mcbuf-$tool --version"
done
for page in mcbuf-commit.1 mcbuf-ctl.1 mcbuf-journal.5 mcbuf-recover.1 mcbuf-states.7 mcbuf-status.1 \
            nbdkit-mcbuf-plugin.1; do
    [ -n "$(find "$tmp/root" -path "*/man${page##*.}/$page" -size +0)" ] || fail "no page $page"
done
nbdkit --dump-plugin "$plugin" >"$tmp/out"
grep -q '^name=mcbuf$' "$tmp/out" || fail "not the plugin: $(cat "$tmp/out")"

cd "$tmp"
head -c 1M /dev/urandom >want
truncate -s 16M want disk.img
nbdkit -U sock -P pid "$plugin" disk.img journal-size=32M buffer=8M
server=$(cat pid)
nbdcopy want nbd+unix:///?socket=sock
"$bin/mcbuf-commit" --json --label=installed disk.img.mcbuf
"$bin/mcbuf-status" disk.img.mcbuf >out
grep -q 'installed' out || fail "status: $(cat out)"
qemu-io -f raw -c "write -q -P 7 0 64k" nbd+unix:///?socket=sock
"$bin/mcbuf-recover" --wait disk.img.mcbuf >out
"$bin/mcbuf-ctl" disk.img.mcbuf shutdown
server=
cmp want disk.img || fail "the image is not the checkpoint"
"$bin/mcbuf-recover" --verify disk.img.mcbuf >out

cd /
make -C "$build" uninstall DESTDIR="$tmp/root" >"$tmp/log" 2>&1 || fail "make uninstall"
left=$(find "$tmp/root" ! -type d)
[ -z "$left" ] || fail "make uninstall leaves $left"
echo "installed, used and uninstalled"
