package calibrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// What a calibration that can be paused takes at most, beside a model in use: texts in its
// KV cache at once, as many as are scored together, and bytes of layer inputs.
const (
	pausedSequences = lossChunk
	pausedInputs    = 128 << 20
)

// Memory is about what a calibration with [Options].Pause takes beside the model, in
// bytes, at most: keys and values, rows of logits, layer inputs, and room to compute.
func Memory(m *llama.Model) uint64 {
	const float32 = 4
	const computed = 256 << 20 // of a hundred tokens and their logits, as seen on models up to 1.5B
	rows := uint64(pausedSequences * float32 * m.Vocab.Size)
	return score.DefaultNCtx*m.CacheBytes(llama.CacheDefault, llama.CacheDefault) + 2*rows + pausedInputs + computed
}

// unfinished is what a profile's provenance says that gets better when calibration goes on.
const unfinished = "calibration"

// Unfinished tells whether a background calibration made the profile and was not done.
func Unfinished(p *router.Profile) bool {
	for _, f := range p.Provenance {
		if f.Key == unfinished {
			return true
		}
	}
	return false
}

// Found is a profile that a calibration in the background has made.
type Found struct {
	Path string
	Has  string // in a sentence
	Done bool   // it is the last one
}

// Background calibrates a model, in a context of its own, while nobody waits. All methods
// may be called from any goroutine; the model has to stay open until Close.
type Background struct {
	model  *llama.Model
	o      Options
	begin  func() bool
	paths  []string
	pause  llama.Pause
	cancel context.CancelFunc
	ran    sync.WaitGroup
	ctx    context.Context

	mu    sync.Mutex // guards what follows
	begun bool
	found *Found // not yet taken
	err   error  // that ended it, not yet taken
}

// NewBackground prepares a calibration that writes its profile to the first of paths where
// it can. It starts at the first [Background.Idle] after which begin gives true.
func NewBackground(m *llama.Model, o Options, begin func() bool, paths ...string) *Background {
	b := &Background{model: m, o: o, begin: begin, paths: paths}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.pause.Set(true)
	b.o.Pause = &b.pause
	return b
}

// Idle tells that nobody waits: the calibration goes on.
func (b *Background) Idle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return
	}
	if !b.begun {
		b.begun = true
		b.ran.Go(b.run)
	}
	b.pause.Set(false)
}

// Busy holds the calibration up, within a tenth of a second or so. It does not wait.
func (b *Background) Busy() { b.pause.Set(true) }

// Take gives what was found since the last call; nil = nothing. An error has ended the
// calibration; what was measured is kept for the next one.
func (b *Background) Take() (*Found, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found, err := b.found, b.err
	b.found, b.err = nil, nil
	return found, err
}

// Close ends the calibration, which goes on in the next one where it was. Further calls
// do nothing.
func (b *Background) Close() error {
	b.cancel()
	b.mu.Lock()
	b.begun = true // never begins again
	b.mu.Unlock()
	b.ran.Wait()
	return nil
}

// beginsEvery is how often begin is asked.
const beginsEvery = 100 * time.Millisecond

func (b *Background) run() {
	for !b.begin() {
		select {
		case <-b.ctx.Done():
			return
		case <-time.After(beginsEvery):
		}
	}
	if b.pause.Wait(b.ctx) != nil {
		return
	}
	var has string
	b.o.Usable = func(p *router.Profile, sentence string) error {
		has = sentence
		early := *p
		early.Provenance = append(early.Provenance[:len(early.Provenance):len(early.Provenance)],
			router.Note{Key: unfinished, Value: "not done: chat --learn goes on"})
		return b.keep(&early, has, false)
	}
	p, err := Run(b.ctx, b.model, b.o)
	if err == nil {
		err = b.keep(p, has, true)
	}
	if err != nil && b.ctx.Err() == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.err = fmt.Errorf("calibrate in the background: %w", err)
	}
}

// keep writes a profile, for the conversation to take.
func (b *Background) keep(p *router.Profile, has string, done bool) error {
	var errs []error
	for _, path := range b.paths {
		err := p.Write(path)
		if err == nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.found = &Found{path, has, done}
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
