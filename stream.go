package gallop

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gallop-llm/gallop/internal/engine"
)

// Answer answers a request. When ctx ends, it returns what there is of the answer and ctx's
// error. Errors: [ErrRequest], [ErrTooLong], [ErrSkip], [ErrUnskippable], [ErrNoProfile],
// [ErrEscalate], [ErrLossless], [ErrBusy], [ErrClosed], ctx's own, or one of llama's.
func (e *Engine) Answer(ctx context.Context, r Request) (Answer, error) {
	return e.answer(ctx, r, func(Delta) {})
}

// answer runs in the caller's goroutine.
func (e *Engine) answer(ctx context.Context, r Request, emit func(Delta)) (a Answer, err error) {
	if err := e.slots.begin(); err != nil {
		return Answer{}, err
	}
	e.idle.busy()
	defer e.idle.free()
	x := &answering{e: e, ctx: ctx, r: r, emit: emit, gate: engine.GateOf(ctx)}
	defer func() {
		if p := recover(); p != nil { // one request's fault ends that request alone
			e.log.Error("an answer panicked", "panic", p, "stack", string(debug.Stack()))
			x.a.Finish = ""
			a, err = x.a, fmt.Errorf("internal error: %v", p)
		}
		if x.plan != nil {
			x.plan.end(e)
		}
		e.totals.add(x, err)
		e.slots.end()
	}()
	if err = x.run(); err != nil {
		err = x.because(err)
	}
	return x.a, err
}

// Stream answers a request piece by piece. The last piece has the whole [Answer]; when
// ctx ends, that is what there is of it, together with ctx's error. Leaving the loop ends the
// request. Errors are as of [Engine.Answer].
//
// A reader may be as slow as it likes: the answer goes on and waits for it, and holds up no one
// else's. What comes within 5 ms of the last text comes with the next: no one sees the
// difference, and whatever takes the pieces is woken less often.
func (e *Engine) Stream(ctx context.Context, r Request) iter.Seq2[Delta, error] {
	return func(yield func(Delta, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		box := newMailbox()
		go func() {
			a, err := e.answer(ctx, r, box.put)
			box.end(a, err)
		}()
		defer box.wait() // nothing of the request is left when the loop ends
		defer cancel(errLeft)
		for {
			d, err, last := box.get()
			if !yield(d, err) || last {
				return
			}
		}
	}
}

// errLeft is the cause of a request's end whose reader has left.
var errLeft = errors.New("the reader has left")

// pace is the least time between two pieces of text, the last one apart.
const pace = 5 * time.Millisecond

// mailbox holds the pieces that a reader has not taken yet. Its writer never waits.
type mailbox struct {
	mu    sync.Mutex
	full  sync.Cond // of mu: there may be something to take
	next  Delta
	some  bool
	after time.Time // when next may be taken at the earliest
	timed bool      // it will be told then
	ended bool
	err   error
}

func newMailbox() *mailbox {
	b := &mailbox{}
	b.full.L = &b.mu
	return b
}

func (b *mailbox) put(d Delta) {
	b.mu.Lock()
	for _, c := range d.Controls {
		c.At += len(b.next.Text)
		b.next.Controls = append(b.next.Controls, c)
	}
	b.next.Text += d.Text
	b.next.Tokens = append(b.next.Tokens, d.Tokens...)
	if d.Mask != nil {
		b.next.Mask = d.Mask
	}
	b.some = true
	wait := time.Until(b.after)
	if wait > 0 && !b.timed {
		b.timed = true
		time.AfterFunc(wait, b.due)
	}
	b.mu.Unlock()
	if wait <= 0 {
		b.full.Signal()
	}
}

// due is called when what was put too early may be taken.
func (b *mailbox) due() {
	b.mu.Lock()
	b.timed = false
	b.mu.Unlock()
	b.full.Broadcast()
}

func (b *mailbox) end(a Answer, err error) {
	b.mu.Lock()
	b.next.Answer, b.err, b.ended = &a, err, true
	b.mu.Unlock()
	b.full.Broadcast()
}

// get waits for the next piece: all that has come since the last one.
func (b *mailbox) get() (d Delta, err error, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.ended && (!b.some || b.timed) {
		b.full.Wait()
	}
	d, b.next, b.some = b.next, Delta{}, false
	if d.Text != "" {
		b.after = time.Now().Add(pace)
	}
	return d, b.err, b.ended
}

// wait waits until the answer has ended.
func (b *mailbox) wait() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.ended {
		b.full.Wait()
	}
}
