package llama

/*
#include "glue.h"
*/
import "C"

import (
	"context"
	"sync"
	"time"
	"unsafe"
)

// Pause lets background work make room for something more urgent. While it is on, decodes
// of the contexts that follow it wait ([Context.PauseWith]); one that is running is given
// up within a moment, and done again afterwards. The zero value is off. All methods may be
// called from any goroutine; a nil Pause is never on.
type Pause struct {
	mu       sync.Mutex
	ended    chan struct{} // closed when the pause ends; nil = it is off
	began    time.Time
	held     time.Duration // in pauses that have ended
	contexts map[*Context]struct{}
}

// Set turns the pause on or off.
func (p *Pause) Set(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on == (p.ended != nil) {
		return
	}
	if on {
		p.ended, p.began = make(chan struct{}), time.Now()
	} else {
		p.held += time.Since(p.began)
	}
	for c := range p.contexts {
		C.gallop_watch_pause(&c.own.watch, C.bool(on))
	}
	if !on {
		close(p.ended)
		p.ended = nil
	}
}

// Wait returns when the pause is off, or with ctx's error when that ends.
func (p *Pause) Wait(ctx context.Context) error {
	p.wait(ctx.Done(), func() bool { return false })
	return ctx.Err()
}

// abortedEvery is how often a decode that waits looks whether it was aborted.
const abortedEvery = 10 * time.Millisecond

// wait returns when the pause is off, done is closed or aborted tells so.
func (p *Pause) wait(done <-chan struct{}, aborted func() bool) {
	if p == nil {
		return
	}
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	if ended == nil {
		return
	}
	look := time.NewTicker(abortedEvery)
	defer look.Stop()
	for !aborted() {
		select {
		case <-ended:
			return
		case <-done:
			return
		case <-look.C:
		}
	}
}

// Held is for how long the pause has been on so far.
func (p *Pause) Held() time.Duration {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return p.held + time.Since(p.began)
	}
	return p.held
}

// PauseWith makes the context's decodes wait while p is on; nil = never. A decode that is
// done again takes its batch's positions, and all behind them, out of the KV cache first,
// so a batch has to be the end of its sequences. What [Context.Influence] measures counts
// the layers twice that had run.
func (c *Context) PauseWith(p *Pause) {
	if c.ptr == nil {
		return
	}
	if before := c.pause; before != nil {
		before.mu.Lock()
		delete(before.contexts, c)
		before.mu.Unlock()
		C.gallop_watch_pause(&c.own.watch, false)
	}
	if c.pause = p; p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.contexts == nil {
		p.contexts = map[*Context]struct{}{}
	}
	p.contexts[c] = struct{}{}
	C.gallop_watch_pause(&c.own.watch, p.ended != nil)
}

// forget takes what a decode of b may have left in the KV cache out of it.
func (c *Context) forget(b *Batch) {
	n := b.Len()
	pos, counts := unsafe.Slice(b.c.pos, n), unsafe.Slice(b.c.n_seq_id, n)
	ids := unsafe.Slice(b.seqs, n*b.nSeq)
	first := map[C.llama_seq_id]C.llama_pos{}
	for i := range n {
		for _, seq := range ids[i*b.nSeq:][:counts[i]] {
			if at, ok := first[seq]; !ok || pos[i] < at {
				first[seq] = pos[i]
			}
		}
	}
	for seq, at := range first {
		C.llama_memory_seq_rm(c.mem, seq, at, -1)
	}
}
