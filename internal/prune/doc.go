// Package prune writes model files that lack whole layers for good.
//
// # Basics
//
// [Layers] copies a model file without the given layers. Any llama.cpp program loads
// the copy. [KeyPruned] records which layers are gone.
//
// # Caveats
//
// Only whole layers can be left out of a file; half layers are skipped at run time.
// Not every architecture can be pruned: what cannot be done exactly is refused with
// [ErrUnprunable].
package prune
