package llama_test

import (
	"math"
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
			switch n := random.IntN(6); {
			case n == 0:
				m = m.With(l, skip.Whole)
			case n == 1:
				m = m.With(l, skip.Attention)
			case n == 2:
				m = m.With(l, skip.FeedForward)
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
func runRows(t *testing.T, m *llama.Model, opts llama.ContextOptions, masks []skip.Mask, alone llama.Isolation, together bool) (out rowRun, stats llama.Stats) {
	t.Helper()
	c, err := m.NewContext(&opts)
	require.NoError(t, err)
	defer c.Close()
	b, err := llama.NewBatch(64, nil)
	require.NoError(t, err)
	defer b.Close()
	b.Isolation = alone
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
	models := map[string]string{"gptneox, one after the other": parallelModel(t, "gptneox", true)}
	for _, arch := range randmodel.SmallNames() {
		models[arch] = llamatest.Write(t, randmodel.Small(arch))
	}
	for arch := range parallelTensors {
		models[arch] = parallelModel(t, arch, false)
	}
	for name, path := range models {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			random := rand.New(rand.NewPCG(uint64(len(name)), 15))
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
				whole, _ := runRows(t, m, v.opts, none, llama.Shared, true)
				wholeSingles, _ := runRows(t, m, v.opts, none, llama.Shared, false)
				got, stats := runRows(t, m, v.opts, masks, llama.Shared, true)
				want, _ := runRows(t, m, v.opts, masks, llama.Shared, false)
				require.Positive(t, stats.SublayersGated)
				experts := gpuRun() && strings.Contains(name, "moe")
				if experts {
					// A batch rounds otherwise than single tokens there, and at a near-tie chooses other
					// experts. So each row is compared with itself in batches that have its mask alone.
					wholeSingles = whole
					for s, mask := range masks {
						same, _ := runRows(t, m, v.opts, slices.Repeat([]skip.Mask{mask}, rowSequences), llama.Shared, true)
						want[s] = same[s]
					}
				}
				stock, gated := apart(whole, wholeSingles), apart(got, want)
				effect := math.Inf(1)
				for s, mask := range masks {
					if mask != (skip.Mask{}) {
						effect = min(effect, apart(want, whole, s))
					}
				}
				t.Logf("%s: an unmasked batch is %.2g from its singles, one of different masks %.2g; a mask changes %.2g at least",
					v.name, stock, gated, effect)
				// Both are the largest of thousands of rounding errors of one kind, the larger ones from the cache's
				// F16, which has 11 bits; a wrong gate is as large as a mask's effect.
				limit := 3 * max(stock, 1.0/2048)
				if experts {
					limit = fusedRounding // the rows' graphs are not the same
				}
				require.Less(t, gated, limit)
				require.Greater(t, effect, 50*gated)
				if v.opts.Flash == llama.FlashOn && !gpuRun() && llama.Isolates() {
					got, _ = runRows(t, m, v.opts, masks, llama.AllAlone, true)
					want, _ = runRows(t, m, v.opts, masks, llama.AllAlone, false)
					require.Zero(t, apart(got, want), "computed as if alone")
				}
			}
		})
	}
}

// TestRowMasksOfOneKind has one mask for all sequences, in a context and an order of tokens
// that different ones would be refused in: that is a usual decode.
func TestRowMasksOfOneKind(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	mask := skip.Layers(1).With(2, skip.Attention)
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 512, NUBatch: 4, NSeqMax: 2, Threads: 1})
	var results [2][]float32
	for own := range results {
		b, err := llama.NewBatch(6, nil)
		require.NoError(t, err)
		defer b.Close()
		for i := range 6 {
			require.NoError(t, b.Add(llama.Token(i), i/2, true, i%2))
		}
		under := mask
		if own == 1 {
			under = none
			require.NoError(t, b.SetMask(0, mask))
			require.NoError(t, b.SetMask(1, mask))
		}
		require.NoError(t, c.Decode(b, under))
		logits, err := c.Logits(-1)
		require.NoError(t, err)
		results[own] = slices.Clone(logits)
		stats := c.Stats()
		require.Equal(t, []int{1, 1, 0}, []int{stats.LayersRemoved, stats.SublayersRemoved, stats.SublayersGated})
		b.Clear()
		require.NoError(t, b.Add(1, 3, true, 0))
		require.NoError(t, c.Decode(b, none), "Clear forgets the masks")
		require.Zero(t, c.Stats().LayersRemoved)
		c.Clear()
	}
	require.Equal(t, results[0], results[1])
}

// TestRowMasksTakeOutWhatAllSkip counts what leaves the graph and what stays for some.
func TestRowMasksTakeOutWhatAllSkip(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, NSeqMax: 3, KVUnified: true, Threads: 1})
	b := llamatest.Batch(t, prompt(2), 0, 0, 1, 2)
	require.NoError(t, b.SetMask(1, skip.Layers(1, 2).With(4, skip.Attention)))
	require.NoError(t, b.SetMask(2, skip.Layers(1, 3).With(2, skip.FeedForward)))
	require.NoError(t, c.Decode(b, skip.Layers(1).With(2, skip.FeedForward)))
	stats := c.Stats()
	require.Equal(t, 1, stats.LayersRemoved)
	require.Equal(t, 1, stats.SublayersRemoved)
	require.Equal(t, 4, stats.SublayersGated, "a2, a3, f3, a4")
}

// TestRowMasksRefused has what cannot be done exactly in one decode; nothing has happened then.
func TestRowMasksRefused(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	usual := llama.ContextOptions{NCtx: 512, NUBatch: 8, NSeqMax: 3, KVUnified: true, Threads: 1}
	own, small := usual, usual
	own.KVUnified = false
	small.NUBatch = 4
	sequences := [][]int{{0}, {0}, {1}, {1}, {2}}
	for name, c := range map[string]struct {
		opts llama.ContextOptions
		seqs [][]int // of each token
		mask skip.Mask
		err  error
		says string
	}{
		"caches of their own": {own, sequences, skip.Layers(1), llama.ErrMask, "need a context with KVUnified"},
		"two ubatches":        {small, sequences, skip.Layers(1), llama.ErrMask, "5 tokens under different masks, the context computes 4 at once: raise NUBatch"},
		"mixed tokens":        {usual, [][]int{{0}, {1}, {2}, {1}}, skip.Layers(1), llama.ErrMask, "those of sequence 1 do not"},
		"a shared token":      {usual, [][]int{{0}, {2, 1}}, skip.Layers(1), llama.ErrBatch, "token 1 is in sequences 2 and 1, which have different masks"},
		"too many layers":     {usual, sequences, skip.Layers(3), llama.ErrMask, "names layer 3, but the model's layers end at 2"},
		"all layers":          {usual, sequences, skip.Layers(0, 1, 2), llama.ErrMask, "skips all 3 layers"},
		"no shortlist":        {usual, sequences, none.WithShortlist(64), llama.ErrMask, "none was made for this model"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := llamatest.Context(t, m, &c.opts)
			b, err := llama.NewBatch(8, &llama.BatchOptions{Sequences: 2})
			require.NoError(t, err)
			defer b.Close()
			fill := func() {
				b.Clear()
				var pos [3]int
				for i, seqs := range c.seqs {
					require.NoError(t, b.Add(llama.Token(i), pos[seqs[0]], true, seqs...))
					for _, s := range seqs {
						pos[s]++
					}
				}
			}
			fill()
			require.NoError(t, b.SetMask(1, c.mask))
			for range 2 { // the refused graph must not be used again either
				err = ctx.Decode(b, none)
				require.ErrorIs(t, err, c.err)
				require.ErrorContains(t, err, c.says)
				for s := range 3 {
					requirePositions(t, ctx, s, -1, -1)
				}
			}
			fill()
			if b.Len() == len(sequences) {
				require.NoError(t, ctx.Decode(b, none))
				require.Equal(t, decodeFresh(t, m, c.opts, b), last(t, ctx))
			}
		})
	}

	b := llamatest.Batch(t, prompt(1), 0)
	require.ErrorIs(t, b.SetMask(-1, none), llama.ErrBatch)
	require.ErrorIs(t, b.SetMask(256, none), llama.ErrBatch)
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.SetMask(0, none), llama.ErrClosed)
}

// last gives the logits of the last output.
func last(t *testing.T, c *llama.Context) []float32 {
	t.Helper()
	logits, err := c.Logits(-1)
	require.NoError(t, err)
	return slices.Clone(logits)
}

// decodeFresh gives the last logits of the batch in a new context.
func decodeFresh(t *testing.T, m *llama.Model, opts llama.ContextOptions, b *llama.Batch) []float32 {
	t.Helper()
	c := llamatest.Context(t, m, &opts)
	require.NoError(t, c.Decode(b, none))
	return last(t, c)
}

// TestRowMasksShortlist has sequences with shortlists of different sizes in one decode, and
// beside one that wants the whole output matrix, which all get then.
func TestRowMasksShortlist(t *testing.T) {
	llamatest.Library(t)
	if gpuRun() {
		t.Skip("the shortlist is off on a GPU")
	}
	if !llama.Isolates() {
		t.Skip("tokens of a batch cannot be computed apart on this system")
	}
	m := llamatest.Open(t, llamatest.Write(t, randmodel.Small("llama")))
	list, _ := newShortlist(t, m, -1e9) // never in doubt
	opts := &llama.ContextOptions{NCtx: 256, NSeqMax: 3, KVUnified: true, Threads: 1}
	masks := []skip.Mask{none.WithShortlist(listSize), skip.Layers(2).WithShortlist(listSize / 2), skip.Layers(3).WithShortlist(listSize)}
	decodeAll := func(masks []skip.Mask, together bool) (rows [][]float32, use llama.ShortlistUse) {
		c := llamatest.Context(t, m, opts)
		require.NoError(t, c.SetShortlist(list))
		b := llamatest.Batch(t, prompt(3), 0, 0, 1, 2)
		b.Isolation = llama.AllAlone
		if together {
			for s, mask := range masks {
				require.NoError(t, b.SetMask(s, mask))
			}
			require.NoError(t, c.Decode(b, none))
		}
		for s, mask := range masks {
			if !together {
				own := llamatest.Batch(t, prompt(3), 0, s)
				own.Isolation = llama.AllAlone
				require.NoError(t, c.Decode(own, mask))
				rows = append(rows, last(t, c))
				continue
			}
			logits, err := c.Logits(3*s + 2)
			require.NoError(t, err)
			rows = append(rows, slices.Clone(logits))
		}
		return rows, c.ShortlistUse()
	}
	want, _ := decodeAll(masks, false)
	got, use := decodeAll(masks, true)
	require.Equal(t, 9, use.Rows)
	require.Zero(t, use.Extended)
	whole, _ := decodeAll([]skip.Mask{none, skip.Layers(2), skip.Layers(3)}, false)
	for s := range masks {
		requireClose(t, want[s], got[s])
		require.Positive(t, difference(whole[s], got[s]), "the preview gave way to the whole matrix")
	}

	masks[1] = skip.Layers(2)
	got, use = decodeAll(masks, true)
	require.Zero(t, use.Rows)
	for s := range masks {
		requireClose(t, whole[s], got[s]) // the whole matrix for all
	}
}

// TestRowMasksAllocateNothing holds for the path of every step of several answers.
func TestRowMasksAllocateNothing(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, NSeqMax: 2, KVUnified: true, Threads: 1})
	b, err := llama.NewBatch(2, nil)
	require.NoError(t, err)
	defer b.Close()
	step := func() {
		b.Clear()
		for s := range 2 {
			if err := b.Add(7, 0, true, s); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.SetMask(1, skip.Layers(1)); err != nil {
			t.Fatal(err)
		}
		if err := c.Decode(b, none); err != nil {
			t.Fatal(err)
		}
		c.Clear()
	}
	step()
	require.Zero(t, testing.AllocsPerRun(100, step))
}

// TestRowMasksSwitch changes masks, order, lengths and outputs of the rows from decode to
// decode, or some of these alone. Each result is to the bit that of a decode of the
// sequence alone: a gate left from the decode before would show.
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
	tolerance := 0.0
	if gpuRun() || !llama.Isolates() {
		tolerance = 0.05 // of logits of order 1, which a wrong mask changes by that order
	}
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
	b.Isolation = llama.AllAlone
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
	var keys []key
	for i := range switches {
		if i%3 == 0 || len(keys) == 0 { // else the same rows again, with other outputs
			keys = keys[:0]
			for _, s := range random.Perm(sequences)[:2+random.IntN(sequences-1)] {
				keys = append(keys, key{mask: list[random.IntN(len(list))], s: s, n: 1 + random.IntN(2)})
			}
		}
		b.Clear()
		for k := range keys {
			keys[k].all = random.IntN(2) == 0
			want(keys[k])
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
					require.LessOrEqual(t, difference(rows[0], logits), tolerance, "switch %d, sequence %d under %s", i, k.s, k.mask)
					rows = rows[1:]
				}
				at++
			}
			require.NoError(t, c.Remove(k.s, prefix, -1))
		}
	}
}
