#!/usr/bin/env bash
# Bundles the chat page, internal/server/web, from its sources and the packages of its lock
# file; `make page` calls it. "check" compares the bundle with what is committed instead;
# "packages" only fetches the packages.
set -euo pipefail
cd "$(dirname "$0")/.."
page=internal/server/web
work=build/web

mkdir -p $work
if ! cmp -s $page/package-lock.json $work/node_modules/.from; then
	cp $page/package.json $page/package-lock.json $work
	npm ci --prefix $work --no-audit --no-fund --loglevel=error
	cp $page/package-lock.json $work/node_modules/.from
fi
if [ "${1-}" = packages ]; then
	exit
fi

rm -rf $work/src $work/dist
cp -r $page/src $page/tsconfig.json $work
(
	# The bundler runs here so that no path of this machine gets into the bundle.
	cd $work
	node_modules/.bin/tsc -p .
	go tool esbuild src/main.ts --bundle --minify --format=esm --target=es2022 --legal-comments=none --outfile=dist/page.js --log-level=warning
	go tool esbuild src/page.css --minify --target=chrome123,firefox120,safari17.5 --outfile=dist/page.css --log-level=warning
	echo 'The chat page contains these packages. Their licences follow.' >dist/notices.txt
	for package in diff dompurify highlight.js marked; do
		printf '\n\n== %s %s ==\n\n' $package "$(node -p "require('./node_modules/$package/package.json').version")"
		cat node_modules/$package/LICENSE
	done >>dist/notices.txt
)
if [ "${1-}" != check ]; then
	cp $work/dist/* $page/dist/
elif ! diff -rq $work/dist $page/dist; then
	echo "$page/dist is not what its sources give: run make page" >&2
	exit 1
fi
