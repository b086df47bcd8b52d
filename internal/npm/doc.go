// Package npm fetches packages of an npm registry without npm.
//
// # Basics
//
// [Configure] reads npm's own configuration: which registry a scope has, its token, the
// proxy and the certificates. [Unpack] takes a package's archive apart.
//
// # Caveats
//
// A project's .npmrc is part of a folder that anyone may have made. Only its registries
// count, without variables of the environment.
package npm
