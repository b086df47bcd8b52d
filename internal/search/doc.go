// Package search finds out which sublayers a model can do without.
//
// # Basics
//
// A [Unit] is what a search skips at once, with its share of the model's weights:
// [SizesOf] adds up the weights, [LayerUnits] and [SublayerUnits] list the units.
// [Greedy] searches for what to skip, given a function that measures [Losses];
// [Contiguous], [Random] and [ByInfluence] are what it is compared with. A [Log]
// keeps losses on disk, so that a search goes on where it was killed.
//
// # Caveats
//
// Losses must give the same value for the same example each time: a search compares
// values that were measured at different times.
package search
