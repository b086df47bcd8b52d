package gallop

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// ShortlistInfo tells of a model's vocabulary shortlist: the few tokens of a vocabulary that
// get exact logits, chosen by a cheap preview of all.
type ShortlistInfo struct {
	List   *llama.Shortlist // nil = there is none, or not yet; it is the engine's
	Why    string           // the model gets none; "" = it has one or will have
	Ready  bool             // not made yet, and answers have given what it is made of: [Engine.LearnShortlist] takes a few seconds
	Size   int              // tokens that get exact logits
	States int              // hidden states that it was fitted to
	Gain   float64          // a token's time with the whole output matrix over that with it, as measured
	Share  float64          // of the output matrix in the bytes that a token needs, 0 to 1
	Pays   bool             // decoding is measurably faster with it
	Took   time.Duration    // that learning took; 0 = it was in the cache
}

// Shortlist tells of the model's vocabulary shortlist.
func (e *Engine) Shortlist() ShortlistInfo {
	if e.learner == nil {
		return ShortlistInfo{Why: "it is off"}
	}
	i := ShortlistInfo{Why: e.learner.Why(), Share: e.learner.Share()}
	if m := e.learner.Made(); m != nil {
		i.List, i.Size, i.States, i.Gain, i.Pays, i.Took = m.List, m.Size, m.States, m.Gain, m.Pays(), m.Took
	} else if i.Why == "" {
		i.Ready = e.learner.Ready()
	}
	return i
}

// LearnShortlist makes the model's vocabulary shortlist, where that is still to be done, in
// a minute or less; it is kept in the cache folder. The error wraps [llama.ErrShortlist] where
// there can be none, or is ctx's own.
func (e *Engine) LearnShortlist(ctx context.Context) error {
	if e.learner == nil {
		return fmt.Errorf("%w: it is off", llama.ErrShortlist)
	}
	return e.learner.Learn(ctx)
}

// listing is how an answer uses the vocabulary shortlist.
type listing struct {
	learner *shortlist.Learner
	size    int     // of this answer; 0 = the whole output matrix
	most    float64 // exact logits of a token, on average, up to which it pays
	used    int     // the size that this answer began with
	why     string  // this answer has none; "" = it has one
	count   llama.ShortlistUse
}

// begin settles whether the answer to come has a shortlist. What reaches outside the list
// needs the whole matrix.
func (l *listing) begin(x *answering) {
	l.learner, l.most = x.e.learner, math.Inf(1)
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
		l.size, l.most = made.Size, made.Most
	}
	l.used = l.size
}

func (l *listing) obstacle(x *answering) string {
	o := x.e.sampling(&x.r)
	switch {
	case l.learner == nil || x.r.Shortlist < 0:
		return "it is off"
	case len(x.e.loras) > 0:
		return "an adapter changes the hidden states that it was fitted to"
	case l.learner.Why() != "":
		return l.learner.Why()
	case x.r.Logprobs != 0:
		return "log-probabilities need exact logits"
	case o.Grammar != "" && o.Lazy == nil:
		return grammarWants
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

const grammarWants = "a grammar may want tokens outside the list"

// weighAfter is how many tokens are looked at before a text is found to need too many exact
// logits, and the answer goes on with the whole matrix.
const weighAfter = 16

// mask is m for the decode of a single token that another is chosen after.
func (l *listing) mask(x *answering, m skip.Mask) skip.Mask {
	if l.size > 0 && x.sampler.Constrained() {
		l.size, l.why = 0, grammarWants
	}
	if l.size > 0 && l.count.Rows >= weighAfter && float64(l.count.Exact) > l.most*float64(l.count.Rows) {
		l.size, l.why = 0, "this text needs too many exact logits"
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
