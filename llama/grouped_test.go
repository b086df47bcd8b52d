package llama_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func needGrouped(t *testing.T) {
	t.Helper()
	needCPU(t, "grouped attention runs on the CPU")
	if !llama.GroupedAvailable() {
		t.Skip("this processor has no vectors for grouped attention")
	}
	llamatest.Library(t)
}

// behind decodes so many tokens of a sequence in one batch and then one more alone, whose logits it
// gives.
func behind(t *testing.T, c *llama.Context, tokens int) []float32 {
	t.Helper()
	require.NoError(t, c.Remove(0, 0, -1))
	feed(t, c, skip.Mask{}, 0, 0, tokens)
	return slices.Clone(feed(t, c, skip.Mask{}, 0, tokens, tokens+1))
}

// TestGroupedAttention compares with llama.cpp's own attention without flash attention, which
// rounds queries and weights to 16 bits: in texts shorter than a block of cells, of several
// segments, and at the edges of both.
func TestGroupedAttention(t *testing.T) {
	needGrouped(t)
	replaced := 0
	for name, path := range localModels(t) {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			o := llama.ContextOptions{NCtx: 1024, NUBatch: 1024, Threads: 2, Flash: llama.FlashOff}
			stock := llamatest.Context(t, m, &o)
			o.Flash = llama.FlashGrouped
			grouped := llamatest.Context(t, m, &o)
			wrong, results := 0, 0
			for _, tokens := range []int{1, 7, 31, 32, 255, 256, 300, 770} {
				results++
				if largest(behind(t, stock, tokens), behind(t, grouped, tokens)) > manyTokens {
					wrong++
				}
			}
			replaced += grouped.GroupedLayers()
			require.LessOrEqual(t, float64(wrong), otherExpert*float64(results))
			if name == "llama" {
				require.Zero(t, wrong)
				require.Equal(t, m.NLayer, grouped.GroupedLayers())
			}
		})
	}
	require.Positive(t, replaced)
}

// TestGroupedAttentionKeepsItsBits has a sequence come out the same with any number of threads, and with
// another one's tokens between its own in the cache.
func TestGroupedAttentionKeepsItsBits(t *testing.T) {
	needGrouped(t)
	m := llamatest.Small(t, "llama")
	one := func(c *llama.Context, seq, pos int) []float32 { return feed(t, c, skip.Mask{}, seq, pos, pos+1) }
	const tokens = 600
	var want [][]float32
	for _, threads := range []int{1, 2, 3} {
		for _, others := range []bool{false, true} {
			c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 3 * tokens, Threads: threads, NSeqMax: 2, KVUnified: true, Flash: llama.FlashGrouped})
			for pos := range tokens {
				got := slices.Clone(one(c, 0, pos))
				if len(want) == pos {
					want = append(want, got)
				}
				require.Equal(t, want[pos], got, "%d threads, others: %t, token %d", threads, others, pos)
				if others && pos%3 != 0 {
					one(c, 1, pos-pos/3)
				}
			}
		}
	}
}

// TestGroupedAttentionLeavesTheRest has what it is not made for computed by llama.cpp.
func TestGroupedAttentionLeavesTheRest(t *testing.T) {
	needGrouped(t)
	m := llamatest.Small(t, "llama")
	for name, o := range map[string]llama.ContextOptions{
		"quantised keys": {Flash: llama.FlashGrouped, KType: llama.CacheQ8_0},
		"BF16 values":    {Flash: llama.FlashGrouped, VType: llama.CacheBF16},
	} {
		o.NCtx, o.Threads = 256, 1
		got := behind(t, llamatest.Context(t, m, &o), 20)
		o.Flash = llama.FlashOn
		require.Equal(t, behind(t, llamatest.Context(t, m, &o), 20), got, name)
	}
}

// TestGroupedPrompts has prompts of two sequences in one batch come out as each alone without flash attention. With
// AVX-512 they are computed in tiles, whose rows see the cells of both; elsewhere llama.cpp computes them.
func TestGroupedPrompts(t *testing.T) {
	needGrouped(t)
	const before, tokens = 70, 150
	for _, name := range []string{"llama", "qwen3", "gemma3", "phi3"} {
		m := llamatest.Small(t, name)
		o := llama.ContextOptions{NCtx: 1024, NUBatch: 1024, NBatch: 1024, Threads: 2, NSeqMax: 2, KVUnified: true, Flash: llama.FlashOff}
		stock := llamatest.Context(t, m, &o)
		o.Flash = llama.FlashGrouped
		grouped := llamatest.Context(t, m, &o)
		var logits [2][][]float32
		for i, c := range []*llama.Context{stock, grouped} {
			b, err := llama.NewBatch(2*tokens, nil)
			require.NoError(t, err)
			defer b.Close()
			for from, to := 0, before; from < tokens; from, to = to, tokens { // the second piece has cells of both before it
				b.Clear()
				for pos := from; pos < to; pos++ {
					for seq := range 2 {
						require.NoError(t, b.Add(llama.Token(10+(7*pos+31*seq)%200), pos, true, seq))
					}
				}
				require.NoError(t, c.Decode(b, skip.Mask{}))
				for row := range b.Len() {
					x, err := c.Logits(row)
					require.NoError(t, err)
					logits[i] = append(logits[i], slices.Clone(x))
				}
			}
		}
		worst := 0.0
		for row := range logits[0] {
			worst = max(worst, largest(logits[0][row], logits[1][row]))
		}
		require.LessOrEqual(t, worst, manyTokens, name)
	}
}
