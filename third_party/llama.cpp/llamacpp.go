// Package llamacpp holds the lock files that pin llama.cpp's published
// binaries, one npm package per platform, and the C header of what Gallop calls
// in them. Nothing of llama.cpp itself is here.
package llamacpp

import "embed"

// Locks holds npm/<device>/package.json and package-lock.json for each device:
// cpu, vulkan, cuda, metal. The lock files carry the packages' hashes.
//
//go:embed npm
var Locks embed.FS
