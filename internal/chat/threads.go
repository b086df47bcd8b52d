package chat

import (
	"cmp"
	"fmt"
	"time"

	"github.com/gallop-llm/gallop/internal/threads"
	"github.com/gallop-llm/gallop/skip"
)

// pacer gives each decode of a session the number of threads that is fastest now.
// Prompts always get all of them: a thread without a core holds up the others for
// a moment then, not for a good part of each node.
type pacer struct {
	threads.Controller
	batch int // threads for prompts
	now   int // threads that the context is set to, for both
}

// newPacer is nil where the number is fixed or there is nothing to choose.
func newPacer(s *Session) *pacer {
	o, most := &s.opts.Context, s.model.DefaultThreads()
	if o.Threads != 0 || most < 2 {
		return nil
	}
	return &pacer{Controller: *threads.New(most), batch: cmp.Or(o.ThreadsBatch, most)}
}

// sameUpTo is how many cached tokens there may be for a token to get the same
// logits on any number of threads. llama.cpp rounds them up to 256, and from 512 on
// its flash attention gives each thread a share of them and adds up the results.
const sameUpTo = 256

// compute decodes the session's batch. A draft that is verified is as short of
// work for many threads as a single token. What is to be the plain answer bit for
// bit has one number wherever that could change the bits.
func (s *Session) compute(mask skip.Mask) error {
	p, n := s.pacer, s.batch.Len()
	if p == nil {
		return s.ctx.Decode(s.batch, mask)
	}
	want, chosen := p.batch, n <= mostRows
	switch {
	case chosen && s.drafter != nil && len(s.cached)+n > sameUpTo:
		want, chosen = p.Most(), false
	case chosen:
		want = p.Threads()
	}
	if want != p.now {
		if err := s.ctx.SetThreads(want, want); err != nil {
			return err
		}
		p.now = want
	}
	start, stalled := time.Now(), s.ctx.Stalled()
	err := s.ctx.Decode(s.batch, mask)
	if chosen && n == 1 && err == nil {
		p.Observe(s.list.work(mask, LayersUsed(mask, s.model.NLayer)/float64(s.model.NLayer)), time.Since(start), s.ctx.Stalled()-stalled)
	}
	return err
}

// Threads is how many threads tokens are decoded with now, and how often that
// has changed in this session; 0 = their number is fixed.
type Threads struct {
	Now     int
	Most    int
	Changes int
	Crowded bool // threads wait for others that other programs keep from running
}

func (s *Session) threads() Threads {
	if p := s.pacer; p != nil {
		return Threads{p.Settled(), p.Most(), p.Changes(), p.Crowded()}
	}
	return Threads{}
}

// String says why the number is what it is; "" = it is fixed.
func (t Threads) String() string {
	switch {
	case t.Most == 0:
		return ""
	case t.Now < t.Most:
		return fmt.Sprintf("%d of %d: other programs use the other cores; changed %d times", t.Now, t.Most, t.Changes)
	case t.Crowded:
		return fmt.Sprintf("%d: other programs use every core; changed %d times", t.Now, t.Changes)
	}
	return fmt.Sprintf("%d; changed %d times", t.Now, t.Changes)
}
