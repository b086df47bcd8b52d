// Package router chooses which layers a prompt can do without.
//
// # Basics
//
// [Features] turn a [Prompt] into a vector, as a [FeatureSpec] says: hashed
// n-grams of its text, and the mean of its tokens' embeddings, read from the model
// file. A [Predictor], trained by [Train], predicts from it how
// much each [Candidate] mask raises the task loss over the whole model.
// [Novelty] tells how unlike the calibration prompts a prompt is. A [Profile]
// holds all that for one model, with the omission sets themselves, and
// [Profile.Choose] makes a [Decision] under a [Policy]: always so many layers, as
// PuDDing does, or as many as a wanted quality allows.
//
// [Profile.Write] and [Read] keep a profile in a GGUF file beside the model;
// [Find] finds it, [Profile.Open] refuses it for any other model. [KMeans] makes
// tasks of prompts that have none.
//
// # Caveats
//
// Once a Profile is open, any number of goroutines may choose by it: a Predictor,
// Features and a Novelty are only read, and the rows of the embedding table that are
// kept have a lock.
//
// Only the first and the last 512 tokens and 4 KB of text of a prompt count.
//
// The same data, options and seed give the same profile bytes on one machine.
// Other processors may round the sums of the training differently in the last bit.
package router
