package llama_test

import (
	"encoding/binary"
	"fmt"
	"math"
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

// plainNorm copies a model with an output norm of weights one: its embeddings
// then point where the residual stream does.
func plainNorm(t *testing.T, src string) string {
	t.Helper()
	f, err := gguf.Open(src)
	require.NoError(t, err)
	defer f.Close()
	data, err := os.ReadFile(src)
	require.NoError(t, err)
	i := slices.IndexFunc(f.Tensors, func(t gguf.Tensor) bool { return t.Name == "output_norm.weight" })
	require.GreaterOrEqual(t, i, 0)
	weights := data[uint64(f.DataOffset)+f.Tensors[i].Offset:][:f.Tensors[i].Size]
	for at := 0; at < len(weights); at += 4 {
		binary.LittleEndian.PutUint32(weights[at:], math.Float32bits(1))
	}
	path := filepath.Join(t.TempDir(), "plain.gguf")
	require.NoError(t, os.WriteFile(path, data, 0o644))
	return path
}

// states decodes the prompt under mask and returns each token's embedding.
func states(t *testing.T, m *llama.Model, tokens []llama.Token, mask skip.Mask) [][]float32 {
	t.Helper()
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 256, Threads: 1, Embeddings: true})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Decode(llamatest.Batch(t, tokens, 0), mask))
	rows := make([][]float32, len(tokens))
	for i := range rows {
		row, err := c.Embedding(i)
		require.NoError(t, err)
		rows[i] = slices.Clone(row)
	}
	return rows
}

// turn is the mean of 1 - cos over the rows that keep picks.
func turn(a, b [][]float32, keep func(i int) bool) float64 {
	sum, n := 0.0, 0
	for i := range a {
		if !keep(i) {
			continue
		}
		var aa, bb, ab float64
		for k := range a[i] {
			x, y := float64(a[i][k]), float64(b[i][k])
			aa, bb, ab = aa+x*x, bb+y*y, ab+x*y
		}
		sum, n = sum+1-ab/math.Sqrt(aa*bb), n+1
	}
	return sum / float64(n)
}

// from skips the layers from first on.
func from(first, nLayer int) (m skip.Mask) {
	for l := first; l < nLayer; l++ {
		m = m.With(l, skip.Whole)
	}
	return m
}

// TestInfluenceEqualsCosinesOfStates compares with what embeddings under masks
// tell: the stream before a layer is that of the model without all later ones.
func TestInfluenceEqualsCosinesOfStates(t *testing.T) {
	llamatest.Library(t)
	const least = 1e-3 // a layer that does less tells nothing
	tolerance := 1e-5  // embeddings have seen one float32 norm more: some 1e-7 each
	if gpuRun() {
		tolerance = 2e-3 // and products of 16-bit numbers; seen: 6e-4
	}
	tokens := prompt(promptTokens)
	isOutput := func(i int) bool { return i%3 == 1 }
	all := func(int) bool { return true }
	for _, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			path := plainNorm(t, llamatest.Write(t, randmodel.Small(arch)))
			m := llamatest.Open(t, path)
			n := m.NLayer

			// No mask skips every layer: the first layer's input is what a first
			// layer that adds nothing puts out.
			blank := llamatest.Open(t, llamatest.Zeroed(t, path, identity(skip.Layers(0))))
			stream := [][][]float32{states(t, blank, tokens, from(1, n))}
			var cuts [][][]float32
			for l := range n {
				cuts = append(cuts, states(t, m, tokens, from(l+1, n).With(l, skip.FeedForward)))
				stream = append(stream, states(t, m, tokens, from(l+1, n)))
			}

			for name, opts := range map[string]llama.ContextOptions{
				"at once":      {NCtx: 256, Threads: 1},
				"small ubatch": {NCtx: 256, Threads: 1, NUBatch: 8},
			} {
				t.Run(name, func(t *testing.T) {
					opts.Influence = true
					c := llamatest.Context(t, m, &opts)
					b, err := llama.NewBatch(len(tokens), nil)
					require.NoError(t, err)
					defer b.Close()
					for i, tok := range tokens {
						require.NoError(t, b.Add(tok, i, isOutput(i), 0))
					}
					for range 2 { // the mean does not change when all is seen twice, nor after a reset
						for range 2 {
							require.NoError(t, c.Decode(b, none))
							c.Clear()
							attention, feedForward, layer := c.Influence()
							for _, got := range [][]float64{attention, feedForward, layer} {
								require.Len(t, got, n)
							}
							for l := range n {
								seen := all
								if l == n-1 {
									seen = isOutput
								}
								require.InDelta(t, turn(stream[l], stream[l+1], seen), layer[l], tolerance, "layer %d", l)
								require.InDelta(t, turn(stream[l], cuts[l], seen), attention[l], tolerance, "attention %d", l)
								require.InDelta(t, turn(cuts[l], stream[l+1], seen), feedForward[l], tolerance, "feed-forward %d", l)
								require.Greater(t, layer[l], least)
							}
						}
						c.ResetInfluence()
						_, _, layer := c.Influence()
						require.True(t, math.IsNaN(layer[0]))
					}
				})
			}
		})
	}
}

// TestInfluenceChangesNoResult compares every bit of the logits, and shows that
// only unmasked decodes are measured.
func TestInfluenceChangesNoResult(t *testing.T) {
	llamatest.Library(t)
	for _, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			m := llamatest.Small(t, arch)
			for _, v := range variants {
				for _, mask := range []skip.Mask{none, skip.Layers(2).With(4, skip.Attention)} {
					want, _ := run(t, m, v, mask)
					measured := v
					measured.opts.Influence = true
					got, _ := run(t, m, measured, mask)
					requireSame(t, want, got, fmt.Sprint(v.name, mask))
				}
			}
		})
	}
}

// TestInfluenceOfUnmaskedDecodesOnly switches masks, with graphs that are built
// anew, used again and left behind by a cut of the cache.
func TestInfluenceOfUnmaskedDecodesOnly(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	opts := &llama.ContextOptions{NCtx: 256, Threads: 1, Influence: true}
	c := llamatest.Context(t, m, opts)
	step := func(c *llama.Context, pos int, mask skip.Mask) {
		decode(t, c, prompt(pos + 1)[pos:], pos, mask)
	}
	decode(t, c, prompt(9), 0, skip.Layers(3))
	_, _, layer := c.Influence()
	for _, v := range layer {
		require.True(t, math.IsNaN(v))
	}

	c.Clear()
	decode(t, c, prompt(9), 0, none)
	require.NoError(t, c.Remove(0, 6, -1))
	for pos := 6; pos < 10; pos++ {
		step(c, pos, none)
	}
	attention, feedForward, layer := c.Influence()
	for pos := 10; pos < 13; pos++ {
		step(c, pos, skip.Layers(3))
	}
	a, f, l := c.Influence()
	require.Equal(t, [][]float64{attention, feedForward, layer}, [][]float64{a, f, l})

	// The means are over tokens: the whole is made of its parts, one by one.
	parts := llamatest.Context(t, m, opts)
	sum := make([]float64, m.NLayer)
	for pos := range 5 {
		step(parts, pos, none)
		_, _, one := parts.Influence()
		parts.ResetInfluence()
		for l := range sum {
			sum[l] += one[l] / 5
		}
	}
	c.Clear()
	c.ResetInfluence()
	for pos := range 5 {
		step(c, pos, none)
	}
	_, _, layer = c.Influence()
	require.InDeltaSlice(t, sum, layer, 1e-12)
}

// TestInfluenceWithoutMeasurement holds for contexts that do not measure.
func TestInfluenceWithoutMeasurement(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 2))
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 256, Threads: 1})
	require.NoError(t, err)
	decode(t, c, prompt(3), 0, none)
	measured, err := m.NewContext(&llama.ContextOptions{NCtx: 256, Threads: 1, Influence: true})
	require.NoError(t, err)
	require.NoError(t, measured.Close())
	for _, c := range []*llama.Context{c, measured} {
		c.ResetInfluence()
		attention, feedForward, layer := c.Influence()
		require.Nil(t, attention)
		require.Nil(t, feedForward)
		require.Nil(t, layer)
		require.NoError(t, c.Close())
	}
	_, err = m.NewContext(&llama.ContextOptions{NCtx: 256, VType: llama.CacheQ8_0, Flash: llama.FlashOff, Influence: true})
	require.ErrorIs(t, err, llama.ErrModel, "llama.cpp refuses these options after the measurement was set up")
}

// TestInfluenceOfEmbeddings measures a batch that brings its own inputs: those
// of the token table give what the tokens give.
func TestInfluenceOfEmbeddings(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	m := llamatest.Open(t, path)
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	i := slices.IndexFunc(f.Tensors, func(t gguf.Tensor) bool { return t.Name == "token_embd.weight" })
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	table := data[uint64(f.DataOffset)+f.Tensors[i].Offset:][:f.Tensors[i].Size]

	tokens := prompt(9)
	b, err := llama.NewBatch(len(tokens), &llama.BatchOptions{Embd: m.NEmbd})
	require.NoError(t, err)
	defer b.Close()
	for pos, tok := range tokens {
		row := make([]float32, m.NEmbd)
		_, err := binary.Decode(table[4*m.NEmbd*int(tok):][:4*m.NEmbd], binary.LittleEndian, row)
		require.NoError(t, err)
		require.NoError(t, b.AddEmbedding(row, pos, true, 0))
	}
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, Influence: true})
	var results [2][3][]float64
	for i, batch := range []*llama.Batch{llamatest.Batch(t, tokens, 0), b} {
		require.NoError(t, c.Decode(batch, none))
		results[i][0], results[i][1], results[i][2] = c.Influence()
		c.ResetInfluence()
		c.Clear()
	}
	require.Equal(t, results[0], results[1])
}

// TestHiddenStateOfFirstLayers compares the states under a mask with those of a
// model that ends after these layers.
func TestHiddenStateOfFirstLayers(t *testing.T) {
	llamatest.Library(t)
	tokens := prompt(promptTokens)
	for _, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			spec := randmodel.Small(arch)
			m := llamatest.Open(t, llamatest.Write(t, spec))
			for _, k := range []int{1, 2, 5} {
				spec.Layers = k
				short := llamatest.Open(t, llamatest.Write(t, spec)) // tensors of a name are the same in both
				want := states(t, short, tokens, none)
				got := states(t, m, tokens, from(k, m.NLayer))
				for i := range want {
					requireSame(t, want[i], got[i], fmt.Sprintf("%d layers, token %d", k, i))
				}
			}
		})
	}
}

// BenchmarkInfluence compares decodes with and without the measurement, of a
// prompt and of a single token.
func BenchmarkInfluence(b *testing.B) {
	llamatest.Library(b)
	m := llamatest.Small(b, "llama")
	for _, tokens := range []int{1, 128} {
		for _, influence := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d tokens/influence %t", tokens, influence), func(b *testing.B) {
				c := llamatest.Context(b, m, &llama.ContextOptions{NCtx: 256, Threads: 1, Influence: influence})
				batch := llamatest.Batch(b, prompt(tokens), 0)
				for b.Loop() {
					if err := c.Decode(batch, none); err != nil {
						b.Fatal(err)
					}
					c.Clear()
				}
			})
		}
	}
}
