package gallop_test

import (
	"context"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestEmbed(t *testing.T) {
	m := small(t)
	o := options(256)
	o.Context.NUBatch = 5 // longer texts come in parts
	e := engine(t, m, o)
	var inputs [][]llama.Token
	for _, text := range []string{"a horse, a horse, my kingdom for a horse", "x", "a horse, a horse, my kingdom for a horse"} {
		tokens, err := e.Tokenize(text, true, false)
		require.NoError(t, err)
		inputs = append(inputs, tokens)
	}
	got, err := e.Embed(t.Context(), inputs)
	require.NoError(t, err)
	require.Len(t, got, len(inputs))
	require.Equal(t, got[0], got[2])
	for i, tokens := range inputs {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, Embeddings: true})
		require.NoError(t, c.Decode(llamatest.Batch(t, tokens, 0), skip.Mask{}))
		mean, length := make([]float64, m.NEmbd), 0.0
		for k := range tokens {
			state, err := c.Embedding(k)
			require.NoError(t, err)
			for d, x := range state {
				mean[d] += float64(x)
			}
		}
		for _, x := range mean {
			length += x * x
		}
		require.Len(t, got[i], e.Info().Embd)
		own := 0.0
		for d, x := range got[i] {
			require.InDelta(t, mean[d]/math.Sqrt(length), x, 1e-4, "sums in another order")
			own += float64(x) * float64(x)
		}
		require.InDelta(t, 1, own, 1e-5)
	}
	none, err := e.Embed(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, none)
	for _, tokens := range [][]llama.Token{nil, {}, {-1}, {llama.Token(m.Vocab.Size)}} {
		_, err = e.Embed(t.Context(), [][]llama.Token{inputs[0], tokens})
		require.ErrorIs(t, err, gallop.ErrRequest)
	}
	_, err = e.Embed(t.Context(), [][]llama.Token{make([]llama.Token, 257)})
	require.ErrorIs(t, err, gallop.ErrTooLong)
	again, err := e.Embed(t.Context(), inputs[:1])
	require.NoError(t, err)
	require.Equal(t, got[:1], again, "errors leave nothing behind")
}

// TestEmbedEnds with its context, also while it waits for another one, and with the engine.
func TestEmbedEnds(t *testing.T) {
	m := small(t)
	o := options(4096)
	e, err := gallop.New(m, &o)
	require.NoError(t, err)
	long := slices.Repeat([][]llama.Token{make([]llama.Token, 4096)}, 1000) // minutes
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = e.Embed(ended, long)
	require.Equal(t, context.Canceled, err)

	soon, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	_, err = e.Embed(soon, long)
	require.Equal(t, context.DeadlineExceeded, err)

	failed := make(chan error)
	for range 2 {
		go func() {
			_, err := e.Embed(t.Context(), long)
			failed <- err
		}()
	}
	waiting, stopWaiting := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stopWaiting()
	_, err = e.Embed(waiting, long)
	require.Equal(t, context.DeadlineExceeded, err, "two others are in front")
	require.NoError(t, e.Close())
	for range 2 {
		require.ErrorIs(t, <-failed, gallop.ErrClosed)
	}
	_, err = e.Embed(t.Context(), long)
	require.ErrorIs(t, err, gallop.ErrClosed)
}
