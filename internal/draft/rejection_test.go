package draft

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// long says that tests may take minutes.
func long() bool { return os.Getenv("GALLOP_LONG") != "" }

// samplings are the steps of a sampler chain one by one, and chains of them.
var samplings = map[string]llama.Sampling{
	"temperature":        {Temp: 0.7},
	"top-k":              {Temp: 1, TopK: 12},
	"top-p":              {Temp: 1, TopP: 0.6},
	"min-p":              {Temp: 1, MinP: 0.3},
	"repeat penalty":     {Temp: 1, RepeatPenalty: 1.5},
	"frequency penalty":  {Temp: 1, FrequencyPenalty: 1},
	"presence penalty":   {Temp: 1, PresencePenalty: 1.5},
	"logit bias":         {Temp: 1, LogitBias: map[llama.Token]float32{3: 4, 90: 3, 100: -9}},
	"grammar":            {Temp: 1, Grammar: `root ::= [a-p]+`},
	"llama.cpp's own":    llama.DefaultSampling(),
	"all of them":        {Temp: 1.4, TopK: 30, TopP: 0.95, MinP: 0.02, RepeatPenalty: 1.2, FrequencyPenalty: 0.1, PresencePenalty: 0.1, Grammar: `root ::= [a-z]+`},
	"nearly no skipping": {Temp: 0.3, TopK: 3},
}

// TestSamplingIsTheWholeModels draws 100,000 tokens by draft and rejection sampling, and as
// many directly, from the same context, and compares both with the distribution.
func TestSamplingIsTheWholeModels(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = randmodel.MinVocab
	m := llamatest.Open(t, llamatest.Write(t, spec))
	prompt, err := m.Vocab.Tokenize("a horse, a horse", true)
	require.NoError(t, err)
	whole, masked := decoded(t, m, prompt, skip.Mask{}), decoded(t, m, prompt, skip.Layers(3, 4))
	for name, sampling := range samplings {
		t.Run(name, func(t *testing.T) {
			sampling.Seed = 11
			base, err := m.NewSampler(sampling)
			require.NoError(t, err)
			defer base.Close()
			for _, token := range prompt {
				base.Accept(token)
			}
			var p, q llama.Distribution
			require.NoError(t, base.Distribution(whole, -1, &p))
			require.NoError(t, base.Distribution(masked, -1, &q))
			const draws = 100_000
			j := rejectionSampler{random: rand.New(rand.NewPCG(1, 2)), excess: make([]float32, m.Vocab.Size)}
			drafted := map[llama.Token]int{}
			accepted := 0
			for range draws {
				token := j.draw(&q)
				if j.accepts(&p, &q, token) {
					accepted++
				} else {
					token = j.instead(&p, &q)
				}
				drafted[token]++
			}
			requireFits(t, &p, drafted, draws)
			overlap := 0.0
			for i, token := range p.Tokens {
				overlap += float64(min(p.P[i], q.Of(token)))
			}
			require.InDelta(t, overlap, float64(accepted)/draws, 0.01, "the acceptance that theory gives: Σ min(p, q)")

			direct := map[llama.Token]int{}
			every := 10 // making a sampler takes its time
			if sampling.Grammar != "" {
				every = 50 // and parsing a grammar more
			}
			if long() {
				every = 1
			}
			for i := 0; i < draws; i += every { // each draw is a first one, of another seed
				sampling.Seed = uint32(i)
				s, err := m.NewSampler(sampling)
				require.NoError(t, err)
				for _, token := range prompt {
					s.Accept(token)
				}
				token, err := s.Sample(whole, -1)
				require.NoError(t, err)
				require.NoError(t, s.Close())
				direct[token]++
			}
			requireFits(t, &p, direct, draws/every)

			looked := map[llama.Token]int{} // a draft that was looked up: some token for certain
			one := llama.Distribution{Tokens: []llama.Token{p.Tokens[0]}, P: []float32{1}}
			for range draws {
				token := one.Tokens[0]
				if !j.accepts(&p, &one, token) {
					token = j.instead(&p, &one)
				}
				looked[token]++
			}
			requireFits(t, &p, looked, draws)
			for range 1000 {
				require.True(t, j.accepts(&p, &p, j.draw(&p)), "what is drawn from p itself is always accepted")
			}
		})
	}
}

// decoded is a context that has read a prompt under a mask.
func decoded(t *testing.T, m *llama.Model, prompt []llama.Token, mask skip.Mask) *llama.Context {
	t.Helper()
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1})
	require.NoError(t, c.Decode(llamatest.Batch(t, prompt, 0), mask))
	return c
}

// requireFits is a chi-square test of counts against a distribution. Tokens that
// are expected less than 5 times count as one class. Seeds are fixed, so that it
// passes always or never; by chance five standard deviations are passed once in
// a million.
func requireFits(t *testing.T, p *llama.Distribution, counts map[llama.Token]int, draws int) {
	t.Helper()
	chi, classes, restExpected, restSeen := 0.0, 0, 0.0, 0
	for token := range counts {
		require.Positive(t, p.Of(token), "token %d cannot come", token)
	}
	sum := 0.0
	for i, token := range p.Tokens {
		sum += float64(p.P[i])
		expected := float64(p.P[i]) * float64(draws)
		if expected < 5 {
			restExpected, restSeen = restExpected+expected, restSeen+counts[token]
			continue
		}
		chi += math.Pow(float64(counts[token])-expected, 2) / expected
		classes++
	}
	require.InDelta(t, 1, sum, 1e-5)
	if restExpected >= 5 {
		chi += math.Pow(float64(restSeen)-restExpected, 2) / restExpected
		classes++
	}
	if classes < 2 {
		return
	}
	freedom := float64(classes - 1)
	require.Less(t, chi, freedom+5*math.Sqrt(2*freedom), "chi-square of %d classes, %d draws", classes, draws)
}
