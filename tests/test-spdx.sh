#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Every source file says under which licence it is, in its first lines.

set -u

top=$(cd "${srcdir:-$(dirname "$0")}/.." && pwd) || exit 1
cd "$top" || exit 1

# What is tracked, or, unpacked from a tarball, what is there and was not generated.
list ()
{
    if [ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$top" ]; then
        git ls-files
    else
        find . -type f -print | sed 's,^\./,,' |
            grep -vE '(^|/)(build[^/]*|autom4te\.cache|m4|\.deps|\.libs)/' |
            grep -vE '(^|/)(Makefile\.in|Makefile|aclocal\.m4|configure|libtool|config\.(h|h\.in|log|status)|stamp-h1?)~?$'
    fi
}

is_source ()
{
    case $1 in
        *.c | *.h | *.sh | *.sh.in | *.py | *.pl | *.am | *.mk | *.ac | *.pod | \
        *.pod.in | *.syms | *.map | *.yml | *.yaml | *.service | *.in)
            return 0 ;;
        *.md | *.txt | *.json | *.csv | *.svg | *.png)
            return 1 ;;
    esac
    # Anything else that is a script.
    [ "$(head -c 2 "$1" | tr -d '\0')" = '#!' ]
}

n=0 bad=0
while read -r file; do
    if [ ! -f "$file" ] || ! is_source "$file"; then
        continue
    fi
    n=$((n + 1))
    if ! head -n 5 "$file" |
            grep -q 'SPDX-License-Identifier: BSD-3-Clause'; then
        echo "$file: no SPDX-License-Identifier line at its top"
        bad=$((bad + 1))
    fi
done < <(list)

if [ "$n" -lt 30 ]; then
    echo "$0: only $n source files found in $top"
    exit 1
fi
[ "$bad" -eq 0 ]
