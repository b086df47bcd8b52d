// Package bench measures speed and memory of a model under masks, beside the
// whole model and, if wanted, beside files that lack the layers.
//
// # Basics
//
// [Run] measures one loaded model: every way to run it takes its turn in every
// round, so that a machine that gets slower meanwhile slows all of them. Speeds
// are medians with their range over the rounds, ratios are medians of the ratios
// within each round. [Write] prints the rows as a table or for machines.
//
// A turn is a prompt of random tokens, of which the last one's logits are wanted,
// then tokens decoded one at a time, random too: nothing is sampled, as in
// llama-bench. Unlike there the decoded tokens follow the prompt, as an answer does.
// Where a mask has a vocabulary shortlist, the tokens are built-in prompts and what the
// model goes on with: after random ones a token would need far more exact logits.
//
// # The ideal
//
// What a mask could gain at best follows from the file. A decoded token reads the
// weights of every kept half of a layer once, the output matrix, the norms and a
// row of the embedding, of experts the share that is used. With a shortlist it reads the
// preview and the list's rows in place of the output matrix. Decode is bound by
// memory, so the ideal speed-up is the whole model's bytes over the mask's. A
// prompt costs two operations for each weight and token, and for attention two
// for each pair of positions, head and element of keys and values. The output
// matrix, and the feed-forward part of the last layer, work on the prompt's last
// token alone. Sliding windows are counted as if they saw everything.
package bench
