// Package engine decodes many answers at once: one goroutine owns the llama.cpp context.
//
// # Basics
//
// A [Loop] owns a context with room for several sequences. An answer enters with its prompt
// and gets a [Seat]: a sequence that holds as much of the prompt as the cache had already.
// The answer's own goroutine then asks for one decode after the other with [Seat.Decode] and
// reads the results in between. While any seated answer reads, the loop waits; when all have
// asked, their tokens go through one decode together: a token of each running answer, drafts
// to be verified among them, and pieces of the prompts of others. So an answer is written as
// if it were alone, and shares each reading of the weights with all that run beside it.
//
// # Caveats
//
// An answer that waits for something else than a decode says so with [Seat.Away], or it holds
// up the others. Outputs are valid until the answer's next call of Decode or Away. Rows under
// different masks share a decode where the patch can keep each exact and that is
// cheaper; otherwise their decodes take turns.
package engine
