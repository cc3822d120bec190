#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# x86-64 without SSE4.2: the checksums are the same, and nbdkit with the plugin serves.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/functions.sh
. "$here/functions.sh"

[ "$(uname -m)" = x86_64 ] || skip "this is no x86-64"
[ -z "$sanitizer" ] || skip "emulation and sanitizers do not go together"
qemu=$(command -v qemu-x86_64-static || command -v qemu-x86_64) ||
    skip "this needs qemu-x86_64 (qemu-user-static)"

# For nbdkit, which is named without a path, and for the tools.
cat >"$tmp/old" <<END
#!/bin/bash
prog=\$(command -v "\$1")
shift
exec $qemu -cpu core2duo "\$prog" "\$@"
END
chmod +x "$tmp/old"

"$tmp/old" ./unit/old-cpu || fail "the emulated CPU has SSE4.2"
CK_FORK=no CK_RUN_CASE=crc "$tmp/old" ./test-common
# What is tried is counted where the whole test runs.
MCBUF_WRAPPER=$tmp/old "$here/nbd/test-mcbuf-commit-cycle.py" test_cycle test_sweep | grep -v ^TRIED
