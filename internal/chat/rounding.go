package chat

import (
	"fmt"
	"math"
	"math/bits"
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// noRounding is a distance of logits that practically never decides over a token.
const noRounding = 1e-3

// compared is what is known of how batches round beside tokens decoded alone. The
// first batch of a class of lengths has the token before it in front, whose logits
// are there: that costs a row once, and no decode of its own.
type compared struct {
	classes uint    // bit i: a batch of 2^i to 2^(i+1)-1 tokens was compared
	most    float64 // distance of logits at most
}

// class is the class of batches of n tokens: kernels take 2, 4, 8 or 16 at a time.
func (c *compared) class(n int) int { return bits.Len(uint(n)) - 1 }

// known tells whether a batch of n tokens was compared.
func (c *compared) known(n int) bool { return c.classes&(1<<c.class(n)) != 0 }

// all tells whether every batch of up to n tokens was.
func (c *compared) all(n int) bool {
	wanted := uint(1)<<(c.class(n)+1) - 1<<1
	return c.classes&wanted == wanted
}

// add compares the logits of a batch's token with those of the same token alone.
func (c *compared) add(n int, batch, alone []float32) (distance float64) {
	for i, x := range batch {
		distance = max(distance, math.Abs(float64(x-alone[i])))
	}
	c.classes |= 1 << c.class(n)
	c.most = max(c.most, distance)
	return distance
}

// keepReference keeps the logits that pending was sampled from, if a batch may be
// compared with them.
func (d *drafter) keepReference() error {
	if d.same.all(d.most+1) && !d.probing {
		return nil
	}
	logits, err := d.s.ctx.Logits(d.row)
	if err == nil {
		d.reference = append(d.reference[:0], logits...)
	}
	return err
}

// comparable tells whether a batch can be compared, or need not be: the prompt's
// last token came in a batch of its own kind.
func (d *drafter) comparable() bool { return d.follows || d.same.all(d.most+1) }

// lead is how many tokens before pending go into the draft's batch. A draft may
// lose its last token, so that the batch is of the class in question.
func (d *drafter) lead() int {
	n := len(d.tokens) + 1
	if d.same.known(n) {
		return 0
	}
	if d.same.class(n+1) != d.same.class(n) {
		d.cut(len(d.tokens) - 1)
	}
	return 1
}

// verifiable decodes pending and the draft behind it, which stand at base, by the
// whole model, so that each token comes out as if it had been decoded alone. lead
// is how many tokens before pending are in the batch, to be compared.
func (d *drafter) verifiable(pending llama.Token, base, lead int) error {
	s := d.s
	d.batch = append(append(append(d.batch[:0], s.cached[base-lead:base]...), pending), d.tokens...)
	for {
		if err := s.forget(base - lead); err != nil { // what a draft left in the KV cache lacks layers
			return err
		}
		if err := s.decode(d.batch, skip.Mask{}, len(d.batch)); err != nil || lead == 0 {
			return err
		}
		logits, err := s.ctx.Logits(0)
		if err != nil {
			return err
		}
		d.learned = true
		if d.same.add(len(d.batch), logits, d.reference) <= noRounding || s.alone == llama.MultiplyAlone {
			return nil
		}
		s.alone = llama.MultiplyAlone // and what was learnt of batches is of no use
		d.same = compared{}
		d.pace.forgetBatches()
	}
}

// probe decodes pending together with the token before it, which is there already:
// that shows what a batch of two costs, and how it rounds, where no draft is cheap
// enough to find that out.
func (d *drafter) probe(g *generation, pending llama.Token) (next llama.Token, err error) {
	began, base := time.Now(), len(d.s.cached)
	d.cut(0)
	if err := d.keepReference(); err != nil {
		return llama.NoToken, err
	}
	if err := d.verifiable(pending, base, 1); err != nil {
		return llama.NoToken, err
	}
	if next, err = g.sampler.Sample(d.s.ctx, 1); err != nil {
		return llama.NoToken, err
	}
	took := time.Since(began)
	d.saw(2, took)
	d.book(1, took, d.dearest(2))
	d.row, d.singles = 1, 0
	return next, nil
}

// cut shortens the draft.
func (d *drafter) cut(n int) { d.tokens, d.class = d.tokens[:n], d.class[:n] }

// checkForgetting refuses models whose cache cannot drop single tokens.
func checkForgetting(m *llama.Model) error {
	if m.Recurrent {
		return fmt.Errorf("%w: the cache of %s forgets all or nothing, and drafts that fail must be forgotten", ErrLossless, m.Architecture)
	}
	return nil
}
