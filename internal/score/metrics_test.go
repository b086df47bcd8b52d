package score

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

func TestAccuracy(t *testing.T) {
	answers := [][]llama.Token{{1}, {2}}
	choice := func(right int, bytes ...int) Case { return Case{Answers: answers, Right: right, AnswerBytes: bytes} }
	free := Case{Answers: answers[:1]}
	for name, c := range map[string]struct {
		scores    []Score
		cases     []Case
		acc, norm float64
	}{
		"right by both":        {[]Score{{LogLik: []float64{-1, -2}}}, []Case{choice(0, 4, 4)}, 1, 1},
		"wrong by both":        {[]Score{{LogLik: []float64{-1, -2}}}, []Case{choice(1, 4, 4)}, 0, 0},
		"long answer":          {[]Score{{LogLik: []float64{-1, -2}}}, []Case{choice(1, 2, 8)}, 0, 1},
		"first of equals":      {[]Score{{LogLik: []float64{-1, -1}}}, []Case{choice(0, 3, 3)}, 1, 1},
		"free answers ignored": {[]Score{{LogLik: []float64{-9}}, {LogLik: []float64{-1, -2}}}, []Case{free, choice(0, 1, 1)}, 1, 1},
		"half": {[]Score{{LogLik: []float64{-1, -2}}, {LogLik: []float64{-1, -2}}},
			[]Case{choice(0, 1, 1), choice(1, 1, 1)}, 0.5, 0.5},
		"unknown bytes": {[]Score{{LogLik: []float64{-1, -2}}}, []Case{choice(0)}, 1, math.NaN()},
		"no bytes":      {[]Score{{LogLik: []float64{-1, -2}}}, []Case{choice(0, 0, 0)}, 1, 1},
		"none":          {nil, nil, math.NaN(), math.NaN()},
	} {
		t.Run(name, func(t *testing.T) {
			acc, norm := Accuracy(c.scores, c.cases)
			requireSame(t, c.acc, acc)
			requireSame(t, c.norm, norm)
		})
	}
}

// requireSame takes NaN for equal to NaN.
func requireSame(t *testing.T, want, got float64) {
	t.Helper()
	if math.IsNaN(want) {
		require.True(t, math.IsNaN(got))
		return
	}
	require.Equal(t, want, got)
}

// TestBootstrap compares with the interval of the normal distribution, which the
// mean of 400 values nearly has: 1.96 standard errors on either side. Of 2000
// resamples, the ends stray by about 3 % of that.
// TestPerplexity weighs tokens, not texts, and leaves other cases out.
func TestPerplexity(t *testing.T) {
	answers := func(n int) [][]llama.Token { return [][]llama.Token{make([]llama.Token, n)} }
	cases := []Case{{Answers: answers(1), Text: true}, {Answers: answers(5)}, {Answers: answers(3), Text: true}}
	scores := []Score{{LogLik: []float64{-math.Log(2)}}, {LogLik: []float64{-99}}, {LogLik: []float64{-3 * math.Log(8)}}}
	require.InEpsilon(t, math.Pow(2*8*8*8, 1./4), Perplexity(scores, cases), 1e-12)
	requireSame(t, math.NaN(), Perplexity(scores[1:2], cases[1:2]))
}
