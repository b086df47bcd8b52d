// Package download fetches files over HTTP so that each is there whole and right, or not
// at all.
//
// # Basics
//
// A [Client] asks again where the network or the server may do better. [Client.File]
// fetches one file whose checksum is known; what an earlier call left goes on from where
// it was. [Token] keeps a secret to the server that it is for.
package download
