// Package skip says which layers of a model are left out.
//
// # Basics
//
// A [Mask] is a set of sublayers, a layer's attention or its feed-forward.
// [Parse] and [Mask.String] turn it from and into text, "4,6,9-11,a5,f7"; it
// is what llama's Context.Decode takes. [Prune] writes a model file that lacks
// whole layers for good.
//
// [Greedy] searches for what to skip, given a function that measures [Losses];
// [Contiguous], [Random] and [ByInfluence] are what it is compared with. A [Log]
// keeps losses on disk, so that a search goes on where it was killed.
//
// # Caveats
//
// A mask knows nothing of a model: [Mask.Check] tells whether it fits one. Not
// every model can be skipped or pruned at will; what cannot be done exactly is
// refused.
package skip
