package llama_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// A part is what one decode does for a sequence: n tokens, of which the last or all are outputs.
type part struct {
	n   int
	all bool
}

// schedule has the parts of each sequence for each decode: prompts beside single tokens,
// whole prompts in one go, and a sequence that pauses.
var schedule = [][]part{
	{{5, true}, {1, true}, {9, false}, {2, false}, {1, false}, {12, true}, {3, false}, {0, false}},
	{{1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {7, false}},
	{{1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}}, // the usual case: a token for each
	{{1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}, {1, false}}, // and again, in the same graph
	{{1, false}, {4, false}, {1, false}, {0, false}, {6, true}, {1, false}, {1, false}, {1, false}},
}

const rowSequences = 8

// rowMasks are random mixtures of whole layers and halves; the first is empty, so is one more.
func rowMasks(nLayer int, random *rand.Rand) []skip.Mask {
	list := []skip.Mask{{}}
	for len(list) < rowSequences-1 {
		var m skip.Mask
		for l := range nLayer {
			switch random.IntN(6) {
			case 0:
				m = m.With(l, skip.Attention)
			case 1:
				m = m.With(l, skip.FeedForward)
			case 2:
				m = m.With(l, skip.Whole)
			}
		}
		if m.Check(nLayer) == nil {
			list = append(list, m)
		}
	}
	return append(list, skip.Mask{})
}

// rowRun has the logits (nVocab,) of every output of every sequence, in order.
type rowRun [rowSequences][][]float32

// runRows goes through the schedule: all sequences in one decode, or each in decodes of its own.
func runRows(t *testing.T, m *llama.Model, opts llama.ContextOptions, masks []skip.Mask, alone llama.Alone, together bool) (out rowRun, stats llama.Stats) {
	t.Helper()
	c, err := m.NewContext(&opts)
	require.NoError(t, err)
	defer c.Close()
	b, err := llama.NewBatch(64, nil)
	require.NoError(t, err)
	defer b.Close()
	b.Alone = alone
	var pos [rowSequences]int
	var owners []int // the sequence of each token, -1 = no output
	collect := func(mask skip.Mask) {
		require.NoError(t, c.Decode(b, mask))
		for i, s := range owners {
			if s >= 0 {
				logits, err := c.Logits(i)
				require.NoError(t, err)
				out[s] = append(out[s], slices.Clone(logits))
			}
		}
		owners = owners[:0]
		b.Clear()
	}
	for _, step := range schedule {
		for s, p := range step {
			for i := range p.n {
				output := p.all || i == p.n-1
				require.NoError(t, b.Add(llama.Token((pos[s]*37+s*11+3)%256), pos[s], output, s))
				owners = append(owners, s)
				if !output {
					owners[len(owners)-1] = -1
				}
				pos[s]++
			}
			switch {
			case p.n == 0:
			case together && masks[s] != skip.Mask{}: // the empty ones come with the decode
				require.NoError(t, b.SetMask(s, masks[s]))
			case !together:
				collect(masks[s])
			}
		}
		if together {
			collect(skip.Mask{})
		}
	}
	return out, c.Stats()
}

// apart is how far the logits of two runs are from each other at most, over all sequences or over one.
func apart(a, b rowRun, sequences ...int) (worst float64) {
	for s := range a {
		if len(sequences) > 0 && !slices.Contains(sequences, s) {
			continue
		}
		for i := range a[s] {
			for k := range a[s][i] {
				worst = max(worst, math.Abs(float64(a[s][i][k]-b[s][i][k])))
			}
		}
	}
	return worst
}

// TestRowMasks decodes sequences under different masks together. Each must come to what it
// comes to alone: to the bit where every token is computed as if alone, else as closely as
// an unmasked batch comes to its own singles.
func TestRowMasks(t *testing.T) {
	llamatest.Library(t)
	for i, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			m := llamatest.Small(t, arch)
			random := rand.New(rand.NewPCG(uint64(i), 15))
			for _, v := range []struct {
				name string
				opts llama.ContextOptions
			}{
				{"flash attention", llama.ContextOptions{NCtx: 256, Threads: 2, NSeqMax: rowSequences, KVUnified: true, Flash: llama.FlashOn}},
				{"no flash attention", llama.ContextOptions{NCtx: 256, Threads: 1, NSeqMax: rowSequences, KVUnified: true, Flash: llama.FlashOff}},
				{"embeddings", llama.ContextOptions{NCtx: 256, Threads: 1, NSeqMax: rowSequences, KVUnified: true, Embeddings: true}},
			} {
				masks := rowMasks(m.NLayer, random)
				none := make([]skip.Mask, rowSequences)
				whole, _ := runRows(t, m, v.opts, none, llama.Together, true)
				wholeSingles, _ := runRows(t, m, v.opts, none, llama.Together, false)
				got, stats := runRows(t, m, v.opts, masks, llama.Together, true)
				want, _ := runRows(t, m, v.opts, masks, llama.Together, false)
				require.Positive(t, stats.SublayersGated)
				stock, gated := apart(whole, wholeSingles), apart(got, want)
				effect := math.Inf(1)
				for s, mask := range masks {
					if mask != (skip.Mask{}) {
						effect = min(effect, apart(want, whole, s))
					}
				}
				t.Logf("%s: an unmasked batch is %.2g from its singles, one of different masks %.2g; a mask changes %.2g at least",
					v.name, stock, gated, effect)
				// Both are the largest of thousands of rounding errors of one kind; a wrong gate is as large as a mask's effect.
				require.Less(t, gated, 3*stock)
				require.Greater(t, effect, 50*gated)
				if v.opts.Flash == llama.FlashOn {
					got, _ = runRows(t, m, v.opts, masks, llama.MultiplyAlone, true)
					want, _ = runRows(t, m, v.opts, masks, llama.MultiplyAlone, false)
					require.Zero(t, apart(got, want), "computed as if alone")
				}
			}
		})
	}
}

// TestRowMasksSwitch changes masks, order, lengths and outputs of the rows from decode to
// decode, the number of tokens often staying the same. Each result is to the bit that of a
// decode of the sequence alone: a gate left from the decode before would show.
func TestRowMasksSwitch(t *testing.T) {
	llamatest.Library(t)
	for i, arch := range []string{"gemma3", "llama", "llama-moe", "phi3"} {
		t.Run(arch, func(t *testing.T) {
			spec := randmodel.Small(arch)
			spec.Layers = 6
			m := llamatest.Open(t, llamatest.Write(t, spec))
			testRowMasksSwitch(t, m, rand.New(rand.NewPCG(uint64(i), 16)))
		})
	}
}

func testRowMasksSwitch(t *testing.T, m *llama.Model, random *rand.Rand) {
	const (
		sequences = 4
		prefix    = 5
		switches  = 400
	)
	opts := &llama.ContextOptions{NCtx: 256, Threads: 1, NSeqMax: sequences, KVUnified: true, Flash: llama.FlashOn}
	c, alone := llamatest.Context(t, m, opts), llamatest.Context(t, m, opts)
	for s := range sequences {
		for _, c := range []*llama.Context{c, alone} {
			require.NoError(t, c.Decode(llamatest.Batch(t, prompt(prefix + s)[s:], 0, s), none))
		}
	}
	b, err := llama.NewBatch(32, nil)
	require.NoError(t, err)
	defer b.Close()
	b.Alone = llama.MultiplyAlone
	list := masks(m.NLayer, 17)
	add := func(s, n int, all bool) {
		for i := range n {
			require.NoError(t, b.Add(llama.Token(31*s+7*i), prefix+i, all || i == n-1, s))
		}
	}
	type key struct {
		mask skip.Mask
		s, n int
		all  bool
	}
	known := map[key][][]float32{}
	want := func(k key) [][]float32 {
		if rows, ok := known[k]; ok {
			return rows
		}
		b.Clear()
		add(k.s, k.n, k.all)
		require.NoError(t, alone.Decode(b, k.mask))
		var rows [][]float32
		for i := range k.n {
			if k.all || i == k.n-1 {
				logits, err := alone.Logits(i)
				require.NoError(t, err)
				rows = append(rows, slices.Clone(logits))
			}
		}
		require.NoError(t, alone.Remove(k.s, prefix, -1))
		known[k] = rows
		return rows
	}
	for i := range switches {
		var keys []key
		for _, s := range random.Perm(sequences)[:2+random.IntN(sequences-1)] {
			keys = append(keys, key{list[random.IntN(len(list))], s, 1 + random.IntN(3)/2, random.IntN(2) == 0})
			want(keys[len(keys)-1])
		}
		b.Clear()
		for _, k := range keys {
			add(k.s, k.n, k.all)
			require.NoError(t, b.SetMask(k.s, k.mask))
		}
		require.NoError(t, c.Decode(b, none))
		at := 0
		for _, k := range keys {
			rows := known[k]
			for r := range k.n {
				if k.all || r == k.n-1 {
					logits, err := c.Logits(at)
					require.NoError(t, err)
					requireSameBits(t, rows[0], logits, fmt.Sprintf("switch %d, sequence %d under %s", i, k.s, k.mask))
					rows = rows[1:]
				}
				at++
			}
			require.NoError(t, c.Remove(k.s, prefix, -1))
		}
	}
}
