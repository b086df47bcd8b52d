#!/usr/bin/env bash
# install.sh BUILD PREFIX: puts the program and llama.cpp's libraries, as
# `gallop setup` fetched them, below PREFIX. `make install` calls it. The
# program finds ../lib/gallop from where it is, so PREFIX can be moved.
set -euo pipefail
build=$1
prefix=$2

# "cpu: already installed in /home/me/.cache/…"
libraries=$("$build/gallop" setup | sed -n 's/^.* installed in //p')

install -d "$prefix/bin" "$prefix/lib/gallop"
install -m 755 "$build/gallop" "$prefix/bin/"
install -m 644 "$libraries"/lib{ggml,llama}* "$build/libgallop-skip.so" "$prefix/lib/gallop/"
install -m 644 "$libraries/../../LICENSE" "$prefix/lib/gallop/LICENSE.llama.cpp"
echo "installed $prefix/bin/gallop and $prefix/lib/gallop"
