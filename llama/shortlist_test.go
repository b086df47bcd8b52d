package llama_test

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	listRank = 32
	listSize = 48
)

// newShortlist makes one of a random basis whose rows are orthogonal to nothing in
// particular: its preview is poor, which nothing here depends on.
func newShortlist(t *testing.T, m *llama.Model, margin float32) (*llama.Shortlist, *llama.OutputMatrix) {
	t.Helper()
	o, err := m.OutputMatrix()
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(1, 2))
	basis := make([]float32, listRank*o.NEmbd)
	for i := range basis {
		basis[i] = float32(random.NormFloat64() / math.Sqrt(float64(o.NEmbd)))
	}
	preview, err := o.Preview(context.Background(), basis, 1)
	require.NoError(t, err)
	s, err := o.NewShortlist(basis, preview, spreads(o.NVocab), margin)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s, o
}

// spreads are some that differ.
func spreads(n int) []float32 {
	random := rand.New(rand.NewPCG(3, 4))
	spread := make([]float32, n)
	for i := range spread {
		spread[i] = float32(0.5 + random.Float64())
	}
	return spread
}

// logitsOf decodes the prompt and one token more under mask and gives its logits.
func logitsOf(t *testing.T, c *llama.Context, mask skip.Mask) []float32 {
	t.Helper()
	tokens := prompt(promptTokens)
	c.Clear()
	require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:promptTokens-1], 0), skip.Mask{}))
	require.NoError(t, c.Decode(llamatest.Batch(t, tokens[promptTokens-1:], promptTokens-1), mask))
	logits, err := c.Logits(-1)
	require.NoError(t, err)
	return slices.Clone(logits)
}

// shortlistModels are one of each kind of output matrix: tied and untied, as in the file and
// rearranged, floats and quantised, behind experts, in a pruned file.
func shortlistModels(t *testing.T) map[string]string {
	models := map[string]string{}
	for _, name := range randmodel.SmallNames() {
		models[name] = llamatest.Write(t, randmodel.Small(name))
	}
	for _, kind := range []gguf.Type{gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.Q4_K} {
		for _, untied := range []bool{true, false} {
			s := randmodel.Small("llama")
			s.Type, s.Untied = kind, untied
			s.Embd, s.Heads, s.FF = 256, 8, 256
			name := kind.String()
			if !untied {
				name += " tied"
			}
			models[name] = llamatest.Write(t, s)
		}
	}
	pruned := models["llama"] + ".pruned"
	require.NoError(t, prune.Layers(context.Background(), models["llama"], pruned, []int{2}, nil))
	models["pruned"] = pruned
	return models
}

func TestShortlistIsExactWhereItSays(t *testing.T) {
	llamatest.Library(t)
	for name, path := range shortlistModels(t) {
		t.Run(name, func(t *testing.T) {
			requireExactWhereItSays(t, llamatest.Open(t, path))
		})
	}
}

// requireExactWhereItSays compares logits with a shortlist with those of the whole matrix.
func requireExactWhereItSays(t *testing.T, m *llama.Model) {
	t.Helper()
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
	for _, layers := range []skip.Mask{{}, skip.Mask{}.With(1, skip.FeedForward), skip.Layers(3)} {
		whole := logitsOf(t, c, layers)
		mask := layers.WithShortlist(listSize)

		list, _ := newShortlist(t, m, -1e9) // never in doubt
		require.NoError(t, c.SetShortlist(list))
		before := c.ShortlistUse()
		short := logitsOf(t, c, mask)
		use := c.ShortlistUse().Since(before)
		require.Equal(t, 1, use.Rows)
		require.Zero(t, use.Extended)
		exact := 0
		for i := range whole {
			if near(whole[i], short[i]) {
				exact++
			}
		}
		require.GreaterOrEqual(t, use.Exact, listSize)
		require.GreaterOrEqual(t, exact, use.Exact)
		require.Less(t, exact, len(whole), "the preview gave way to the whole matrix")

		always, _ := newShortlist(t, m, 1e9) // always in doubt
		require.NoError(t, c.SetShortlist(always))
		for i, logit := range logitsOf(t, c, mask) {
			require.True(t, near(whole[i], logit), "token %d: %g, the whole matrix gives %g", i, logit, whole[i])
		}
		require.Equal(t, llama.ShortlistUse{Rows: 2, Extended: 1, Exact: use.Exact + len(whole)}, c.ShortlistUse().Since(before))
		require.Equal(t, whole, logitsOf(t, c, layers), "the whole matrix is back")
	}
}

// TestShortlistOfManyRows: in a batch that fills kernels' tiles, too, each row gets what it gets alone,
// whatever the memory held before.
func TestShortlistOfManyRows(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 128, Threads: 1})
	list, _ := newShortlist(t, m, -1e9)
	require.NoError(t, c.SetShortlist(list))
	const n = 70
	rows := func(at int) (all [][]float32) {
		c.Clear()
		for from := 0; from < n; from += at {
			b := batchOf(t, at)
			for i := range at {
				require.NoError(t, b.Add(prompt(n)[from+i], from+i, true, 0))
			}
			require.NoError(t, c.Decode(b, skip.Mask{}.WithShortlist(listSize)))
			for i := range at {
				logits, err := c.Logits(i)
				require.NoError(t, err)
				all = append(all, slices.Clone(logits))
			}
		}
		return all
	}
	before := c.ShortlistUse()
	together := rows(n)
	use := c.ShortlistUse().Since(before)
	require.Less(t, use.Exact, 2*listSize*use.Rows)
	for i, want := range rows(1) {
		apart := 0
		for token := range want {
			if math.Abs(float64(want[token]-together[i][token])) > 0.05 { // logits are around 1; keys and values are rounded to F16
				apart++
			}
		}
		require.LessOrEqual(t, apart, listSize/4, "row %d: more than tokens at the list's end", i)
	}
}

// batchOf makes an empty batch.
func batchOf(t *testing.T, capacity int) *llama.Batch {
	t.Helper()
	b, err := llama.NewBatch(capacity, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// near allows for products that were added up in another order: llama.cpp multiplies
// rearranged weights with several rows at a time.
func near(a, b float32) bool {
	return math.Abs(float64(a-b)) <= 1e-4*(1+math.Abs(float64(a)))
}

func TestShortlistOfSeveralRows(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 128, NSeqMax: 3, KVUnified: true, Threads: 1})
	list, _ := newShortlist(t, m, 1e9)
	require.NoError(t, c.SetShortlist(list))
	b := batchOf(t, 64)
	fill := func() {
		b.Clear()
		for seq := range 3 {
			for pos, token := range prompt(7)[:4+seq] {
				require.NoError(t, b.Add(token, pos, pos%2 == 1, seq))
			}
		}
	}
	fill()
	require.NoError(t, c.Decode(b, skip.Mask{}))
	whole := map[int][]float32{}
	for i := range b.Len() {
		if logits, err := c.Logits(i); err == nil {
			whole[i] = slices.Clone(logits)
		}
	}
	require.Len(t, whole, 7)
	c.Clear()
	fill()
	require.NoError(t, c.Decode(b, skip.Mask{}.WithShortlist(listSize)))
	for i, want := range whole {
		logits, err := c.Logits(i)
		require.NoError(t, err)
		for token := range want {
			require.InDelta(t, want[token], logits[token], 1e-3, "place %d", i)
		}
	}
}

// What is listed depends neither on how many threads share a row nor on whether each has
// rows of its own.
func TestShortlistIsTheSameForAllThreads(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 5000
	m := llamatest.Open(t, llamatest.Write(t, spec))
	const size = 300
	// rows decodes the last tokens of a prompt with a shortlist, some at a time.
	rows := func(threads, at int, margin float32) [][]float32 {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: threads})
		list, _ := newShortlist(t, m, margin)
		require.NoError(t, c.SetShortlist(list))
		var all [][]float32
		b := batchOf(t, 64)
		for from := 0; from < 6; from += at {
			b.Clear()
			for i, token := range prompt(6)[from : from+at] {
				require.NoError(t, b.Add(token, from+i, true, 0))
			}
			b.Isolation = llama.AllAlone
			require.NoError(t, c.Decode(b, skip.Mask{}.WithShortlist(size)))
			for i := range at {
				logits, err := c.Logits(i)
				require.NoError(t, err)
				all = append(all, slices.Clone(logits))
			}
		}
		if margin > 0 {
			require.Positive(t, c.ShortlistUse().Extended)
		}
		return all
	}
	for _, margin := range []float32{-1e9, 4} { // nothing in doubt, and some
		want := rows(1, 1, margin)
		for _, threads := range []int{2, 3, 7} {
			require.Equal(t, want, rows(threads, 1, margin), "%d threads", threads)
			require.Equal(t, want, rows(threads, 3, margin), "%d threads, three rows", threads)
		}
	}
}

// TestShortlistExtendsByEachTokensSpread: outside the list, exact logits are for those tokens whose preview, so many of the
// list's errors higher, would be the likeliest, and for no others.
func TestShortlistExtendsByEachTokensSpread(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 5000
	m := llamatest.Open(t, llamatest.Write(t, spec))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
	const size, margin = 300, 3
	mask := skip.Mask{}.WithShortlist(size)
	whole := logitsOf(t, c, skip.Mask{})
	list, o := newShortlist(t, m, -1e9)
	require.NoError(t, c.SetShortlist(list))
	before := c.ShortlistUse()
	unextended := logitsOf(t, c, mask) // exact in the list, the preview's outside
	n := c.ShortlistUse().Since(before).Exact

	// The list's tokens are those that are exact, but for a few outside whose preview happens to be near.
	preview := previewOf(t, c, mask)
	order := make([]int, len(preview))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(preview[b], preview[a]) })
	spread := spreads(o.NVocab)
	squares, top := 0.0, float32(math.Inf(-1))
	for _, i := range order[:n] {
		e := float64(unextended[i]-preview[i]) / float64(spread[i])
		squares += e * e
		top = max(top, unextended[i])
	}
	reach := float32(margin * math.Sqrt(squares/float64(n)))
	list.Margin = margin
	got := logitsOf(t, c, mask)
	further := 0
	for _, i := range order[n:] {
		switch bound := preview[i] + reach*spread[i]; {
		case bound > top+1e-3: // which rounding does not bridge
			further++
			require.True(t, near(whole[i], got[i]), "token %d", i)
		case bound < top-1e-3:
			require.InDelta(t, preview[i], got[i], 1e-4, "token %d", i)
		}
	}
	require.Positive(t, further)
	require.Less(t, further, len(whole)-n)
}

// previewOf gives the logits of a preview alone.
func previewOf(t *testing.T, c *llama.Context, mask skip.Mask) []float32 {
	t.Helper()
	var trial llama.ShortlistTrial
	tokens := prompt(promptTokens)
	c.Clear()
	require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:promptTokens-1], 0), skip.Mask{}))
	require.NoError(t, c.MeasureShortlist(llamatest.Batch(t, tokens[promptTokens-1:], promptTokens-1), mask, func(_ int, got llama.ShortlistTrial) {
		trial = got
		trial.Errors = slices.Clone(got.Errors)
	}))
	logits, err := c.Logits(-1)
	require.NoError(t, err)
	preview := slices.Clone(logits)
	for i, e := range trial.Errors {
		preview[i] -= e * trial.Error
	}
	return preview
}

// A list that is too short gets longer: further tokens get exact logits, and not all of them.
func TestShortlistGetsLonger(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 5000
	m := llamatest.Open(t, llamatest.Write(t, spec))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
	whole := logitsOf(t, c, skip.Mask{})
	exact := func(margin float32) int {
		list, _ := newShortlist(t, m, margin)
		require.NoError(t, c.SetShortlist(list))
		n := 0
		for i, logit := range logitsOf(t, c, skip.Mask{}.WithShortlist(300)) {
			if near(whole[i], logit) {
				n++
			}
		}
		return n
	}
	before, longest := 0, 0
	for _, margin := range []float32{-1e9, 3, 4, 1e9} {
		n := exact(margin)
		require.Greater(t, n, before, "margin %g", margin)
		before, longest = n, max(longest, n)
	}
	require.Equal(t, len(whole), longest)
}

// The embedding is the hidden state that the shortlist reads.
func TestShortlistBesideEmbeddings(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "qwen3")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Embeddings: true, Threads: 1})
	list, _ := newShortlist(t, m, 1e9)
	require.NoError(t, c.SetShortlist(list))
	whole := logitsOf(t, c, skip.Mask{})
	embedding, err := c.Embedding(-1)
	require.NoError(t, err)
	want := slices.Clone(embedding)
	hidden := make([]float32, m.NEmbd)
	require.NoError(t, c.Hidden(0, hidden))
	require.Equal(t, want, hidden)
	short := logitsOf(t, c, skip.Mask{}.WithShortlist(listSize))
	embedding, err = c.Embedding(-1)
	require.NoError(t, err)
	require.Equal(t, want, embedding)
	for i := range whole {
		require.True(t, near(whole[i], short[i]))
	}
}

func TestShortlistRefusals(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	other := llamatest.Small(t, "qwen3")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64})
	apart := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, NSeqMax: 2})
	b := batchOf(t, 64)
	list, o := newShortlist(t, m, 0)
	foreign, _ := newShortlist(t, other, 0)

	fill := func() {
		b.Clear()
		require.NoError(t, b.Add(1, 0, true, 0))
	}
	fill()
	require.ErrorContains(t, c.Decode(b, skip.Mask{}.WithShortlist(listSize)), "none was made")
	require.ErrorIs(t, c.SetShortlist(foreign), llama.ErrShortlist)
	require.NoError(t, c.SetShortlist(list))
	require.ErrorContains(t, c.Decode(b, skip.Mask{}.WithShortlist(1000)), "saves nothing")
	require.NoError(t, apart.SetShortlist(list))
	require.ErrorContains(t, apart.Decode(b, skip.Mask{}.WithShortlist(listSize)), "KVUnified")
	require.NoError(t, c.Decode(b, skip.Mask{}.WithShortlist(listSize)), "a refusal leaves nothing behind")

	_, err := o.NewShortlist(make([]float32, 5), nil, nil, 0)
	require.ErrorIs(t, err, llama.ErrShortlist)
	_, err = o.Preview(context.Background(), make([]float32, o.NEmbd), 1)
	require.ErrorIs(t, err, llama.ErrOption)
	require.ErrorIs(t, o.Rows([]int32{int32(o.NVocab)}, make([]float32, o.NEmbd)), llama.ErrOption)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = o.Preview(ended, make([]float32, listRank*o.NEmbd), 1)
	require.ErrorIs(t, err, context.Canceled)

	gone, _ := newShortlist(t, m, 0)
	require.NoError(t, gone.Close())
	require.NoError(t, gone.Close())
	require.ErrorIs(t, c.SetShortlist(gone), llama.ErrClosed)
}

// An adapter of the output matrix adds its product to the matrix's: the graph ends in a sum.
func TestShortlistAndAnAdapterOfTheOutput(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	m := llamatest.Open(t, llamatest.Write(t, spec))
	lora, err := m.LoadLoRA(llamatest.OutputLoRA(t, spec))
	require.NoError(t, err)
	defer lora.Close()
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64})
	list, _ := newShortlist(t, m, 0)
	require.NoError(t, c.SetShortlist(list))
	require.NoError(t, c.SetLoRA(llama.ScaledLoRA{LoRA: lora, Scale: 1}))
	b := batchOf(t, 4)
	require.NoError(t, b.Add(1, 0, true, 0))
	require.ErrorContains(t, c.Decode(b, skip.Mask{}.WithShortlist(listSize)), "adapter")
	require.ErrorIs(t, c.Hidden(0, make([]float32, m.NEmbd)), llama.ErrNoOutput)
	require.NoError(t, c.Decode(b, skip.Mask{}), "the whole matrix goes on")
	require.NoError(t, c.SetLoRA())
	c.Clear()
	require.NoError(t, c.Decode(b, skip.Mask{}.WithShortlist(listSize)))
}

// On a GPU there is none, tied or not, however few layers are there; with everything on
// the CPU there is one beside a GPU. llvmpipe will do, which GGML_VK_VISIBLE_DEVICES=0 names.
func TestShortlistBesideAGPU(t *testing.T) {
	llamatest.Library(t)
	if !slices.ContainsFunc(llama.Devices(), func(d llama.Device) bool { return d.Kind == llama.GPU || d.Kind == llama.IGPU }) {
		t.Skip("needs a GPU and its libraries: `gallop setup --device vulkan`")
	}
	for _, untied := range []bool{true, false} {
		spec := randmodel.Small("llama")
		spec.Untied = untied
		path := llamatest.Write(t, spec)
		for _, layers := range []int{0, 1} {
			m, err := llama.LoadModel(context.Background(), path, &llama.ModelOptions{GPULayers: layers})
			require.NoError(t, err)
			_, err = m.OutputMatrix()
			require.ErrorIs(t, err, llama.ErrShortlist)
			require.ErrorContains(t, err, "on a GPU")
			require.NoError(t, m.Close())
		}
		_, err := llamatest.Open(t, path).OutputMatrix()
		require.NoError(t, err)
	}
}

// TestShortlistOfWeightsInMemory: weights that are not mapped, or not rearranged. Those that
// are both copied and rearranged, as most CPUs have Q4_0 and those with AMX have F16 too,
// cannot be read row by row.
func TestShortlistOfWeightsInMemory(t *testing.T) {
	llamatest.Library(t)
	for _, kind := range []gguf.Type{gguf.F16, gguf.Q4_0} {
		s := randmodel.Small("llama")
		s.Type, s.Untied, s.Embd, s.Heads, s.FF = kind, true, 256, 8, 256
		path := llamatest.Write(t, s)
		for _, o := range []llama.ModelOptions{{NoRepack: true}, {NoMmap: true, NoRepack: true}, {NoMmap: true}} {
			t.Run(fmt.Sprintf("%s, mapped %v, rearranged %v", kind, !o.NoMmap, !o.NoRepack), func(t *testing.T) {
				o.GPULayers = llama.CPUOnly
				m, err := llama.LoadModel(context.Background(), path, &o)
				require.NoError(t, err)
				defer m.Close()
				if _, err := m.OutputMatrix(); err != nil {
					require.True(t, o.NoMmap && !o.NoRepack)
					require.ErrorIs(t, err, llama.ErrShortlist)
					require.ErrorContains(t, err, "not in main memory as in the file")
					return
				}
				requireExactWhereItSays(t, m)
			})
		}
	}
}

// TestShortlistBehindAScale: where the product is not the graph's end, the whole matrix goes on.
func TestShortlistBehindAScale(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Scaled(t, llamatest.Write(t, randmodel.Small("llama"))))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64})
	list, _ := newShortlist(t, m, 0)
	require.NoError(t, c.SetShortlist(list))
	b := batchOf(t, 4)
	require.NoError(t, b.Add(1, 0, true, 0))
	err := c.Decode(b, skip.Mask{}.WithShortlist(listSize))
	require.ErrorIs(t, err, llama.ErrMask)
	require.ErrorContains(t, err, "does not end in one product with the output matrix")
	require.ErrorIs(t, c.Hidden(0, make([]float32, m.NEmbd)), llama.ErrNoOutput)
	require.NoError(t, c.Decode(b, skip.Mask{}))
}

func TestOutputMatrixOnlyWithWeightsInReach(t *testing.T) {
	llamatest.Library(t)
	vocab, err := llama.LoadModel(context.Background(), llamatest.Write(t, randmodel.Small("llama")), &llama.ModelOptions{VocabOnly: true})
	require.NoError(t, err)
	defer vocab.Close()
	_, err = vocab.OutputMatrix()
	require.ErrorIs(t, err, llama.ErrShortlist)
}
