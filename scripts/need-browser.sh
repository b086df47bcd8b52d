#!/usr/bin/env bash
# Gets a browser for the tests that open a page; `make test` calls it. Where none
# can be had, those tests are skipped and say so.
set -euo pipefail

for browser in chromium chromium-browser google-chrome; do
	if command -v "$browser" >/dev/null; then
		exit 0
	fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo 'fetching chromium for the tests that open a page'
	install=(apt-get install -y -qq --no-install-recommends chromium)
	if DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null 2>&1 ||
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${install[@]}"; } >/dev/null 2>&1; then
		exit 0
	fi
fi
echo 'there is no chromium: tests that open a page will be skipped; get it with apt install chromium' >&2
