package engine_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/engine"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// BenchmarkToken compares a token through a loop with one through a context of one's own, on a
// model so small that what the loop adds can be seen.
func BenchmarkToken(b *testing.B) {
	llamatest.Library(b)
	spec := randmodel.Small("llama")
	spec.Layers = 2
	m := llamatest.Open(b, llamatest.Write(b, spec))
	const nCtx = 512
	token := [1]llama.Token{5}
	b.Run("context", func(b *testing.B) {
		c, err := m.NewContext(&llama.ContextOptions{NCtx: nCtx, Threads: 1})
		require.NoError(b, err)
		defer c.Close()
		batch, err := llama.NewBatch(nCtx, nil)
		require.NoError(b, err)
		defer batch.Close()
		b.ReportAllocs()
		for i := range b.N {
			if i%nCtx == 0 {
				c.Clear()
			}
			batch.Clear()
			require.NoError(b, batch.Add(token[0], i%nCtx, true, 0))
			require.NoError(b, c.Decode(batch, skip.Mask{}))
		}
	})
	b.Run("loop", func(b *testing.B) {
		l, err := engine.New(m, engine.Options{Context: llama.ContextOptions{NCtx: nCtx, Threads: 1}, Parallel: 1, Cost: func(skip.Mask) float64 { return 1 }})
		require.NoError(b, err)
		defer l.Close()
		s, err := l.Enter(b.Context(), token[:], 0, func(any, int) skip.Mask { return skip.Mask{} })
		require.NoError(b, err)
		defer s.Leave(nil)
		b.ReportAllocs()
		for i := range b.N {
			if i%nCtx == 0 {
				s.Forget(0)
			}
			require.NoError(b, s.Decode(token[:], skip.Mask{}, 1))
		}
	})
}
