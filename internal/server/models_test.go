package server

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/server/wire"
)

// pool is models with engines that are counted.
type pool struct {
	*models
	opened  map[string]*atomic.Int64
	engines map[string][]*fake
	mu      sync.Mutex
}

func newPool(t *testing.T, limit uint64, sizes map[string]uint64) *pool {
	p := &pool{opened: map[string]*atomic.Int64{}, engines: map[string][]*fake{}}
	var list []Model
	for _, name := range []string{"a", "b", "c"} {
		if sizes[name] == 0 {
			continue
		}
		count := &atomic.Int64{}
		p.opened[name] = count
		list = append(list, Model{Name: name, Memory: sizes[name], Open: func(context.Context) (Engine, error) {
			count.Add(1)
			f := newFake()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.engines[name] = append(p.engines[name], f)
			return f, nil
		}})
	}
	p.models = newModels(list, limit)
	t.Cleanup(func() { require.NoError(t, p.close()) })
	return p
}

func (p *pool) get(t *testing.T, name string) func() {
	t.Helper()
	l, err := p.find(name)
	require.NoError(t, err)
	_, release, err := p.acquire(t.Context(), l)
	require.NoError(t, err)
	return release
}

func TestModelsAreLoadedOnce(t *testing.T) {
	p := newPool(t, 0, map[string]uint64{"a": 1})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { p.get(t, "a")() })
	}
	all.Wait()
	require.Equal(t, int64(1), p.opened["a"].Load())
}

func TestModelsMakeRoom(t *testing.T) {
	p := newPool(t, 10, map[string]uint64{"a": 6, "b": 4, "c": 5})
	p.get(t, "a")()
	p.get(t, "b")()
	p.get(t, "a")() // b is the longest unused one now
	require.False(t, p.engines["b"][0].closed.Load(), "both fit")

	release := p.get(t, "c") // needs a's place too
	require.True(t, p.engines["b"][0].closed.Load())
	require.True(t, p.engines["a"][0].closed.Load())

	l, err := p.find("a")
	require.NoError(t, err)
	_, _, err = p.acquire(t.Context(), l)
	var refused *wire.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, 503, refused.Status)
	require.Equal(t, "model a needs about 6 B of memory; of the 10 B for models, others that are in use have 5 B", refused.Message)
	require.False(t, p.engines["c"][0].closed.Load(), "it is in use")

	release()
	p.get(t, "a")()
	require.True(t, p.engines["c"][0].closed.Load())
	require.Equal(t, int64(2), p.opened["a"].Load())
	for _, s := range p.all() {
		if s.Name == "a" {
			require.Equal(t, uint64(100), s.stats.Generated, "of both engines")
			require.InDelta(t, 0.75, s.stats.WeightsRead, 1e-9)
		}
	}
}

func TestModelThatNeverFits(t *testing.T) {
	p := newPool(t, 10, map[string]uint64{"a": 11})
	l, err := p.find("a")
	require.NoError(t, err)
	_, _, err = p.acquire(t.Context(), l)
	require.EqualError(t, err, "model a needs about 11 B of memory, and models may use 10 B")
	require.Zero(t, p.opened["a"].Load())
}

func TestModelThatCannotBeLoaded(t *testing.T) {
	fails := true
	m := newModels([]Model{{Name: "a", Open: func(context.Context) (Engine, error) {
		if fails {
			return nil, errors.New("broken")
		}
		return newFake(), nil
	}}}, 0)
	_, _, err := m.acquire(t.Context(), m.list[0])
	require.EqualError(t, err, "load model a: broken")
	fails = false
	_, release, err := m.acquire(t.Context(), m.list[0])
	require.NoError(t, err, "it is tried again")
	release()
	require.NoError(t, m.close())
	_, _, err = m.acquire(t.Context(), m.list[0])
	require.EqualError(t, err, "the server is closing")
}

// TestClientLeavesWhileAModelIsLoaded goes on loading for the next one.
func TestClientLeavesWhileAModelIsLoaded(t *testing.T) {
	wait := make(chan struct{})
	m := newModels([]Model{{Name: "a", Open: func(ctx context.Context) (Engine, error) {
		select {
		case <-wait:
			return newFake(), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}}, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, _, err := m.acquire(ctx, m.list[0])
	require.ErrorIs(t, err, context.DeadlineExceeded)
	close(wait)
	_, release, err := m.acquire(t.Context(), m.list[0])
	require.NoError(t, err)
	release()
	require.NoError(t, m.close())

	m = newModels([]Model{{Name: "a", Open: func(ctx context.Context) (Engine, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}}, 0)
	failed := make(chan error, 1)
	go func() {
		_, _, err := m.acquire(t.Context(), m.list[0])
		failed <- err
	}()
	require.Eventually(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.list[0].wait != nil
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, m.close(), "a server can end while it loads")
	require.ErrorIs(t, <-failed, context.Canceled)
}

func TestUnloadingWhileManyAsk(t *testing.T) {
	p := newPool(t, 10, map[string]uint64{"a": 6, "b": 6})
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			l, _ := p.find([]string{"a", "b"}[i%2])
			engine, release, err := p.acquire(context.Background(), l)
			if err != nil { // the other one is in use
				return
			}
			if engine.(*fake).closed.Load() {
				t.Error("an engine in use is closed")
			}
			release()
		})
	}
	all.Wait()
}
