package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Seat is an answer's place in a loop: its sequence. It belongs to the answer's goroutine.
type Seat struct {
	Cached int    // tokens of the prompt that were in the cache
	Missed string // why Cached is 0, in a sentence; "" = it is not

	// Isolation says how exactly tokens must come out as if each were decoded alone, where
	// several share a decode.
	Isolation llama.Isolation

	loop    *Loop
	ctx     context.Context
	unwatch func() bool
	prompt  []llama.Token
	choose  func(note any, shared int) skip.Mask
	mask    skip.Mask // that the prompt is decoded under
	promise int
	seq     int
	n       int // positions that hold; those behind are dropped with the next decode

	// What is asked for, and how it went.
	tokens    []llama.Token // not decoded yet
	under     skip.Mask
	outputs   int
	ready     chan error
	out       bool // Away
	cancelled bool
	read      bool // the prompt was decoded to its end
	spare     skip.Mask
	single    bool // to be decoded apart from others: together it failed
	at        int  // place of the first of the last tokens' outputs in the batch
	alone     bool // no other answer's tokens were in these decodes
}

// granted ends the wait for a seat.
func (s *Seat) granted(err error) { s.ready <- err }

// Decode appends tokens, at least one, to the sequence under mask and waits until that is
// done. The last outputs of them have logits, see [Seat.Row]. Errors: [llama.ErrAborted]
// when the request's context has ended, [llama.ErrClosed], or those of
// [llama.Context.Decode]; nothing is appended then.
func (s *Seat) Decode(tokens []llama.Token, mask skip.Mask, outputs int) error {
	l := s.loop
	l.mu.Lock()
	switch {
	case s.cancelled:
		l.mu.Unlock()
		return llama.ErrAborted
	case l.closed:
		l.mu.Unlock()
		return fmt.Errorf("engine: %w", llama.ErrClosed)
	}
	s.tokens, s.under, s.outputs, s.alone = tokens, mask, outputs, true
	l.asks = append(l.asks, s)
	if l.thinking--; l.thinking == 0 {
		l.wake.Signal()
	}
	l.mu.Unlock()
	return <-s.ready
}

// answer ends a wait for a decode; the seat thinks again. The loop's mutex is held.
func (l *Loop) answer(s *Seat, err error) {
	l.thinking++
	s.ready <- err
}

// Spare says which weights this answer does not need for now: what no seat needs may be given
// back to the operating system. Others may be decoding meanwhile.
func (s *Seat) Spare(weights skip.Mask) {
	s.loop.mu.Lock()
	defer s.loop.mu.Unlock()
	s.spare = weights
}

// Row is the place in the context's last batch of output i of the last Decode, -1 for the last one.
func (s *Seat) Row(i int) int {
	if i < 0 {
		i += s.outputs
	}
	return s.at + i
}

// Context is the loop's, to read outputs of the last Decode from; nothing else.
func (s *Seat) Context() *llama.Context { return s.loop.ctx }

// Alone tells whether no other answer took part in the last Decode.
func (s *Seat) Alone() bool { return s.alone }

// Seq is the sequence in the context.
func (s *Seat) Seq() int { return s.seq }

// Len is how many tokens the sequence holds.
func (s *Seat) Len() int { return s.n }

// Tokens are those that the sequence holds; valid until the next Decode.
func (s *Seat) Tokens() []llama.Token { return s.loop.ledger.Tokens(s.seq)[:s.n] }

// Room is how many more tokens the sequence can hold.
func (s *Seat) Room() int { return s.loop.nCtx - s.n }

// Most is how many tokens one Decode takes with logits for each of them.
func (s *Seat) Most() int { return min(s.loop.batch.Cap(), s.loop.ctx.NUBatch()) }

// Forget drops the positions from n on.
func (s *Seat) Forget(n int) { s.n = n }

// Threads is the number of threads that the last decode had; 0 = it is fixed. See [Loop.Threads].
func (s *Seat) Threads() int { return s.loop.threadsNow() }

// Away says that the answer waits for something else than a decode, and does not read the
// last one's outputs any more. The others go on.
func (s *Seat) Away() {
	l := s.loop
	l.mu.Lock()
	s.out = true
	if l.thinking--; l.thinking == 0 {
		l.wake.Signal()
	}
	l.mu.Unlock()
}

// Back ends Away.
func (s *Seat) Back() {
	l := s.loop
	l.mu.Lock()
	s.out = false
	l.thinking++
	l.mu.Unlock()
}

// Leave gives up the seat. What it holds stays in the cache for later prompts, with a note
// for the one that continues it.
func (s *Seat) Leave(note any) {
	s.unwatch()
	l := s.loop
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.out {
		l.thinking--
	}
	l.seated = slices.DeleteFunc(l.seated, func(other *Seat) bool { return other == s })
	l.tasks = append(l.tasks, task{func(*llama.Context) {
		if l.opts.Isolate {
			s.n = min(s.n, len(s.prompt)/grain*grain) // the answer's were computed otherwise than a prompt's
		}
		l.cut(s)
		l.ledger.Note(s.seq, note)
		l.ledger.Give(s.seq)
	}, make(chan struct{})})
	l.wake.Signal()
}

// cancel is called when the request's context ends: the answer stops waiting at once,
// unless a decode runs that others take part in.
func (s *Seat) cancel() {
	l := s.loop
	l.mu.Lock()
	defer l.mu.Unlock()
	s.cancelled = true
	if i := slices.Index(l.entering, s); i >= 0 {
		l.entering = slices.Delete(l.entering, i, i+1)
		s.granted(context.Cause(s.ctx))
		return
	}
	if slices.Contains(l.running, s) {
		if !slices.ContainsFunc(l.running, func(other *Seat) bool { return !other.cancelled }) {
			l.ctx.Abort(true)
		}
		return
	}
	if i := slices.Index(l.asks, s); i >= 0 {
		l.asks = slices.Delete(l.asks, i, i+1)
		l.answer(s, llama.ErrAborted)
	}
}
