package chat_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/chat"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// fixed drafts n tokens each time under one mask.
func fixed(mask skip.Mask, n int) *chat.Lossless {
	return &chat.Lossless{Masks: []chat.DraftMask{{Mask: mask}}, MaxDraft: n, Fixed: true, NoLookup: true}
}

// comparison counts the tokens of lossless answers, which must be the plain ones.
type comparison struct{ tokens int }

func (c *comparison) add(t *testing.T, plain, lossless chat.Answer, what string) {
	t.Helper()
	require.Equal(t, plain.Generated, lossless.Generated, what)
	require.Zero(t, lossless.Drafting.Rounding, "a batch gives the very logits of single tokens: "+what)
	c.tokens += len(plain.Generated)
}

func (c *comparison) check(t *testing.T) {
	t.Helper()
	t.Logf("%d tokens compared", c.tokens)
	require.Positive(t, c.tokens)
}

// TestLosslessIsThePlainAnswer goes through architectures, lengths of drafts,
// masks and ways to split batches.
func TestLosslessIsThePlainAnswer(t *testing.T) {
	llamatest.Library(t)
	masks := []skip.Mask{
		skip.Layers(2), skip.Layers(1, 2, 3, 4, 5, 6), skip.Mask{}.With(3, skip.Attention).With(4, skip.FeedForward), skip.Layers(0, 7),
	}
	var all comparison
	for _, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			m := llamatest.Small(t, arch)
			opts := options(512)
			plain := session(t, m, opts)
			want := ask(t, plain, "one")
			step := 3
			if chat.Long() {
				step = 1
			}
			for n := 1; n <= chat.MaxDraft; n += step {
				opts.Context.NUBatch = []int{0, 1, 5}[n%3]
				opts.Lossless = fixed(masks[n%len(masks)], n)
				got := ask(t, session(t, m, opts), "one")
				require.Positive(t, got.Drafting.Rounds)
				all.add(t, want, got, fmt.Sprintf("drafts of %d under %s", n, opts.Lossless.Masks[0].Mask))
			}
			opts.Lossless = &chat.Lossless{Fixed: true, MaxDraft: 5} // looked up
			all.add(t, want, ask(t, session(t, m, opts), "one"), "looked up")
			opts.Lossless = &chat.Lossless{Masks: []chat.DraftMask{{Mask: masks[0]}, {Mask: masks[1], Acceptance: 0.99}}}
			s := session(t, m, opts)
			all.add(t, want, ask(t, s, "one"), "as it pays")
			require.NoError(t, s.SetMask(masks[3]))
			s.Reset()
			all.add(t, want, ask(t, s, "one"), "under a mask set by hand")
		})
	}
	all.check(t)
}

// demoPrompts opens the demo model and reads its held-out prompts.
func demoPrompts(t *testing.T) (*llama.Model, []dataset.Example) {
	t.Helper()
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	examples, _, err := dataset.Read([]string{"../../demo/test.jsonl"}, nil)
	require.NoError(t, err)
	return llamatest.Open(t, path), examples
}

// TestLosslessOnTheDemoModel asks held-out prompts in sessions of several turns.
func TestLosslessOnTheDemoModel(t *testing.T) {
	m, examples := demoPrompts(t)
	every := 40 // 24 of 960 prompts
	if chat.Long() {
		every = 4
	}
	opts := options(256)
	plain := session(t, m, opts)
	sessions := map[string]*chat.Session{}
	for name, o := range map[string]*chat.Lossless{
		"drafts of 4":  fixed(skip.Layers(5, 8), 4),
		"drafts of 16": fixed(skip.Mask{}.With(3, skip.FeedForward).With(7, skip.FeedForward), 16),
		"as it pays":   {Masks: []chat.DraftMask{{Mask: skip.Layers(4, 5)}}},
		"looked up":    {Fixed: true},
	} {
		opts.Lossless = o
		sessions[name] = session(t, m, opts)
	}
	var all comparison
	accepted, drafted := 0, 0
	for i := 0; i < len(examples); i += every {
		want := ask(t, plain, examples[i].Prompt)
		for name, s := range sessions {
			got := ask(t, s, examples[i].Prompt)
			all.add(t, want, got, name+": "+examples[i].Prompt)
			accepted, drafted = accepted+got.Drafting.Accepted, drafted+got.Drafting.Drafted
			if i/every%3 == 2 { // conversations of three turns
				s.Reset()
			}
		}
		if i/every%3 == 2 {
			plain.Reset()
		}
	}
	all.check(t)
	require.Greater(t, float64(accepted), 0.3*float64(drafted), "a draft of a few layers less is mostly right")
}

// A draft by the whole model is accepted to the last token, as it is drawn from
// the very distribution that it is judged by.
func TestDraftOfTheWholeModelIsAccepted(t *testing.T) {
	m := small(t)
	for _, sampling := range []llama.Sampling{{}, {Temp: 0.8, TopK: 20, Seed: 5}, {Temp: 1.5, RepeatPenalty: 1.3, Seed: 6}} {
		opts := options(512)
		opts.MaxTokens, opts.Sampling = 42, sampling
		opts.Lossless = fixed(skip.Mask{}, 4)
		d := ask(t, session(t, m, opts), "one").Drafting
		// The first token comes from the prompt, and one is decoded alone, which batches
		// are compared with; eight rounds of 4 + 1 follow.
		require.Equal(t, 8, d.Rounds)
		require.Equal(t, 8, d.Lengths[4], "%v", d.Lengths)
		require.InDelta(t, 1, d.Acceptance(), 0)
		require.Zero(t, d.Rounding)
		require.InDelta(t, 5, d.TokensPerRound(), 0)
	}
}

func TestLosslessEndsWhereThePlainAnswerDoes(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	m := llamatest.Open(t, path)
	for _, stop := range [][]string{nil, {"own"}, {" small lang", "never said"}, {"I"}, {"computer.", "zzz"}} {
		opts := options(256)
		opts.Stop = stop
		want := ask(t, session(t, m, opts), "Who are you?")
		require.Equal(t, chat.FinishStop, want.Finish)
		for _, s := range stop {
			require.NotContains(t, want.Text, s)
		}
		require.True(t, strings.HasPrefix("I am Gallop, a small language model that runs on your own computer.", want.Text))
		plain := session(t, m, opts)
		ask(t, plain, "Who are you?")
		then := ask(t, plain, "What is 12 + 7?")
		for _, n := range []int{1, 3, 8, 16} {
			opts.Lossless = fixed(skip.Layers(5), n)
			s := session(t, m, opts)
			got := ask(t, s, "Who are you?")
			require.Equal(t, want.Text, got.Text)
			require.Equal(t, want.Generated, got.Generated)
			require.Equal(t, want.Finish, got.Finish)
			require.Equal(t, then.Text, ask(t, s, "What is 12 + 7?").Text, "the conversation goes on from there")
		}
	}
	for tokens := 1; tokens < 8; tokens++ { // a bound inside a draft
		opts := options(256)
		opts.MaxTokens = tokens
		want := ask(t, session(t, m, opts), "Who are you?")
		opts.Lossless = fixed(skip.Layers(5), 5)
		got := ask(t, session(t, m, opts), "Who are you?")
		require.Equal(t, chat.FinishLength, got.Finish)
		require.Equal(t, want.Generated, got.Generated)
	}
	opts := options(256)
	opts.Stop = []string{""}
	_, err = chat.New(m, &opts)
	require.ErrorIs(t, err, llama.ErrOption)
}

// TestLosslessKeepsTheCacheRight drafts and verifies thousands of times; at the
// end of each answer what the KV cache holds is what decoding it anew gives.
func TestLosslessKeepsTheCacheRight(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	rounds := 600
	if chat.Long() {
		rounds = 10_000
	}
	opts := options(512)
	opts.MaxTokens = 300
	opts.Sampling = llama.Sampling{Temp: 1, Seed: 7}
	opts.Lossless = fixed(skip.Layers(2), 3)
	// Keys and values rounded to 16 bits, as flash attention does too, would hide small faults.
	opts.Context.KType, opts.Context.VType, opts.Context.Flash = llama.CacheF32, llama.CacheF32, llama.FlashOff
	s := session(t, m, opts)
	fresh := llamatest.Context(t, m, &opts.Context)
	for done := 0; done < rounds; {
		a := ask(t, s, fmt.Sprintf("tell me %d things", done))
		done += a.Drafting.Rounds
		cached := s.Cached()
		first, last := s.Context().Positions(0)
		require.Equal(t, []int{0, len(cached) - 1}, []int{first, last})

		// One more token after what is cached: its logits tell of every position.
		next := llamatest.Batch(t, []llama.Token{5}, len(cached))
		require.NoError(t, s.Context().Decode(next, skip.Mask{}))
		got, err := s.Context().Logits(0)
		require.NoError(t, err)
		require.NoError(t, s.Context().Remove(0, len(cached), -1))
		fresh.Clear()
		for i, token := range cached {
			require.NoError(t, fresh.Decode(llamatest.Batch(t, []llama.Token{token}, i), skip.Mask{}))
		}
		require.NoError(t, fresh.Decode(next, skip.Mask{}))
		want, err := fresh.Logits(0)
		require.NoError(t, err)
		const rounding = 1e-4 // of 32-bit sums in another order; seen: 1e-6
		require.InDeltaSlice(t, want, got, rounding)
		s.Reset()
	}
}

func TestLosslessRefuses(t *testing.T) {
	m := small(t)
	for _, o := range []*chat.Lossless{
		{MaxDraft: 17}, {MaxDraft: -1}, {Masks: []chat.DraftMask{{}}},
	} {
		opts := options(256)
		opts.Lossless = o
		_, err := chat.New(m, &opts)
		require.ErrorIs(t, err, chat.ErrLossless)
	}
	opts := options(256)
	opts.Lossless = &chat.Lossless{Masks: []chat.DraftMask{{Mask: skip.Layers(4)}}}
	_, err := chat.New(m, &opts)
	require.ErrorIs(t, err, skip.ErrMask)
}

func TestDraftMasks(t *testing.T) {
	m := small(t)
	masks, err := chat.DraftMasks(m, 1)
	require.NoError(t, err)
	require.NotEmpty(t, masks)
	for _, d := range masks {
		require.NoError(t, d.Mask.Check(m.NLayer))
		require.False(t, d.Mask.IsEmpty())
		require.Zero(t, d.Mask.Skipped(0)|d.Mask.Skipped(m.NLayer-1), "the first and the last layer stay")
	}
}
