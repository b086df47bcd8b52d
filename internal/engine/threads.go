package engine

import (
	"cmp"
	"sync/atomic"
	"time"

	"github.com/gallop-llm/gallop/internal/threads"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// pacer gives each decode the number of threads that is fastest now. Prompts get all of
// them: a thread without a core holds up the others for a moment then, not for a good part
// of each node. Only a tiny model's first prompt, which takes as long as a few turns of another
// program, leaves its core to that.
type pacer struct {
	threads.Controller
	batch  int          // threads for prompts
	others int          // threads of other programs when the loop was made; -1 = they are looked at no more
	now    int          // threads that the context is set to, for both
	told   atomic.Int64 // now, for other goroutines
	state  atomic.Pointer[Threads]
}

// Threads is how many threads tokens are decoded with, and how often that has changed.
type Threads struct {
	Now     int // trials apart
	Most    int
	Changes int
	Crowded bool // threads wait for others that other programs keep from running
}

// newPacer is nil where the number is fixed or there is nothing to choose.
func newPacer(m *llama.Model, o *llama.ContextOptions) *pacer {
	most := m.DefaultThreads()
	if o.Threads != 0 || most < 2 {
		return nil
	}
	p := &pacer{Controller: *threads.New(most, threads.Others), batch: cmp.Or(o.ThreadsBatch, most), others: threads.Others()}
	if m.Size >= tinyModel {
		p.others = -1
	}
	p.tell()
	return p
}

// tinyModel is the size in bytes below which a token takes a millisecond or two.
const tinyModel = 16 << 20

// begin gives the number for a tiny model's first decode, a prompt's. Before it, nothing is
// measured; threads that ran when the loop was made and still do are taken to go on.
func (p *pacer) begin() int {
	others := min(p.others, threads.Others())
	p.others = -1
	defer p.tell()
	return min(p.batch, p.Begin(others))
}

// tell lets other goroutines know.
func (p *pacer) tell() {
	now := Threads{p.Settled(), p.Most(), p.Changes(), p.Crowded()}
	if before := p.state.Load(); before == nil || *before != now {
		p.state.Store(&now)
	}
}

// Threads tells the number now; zeros = it is fixed.
func (l *Loop) Threads() Threads {
	if l.pacer == nil {
		return Threads{}
	}
	return *l.pacer.state.Load()
}

// threadsNow is the number of the last decode; 0 = it is fixed.
func (l *Loop) threadsNow() int {
	if l.pacer == nil {
		return 0
	}
	return int(l.pacer.told.Load())
}

// sameUpTo is how many cached tokens there may be for a token to get the same logits on
// any number of threads. llama.cpp rounds them up to 256, and from 512 on its flash
// attention gives each thread a share of them and adds up the results.
const sameUpTo = 256

// compute decodes the loop's batch. A draft that is verified is as short of work for many
// threads as a single token. What is to be the plain answer bit for bit has one number
// wherever that could change the bits.
func (l *Loop) compute(mask skip.Mask, parts []part, steps bool) error {
	p := l.pacer
	if p == nil {
		return l.ctx.Decode(l.batch, mask)
	}
	want, chosen := p.batch, steps
	if p.others >= 0 {
		want = p.begin()
	}
	exact := l.opts.Isolate
	longest := 0
	for _, part := range parts {
		exact = exact || part.seat.Isolation != llama.Shared
		longest = max(longest, part.seat.n+part.n)
	}
	switch {
	case steps && exact && longest > sameUpTo:
		want, chosen = p.Most(), false
	case steps:
		want = p.Threads()
	}
	if want != p.now {
		if err := l.ctx.SetThreads(want, want); err != nil {
			return err
		}
		p.now = want
		p.told.Store(int64(want))
	}
	start, stalled := time.Now(), l.ctx.Stalled()
	err := l.ctx.Decode(l.batch, mask)
	if chosen && err == nil && l.batch.Len() == len(parts) {
		p.Observe(l.opts.Cost(l.masks.common.WithShortlist(mask.Shortlist()))*float64(len(parts)), time.Since(start), l.ctx.Stalled()-stalled)
		p.tell()
	}
	return err
}
