package gallop

import (
	"errors"

	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// listing is how an answer uses the vocabulary shortlist.
type listing struct {
	learner *shortlist.Learner
	size    int     // of this answer; 0 = the whole output matrix
	doubt   float64 // share of tokens in doubt up to which it pays
	used    int     // the size that this answer began with
	why     string  // this answer has none; "" = it has one
	count   llama.ShortlistUse
}

// begin settles whether the answer to come has a shortlist. What reaches outside the list
// needs the whole matrix.
func (l *listing) begin(x *answering) {
	l.learner, l.doubt = x.e.learner, 1
	if l.why = l.obstacle(x); l.why != "" {
		return
	}
	var made *shortlist.Made
	var err error
	if closed := x.e.loop.Do(func(c *llama.Context) { made, err = l.learner.Use(c) }); closed != nil {
		err = closed
	}
	switch wanted := x.r.Shortlist; {
	case err != nil:
		l.why = err.Error()
	case made == nil:
		l.why = "it is not learnt yet"
	case wanted == 0 && !made.Pays():
		l.why = "decoding is no faster with one on this machine"
	case wanted > 0:
		l.size = wanted
	default:
		l.size, l.doubt = made.Size, made.Doubt
	}
	l.used = l.size
}

func (l *listing) obstacle(x *answering) string {
	o := x.e.model.Sampling()
	if x.r.Sampling != nil {
		o = *x.r.Sampling
	}
	switch {
	case l.learner == nil || x.r.Shortlist < 0:
		return "it is off"
	case len(x.e.loras) > 0:
		return "an adapter changes the hidden states that it was fitted to"
	case l.learner.Why() != "":
		return l.learner.Why()
	case x.r.Logprobs != 0:
		return "log-probabilities need exact logits"
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

// doubtAfter is how many tokens are looked at before a text is found to leave too many in
// doubt, and the answer goes on with the whole matrix.
const doubtAfter = 16

// mask is m for the decode of a single token that another is chosen after.
func (l *listing) mask(m skip.Mask) skip.Mask {
	if l.size > 0 && l.count.Rows >= doubtAfter && float64(l.count.Extended) > l.doubt*float64(l.count.Rows) {
		l.size, l.why = 0, "too many tokens of this text were in doubt"
	}
	return m.WithShortlist(l.size)
}

// refused ends the answer's use of the shortlist where the model's graph does not allow
// it, and reports whether it did.
func (l *listing) refused(err error) bool {
	if l.size == 0 || !errors.Is(err, llama.ErrMask) {
		return false
	}
	l.size, l.used, l.why = 0, 0, err.Error()
	return true
}

// see counts the row of a decode under mask that had one output, and lets the learner learn
// from a decode of nothing else.
func (l *listing) see(x *answering, mask skip.Mask) {
	if mask.Shortlist() > 0 {
		use := x.seat.Context().ListedAt(x.seat.Row(-1))
		l.count.Rows += use.Rows
		l.count.Extended += use.Extended
		l.count.Exact += use.Exact
	}
	if l.learner != nil && len(x.e.loras) == 0 && x.seat.Alone() {
		l.learner.See(x.seat.Context())
	}
}

// end gives the answer's account.
func (l *listing) end() Listed {
	return Listed{Size: l.used, Rows: l.count.Rows, Extended: l.count.Extended, Exact: l.count.Exact, Why: l.why}
}
