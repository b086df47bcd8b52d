package llama_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// heavy is a model of which a prompt takes long enough to be paused in the middle.
func heavy(t *testing.T) *llama.Model {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers, spec.Embd, spec.FF = 8, 256, 1024
	return llamatest.Open(t, llamatest.Write(t, spec))
}

// TestPausedDecodesAreDoneAgain turns a pause on while a prompt is decoded, several times.
// What comes out is what comes out without.
func TestPausedDecodesAreDoneAgain(t *testing.T) {
	m := heavy(t)
	opts := llama.ContextOptions{NCtx: 2048, NBatch: 1024, NSeqMax: 2, KVUnified: true, Threads: 1}
	long := make([]llama.Token, 700)
	for i := range long {
		long[i] = llama.Token(3 + i%200)
	}
	plain := llamatest.Context(t, m, &opts)
	decode(t, plain, long[:5], 0, skip.Mask{})
	want := decode(t, plain, long[5:], 5, skip.Mask{})

	c := llamatest.Context(t, m, &opts)
	var p llama.Pause
	c.PauseWith(&p)
	decode(t, c, long[:5], 0, skip.Mask{})
	done, stopped := make(chan struct{}), make(chan int)
	go func() {
		times := 0
		defer func() { stopped <- times }()
		for {
			p.Set(true)
			time.Sleep(2 * time.Millisecond)
			p.Set(false)
			times++
			select {
			case <-done:
				return
			case <-time.After(time.Duration(10*times) * time.Millisecond): // each time it gets further
			}
		}
	}()
	got := decode(t, c, long[5:], 5, skip.Mask{})
	close(done)
	require.Greater(t, <-stopped, 1)
	requireSameBits(t, want, got, "paused in the middle")
	requirePositions(t, c, 0, 0, len(long)-1)
	require.Positive(t, p.Held())
}

// TestPauseEndsWithTheContextsWatch neither hangs nor spins when a paused decode is stopped.
func TestPauseEndsWithTheContextsWatch(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
	var p llama.Pause
	p.Set(true)
	p.Set(true)
	c.PauseWith(&p)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	release := c.AbortOn(ctx)
	require.ErrorIs(t, c.Decode(llamatest.Batch(t, prompt(4), 0), skip.Mask{}), llama.ErrAborted)
	require.ErrorIs(t, p.Wait(ctx), context.DeadlineExceeded)
	release()
	time.AfterFunc(20*time.Millisecond, func() { p.Set(false) })
	require.NoError(t, c.Decode(llamatest.Batch(t, prompt(4), 0), skip.Mask{}), "waits for the pause's end alone")
	require.NoError(t, p.Wait(t.Context()))
	require.GreaterOrEqual(t, p.Held(), 40*time.Millisecond)
	p.Set(true)
	c.PauseWith(nil)
	require.NoError(t, c.Decode(llamatest.Batch(t, prompt(4), 4), skip.Mask{}))
	c.PauseWith(&p)
	require.NoError(t, c.Close())
	p.Set(false)
	var none *llama.Pause
	require.NoError(t, none.Wait(t.Context()))
	require.Zero(t, none.Held())
}
