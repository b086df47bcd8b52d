package llama_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

func TestTopProbability(t *testing.T) {
	inf := float32(math.Inf(-1))
	for name, c := range map[string]struct {
		logits []float32
		token  llama.Token
		p      float64
	}{
		"none":            {nil, llama.NoToken, 0},
		"one":             {[]float32{-3}, 0, 1},
		"first of equals": {[]float32{2, 2}, 0, 0.5},
		"three to one":    {[]float32{0, float32(math.Log(3))}, 1, 0.75},
		"ruled out":       {[]float32{inf, 5, inf}, 1, 1},
		"large":           {[]float32{3e38, -3e38}, 0, 1},
		"small":           {[]float32{-3e38, -3e38}, 0, 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			token, p := llama.TopProbability(c.logits)
			require.Equal(t, c.token, token)
			require.InDelta(t, c.p, p, 1e-6)
		})
	}
}

// Against a plain sum in double precision, for flat and for steep rows of every length.
func TestTopProbabilityIsExact(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	for i := range 2000 {
		logits := make([]float32, 1+i)
		best, spread := 0, 20*random.Float64()
		for j := range logits {
			logits[j] = float32(spread * random.NormFloat64())
			if logits[j] > logits[best] {
				best = j
			}
		}
		sum := 0.0
		for _, v := range logits {
			sum += math.Exp(float64(v) - float64(logits[best]))
		}
		token, p := llama.TopProbability(logits)
		require.Equal(t, llama.Token(best), token)
		require.InEpsilon(t, 1/sum, p, 1e-6)
	}
}

func BenchmarkTopProbability(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 1))
	logits := make([]float32, 151_936) // qwen's vocabulary
	for i := range logits {
		logits[i] = float32(4 * random.NormFloat64())
	}
	b.ReportAllocs()
	for b.Loop() {
		llama.TopProbability(logits)
	}
}
