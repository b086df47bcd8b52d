// Package server answers requests over HTTP: OpenAI's API, Anthropic's, and the one of
// llama.cpp's own server.
//
// # Basics
//
// A [Server] has [Model]s, each with an [Engine] while it is loaded. It is an
// [http.Handler]; [Server.Serve] runs it on a listener until a context ends. The dialects are
// packages of their own, which know no HTTP.
//
// # Caveats
//
// Web pages of others must not reach a server on this machine through its user's browser:
// see guard.go for the rules.
package server
