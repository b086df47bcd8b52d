package gallop_test

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// logSoftmax is ln of the probabilities that logits stand for.
func logSoftmax(logits []float32) []float64 {
	most := float64(slices.Max(logits))
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x) - most)
	}
	out := make([]float64, len(logits))
	for i, x := range logits {
		out[i] = float64(x) - most - math.Log(sum)
	}
	return out
}

// rounding is of logits of 32-bit sums in another order; seen: 1e-6.
const rounding = 1e-4

// exactly are options whose keys and values are not rounded to 16 bits.
func exactly() gallop.Options {
	o := options(512)
	o.Context.KType, o.Context.VType, o.Context.Flash = llama.CacheF32, llama.CacheF32, llama.FlashOff
	return o
}

// TestLogprobs holds an answer's against a plain softmax of the logits of the model itself,
// whatever samples, drafts or skips.
func TestLogprobs(t *testing.T) {
	m := small(t)
	o := exactly()
	e := engine(t, m, o)
	mask := skip.Mask{}.With(2, skip.FeedForward)
	for name, r := range map[string]gallop.Request{
		"greedy":   greedy(12),
		"sampled":  {Sampling: &llama.Sampling{Temp: 1.5, TopK: 30, Seed: 3, RepeatPenalty: 1.2}, MaxTokens: 12},
		"masked":   {Sampling: &llama.Sampling{}, MaxTokens: 12, Skip: gallop.Layers(mask).Prefill(skip.FullPrefill)},
		"lossless": lossless(12, fixed(skip.Layers(1), 3)),
	} {
		t.Run(name, func(t *testing.T) {
			const top = 5
			r.Messages, r.Logprobs = user("one"), top
			var got []gallop.Token
			var a gallop.Answer
			for d, err := range e.Stream(t.Context(), r) {
				require.NoError(t, err)
				got = append(got, d.Tokens...)
				if d.Answer != nil {
					a = *d.Answer
				}
			}
			require.Len(t, got, a.Usage.Generated)
			c := llamatest.Context(t, m, &o.Context)
			prompt := promptOf(t, m, r.Messages...)
			require.NoError(t, c.Decode(llamatest.Batch(t, prompt, 0), skip.Mask{}))
			text := ""
			for i, token := range got {
				require.Equal(t, a.Tokens[i], token.ID)
				logits, err := c.Logits(-1)
				require.NoError(t, err)
				want := logSoftmax(logits)
				require.InDelta(t, want[token.ID], token.LogProb, rounding)
				require.Len(t, token.Top, top)
				for k, other := range token.Top {
					require.InDelta(t, want[other.ID], other.LogProb, rounding)
					require.Equal(t, m.Vocab.Text([]llama.Token{other.ID}, true), other.Text)
					require.True(t, k == 0 || token.Top[k-1].LogProb >= other.LogProb, "the likeliest first")
				}
				sorted := slices.Sorted(slices.Values(want))
				require.InDelta(t, sorted[len(sorted)-top], token.Top[top-1].LogProb, rounding, "none that is likelier is left out")
				if !m.Vocab.IsControl(token.ID) {
					text += token.Text
				}
				require.NoError(t, c.Decode(llamatest.Batch(t, a.Tokens[i:i+1], len(prompt)+i), a.Plan.Mask))
			}
			require.Equal(t, string([]rune(text)), a.Text, "with U+FFFD for bytes of no rune")
		})
	}
	r := greedy(3)
	r.Messages, r.Logprobs = user("one"), -1
	for d, err := range e.Stream(t.Context(), r) {
		require.NoError(t, err)
		for _, token := range d.Tokens {
			require.Empty(t, token.Top, "the token's own alone")
			require.Negative(t, token.LogProb)
		}
	}
}

// TestPromptLogprobs: a text that is scored has the log-probabilities that it had as an answer.
func TestPromptLogprobs(t *testing.T) {
	m := small(t)
	for _, parallel := range []int{1, 2} {
		o := exactly()
		o.Parallel = parallel
		e := engine(t, m, o)
		r := gallop.Request{Prompt: "a horse, a horse", Sampling: &llama.Sampling{Temp: 1, Seed: 4}, MaxTokens: 100, Logprobs: -1}
		prompt, err := m.Vocab.Tokenize(r.Prompt, true)
		require.NoError(t, err)
		var answer []gallop.Token
		sum := 0.0
		for d, err := range e.Stream(t.Context(), r) {
			require.NoError(t, err)
			for _, token := range d.Tokens {
				answer = append(answer, token)
				sum += token.LogProb
			}
		}
		all := slices.Clone(prompt)
		for _, token := range answer {
			all = append(all, token.ID)
		}
		require.Greater(t, len(all), 100, "more than are scored in one decode")
		a, err := e.Answer(t.Context(), gallop.Request{Tokens: all, PromptLogprobs: true, ScoreOnly: true, Logprobs: 2})
		require.NoError(t, err)
		require.Empty(t, a.Text)
		require.Zero(t, a.Usage.Generated)
		require.Zero(t, a.Usage.Cached, "each token is decoded anew")
		require.NotEmpty(t, a.Usage.Missed)
		require.Len(t, a.Prompt, len(all))
		require.True(t, math.IsNaN(a.Prompt[0].LogProb), "of the first nothing is known")
		scored := 0.0
		for i, token := range a.Prompt {
			require.Equal(t, all[i], token.ID)
			if i > 0 {
				require.Len(t, token.Top, 2)
			}
			if i >= len(prompt) {
				require.InDelta(t, answer[i-len(prompt)].LogProb, token.LogProb, rounding)
				scored += token.LogProb
			}
		}
		require.InDelta(t, sum, scored, rounding*float64(len(answer)))

		both, err := e.Answer(t.Context(), gallop.Request{Tokens: all, PromptLogprobs: true, Sampling: &llama.Sampling{}, MaxTokens: 2})
		require.NoError(t, err)
		require.Len(t, both.Tokens, 2, "an answer may follow")
		require.Len(t, both.Prompt, len(all))
		one, err := e.Answer(t.Context(), gallop.Request{Tokens: all[:1], PromptLogprobs: true, ScoreOnly: true})
		require.NoError(t, err)
		require.Len(t, one.Prompt, 1)
	}
}

// TestTopTokens: of equals the lowest number comes first.
func TestTopTokens(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(256))
	logits := make([]float32, m.Vocab.Size)
	for i := range logits {
		logits[i] = -1
	}
	logits[7], logits[3], logits[300], logits[5] = 2, 2, 2, 3
	for n, want := range map[int][]llama.Token{0: nil, 1: {5}, 2: {5, 3}, 4: {5, 3, 7, 300}, 6: {5, 3, 7, 300, 0, 1}} {
		own, top := e.Logprobs(logits, 7, n)
		require.InDelta(t, logSoftmax(logits)[7], own, 1e-6)
		var got []llama.Token
		for _, a := range top {
			got = append(got, a.ID)
		}
		require.Equal(t, want, got)
	}
	_, top := e.Logprobs(logits, 7, 1000)
	require.Len(t, top, m.Vocab.Size, "there are no more")
}
