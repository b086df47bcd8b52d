// Package shortlist makes, keeps and improves a model's vocabulary shortlist: the
// output matrix, a fifth to three quarters of a small model's bytes, answers from a
// preview of a few hundred dimensions, and exactly for the tokens that the preview
// ranks first (package llama's Shortlist).
//
// A [Learner] needs no calibration by the user. It collects the final hidden states of
// answers that are given anyway and, while nobody waits, of built-in prompts; from 200
// states on it fits a preview, measures on other prompts how far the preview can be
// trusted and what it saves, and keeps the result in the user's cache folder. Only sums
// of products of hidden states are kept, never text.
package shortlist
