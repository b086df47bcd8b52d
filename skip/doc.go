// Package skip says which parts of a model a decode leaves out. It is a value and
// its text, and imports nothing of this project.
//
// # Basics
//
// A [Mask] is a set of sublayers: a layer's attention, its feed-forward, or both.
// [Parse] and [Mask.String] turn a mask from and into text, "4,6,9-11,a5,f7,k8,l0-3". A mask
// is what llama's Context.Decode takes. [Prefill] says whether a prompt is decoded
// under the mask of its answer.
//
// # Caveats
//
// A mask knows nothing of a model: [Mask.Check] tells whether it fits one. Not
// every model can skip everything; llama refuses what it cannot skip exactly.
package skip
