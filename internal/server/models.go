package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// Model is a model that clients may ask for. It is loaded at the first request.
type Model struct {
	Name   string      // by which clients ask for it; without an @
	Info   gallop.Info // what is known before it is loaded
	Memory uint64      // bytes that it is estimated to need; 0 = not known
	Open   func(ctx context.Context) (Engine, error)
}

// models are loaded on demand. Where memory is short, those that nobody uses make room, the
// longest unused one first.
type models struct {
	limit  uint64 // bytes for all loaded models; 0 = no limit
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	list    []*loadable
	closed  bool
	loading sync.WaitGroup
}

// loadable is a model, with its engine while it is loaded.
type loadable struct {
	Model
	created time.Time

	engine Engine        // nil = not loaded
	users  int           // requests that use the engine
	used   time.Time     // for the last time
	wait   chan struct{} // closed when the loading that is going on ends; nil = none
	err    error         // of the last loading
	past   gallop.Stats  // counters of engines that were closed
}

func newModels(list []Model, limit uint64) *models {
	m := &models{limit: limit}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	for _, model := range list {
		m.list = append(m.list, &loadable{Model: model, created: time.Now()})
	}
	return m
}

// find finds a model by name; "" is the first one. A server with one model answers to every
// name, for clients whose names of models are fixed.
func (m *models) find(name string) (*loadable, error) {
	for _, l := range m.list {
		if l.Name == name {
			return l, nil
		}
	}
	if name == "" || len(m.list) == 1 {
		return m.list[0], nil
	}
	names := make([]string, len(m.list))
	for i, l := range m.list {
		names[i] = l.Name
	}
	return nil, &wire.Error{Status: http.StatusNotFound, Code: "model_not_found", Param: "model",
		Message: fmt.Sprintf("there is no model %q; there are %s", name, strings.Join(names, ", "))}
}

// closing is the error of a server that ends.
func closing() *wire.Error {
	return &wire.Error{Status: http.StatusServiceUnavailable, Message: "the server is closing", RetryAfter: retryAfter}
}

// acquire gives a model's engine, which stays loaded until release. It waits while the
// model is loaded.
func (m *models) acquire(ctx context.Context, l *loadable) (engine Engine, release func(), err error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, nil, closing()
		}
		if l.engine != nil {
			l.users++
			m.mu.Unlock()
			return l.engine, func() { m.release(l) }, nil
		}
		wait := l.wait
		mine := wait == nil
		if mine {
			victims, err := m.makeRoom(l)
			if err != nil {
				m.mu.Unlock()
				return nil, nil, err
			}
			wait = make(chan struct{})
			l.wait = wait
			m.loading.Add(1)
			go m.load(l, victims)
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx) // others may wait for it: loading goes on
		case <-wait:
		}
		m.mu.Lock()
		err := l.err
		m.mu.Unlock()
		if err != nil {
			return nil, nil, err
		}
	}
}

func (m *models) release(l *loadable) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.users--
	l.used = time.Now()
}

// makeRoom takes the engines out of models that nobody uses until l fits. Called with mu.
func (m *models) makeRoom(l *loadable) (victims []Engine, err error) {
	if m.limit == 0 {
		return nil, nil
	}
	size := func(n uint64) string { return humanize.IBytes(n) }
	if l.Memory > m.limit {
		return nil, &wire.Error{Status: http.StatusInsufficientStorage, Code: "model_too_large", Param: "model",
			Message: fmt.Sprintf("model %s needs about %s of memory, and models may use %s", l.Name, size(l.Memory), size(m.limit))}
	}
	var taken uint64
	var idle []*loadable
	for _, other := range m.list {
		switch {
		case other.engine == nil && other.wait == nil:
			continue
		case other.engine != nil && other.users == 0:
			idle = append(idle, other)
		}
		taken += other.Memory
	}
	slices.SortFunc(idle, func(a, b *loadable) int { return a.used.Compare(b.used) })
	kept := idle
	for len(kept) > 0 && taken+l.Memory > m.limit {
		taken -= kept[0].Memory
		kept = kept[1:]
	}
	if taken+l.Memory > m.limit {
		return nil, &wire.Error{Status: http.StatusServiceUnavailable, Param: "model", RetryAfter: retryAfter,
			Message: fmt.Sprintf("model %s needs about %s of memory; of the %s for models, others that are in use have %s", l.Name, size(l.Memory), size(m.limit), size(taken))}
	}
	for _, victim := range idle[:len(idle)-len(kept)] {
		victims = append(victims, victim.take())
	}
	return victims, nil
}

// take takes the engine out of a model and keeps what it has counted.
func (l *loadable) take() Engine {
	engine := l.engine
	l.past = addCounters(l.past, engine.Stats())
	l.engine = nil
	return engine
}

// load closes the victims and loads the model.
func (m *models) load(l *loadable, victims []Engine) {
	defer m.loading.Done()
	var failed error
	for _, v := range victims {
		failed = errors.Join(failed, v.Close())
	}
	var engine Engine
	err := failed
	if err == nil {
		engine, err = l.Open(m.ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("load model %s: %w", l.Name, err)
	}
	l.engine, l.err = engine, err
	close(l.wait)
	l.wait = nil
}

// close ends all engines. Requests that still run end with an error.
func (m *models) close() (err error) {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.loading.Wait()
	m.mu.Lock()
	var engines []Engine
	for _, l := range m.list {
		if l.engine != nil {
			engines = append(engines, l.take())
		}
	}
	m.mu.Unlock()
	for _, e := range engines {
		err = errors.Join(err, e.Close())
	}
	return err
}

// snapshot is a model at one moment.
type snapshot struct {
	*loadable
	loaded bool
	info   gallop.Info
	stats  gallop.Stats // of the engine, and of those before it

	sampling llama.Sampling // recommended, of a loaded model
}

// all is what there is to know about all models, without waiting for any.
func (m *models) all() []snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]snapshot, len(m.list))
	for i, l := range m.list {
		list[i] = l.look()
	}
	return list
}

// one is what there is to know about a model.
func (m *models) one(l *loadable) snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return l.look()
}

func (l *loadable) look() snapshot {
	s := snapshot{loadable: l, info: l.Info, stats: l.past}
	if l.engine != nil {
		s.loaded, s.info, s.sampling = true, l.engine.Info(), l.engine.Sampling()
		s.stats = addCounters(l.engine.Stats(), l.past)
	}
	return s
}

// addCounters is a with b's counters added.
func addCounters(a, b gallop.Stats) gallop.Stats {
	if n := a.Generated + b.Generated; n > 0 {
		a.WeightsRead = (a.WeightsRead*float64(a.Generated) + b.WeightsRead*float64(b.Generated)) / float64(n)
	}
	a.Requests += b.Requests
	a.Failed += b.Failed
	a.Cancelled += b.Cancelled
	a.PromptTokens += b.PromptTokens
	a.CachedTokens += b.CachedTokens
	a.Generated += b.Generated
	a.Escalated += b.Escalated
	a.Drafted += b.Drafted
	a.Accepted += b.Accepted
	a.Decodes += b.Decodes
	a.PrefillSeconds += b.PrefillSeconds
	a.DecodeSeconds += b.DecodeSeconds
	return a
}
