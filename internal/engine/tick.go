package engine

import (
	"cmp"
	"errors"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// mostRows is how many tokens are a step of an answer: a token, or a draft to be verified
// with a token in front. More are a piece of a prompt.
const mostRows = 20

// rowCost is what one more row in a decode costs, in the time that reading the weights
// takes: on a CPU a prompt's token takes about a quarter of a single one's.
const rowCost = 0.25

// maskGroup is what the rows of a batch skip.
type maskGroup struct {
	common  skip.Mask // skipped by all
	several bool      // the seats' masks differ
	rows    int       // expected
}

// part is what a seat gets decoded in a tick.
type part struct {
	seat *Seat
	n    int // of its tokens
}

// tick decodes once: the tokens of the answer that has waited longest, and of all others
// that fit to them. The mutex is held, but not while llama.cpp computes.
func (l *Loop) tick() {
	parts := l.choose()
	l.running = l.running[:0]
	for _, p := range parts {
		l.running = append(l.running, p.seat)
	}
	l.mu.Unlock()
	err := l.decode(parts)
	l.mu.Lock()
	l.running = l.running[:0]
	if !l.closed {
		l.ctx.Abort(false)
	}
	switch {
	case err == nil:
		for _, p := range parts {
			l.done(p)
		}
	case errors.Is(err, llama.ErrAborted):
		for _, p := range parts {
			if err := llama.ErrAborted; p.seat.cancelled || l.closed {
				if l.closed && !p.seat.cancelled {
					err = llama.ErrClosed
				}
				l.finish(p.seat, err)
			} // else it is decoded again
		}
	case len(parts) > 1 && l.masks.several && errors.Is(err, llama.ErrMask):
		l.apart = true // and once more, in turns
	case len(parts) > 1:
		for _, p := range parts {
			p.seat.single = true // to find out whose fault it is
		}
	default:
		l.finish(parts[0].seat, err)
	}
}

// done books a part that was decoded. A prompt of which more is left waits again, behind
// the others.
func (l *Loop) done(p part) {
	s := p.seat
	s.tokens = s.tokens[p.n:]
	s.n += p.n
	s.single = false
	s.read = s.read || s.n >= len(s.prompt)
	if len(s.tokens) == 0 {
		l.finish(s, nil)
		return
	}
	i := slices.Index(l.asks, s)
	l.asks = append(slices.Delete(l.asks, i, i+1), s)
	if s.cancelled {
		l.finish(s, llama.ErrAborted)
	}
}

// finish ends a seat's wait.
func (l *Loop) finish(s *Seat, err error) {
	i := slices.Index(l.asks, s)
	l.asks = slices.Delete(l.asks, i, i+1)
	s.single = false
	l.answer(s, err)
}

// choose says what is decoded next.
func (l *Loop) choose() []part {
	first, parts := l.asks[0], l.parts[:0]
	room := min(l.batch.Cap(), l.ctx.NUBatch())
	l.masks = maskGroup{common: first.under, rows: min(len(first.tokens), room)}
	exact := l.exact(first)
	add := func(s *Seat, most int) {
		n := min(len(s.tokens), most)
		parts = append(parts, part{s, n})
		room -= n
		if s != first {
			l.masks.rows += n
		}
		if s.under != first.under {
			l.masks.several = true
		}
		l.masks.common = l.masks.common.Intersection(s.under)
	}
	if first.step() || first.outputs > 1 { // what has several outputs is decoded in one piece
		add(first, room)
	}
	for _, s := range l.asks[1:] { // answers go on before prompts are read
		if s.step() && len(s.tokens) <= room && l.joins(s, first, exact) {
			add(s, room)
		}
	}
	prompts := l.prompts[:0]
	if !first.step() && first.outputs <= 1 {
		prompts = append(prompts, first)
	}
	for _, s := range l.asks[1:] {
		if !s.step() && s.outputs <= 1 && l.joins(s, first, exact) {
			prompts = append(prompts, s)
		}
	}
	l.prompts = prompts
	for i, s := range prompts { // in equal shares of what is left
		share := room / (len(prompts) - i)
		if l.opts.Isolate {
			share = min(room, grain-s.n%grain)
		}
		if share > 0 {
			add(s, share)
		}
	}
	// Rows in the same order as before let llama.cpp use its graph again, gates and all.
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.seat.seq, b.seat.seq) })
	l.parts = parts
	return parts
}

// step tells whether a seat waits for a step of its answer, not for a prompt.
func (s *Seat) step() bool { return len(s.tokens) <= mostRows && s.n >= len(s.prompt) }

// exact tells whether a seat's tokens must come out as if each were decoded alone.
func (l *Loop) exact(s *Seat) bool {
	return l.opts.Isolate || s.Isolation != llama.Shared
}

// joins tells whether s may be decoded together with first, and should.
func (l *Loop) joins(s, first *Seat, exact bool) bool {
	switch {
	case s.single || first.single:
		return false
	case (exact || l.exact(s)) && !(s.step() && first.step()): // prompts' kernels are others
		return false
	case s.under.WithShortlist(0) == first.under.WithShortlist(0) && !l.masks.several:
		return true
	case l.apart || !l.ctx.Unified() || !l.masks.common.SameNeurons(s.under):
		return false
	}
	// Together, what only one side keeps is computed for both.
	n := min(len(s.tokens), l.ctx.NUBatch())
	both := l.cost(l.masks.common.Intersection(s.under), l.masks.rows+n) - l.cost(l.masks.common, l.masks.rows)
	return both <= l.cost(s.under, n)
}

// cost is what a decode of n rows takes under a mask, in the time of a token by the whole model.
func (l *Loop) cost(mask skip.Mask, n int) float64 {
	return l.opts.Cost(mask) * (1 + float64(n-1)*rowCost)
}

// cut takes what a seat has forgotten out of the cache.
func (l *Loop) cut(s *Seat) error {
	if s.n >= len(l.ledger.Tokens(s.seq)) {
		return nil
	}
	if err := l.ctx.Remove(s.seq, s.n, -1); err != nil {
		return err
	}
	l.ledger.Cut(s.seq, s.n)
	return nil
}

// decode runs the parts through llama.cpp in one call. After an error the cache is as
// before.
func (l *Loop) decode(parts []part) error {
	l.batch.Clear()
	l.batch.Isolation = llama.Shared
	mask, steps := parts[0].seat.under, true
	for _, p := range parts {
		s := p.seat
		if err := l.cut(s); err != nil {
			return err
		}
		if l.masks.several {
			if err := l.batch.SetMask(s.seq, s.under); err != nil {
				return err
			}
		}
		steps = steps && s.step()
		s.at = l.batch.Len() + len(s.tokens) - s.outputs
		for k, t := range s.tokens[:p.n] {
			if err := l.batch.Add(t, s.n+k, k >= len(s.tokens)-s.outputs, s.seq); err != nil {
				return err
			}
		}
	}
	if steps && l.batch.Len() > 1 {
		l.batch.Isolation = l.isolation(parts)
	}
	if l.ctx.Unified() {
		room := l.ledger.Cells() // a token looks through all of the cache for its own sequence
		if l.model.Window > 0 {
			room = l.batch.Len() // what was parked goes on at its end alone
		}
		l.ledger.MakeRoom(room)
	}
	if err := l.giveBack(); err != nil {
		return err
	}
	err := l.compute(mask, parts, steps)
	l.decodes.Add(1)
	l.cached.Store(int64(l.ledger.Used()))
	if err != nil {
		// Where a sequence's cells are may not be known any more: then it is decoded anew.
		anew := len(parts) == 1 && errors.Is(err, llama.ErrMask) && mask.HasLocal()
		for _, p := range parts {
			if anew || l.ctx.Remove(p.seat.seq, p.seat.n, -1) != nil { // recurrent models forget all or nothing
				l.ctx.Remove(p.seat.seq, 0, -1)
				l.ledger.Cut(p.seat.seq, 0)
				p.seat.n = 0
			}
		}
		return err
	}
	for _, p := range parts {
		s := p.seat
		l.ledger.Append(s.seq, s.tokens[:p.n], s.under.WithShortlist(0).WithNeurons(s.under.Neurons(), 0))
		s.alone = s.alone && len(parts) == 1
		if len(s.tokens) == p.n && s.outputs > 0 {
			l.ctx.Logits(s.at) // llama.cpp sorts outputs at the first look: several goroutines may look from here on
		}
	}
	return nil
}

// isolation is the strictest that a seat of a batch of steps asks for.
func (l *Loop) isolation(parts []part) llama.Isolation {
	isolation := l.exactly
	for _, p := range parts {
		isolation = max(isolation, p.seat.Isolation)
	}
	return isolation
}

// giveBack gives the weights back to the system that no seat needs for now. A decode under
// another mask brings what it needs back by itself.
func (l *Loop) giveBack() error {
	l.mu.Lock()
	spare := l.seated[0].spare
	for _, s := range l.seated[1:] {
		spare = spare.Intersection(s.spare)
	}
	l.mu.Unlock()
	if spare == l.released {
		return nil
	}
	l.released = spare
	if spare.IsEmpty() || !l.model.Releasable() {
		return nil
	}
	return l.model.ReleaseWeights(spare)
}
