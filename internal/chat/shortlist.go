package chat

import (
	"errors"

	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// listing is how a session uses the vocabulary shortlist.
type listing struct {
	learner *shortlist.Learner // nil = never; the session does not close it
	adapted bool               // an adapter changes the hidden states
	wanted  int                // tokens, as the user set it; 0 = as measured, where it pays
	size    int                // of this answer; 0 = the whole output matrix
	doubt   float64            // share of tokens in doubt up to which it pays
	used    int                // the size that this answer began with
	why     string             // this answer has none; "" = it has one
	before  llama.ShortlistUse // when this answer began
}

// Listed tells what the vocabulary shortlist did for an answer.
type Listed struct {
	Size     int    // tokens with exact logits; 0 = all, from the whole output matrix
	Rows     int    // tokens of the answer that were chosen from a shortlist
	Extended int    // of these, those in doubt, whose list was made longer
	Exact    int    // exact logits of all of these together
	Why      string // there was no shortlist; "" = there was one
}

// begin settles whether the answer to come has a shortlist. What reaches outside the
// list needs the whole matrix.
func (l *listing) begin(s *Session) {
	l.size, l.used, l.doubt, l.before = 0, 0, 1, s.ctx.ShortlistUse()
	if l.why = l.obstacle(&s.opts.Sampling); l.why != "" {
		return
	}
	made, err := l.learner.Use(s.ctx)
	switch {
	case err != nil:
		l.why = err.Error()
	case made == nil:
		l.why = "it is not learnt yet"
	case l.wanted == 0 && !made.Pays():
		l.why = "decoding is no faster with one on this machine"
	case l.wanted > 0:
		l.size = l.wanted
	default:
		l.size, l.doubt = made.Size, made.Doubt
	}
	l.used = l.size
}

func (l *listing) obstacle(o *llama.Sampling) string {
	switch {
	case l.learner == nil:
		return "it is off"
	case l.adapted:
		return "an adapter changes the hidden states that it was fitted to"
	case l.learner.Why() != "":
		return l.learner.Why()
	case o.Grammar != "":
		return "a grammar may want tokens outside the list"
	case o.LookBack() > 0:
		return "penalties may lift tokens outside the list"
	}
	for _, bias := range o.LogitBias {
		if bias > 0 {
			return "a logit bias may lift tokens outside the list"
		}
	}
	return ""
}

// doubtAfter is how many tokens are looked at before a text is found to leave too many
// in doubt, and the answer goes on with the whole matrix.
const doubtAfter = 16

// mask is m for the decode of a single token that another is chosen after.
func (l *listing) mask(m skip.Mask, c *llama.Context) skip.Mask {
	if use := c.ShortlistUse().Since(l.before); l.size > 0 && use.Rows >= doubtAfter && float64(use.Extended) > l.doubt*float64(use.Rows) {
		l.size, l.why = 0, "too many tokens of this text were in doubt"
	}
	return m.WithShortlist(l.size)
}

// work is a token's share of the whole model's, when layers is that of its layers.
func (l *listing) work(mask skip.Mask, layers float64) float64 {
	if l.learner == nil || l.learner.Made() == nil {
		return layers
	}
	matrix := l.learner.Share()
	if mask.Shortlist() == 0 {
		return layers*(1-matrix) + matrix
	}
	return layers*(1-matrix) + max(matrix-1+1/l.learner.Made().Gain, 0)
}

// refused ends the answer's use of the shortlist where the model's graph does not
// allow it, and reports whether it did.
func (l *listing) refused(err error) bool {
	if l.size == 0 || !errors.Is(err, llama.ErrMask) {
		return false
	}
	l.size, l.used, l.why = 0, 0, err.Error()
	return true
}

// see lets the learner learn from the last decode, which had one output.
func (l *listing) see(c *llama.Context) {
	if l.learner != nil && !l.adapted {
		l.learner.See(c)
	}
}

// end gives the answer's account.
func (l *listing) end(c *llama.Context) Listed {
	use := c.ShortlistUse().Since(l.before)
	return Listed{Size: l.used, Rows: use.Rows, Extended: use.Extended, Exact: use.Exact, Why: l.why}
}
