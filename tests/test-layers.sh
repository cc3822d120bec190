#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Every #include points down:
#
#     tools/, plugin/  ->  replica/  ->  buffers/, journal/  ->  common/
#
# and the header of each library is used only where DESIGN has it.

set -u

# Layers of one rank know nothing of each other.
rank ()
{
    case $1 in
        common) echo 0 ;;
        buffers | journal) echo 1 ;;
        replica) echo 2 ;;
        plugin | tools) echo 3 ;;
        *) echo unknown ;;
    esac
}

# Where a library's header may be included; nothing for one that anybody may.
home_of ()
{
    case $1 in
        sqlite3.h) echo " journal " ;;
        nbdkit-plugin.h | nbdkit-*) echo " plugin " ;;
        libnbd.h) echo " tools replica " ;;
        isa-l/* | isa-l.h | crc.h) echo " common " ;;
    esac
}

# Check the tree at $1: a line for each arrow that is wrong.
check ()
{
    local dir file line inc to homes
    for dir in common buffers journal replica plugin tools; do
        for file in "$1/$dir"/*.[ch]; do
            [ -f "$file" ] || continue
            while read -r line; do
                inc=$(sed -E 's/^.*include[[:space:]]*[<"]([^>"]*)[>"].*$/\1/' \
                          <<<"$line")
                case $line in
                    *\"config.h\"*) continue ;;
                    *\"*)
                        to=${inc%%/*}
                        if [ "$to" = "$inc" ]; then
                            echo "$dir/${file##*/}: \"$inc\" does not name its folder"
                        elif [ "$(rank "$to")" = unknown ]; then
                            echo "$dir/${file##*/}: \"$inc\" is of no layer"
                        elif [ "$to" != "$dir" ] &&
                             [ "$(rank "$to")" -ge "$(rank "$dir")" ]; then
                            echo "$dir/${file##*/}: \"$inc\" points up or sideways"
                        fi
                        ;;
                    *)
                        homes=$(home_of "$inc")
                        if [ -n "$homes" ] && [[ $homes != *" $dir "* ]]; then
                            echo "$dir/${file##*/}: <$inc> belongs in$homes"
                        fi
                        case ${inc%%/*} in
                            common | buffers | journal | replica | plugin | tools)
                                echo "$dir/${file##*/}: <$inc> is ours: use quotes" ;;
                        esac
                        ;;
                esac
            done < <(grep -E '^[[:space:]]*#[[:space:]]*include' "$file")
        done
    done
}

# First see that a wrong arrow is found.
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
wrong=(
    'common/a.c:"buffers/map.h"'
    'buffers/a.c:"journal/journal.h"'
    'journal/a.h:"buffers/map.h"'
    'journal/a.c:"replica/replica.h"'
    'replica/a.c:"plugin/plugin.h"'
    'plugin/a.c:"tools/tool.h"'
    'tools/a.c:"plugin/plugin.h"'
    'buffers/a.c:"map.h"'
    'buffers/a.c:"../journal/journal.h"'
    'replica/a.c:<sqlite3.h>'
    'tools/a.c:<sqlite3.h>'
    'replica/a.c:<nbdkit-plugin.h>'
    'plugin/a.c:<libnbd.h>'
    'journal/a.c:<isa-l/crc.h>'
    'tools/a.c:<common/io.h>'
)
for w in "${wrong[@]}"; do
    rm -rf "$tmp/tree"
    mkdir -p "$tmp/tree/${w%%/*}"
    printf '#include "config.h"\n  #  include %s\n' "${w#*:}" \
        > "$tmp/tree/${w%%:*}"
    if [ "$(check "$tmp/tree" | wc -l)" -ne 1 ]; then
        echo "$0: #include ${w#*:} in ${w%%:*} was not found"
        exit 1
    fi
done
mkdir -p "$tmp/good/plugin" "$tmp/good/journal" "$tmp/good/tools"
printf '#include <nbdkit-plugin.h>\n#include "replica/replica.h"\n' \
    > "$tmp/good/plugin/a.c"
printf '#include <sqlite3.h>\n#include "journal/b.h"\n#include "common/io.h"\n' \
    > "$tmp/good/journal/a.c"
printf '#include <libnbd.h>\n#include "replica/recover.h"\n' \
    > "$tmp/good/tools/a.c"
if [ -n "$(check "$tmp/good")" ]; then
    echo "$0: a good tree is refused:"
    check "$tmp/good"
    exit 1
fi

top=$(cd "${srcdir:-$(dirname "$0")}/.." && pwd) || exit 1
if [ ! -f "$top/common/io.h" ] || [ ! -f "$top/buffers/map.c" ]; then
    echo "$0: $top is not the source tree"
    exit 1
fi
found=$(check "$top")
if [ -n "$found" ]; then
    echo "$found"
    exit 1
fi
