package gallop

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// slots counts the requests.
type slots struct {
	mu     sync.Mutex
	all    []slot
	open   int // requests that have begun and not ended
	closed bool
	none   sync.Cond // of mu: open is 0
}

type slot struct {
	busy      bool
	prompt    int
	generated atomic.Int64
}

func (s *slots) init(n int) {
	s.all = make([]slot, n)
	s.none.L = &s.mu
}

// begin counts a request in.
func (s *slots) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("engine: %w", ErrClosed)
	}
	s.open++
	return nil
}

func (s *slots) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open--; s.open == 0 {
		s.none.Broadcast()
	}
}

// wait waits until all requests have ended; no more can begin.
func (s *slots) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.closed = true; s.open > 0; {
		s.none.Wait()
	}
}

func (s *slots) take(prompt int) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.all {
		if slot := &s.all[i]; !slot.busy {
			slot.busy, slot.prompt = true, prompt
			slot.generated.Store(0)
			return slot
		}
	}
	return &slot{} // it was given back a moment too late: counted, but not shown
}

func (s *slots) give(slot *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot.busy = false
}

// totals is what [Stats] sums up.
type totals struct {
	mu sync.Mutex
	Stats
	weights float64 // sum of [Answer].WeightsRead over decoded tokens
	decoded int     // all that were generated but each answer's first
}

func (t *totals) add(x *answering, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &x.a
	t.Requests++
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		t.Cancelled++
	case err != nil:
		t.Failed++
	}
	t.PromptTokens += uint64(a.Usage.Prompt)
	t.CachedTokens += uint64(a.Usage.Cached)
	t.Generated += uint64(a.Usage.Generated)
	t.Escalated += uint64(a.Escalated)
	if d := a.Drafts; d != nil {
		t.Drafted += uint64(d.Drafted)
		t.Accepted += uint64(d.Accepted)
	}
	t.PrefillSeconds += a.Timing.Prefill.Seconds()
	t.DecodeSeconds += a.Timing.Decode.Seconds()
	decoded := max(a.Usage.Generated-1, 0)
	t.decoded += decoded
	t.weights += a.WeightsRead * float64(decoded)
}

// Stats counts what the engine has done and what it is doing. It never waits for a decode.
func (e *Engine) Stats() Stats {
	e.totals.mu.Lock()
	s := e.totals.Stats
	if n := e.totals.decoded; n > 0 {
		s.WeightsRead = e.totals.weights / float64(n)
	}
	e.totals.mu.Unlock()
	s.Running, s.Waiting = e.loop.Load()
	s.Decodes = e.loop.Decodes()
	s.CacheUsed, s.CacheOf = e.loop.Cache()
	e.slots.mu.Lock()
	defer e.slots.mu.Unlock()
	for i := range e.slots.all {
		slot := &e.slots.all[i]
		s.Slots = append(s.Slots, Slot{Busy: slot.busy, Prompt: slot.prompt, Generated: int(slot.generated.Load())})
	}
	return s
}

// Threads tells how many threads decode now.
func (e *Engine) Threads() Threads { return Threads(e.loop.Threads()) }
