package eval

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

const listSize = 512

// withShortlist makes a model with a vocabulary that a shortlist is for, and learns that.
func withShortlist(t *testing.T) (*llama.Model, *llama.Shortlist) {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers, spec.Vocab = 6, 1<<14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	l := shortlist.Open(m, t.TempDir(), 1, func(err error) { t.Error(err) })
	require.NoError(t, l.Learn(t.Context()))
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return m, l.Made().List
}

// TestScoreWithAShortlist: with every token in doubt the scores are those of the whole
// matrix; with none they differ by what the preview says of the other tokens. An
// answer's first token has the whole matrix in any case.
func TestScoreWithAShortlist(t *testing.T) {
	m, list := withShortlist(t)
	s := newScorer(t, m, Options{Sequences: 8, NCtx: 1024, Shortlist: list})
	cases := randomCases(rand.New(rand.NewPCG(4, 4)), 20)
	for _, layers := range masks[:3] {
		mask := layers.WithShortlist(listSize)
		for _, p := range prefills {
			want, err := s.Score(t.Context(), cases, layers, p)
			require.NoError(t, err)

			list.Margin = 1e9
			all, _, err := s.Compare(t.Context(), cases, []skip.Mask{mask}, p)
			require.NoError(t, err)
			for i := range cases {
				require.InDeltaSlice(t, want[i].LogLik, all[0][i].LogLik, tolerance*(1-slices.Min(want[i].LogLik)))
				require.Equal(t, want[i].Exact, all[0][i].Exact)
			}
			require.Positive(t, s.Exact(mask))
			require.Zero(t, s.Exact(layers))

			list.Margin = -1e9
			short, err := s.Score(t.Context(), cases, mask, p)
			require.NoError(t, err)
			differ := 0
			for i, c := range cases {
				got, was := short[i].Tokens, want[i].Tokens
				require.InDelta(t, was[0].LogP, got[0].LogP, tolerance*(1-was[0].LogP), "case %d", i)
				for k := 1; k < len(c.Answers[c.Right]); k++ {
					if math.Abs(got[k].LogP-was[k].LogP) > 10*tolerance*(1-was[k].LogP) {
						differ++
					}
				}
			}
			require.Positive(t, differ, "the preview was not used")
			require.Less(t, s.Exact(mask), float64(m.Vocab.Size))
		}
	}
}

// TestGenerateWithAShortlist: in doubt, every token is the whole matrix's.
func TestGenerateWithAShortlist(t *testing.T) {
	m, list := withShortlist(t)
	list.Margin = 1e9
	s := newScorer(t, m, Options{Shortlist: list})
	random := rand.New(rand.NewPCG(5, 5))
	prompts := [][]llama.Token{tokens(random, 7), tokens(random, 3), tokens(random, 20)}
	for _, layers := range masks[:2] {
		want, err := s.Generate(t.Context(), prompts, Generation{Mask: layers, MaxTokens: 6})
		require.NoError(t, err)
		got, err := s.Generate(t.Context(), prompts, Generation{Mask: layers.WithShortlist(listSize), MaxTokens: 6})
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Positive(t, s.ctx.ShortlistUse().Rows)
}

// TestTableWithAShortlist: all rows but the whole model's have it, and cost less for it.
func TestTableWithAShortlist(t *testing.T) {
	m, list := withShortlist(t)
	list.Margin = -1e9
	s := newScorer(t, m, Options{Shortlist: list})
	table := &Table{Scorer: s, Model: m, Cases: randomCases(rand.New(rand.NewPCG(6, 6)), 6), Shortlist: listSize}
	for range table.Cases {
		table.Prompts = append(table.Prompts, router.Prompt{})
	}
	sizes := search.SizesOf(m.Tensors, m.NLayer)
	set := router.Candidate{Mask: skip.Layers(2), Depth: sizes.Depth(skip.Layers(2)), Task: "sums"}
	p := &router.Profile{Candidates: []router.Candidate{{}, set}, Baselines: []router.Candidate{set}}
	whole, err := table.Whole(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 1, *whole.Cost, 1e-9)
	require.InDelta(t, 0, *whole.KL, 1e-9)
	alone, err := table.Listed(t.Context())
	require.NoError(t, err)
	require.Equal(t, "shortlist v512 alone", alone.Method)
	require.Positive(t, *alone.KL)
	require.Zero(t, *alone.MeanDepth)
	all, output := m.TokenBytes()
	least := float64(list.Size) + float64(output)*listSize/float64(m.Vocab.Size)
	const more = 1e-3 // a list holds a few tokens more, those that are as likely as its last
	require.InDelta(t, (float64(all-output)+least)/float64(all), *alone.Cost, more)
	rows, err := table.Fixed(t.Context(), p, "layer", skip.FullPrefill, 1)
	require.NoError(t, err)
	require.Len(t, rows, 3, "the baseline, the router, the oracle")
	for _, r := range rows {
		require.Less(t, *r.Cost, *alone.Cost, r.Method)
		require.Greater(t, *r.KL, *alone.KL, r.Method)
	}
	require.Contains(t, table.known, under(skip.Layers(2).WithShortlist(listSize), skip.FullPrefill))
	require.Equal(t, set.Mask, p.Candidates[1].Mask, "the profile stays as it is")
	generated, err := table.Generated(t.Context(), p, "layer", skip.MaskedPrefill, 1, 0)
	require.NoError(t, err)
	require.InDelta(t, *rows[1].Cost, *generated.Cost, more)
}
