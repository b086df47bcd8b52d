package gallop_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestOptionsOutOfRange(t *testing.T) {
	m := small(t)
	live := llama.Live()
	for name, change := range map[string]func(*gallop.Options){
		"parallel below":   func(o *gallop.Options) { o.Parallel = -1 },
		"parallel above":   func(o *gallop.Options) { o.Parallel = 129 },
		"queue":            func(o *gallop.Options) { o.Queue = -2 },
		"depth":            func(o *gallop.Options) { o.Skip = gallop.Depth(-1) },
		"quality":          func(o *gallop.Options) { o.Skip = gallop.Quality(math.NaN()) },
		"context":          func(o *gallop.Options) { o.Context.NCtx = -1 },
		"no profile there": func(o *gallop.Options) { o.Profile = m.Path + ".none" },
		"no adapter there": func(o *gallop.Options) { o.LoRA = []gallop.Adapter{{Path: m.Path + ".none"}} },
	} {
		o := options(256)
		change(&o)
		_, err := gallop.New(m, &o)
		require.Error(t, err, name)
		require.Equal(t, live, llama.Live(), "nothing is left open: %s", name)
		_, err = gallop.Open(t.Context(), m.Path, &o)
		require.Error(t, err, name)
		require.Equal(t, live, llama.Live(), name)
	}
	e := engine(t, m, gallop.Options{NoCosts: true, Shortlist: -1})
	require.Equal(t, 4, e.Info().Parallel)
	require.Equal(t, 4096, e.Info().Context)
	require.Len(t, e.Stats().Slots, 4)
}

func TestRequestsOutOfRange(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(256))
	for name, r := range map[string]gallop.Request{
		"nothing":            {},
		"no messages":        {Messages: []gallop.Message{}},
		"a blank prompt":     {Prompt: " \n"},
		"two prompts":        {Prompt: "a", Tokens: []llama.Token{5}},
		"no such token":      {Tokens: []llama.Token{5, llama.Token(m.Vocab.Size)}},
		"a negative token":   {Tokens: []llama.Token{-1}},
		"tokens":             {Prompt: "a", MaxTokens: -1},
		"stop":               {Prompt: "a", Stop: []string{"x", ""}},
		"log-probabilities":  {Prompt: "a", Logprobs: 101},
		"below":              {Prompt: "a", Logprobs: -2},
		"shortlist":          {Prompt: "a", Shortlist: -2},
		"nothing begun":      {Messages: user("a"), Continue: true},
		"an empty answer":    {Messages: append(user("a"), gallop.Message{Role: "assistant", Content: " "}), Continue: true},
		"a text to continue": {Prompt: "a", Continue: true},
		"no end":             {Prompt: "a", IgnoreEOS: true, Sampling: &llama.Sampling{Grammar: `root ::= "a"`}},
		"temperature":        {Prompt: "a", Sampling: &llama.Sampling{Temp: float32(math.NaN())}},
		"grammar":            {Prompt: "a", Sampling: &llama.Sampling{Grammar: "root ::= ("}},
		"tools are no JSON":  {Messages: user("a"), Tools: json.RawMessage("[")},
		"no JSON object":     {Messages: user("a"), Variables: json.RawMessage("3")},
	} {
		_, err := e.Answer(t.Context(), r)
		require.ErrorIs(t, err, gallop.ErrRequest, name)
	}
	for _, s := range []gallop.Skip{gallop.Depth(0), gallop.Quality(2), gallop.Nothing().Escalate(2), gallop.Nothing().Escalate(math.NaN())} {
		_, err := e.Answer(t.Context(), gallop.Request{Prompt: "a", Skip: s})
		require.ErrorIs(t, err, gallop.ErrSkip, s)
		_, err = e.Plan(t.Context(), gallop.Request{Prompt: "a", Skip: s})
		require.ErrorIs(t, err, gallop.ErrSkip, s)
	}
	_, err := e.Answer(t.Context(), gallop.Request{Tokens: make([]llama.Token, 256)})
	require.ErrorIs(t, err, gallop.ErrTooLong)
	require.ErrorContains(t, err, "256 tokens, the context holds 256")
	require.EqualValues(t, 24, e.Stats().Failed)

	// The longest prompt has room for one token.
	a, err := e.Answer(t.Context(), gallop.Request{Tokens: make([]llama.Token, 255)})
	require.NoError(t, err)
	require.Equal(t, 1, a.Usage.Generated)
}

// TestContextSize gives a request as many tokens as were asked for, though llama.cpp's
// context has a multiple of 256.
func TestContextSize(t *testing.T) {
	m := small(t)
	const size, prompt = 40, 30
	for _, parallel := range []int{1, 2} {
		o := options(size)
		o.Parallel = parallel
		e := engine(t, m, o)
		require.Equal(t, size, e.Info().Context)
		for _, lossless := range []bool{false, true} {
			a, err := e.Answer(t.Context(), gallop.Request{
				Tokens: make([]llama.Token, prompt), Sampling: &llama.Sampling{}, IgnoreEOS: true, Lossless: lossless,
			})
			require.NoError(t, err)
			require.Equal(t, gallop.FinishLength, a.Finish)
			require.Equal(t, size-prompt, a.Usage.Generated)
		}
		_, err := e.Answer(t.Context(), gallop.Request{Tokens: make([]llama.Token, size)})
		require.ErrorIs(t, err, gallop.ErrTooLong)
		require.ErrorContains(t, err, "40 tokens, the context holds 40")
	}
}

func TestTextAndTokens(t *testing.T) {
	m := demoModel(t)
	e := engine(t, m, options(256))
	r := gallop.Request{Messages: user("What is 12 + 7?"), Sampling: &llama.Sampling{}}
	text, err := e.Render(r)
	require.NoError(t, err)
	require.Contains(t, text, "What is 12 + 7?")
	n, err := e.Count(r)
	require.NoError(t, err)
	want, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, "19", want.Text)
	require.Equal(t, want.Usage.Prompt, n)
	tokens := promptOf(t, m, r.Messages...)
	for name, same := range map[string]gallop.Request{
		"as text": {Prompt: text, Sampling: r.Sampling}, "as tokens": {Tokens: tokens, Sampling: r.Sampling},
	} {
		got, err := e.Answer(t.Context(), same)
		require.NoError(t, err, name)
		require.Equal(t, want.Tokens, got.Tokens, name)
		require.Equal(t, n-1, got.Usage.Cached, name)
	}
	end := e.Detokenize([]llama.Token{m.Vocab.EOS})
	require.NotEmpty(t, end)
	plain, err := e.Tokenize(end, false, false)
	require.NoError(t, err)
	special, err := e.Tokenize(end, false, true)
	require.NoError(t, err)
	require.Equal(t, []llama.Token{m.Vocab.EOS}, special)
	require.NotContains(t, plain, m.Vocab.EOS)
	require.Equal(t, end, e.Detokenize(plain))
}

// TestStats sums answers up.
func TestStats(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(512))
	require.Zero(t, e.Stats().Requests)
	var prompt, cached, generated uint64
	for _, text := range []string{"one", "one", "two"} {
		r := greedy(10)
		r.Messages = user(text)
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		prompt += uint64(a.Usage.Prompt)
		cached += uint64(a.Usage.Cached)
		generated += uint64(a.Usage.Generated)
	}
	s := e.Stats()
	require.EqualValues(t, 3, s.Requests)
	require.Equal(t, []uint64{prompt, cached, generated}, []uint64{s.PromptTokens, s.CachedTokens, s.Generated})
	require.InDelta(t, 1, s.WeightsRead, 0)
	require.Positive(t, s.PrefillSeconds)
	require.Positive(t, s.DecodeSeconds)
	require.Equal(t, 512, s.CacheOf)
	require.Positive(t, s.CacheUsed)
	require.Greater(t, s.Decodes, generated-3)
}

// TestWeightsRead counts the bytes of what a mask leaves out, of what is decoded again and of
// drafts.
func TestWeightsRead(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(512))
	all, _ := m.TokenBytes()
	left := 1.0
	for _, tensor := range m.Tensors {
		if strings.HasPrefix(tensor.Name, "blk.1.ffn_") {
			left -= float64(tensor.Size) / float64(all)
		}
	}
	require.Less(t, left, 1.0)
	mask := skip.Mask{}.With(1, skip.FeedForward)
	ask := func(set func(*gallop.Request)) gallop.Answer {
		r := greedy(20)
		r.Messages, r.IgnoreEOS = user("one"), true
		set(&r)
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, 20, a.Usage.Generated)
		return a
	}
	require.InDelta(t, 1, ask(func(r *gallop.Request) {}).WeightsRead, 0)
	require.InDelta(t, left, ask(func(r *gallop.Request) { r.Skip = gallop.Layers(mask) }).WeightsRead, 1e-9)
	require.InDelta(t, 1+left, ask(func(r *gallop.Request) { r.Skip = gallop.Layers(mask).Prefill(skip.FullPrefill).Escalate(1) }).WeightsRead, 1e-9)
	a := ask(func(r *gallop.Request) {
		r.Lossless, r.Drafts = true, &gallop.DraftOptions{MaxDraft: 2, NoLookup: true, Masks: []skip.Mask{mask}, Fixed: true}
	})
	require.Positive(t, a.Drafts.Drafted)
	require.InDelta(t, float64(a.Usage.Generated-1-a.Drafts.Accepted)+float64(a.Drafts.Drafted)*left, 19*a.WeightsRead, 1)
	r := greedy(1)
	r.Messages = user("one")
	a, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Zero(t, a.WeightsRead, "there was no token but the first")
}
