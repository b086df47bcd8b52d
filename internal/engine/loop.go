package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gallop-llm/gallop/internal/kv"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Errors of a loop.
var (
	// ErrBusy is returned when as many answers wait for a seat as may.
	ErrBusy = errors.New("too many requests wait already")

	// ErrTooLong is returned for a prompt that does not fit beside room for one token.
	ErrTooLong = errors.New("the prompt is longer than the context")
)

// Options says how a loop works.
type Options struct {
	// Context makes the loop's context. NCtx is the tokens of one sequence, its prompt and
	// answer; NSeqMax and KVUnified are the loop's own.
	Context llama.ContextOptions

	Parallel int  // seats, at least 1
	Queue    int  // answers that may wait for a seat
	Isolate  bool // an answer's bits don't depend on which others run: prompts are decoded apart, tokens as if each were alone

	// Cost is the share of the whole model's time that a token takes under a mask, 0 to 1.
	Cost func(mask skip.Mask) float64
}

// Loop decodes. Its goroutine alone touches the context, but for reading the outputs of
// the last decode. Close it after use.
type Loop struct {
	model *llama.Model
	opts  Options
	nCtx  int // tokens of one sequence

	// The goroutine's own.
	ctx      *llama.Context
	batch    *llama.Batch
	ledger   *kv.Ledger
	pacer    *pacer          // chooses the number of threads; nil = it is fixed
	released skip.Mask       // whose weights were given back last
	apart    bool            // the model refuses rows under different masks in one decode
	masks    maskGroup       // of the batch that is being built
	parts    []part          // of it; reused
	prompts  []*Seat         // scratch of choose
	exactly  llama.Isolation // what makes tokens come out as if each were decoded alone, with Isolate

	mu       sync.Mutex
	wake     sync.Cond // of mu: there may be something to do
	closed   bool
	entering []*Seat // in order of arrival, without a seat yet
	asks     []*Seat // that wait for a decode, the one that has waited longest first
	running  []*Seat // whose tokens are being decoded
	seated   []*Seat
	thinking int // of seated, those that neither wait for a decode nor are away
	tasks    []task
	ended    chan struct{} // closed when the goroutine has ended

	decodes atomic.Uint64
	cached  atomic.Int64
}

// task is something that the loop's goroutine does between decodes.
type task struct {
	do   func(c *llama.Context)
	done chan struct{}
}

// New starts a loop on a context of its own. The error is one of llama's.
func New(m *llama.Model, o Options) (*Loop, error) {
	l := &Loop{model: m, opts: o, ended: make(chan struct{})}
	l.wake.L = &l.mu
	co := o.Context
	sequences := 1
	if o.Parallel > 1 {
		if co.NCtx == 0 {
			co.NCtx = m.NCtxTrain
		}
		sequences, co.NCtx = o.Parallel, co.NCtx*o.Parallel
		// In one buffer for all, where a token's cells lie, and so in which order they are added up,
		// depends on the others.
		co.KVUnified = !o.Isolate
		co.NSeqMax = sequences
	}
	var err error
	if l.ctx, err = m.NewContext(&co); err != nil {
		return nil, err
	}
	l.nCtx = cmp.Or(o.Context.NCtx, m.NCtxTrain) // of which llama.cpp makes a multiple of 256
	if l.batch, err = llama.NewBatch(l.ctx.NBatch(), nil); err != nil {
		return nil, errors.Join(err, l.ctx.Close())
	}
	l.pacer = newPacer(m, &o.Context)
	l.ledger = kv.New(sequences, max(co.NCtx, l.ctx.NCtx()), l.park)
	if o.Isolate {
		l.ledger.Grain = grain
	}
	if o.Isolate && o.Parallel > 1 {
		if err := l.findIsolation(); err != nil {
			return nil, errors.Join(err, l.batch.Close(), l.ctx.Close())
		}
	}
	go l.run()
	return l, nil
}

// NCtx is the number of tokens that a prompt and its answer can have together.
func (l *Loop) NCtx() int { return l.nCtx }

// Close ends all answers with [llama.ErrClosed], waits until they have left, and frees the
// context; the model stays open. Further calls do nothing.
func (l *Loop) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		l.ctx.Abort(true)
		for _, s := range l.entering {
			s.granted(llama.ErrClosed)
		}
		l.entering = nil
		for _, s := range l.asks {
			if !slices.Contains(l.running, s) {
				l.answer(s, llama.ErrClosed)
			}
		}
		l.asks = slices.DeleteFunc(l.asks, func(s *Seat) bool { return !slices.Contains(l.running, s) })
		l.wake.Broadcast()
	}
	l.mu.Unlock()
	<-l.ended
	l.ledger.Close()
	return errors.Join(l.batch.Close(), l.ctx.Close())
}

// Do lets the loop's goroutine do something with the context between two decodes. do must
// be short. The error is [llama.ErrClosed].
func (l *Loop) Do(do func(c *llama.Context)) error {
	t := task{do, make(chan struct{})}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return fmt.Errorf("engine: %w", llama.ErrClosed)
	}
	l.tasks = append(l.tasks, t)
	l.wake.Signal()
	l.mu.Unlock()
	<-t.done
	return nil
}

// Enter waits for a seat for an answer to a prompt; its turn comes in the order of
// arrival. under says which mask the prompt is to be decoded under, given the note that
// the conversation's last answer left (nil = none) and how many of the prompt's tokens are
// cached under any mask; it is called by the loop's goroutine and must be quick. most is
// how many tokens the answer can have, 0 = as many as there is room for. Errors: [ErrBusy],
// [ErrTooLong], ctx's own, or one of llama's.
func (l *Loop) Enter(ctx context.Context, prompt []llama.Token, most int, under func(note any, shared int) skip.Mask) (*Seat, error) {
	if len(prompt) >= l.nCtx {
		return nil, fmt.Errorf("%w: %d tokens, the context holds %d", ErrTooLong, len(prompt), l.nCtx)
	}
	s := &Seat{loop: l, ctx: ctx, prompt: prompt, choose: under, promise: l.nCtx, ready: make(chan error, 1)}
	if most > 0 {
		s.promise = min(len(prompt)+most+mostRows, l.nCtx)
	}
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return nil, fmt.Errorf("engine: %w", llama.ErrClosed)
	case len(l.seated)+len(l.entering) >= l.opts.Parallel+l.opts.Queue:
		n := len(l.entering)
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: %d", ErrBusy, n)
	}
	l.entering = append(l.entering, s)
	l.wake.Signal()
	l.mu.Unlock()
	s.unwatch = context.AfterFunc(ctx, s.cancel)
	if err := <-s.ready; err != nil {
		s.unwatch()
		return nil, err
	}
	return s, nil
}

// Load is how many answers have a seat, and how many wait for one.
func (l *Loop) Load() (seated, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seated), len(l.entering)
}

// Cache is how many tokens the KV cache held after the last decode, and how many it can hold.
func (l *Loop) Cache() (used, of int) { return int(l.cached.Load()), l.ledger.Cells() }

// Decodes counts the calls of llama.cpp so far.
func (l *Loop) Decodes() uint64 { return l.decodes.Load() }

// run is the loop's goroutine. It keeps its thread: where Go lets it go on in another one, on
// another core, that decode took 0.6 ms longer.
func (l *Loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.ended)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case len(l.tasks) > 0:
			t := l.tasks[0]
			l.tasks = l.tasks[1:]
			l.mu.Unlock()
			t.do(l.ctx)
			close(t.done)
			l.mu.Lock()
		case l.seatNext():
		case l.thinking == 0 && len(l.asks) > 0:
			l.tick()
		case l.closed && len(l.seated) == 0:
			return
		default:
			l.wake.Wait()
		}
	}
}

// seatNext gives the answer that has waited longest a seat, if one is free, and reports
// whether it did. An answer whose prompt begins like one that is just being decoded waits
// for that: then it is decoded once.
func (l *Loop) seatNext() bool {
	if l.closed || len(l.seated) == l.opts.Parallel {
		return false
	}
	for i, s := range l.entering {
		err := l.seat(s)
		if errors.Is(err, errLater) {
			continue
		}
		l.entering = slices.Delete(l.entering, i, i+1)
		if err == nil {
			l.seated = append(l.seated, s)
			l.thinking++
		}
		s.granted(err)
		return true
	}
	return false
}

// errLater is why an answer is not seated yet.
var errLater = errors.New("later")

// worthWaiting is how many tokens of a prompt that another answer is just decoding are
// worth waiting for.
const worthWaiting = 64

// seat finds a sequence for an answer.
func (l *Loop) seat(s *Seat) (err error) {
	shared, note := l.ledger.Best(s.prompt)
	s.mask = s.choose(note, shared)
	for _, other := range l.seated {
		if other.mask != s.mask || other.read {
			continue
		}
		common := 0
		for common < min(len(other.prompt), len(s.prompt)-1) && other.prompt[common] == s.prompt[common] {
			common++
		}
		if common >= l.ledger.Shared(other.seq, s.prompt, s.mask)+worthWaiting && common >= shared+worthWaiting {
			return errLater
		}
	}
	empty := l.ledger.Empty()
	taken, ok := l.ledger.Take(s.prompt, s.mask, s.promise)
	if !ok {
		return errLater
	}
	defer func() {
		if err != nil { // what lies there now is not known
			l.ledger.Cut(taken.Seq, 0)
			l.ledger.Give(taken.Seq)
		}
	}()
	s.seq, s.n, s.Cached = taken.Seq, taken.Cached, taken.Cached
	s.Missed = missed(s, shared, empty)
	if taken.State != nil {
		err := l.ctx.Restore(taken.State.(*llama.Saved), taken.Seq)
		if taken.Last {
			taken.State.Close()
		}
		if err != nil {
			return l.restart(s, "the cache had no room for what was parked of it")
		}
	}
	if first, last := l.ctx.Positions(taken.From); first > 0 && last >= taken.Cached {
		return l.restart(s, endAlone) // what is in front of a sliding window is not parked
	}
	if taken.From != taken.Seq {
		if err := l.ctx.Remove(taken.Seq, 0, -1); err != nil {
			return err
		}
		to := taken.Cached
		if !l.ctx.Unified() {
			to = -1 // such a cache copies whole sequences
		}
		if err := l.ctx.Copy(taken.From, taken.Seq, 0, to); err != nil {
			return err
		}
	}
	if l.ctx.Remove(taken.Seq, taken.Cached, -1) != nil {
		return l.restart(s, endAlone) // recurrent models forget all or nothing
	}
	return nil
}

// endAlone is why a prompt is decoded from its beginning that shares only a part of what is cached.
const endAlone = "in this model's cache a conversation can only go on at its end"

// restart lets a seat's prompt be decoded from its beginning, and says why.
func (l *Loop) restart(s *Seat, why string) error {
	if err := l.ctx.Remove(s.seq, 0, -1); err != nil {
		return err
	}
	l.ledger.Cut(s.seq, 0)
	s.n, s.Cached, s.Missed = 0, 0, why
	return nil
}

// park takes what a sequence that is not in use holds from position keep on out of the cache,
// and gives what brings all of it back.
func (l *Loop) park(seq, keep int) io.Closer {
	saved, err := l.ctx.Save(seq)
	if l.ctx.Remove(seq, keep, -1) != nil {
		l.ctx.Remove(seq, 0, -1) // that always goes
	}
	if err != nil {
		return nil
	}
	return saved
}

// missed says why nothing of a prompt is used that is in the cache, which was empty or not.
func missed(s *Seat, shared int, empty bool) string {
	switch {
	case s.Cached > 0:
		return ""
	case empty:
		return "nothing was asked before"
	case shared == 0:
		return "no earlier prompt begins with the same token"
	case len(s.prompt) == 1:
		return "a single token is always decoded"
	}
	return fmt.Sprintf("the first %d tokens are in the cache, but were decoded under another mask", shared)
}
