// Package compare runs prompts through the whole model and, beside it, in other
// ways, and shows what that saves and what it costs.
//
// # Basics
//
// A [Way] is how to run the model: a profile with its policy, or a mask. [Run]
// answers each prompt in every way and gives a [Result], which is what
// `gallop compare --json` prints. [Result.HTML] makes a page of it that needs no
// other file and no network, and [Result.Table] the summary for the terminal.
//
// # Caveats
//
// Answers are timed one at a time on an empty KV cache, as a user gets the first
// answer of a conversation, and the ways take turns in going first.
//
// Agreement and divergence are measured at the tokens of stock's answer, each
// given those before it. Under escalation a token that the way would leave to
// the whole model counts as agreed; that the whole model's keys and values then
// take the place of the way's is not followed there. It is in the answers.
package compare
