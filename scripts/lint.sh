#!/usr/bin/env bash
# Checks the sources; `make lint` calls it. Each check names what it dislikes,
# and the first that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "gofmt"
unformatted=$(gofmt -l .)
if [ -n "$unformatted" ]; then
	gofmt -d .
	printf 'not formatted, run gofmt -w on:\n%s\n' "$unformatted" >&2
	exit 1
fi

echo "go vet"
go vet ./...
go vet -tags man ./cmd/gallop
go vet -C scripts/yzmaloop ./... # a module of its own

echo "staticcheck"
go tool staticcheck ./...

echo "shellcheck"
if ! command -v shellcheck >/dev/null; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo 'shellcheck is missing: get it with apt install shellcheck' >&2
		exit 1
	fi
	apt-get update -qq
	apt-get install -y -qq shellcheck >/dev/null
fi
scripts=()
for file in .ci/* scripts/* deploy/calibrate/*; do
	if [ -f "$file" ] && head -n 1 "$file" | grep -qE '^#!.*\b(ba)?sh\b'; then
		scripts+=("$file")
	fi
done
shellcheck "${scripts[@]}"

echo "actionlint"
go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

echo "chat page"
scripts/page.sh check

echo "C"
compile() {
	"${CC:-cc}" -std=c11 -O2 -Wall -Wextra -Werror -fPIC -Ithird_party/llama.cpp/include -Ithird_party/layerskip \
		-c -o /dev/null "$@"
}
compile third_party/layerskip/layerskip.c
compile -DLAYERSKIP_PRELOAD third_party/layerskip/layerskip.c
compile third_party/layerskip/rows.c
compile third_party/layerskip/barrier.c
compile third_party/layerskip/memory.c
compile llama/glue.c
compile llama/system_unix.c
compile llama/faults_linux.c
compile llama/allowance.c
compile llama/testdata/machofinder.c
compile llama/neurons.c
compile llama/shortlist.c
compile scripts/cloop.c
compile internal/archmodel/tensors/tensors.c
