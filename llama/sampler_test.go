package llama_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// sampleRig is a context whose last logits are known.
type sampleRig struct {
	m      *llama.Model
	c      *llama.Context
	logits []float32
	ranked []llama.Token // the most likely first
}

func newSampleRig(t *testing.T) sampleRig {
	t.Helper()
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 2))
	c := small(t, m)
	r := sampleRig{m: m, c: c, logits: decode(t, c, prompt(7), 0, none)}
	for i := range r.logits {
		r.ranked = append(r.ranked, llama.Token(i))
	}
	slices.SortFunc(r.ranked, func(a, b llama.Token) int {
		if r.logits[a] > r.logits[b] {
			return -1
		}
		return 1
	})
	return r
}

func (r sampleRig) sampler(t *testing.T, s llama.Sampling) *llama.Sampler {
	t.Helper()
	p, err := r.m.NewSampler(s)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// draw samples n times from the same logits.
func (r sampleRig) draw(t *testing.T, p *llama.Sampler, n int) []llama.Token {
	t.Helper()
	tokens := make([]llama.Token, n)
	for i := range tokens {
		var err error
		tokens[i], err = p.Sample(r.c, -1)
		require.NoError(t, err)
	}
	return tokens
}

// share is the probability of a token at temperature 1.
func (r sampleRig) share(t llama.Token) float64 {
	sum := 0.0
	for _, l := range r.logits {
		sum += math.Exp(float64(l))
	}
	return math.Exp(float64(r.logits[t])) / sum
}

func TestGreedy(t *testing.T) {
	r := newSampleRig(t)
	for _, s := range []llama.Sampling{{}, {TopK: 5, TopP: 0.5, Seed: 3}, {LogitBias: map[llama.Token]float32{r.ranked[1]: 0.0}}} {
		require.Equal(t, slices.Repeat(r.ranked[:1], 3), r.draw(t, r.sampler(t, s), 3))
	}
	require.Equal(t, r.ranked[0], r.draw(t, r.sampler(t, llama.Sampling{Temp: 1e-6, Seed: 1}), 1)[0])
}

// TestSupport checks which tokens each step lets through, over many draws.
func TestSupport(t *testing.T) {
	r := newSampleRig(t)
	const draws = 4000
	topP, sum := 0, 0.0 // the likeliest that reach 20 % together
	for sum < 0.2 {
		sum += r.share(r.ranked[topP])
		topP++
	}
	minP := 0 // those at least half as likely as the likeliest
	for r.share(r.ranked[minP]) >= r.share(r.ranked[0])/2 {
		minP++
	}
	require.Greater(t, topP, 2)
	require.Greater(t, minP, 2)
	for name, c := range map[string]struct {
		sampling llama.Sampling
		size     int
	}{
		"top-k": {llama.Sampling{TopK: 5, Temp: 1, Seed: 1}, 5},
		"top-p": {llama.Sampling{TopP: 0.2, Temp: 1, Seed: 1}, topP},
		"min-p": {llama.Sampling{MinP: 0.5, Temp: 1, Seed: 1}, minP},
		"all":   {llama.Sampling{TopK: 9, TopP: 0.99, MinP: 0.01, Temp: 2, Seed: 1}, 9},
	} {
		t.Run(name, func(t *testing.T) {
			counts := map[llama.Token]int{}
			for _, tok := range r.draw(t, r.sampler(t, c.sampling), draws) {
				counts[tok]++
			}
			for _, tok := range r.ranked[:c.size] {
				require.Positive(t, counts[tok], "a token that is let through never came")
			}
			require.Len(t, counts, c.size)
		})
	}
	// At temperature 1 the draws follow the probabilities; 6 standard deviations.
	n := 0
	for _, tok := range r.draw(t, r.sampler(t, llama.Sampling{Temp: 1, Seed: 1}), draws) {
		if slices.Contains(r.ranked[:10], tok) {
			n++
		}
	}
	p := 0.0
	for _, tok := range r.ranked[:10] {
		p += r.share(tok)
	}
	require.InDelta(t, p*draws, n, 6*math.Sqrt(draws*p*(1-p)))
}

func TestSeeds(t *testing.T) {
	r := newSampleRig(t)
	draw := func(seed uint32) []llama.Token {
		return r.draw(t, r.sampler(t, llama.Sampling{Temp: 1, Seed: seed}), 40)
	}
	require.Equal(t, draw(7), draw(7))
	require.NotEqual(t, draw(7), draw(8))
	require.NotEqual(t, draw(llama.RandomSeed), draw(llama.RandomSeed))

	p := r.sampler(t, llama.Sampling{Temp: 1, Seed: 7})
	first := r.draw(t, p, 20)
	q, err := p.Clone()
	require.NoError(t, err)
	defer q.Close()
	require.Equal(t, r.draw(t, p, 20), r.draw(t, q, 20), "a clone goes on from the same place")
	p.Reset()
	require.Equal(t, first, r.draw(t, p, 20), "a reset starts again")
}

func TestPenaltiesAndBias(t *testing.T) {
	r := newSampleRig(t)
	// Each token drawn is pushed far down, so greedy walks down the ranks.
	p := r.sampler(t, llama.Sampling{PresencePenalty: 50})
	require.Equal(t, r.ranked[:5], r.draw(t, p, 5))
	p.Reset()
	require.Equal(t, r.ranked[:2], r.draw(t, p, 2), "a reset forgets")
	p.Accept(r.ranked[2])
	require.Equal(t, r.ranked[3], r.draw(t, p, 1)[0], "an accepted token counts")
	// Within a window of two, the third draw forgets the first.
	p = r.sampler(t, llama.Sampling{FrequencyPenalty: 50, RepeatLastN: 2})
	require.Equal(t, []llama.Token{r.ranked[0], r.ranked[1], r.ranked[2], r.ranked[0]}, r.draw(t, p, 4))
	p = r.sampler(t, llama.Sampling{RepeatPenalty: 100})
	require.Equal(t, r.ranked[:2], r.draw(t, p, 2))

	banned := map[llama.Token]float32{}
	for _, tok := range r.ranked[:3] {
		banned[tok] = float32(math.Inf(-1))
	}
	require.Equal(t, r.ranked[3], r.draw(t, r.sampler(t, llama.Sampling{LogitBias: banned}), 1)[0])
	for _, tok := range r.draw(t, r.sampler(t, llama.Sampling{LogitBias: banned, Temp: 1, Seed: 2}), 300) {
		require.NotContains(t, r.ranked[:3], tok)
	}
	require.Equal(t, r.ranked[9], r.draw(t, r.sampler(t, llama.Sampling{LogitBias: map[llama.Token]float32{r.ranked[9]: 100}}), 1)[0])
	for tok := range llama.Token(r.m.Vocab.Size) {
		banned[tok] = float32(math.Inf(-1))
	}
	_, err := r.sampler(t, llama.Sampling{LogitBias: banned}).Sample(r.c, -1)
	require.ErrorIs(t, err, llama.ErrNoToken)
}

func TestSamplingRefuses(t *testing.T) {
	r := newSampleRig(t)
	nan := float32(math.NaN())
	for _, s := range []llama.Sampling{
		{Temp: -1}, {Temp: nan}, {Temp: 1e-30}, {Temp: 1e9}, {TopP: 1.1}, {TopP: nan}, {MinP: -0.1},
		{RepeatPenalty: -1}, {FrequencyPenalty: nan}, {PresencePenalty: 1e9}, {RepeatLastN: -2}, {RepeatLastN: 1 << 30},
		{LogitBias: map[llama.Token]float32{-1: 1}}, {LogitBias: map[llama.Token]float32{llama.Token(r.m.Vocab.Size): 1}},
		{LogitBias: map[llama.Token]float32{1: nan}},
	} {
		_, err := r.m.NewSampler(s)
		require.ErrorIs(t, err, llama.ErrOption, "%+v", s)
	}
	p := r.sampler(t, llama.Sampling{})
	_, err := p.Sample(r.c, 5)
	require.ErrorIs(t, err, llama.ErrNoOutput)
	other := small(t, llamatest.Small(t, "llama"))
	decode(t, other, prompt(2), 0, none)
	_, err = p.Sample(other, -1)
	require.ErrorContains(t, err, "another vocabulary")
}

// generate samples and decodes until the model's turn ends or no token is left.
func generate(t *testing.T, r sampleRig, p *llama.Sampler, most int) (text string, last llama.Token, err error) {
	t.Helper()
	r.c.Clear()
	decode(t, r.c, prompt(7), 0, none)
	d := llama.Detokenizer{Vocab: r.m.Vocab}
	for pos := 7; pos < 7+most; pos++ {
		last, err = p.Sample(r.c, -1)
		if err != nil || r.m.Vocab.IsEnd(last) {
			return text, last, err
		}
		text += d.Next(last)
		decode(t, r.c, []llama.Token{last}, pos, none)
	}
	return text, last, nil
}

func TestGrammar(t *testing.T) {
	r := newSampleRig(t)
	s := llama.Sampling{Grammar: `root ::= "{" digit{3} "," word "}"` + "\n" + `digit ::= [0-9]` + "\n" + `word ::= "yes" | "no"`}
	for _, temp := range []float32{0, 1, 100} {
		s.Temp, s.Seed = temp, 5
		p := r.sampler(t, s)
		text, last, err := generate(t, r, p, 40)
		require.NoError(t, err)
		require.Regexp(t, `^\{[0-9]{3},(yes|no)\}$`, text)
		require.True(t, r.m.Vocab.IsEnd(last), "a grammar that is done leaves the end alone")
		for range 3 { // and goes on doing so
			last, err = p.Sample(r.c, -1)
			require.NoError(t, err)
			require.True(t, r.m.Vocab.IsEnd(last))
		}
		q, err := p.Clone()
		require.NoError(t, err)
		last, err = q.Sample(r.c, -1)
		require.NoError(t, err)
		require.True(t, r.m.Vocab.IsEnd(last))
		require.NoError(t, q.Close())
		p.Reset()
		again, _, err := generate(t, r, p, 40)
		require.NoError(t, err)
		require.Equal(t, text, again)
	}

	// Multi-byte runes are several tokens here.
	text, _, err := generate(t, r, r.sampler(t, llama.Sampling{Grammar: `root ::= [äöü€]{4} "日本"`}), 40)
	require.NoError(t, err)
	require.Regexp(t, `^[äöü€]{4}日本$`, text)

	// A grammar whose only ways on are banned leaves nothing, and never forbidden tokens.
	b, err := r.m.Vocab.Tokenize("b", false)
	require.NoError(t, err)
	ban := llama.Sampling{Grammar: `root ::= "ab"`, LogitBias: map[llama.Token]float32{b[0]: float32(math.Inf(-1))}}
	for _, temp := range []float32{0, 1} {
		ban.Temp = temp
		text, _, err = generate(t, r, r.sampler(t, ban), 5)
		require.ErrorIs(t, err, llama.ErrNoToken)
		require.Equal(t, "a", text)
	}
	// Not even a bias of +inf gets past the grammar; what may follow, it forces.
	force := llama.Sampling{Grammar: `root ::= "ab"`, LogitBias: map[llama.Token]float32{b[0]: float32(math.Inf(1))}}
	for _, temp := range []float32{0, 1} {
		force.Temp = temp
		text, _, err = generate(t, r, r.sampler(t, force), 5)
		require.NoError(t, err)
		require.Equal(t, "ab", text)
	}
}

func TestGrammarRefuses(t *testing.T) {
	r := newSampleRig(t)
	for grammar, says := range map[string]string{
		`root ::= "a`:                          "unexpected end of input",
		`x ::= "a"`:                            "no rule 'root'",
		`root ::= root "a"`:                    "left recursion",
		`root ::= foo`:                         `rule "foo" is used and nowhere defined`,
		`root ::= [a`:                          "unexpected end of input",
		`::=`:                                  "want the name of a rule",
		`root ::= ("a"`:                        "want ')'",
		`root ::= "a"{1000000}`:                "repetitions are too many",
		`root ::= <nothing-such>`:              "", // only the vocabulary knows
		"root ::= \"\xff\"":                    "not UTF-8",
		"root ::= \"a\x00\"":                   "zero byte",
		"root ::= " + strings.Repeat("(", 1e6): "parentheses",
		"root ::= " + strings.Repeat("(", 999) + `"a"`: "want ')'",
	} {
		live := llama.Live()
		var err error
		require.Empty(t, llamatest.Printed(t, func() { _, err = r.m.NewSampler(llama.Sampling{Grammar: grammar}) }))
		require.ErrorIs(t, err, llama.ErrGrammar)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), "\n")
		require.Equal(t, live, llama.Live())
	}
}

func TestModelSampling(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	require.Equal(t, llama.DefaultSampling(), llamatest.Open(t, path).Sampling())
	rewritten := llamatest.Rewrite(t, path, func(meta *gguf.Metadata) {
		meta.Set("general.sampling.temp", float32(0.5))
		meta.Set("general.sampling.top_k", int32(7))
	})
	want := llama.DefaultSampling()
	want.Temp, want.TopK = 0.5, 7
	require.Equal(t, want, llamatest.Open(t, rewritten).Sampling())
}

// TestAdviceOfOtherPrograms has recommendations that llama.cpp takes in its own
// way, and some that nothing can take.
func TestAdviceOfOtherPrograms(t *testing.T) {
	llamatest.Library(t)
	for name, c := range map[string]struct {
		advice map[string]any
		want   func(s *llama.Sampling)
	}{
		"all tokens":        {map[string]any{"top_k": int32(-1)}, func(s *llama.Sampling) { s.TopK = -1 }},
		"the whole context": {map[string]any{"penalty_last_n": int32(-1), "penalty_repeat": float32(1.1)}, func(s *llama.Sampling) { s.RepeatLastN, s.RepeatPenalty = -1, 1.1 }},
		"the best alone":    {map[string]any{"top_p": float32(0)}, func(s *llama.Sampling) { s.TopP = llama.LeastTopP }},
		"no penalties":      {map[string]any{"penalty_last_n": int32(0), "penalty_repeat": float32(1.1)}, func(*llama.Sampling) {}},
		"greedy":            {map[string]any{"temp": float32(-1)}, func(s *llama.Sampling) { s.Temp = 0 }},
		"out of range":      {map[string]any{"top_p": float32(1.5), "min_p": float32(math.NaN()), "temp": float32(1000), "penalty_last_n": int32(-9)}, func(*llama.Sampling) {}},
	} {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Open(t, llamatest.Rewrite(t, llamatest.Tiny(t, 1), func(meta *gguf.Metadata) {
				for key, value := range c.advice {
					meta.Set("general.sampling."+key, value)
				}
			}))
			want := llama.DefaultSampling()
			c.want(&want)
			require.Equal(t, want, m.Sampling())
			s, err := m.NewSampler(m.Sampling())
			require.NoError(t, err)
			require.NoError(t, s.Close())
		})
	}
}

func TestNaN(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.NaNs(t, llamatest.Tiny(t, 2), "output_norm.weight"))
	c := llamatest.Context(t, m, nil)
	require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{1}, 0), skip.Mask{}))
	_, err := c.Logits(-1)
	require.ErrorIs(t, err, llama.ErrNaN)
	for _, sampling := range []llama.Sampling{{}, llama.DefaultSampling()} {
		s, err := m.NewSampler(sampling)
		require.NoError(t, err)
		_, err = s.Sample(c, -1)
		require.ErrorIs(t, err, llama.ErrNaN)
		require.ErrorIs(t, s.Distribution(c, -1, new(llama.Distribution)), llama.ErrNaN)
		require.NoError(t, s.Close())
	}
}

// With a large vocabulary only what top-k may keep is handed to llama.cpp's samplers. A
// bias of nothing in front of them has all tokens handed over.
func TestSamplingOfALargeVocabulary(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 20_000 + 7 // no multiple of anything
	m := llamatest.Open(t, llamatest.Write(t, spec))
	r := sampleRig{m: m, c: small(t, m)}
	for length := range 20 {
		r.c.Clear()
		decode(t, r.c, prompt(length+1), 0, none)
		for _, k := range []int{1, 2, 40, 100, 256, 1000} {
			few := llama.Sampling{Temp: 0.8, TopK: k, TopP: 0.95, MinP: 0.05, Seed: 3}
			all := few
			all.LogitBias = map[llama.Token]float32{5: 0}
			var got, want llama.Distribution
			require.NoError(t, r.sampler(t, few).Distribution(r.c, -1, &got))
			require.NoError(t, r.sampler(t, all).Distribution(r.c, -1, &want))
			require.Equal(t, want, got, "top-k %d", k)
			require.Equal(t, r.draw(t, r.sampler(t, all), 5), r.draw(t, r.sampler(t, few), 5), "top-k %d", k)
		}
	}
}
