package llama_test

import (
	"context"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// pick chooses blocks of neurons by chance, of a random order of the neurons, and sets them: keep of each
// layer, or with 0 as many as comes, and all of a layer of every four.
func pick(t *testing.T, m *llama.Model, seed uint64, keep int) (*llama.Neurons, []prune.Kept) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	ff, err := m.FeedForwards()
	require.NoError(t, err)
	kept, counts, types := make([]prune.Kept, len(ff)), make([]int, len(ff)), make([]gguf.Type, len(ff))
	for l := range ff {
		f := &ff[l]
		types[l] = columnType(f.Down.Type)
		all := f.Width / llama.NeuronBlock
		counts[l] = (1 + r.IntN(all-1)) * llama.NeuronBlock
		switch {
		case keep > 0:
			counts[l] = keep
		case l%4 == 3:
			counts[l] = f.Width
			continue
		}
		order, weights := make([]int32, f.Width), make([]float32, f.Width)
		for i, id := range r.Perm(f.Width) {
			order[i], weights[i] = int32(id), 1+r.Float32()
		}
		down, err := m.SortDown(f, order, types[l], weights)
		require.NoError(t, err)
		var blocks []int32
		for _, b := range r.Perm(all)[:counts[l]/llama.NeuronBlock] {
			blocks = append(blocks, int32(b))
		}
		slices.Sort(blocks)
		kept[l] = prune.Kept{IDs: neurons.IDs(order, blocks), Down: neurons.Columns(nil, down, types[l], f.Width, blocks), Type: types[l]}
	}
	n, err := m.NewNeurons(counts, types)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	for l, k := range kept {
		require.NoError(t, n.Set(l, k.IDs, k.Down))
	}
	return n, kept
}

// columnType is a type for columns in the order of another one: k-quants have too large blocks.
func columnType(of string) gguf.Type {
	for _, t := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q4_0, gguf.Q8_0} {
		if t.String() == of {
			return t
		}
	}
	return gguf.Q5_0
}

// neuronModels are one of each kind of dense feed-forward: gate and up apart and in one, each type of
// weights, with biases, plain, in a file of several parts.
func neuronModels(t *testing.T) map[string]string {
	models := map[string]string{}
	for _, name := range []string{"llama", "qwen2", "qwen3", "gemma3", "phi3"} {
		models[name] = llamatest.Write(t, randmodel.Small(name))
	}
	for _, kind := range []gguf.Type{gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.Q4_K} {
		s := randmodel.Small("llama")
		s.Type, s.Embd, s.Heads, s.FF = kind, 256, 8, 256
		models[kind.String()] = llamatest.Write(t, s)
	}
	models["split"] = llamatest.Split(t, models["llama"], 3)
	return models
}

// set lets a context decode by the choice of this number.
func set(t *testing.T, choice int, n *llama.Neurons) func(*llama.Context) {
	return func(c *llama.Context) { require.NoError(t, c.SetNeurons(choice, n)) }
}

const noNeurons = "layers on a GPU take no masks of neurons, and their activity is not measured"

const spared = 300 // what masks say; the choice says how much it is

// TestNeuronsEqualPruned compares decodes without some neurons with those by a file that lacks them.
func TestNeuronsEqualPruned(t *testing.T) {
	needCPU(t, noNeurons)
	llamatest.Library(t)
	for name, path := range neuronModels(t) {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			n, kept := pick(t, m, 1, 96)
			dst := filepath.Join(t.TempDir(), "pruned.gguf")
			require.NoError(t, prune.Neurons(context.Background(), path, dst, kept, nil))
			pruned := llamatest.Open(t, dst)
			for _, v := range variants {
				whole, _ := run(t, m, v, none)
				for _, mask := range []skip.Mask{none, none.With(2, skip.FeedForward), none.With(1, skip.Attention), skip.Layers(0, 5)} {
					want, _ := run(t, pruned, v, mask)
					got, _ := run(t, m, v, mask.WithNeurons(spared, 5), set(t, 5, n))
					requireSameBits(t, want, got, mask.WithNeurons(spared, 5).String()+", "+v.name)
					require.Positive(t, difference(whole, got), "nothing was left out")
				}
				again, _ := run(t, m, v, none, set(t, 0, n))
				requireSameBits(t, whole, again, "no neuron is left out by a mask without any")
			}
		})
	}
}

// TestNeuronsSwitch goes from each mask to each other in one context, with two choices of neurons, which are
// filled with others in between.
func TestNeuronsSwitch(t *testing.T) {
	needCPU(t, noNeurons)
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	first, _ := pick(t, m, 1, 0)
	second, kept := pick(t, m, 2, 0)
	list, _ := newShortlist(t, m, 0)
	var all []skip.Mask
	for _, mask := range []skip.Mask{none, skip.Layers(2), none.With(4, skip.FeedForward), none.With(1, skip.Attention).WithShortlist(listSize)} {
		for choice := -1; choice < 2; choice++ {
			if m := mask; choice >= 0 {
				all = append(all, m.WithNeurons(spared, choice))
			} else {
				all = append(all, m)
			}
		}
	}
	prepare := func(c *llama.Context) {
		set(t, 0, first)(c)
		set(t, 1, second)(c)
		require.NoError(t, c.SetShortlist(list))
	}
	want := map[skip.Mask][]float32{}
	for _, mask := range all {
		c := small(t, m)
		prepare(c)
		want[mask] = logitsOf(t, c, mask)
		for other, logits := range want {
			require.True(t, other == mask || difference(logits, want[mask]) > 0, "%v and %v give the same", other, mask)
		}
	}
	c := small(t, m)
	prepare(c)
	for _, a := range all {
		for _, b := range all {
			requireSameBits(t, want[a], logitsOf(t, c, a), a.String())
			requireSameBits(t, want[b], logitsOf(t, c, b), b.String()+" after "+a.String())
		}
	}
	// The same matrices with other neurons: the graph stays, and what it computes changes.
	mask := none.WithNeurons(spared, 1)
	for l, k := range kept {
		if k.IDs == nil {
			continue
		}
		ids := slices.Clone(k.IDs)
		slices.Reverse(ids)
		require.NoError(t, second.Set(l, ids, k.Down))
	}
	changed := logitsOf(t, c, mask)
	require.Positive(t, difference(want[mask], changed))
	for l, k := range kept {
		require.NoError(t, second.Set(l, k.IDs, k.Down))
	}
	requireSameBits(t, want[mask], logitsOf(t, c, mask), "the first neurons again")
	// A choice that gives way to another of the same number.
	require.NoError(t, c.SetNeurons(1, first))
	requireSameBits(t, want[none.WithNeurons(spared, 0)], logitsOf(t, c, mask), "the first choice under the second's number")
	require.NoError(t, c.SetNeurons(1, nil))
	require.ErrorContains(t, c.Decode(llamatest.Batch(t, prompt(1), promptTokens), mask), "none were chosen")
	requireSameBits(t, want[none], logitsOf(t, c, none), "after a refusal")
}

// TestNeuronsOfRows: rows of a batch with the same neurons may have different halves; rows with different
// neurons are refused.
func TestNeuronsOfRows(t *testing.T) {
	needCPU(t, noNeurons)
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	n, _ := pick(t, m, 3, 0)
	masks := []skip.Mask{none.WithNeurons(spared, 0), none.With(2, skip.FeedForward).WithNeurons(spared, 0), skip.Layers(4).WithNeurons(spared, 0)}
	alone := make([][]float32, len(masks))
	for s, mask := range masks {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, NSeqMax: 3, KVUnified: true})
		set(t, 0, n)(c)
		b := rowsBatch(t, s, s+1)
		b.Isolation = llama.AllAlone
		require.NoError(t, c.Decode(b, mask))
		logits, err := c.Logits(-1)
		require.NoError(t, err)
		alone[s] = slices.Clone(logits)
	}
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, NSeqMax: 3, KVUnified: true})
	set(t, 0, n)(c)
	set(t, 1, n)(c)
	b := rowsBatch(t, 0, 3)
	b.Isolation = llama.AllAlone
	for s, mask := range masks {
		require.NoError(t, b.SetMask(s, mask))
	}
	require.NoError(t, c.Decode(b, none))
	for s := range masks {
		logits, err := c.Logits((s+1)*rowTokens - 1)
		require.NoError(t, err)
		if llama.Isolates() {
			requireSameBits(t, alone[s], logits, masks[s].String())
		} else {
			require.Less(t, difference(alone[s], logits), 1e-3)
		}
	}
	for _, other := range []skip.Mask{none, none.WithNeurons(spared, 1), none.WithNeurons(100, 0)} {
		require.NoError(t, b.SetMask(1, other))
		require.ErrorContains(t, c.Decode(b, none), "without the same neurons")
	}
}

const rowTokens = 4

// rowsBatch has rowTokens tokens of each of the sequences from first to end, the last of each with an output.
func rowsBatch(t *testing.T, first, end int) *llama.Batch {
	t.Helper()
	b, err := llama.NewBatch(64, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	for s := first; s < end; s++ {
		for i := range rowTokens {
			require.NoError(t, b.Add(llama.Token(20+7*i+s), i, i == rowTokens-1, s))
		}
	}
	return b
}

func TestNeuronsRefused(t *testing.T) {
	llamatest.Library(t)
	if gpuRun() {
		_, err := llamatest.Small(t, "llama").FeedForwards()
		require.ErrorIs(t, err, llama.ErrNeurons)
		require.ErrorContains(t, err, "layers are on a GPU")
		return
	}
	for _, name := range []string{"llama-moe", "qwen3moe"} {
		_, err := llamatest.Small(t, name).FeedForwards()
		require.ErrorIs(t, err, llama.ErrNeurons)
		require.ErrorContains(t, err, "mixtures of experts")
	}
	m := llamatest.Small(t, "llama")
	ff, err := m.FeedForwards()
	require.NoError(t, err)
	require.Len(t, ff, 8)
	require.Equal(t, 128, ff[0].Width)
	require.InDelta(t, 3*64*4, ff[0].Bytes(m), 0)
	same := func(n int) []int { return slices.Repeat([]int{n}, 8) }
	f32 := slices.Repeat([]gguf.Type{gguf.F32}, 8)
	for _, bad := range []struct {
		kept  []int
		types []gguf.Type
	}{{same(33), f32}, {same(-32), f32}, {same(160), f32}, {same(128), f32}, {same(0), f32}, {same(64)[1:], f32}, {same(64), f32[1:]}, {same(64), slices.Repeat([]gguf.Type{gguf.Q4_K}, 8)}} {
		_, err := m.NewNeurons(bad.kept, bad.types)
		require.Error(t, err)
	}
	n, err := m.NewNeurons(same(64), f32)
	require.NoError(t, err)
	require.EqualValues(t, 8*64*ff[0].Bytes(m), n.Size)
	ids, down := make([]int32, 64), make([]byte, 64*64*4)
	for l := range 8 {
		require.NoError(t, n.Set(l, ids, down))
	}
	require.ErrorIs(t, n.Set(0, ids[1:], down), llama.ErrOption)
	require.ErrorIs(t, n.Set(0, ids, down[1:]), llama.ErrOption)
	for _, id := range []int32{-1, 128} {
		ids[3] = id
		require.ErrorContains(t, n.Set(0, ids, down), "want 0 to 127")
	}
	order, weights := make([]int32, 128), make([]float32, 128)
	_, err = m.SortDown(&ff[0], order, gguf.F32, weights)
	require.ErrorContains(t, err, "twice")
	c := small(t, m)
	require.ErrorIs(t, c.SetNeurons(128, n), llama.ErrOption)
	require.ErrorIs(t, small(t, llamatest.Small(t, "llama")).SetNeurons(0, n), llama.ErrNeurons)
	require.NoError(t, c.SetNeurons(0, n))
	require.NoError(t, n.Close())
	require.ErrorIs(t, n.Set(0, ids, down), llama.ErrClosed)
	logitsOf(t, c, none.WithNeurons(spared, 0)) // the context keeps them alive
}

// TestActivity checks shares that are known beforehand, that each sequence has its own, and that measuring
// changes nothing.
func TestActivity(t *testing.T) {
	needCPU(t, noNeurons)
	llamatest.Library(t)
	for name, path := range neuronModels(t) {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, path)
			for _, v := range variants {
				want, _ := run(t, m, v, none)
				got, _ := run(t, m, v, none, func(c *llama.Context) { require.NoError(t, c.MeasureActivity(true)) })
				requireSameBits(t, want, got, v.name)
			}
			c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 2, NSeqMax: 3, KVUnified: true})
			require.NoError(t, c.MeasureActivity(true))
			var apart [3][][]float32
			for s := range apart {
				require.NoError(t, c.Decode(rowsBatch(t, s, s+1), none))
				for l := range m.NLayer {
					a := c.Activity(s, l)
					apart[s] = append(apart[s], slices.Clone(a.Sums))
					sum := float32(0)
					for _, share := range a.Sums {
						require.False(t, share < 0)
						sum += share
					}
					tokens := rowTokens
					if l == m.NLayer-1 {
						tokens = 1 // the output's
					}
					require.Equal(t, tokens, a.Tokens)
					require.InDelta(t, tokens, sum, 1e-3)
				}
				c.ResetActivity(s)
				require.Zero(t, c.Activity(s, 0).Tokens)
			}
			c.Clear()
			require.NoError(t, c.Decode(rowsBatch(t, 0, 3), none))
			for s := range apart {
				for l := range m.NLayer - 1 {
					a := c.Activity(s, l)
					require.Equal(t, rowTokens, a.Tokens)
					require.Less(t, difference(apart[s][l], a.Sums), 0.02)
				}
			}
			n, _ := pick(t, m, 1, 0)
			require.NoError(t, c.SetNeurons(0, n))
			before := c.Activity(0, 0).Tokens
			require.NoError(t, c.Decode(llamatest.Batch(t, prompt(1), rowTokens), none.WithNeurons(spared, 0)))
			require.Equal(t, before, c.Activity(0, 0).Tokens, "not all neurons were seen")
		})
	}
	experts := small(t, llamatest.Small(t, "llama-moe"))
	require.ErrorIs(t, experts.MeasureActivity(true), llama.ErrNeurons)
}

// TestActivityOfKnownNeurons compares with activations that are known: where a neuron's up is zero it is
// never active, and two with the same rows are as active as each other.
func TestActivityOfKnownNeurons(t *testing.T) {
	needCPU(t, noNeurons)
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var tensors []gguf.Source
	for _, tensor := range f.Tensors {
		source := f.Copy(tensor)
		if strings.HasSuffix(tensor.Name, "ffn_up.weight") || strings.HasSuffix(tensor.Name, "ffn_gate.weight") {
			data, err := io.ReadAll(f.Reader(tensor))
			require.NoError(t, err)
			row := len(data) / int(tensor.Shape[1])
			clear(data[3*row : 4*row])
			copy(data[9*row:10*row], data[8*row:9*row])
			source.Data = gguf.Bytes(data)
		}
		tensors = append(tensors, source)
	}
	dst := filepath.Join(t.TempDir(), "known.gguf")
	require.NoError(t, gguf.Write(context.Background(), dst, f.Metadata, tensors, nil))
	c := small(t, llamatest.Open(t, dst))
	require.NoError(t, c.MeasureActivity(true))
	decode(t, c, prompt(5), 0, none)
	for l := range 8 {
		a := c.Activity(0, l)
		require.Zero(t, a.Sums[3])
		require.Positive(t, a.Sums[8])
		require.Equal(t, a.Sums[8], a.Sums[9])
	}
	require.NoError(t, c.MeasureActivity(false))
	require.Zero(t, c.Activity(0, 0))
	decode(t, c, prompt(1), 5, none)
}
