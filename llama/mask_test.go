package llama_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	promptTokens = 21 // no multiple of the small n_ubatch below, and beyond gemma3's window
	decodeSteps  = 16
)

// prompt is a fixed text's worth of tokens inside every small vocabulary.
func prompt(n int) []llama.Token {
	tokens := make([]llama.Token, n)
	for i := range tokens {
		tokens[i] = llama.Token((i*37 + 11) % 256)
	}
	return tokens
}

// masks are the ends, the extremes and, beyond them, random mixtures.
func masks(nLayer int, seed uint64) []skip.Mask {
	all := func(half skip.Half) (m skip.Mask) {
		for l := range nLayer {
			m = m.With(l, half)
		}
		return m
	}
	inner := skip.Layers(2, 3)
	list := []skip.Mask{
		{},
		skip.Layers(0), skip.Layers(nLayer - 1), skip.Layers(0, nLayer-1), // first and last
		inner, skip.Layers(1, 2, 3, 4), skip.Layers(nLayer-2, nLayer-1), // adjacent
		all(skip.Whole).Minus(skip.Layers(0)), all(skip.Whole).Minus(skip.Layers(nLayer - 1)), all(skip.Whole).Minus(skip.Layers(3)), // all but one
		all(skip.Attention), all(skip.FeedForward),
		skip.Mask{}.With(0, skip.Attention), skip.Mask{}.With(0, skip.FeedForward),
		skip.Mask{}.With(nLayer-1, skip.Attention), skip.Mask{}.With(nLayer-1, skip.FeedForward),
		inner.With(4, skip.Attention).With(5, skip.FeedForward), inner.With(1, skip.FeedForward).With(4, skip.FeedForward),
		skip.Layers(nLayer-1).With(nLayer-2, skip.FeedForward), skip.Layers(0).With(1, skip.Attention),
	}
	random := rand.New(rand.NewPCG(seed, 0))
	for len(list) < 32 {
		var m skip.Mask
		for l := range nLayer {
			m = m.With(l, skip.Half(random.IntN(4)&random.IntN(4))) // each half with one chance in four
		}
		if m.Check(nLayer) == nil && !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

// identity picks the output projections of what mask skips: with these at zero
// the model computes the same as under the mask.
func identity(mask skip.Mask) func(string) bool {
	return func(name string) bool {
		var layer int
		if _, err := fmt.Sscanf(name, "blk.%d.", &layer); err != nil {
			return false
		}
		return mask.Skipped(layer)&skip.Attention != 0 && strings.Contains(name, ".attn_output.") ||
			mask.Skipped(layer)&skip.FeedForward != 0 && strings.Contains(name, ".ffn_down")
	}
}

// variant is a way to run a prompt and its continuation.
type variant struct {
	name      string
	opts      llama.ContextOptions
	sequences []int
}

var variants = []variant{
	{"several sequences, small ubatch, no flash attention",
		llama.ContextOptions{NCtx: 512, Threads: 1, NUBatch: 8, NSeqMax: 3, Flash: llama.FlashOff}, []int{0, 1, 2}},
	{"flash attention", llama.ContextOptions{NCtx: 512, Threads: 1, Flash: llama.FlashOn}, []int{0}},
	{"embeddings", llama.ContextOptions{NCtx: 512, Threads: 1, NUBatch: 16, Embeddings: true}, []int{0}},
}

// run decodes a prompt and decodeSteps tokens and returns every logit, and in
// embeddings mode every number of the hidden states. prepare, if given, sees the context first.
func run(t *testing.T, m *llama.Model, v variant, mask skip.Mask, prepare ...func(*llama.Context)) (numbers []float32, stats llama.Stats) {
	t.Helper()
	c, err := m.NewContext(&v.opts)
	require.NoError(t, err)
	defer c.Close()
	for _, p := range prepare {
		p(c)
	}
	tokens := prompt(promptTokens + decodeSteps)
	collect := func(b *llama.Batch) {
		require.NoError(t, c.Decode(b, mask))
		for i := range b.Len() {
			logits, err := c.Logits(i)
			require.NoError(t, err)
			numbers = append(numbers, logits...)
			if v.opts.Embeddings {
				embedding, err := c.Embedding(i)
				require.NoError(t, err)
				numbers = append(numbers, embedding...)
			}
		}
	}
	b, err := llama.NewBatch(promptTokens*len(v.sequences), nil)
	require.NoError(t, err)
	defer b.Close()
	for pos, tok := range tokens {
		for _, s := range v.sequences {
			require.NoError(t, b.Add(tok+llama.Token(s), pos, true, s))
		}
		if pos >= promptTokens-1 { // the prompt at once, then one by one
			collect(b)
			b.Clear()
		}
	}
	return numbers, c.Stats()
}

// TestMaskEqualsIdentityLayers is the engine's central promise: under a mask
// the numbers are, to the last bit, those of the model whose skipped sublayers
// add nothing.
func TestMaskEqualsIdentityLayers(t *testing.T) {
	llamatest.Library(t)
	for i, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			path := llamatest.Write(t, randmodel.Small(arch))
			m := llamatest.Open(t, path)
			list := masks(m.NLayer, uint64(i))
			require.GreaterOrEqual(t, len(list), 30)
			for n, mask := range list {
				t.Run(mask.String(), func(t *testing.T) {
					reference := llamatest.Open(t, llamatest.Zeroed(t, path, identity(mask)))
					for k := range 2 { // each mask in two of the variants, each variant in two thirds of the masks
						v := variants[(n+k)%len(variants)]
						want, _ := run(t, reference, v, skip.Mask{})
						got, stats := run(t, m, v, mask)
						requireSame(t, want, got, v.name)
						whole, _ := mask.WholeLayers()
						require.Equal(t, len(whole), stats.LayersRemoved)
						require.Equal(t, mask.Len()-2*len(whole), stats.SublayersRemoved)
						require.Equal(t, !mask.IsEmpty(), stats.NodesRemoved > 0)
					}
				})
			}
			logApart(t)
		})
	}
}

// requireSameBits compares without testify's own diff, which would print
// millions of numbers.
func requireSameBits(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		if want[i] != got[i] {
			require.Failf(t, "numbers differ", "%s: number %d is %g, want %g", what, i, got[i], want[i])
		}
	}
}
