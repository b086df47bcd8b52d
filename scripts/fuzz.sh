#!/usr/bin/env bash
# fuzz.sh TIME: runs each fuzz test for TIME (30s, 5m). `make fuzz` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
time=$1

grep -rE --include='*_test.go' '^func Fuzz' . | while IFS=: read -r file line; do
	name=${line#func }
	name=${name%%(*}
	echo "$(dirname "$file") $name"
	# Without a bound go spends a minute on making each new input smaller.
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 20x "$(dirname "$file")" </dev/null
done
