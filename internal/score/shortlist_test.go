package score

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
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
