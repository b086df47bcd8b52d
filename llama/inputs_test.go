package llama_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestLayerInputsStandForTokens starts at a layer, in batches of one and of several
// parts, and compares every bit of the logits with those from the start.
func TestLayerInputsStandForTokens(t *testing.T) {
	llamatest.Library(t)
	tokens := prompt(promptTokens)
	for _, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			m := llamatest.Small(t, arch)
			n := m.NLayer
			for name, nUBatch := range map[string]int{"at once": 0, "small ubatch": 8} {
				c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, KVUnified: true, NUBatch: nUBatch, LayerInputs: true})
				c.ReadLayerInputs(true)
				for range 2 { // the second time with a graph that is used again
					c.Clear()
					decode(t, c, tokens, 0, none)
				}
				c.ReadLayerInputs(false)
				inputs := map[int][][]float32{}
				for _, layer := range []int{1, 3, n - 1} {
					for i := range tokens {
						row, err := c.LayerInput(layer, i)
						require.NoError(t, err)
						inputs[layer] = append(inputs[layer], slices.Clone(row))
					}
				}
				for layer, rows := range inputs {
					for _, mask := range []skip.Mask{none, skip.Mask{}.With(layer, skip.FeedForward), skip.Layers(n - 2).Minus(from(0, layer))} {
						c.Clear()
						want := logits(t, c, llamatest.Batch(t, tokens, 0), mask)
						b, err := llama.NewBatch(len(tokens), &llama.BatchOptions{Embd: m.NEmbd})
						require.NoError(t, err)
						for i, row := range rows {
							require.NoError(t, b.AddEmbedding(row, i, true, 0))
						}
						c.Clear()
						got := logits(t, c, b, mask.Union(from(0, layer)))
						require.NoError(t, b.Close())
						requireSameBits(t, want, got, fmt.Sprint(name, layer, mask))
					}
				}
			}
		})
	}
}

// logits decodes the batch under mask and returns the logits of all its tokens.
func logits(t *testing.T, c *llama.Context, b *llama.Batch, mask skip.Mask) (all []float32) {
	t.Helper()
	require.NoError(t, c.Decode(b, mask))
	for i := range b.Len() {
		row, err := c.Logits(i)
		require.NoError(t, err)
		all = append(all, row...)
	}
	return all
}

// TestLayerInputsThatWereNotRead are no results of another decode.
func TestLayerInputsThatWereNotRead(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, KVUnified: true, LayerInputs: true})
	_, err := c.LayerInput(1, 0)
	require.ErrorIs(t, err, llama.ErrNoOutput)
	decode(t, c, prompt(3), 0, none)
	_, err = c.LayerInput(1, 0)
	require.ErrorIs(t, err, llama.ErrNoOutput, "nobody asked for them")
	c.ReadLayerInputs(true)
	decode(t, c, prompt(7)[3:], 3, none)
	_, err = c.LayerInput(1, 3)
	require.NoError(t, err)
	for _, layer := range []int{-1, 0, m.NLayer} {
		_, err = c.LayerInput(layer, 0)
		require.ErrorIs(t, err, llama.ErrOption)
	}
	for _, i := range []int{-1, 4} {
		_, err = c.LayerInput(1, i)
		require.ErrorIs(t, err, llama.ErrNoOutput)
	}
	decode(t, c, prompt(11)[7:], 7, skip.Layers(3))
	_, err = c.LayerInput(1, 0)
	require.ErrorIs(t, err, llama.ErrNoOutput, "a mask was used")
	require.NoError(t, c.Close())
	c.ReadLayerInputs(true)
	_, err = c.LayerInput(1, 0)
	require.ErrorIs(t, err, llama.ErrClosed)

	for name, o := range map[string]llama.ContextOptions{
		"without":     {NCtx: 256, Threads: 1, KVUnified: true},
		"not unified": {NCtx: 256, Threads: 1, LayerInputs: true},
	} {
		c := llamatest.Context(t, m, &o)
		c.ReadLayerInputs(true)
		decode(t, c, prompt(3), 0, none)
		_, err = c.LayerInput(1, 0)
		require.ErrorIs(t, err, llama.ErrNoOutput, name)
	}
	_, err = m.NewContext(&llama.ContextOptions{NCtx: 256, LayerInputs: true, Influence: true})
	require.ErrorIs(t, err, llama.ErrOption)
}
