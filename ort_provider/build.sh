#!/bin/sh
# Build the library named, of the sources beside this file: sh build.sh FOLDER/libnpu_ort_provider.so
#
# Headers of onnxruntime 1.23 or later come from $ORT_INCLUDE, the folder with onnxruntime_c_api.h; else from an
# installed libonnxruntime-dev; else out of Debian's package, which apt brings to FOLDER/debian and nobody installs.
set -eu

sources=$(dirname "$0")
library=$1
folder=$(dirname "$library")
HEADER=onnxruntime_ep_c_api.h # which version 1.23 brought
SUITE=forky                   # Debian's first with that version

mirror() {
    sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] *\)\{0,1\}\([^ ]*\).*/\2/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -m 1 '/debian/\{0,1\}$'
}

# Into lists and a cache of its own, so that it takes no root and changes nothing of the machine's.
fetch() {
    mkdir -p "$1/lists/partial" "$1/archives/partial"
    here=$(cd "$1" && pwd)
    echo "deb $(mirror) $SUITE main" >"$here/sources.list"
    set -- -qq -o "Dir::Etc::SourceList=$here/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State::Lists=$here/lists" -o "Dir::Cache=$here" -o APT::Sandbox::User= -o Acquire::Languages=none
    apt-get "$@" update && (cd "$here" && apt-get "$@" download libonnxruntime-dev) || return 1
    dpkg-deb -x "$here"/libonnxruntime-dev_*.deb "$here" || return 1
    rm -r "$here/lists" "$here/archives"
}

include=${ORT_INCLUDE:-/usr/include/onnxruntime}
if [ -z "${ORT_INCLUDE:-}" ] && ! [ -e "$include/$HEADER" ]; then
    include=$folder/debian/usr/include/onnxruntime
    [ -e "$include/$HEADER" ] || fetch "$folder/debian" || true
fi
if ! [ -e "$include/$HEADER" ]; then
    echo "no headers of onnxruntime 1.23 or later in $include: install libonnxruntime-dev of Debian $SUITE, or name" \
        "their folder: make ort-provider ORT_INCLUDE=FOLDER" >&2
    exit 1
fi

mkdir -p "$folder"
"${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -Werror -fvisibility=hidden -fPIC -shared -isystem "$include" \
    "$sources"/*.cpp -o "$library.new"
mv "$library.new" "$library" # whole or not at all, and never into one that a program has loaded
