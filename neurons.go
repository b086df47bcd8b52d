package gallop

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gallop-llm/gallop/internal/machine"
	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// ErrNeurons is returned for a mask that leaves out neurons of a model whose neurons cannot be
// left out, or were not learnt yet, or for want of memory.
var ErrNeurons = llama.ErrNeurons

// NeuronInfo tells whether answers can leave out neurons of feed-forwards.
type NeuronInfo struct {
	Why    string // they cannot; "" = they can, once it is learnt which neurons are active on the whole
	Learnt bool
}

// Neurons tells whether answers can leave out neurons.
func (e *Engine) Neurons() NeuronInfo {
	_, err := e.sparing.open()
	switch {
	case err == nil:
		return NeuronInfo{Learnt: true}
	case errors.Is(err, neurons.ErrNoOrder):
		return NeuronInfo{}
	}
	return NeuronInfo{Why: err.Error()}
}

// LearnNeurons finds out which of the model's neurons are active on the whole, where that is
// still to be done, in a minute or so; it is kept in the cache folder. progress, if given, gets the share that is
// done, 0 to 1. The error wraps [ErrNeurons] where there is nothing to learn, or is ctx's own.
func (e *Engine) LearnNeurons(ctx context.Context, progress func(share float64)) error {
	if e.Neurons().Learnt {
		return nil
	}
	return e.sparing.learn(ctx, progress)
}

// Spared tells of the neurons that an answer left out.
type Spared struct {
	Share  float64       // of each feed-forward's neurons
	Kept   [][]int32     // (Layers,) the neurons that were kept, by their numbers in the model
	Heard  int           // tokens of the prompt that they were chosen by, beside what is active on the whole
	Copied uint64        // bytes of weights that were copied for that
	Size   uint64        // bytes that the copies take beside the model
	Took   time.Duration // choosing and copying
}

// sparing is how an engine's answers leave out neurons. Each answer has a choice of its own, so
// that its text does not depend on which others run. Answers wait where there is no memory for as many.
type sparing struct {
	e     *Engine
	dir   string
	limit uint64 // bytes for all choices

	learning sync.Mutex

	mu      sync.Mutex
	order   *neurons.Order // nil = not opened yet
	choices []*choice
	freed   chan struct{} // closed, and made anew, when a choice is given back
}

// choice is a set of smaller matrices with its number in the context.
type choice struct {
	*neurons.Choice
	number int
	size   uint64
	taken  bool
}

func (s *sparing) init(e *Engine) (err error) {
	s.e, s.limit, s.freed = e, e.opts.NeuronsMemory, make(chan struct{})
	s.dir, err = e.opts.cacheDir("neurons", neurons.Dir)
	return err
}

// open is what was learnt. The error wraps [neurons.ErrNoOrder] where nothing was.
func (s *sparing) open() (*neurons.Order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.order != nil {
		return s.order, nil
	}
	if len(s.e.loras) > 0 {
		return nil, fmt.Errorf("%w: an adapter changes the feed-forwards", ErrNeurons)
	}
	order, err := neurons.Read(s.e.model, s.dir)
	if err != nil {
		return nil, err
	}
	s.order = order
	return order, nil
}

func (s *sparing) learn(ctx context.Context, progress func(float64)) error {
	s.learning.Lock()
	defer s.learning.Unlock()
	if _, err := s.open(); !errors.Is(err, neurons.ErrNoOrder) {
		return err
	}
	return neurons.Learn(ctx, s.e.model, s.dir, s.e.opts.Context.Threads, progress)
}

// check refuses a share that no answer could leave out.
func (s *sparing) check(share int) error {
	order, err := s.open()
	if errors.Is(err, neurons.ErrNoOrder) {
		return fmt.Errorf("%w: %w; LearnNeurons, or `gallop run --skip n%d%%` once, finds that out", ErrNeurons, err, share*100/skip.NeuronUnits)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	held := uint64(0)
	for _, c := range s.choices {
		held += c.size
	}
	if size, limit := order.Size(share), s.bound(held); size > limit {
		return tooLittle(size, limit)
	}
	return nil
}

func tooLittle(size, limit uint64) error {
	return fmt.Errorf("%w: those that are kept are copied, which takes %d MiB beside the model, and %d MiB are allowed (--neurons-memory)", ErrNeurons, size>>20, limit>>20)
}

// bound is how many bytes all choices may take, of which held are taken already: what was asked
// for, or half of the memory that is free.
func (s *sparing) bound(held uint64) uint64 {
	if s.limit > 0 {
		return s.limit
	}
	free, _ := machine.Memory()
	if free == 0 {
		return s.e.model.Size
	}
	return free/2 + held
}

// take gives an answer a choice of its own for a share of neurons.
func (s *sparing) take(ctx context.Context, share int) (*choice, error) {
	for {
		c, wait, err := s.try(share)
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-s.e.closing.Done():
			return nil, ErrClosed
		}
	}
}

// try is take where there is memory now; otherwise wait ends when there may be.
func (s *sparing) try(share int) (c *choice, wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, numbers := uint64(0), map[int]bool{}
	var spare []*choice // of other shares
	for _, c := range s.choices {
		switch {
		case c.taken:
		case c.Share == share:
			c.taken = true
			return c, nil, nil
		default:
			spare = append(spare, c)
		}
		held += c.size
		numbers[c.number] = true
	}
	size := s.order.Size(share)
	for limit := s.bound(held); held+size > limit; {
		if len(spare) == 0 {
			if len(s.choices) == 0 {
				return nil, nil, tooLittle(size, limit)
			}
			return nil, s.freed, nil
		}
		held -= spare[0].size
		delete(numbers, spare[0].number)
		if err := s.drop(spare[0]); err != nil {
			return nil, nil, err
		}
		spare = spare[1:]
	}
	n := 0
	for numbers[n] {
		n++
	}
	made, err := s.order.New(share)
	if err != nil {
		return nil, nil, err
	}
	c = &choice{made, n, size, true}
	s.choices = append(s.choices, c)
	return c, nil, nil
}

// drop frees a choice that no answer uses.
func (s *sparing) drop(c *choice) error {
	for i, other := range s.choices {
		if other == c {
			s.choices = append(s.choices[:i], s.choices[i+1:]...)
			break
		}
	}
	closed := s.e.loop.Do(func(ctx *llama.Context) { ctx.SetNeurons(c.number, nil) }) // which fails for a closed context alone
	return errors.Join(closed, c.Close())
}

// give takes a choice back from an answer.
func (s *sparing) give(c *choice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.taken = false
	close(s.freed)
	s.freed = make(chan struct{})
}

// close frees all choices, after the loop.
func (s *sparing) close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.choices {
		err = errors.Join(err, c.Close())
	}
	s.choices = nil
	err = errors.Join(err, s.order.Close())
	s.order = nil
	return err
}

// spared is the share of a token's weights that a mask's neurons are.
func (s *sparing) spared(mask skip.Mask) uint64 {
	if mask.Neurons() == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.order == nil {
		return 0
	}
	return s.order.Spared(mask)
}

// past is how much what was heard in earlier turns counts in a later one.
const past = 0.5

// listen begins to measure which neurons the prompt needs.
func (x *answering) listen() error {
	if x.plan.neurons == 0 {
		return nil
	}
	var err error
	closed := x.e.loop.Do(func(c *llama.Context) {
		if !c.MeasuresActivity() {
			err = c.MeasureActivity(true)
		}
		c.ResetActivity(x.seat.Seq())
	})
	return errors.Join(closed, err)
}

// chooseNeurons makes the neurons that the prompt needs the answer's own. The prompt was just
// decoded, and its last output is not read any more.
func (x *answering) chooseNeurons() error {
	share := x.plan.neurons
	if share == 0 {
		return nil
	}
	start := time.Now()
	heard := neurons.NewHeard(x.e.model.NLayer)
	if x.heard != nil {
		heard = x.heard.Clone()
		heard.Decay(past)
	}
	const several = 2 // the last layer sees the prompt's last token alone, which says little
	heard.Hear(x.seat.Context(), x.seat.Seq(), several)
	x.heard = heard
	x.seat.Away() // others need not wait for what is copied
	err := x.copyNeurons(share)
	x.seat.Back()
	if err != nil {
		return err
	}
	x.a.Spared.Share, x.a.Spared.Heard = float64(share)/skip.NeuronUnits, int(heard.Tokens())
	x.a.Spared.Took = time.Since(start)
	c := x.choice
	closed := x.e.loop.Do(func(ctx *llama.Context) { err = ctx.SetNeurons(c.number, c.Neurons) })
	x.plan.mask = x.plan.mask.WithNeurons(share, c.number)
	return errors.Join(closed, err)
}

// copyNeurons fills in the answer's choice.
func (x *answering) copyNeurons(share int) (err error) {
	s := &x.e.sparing
	if x.choice, err = s.take(x.ctx, share); err != nil {
		return err
	}
	blocks := s.order.Choose(x.heard, share)
	x.a.Spared.Copied, err = x.choice.Set(blocks)
	x.a.Spared.Size = x.choice.size
	for l, b := range blocks {
		x.a.Spared.Kept = append(x.a.Spared.Kept, neurons.IDs(s.order.Layers[l].IDs, b))
	}
	return err
}

// shown is a mask as it is told: without the number of its choice of neurons.
func shown(m skip.Mask) skip.Mask { return m.WithNeurons(m.Neurons(), 0) }
