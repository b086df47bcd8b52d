package neurons

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestKept(t *testing.T) {
	for _, c := range []struct{ width, share, want int }{
		{1536, 1, 1536}, {1536, 100, 43 * 32}, {1536, 500, 768}, {1536, 900, 5 * 32}, {64, 900, 32}, {32, 500, 32}, {0, 500, 0},
	} {
		require.Equal(t, c.want, Kept(c.width, c.share), "%+v", c)
	}
}

func TestColumns(t *testing.T) {
	// Two rows of three blocks of Q8_0, 34 bytes each.
	const size = 34
	down := make([]byte, 6*size)
	for i := range down {
		down[i] = byte(i / size)
	}
	got := Columns([]byte{9}, down, gguf.Q8_0, 96, []int32{0, 2})
	require.Len(t, got, 4*size)
	for i, block := range []byte{0, 2, 3, 5} {
		require.Equal(t, slices.Repeat([]byte{block}, size), got[i*size:][:size])
	}
	order := make([]int32, 96)
	for i := range order {
		order[i] = int32(95 - i)
	}
	require.Equal(t, order[64:], IDs(order, []int32{2}))
	require.Empty(t, Columns(nil, nil, gguf.F32, 0, nil))
}

// TestChoose: blocks are those with the largest sums of both scores.
func TestChoose(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const width, blocks = 256, 8
	o := &Order{Layers: make([]Layer, 2)}
	h := NewHeard(2)
	for l := range o.Layers {
		layer := &o.Layers[l]
		layer.ff.Width = width
		layer.Static = make([]float32, width)
		for i := range layer.Static {
			layer.Static[i] = r.Float32() / width
		}
		layer.IDs = sorted(layer.Static)
		require.True(t, slices.IsSortedFunc(layer.IDs, func(a, b int32) int {
			if layer.Static[a] >= layer.Static[b] {
				return -1
			}
			return 1
		}))
	}
	require.Equal(t, []int32{0, 1, 2, 3}, o.Choose(nil, 500)[0], "in the order of static scores")
	h.sums[0], h.tokens[0] = make([]float32, width), 2
	for _, id := range o.Layers[0].IDs[6*32 : 7*32] {
		h.sums[0][id] = 1
	}
	chosen := o.Choose(h, 500)
	require.Equal(t, []int32{0, 1, 2, 6}, chosen[0])
	require.Equal(t, []int32{0, 1, 2, 3}, chosen[1], "nothing was heard of this layer")
	require.Len(t, o.Choose(h, 900)[0], 1)

	double := h.Clone()
	double.Decay(0.5)
	score := func(h *Heard, layer int) []float32 {
		s, _ := h.score(layer)
		return s
	}
	require.Equal(t, score(h, 0), score(double, 0), "decay changes the weight, not the mean")
	require.InDelta(t, 1, double.Tokens(), 0)
	both := h.Plus(h, 2)
	require.InDelta(t, 3*score(h, 0)[o.Layers[0].IDs[192]], score(both, 0)[o.Layers[0].IDs[192]], 1e-6)
	require.Nil(t, score(both, 1))

	// The more tokens were heard, the less static scores count.
	for i := range h.sums[0] {
		h.sums[0][i] = 0
	}
	for _, id := range o.Layers[0].IDs[7*32:] {
		h.sums[0][id] = 1e-3
	}
	h.tokens[0] = 1
	require.Equal(t, []int32{0, 1, 2, 3}, o.Choose(h, 500)[0])
	for i := range h.sums[0] {
		h.sums[0][i] *= 1000
	}
	h.tokens[0] = 1000
	require.Equal(t, []int32{0, 1, 2, 7}, o.Choose(h, 500)[0])
}

func TestLearnAndRead(t *testing.T) {
	llamatest.Library(t)
	defer func(n int) { learnPrompts = n }(learnPrompts)
	learnPrompts = 2
	for _, weights := range []gguf.Type{gguf.F32, gguf.Q4_0, gguf.Q4_K} {
		s := randmodel.Small("llama")
		s.Layers, s.Type, s.Embd, s.Heads, s.FF = 2, weights, 256, 8, 256
		m := llamatest.Open(t, llamatest.Write(t, s))
		dir := t.TempDir()
		_, err := Read(m, dir)
		require.ErrorIs(t, err, ErrNoOrder)
		require.NoError(t, Learn(t.Context(), m, dir, 1, nil))
		o, err := Read(m, dir)
		require.NoError(t, err)
		for l := range o.Layers {
			sum := float32(0)
			for _, s := range o.Layers[l].Static {
				sum += s
			}
			require.InDelta(t, 1, sum, 1e-3)
			require.Equal(t, sorted(o.Layers[l].Static), o.Layers[l].IDs)
		}
		c, err := o.New(500)
		require.NoError(t, err)
		require.EqualValues(t, c.Size, o.Size(500))
		read := skip.Mask{}.WithNeurons(500, 0)
		require.Positive(t, o.Spared(read))
		require.Less(t, o.Spared(read.With(0, skip.FeedForward)), o.Spared(read))
		blocks := o.Choose(nil, 500)
		copied, err := c.Set(blocks)
		require.NoError(t, err)
		require.InDelta(t, c.Size, copied, 4)
		copied, err = c.Set(blocks)
		require.NoError(t, err)
		require.Zero(t, copied, "nothing changed")
		blocks[1] = []int32{0, 1, 2, 7}
		copied, err = c.Set(blocks)
		require.NoError(t, err)
		require.Positive(t, copied)
		require.Less(t, copied, c.Size, "one layer of two changed")
		require.NoError(t, c.Close())

		path := kind.Path(dir, m)
		good, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, o.Close())
		for _, bad := range [][]byte{nil, good[:100], good[:len(good)-1000], slices.Concat(good[:len(good)/2], slices.Repeat([]byte{0xff}, 1<<16))} {
			require.NoError(t, os.WriteFile(path, bad, 0o644))
			if o, err := Read(m, dir); err == nil { // what is damaged are columns alone
				require.NoError(t, o.Close())
			} else {
				require.ErrorIs(t, err, ErrNoOrder)
			}
		}
		s.Seed = 2
		other := llamatest.Open(t, llamatest.Write(t, s))
		require.NoError(t, os.WriteFile(path, good, 0o644))
		require.NoError(t, os.Rename(path, kind.Path(dir, other)))
		_, err = Read(other, dir)
		require.ErrorContains(t, err, "made for another model")
	}
}

func TestLearnStops(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	err := Learn(ctx, m, dir, 1, func(float64) { cancel() })
	require.True(t, errors.Is(err, context.Canceled) || errors.Is(err, llama.ErrAborted), err)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Empty(t, files)
	require.ErrorIs(t, Learn(t.Context(), llamatest.Small(t, "llama-moe"), dir, 1, nil), llama.ErrNeurons)
}
