// Package gallop answers prompts with local GGUF models, and skips the parts of the model that
// a prompt does not need.
//
// # Basics
//
// There are four types to know. An [Engine] is a loaded model that answers many requests at
// once. A [Request] is a conversation and how to answer it. A [Skip] says how much of the model
// may be left out. An [Answer] is the text, what it cost, and a [Plan] of what was skipped.
//
// [Open] loads a model. [Engine.Answer] waits for an answer, [Engine.Stream] gives it piece by
// piece, and a [Session] keeps a conversation for you. A request ends with its context.
//
// What is skipped is chosen for each prompt by the model's profile, which `gallop calibrate`
// makes once. A model without a profile runs whole. [Skip] chooses otherwise: [Nothing] runs the
// whole model, [Layers] skips exactly these layers, [Depth] and [Quality] set a budget.
// [Request].Lossless gives the whole model's own answer: skipping then only makes drafts, which
// the whole model verifies.
//
// llama.cpp's libraries are fetched by libs.Install, once, and never by this package.
//
// # Caveats
//
// An engine may be used by any number of goroutines, a [Session] by one. Close the engine after
// use; what runs then ends with [ErrClosed].
//
// Answers that run at the same time share decodes. A token's logits may then differ in their
// last bits from those of an answer that runs alone, and a near tie may fall otherwise.
// [Options].Isolate excludes that on CPU, for its price.
//
// A routed answer is not the whole model's: how close it comes depends on the model and on its
// calibration. Whether a mask pays is measured while answers are written, and an answer may go
// on with the whole model, so that routed answers need not be the same each time.
// [Options].Isolate turns that off, too.
//
// An answer whose context ends comes with what was said so far, and with the context's error.
//
// Before version 1.0.0 minor versions may change this package; from then on they may not.
// Packages below internal may change at any time.
package gallop
