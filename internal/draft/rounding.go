package draft

import (
	"fmt"
	"math"
	"strings"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// compared is what is known of how batches round beside tokens decoded alone. The
// first batch of each size has the token before it in front, whose logits are
// there: that costs a row once, and no decode of its own.
type compared struct {
	sizes  uint    // bit n: a batch of n tokens was compared
	most   float64 // distance of logits at most
	anyway bool    // whatever is computed as for one token, logits differ
}

// known tells whether a batch of n tokens was compared.
func (c *compared) known(n int) bool { return c.sizes&(1<<n) != 0 }

// add compares the logits of a token of a batch of n with those of the same one alone.
func (c *compared) add(n int, batch, alone []float32) {
	for i, x := range batch {
		c.most = max(c.most, math.Abs(float64(x-alone[i])))
	}
	c.sizes |= 1 << n
}

// apart is how much more work a token with logits is than one without, as a factor;
// 0 where a prompt does not tell what a few tokens cost: each of them may read
// experts of its own, and in a verification k-quants are multiplied one by one.
func apart(m *llama.Model) float64 {
	const few = 0.25 // of the bytes
	var all, kQuants uint64
	for _, t := range m.Tensors {
		if strings.Contains(t.Name, "_exps.") {
			return 0
		}
		if all += uint64(t.Size); strings.HasSuffix(t.Type, "_K") {
			kQuants += uint64(t.Size)
		}
	}
	if float64(kQuants) > few*float64(all) {
		return 0
	}
	var layers skip.Mask
	for layer := range m.NLayer {
		layers = layers.With(layer, skip.Whole)
	}
	return 1 / max(skippedShare(m, layers), 0.01)
}

// keepReference keeps the logits that pending was sampled from: those of the token
// before it in a batch must be the same.
func (d *Drafter) keepReference() error {
	logits, err := d.seq.Context().Logits(d.seq.Row(d.row))
	if err == nil {
		d.reference = append(d.reference[:0], logits...)
	}
	return err
}

// leastLead is how many tokens must lie between the prompt and a draft: as many may
// be decoded again with it. The prompt's own came in batches of another kind.
const leastLead = columns - 1

// lead is how many tokens before pending, which is one of them, fill up the draft's
// batch. Where its size was not compared yet, that is one at least, and the draft
// may lose its last token for that.
func (d *Drafter) lead() int {
	n := len(d.tokens) + 1
	size := batchSize(n)
	switch {
	case d.fixed && d.same.sizes != 0:
		return 0
	case d.fixed:
		return 1
	case d.same.known(size) || size > n:
	case n == 2:
		size = columns
	default:
		d.cut(len(d.tokens) - 1)
		n--
	}
	return size - n
}

// verifiable decodes pending and the draft behind it, which stand at base, by the
// whole model, so that each token comes out as if it had been decoded alone. lead
// is how many tokens before pending are in the batch, to be compared.
func (d *Drafter) verifiable(pending llama.Token, base, lead int) error {
	d.batch = append(append(append(d.batch[:0], d.seq.Tokens()[base-lead:base]...), pending), d.tokens...)
	for {
		d.seq.Forget(base - lead) // what a draft left in the KV cache lacks layers
		if err := d.decode(d.batch, skip.Mask{}, len(d.batch)); err != nil || lead == 0 {
			return err
		}
		logits, err := d.seq.Context().Logits(d.seq.Row(lead - 1))
		if err != nil {
			return err
		}
		d.learned = d.learned || !d.same.known(len(d.batch))
		if d.same.add(len(d.batch), logits, d.reference); d.same.most == 0 || d.same.anyway {
			return nil
		}
		switch d.isolation { // and what was learnt of batches is of no use
		case llama.AttentionAlone:
			d.isolation = llama.ProductsUntiled
		case llama.ProductsUntiled:
			d.isolation = llama.AllAlone
		default: // such as on a GPU: these steps only cost time
			d.isolation = llama.AttentionAlone
		}
		d.seq.Isolate(d.isolation)
		d.same = compared{anyway: d.isolation == llama.AttentionAlone}
		d.costs.apart = 0
		d.costs.forgetBatches()
	}
}

// cut shortens the draft.
func (d *Drafter) cut(n int) { d.tokens, d.class = d.tokens[:n], d.class[:n] }

// checkForgetting refuses models whose cache cannot drop single tokens.
func checkForgetting(m *llama.Model) error {
	if m.Recurrent {
		return fmt.Errorf("%w: the cache of %s forgets all or nothing, and drafts that fail must be forgotten", ErrLossless, m.Architecture)
	}
	return nil
}
