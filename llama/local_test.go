package llama_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// localMask makes the attention of random layers local and skips that of all others, so that
// stock llama.cpp can be made to compute the same: it hides cells from all layers or from none.
func localMask(nLayer int, random *rand.Rand) (skip.Mask, skip.Window) {
	w := skip.Window{Recent: 2 + random.IntN(12), Sinks: random.IntN(6)}
	var m skip.Mask
	chance := 1 + random.IntN(4)
	for l := range nLayer {
		switch {
		case l == 0 || random.IntN(4) < chance:
			m = m.WithLocal(l, w)
		case random.IntN(2) == 0:
			m = m.With(l, skip.Attention)
		default:
			m = m.WithWritten(l)
		}
	}
	return m, w
}

// token is one of every small vocabulary.
func token(seq, pos int) llama.Token { return llama.Token((pos*37 + seq*11 + 3) % 256) }

// feed decodes the tokens of a sequence at the positions from (inclusive) to to (exclusive) in
// one batch and gives the last one's logits.
func feed(t *testing.T, c *llama.Context, mask skip.Mask, seq, from, to int) []float32 {
	t.Helper()
	b, err := llama.NewBatch(to-from, nil)
	require.NoError(t, err)
	defer b.Close()
	for pos := from; pos < to; pos++ {
		require.NoError(t, b.Add(token(seq, pos), pos, pos == to-1, seq))
	}
	require.NoError(t, c.Decode(b, mask))
	return last(t, c)
}

// seeing decodes one token of a sequence by stock llama.cpp so that it sees a window alone: in
// another sequence, other, which has got nothing but the window's cells.
func seeing(t *testing.T, c *llama.Context, mask skip.Mask, w skip.Window, seq, other, pos int) []float32 {
	t.Helper()
	require.NoError(t, c.Remove(other, 0, -1))
	first := max(pos-w.Recent+1, 0)
	require.NoError(t, c.Copy(seq, other, 0, min(w.Sinks, first)))
	require.NoError(t, c.Copy(seq, other, first, pos))
	b, err := llama.NewBatch(1, nil)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, b.Add(token(seq, pos), pos, true, other))
	require.NoError(t, c.Decode(b, mask))
	require.NoError(t, c.Copy(other, seq, pos, pos+1))
	return last(t, c)
}

// largest is how far two lists of numbers are from each other at most.
func largest(a, b []float32) (worst float64) {
	for i := range a {
		worst = max(worst, math.Abs(float64(a[i]-b[i])))
	}
	return worst
}

var localVariants = []struct {
	name   string
	opts   llama.ContextOptions
	bits   bool // the kernel goes from cell to cell
	blocks bool // a number is stored in a block with others
}{
	{"flash attention", llama.ContextOptions{Flash: llama.FlashOn}, true, false},
	{"flash attention, Q8_0", llama.ContextOptions{Flash: llama.FlashOn, KType: llama.CacheQ8_0, VType: llama.CacheQ8_0}, true, true},
	{"flash attention, BF16 and Q4_0", llama.ContextOptions{Flash: llama.FlashOn, KType: llama.CacheBF16, VType: llama.CacheQ4_0}, true, true},
	{"grouped", llama.ContextOptions{Flash: llama.FlashGrouped}, true, false},
	{"no flash attention", llama.ContextOptions{Flash: llama.FlashOff}, false, false},
	{"no flash attention, Q8_0 and F32", llama.ContextOptions{Flash: llama.FlashOff, KType: llama.CacheQ8_0, VType: llama.CacheF32}, false, true},
}

// localModels are the architectures of the mask tests, by name.
func localModels(t *testing.T) map[string]string {
	t.Helper()
	models := map[string]string{"gptneox, one after the other": parallelModel(t, "gptneox", true)}
	for _, arch := range randmodel.SmallNames() {
		models[arch] = llamatest.Write(t, randmodel.Small(arch))
	}
	for arch := range parallelTensors {
		models[arch] = parallelModel(t, arch, false)
	}
	return models
}

// Bounds of what logits, which are of order 1, may differ by where numbers are summed in another
// order: a few steps of the cache's F16, which has 11 bits, as an unmasked batch differs from its
// singles; in Q8_0 a sum at the edge of a step of 1/127 falls to its other side.
const (
	otherOrder     = 3.0 / 2048
	otherOrderQ8_0 = 1.0 / 127
	// Products with several tokens sum in another order than those with one, in each of the layers.
	manyTokens = 8 * 3.0 / 2048
	// At a near-tie another order chooses another expert: this share of results may then differ more.
	otherExpert = 0.2
	// counts is what a window changes at least, in the random layers of one model of which it hides most.
	counts = 0.03
)

const noLocal = "a cache on a GPU takes no local attention"

// TestLocalAttention compares with stock llama.cpp whose attention mask has the same pattern:
// its tokens are decoded in sequences that have the window's cells alone. Without flash
// attention softmax and product sum hidden cells in as zeros, in another order.
func TestLocalAttention(t *testing.T) {
	needCPU(t, noLocal)
	llamatest.Library(t)
	for name, path := range localModels(t) {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			random := rand.New(rand.NewPCG(uint64(len(name)), 17))
			effect, apart := 0.0, 0.0
			for _, v := range localVariants {
				if parallelTensors[strings.Split(name, ",")[0]] != nil && v.blocks {
					continue // their heads are smaller than a block
				}
				within := otherOrder
				if v.blocks {
					within = otherOrderQ8_0
				}
				for range 3 {
					mask, w := localMask(m.NLayer, random)
					v.opts.NCtx, v.opts.Threads, v.opts.NSeqMax, v.opts.KVUnified = 256, 1, 2, true
					stock, local := llamatest.Context(t, m, &v.opts), llamatest.Context(t, m, &v.opts)
					const prompt, end = 21, 40
					feed(t, stock, mask.WithoutLocal(), 0, 0, prompt)
					feed(t, local, mask.WithoutLocal(), 0, 0, prompt)
					for pos := prompt; pos < end; pos++ {
						want := seeing(t, stock, mask.WithoutLocal(), w, 0, 1, pos)
						whole := feed(t, local, mask.WithoutLocal(), 0, pos, pos+1)
						require.NoError(t, local.Remove(0, pos, -1))
						got := feed(t, local, mask, 0, pos, pos+1)
						require.Positive(t, local.Stats().LocalLayers)
						what := fmt.Sprintf("%s, %s, position %d", v.name, mask, pos)
						if v.bits {
							requireSameBits(t, want, got, what)
						}
						require.LessOrEqual(t, largest(want, got), within, what)
						apart = max(apart, largest(want, got))
						effect = max(effect, largest(whole, got))
					}
				}
			}
			t.Logf("another order of sums changes %.2g at most; windows change %.2g", apart, effect)
			require.Greater(t, effect, counts)
		})
	}
}

// TestLocalRows has sequences in one decode that see different windows, or everything, beside
// halves that only some skip. Each comes to what it comes to alone, as in TestRowMasks.
func TestLocalRows(t *testing.T) {
	needCPU(t, noLocal)
	llamatest.Library(t)
	for name, path := range localModels(t) {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			random := rand.New(rand.NewPCG(uint64(len(name)), 19))
			for _, flash := range []llama.FlashAttention{llama.FlashOn, llama.FlashOff} {
				opts := llama.ContextOptions{NCtx: 512, Threads: 1, NSeqMax: rowSequences, KVUnified: true, Flash: flash}
				var masks []skip.Mask
				for range rowSequences {
					local, _ := localMask(m.NLayer, random)
					for l := range m.NLayer {
						switch random.IntN(6) {
						case 0: // whole: in such a layer others' windows are in the attention mask alone
							local = local.Minus(skip.Mask{}.With(l, skip.Attention))
						case 1:
							local = local.With(l, skip.FeedForward)
						}
					}
					masks = append(masks, local.WithLocal(0, skip.Window{Recent: 2 + random.IntN(6), Sinks: random.IntN(3)}))
				}
				none := make([]skip.Mask, rowSequences)
				whole, _ := runRows(t, m, opts, none, llama.Shared, true)
				wholeSingles, _ := runRows(t, m, opts, none, llama.Shared, false)
				got, stats := runRows(t, m, opts, masks, llama.Shared, true)
				want, _ := runRows(t, m, opts, masks, llama.Shared, false)
				require.Positive(t, stats.LocalLayers)
				stock, mixed := apart(whole, wholeSingles), apart(got, want)
				t.Logf("an unmasked batch is %.2g from its singles, one of different windows %.2g", stock, mixed)
				if !strings.Contains(name, "moe") { // whose experts change at near-ties
					require.Less(t, mixed, max(3*stock, manyTokens))
				}
				require.Greater(t, apart(want, whole), 1.0)
			}
		})
	}
}

// TestWithoutAnythingToHide has prompts no longer than sinks and window together: they are decoded as
// without a window, in the same graph.
func TestWithoutAnythingToHide(t *testing.T) {
	needCPU(t, noLocal)
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	opts := llama.ContextOptions{NCtx: 256, Threads: 1}
	whole, local := llamatest.Context(t, m, &opts), llamatest.Context(t, m, &opts)
	mask, err := skip.Parse("l0-7,w10+4")
	require.NoError(t, err)
	const end = 14
	for pos := range end + 1 {
		want, got := feed(t, whole, skip.Mask{}, 0, pos, pos+1), feed(t, local, mask, 0, pos, pos+1)
		if pos < end {
			requireSameBits(t, want, got, fmt.Sprint(pos))
			require.Zero(t, local.Stats().LocalLayers)
		} else {
			require.NotEqual(t, want, got)
			require.Equal(t, m.NLayer, local.Stats().LocalLayers)
		}
	}
}

// TestLocalRefused has what cannot be done; nothing has happened then, and the context goes on.
func TestLocalRefused(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1})
	feed(t, c, none, 0, 0, 20)
	one := func(pos int) *llama.Batch { return llamatest.Batch(t, []llama.Token{1, 2}, pos) }
	for text, says := range map[string]string{
		"l8,w4+1":   "names layer 8, but the model's layers end at 7",
		"k8":        "names layer 8",
		"l0-8,w4+1": "names layer 8",
	} {
		mask, err := skip.Parse(text)
		require.NoError(t, err)
		err = c.Decode(one(20), mask)
		require.ErrorIs(t, err, llama.ErrMask, text)
		require.ErrorContains(t, err, says)
		requirePositions(t, c, 0, 0, 19)
	}
	if gpuRun() {
		err := c.Decode(one(20), none.WithLocal(7, skip.Window{Recent: 4}))
		require.ErrorIs(t, err, llama.ErrMask)
		require.ErrorContains(t, err, "the cache of layer 7 is on a GPU")
		requirePositions(t, c, 0, 0, 19)
		require.NoError(t, c.Decode(one(20), none))
		return
	}
	mask := skip.Mask{}.WithLocal(3, skip.Window{Recent: 4})
	b := one(20)
	b.Isolation = llama.AttentionAlone
	require.ErrorContains(t, c.Decode(b, mask), "cannot be computed apart")
	requirePositions(t, c, 0, 0, 19)
	b.Isolation = llama.Shared
	require.NoError(t, c.Decode(b, mask))
	require.Equal(t, 1, c.Stats().LocalLayers)
}

// scripted is a sequence of both contexts of a script.
type scripted struct {
	n     int          // positions
	least int          // of which so many stay: in front of a sliding window, what was parked does not come back
	saved *llama.Saved // parked
}

// script is a random course of things that happen to the sequences of a cache: they are fed in
// chunks, together and apart, cut, forked and parked. Each is done to the context under local
// attention, and to one of stock llama.cpp token by token.
type script struct {
	t            *testing.T
	random       *rand.Rand
	local, stock *llama.Context
	mask         skip.Mask
	window       skip.Window
	seqs         []scripted
	apart        float64
	wrong        int // of results
	results      int
	moved        bool
	copied       bool // since the last decode, with which llama.cpp copies a fork's cells
}

const scriptLength = 120 // positions of a sequence

func (s *script) feed() {
	t := s.t
	b, err := llama.NewBatch(64, nil)
	require.NoError(t, err)
	defer b.Close()
	var want [][]float32
	for seq := range s.seqs {
		c := &s.seqs[seq]
		n := min(1+s.random.IntN(1+s.random.IntN(24)), scriptLength-c.n, b.Cap()-b.Len())
		if c.saved != nil || n <= 0 || s.random.IntN(3) == 0 {
			continue
		}
		var logits []float32
		for i := range n {
			require.NoError(t, b.Add(token(seq, c.n), c.n, i == n-1, seq))
			logits = seeing(t, s.stock, s.mask.WithoutLocal(), s.window, seq, len(s.seqs), c.n)
			c.n++
		}
		want = append(want, logits)
	}
	if b.Len() == 0 {
		return
	}
	require.NoError(t, s.local.Decode(b, s.mask))
	s.copied = false
	s.moved = s.moved || s.local.Stats().LocalLayers > 0
	row := 0
	for i := range b.Len() {
		if logits, err := s.local.Logits(i); err == nil {
			d := largest(want[row], logits)
			s.apart = max(s.apart, d)
			s.results++
			if d > manyTokens {
				s.wrong++
			}
			row++
		}
	}
	require.Len(t, want, row)
}

func (s *script) step() {
	t, seq := s.t, s.random.IntN(len(s.seqs))
	c := &s.seqs[seq]
	switch s.random.IntN(8) {
	case 0: // cut
		if c.saved == nil && c.n > c.least {
			c.n = c.least + s.random.IntN(c.n-c.least)
			require.NoError(t, s.local.Remove(seq, c.n, -1))
			require.NoError(t, s.stock.Remove(seq, c.n, -1))
		}
	case 1: // fork
		to := s.random.IntN(len(s.seqs))
		if d := &s.seqs[to]; to != seq && c.saved == nil && d.saved == nil && c.n > 0 {
			d.n, d.least, s.copied = c.n, c.least, true
			for _, ctx := range []*llama.Context{s.local, s.stock} {
				require.NoError(t, ctx.Remove(to, 0, -1))
				require.NoError(t, ctx.Copy(seq, to, 0, -1))
			}
		}
	case 2: // park, or bring back
		var err error
		switch {
		case c.saved != nil:
			require.NoError(t, s.local.Restore(c.saved, seq))
			require.NoError(t, c.saved.Close())
			c.saved = nil
			if s.local.Model.Window > 0 {
				c.least = c.n
			}
		case c.n > 0 && !s.copied:
			c.saved, err = s.local.Save(seq)
			require.NoError(t, err)
			require.NoError(t, s.local.Remove(seq, 0, -1))
		}
	case 3: // begin anew
		if c.saved == nil {
			c.n, c.least = 0, 0
			require.NoError(t, s.local.Remove(seq, 0, -1))
			require.NoError(t, s.stock.Remove(seq, 0, -1))
		}
	default:
		s.feed()
	}
}

// TestLocalAttentionOfManySequences has random chunks of several sequences in one cache, whose
// cells are soon in no order, cut, forked, parked and brought back. The tokens of a chunk see
// what they would see alone.
func TestLocalAttentionOfManySequences(t *testing.T) {
	needCPU(t, noLocal)
	llamatest.Library(t)
	const sequences = 3
	for name, path := range localModels(t) {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			random := rand.New(rand.NewPCG(uint64(len(name)), 18))
			for _, v := range []llama.ContextOptions{
				{Flash: llama.FlashOn, KVUnified: true}, {Flash: llama.FlashOff, KVUnified: true},
				{Flash: llama.FlashOn}, {Flash: llama.FlashOff, NUBatch: 16}, {Flash: llama.FlashGrouped, KVUnified: true},
			} {
				mask, w := localMask(m.NLayer, random)
				s := script{t: t, random: random, mask: mask, window: w, seqs: make([]scripted, sequences)}
				v.NCtx, v.Threads, v.NSeqMax = 3*256, 1, sequences
				s.local = llamatest.Context(t, m, &v)
				v.NCtx, v.NSeqMax, v.KVUnified, v.NUBatch = 1024, sequences+1, true, 0
				s.stock = llamatest.Context(t, m, &v)
				for range 60 {
					s.step()
				}
				for i := range s.seqs {
					if saved := s.seqs[i].saved; saved != nil {
						require.NoError(t, saved.Close())
					}
				}
				require.True(t, s.moved)
				t.Logf("%s: %.2g from single tokens of stock llama.cpp", mask, s.apart)
				share := 0.0
				if strings.Contains(name, "moe") {
					share = otherExpert
				}
				require.LessOrEqual(t, float64(s.wrong), share*float64(s.results), "of %d results", s.results)
			}
		})
	}
}
