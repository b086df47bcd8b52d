package chat_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/chat"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestAnswersFromAShortlist(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	learner := shortlist.Open(m, t.TempDir(), 1, func(err error) { t.Error(err) })
	defer learner.Close()
	ask := func(o chat.Options) chat.Answer {
		o.Context = llama.ContextOptions{NCtx: 256, Threads: 1}
		o.MaxTokens = 24
		s, err := chat.New(m, &o)
		require.NoError(t, err)
		defer s.Close()
		a, err := s.Ask(context.Background(), "hello there", func(string) {})
		require.NoError(t, err)
		return a
	}
	forced := skip.Mask{}.WithShortlist(2048) // whether it pays is not for a test to say
	early := ask(chat.Options{Shortlist: learner, Mask: forced})
	require.Equal(t, chat.Listed{Why: "it is not learnt yet"}, early.Listed)
	require.True(t, early.Mask.IsEmpty())
	require.NoError(t, learner.Learn(context.Background()))

	whole := ask(chat.Options{})
	require.Equal(t, "it is off", whole.Listed.Why)
	short := ask(chat.Options{Shortlist: learner, Mask: forced})
	require.Equal(t, 2048, short.Listed.Size)
	require.Equal(t, short.Tokens-1, short.Listed.Rows, "the first token comes from the prompt's pass")
	require.Equal(t, forced, short.Mask)
	require.Equal(t, whole.Generated, short.Generated)
	require.Contains(t, chat.Summary(short, m.NLayer), "shortlist v2048")

	masked := ask(chat.Options{Shortlist: learner, Mask: forced.With(2, skip.FeedForward)})
	require.Equal(t, ask(chat.Options{Mask: skip.Mask{}.With(2, skip.FeedForward)}).Generated, masked.Generated)

	for name, s := range map[string]llama.Sampling{
		"a grammar": {Grammar: `root ::= [a-z ]+`},
		"penalties": {RepeatPenalty: 1.1},
		"a bias":    {LogitBias: map[llama.Token]float32{5: 1}},
	} {
		a := ask(chat.Options{Shortlist: learner, Mask: forced, Sampling: s})
		require.Zero(t, a.Listed.Rows, name)
		require.NotEmpty(t, a.Listed.Why, name)
	}
	drafted := &chat.Lossless{Fixed: true, MaxDraft: 3}
	lossless := ask(chat.Options{Shortlist: learner, Mask: forced.With(3, skip.Whole), Lossless: drafted})
	require.Equal(t, ask(chat.Options{Mask: skip.Mask{}.With(3, skip.Whole), Lossless: drafted}).Generated, lossless.Generated)
	require.Positive(t, lossless.Listed.Rows, "drafts come from the shortlist")
}

// TestAnswersLeaveAShortlist: where it doesn't pay, where a text leaves too many tokens in
// doubt, and with an adapter, the whole matrix gives the answer, with the reason.
func TestAnswersLeaveAShortlist(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	learner := shortlist.Open(m, t.TempDir(), 1, func(err error) { t.Error(err) })
	defer learner.Close()
	require.NoError(t, learner.Learn(context.Background()))
	made := learner.Made()
	session := func(o chat.Options) *chat.Session {
		o.Context, o.MaxTokens = llama.ContextOptions{NCtx: 256, Threads: 1}, 40
		s, err := chat.New(m, &o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
	ask := func(s *chat.Session) chat.Answer {
		s.Reset()
		s.Clear()
		a, err := s.Ask(context.Background(), "hello there", func(string) {})
		require.NoError(t, err)
		return a
	}
	auto := session(chat.Options{Shortlist: learner})
	whole := ask(session(chat.Options{}))
	require.Greater(t, whole.Tokens, 30)

	made.Gain, made.Doubt, made.List.Margin = 1, 0.1, -1e9
	slow := ask(auto)
	require.Equal(t, chat.Listed{Why: "decoding is no faster with one on this machine"}, slow.Listed)
	require.Equal(t, whole.Generated, slow.Generated)

	made.Gain = 2
	fast := ask(auto)
	require.Empty(t, fast.Listed.Why)
	require.Equal(t, fast.Tokens-1, fast.Listed.Rows)
	require.Zero(t, fast.Listed.Extended)

	made.List.Margin = 1e9 // all are in doubt
	left := ask(auto)
	require.Equal(t, "too many tokens of this text were in doubt", left.Listed.Why)
	require.Equal(t, made.Size, left.Listed.Size, "it began with one")
	require.Less(t, left.Listed.Rows, left.Tokens/2)
	require.Equal(t, whole.Generated, left.Generated)

	forced := ask(session(chat.Options{Shortlist: learner, Mask: skip.Mask{}.WithShortlist(1024)}))
	require.Empty(t, forced.Listed.Why, "what was asked for is kept to")
	require.Equal(t, forced.Tokens-1, forced.Listed.Extended)
	require.Equal(t, whole.Generated, forced.Generated)

	lora, err := m.LoadLoRA(llamatest.OutputLoRA(t, spec))
	require.NoError(t, err)
	defer lora.Close()
	require.NoError(t, auto.SetLoRA(llama.ScaledLoRA{LoRA: lora, Scale: 1}))
	adapted := ask(auto)
	require.Zero(t, adapted.Listed.Rows)
	require.Equal(t, "an adapter changes the hidden states that it was fitted to", adapted.Listed.Why)
	require.NoError(t, auto.SetLoRA())
	made.List.Margin = -1e9
	require.Empty(t, ask(auto).Listed.Why, "it is back")
}
