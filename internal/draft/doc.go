// Package draft makes lossless answers faster: a model without some of its layers drafts a few
// tokens, or they are looked up in what was said before, and the whole model verifies them.
//
// # Basics
//
// A [Drafter] generates an answer in a [Sequence], whose text is the whole model's own. It
// belongs to one answer at a time and keeps what it learns of the machine and of the masks.
//
// # Caveats
//
// Times are measured where no other answer shares the decodes; beside others, tokens are
// decoded one at a time. A drafter belongs to one goroutine at a time.
package draft

import (
	"errors"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// ErrLossless is returned where drafts cannot be made or verified.
var ErrLossless = errors.New("cannot answer losslessly")

// Sequence is where an answer's tokens are decoded.
type Sequence interface {
	// Decode appends tokens under mask; the last outputs of them have logits.
	Decode(tokens []llama.Token, mask skip.Mask, outputs int) error
	Forget(n int)                // drops the positions from n on
	Len() int                    // tokens that it holds
	Tokens() []llama.Token       // these; valid until the next Decode
	Room() int                   // tokens that still fit
	Most() int                   // tokens that one Decode takes with logits for each
	Row(i int) int               // place of output i of the last Decode in the context, -1 for the last one
	Context() *llama.Context     // to read outputs from
	Alone() bool                 // no other answer took part in the last Decode
	Isolate(how llama.Isolation) // how exactly tokens come out as if each were decoded alone, from now on
}

// Answer is the text in the making.
type Answer interface {
	// Take appends a token that was chosen by output row of the last Decode, -1 for the
	// last one; more is false when it has ended the answer.
	Take(t llama.Token, row int, drafted bool) (more bool)
	Room() int // tokens that the answer may still have
}
