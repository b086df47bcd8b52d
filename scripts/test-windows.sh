#!/usr/bin/env bash
# test-windows.sh BUILD: builds the Windows program and runs it under wine in a prefix of its
# own. `make test-windows` calls it. All that it makes is below BUILD/windows.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath "$1")/windows

for program in x86_64-w64-mingw32-gcc wine wineserver; do
	if ! command -v "$program" >/dev/null; then
		echo "$program is missing: get it with \`apt install --no-install-recommends wine wine64 gcc-mingw-w64-x86-64-win32\`" >&2
		exit 1
	fi
done

mkdir -p "$folder"
go build -trimpath -o "$folder/" ./cmd/gallop ./scripts/logits
(
	export GOOS=windows GOARCH=amd64 CGO_ENABLED=1 CC=x86_64-w64-mingw32-gcc
	go build -trimpath -o "$folder/" ./cmd/gallop ./scripts/logits
	# Wine 8 has not the newer way to delete files, and answers that in a way for which Go does not
	# try the older one. The tests' folders are deleted by that one.
	newer=$(go env GOROOT)/src/internal/syscall/windows/at_windows.go
	sed 's/^var TestDeleteatFallback bool$/var TestDeleteatFallback = true/' "$newer" >"$folder/at_windows.go"
	printf '{"Replace": {"%s": "%s"}}\n' "$newer" "$folder/at_windows.go" >"$folder/overlay.json"
	go test -c -overlay "$folder/overlay.json" -o "$folder/llama.test.exe" ./llama
)

export WINEPREFIX=$folder/prefix WINEDEBUG=-all DISPLAY=
export WINEDLLOVERRIDES='mscoree=;mshtml=' # nothing here is written for .NET or a browser
rm -rf "$WINEPREFIX"
wineboot --init
wineserver --wait
x86_64-w64-mingw32-gcc -O2 -shared -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" test/wine/testdata/bcryptprimitives.c -ladvapi32
math=(-O2 -ffp-contract=off -fno-builtin -shared)
x86_64-w64-mingw32-gcc "${math[@]}" -o "$WINEPREFIX/drive_c/windows/system32/gallop-wine-math-functions.dll" test/wine/testdata/angles.c test/wine/testdata/angles.def
cc "${math[@]}" -fPIC -o "$folder/angles.so" test/wine/testdata/angles.c

npm_config_registry=$(npm config get registry) # npm's configuration is not in the prefix
export npm_config_registry
wine "$folder/gallop.exe" setup
GALLOP_WINE=$folder go test -count 1 -timeout 4h -v ./test/wine
