// Package score measures what a mask does to a model: the loss of answers, the
// distance to the whole model, and perplexity.
//
// # Basics
//
// A [Case] is an example in tokens: a prompt with one answer, or several to
// choose from. A [Scorer] owns one context of many sequences and puts many cases
// through each decode: [Scorer.Score] gives the task loss, [Scorer.Compare] the
// distance to the whole model too.
// [Accuracy], [Perplexity], [Mean], [Bootstrap] and [BootstrapPaired] sum up.
//
// Losses and log-likelihoods are in nats. An answer's tokens are those after the
// prompt's last one; whether the end of the turn is among them is the caller's choice.
//
// With a full prefill the whole model decodes the prompt, and predicts the first
// token of each answer from that pass; the answers' tokens are decoded under the
// mask and predict those after them, as where answers are generated. So an
// answer of a single token is scored the same under every mask. The prompts' keys and
// values and their last logits stay between calls: a search that scores the same
// cases under many masks decodes only the answers again, as long as all of it
// fits into [Options].
//
// # Caveats
//
// A Scorer belongs to one goroutine at a time.
//
// A token's logits depend in their last digits on what else was in the decode,
// and on where in the cache its keys lie: scores of the same case in different
// calls agree to about 1e-5 relative, not to the last bit.
package score
