// Package llama drives stock llama.cpp from Go, with a mask of layers to skip
// for every decode. It is the only package with cgo.
//
// # Basics
//
// [Load] opens llama.cpp's shared libraries, once a process. A [Model] is a
// GGUF file in memory, with its [Vocab] and chat template; a [Context] is its
// working state with the KV cache. A [Batch] of tokens goes through
// [Context.Decode] under a mask; [Context.Logits] reads the result, and a
// [Sampler] chooses the next token from it. A [Detokenizer] turns tokens back
// into text.
//
// Package skip has the masks, as value and as text. An empty mask is stock
// llama.cpp. The sequences of one batch may have masks of their own, set with
// [Batch.SetMask]: each comes out as if it were decoded alone under its mask, and
// the batch costs what its sequences keep together. They need a context with KVUnified, a batch of
// NUBatch tokens at most, and each sequence's tokens side by side.
//
// # Caveats
//
// Slices from [Context.Logits] and [Context.Embedding] are C's memory, valid
// until the context's next Decode or Close.
//
// Model, Context, Batch, Sampler and LoRA own C memory: Close them, in any
// order; a second Close does nothing. A context belongs to one goroutine at a
// time. Models and vocabularies are shared freely.
//
// Linux only so far: on macOS the linker binds llama.cpp's calls to its own
// library, so the hook that applies masks has to be put there in another way.
package llama
