// Package wire has what the server's dialects share: a [Call] is a request of a client, a
// [Step] and a [Result] are what its answers consist of, and a [Reply] writes these as
// one dialect's bytes. It reads JSON strictly: what is not known is refused by name.
// There is no HTTP in it.
package wire
