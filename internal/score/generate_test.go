package score

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// nearTie is by how much a token's logit may be below the highest: which of two
// such tokens is chosen may depend on the order of sums, whose keys and values are
// rounded to F16 on the way. Of 300 answers of 64 tokens in 30 sequences, 30 chose
// so at some token, by 0.006 at most; logits reach 2 to 4.
const nearTie = 0.01

// follow decodes an answer token by token in one sequence and requires that each
// of its tokens is what greedy decoding with this cascade chooses.
func (r reference) follow(prompt []llama.Token, g Generated, mask skip.Mask, o Generation, where string) {
	r.t.Helper()
	require.NoError(r.t, r.c.Remove(0, 0, -1))
	row := r.decode(prompt, 0, o.Prefill.Mask(mask))[len(prompt)-1]
	escalated := 0
	for i := range g.Steps + 1 {
		if i > 0 { // the first token comes from the prompt's pass
			input, pos := g.Tokens[i-1:i], len(prompt)+i-1
			row = r.decode(input, pos, mask)[0]
			if _, p := llama.TopProbability(row); p < o.Escalate && !mask.IsEmpty() {
				escalated++
				require.NoError(r.t, r.c.Remove(0, pos, -1))
				row = r.decode(input, pos, skip.Mask{})[0]
			}
		}
		if i < len(g.Tokens) {
			require.GreaterOrEqual(r.t, row[g.Tokens[i]], slices.Max(row)-nearTie, "%s, token %d", where, i)
			continue
		}
		require.True(r.t, r.c.Model.Vocab.IsEnd(argMax(row)), "%s ends", where)
	}
	require.Equal(r.t, escalated, g.Escalated, where)
	if g.Ended {
		require.Equal(r.t, len(g.Tokens), g.Steps, where)
	} else {
		require.Len(r.t, g.Tokens, o.MaxTokens, where)
		require.Equal(r.t, len(g.Tokens)-1, g.Steps, where)
	}
}

func randomPrompts(seed uint64, n int) [][]llama.Token {
	random := rand.New(rand.NewPCG(seed, seed))
	prompts := make([][]llama.Token, n)
	for i := range prompts {
		prompts[i] = tokens(random, 1+random.IntN(20))
	}
	return prompts
}

// TestGenerate has many more prompts than sequences.
func TestGenerate(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	s := newScorer(t, m, Options{Sequences: 6, NCtx: 256})
	prompts := randomPrompts(1, 25)
	for _, p := range prefills {
		for _, mask := range masks {
			o := Generation{Mask: mask, Prefill: p, MaxTokens: 12}
			answers, err := s.Generate(t.Context(), prompts, o)
			require.NoError(t, err)
			require.Len(t, answers, len(prompts))
			for i, a := range answers {
				r.follow(prompts[i], a, mask, o, fmt.Sprintf("prompt %d, mask %q, %s prefill", i, mask, p))
			}
			again, err := s.Generate(t.Context(), prompts, o)
			require.NoError(t, err)
			require.Equal(t, answers, again)
		}
	}
	require.Len(t, s.free, 6)
	require.Zero(t, s.cells)
}

// TestGenerateMasks gives each prompt its own mask, after a call to Score that
// left prompts in the cache.
func TestGenerateMasks(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	s := newScorer(t, m, Options{Sequences: 6, NCtx: 256})
	_, err := s.Score(t.Context(), randomCases(rand.New(rand.NewPCG(2, 2)), 5), masks[1], skip.FullPrefill)
	require.NoError(t, err)
	prompts := randomPrompts(3, 14)
	o := Generation{Prefill: skip.FullPrefill, MaxTokens: 6}
	for i := range prompts {
		o.Masks = append(o.Masks, masks[i%len(masks)])
	}
	answers, err := s.Generate(t.Context(), prompts, o)
	require.NoError(t, err)
	for i, a := range answers {
		r.follow(prompts[i], a, o.Masks[i], o, fmt.Sprint("prompt ", i))
	}
}

func TestGenerateEnds(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	s := newScorer(t, m, Options{})
	prompts := randomPrompts(4, 300)
	answers, err := s.Generate(t.Context(), prompts, Generation{})
	require.NoError(t, err)
	ended := 0
	for i, a := range answers {
		require.False(t, slices.ContainsFunc(a.Tokens, m.Vocab.IsEnd))
		if a.Ended {
			ended++
			newReference(t, m).follow(prompts[i], a, skip.Mask{}, Generation{MaxTokens: defaultMaxTokens}, fmt.Sprint("prompt ", i))
		}
	}
	require.Positive(t, ended)
}

// TestEscalate has thresholds that escalate never, sometimes and always.
func TestEscalate(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	s := newScorer(t, m, Options{Sequences: 6, NCtx: 256})
	prompts := randomPrompts(5, 20)
	mask := masks[3]
	require.True(t, mask.KeepsAttention())
	o := Generation{Mask: mask, Prefill: skip.FullPrefill, MaxTokens: 12}
	plain, err := s.Generate(t.Context(), prompts, o)
	require.NoError(t, err)
	whole, err := s.Generate(t.Context(), prompts, Generation{MaxTokens: 12})
	require.NoError(t, err)
	for _, threshold := range []float64{0, 1e-9, 0.1, 1.01} {
		o.Escalate = threshold
		answers, err := s.Generate(t.Context(), prompts, o)
		require.NoError(t, err)
		steps, escalated, different := 0, 0, 0
		for i, a := range answers {
			r.follow(prompts[i], a, mask, o, fmt.Sprintf("prompt %d, threshold %g", i, threshold))
			steps += a.Steps
			escalated += a.Escalated
			if !slices.Equal(whole[i].Tokens, plain[i].Tokens) {
				different++
			}
		}
		require.Positive(t, different, "else this tells nothing")
		switch threshold {
		case 0.1:
			require.Positive(t, escalated)
			require.Less(t, escalated, steps)
		case 1.01:
			require.Equal(t, steps, escalated)
			for i := range answers {
				require.Equal(t, whole[i].Tokens, answers[i].Tokens)
			}
		default:
			require.Equal(t, plain, answers)
		}
	}
	o = Generation{Prefill: skip.FullPrefill, MaxTokens: 12, Escalate: 1.01}
	answers, err := s.Generate(t.Context(), prompts, o)
	require.NoError(t, err)
	require.Equal(t, whole, answers, "the whole model has nobody to ask")
}

func TestGenerateErrors(t *testing.T) {
	llamatest.Library(t)
	s := newScorer(t, llamatest.Open(t, llamatest.Tiny(t, 6)), Options{Sequences: 4, NCtx: 256})
	prompts := [][]llama.Token{{1, 2}, {3}}
	feedForward := skip.Mask{}.With(3, skip.FeedForward)
	for name, c := range map[string]struct {
		prompts [][]llama.Token
		o       Generation
		want    error
		text    string
	}{
		"attention":     {prompts, Generation{Mask: skip.Layers(3), Prefill: skip.FullPrefill, Escalate: 0.5}, ErrEscalate, "the mask 3 skips attention"},
		"prefill":       {prompts, Generation{Mask: feedForward, Escalate: 0.5}, ErrEscalate, "full prefill"},
		"masks":         {prompts, Generation{Masks: []skip.Mask{feedForward}}, ErrOption, "1 masks for 2 prompts"},
		"layer":         {prompts, Generation{Mask: skip.Layers(9)}, skip.ErrMask, "layer 9"},
		"negative":      {prompts, Generation{MaxTokens: -1}, ErrOption, "-1 tokens"},
		"empty":         {[][]llama.Token{{1}, {}}, Generation{}, ErrEmpty, "prompt 1"},
		"long answer":   {prompts, Generation{MaxTokens: 256}, ErrTooLong, "prompt 0 of 2 tokens and an answer of 256, the context holds 256"},
		"just short":    {prompts, Generation{MaxTokens: 255}, nil, ""},
		"not attention": {prompts, Generation{Mask: feedForward, Prefill: skip.FullPrefill, Escalate: 0.5}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Generate(t.Context(), c.prompts, c.o)
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
	answers, err := s.Generate(t.Context(), nil, Generation{})
	require.NoError(t, err)
	require.Empty(t, answers)
}
