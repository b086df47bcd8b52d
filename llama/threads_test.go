package llama_test

import (
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// The number of threads may change between any two decodes, to more than the
// context was made with, and changes no bit: with flash attention up to 256 cached
// tokens, without it anywhere.
func TestThreadsLeaveLogitsAlone(t *testing.T) {
	m := llamatest.Small(t, "llama")
	const most = 400
	tokens := make([]llama.Token, most)
	for i := range tokens {
		tokens[i] = llama.Token((7*i*i + i) % m.Vocab.Size)
	}
	logits := func(t *testing.T, flash llama.FlashAttention, cached int, threads ...int) [][]float32 {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 512, Threads: threads[0], Flash: flash})
		var all [][]float32
		require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:cached], 0), skip.Mask{}))
		for i, n := range threads {
			require.NoError(t, c.SetThreads(n, n))
			require.NoError(t, c.Decode(llamatest.Batch(t, tokens[cached+i:][:1], cached+i), skip.Mask{}))
			row, err := c.Logits(-1)
			require.NoError(t, err)
			all = append(all, slices.Clone(row))
		}
		return all
	}
	one := slices.Repeat([]int{1}, 6)
	for name, x := range map[string]struct {
		flash  llama.FlashAttention
		cached int
	}{
		"flash, 4 cached":      {llama.FlashOn, 4},
		"flash, 250 cached":    {llama.FlashOn, 250},
		"no flash, 250 cached": {llama.FlashOff, 250},
		"no flash, 380 cached": {llama.FlashOff, 380},
	} {
		t.Run(name, func(t *testing.T) {
			want := logits(t, x.flash, x.cached, one...)
			require.Equal(t, want, logits(t, x.flash, x.cached, 2, 3, 1, 7, 2, 16))
			require.Equal(t, want, logits(t, x.flash, x.cached, 16, 1, 5, 1, 3, 4))
		})
	}
	require.NotEqual(t, logits(t, llama.FlashOn, 380, one...), logits(t, llama.FlashOn, 380, 2, 3, 1, 7, 2, 16),
		"flash attention does not depend on the threads any more: chat's limit can go")
}

// Threads without a core are slept for, and that is seen.
func TestStalled(t *testing.T) {
	m := llamatest.Small(t, "llama")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
	require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{1, 2, 3}, 0), skip.Mask{}))
	require.Zero(t, c.Stalled(), "one thread waits for nobody")
	n := 4 * runtime.NumCPU()
	require.NoError(t, c.SetThreads(n, n))
	require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{4, 5, 6}, 3), skip.Mask{}))
	require.Positive(t, c.Stalled())
	require.NoError(t, c.Close())
	require.Zero(t, c.Stalled())
	require.ErrorIs(t, c.SetThreads(1, 1), llama.ErrClosed)
}

// A thread is for some MB of weights.
func TestDefaultThreads(t *testing.T) {
	llamatest.Library(t)
	require.Equal(t, 1, llamatest.Small(t, "llama").DefaultThreads())
	require.Equal(t, min(8, llama.DefaultThreads()), load(t, llamatest.Write(t, wide(gguf.Q4_0)), llama.ModelOptions{}).DefaultThreads())
}
