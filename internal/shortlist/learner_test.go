package shortlist

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// wide is a small model with a vocabulary for which a shortlist is worth a try.
func wide() randmodel.Spec {
	s := randmodel.Small("llama")
	s.Layers, s.Vocab = 2, 8*leastVocab
	return s
}

func open(t *testing.T, m *llama.Model, dir string) (*Learner, *[]error) {
	t.Helper()
	var warnings []error
	return Open(m, dir, 1, func(err error) { warnings = append(warnings, err) }), &warnings
}

// outlook asks about a model that is loaded without its weights.
func outlook(t *testing.T, m *llama.Model, dir string) (string, bool) {
	t.Helper()
	vocab, err := llama.LoadModel(context.Background(), m.Path, &llama.ModelOptions{VocabOnly: true})
	require.NoError(t, err)
	defer vocab.Close()
	return Outlook(vocab, dir)
}

func TestLearnKeepAndUse(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Write(t, wide()))
	dir := t.TempDir()
	l, _ := open(t, m, dir)
	require.Empty(t, l.Why())
	require.Nil(t, l.Made())
	text, has := outlook(t, m, dir)
	require.True(t, has)
	require.Regexp(t, `^will be learnt: the output matrix is \d\d % of a token's bytes$`, text)
	require.NoError(t, l.Learn(context.Background()))
	made := l.Made()
	require.NotNil(t, made)
	require.GreaterOrEqual(t, made.States, enoughStates)
	require.Equal(t, exactTokens, made.Size)

	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64})
	used, err := l.Use(c)
	require.NoError(t, err)
	require.Same(t, made, used)
	require.NoError(t, l.Learn(context.Background()), "nothing new to learn from")
	require.Same(t, made, l.Made())
	require.NoError(t, l.Close())
	require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{1}, 0), skip.Mask{}.WithShortlist(made.Size)), "the context keeps it alive")

	text, has = outlook(t, m, dir)
	require.Equal(t, made.Pays(), has)
	require.Contains(t, text, fmt.Sprintf("decoding was measured at %.2f times the speed", made.Gain))

	again, warnings := open(t, m, dir)
	defer again.Close()
	require.Empty(t, *warnings)
	kept := again.Made()
	require.NotNil(t, kept, "the second start has it at once")
	require.Equal(t, made.Size, kept.Size)
	require.Equal(t, made.States, kept.States)
	require.Equal(t, made.List.Margin, kept.List.Margin)
	require.Greater(t, again.moments.N, made.States, "the measured tokens count too")
}

func TestFilesThatCannotBeUsed(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Write(t, wide()))
	other := wide()
	other.Seed = 2
	foreign := llamatest.Open(t, llamatest.Write(t, other))
	dir := t.TempDir()
	l, _ := open(t, foreign, dir)
	require.NoError(t, l.Learn(context.Background()))
	require.NoError(t, l.Close())
	good, err := os.ReadFile(kind.Path(dir, foreign))
	require.NoError(t, err)
	own := t.TempDir() // a good file of m's, to be spoilt
	l, _ = open(t, m, own)
	require.NoError(t, l.Learn(context.Background()))
	require.NoError(t, l.Close())
	spoilt := func(key string, value any) []byte {
		data, err := os.ReadFile(llamatest.Rewrite(t, kind.Path(own, m), func(meta *gguf.Metadata) { meta.Set(key, value) }))
		require.NoError(t, err)
		return data
	}
	const prefix = "gallop.shortlist."
	noNumbers, err := os.ReadFile(llamatest.NaNs(t, kind.Path(own, m), "moments"))
	require.NoError(t, err)
	noSpreads, err := os.ReadFile(llamatest.NaNs(t, kind.Path(own, m), "spread"))
	require.NoError(t, err)
	for name, data := range map[string][]byte{
		"another kind":    spoilt("general.type", "model"),
		"another version": spoilt(prefix+"version", kind.Version+1),
		"no states":       spoilt(prefix+"states", uint32(0)),
		"no size":         spoilt(prefix+"size", uint32(0)),
		"every token":     spoilt(prefix+"size", uint32(8*leastVocab)),
		"no margin":       spoilt(prefix+"margin", float32(math.Inf(1))),
		"no gain":         spoilt(prefix+"gain", math.NaN()),
		"moments NaN":     noNumbers,
		"spreads NaN":     noSpreads,
		"another model's": good,
		"cut":             good[:len(good)/2],
		"empty":           {},
		"no GGUF":         []byte("hello, world: this is some text, long enough for a header"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(kind.Path(dir, m), data, 0o644))
			l, warnings := open(t, m, dir)
			require.Len(t, *warnings, 1)
			require.ErrorContains(t, (*warnings)[0], "made anew")
			text, has := outlook(t, m, dir)
			require.True(t, has)
			require.Contains(t, text, "will be made anew")
			require.Nil(t, l.Made())
			if name != "cut" && name != "another model's" { // made anew is made anew
				require.NoError(t, l.Close())
				return
			}
			require.NoError(t, l.Learn(context.Background()))
			require.NoError(t, l.Close())
			again, warnings := open(t, m, dir)
			require.Empty(t, *warnings)
			require.NotNil(t, again.Made())
			require.NoError(t, again.Close())
		})
	}
}

func TestModelsThatGetNone(t *testing.T) {
	llamatest.Library(t)
	deep := wide()
	deep.Layers, deep.FF = 40, 8192
	for name, c := range map[string]struct {
		spec randmodel.Spec
		why  string
	}{
		"few tokens": {randmodel.Small("llama"), "too small"},
		"deep":       {deep, "too little"},
	} {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, llamatest.Write(t, c.spec))
			dir := t.TempDir()
			l, _ := open(t, m, dir)
			require.Contains(t, l.Why(), c.why)
			text, has := outlook(t, m, dir)
			require.False(t, has)
			require.Equal(t, "none: "+l.Why(), text)
			l.Idle()
			l.Busy()
			require.ErrorIs(t, l.Learn(context.Background()), llama.ErrShortlist)
			require.NoError(t, l.Close())
			require.NoError(t, l.Close())
			files, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, files)
		})
	}
}

// Weights that cannot be read row by row, and graphs that do not end in the matrix's product.
func TestMatricesThatGiveNone(t *testing.T) {
	llamatest.Library(t)
	copied := wide()
	copied.Type, copied.Untied, copied.Embd, copied.Heads, copied.FF = gguf.Q4_0, true, 256, 8, 256
	m, err := llama.LoadModel(context.Background(), llamatest.Write(t, copied), &llama.ModelOptions{GPULayers: llama.CPUOnly, NoMmap: true})
	require.NoError(t, err)
	defer m.Close()
	if _, err := m.OutputMatrix(); err != nil { // CPUs that rearrange Q4_0
		l, _ := open(t, m, t.TempDir())
		require.Equal(t, "the output matrix is not in main memory as in the file", l.Why())
		require.EqualError(t, l.Learn(context.Background()), "no vocabulary shortlist: "+l.Why())
		require.NoError(t, l.Close())
	}

	scaled := llamatest.Open(t, llamatest.Scaled(t, llamatest.Write(t, wide())))
	l, _ := open(t, scaled, t.TempDir())
	require.Empty(t, l.Why(), "only a decode tells")
	l.Idle()
	require.Eventually(t, func() bool { return l.Why() != "" }, time.Minute, 10*time.Millisecond)
	require.Equal(t, "the model's graph does not end in one product with the output matrix", l.Why())
	require.NoError(t, l.Close())
}

// Work that is stopped leaves nothing behind; what was seen meanwhile is kept for the next time.
func TestIdleAndBusy(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Write(t, wide()))
	dir := t.TempDir()
	l, _ := open(t, m, dir)
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64})
	l.Idle()
	l.Busy()
	l.running.Wait()
	require.Empty(t, l.Why())
	require.Nil(t, l.Made())
	for pos := range 5 {
		require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{llama.Token(pos)}, pos), skip.Mask{}))
		l.See(c)
	}
	require.NoError(t, l.Close())
	again, warnings := open(t, m, dir)
	require.Empty(t, *warnings)
	require.GreaterOrEqual(t, again.moments.N, 5)
	again.Idle()
	require.Eventually(t, func() bool { return again.Made() != nil }, time.Minute, 10*time.Millisecond)
	require.NoError(t, again.Close())
	_, err := os.Stat(filepath.Join(dir, filepath.Base(kind.Path(dir, m))))
	require.NoError(t, err)
}

// Hidden states in a subspace no larger than the preview are ranked exactly.
func TestFitOfLowRank(t *testing.T) {
	const d, inner, rank, rows = 96, 20, 32, 500
	random := rand.New(rand.NewPCG(5, 6))
	directions := make([]float64, inner*d)
	for i := range directions {
		directions[i] = random.NormFloat64()
	}
	state := func() []float32 {
		h := make([]float32, d)
		for k := range inner {
			x := random.NormFloat64()
			for i := range d {
				h[i] += float32(x * directions[k*d+i])
			}
		}
		return h
	}
	m := NewMoments(d)
	for range 2000 {
		m.Add(state())
	}
	w := make([]float32, rows*d)
	for i := range w {
		w[i] = float32(random.NormFloat64())
	}
	basis, columns, err := fit(m, w, rank, func() bool { return false })
	require.NoError(t, err)
	for range 20 {
		h := state()
		var errors, values float64
		for j := range rows {
			exact, preview := 0.0, 0.0
			for i := range d {
				exact += float64(w[j*d+i]) * float64(h[i])
			}
			for r := range rank {
				var wc, bh float64
				for i := range d {
					wc += float64(w[j*d+i]) * float64(columns[r*d+i])
					bh += float64(basis[r*d+i]) * float64(h[i])
				}
				preview += wc * bh
			}
			errors += (exact - preview) * (exact - preview)
			values += exact * exact
		}
		require.Less(t, math.Sqrt(errors/values), 0.02) // the ridge takes a hundredth
	}
	_, _, err = fit(m, w, rank, func() bool { return true })
	require.True(t, errors.Is(err, errStopped))
}

// A block with one large direction comes out even, and products of turned vectors are the same.
func TestSpread(t *testing.T) {
	const d = 3
	x := make([]float32, 2*previewBlock*d)
	x[0], x[previewBlock*d+1] = 8, 1
	turned := slices.Clone(x)
	spread(turned, d)
	for i := range previewBlock {
		require.InDelta(t, 8/math.Sqrt(previewBlock), turned[i*d], 1e-5)
	}
	spread(turned, d)
	require.InDeltaSlice(t, x, turned, 1e-5, "it is its own inverse")
}
