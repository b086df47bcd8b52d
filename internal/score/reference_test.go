package score

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestScoreKL compares with texts that are decoded one at a time, where all prompts are in the cache and where they do not fit.
func TestScoreKL(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	cases := randomCases(rand.New(rand.NewPCG(11, 11)), 12)
	for i := range cases {
		if i%3 > 0 {
			cases[i].Own, cases[i].Answers, cases[i].Right = true, cases[i].Answers[:1], 0
		}
	}
	cases = append(cases, cases[1]) // an equal one
	for _, o := range []Options{{}, {Sequences: 4, NCtx: 64}} {
		s := newScorer(t, m, o)
		held, err := s.Hold(t.Context(), cases)
		require.NoError(t, err)
		require.Equal(t, o.NCtx == 0, held)
		for _, p := range prefills {
			for _, mask := range masks {
				scores, err := s.Score(t.Context(), cases, mask, p)
				require.NoError(t, err)
				for i, c := range cases {
					if !c.Own {
						require.True(t, math.IsNaN(scores[i].KL))
						continue
					}
					want := 0.0
					masked := r.rows(c.Prompt, c.Answers[0], mask, p)
					for k, row := range r.rows(c.Prompt, c.Answers[0], skip.Mask{}, p) {
						want += coarse(row, masked[k]) / float64(len(masked))
					}
					require.InDelta(t, want, scores[i].KL, tolerance*(1+scores[i].Loss), "as for the loss: both are sums of logarithms")
				}
			}
		}
	}
}

// coarse is KL(p || q) with all but p's likeliest tokens taken as one, plainly.
func coarse(p, q []float32) (kl float64) {
	p64, q64 := logProbs(p), logProbs(q)
	order := search.All(len(p))
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p[b], p[a]) })
	restP, restQ := 0.0, 0.0
	for rank, i := range order {
		if rank < referenceTokens {
			kl += math.Exp(p64[i]) * (p64[i] - q64[i])
		} else {
			restP, restQ = restP+math.Exp(p64[i]), restQ+math.Exp(q64[i])
		}
	}
	return kl + restP*math.Log(restP/restQ)
}

func TestDistribution(t *testing.T) {
	random := rand.New(rand.NewPCG(12, 12))
	logits, other := make([]float32, 5000), make([]float32, 5000)
	for i := range logits {
		logits[i] = float32(random.IntN(9)) // many are equal
		other[i] = logits[i] + float32(random.NormFloat64())
	}
	got := likeliestTokens(logits, referenceTokens)
	require.Len(t, got, referenceTokens)
	require.True(t, slices.IsSorted(got))
	least := float32(9)
	for _, token := range got {
		least = min(least, logits[token])
	}
	for i, v := range logits {
		if _, in := slices.BinarySearch(got, llama.Token(i)); !in {
			require.LessOrEqual(t, v, least)
		}
	}
	d := newDistribution(logits)
	_, lse := logSumExp(logits)
	require.InDelta(t, 0, d.divergence(logits, lse), 1e-6)
	_, lse = logSumExp(other)
	kl := d.divergence(other, lse)
	require.Positive(t, kl)
	require.Less(t, kl, divergence(logits, other).KL)

	few := []float32{0, float32(math.Inf(-1)), 0} // fewer than are kept
	d = newDistribution(few)
	_, lse = logSumExp([]float32{0, 0, 0})
	require.InDelta(t, math.Log(1.5), d.divergence([]float32{0, 0, 0}, lse), 1e-6)
}

func BenchmarkNewDistribution(b *testing.B) {
	random := rand.New(rand.NewPCG(10, 10))
	logits := make([]float32, 151_936) // qwen's vocabulary
	for i := range logits {
		logits[i] = float32(4 * random.NormFloat64())
	}
	for b.Loop() {
		newDistribution(logits)
	}
}
